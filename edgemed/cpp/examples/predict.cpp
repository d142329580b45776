// edgemed-predict BUNDLE IMAGE...: classify PNG and JPEG files. A bad file is reported and the others go on; the exit
// code is then 2, as that of `edgemed predict`. An engine that fails is asked nothing more.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "edgemed.hpp"

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: edgemed-predict BUNDLE IMAGE...\n");
        return 2;
    }
    int code = 0;
    try {
        edgemed_options options = edgemed_options_default();
        options.warn = [](const char* message, void*) { std::fprintf(stderr, "edgemed: warning: %s\n", message); };
        edgemed::Model model(arguments[1], options);
        std::fprintf(stderr, "edgemed: %s\n", model.reason().c_str());
        for (int k = 2; k < count; ++k) {
            try {
                std::ifstream file(arguments[k], std::ios::binary);
                const std::string data{std::istreambuf_iterator<char>(file), {}};  // throws for a folder
                if (!file) throw std::ios_base::failure("cannot be read");
                const edgemed::Prediction found = model.predict_encoded(data.data(), data.size());
                std::printf("%s: %s", arguments[k], found.decision.c_str());
                for (std::size_t label = 0; label < model.labels().size(); ++label)
                    std::printf("  %s %.6f", model.labels()[label].c_str(), double(found.probabilities[label]));
                std::printf("  (disagreement %.6f)\n", found.disagreement);
            } catch (const std::exception& error) {
                const auto* const of_model = dynamic_cast<const edgemed::Error*>(&error);
                if (of_model && of_model->status != EDGEMED_ERROR_INPUT) throw;
                std::fprintf(stderr, "edgemed: error: %s: %s\n", arguments[k], error.what());
                code = 2;
            }
        }
    } catch (const edgemed::Error& error) {
        std::fprintf(stderr, "edgemed: error: %s\n", error.what());
        return error.status <= EDGEMED_ERROR_GATE ? error.status : 2;
    }
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
        std::fprintf(stderr, "edgemed: error: the answers cannot be written; is the disk full?\n");
        return 1;
    }
    return code;
}
