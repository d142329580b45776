// Runs the body of a CUDA kernel on CPU threads, one thread per CUDA thread and the blocks one after another.
//
// For tests only: it shows logic, indexing, barriers and (under -fsanitize=thread) races, not speed. Warp intrinsics are
// not there, which is why the kernels use none. Include it before the .cuh files; C++20.
//
// The barrier named by the environment variable EDGEMED_SKIP_BARRIER, as FILE.cuh:LINE, is left out: a deliberately broken
// kernel without a second compilation.
#pragma once
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace emulation {

struct Index {
  unsigned x = 0;
};

inline thread_local Index thread_index, block_index;
inline std::barrier<>* block_barrier = nullptr;

inline bool is_skipped(const char* file, int line) {
  static const char* skipped = std::getenv("EDGEMED_SKIP_BARRIER");
  if (skipped == nullptr) return false;
  const std::string path(file);
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(line) == skipped;
}

inline void synchronise(const char* file, int line) {
  if (!is_skipped(file, line)) block_barrier->arrive_and_wait();
}

template <class Body>
void launch(unsigned blocks, unsigned threads, Body body) {
  std::barrier<> barrier(static_cast<std::ptrdiff_t>(threads));
  block_barrier = &barrier;
  std::vector<std::thread> pool;
  for (unsigned thread = 0; thread < threads; ++thread) {
    pool.emplace_back([&, thread] {
      thread_index = {thread};
      for (unsigned block = 0; block < blocks; ++block) {
        block_index = {block};
        body();
        barrier.arrive_and_wait();  // shared memory is reused by the next block
      }
    });
  }
  for (auto& worker : pool) worker.join();
}

}  // namespace emulation

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define __syncthreads() emulation::synchronise(__FILE__, __LINE__)

template <class T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}
