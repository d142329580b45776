// Patch entropy on a GPU: luma, histogram and entropy of every patch in one pass, nothing but the result in device memory.
//
//   luma Y = (77 R + 150 G + 29 B + 128) >> 8, bin k = Y >> bin_shift, c_k pixels of the patch in bin k, n = P * P
//   Shannon:          H = log2(n) - (1/n) sum c_k log2 c_k          (bits; 0 log 0 = 0)
//   Renyi, order a:   H = log2(sum (c_k/n)^a) / (1 - a)
//
// `terms` holds one addend per possible count (n + 1 of them): for Shannon c log2 c in units of 2^-17 as int32, so that the
// sum is exact in any order and every backend returns the same bits; for Renyi (c/n)^a as double.
//
// Floor. 64 RGB images of 224 x 224, P = 32: 9,633,792 bytes in, 12,544 out; the table (4 KB) stays in the cache.
//   Orin, 204 GB/s: 47.3 us     RTX 4090, 1,008 GB/s: 9.6 us     H100, 3,350 GB/s: 2.9 us
// Grey images move a third of that. These are bounds from the data sheets, not measurements.
//
// The body uses no warp intrinsics, so that it also runs on CPU threads (tests/kernels/cuda_emulation.h), where its logic,
// indexing and barriers are tested without a GPU. Build: `make kernels`, or CMakeLists.txt beside this file.
#pragma once
#include <cstdint>

namespace edgemed {

constexpr int kBlockThreads = 128;
constexpr int kPixelsPerThread = 8;  // 24 bytes of RGB: three aligned loads of 8 bytes, since W is a multiple of 8
constexpr int kBins = 256;

// Patches that one block of threads handles: 1, 4, 16 for P = 32, 16, 8.
template <int P>
constexpr int kPatchesPerBlock = kBlockThreads * kPixelsPerThread / (P * P);

template <int P>
constexpr int kLog2Pixels = P == 8 ? 6 : P == 16 ? 8 : 10;

// Byte `index` of little-endian words.
__device__ __forceinline__ int byte_of(const uint64_t* words, int index) {
  return static_cast<int>(words[index >> 3] >> (8 * (index & 7))) & 255;
}

// Bits, from the sum of the terms of one patch.
template <int P>
__device__ __forceinline__ float entropy_of(int32_t sum, double) {
  constexpr int n = P * P, bits = kLog2Pixels<P>;
  return static_cast<float>((((n * bits) << 17) - sum + n / 2) >> bits) * (1.0f / 131072.0f);
}

template <int P>
__device__ __forceinline__ float entropy_of(double sum, double one_minus_order) {
  return static_cast<float>(floor(log2(sum) / one_minus_order * 131072.0 + 0.5)) * (1.0f / 131072.0f);
}

// One block of kBlockThreads threads. Grid: (patches + kPatchesPerBlock<P> - 1) / kPatchesPerBlock<P>.
//   images    uint8 (N, H, W, CHANNELS), 8-byte aligned, H and W multiples of P; N images are one column of N * H pixel rows
//   entropy   float32 (patches,), patches = N * (H / P) * (W / P) < 2^31, columns = W / P
template <int P, int CHANNELS, typename Term>
__device__ __forceinline__ void patch_entropy_body(const uint8_t* images, const Term* terms, float* entropy,
                                                   unsigned patches, unsigned columns, int bin_shift,
                                                   double one_minus_order) {
  constexpr int kThreads = P * P / kPixelsPerThread;  // per patch
  constexpr int kSlots = kPatchesPerBlock<P>;
  __shared__ int counts[kSlots * kBins];
  __shared__ Term partial[kBlockThreads];

  const int thread = static_cast<int>(threadIdx.x);
  const int slot = thread / kThreads, lane = thread % kThreads;
  const unsigned patch = blockIdx.x * kSlots + slot;
  const bool inside = patch < patches;

  uint64_t words[CHANNELS] = {};
  if (inside) {  // the loads are under way while the counters are cleared
    const int pixel = lane * kPixelsPerThread;
    const int64_t y = static_cast<int64_t>(patch / columns) * P + pixel / P;
    const int64_t x = static_cast<int64_t>(patch % columns) * P + pixel % P;
    const uint64_t* source = reinterpret_cast<const uint64_t*>(images + (y * columns * P + x) * CHANNELS);
    for (int i = 0; i < CHANNELS; ++i) words[i] = source[i];
  }
  for (int i = thread; i < kSlots * kBins; i += kBlockThreads) counts[i] = 0;
  __syncthreads();

  if (inside) {
    // Runs of equal pixels (the black border of a scan) are added at once: atomics to one address wait for each other.
    int last = -1, run = 0;
#pragma unroll
    for (int i = 0; i < kPixelsPerThread; ++i) {
      int grey = byte_of(words, i * CHANNELS);
      if (CHANNELS == 3) {
        grey = (77 * grey + 150 * byte_of(words, i * CHANNELS + 1) + 29 * byte_of(words, i * CHANNELS + 2) + 128) >> 8;
      }
      const int bin = grey >> bin_shift;
      if (bin != last && run > 0) {
        atomicAdd(&counts[slot * kBins + last], run);
        run = 0;
      }
      last = bin;
      ++run;
    }
    atomicAdd(&counts[slot * kBins + last], run);
  }
  __syncthreads();

  Term sum = 0;
  for (int bin = lane; bin < kBins; bin += kThreads) sum += terms[counts[slot * kBins + bin]];
  partial[thread] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {  // a tree of fixed shape: the same sum on every run
    __syncthreads();
    if (lane < half) partial[thread] += partial[thread + half];
  }
  if (lane == 0 && inside) entropy[patch] = entropy_of<P>(partial[thread], one_minus_order);
}

}  // namespace edgemed
