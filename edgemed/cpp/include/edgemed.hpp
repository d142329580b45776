// edgemed in C++: a thin wrapper of edgemed.h, header only. Failures are thrown as edgemed::Error.
//
//     edgemed::Model model("bundle");
//     edgemed_image frame{pixels, 480, 640, 0, EDGEMED_BGR};
//     const edgemed::Prediction found = model.predict(frame);
//     std::cout << found.decision << ' ' << found.probabilities[found.label] << '\n';
//
// A model serves one thread at a time; give each thread a clone(). It allocates an answer per call: for a loop that must
// not, call edgemed_predict with buffers of your own and model.get().
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "edgemed.h"

namespace edgemed {

struct Error : std::runtime_error {
    edgemed_status status;
    explicit Error(edgemed_status status) : std::runtime_error(edgemed_last_error()), status(status) {}
};

struct Prediction {
    std::string decision;              // a label, or "refer"
    std::size_t label;                 // index of the most probable label
    double disagreement;               // of the members, 0 to 1
    std::vector<float> probabilities;  // by label
    std::vector<float> members;        // (members, labels)
    bool has_set;                      // whether the bundle states a coverage
    std::vector<std::size_t> set;      // indices of the labels in the prediction set
    std::vector<float> entropy;        // (E, E) bits per 32-pixel patch, of a bundle built --with-entropy; else empty
};

class Model {
public:
    explicit Model(const std::string& bundle, const edgemed_options& options = edgemed_options_default()) {
        edgemed_model* opened = nullptr;
        check(edgemed_open(bundle.c_str(), &options, &opened));
        adopt(opened);
    }

    // For another thread; shares the engine.
    Model clone() const {
        edgemed_model* cloned = nullptr;
        check(edgemed_clone(model_.get(), &cloned));
        Model other;
        other.adopt(cloned);
        return other;
    }

    Prediction predict(const edgemed_image& image) { return std::move(predict(&image, 1)[0]); }

    // n images of one size, as one request.
    std::vector<Prediction> predict(const edgemed_image* images, std::size_t n) {
        return answers(n, [&](const edgemed_outputs& outputs) { return edgemed_predict(get(), images, n, &outputs); });
    }

    // A PNG or JPEG in memory.
    Prediction predict_encoded(const void* data, std::size_t size) {
        return std::move(answers(1, [&](const edgemed_outputs& outputs) {
            return edgemed_predict_encoded(get(), data, size, &outputs);
        })[0]);
    }

    const std::vector<std::string>& labels() const { return labels_; }
    const std::vector<std::string>& members() const { return members_; }
    std::string runtime() const { return text(edgemed_runtime(get())); }
    std::string reason() const { return text(edgemed_reason(get())); }
    edgemed_model* get() const { return model_.get(); }

private:
    Model() = default;

    static std::string text(const char* known) { return known ? known : ""; }  // NULL: of a model that was moved away

    static void check(edgemed_status status) {
        if (status != EDGEMED_OK) throw Error(status);
    }

    void adopt(edgemed_model* model) {
        model_.reset(model);
        for (int k = 0; k < edgemed_label_count(model); ++k) labels_.emplace_back(edgemed_label(model, k));
        for (int k = 0; k < edgemed_member_count(model); ++k) members_.emplace_back(edgemed_member_name(model, k));
    }

    template <typename Run>
    std::vector<Prediction> answers(std::size_t n, Run run) {
        const std::size_t k = labels_.size(), m = members_.size();
        std::vector<float> probabilities(n * k), members(n * m * k);
        std::vector<edgemed_decision> decisions(n);
        std::vector<unsigned char> sets(n * k);
        check(run(edgemed_outputs{probabilities.data(), members.data(), decisions.data(), sets.data()}));
        const std::size_t side = std::size_t(edgemed_entropy_side(get()));
        const float* entropy = n ? edgemed_entropy(get()) : nullptr;
        std::vector<Prediction> found;
        for (std::size_t i = 0; i < n; ++i) {
            const edgemed_decision& one = decisions[i];
            Prediction prediction{edgemed_decision_name(get(), one.decision), std::size_t(one.label), one.disagreement,
                                  {&probabilities[i * k], &probabilities[i * k] + k},
                                  {&members[i * m * k], &members[i * m * k] + m * k}, one.set_size >= 0, {}, {}};
            for (std::size_t label = 0; label < k; ++label)
                if (sets[i * k + label]) prediction.set.push_back(label);
            if (entropy) prediction.entropy.assign(entropy + i * side * side, entropy + (i + 1) * side * side);
            found.push_back(std::move(prediction));
        }
        return found;
    }

    struct Close {
        void operator()(edgemed_model* model) const { edgemed_close(model); }
    };
    std::unique_ptr<edgemed_model, Close> model_;
    std::vector<std::string> labels_, members_;
};

}  // namespace edgemed
