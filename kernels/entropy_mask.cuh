// Entropy-guided masks on a GPU: score, Gumbel noise and top-k of one image in one block, without a copy to the host.
//
//   score = sharpness * (H - mean) / std + g,  g = -log(-log u),  u from Philox4x32-10 (Salmon et al. 2011)
//   the `removed` highest scores of each image are 1 = removed; of equal scores the first unit goes first
//
// Entropies, scores and noise are integers in units of 2^-16 (kernels/reference.py, `mask_scores`), so the mask is the same
// on every backend: one double product, square root and quotient, each correctly rounded, and two logarithms whose results
// lie far from every rounding border. Do not compile with -use_fast_math.
//
// Moves 5 bytes per unit and 8 per image: 64 masks of 49 units 16 KB, 0.08 us on an Orin (204 GB/s), 0.02 us on an RTX 4090
// (1,008 GB/s), 0.005 us on an H100 (3,350 GB/s): the launch is what it costs. Ranks are counted pair by pair, which suits
// the up to some hundred units of a training image; 4,096 units are the limit.
#pragma once
#include <cstdint>

namespace edgemed {

constexpr int kMaxUnits = 4096;
constexpr int kMaskThreads = 128;

// First word of Philox4x32-10 of the counter (c0, c1, c2, 0) under the key (k0, k1).
__device__ __forceinline__ uint32_t philox_word(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t k0, uint32_t k1) {
  uint32_t c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product_0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product_1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product_1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(product_0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product_1);
    c3 = static_cast<uint32_t>(product_0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

// Gumbel noise in units of 2^-16.
__device__ __forceinline__ int64_t gumbel(uint32_t word) {
  const double uniform = (static_cast<double>(word >> 8) + 0.5) * (1.0 / 16777216.0);
  return static_cast<int64_t>(floor(-log(-log(uniform)) * 65536.0 + 0.5));
}

// An entropy of 0..8 bits in units of 2^-16; what is outside is clamped.
__device__ __forceinline__ int64_t quantised(float bits) {
  const float clamped = bits > 0.0f ? (bits < 8.0f ? bits : 8.0f) : 0.0f;
  return static_cast<int64_t>(floor(static_cast<double>(clamped) * 65536.0 + 0.5));
}

// One block of kMaskThreads threads per image.
//   entropy float32 (N, units) bits, ids int64 (N,), mask uint8 (N, units), slope = sharpness * 2^16, units <= kMaxUnits
__device__ __forceinline__ void entropy_mask_body(const float* entropy, const int64_t* ids, uint8_t* mask, int units,
                                                  int removed, double slope, uint32_t seed_low, uint32_t seed_high) {
  __shared__ int64_t keys[kMaxUnits];
  __shared__ int64_t totals[kMaskThreads];
  __shared__ int64_t squares[kMaskThreads];

  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * units;
  const uint64_t id = static_cast<uint64_t>(ids[blockIdx.x]);

  int64_t total = 0, square = 0;
  for (int unit = thread; unit < units; unit += kMaskThreads) {
    const int64_t value = quantised(entropy[first + unit]);
    total += value;
    square += value * value;
  }
  totals[thread] = total;
  squares[thread] = square;
  for (int half = kMaskThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      totals[thread] += totals[thread + half];
      squares[thread] += squares[thread + half];
    }
  }
  __syncthreads();

  total = totals[0];
  const double spread = sqrt(static_cast<double>(units * squares[0] - total * total));
  for (int unit = thread; unit < units; unit += kMaskThreads) {
    const double centred = static_cast<double>(quantised(entropy[first + unit]) * units - total);
    const int64_t guided = static_cast<int64_t>(floor(slope * centred / (spread > 0.0 ? spread : 1.0) + 0.5));
    const uint32_t word =
        philox_word(static_cast<uint32_t>(unit), static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), seed_low, seed_high);
    keys[unit] = (guided + gumbel(word)) * kMaxUnits + (kMaxUnits - 1 - unit);  // no two keys are equal
  }
  __syncthreads();

  for (int unit = thread; unit < units; unit += kMaskThreads) {
    int higher = 0;
    for (int other = 0; other < units; ++other) higher += keys[other] > keys[unit] ? 1 : 0;
    mask[first + unit] = higher < removed ? 1 : 0;
  }
}

}  // namespace edgemed
