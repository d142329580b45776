// Eight threads with a clone each, opened, cloned and closed in any order, for SECONDS (EDGEMED_TEST_SECONDS, default 2):
// every answer is right. On the stub module, and on OpenVINO where the library has it.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "check.hpp"
#include "edgemed.hpp"

namespace {

std::atomic<long> requests{0}, wrong{0};

void work(edgemed::Model model, int number, std::chrono::steady_clock::time_point end) {
    std::vector<unsigned char> pixels(std::size_t(3 * 64 * 64));
    float expected = -1;
    for (long turn = 0; std::chrono::steady_clock::now() < end; ++turn) {
        const int side = 16 + (number * 7 + int(turn)) % 48;  // another shape each time
        for (std::size_t k = 0; k < pixels.size(); ++k) pixels[k] = static_cast<unsigned char>(k % 3 == 0 ? 20 * number : 90);
        const edgemed_image image{pixels.data(), side, side, 0, number % 2 ? EDGEMED_RGB : EDGEMED_BGR};
        // Of a batch size that several threads may be the first to ask for.
        const std::vector<edgemed_image> images(std::size_t(1 + (number + turn) % 3), image);
        for (const edgemed::Prediction& found : model.predict(images.data(), images.size())) {
            if (expected < 0) expected = found.probabilities[0];  // of a flat image: the same at every size
            if (std::fabs(found.probabilities[0] - expected) > 1e-5) ++wrong;
        }
        const edgemed_image bad{pixels.data(), 1, 1, 0, EDGEMED_RGB};
        edgemed_outputs none{};
        if (edgemed_predict(model.get(), &bad, 1, &none) != EDGEMED_ERROR_INPUT) ++wrong;
        if (turn % 50 == 49) model = model.clone();
        ++requests;
    }
}

void run(const std::string& bundle, const edgemed_options& options, double seconds) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(long(1000 * seconds));
    edgemed::Model model(bundle, options);
    std::vector<std::thread> threads;
    for (int k = 0; k < 8; ++k) threads.emplace_back(work, model.clone(), k, end);
    model.predict({content(bundle + "/manifest.json").data(), 16, 16, 0, EDGEMED_GRAY8});
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int, char** arguments) {
    const char* given = std::getenv("EDGEMED_TEST_SECONDS");
    const double seconds = given ? std::atof(given) : 2;
    const std::string bundle = std::string(arguments[1]) + "/bundle";
    edgemed_options options = edgemed_options_default();
    options.modules = arguments[2];
    options.runtime = "tensorrt-rtx";
    run(bundle, options, seconds);
    CHECK(requests > 100);
    options.runtime = "openvino", options.threads = 2;
    try {
        const long before = requests;
        run(bundle, options, seconds);
        CHECK(requests - before > 100);
    } catch (const edgemed::Error& error) {
        CHECK(std::string(error.what()).find("was built without OpenVINO") != std::string::npos, "%s", error.what());
    }
    CHECK(wrong == 0, "%ld of %ld", long(wrong), long(requests));
    std::printf("%ld requests\n", long(requests));
    return result();
}
