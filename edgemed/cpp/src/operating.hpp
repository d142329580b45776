// From probabilities to a decision: operating.py in C++, in the same arithmetic. float32 probabilities against float64
// thresholds, compared in float64; sums are taken in order.
#pragma once

#include <cmath>

#include "manifest.hpp"

namespace edgemed::impl {

inline size_t largest(const float* values, size_t n, size_t without = SIZE_MAX) {
    size_t best = without == 0 ? 1 : 0;  // the first one at a tie
    for (size_t k = best + 1; k < n; ++k)
        if (k != without && values[k] > values[best]) best = k;
    return best;
}

// Mean over members of their total variation distance to the mean, in [0, 1].
inline double disagreement(const float* probabilities, const float* members, size_t labels, size_t count) {
    double sum = 0;
    for (size_t m = 0; m < count; ++m) {
        double distance = 0;
        for (size_t k = 0; k < labels; ++k)
            distance += std::fabs(double(members[m * labels + k]) - double(probabilities[k]));
        sum += distance;
    }
    return sum / double(count) / 2;
}

// The decision for one image: probabilities (K,), members (M, K). in_set: (K,) or null.
inline edgemed_decision decide(const Manifest& manifest, const float* probabilities, const float* members,
                               unsigned char* in_set) {
    const size_t labels = manifest.labels.size();
    edgemed_decision found{};
    found.label = found.decision = int(largest(probabilities, labels));
    found.disagreement = disagreement(probabilities, members, labels, manifest.member_names.size());
    found.set_size = -1;
    if (in_set) std::fill(in_set, in_set + labels, 0);
    if (!manifest.operating_point) return found;
    const OperatingPoint& point = *manifest.operating_point;
    if (point.positive)
        found.decision = int(double(probabilities[*point.positive]) >= point.threshold
                                 ? *point.positive
                                 : largest(probabilities, labels, *point.positive));
    if (point.max_disagreement && found.disagreement > *point.max_disagreement) found.decision = EDGEMED_REFER;
    if (point.min_probability) {
        found.set_size = 0;
        for (size_t k = 0; k < labels; ++k) {
            const bool kept = double(probabilities[k]) >= *point.min_probability;
            found.set_size += kept;
            if (in_set) in_set[k] = kept;
        }
    }
    return found;
}

}  // namespace edgemed::impl
