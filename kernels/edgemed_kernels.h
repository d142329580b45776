/* C interface of edgemed's CUDA kernels. All pointers but those marked "host" are device pointers.
 *
 *   uint8_t terms[EDGEMED_TERMS_BYTES];                              host
 *   edgemed_entropy_terms(32, 1.0, terms);                           once; then cudaMemcpy it to device memory
 *   int status = edgemed_patch_entropy(images, n, 224, 224, 3, 32, 256, 1.0, device_terms, entropy, stream);
 *   if (status) fprintf(stderr, "%s\n", edgemed_kernels_message(status));
 *
 * Nothing here allocates, synchronises or keeps state: every function may be called from any thread. Calls return 0, a
 * negative EDGEMED_* code for an argument outside the contract (nothing was launched), or a positive cudaError_t.
 * Build: kernels/CMakeLists.txt. Formulas: kernels/patch_entropy.cuh, kernels/entropy_mask.cuh.
 */
#ifndef EDGEMED_KERNELS_H
#define EDGEMED_KERNELS_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGEMED_TERMS_BYTES 8200 /* 1,025 doubles, enough for every patch and order */

enum {
  EDGEMED_BAD_PATCH = -1,     /* patch is not 8, 16 or 32 */
  EDGEMED_BAD_BINS = -2,      /* bins is no power of two from 2 to 256 */
  EDGEMED_BAD_ORDER = -3,     /* order outside (0, 100], or nearer to 1 than 0.01 without being 1 */
  EDGEMED_BAD_SHAPE = -4,     /* sides no multiple of the patch, channels not 1 or 3, or 2^31 patches or more */
  EDGEMED_BAD_ALIGNMENT = -5, /* images is not 8-byte aligned */
  EDGEMED_BAD_MASK = -6       /* units outside 1..4096, removed outside 0..units, or |sharpness| above 1e7 */
};

/* Fill `terms` (host, EDGEMED_TERMS_BYTES) with the table that edgemed_patch_entropy needs for this patch and order. */
int edgemed_entropy_terms(int patch, double order, void* terms);

/* images uint8 (count, height, width, channels), RGB or grey -> entropy float32 (count, height/patch, width/patch), bits.
 * order 1.0 = Shannon, else the Renyi order. `stream` is a cudaStream_t (NULL: the default stream). */
int edgemed_patch_entropy(const uint8_t* images, int64_t count, int height, int width, int channels, int patch, int bins,
                          double order, const void* terms, float* entropy, void* stream);

/* entropy float32 (count, units), ids int64 (count,) -> mask uint8 (count, units), 1 = removed, `removed` ones per image. */
int edgemed_entropy_mask(const float* entropy, const int64_t* ids, int64_t count, int units, int removed, double sharpness,
                         uint64_t seed, uint8_t* mask, void* stream);

/* A sentence for a status; static storage. */
const char* edgemed_kernels_message(int status);

#ifdef __cplusplus
}
#endif
#endif
