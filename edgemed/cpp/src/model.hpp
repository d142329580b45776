// The handle of edgemed.h: an engine's session with memory of its own, and what it shares with its clones.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "engines.hpp"
#include "images.hpp"
#include "operating.hpp"

namespace edgemed::impl {

// What a handle and its clones share: read only after the bundle is open.
struct Shared {
    Bundle bundle;
    std::string runtime, version, reason, state, plan;
    SideLimits limits;
};

// Memory that grows to the largest request seen.
struct Scratch {
    std::vector<float> probabilities, members, entropy;
    Picture picture;
};

struct Model {
    std::shared_ptr<const Shared> shared;
    std::unique_ptr<Session> session;
    Scratch scratch;
    bool answered = false;  // whether the last request was, wholly: its entropy is in `scratch`

    size_t labels() const { return shared->bundle.manifest.labels.size(); }
    size_t members() const { return shared->bundle.manifest.member_names.size(); }

    size_t entropy_values() const { return size_t(shared->bundle.manifest.entropy_side * shared->bundle.manifest.entropy_side); }

    // (n, E, E) of the last request; null where the bundle gives none, or the request failed.
    const float* entropy() const { return answered && entropy_values() ? scratch.entropy.data() : nullptr; }

    // Where the runtime writes n answers: the caller's memory, or this handle's where the caller wants none.
    Answers answers(size_t n, const edgemed_outputs& outputs) {
        const auto room = [](std::vector<float>& own, float* theirs, size_t count) {
            if (!theirs && own.size() < count) own.resize(count);
            return theirs ? theirs : own.data();
        };
        return {room(scratch.probabilities, outputs.probabilities, n * labels()),
                room(scratch.members, outputs.member_probabilities, n * members() * labels()),
                entropy_values() ? room(scratch.entropy, nullptr, n * entropy_values()) : nullptr};
    }

    // `run` fills the answers for n images; then they are checked, and decided.
    template <typename Run>
    void predict(size_t n, const edgemed_outputs& outputs, Run run) {
        const Answers found = answers(n, outputs);
        Message message;
        const edgemed_status status = run(found, message);
        if (status != EDGEMED_OK) throw Error(status, message.text);
        // A NaN would still have a largest probability, and so a label.
        const auto finite = [](float value) { return std::isfinite(value); };
        if (!std::all_of(found.probabilities, found.probabilities + n * labels(), finite) ||
            !std::all_of(found.member_probabilities, found.member_probabilities + n * members() * labels(), finite) ||
            !std::all_of(found.entropy, found.entropy + n * entropy_values(), finite))
            throw Error(EDGEMED_ERROR_GATE, shared->runtime +
                                                    " computed what is not a finite number; do not use "
                                                    "this engine: run `edgemed inspect " +
                                                    shared->bundle.path + " --self-test`, and take another runtime or precision");
        for (size_t k = 0; k < n && (outputs.decisions || outputs.prediction_sets); ++k) {
            const edgemed_decision decision =
                decide(shared->bundle.manifest, found.probabilities + k * labels(),
                       found.member_probabilities + k * members() * labels(),
                       outputs.prediction_sets ? outputs.prediction_sets + k * labels() : nullptr);
            if (outputs.decisions) outputs.decisions[k] = decision;
        }
        answered = true;
    }

    void predict_rgb(const uint8_t* pixels, const Shape& shape, const edgemed_outputs& outputs) {
        predict(size_t(shape.n), outputs, [&](const Answers& found, Message& message) {
            return session->run(pixels, shape, found, message);
        });
    }

    uint8_t* staging(const Shape& shape) {
        Message message;
        uint8_t* memory = session->staging(shape, message);
        if (!memory) throw Error(message.status, message.text);
        return memory;
    }
};

}  // namespace edgemed::impl

struct edgemed_model : edgemed::impl::Model {};
