// The bundle's golden images with the PyTorch reference's outputs (evidence.py), and how far an engine may be from them
// (gates.py). Golden images alone make an engine self-tested, never certified.
#pragma once

#include <cstdint>
#include <functional>

#include "bundle.hpp"
#include "images.hpp"
#include "runtime.hpp"

namespace edgemed::impl {

struct Golden {
    std::string file;                   // its name in the bundle
    std::vector<float> probabilities;   // (K,)
    std::vector<float> members;         // (M, K)
    std::vector<float> entropy;         // (E, E), where the manifest says that there is one
};

// What an engine takes at the least and the most: a plan of one size may take no golden image, or no single one.
struct Taken {
    int64_t least_batch = 1, smallest_side = 1, largest_side = INT64_MAX;
};

// What golden/outputs.json lists. Throws Error(EDGEMED_ERROR_BUNDLE).
std::vector<Golden> golden_from(const Bytes& outputs, const Manifest& manifest, const std::string& where);

// Runs the golden images that are taken through `predict` (pixels and their shape (N, H, W), probabilities (N, K),
// members (N, M, K), which gives the entropy (N, E, E), or null). Throws Error(EDGEMED_ERROR_GATE), with the first
// figure that is beyond its gate, or Error(EDGEMED_ERROR_INPUT) where no golden image is taken, or only in a batch that
// no request may have; `what` names the engine.
void self_test(const Bundle& bundle, const std::string& precision, const std::string& what, const Taken& taken,
               const std::function<const float*(const uint8_t*, const Shape&, float*, float*)>& predict);

}  // namespace edgemed::impl
