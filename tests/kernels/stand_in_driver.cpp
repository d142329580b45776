// A libcuda.so.1 for machines without one: device memory is host memory, and kernels run through the CPU emulation.
//
// It stands in for the driver under the real cuda-bindings, so that edgemed's loading, argument packing, launching and
// copying run as they would on a GPU. As a program (-DAS_PROGRAM) it runs one job for the thread sanitizer:
//   job entropy|mask: a fixed input, large enough for several blocks of each kernel.
#include "emulated_kernels.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <set>

using std::size_t;

#ifdef AS_PROGRAM

int main(int count, char** arguments) {
  const std::string job = count > 1 ? arguments[1] : "";
  if (job == "entropy") {
    constexpr int kSide = 64;
    std::vector<uint64_t> storage(kSide * kSide * 3 / 8);
    auto* pixels = reinterpret_cast<uint8_t*>(storage.data());
    for (int i = 0; i < kSide * kSide * 3; ++i) pixels[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
    std::vector<int32_t> terms(1025);
    std::vector<float> entropy(64);
    const void* addresses[] = {pixels, terms.data(), entropy.data()};
    unsigned patches = 4, columns = 2;
    int shift = 0;
    double order = 0;
    void* parameters[] = {&addresses[0], &addresses[1], &addresses[2], &patches, &columns, &shift, &order};
    emulation::run("edgemed_entropy_p32_rgb_shannon", 4, parameters);
    patches = 64, columns = 8;
    emulation::run("edgemed_entropy_p8_rgb_shannon", 4, parameters);
    return 0;
  }
  if (job == "mask") {
    constexpr int kImages = 3, kUnits = 200;
    std::vector<float> entropy(kImages * kUnits);
    for (int i = 0; i < kImages * kUnits; ++i) entropy[i] = static_cast<float>(i * 37 % 101) / 16.0f;
    std::vector<int64_t> ids{1, 2, 3};
    std::vector<uint8_t> mask(kImages * kUnits);
    const void* addresses[] = {entropy.data(), ids.data(), mask.data()};
    int units = kUnits, removed = 120;
    double slope = 65536;
    uint32_t low = 7, high = 0;
    void* parameters[] = {&addresses[0], &addresses[1], &addresses[2], &units, &removed, &slope, &low, &high};
    emulation::run("edgemed_entropy_mask_kernel", kImages, parameters);
    return 0;
  }
  std::fprintf(stderr, "usage: %s entropy|mask\n", arguments[0]);
  return 2;
}

#else

namespace {
constexpr int kNotFound = 500, kInvalid = 1;
std::set<void*> allocations;
}  // namespace

extern "C" {

int cuInit(unsigned) { return std::getenv("EDGEMED_STAND_IN_NO_DEVICE") ? 100 : 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? 0 : kInvalid; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &allocations, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void** context) { return *context = &allocations, 0; }

int cuMemAlloc_v2(unsigned long long* address, size_t size) {
  void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(memory, 0xAB, size);
  allocations.insert(memory);
  return *address = reinterpret_cast<unsigned long long>(memory), 0;
}

int cuMemFree_v2(unsigned long long address) {
  if (allocations.erase(reinterpret_cast<void*>(address)) == 0) return kInvalid;
  return std::free(reinterpret_cast<void*>(address)), 0;
}

int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t size) {
  return std::memcpy(reinterpret_cast<void*>(to), from, size), 0;
}

int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t size) {
  return std::memcpy(to, reinterpret_cast<void*>(from), size), 0;
}

int cuLibraryLoadFromFile(void** library, const char* path, void*, void*, unsigned, void*, void*, unsigned) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return 301;
  std::fclose(file);
  return *library = &allocations, 0;
}

int cuLibraryGetKernel(void** kernel, void*, const char* name) {
  static std::set<std::string> names;
  return *kernel = const_cast<std::string*>(&*names.insert(name).first), 0;
}

int cuLaunchKernel(void* kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned, void*,
                   void** parameters, void**) {
  if (threads != edgemed::kBlockThreads) return kInvalid;
  return emulation::run(*static_cast<std::string*>(kernel), blocks, parameters) ? 0 : kNotFound;
}

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
  const std::string plain(name);
  *function = dlsym(RTLD_DEFAULT, (plain + "_v2").c_str());
  if (*function == nullptr) *function = dlsym(RTLD_DEFAULT, name);
  if (status != nullptr) *status = *function == nullptr ? 1 : 0;
  return *function == nullptr ? kNotFound : 0;
}

int cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

}  // extern "C"
#endif
