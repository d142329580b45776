// The kernels of edgemed_kernels.cu by name, on CPU threads. `parameters` is what cuLaunchKernel gets: one pointer each.
#pragma once
#include "cuda_emulation.h"
#include "entropy_mask.cuh"
#include "patch_entropy.cuh"

namespace emulation {

template <class T>
T value_of(void** parameters, int index) {
  return *static_cast<T*>(parameters[index]);
}

template <int P, int CHANNELS, class Term>
void run_entropy(unsigned blocks, void** p) {
  launch(blocks, edgemed::kBlockThreads, [&] {
    edgemed::patch_entropy_body<P, CHANNELS, Term>(value_of<const uint8_t*>(p, 0), value_of<const Term*>(p, 1),
                                                   value_of<float*>(p, 2), value_of<unsigned>(p, 3),
                                                   value_of<unsigned>(p, 4), value_of<int>(p, 5), value_of<double>(p, 6));
  });
}

inline void run_mask(unsigned blocks, void** p) {
  launch(blocks, edgemed::kMaskThreads, [&] {
    edgemed::entropy_mask_body(value_of<const float*>(p, 0), value_of<const int64_t*>(p, 1), value_of<uint8_t*>(p, 2),
                               value_of<int>(p, 3), value_of<int>(p, 4), value_of<double>(p, 5),
                               value_of<uint32_t>(p, 6), value_of<uint32_t>(p, 7));
  });
}

template <int P>
bool run_entropy_named(const std::string& kind, unsigned blocks, void** parameters) {
  if (kind == "grey_shannon") return run_entropy<P, 1, int32_t>(blocks, parameters), true;
  if (kind == "grey_renyi") return run_entropy<P, 1, double>(blocks, parameters), true;
  if (kind == "rgb_shannon") return run_entropy<P, 3, int32_t>(blocks, parameters), true;
  if (kind == "rgb_renyi") return run_entropy<P, 3, double>(blocks, parameters), true;
  return false;
}

// False: there is no kernel of that name.
inline bool run(const std::string& name, unsigned blocks, void** parameters) {
  if (name == "edgemed_entropy_mask_kernel") return run_mask(blocks, parameters), true;
  if (name.rfind("edgemed_entropy_p8_", 0) == 0) return run_entropy_named<8>(name.substr(19), blocks, parameters);
  if (name.rfind("edgemed_entropy_p16_", 0) == 0) return run_entropy_named<16>(name.substr(20), blocks, parameters);
  if (name.rfind("edgemed_entropy_p32_", 0) == 0) return run_entropy_named<32>(name.substr(20), blocks, parameters);
  return false;
}

}  // namespace emulation
