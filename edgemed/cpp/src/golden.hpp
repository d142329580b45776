// The bundle's golden images with the PyTorch reference's outputs (evidence.py), and how far an engine may be from them
// (gates.py). Golden images alone make an engine self-tested, never certified.
#pragma once

#include <functional>

#include "bundle.hpp"
#include "images.hpp"

namespace edgemed::impl {

struct Golden {
    std::string file;                   // its name in the bundle
    std::vector<float> probabilities;   // (K,)
    std::vector<float> members;         // (M, K)
};

// What golden/outputs.json lists. Throws Error(EDGEMED_ERROR_BUNDLE).
std::vector<Golden> golden_from(const Bytes& outputs, const Manifest& manifest, const std::string& where);

// Runs the golden images through `predict` (picture, probabilities (K,), members (M, K)). Throws
// Error(EDGEMED_ERROR_GATE), with every figure that is beyond its gate; `what` names the engine.
void self_test(const Bundle& bundle, const std::string& precision, const std::string& what,
               const std::function<void(const Picture&, float*, float*)>& predict);

}  // namespace edgemed::impl
