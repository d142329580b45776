// The promises of edgemed.h, on the stub module: what is wrong is a status and a message, and nothing is ever kept.
#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

#include "check.hpp"
#include "edgemed.hpp"

namespace {

constexpr int height = 20, width = 24;

struct Request {
    std::vector<unsigned char> pixels = std::vector<unsigned char>(height * width * 3);
    float probabilities[3 * 16] = {}, members[6 * 16] = {};
    edgemed_decision decisions[16] = {};
    unsigned char sets[3 * 16] = {};
    edgemed_image image{pixels.data(), height, width, 0, EDGEMED_RGB};
    edgemed_outputs outputs{probabilities, members, decisions, sets};

    explicit Request(int r = 10, int g = 20, int b = 30) {
        const int colour[3] = {r, g, b};
        for (std::size_t k = 0; k < pixels.size(); ++k) pixels[k] = static_cast<unsigned char>(colour[k % 3]);
    }
};

bool last_error_has(const char* text) {
    if (std::strstr(edgemed_last_error(), text)) return true;
    std::fprintf(stderr, "the message is: %s\n", edgemed_last_error());
    return false;
}

bool near(float found, double expected) { return std::fabs(found - expected) < 1e-6; }

void a_request_is_answered(edgemed_model* model) {
    Request request;
    CHECK(edgemed_predict(model, &request.image, 1, &request.outputs) == EDGEMED_OK);
    const float* p = request.probabilities;  // members: (11, 21, 31) / 63 and (21, 31, 11) / 63
    CHECK(near(p[0], 32 / 126.0) && near(p[1], 52 / 126.0) && near(p[2], 42 / 126.0), "%f %f %f", p[0], p[1], p[2]);
    CHECK(near(request.members[2], 31 / 63.0) && near(request.members[3], 21 / 63.0));
    const edgemed_decision& decision = request.decisions[0];
    CHECK(decision.label == 1 && decision.decision == 1 && decision.set_size == -1);
    CHECK(std::fabs(decision.disagreement - 20 / 126.0) < 1e-6, "%f", decision.disagreement);
}

void what_is_null_is_left_out(edgemed_model* model) {
    Request request;
    const edgemed_outputs nothing{nullptr, nullptr, nullptr, nullptr};
    CHECK(edgemed_predict(model, &request.image, 1, &nothing) == EDGEMED_OK);
    const edgemed_outputs only_decisions{nullptr, nullptr, request.decisions, nullptr};
    CHECK(edgemed_predict(model, &request.image, 1, &only_decisions) == EDGEMED_OK);
    CHECK(request.decisions[0].label == 1);
    request.decisions[0].label = 77;
    CHECK(edgemed_predict(model, &request.image, 0, &only_decisions) == EDGEMED_OK);
    CHECK(request.decisions[0].label == 77);  // no image, no answer
}

void a_batch_gets_an_answer_each(edgemed_model* model) {
    Request red(200, 10, 10), blue(10, 10, 200);
    const edgemed_image apart[2] = {red.image, blue.image};
    CHECK(edgemed_predict(model, apart, 2, &red.outputs) == EDGEMED_OK);
    const float first = red.probabilities[1], second = red.probabilities[4];
    std::vector<unsigned char> together(red.pixels);  // one block needs no copy, and gives the same
    together.insert(together.end(), blue.pixels.begin(), blue.pixels.end());
    edgemed_image packed[2] = {red.image, red.image};
    packed[0].data = together.data(), packed[1].data = together.data() + red.pixels.size();
    CHECK(edgemed_predict(model, packed, 2, &blue.outputs) == EDGEMED_OK);
    CHECK(blue.probabilities[1] == first && blue.probabilities[4] == second && first != second);
    // Each image is checked, not only the first.
    const auto refused = [&](void (*change)(edgemed_image&), const char* text) {
        edgemed_image images[2] = {red.image, red.image};
        change(images[1]);
        return edgemed_predict(model, images, 2, &blue.outputs) == EDGEMED_ERROR_INPUT && last_error_has(text);
    };
    CHECK(refused([](edgemed_image& image) { image.height -= 1; }, "one size"));
    CHECK(refused([](edgemed_image& image) { image.width -= 1; }, "one size"));
    CHECK(refused([](edgemed_image& image) { image.data = nullptr; }, "data is NULL"));
    CHECK(refused([](edgemed_image& image) { image.format = 9; }, "format"));
    CHECK(refused([](edgemed_image& image) { image.stride = 5; }, "stride"));
}

void wrong_arguments_are_refused(edgemed_model* model) {
    Request request;
    const auto refused = [&](const edgemed_image& image, const char* text, std::size_t n = 1) {
        return edgemed_predict(model, &image, n, &request.outputs) == EDGEMED_ERROR_INPUT && last_error_has(text);
    };
    edgemed_image image = request.image;
    image.data = nullptr;
    CHECK(refused(image, "data is NULL"));
    for (const int side : {-1, 0, 15, 513, 1 << 30}) {
        const char* const text = "takes sides from 16 to 512; resize it, or build again with --image-size";
        image = request.image, image.height = side;
        CHECK(refused(image, text), "%d", side);
        image = request.image, image.width = side;
        CHECK(refused(image, text), "%d", side);
    }
    for (const ptrdiff_t stride : {1, 71, -71}) {
        image = request.image, image.stride = stride;
        CHECK(refused(image, "stride"), "%td", stride);
    }
    image = request.image, image.format = 9;
    CHECK(refused(image, "format"));
    for (const std::size_t n : {(1UL << 20) + 1, 1UL << 40}) CHECK(refused(request.image, "at most", n));
    CHECK(edgemed_predict(nullptr, &request.image, 1, &request.outputs) == EDGEMED_ERROR_INPUT);
    CHECK(edgemed_predict(model, nullptr, 1, &request.outputs) == EDGEMED_ERROR_INPUT);
    CHECK(edgemed_predict(model, &request.image, 1, nullptr) == EDGEMED_ERROR_INPUT);
    CHECK(edgemed_predict_encoded(model, nullptr, 3, &request.outputs) == EDGEMED_ERROR_INPUT);
    CHECK(edgemed_predict_encoded(model, "", 0, &request.outputs) == EDGEMED_ERROR_INPUT && last_error_has("is empty"));
    CHECK(edgemed_predict_device(model, nullptr, 1, 20, 20, nullptr, &request.outputs) == EDGEMED_ERROR_INPUT);
    int low = -1, high = -1;
    edgemed_image_sides(model, &low, &high);
    edgemed_image_sides(model, nullptr, nullptr);
    CHECK(low == 16 && high == 512);
    edgemed_image_sides(nullptr, &low, &high);
    CHECK(low == 0 && high == 0 && edgemed_label_count(nullptr) == 0 && edgemed_member_count(nullptr) == 0);
    CHECK(!edgemed_label(nullptr, 0) && !edgemed_member_name(nullptr, 0) && !edgemed_decision_name(nullptr, 0));
    CHECK(!edgemed_runtime(nullptr) && !edgemed_runtime_version(nullptr) && !edgemed_bundle_id(nullptr));
    CHECK(!edgemed_reason(nullptr) && !edgemed_state(nullptr));
    CHECK(edgemed_label(model, 3) == nullptr && edgemed_label(model, -1) == nullptr);
    CHECK(edgemed_decision_name(model, EDGEMED_REFER) == std::string("refer"));
}

void a_failing_runtime_is_reported(edgemed_model* model) {
    Request failing(255, 0, 1), good;
    CHECK(edgemed_predict(model, &failing.image, 1, &failing.outputs) == EDGEMED_ERROR_RUNTIME);
    CHECK(last_error_has("the stub fails"));
    for (const int where : {2, 8}) {  // of the mean, of a member, whose disagreement would not be a number either
        Request nan(255, 0, where);
        const edgemed_image second[2] = {good.image, nan.image};
        CHECK(edgemed_predict(model, &nan.image, 1, &nan.outputs) == EDGEMED_ERROR_GATE, "%d", where);
        CHECK(edgemed_predict(model, second, 2, &nan.outputs) == EDGEMED_ERROR_GATE, "%d", where);
        CHECK(last_error_has("not a finite number"));
    }
    CHECK(edgemed_predict(model, &good.image, 1, &good.outputs) == EDGEMED_OK);  // the handle goes on
}

void short_memory_is_not_called_a_runtimes_failure(edgemed_model* model) {
    std::vector<unsigned char> rows(511 * width * 3);
    const edgemed_image image{rows.data(), 511, width, 0, EDGEMED_BGR};
    Request request;
    edgemed_model* clone = nullptr;
    CHECK(edgemed_predict(model, &image, 1, &request.outputs) == EDGEMED_ERROR_INTERNAL);
    CHECK(last_error_has("out of memory"));
    CHECK(edgemed_clone(model, &clone) == EDGEMED_ERROR_INTERNAL && !clone && last_error_has("no memory for a clone"));
    request.image.format = EDGEMED_BGR;
    CHECK(edgemed_predict(model, &request.image, 1, &request.outputs) == EDGEMED_OK);
}

void device_memory_goes_to_the_runtime(edgemed_model* model) {
    Request request, same;
    int stream = 0;
    CHECK(edgemed_predict_device(model, request.pixels.data(), 1, height, width, &stream, &request.outputs) == EDGEMED_OK);
    CHECK(edgemed_predict(model, &same.image, 1, &same.outputs) == EDGEMED_OK);
    CHECK(request.probabilities[1] == same.probabilities[1] && request.decisions[0].label == 1);
    CHECK(edgemed_predict_device(model, request.pixels.data(), 1, 5, width, &stream, &request.outputs) == EDGEMED_ERROR_INPUT);
    CHECK(edgemed_predict_device(model, request.pixels.data(), 1, height, width, nullptr, &request.outputs) != EDGEMED_OK);
    CHECK(last_error_has("wants a stream"));
}

void errors_belong_to_their_thread(edgemed_model* model) {
    CHECK(edgemed_open("/nowhere", nullptr, &model) == EDGEMED_ERROR_BUNDLE && model == nullptr);
    std::string before = "unset";
    std::thread([&] { before = edgemed_last_error(); }).join();
    CHECK(before.empty());
    CHECK(last_error_has("/nowhere does not exist"));
    CHECK(edgemed_open("/no\nwhere\x7f", nullptr, &model) == EDGEMED_ERROR_BUNDLE);
    CHECK(last_error_has("/no where  does not exist"));  // one line, whatever a name holds
}

void an_entropy_map_is_of_the_last_request_alone(const std::string& bundle, const edgemed_options& options) {
    edgemed_model *model = nullptr, *clone = nullptr;
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_OK && edgemed_clone(model, &clone) == EDGEMED_OK);
    CHECK(edgemed_entropy_side(model) == 2 && !edgemed_entropy(model));
    Request first(10, 20, 30), second(50, 20, 30);
    const auto answered = [&] {
        const bool ran = edgemed_predict(model, &first.image, 1, &first.outputs) == EDGEMED_OK;
        const float* map = edgemed_entropy(model);
        return ran && map && near(map[0], 10) && near(map[3], 13);
    };
    CHECK(answered());
    CHECK(!edgemed_entropy(clone));
    const edgemed_image both[2] = {first.image, second.image};
    CHECK(edgemed_predict(model, both, 2, &first.outputs) == EDGEMED_OK);
    CHECK(near(edgemed_entropy(model)[3], 13) && near(edgemed_entropy(model)[4], 50) && near(edgemed_entropy(model)[7], 53));
    edgemed_image wrong = first.image;
    wrong.stride = 5;
    CHECK(answered() && edgemed_predict(model, &wrong, 1, &first.outputs) != EDGEMED_OK && !edgemed_entropy(model));
    CHECK(answered() && edgemed_predict_encoded(model, "no image", 8, &first.outputs) != EDGEMED_OK);
    CHECK(!edgemed_entropy(model));
    CHECK(answered() && edgemed_predict(model, nullptr, 1, &first.outputs) != EDGEMED_OK && !edgemed_entropy(model));
    CHECK(answered() && edgemed_predict(model, &first.image, 0, &first.outputs) == EDGEMED_OK && !edgemed_entropy(model));
    for (const int kind : {1, 2, 9}) {  // it fails, a probability is a NaN, a value of the map is one
        const Request bad(255, 0, kind);
        const edgemed_image second[2] = {first.image, bad.image};
        CHECK(answered() && edgemed_predict(model, &bad.image, 1, &first.outputs) != EDGEMED_OK && !edgemed_entropy(model));
        CHECK(answered() && edgemed_predict(model, second, 2, &first.outputs) != EDGEMED_OK && !edgemed_entropy(model));
    }
    CHECK(answered());
    edgemed_close(model);
    edgemed_close(clone);
    CHECK(!edgemed_entropy(nullptr) && edgemed_entropy_side(nullptr) == 0);
}

void prediction_sets_need_no_decisions(const std::string& bundle, const edgemed_options& options) {
    edgemed::Model model(bundle, options);
    Request both, sets(10, 20, 30);
    CHECK(edgemed_predict(model.get(), &both.image, 1, &both.outputs) == EDGEMED_OK);
    CHECK(both.sets[0] == 0 && both.sets[1] == 1 && both.sets[2] == 0 && both.decisions[0].set_size == 1);
    sets.outputs = {nullptr, nullptr, nullptr, sets.sets};
    std::memset(sets.sets, 7, sizeof sets.sets);
    CHECK(edgemed_predict(model.get(), &sets.image, 1, &sets.outputs) == EDGEMED_OK);
    CHECK(std::memcmp(sets.sets, both.sets, 3) == 0 && sets.sets[3] == 7);  // what lies behind is not the library's
}

void options_are_checked(const std::string& bundle, const edgemed_options& good) {
    edgemed_model* model = nullptr;
    edgemed_options options = good;
    options.size = 0;
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_INPUT && last_error_has("options"));
    struct {
        edgemed_options options;
        char behind[8];
    } older;  // a program built against the header that had no plan: what lies behind is not the library's
    std::memset(&older, 0xAA, sizeof older);
    const size_t known = offsetof(edgemed_options, plan);
    edgemed_options_init(&older.options, known);
    CHECK(older.options.size == known && older.options.precision == std::string("fp32"));
    for (size_t k = known; k < sizeof older; ++k) CHECK(reinterpret_cast<const unsigned char*>(&older)[k] == 0xAA);
    older.options.runtime = good.runtime, older.options.modules = good.modules;
    CHECK(edgemed_open(bundle.c_str(), &older.options, &model) == EDGEMED_OK, "%s", edgemed_last_error());
    edgemed_close(model);
    options.size = sizeof options + 8;  // of a program built against a newer header
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_INPUT);
    options = good, options.threads = -1;
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_INPUT && last_error_has("threads"));
    options = good, options.runtime = nullptr;
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_INPUT);
    options = good, options.runtime = "onnxruntime";
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_INPUT && last_error_has("Known: auto"));
    options = good, options.precision = "int8";
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_INPUT && last_error_has("fp16, fp32"));
    options = good, options.modules = "/nowhere";
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_RUNTIME && last_error_has("is not there"));
    CHECK(edgemed_open(nullptr, &good, &model) == EDGEMED_ERROR_INPUT);
    CHECK(edgemed_open(bundle.c_str(), &good, nullptr) == EDGEMED_ERROR_INPUT);
    CHECK(edgemed_clone(nullptr, &model) == EDGEMED_ERROR_INPUT && model == nullptr);
    options = good, options.self_test = 1;  // the stub does not compute what the reference did
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_ERROR_GATE && last_error_has("differs from its reference"));
    edgemed_close(nullptr);
}

void the_wrapper_gives_the_same(const std::string& bundle, const edgemed_options& options) {
    edgemed::Model model(bundle, options);
    edgemed::Model other = model.clone();
    const Request request;
    const edgemed::Prediction found = other.predict(request.image);
    CHECK(found.decision == "malignant" && found.label == 1 && !found.has_set && found.set.empty());
    CHECK(model.labels() == std::vector<std::string>({"benign", "malignant", "normal"}));
    CHECK(model.members().size() == 2 && found.members.size() == 6 && near(found.members[2], 31 / 63.0));
    try {
        model.predict_encoded("GIF89a", 6);
        CHECK(false);
    } catch (const edgemed::Error& error) {
        CHECK(error.status == EDGEMED_ERROR_INPUT && std::string(error.what()).find("not a PNG or JPEG") != std::string::npos);
    }
}

}  // namespace

int main(int, char** arguments) {
    const std::string bundle = std::string(arguments[1]) + "/bundle";
    edgemed_options options = edgemed_options_default();
    options.runtime = "tensorrt-rtx";
    options.modules = arguments[2];
    edgemed_model *model = nullptr, *clone = nullptr;
    CHECK(edgemed_open(bundle.c_str(), &options, &model) == EDGEMED_OK, "%s", edgemed_last_error());
    if (!model) return result();
    CHECK(edgemed_runtime(model) == std::string("tensorrt-rtx") && edgemed_state(model) == std::string("built"));
    CHECK(edgemed_reason(model) == std::string("tensorrt-rtx: asked for by name"));
    CHECK(edgemed_clone(model, &clone) == EDGEMED_OK);
    edgemed_close(model);  // in any order
    a_request_is_answered(clone);
    what_is_null_is_left_out(clone);
    a_batch_gets_an_answer_each(clone);
    wrong_arguments_are_refused(clone);
    a_failing_runtime_is_reported(clone);
    short_memory_is_not_called_a_runtimes_failure(clone);
    device_memory_goes_to_the_runtime(clone);
    errors_belong_to_their_thread(nullptr);
    edgemed_close(clone);
    an_entropy_map_is_of_the_last_request_alone(std::string(arguments[1]) + "/point", options);
    prediction_sets_need_no_decisions(std::string(arguments[1]) + "/point", options);
    options_are_checked(bundle, options);
    the_wrapper_gives_the_same(bundle, options);
    CHECK(edgemed_version()[0] != '\0');
    return result();
}
