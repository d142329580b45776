// The CUDA kernels under plain C names (for cuLibraryGetKernel), and the C interface of edgemed_kernels.h, which
// launches them.
//
// Build: `make kernels` (fatbin for nine targets), or kernels/CMakeLists.txt (a library, on a Jetson too).
#include <cuda_runtime.h>

#include <cmath>

#include "edgemed_kernels.h"
#include "entropy_mask.cuh"
#include "patch_entropy.cuh"

using namespace edgemed;

#define ENTROPY_KERNEL(NAME, P, CHANNELS, TERM)                                                                         \
  extern "C" __global__ void __launch_bounds__(kBlockThreads)                                                            \
      NAME(const uint8_t* __restrict__ images, const TERM* __restrict__ terms, float* __restrict__ entropy,              \
           unsigned patches, unsigned columns, int bin_shift, double one_minus_order) {                                  \
    patch_entropy_body<P, CHANNELS, TERM>(images, terms, entropy, patches, columns, bin_shift, one_minus_order);         \
  }

#define ENTROPY_KERNELS(P)                                        \
  ENTROPY_KERNEL(edgemed_entropy_p##P##_grey_shannon, P, 1, int32_t) \
  ENTROPY_KERNEL(edgemed_entropy_p##P##_grey_renyi, P, 1, double)    \
  ENTROPY_KERNEL(edgemed_entropy_p##P##_rgb_shannon, P, 3, int32_t)  \
  ENTROPY_KERNEL(edgemed_entropy_p##P##_rgb_renyi, P, 3, double)

ENTROPY_KERNELS(8)
ENTROPY_KERNELS(16)
ENTROPY_KERNELS(32)

extern "C" __global__ void __launch_bounds__(kMaskThreads)
    edgemed_entropy_mask_kernel(const float* __restrict__ entropy, const int64_t* __restrict__ ids, uint8_t* __restrict__ mask,
                                int units, int removed, double slope, uint32_t seed_low, uint32_t seed_high) {
  entropy_mask_body(entropy, ids, mask, units, removed, slope, seed_low, seed_high);
}

namespace {

bool order_is_valid(double order) { return order == 1.0 || (order > 0.0 && order <= 100.0 && std::fabs(order - 1.0) >= 0.01); }

bool bins_are_valid(int bins) { return bins >= 2 && bins <= 256 && (bins & (bins - 1)) == 0; }

struct Call {
  const uint8_t* images;
  const void* terms;
  float* entropy;
  unsigned patches, columns;
  int bin_shift;
  double one_minus_order;
  cudaStream_t stream;
};

template <int P, typename Term, typename Kernel>
int launched(Kernel kernel, const Call& call) {
  constexpr unsigned per_block = kPatchesPerBlock<P>;
  const unsigned blocks = (call.patches + per_block - 1) / per_block;
  kernel<<<blocks, kBlockThreads, 0, call.stream>>>(call.images, static_cast<const Term*>(call.terms), call.entropy,
                                                    call.patches, call.columns, call.bin_shift, call.one_minus_order);
  return static_cast<int>(cudaGetLastError());
}

#define LAUNCHED(P)                                                                                         \
  (call.one_minus_order == 0.0                                                                              \
       ? (channels == 3 ? launched<P, int32_t>(edgemed_entropy_p##P##_rgb_shannon, call)                    \
                        : launched<P, int32_t>(edgemed_entropy_p##P##_grey_shannon, call))                  \
       : (channels == 3 ? launched<P, double>(edgemed_entropy_p##P##_rgb_renyi, call)                       \
                        : launched<P, double>(edgemed_entropy_p##P##_grey_renyi, call)))

}  // namespace

extern "C" int edgemed_entropy_terms(int patch, double order, void* terms) {
  if (patch != 8 && patch != 16 && patch != 32) return EDGEMED_BAD_PATCH;
  if (!order_is_valid(order)) return EDGEMED_BAD_ORDER;
  const int pixels = patch * patch;
  for (int count = 0; count <= pixels; ++count) {
    if (order == 1.0) {
      const double term = count > 0 ? count * std::log2(static_cast<double>(count)) : 0.0;
      static_cast<int32_t*>(terms)[count] = static_cast<int32_t>(std::nearbyint(term * 131072.0));
    } else {
      static_cast<double*>(terms)[count] = std::pow(static_cast<double>(count) / pixels, order);
    }
  }
  return 0;
}

extern "C" int edgemed_patch_entropy(const uint8_t* images, int64_t count, int height, int width, int channels, int patch,
                                     int bins, double order, const void* terms, float* entropy, void* stream) {
  if (patch != 8 && patch != 16 && patch != 32) return EDGEMED_BAD_PATCH;
  if (!bins_are_valid(bins)) return EDGEMED_BAD_BINS;
  if (!order_is_valid(order)) return EDGEMED_BAD_ORDER;
  if (count < 0 || height < patch || width < patch || height % patch || width % patch || (channels != 1 && channels != 3)) {
    return EDGEMED_BAD_SHAPE;
  }
  const int64_t per_image = static_cast<int64_t>(height / patch) * (width / patch);
  if (count > INT32_MAX / per_image) return EDGEMED_BAD_SHAPE;
  if (reinterpret_cast<uintptr_t>(images) % 8 != 0) return EDGEMED_BAD_ALIGNMENT;
  if (count == 0) return 0;
  int bin_shift = 8;
  for (int b = bins; b > 1; b /= 2) --bin_shift;
  const Call call{images, terms, entropy, static_cast<unsigned>(count * per_image), static_cast<unsigned>(width / patch),
                  bin_shift, 1.0 - order, static_cast<cudaStream_t>(stream)};
  switch (patch) {
    case 8: return LAUNCHED(8);
    case 16: return LAUNCHED(16);
    default: return LAUNCHED(32);
  }
}

extern "C" int edgemed_entropy_mask(const float* entropy, const int64_t* ids, int64_t count, int units, int removed,
                                    double sharpness, uint64_t seed, uint8_t* mask, void* stream) {
  if (count < 0 || count > INT32_MAX || units < 1 || units > kMaxUnits || removed < 0 || removed > units ||
      !(std::fabs(sharpness) <= 1e7)) {
    return EDGEMED_BAD_MASK;
  }
  if (count == 0) return 0;
  edgemed_entropy_mask_kernel<<<static_cast<unsigned>(count), kMaskThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      entropy, ids, mask, units, removed, sharpness * 65536.0, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return static_cast<int>(cudaGetLastError());
}

extern "C" const char* edgemed_kernels_message(int status) {
  switch (status) {
    case 0: return "done";
    case EDGEMED_BAD_PATCH: return "patch must be 8, 16 or 32 pixels";
    case EDGEMED_BAD_BINS: return "bins must be a power of two from 2 to 256";
    case EDGEMED_BAD_ORDER: return "order must be 1 (Shannon), or in (0, 100] and at least 0.01 away from 1";
    case EDGEMED_BAD_SHAPE: return "sides must be multiples of the patch, channels 1 or 3, patches fewer than 2^31";
    case EDGEMED_BAD_ALIGNMENT: return "images must be 8-byte aligned: copy them to the start of an allocation";
    case EDGEMED_BAD_MASK: return "units must be 1..4096, removed 0..units, sharpness -1e7..1e7";
    default: return cudaGetErrorString(static_cast<cudaError_t>(status));
  }
}
