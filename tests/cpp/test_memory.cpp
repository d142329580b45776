// Memory: no allocation by the library per call after the first of a shape, resident memory flat over 10,000 calls, and
// nothing left behind by opening and closing; memory that is not there is said to be that. EDGEMED_TEST_OPENS: how
// often it is opened and closed on the stub module (default 100; OpenVINO: a fiftieth).
#include <dlfcn.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "check.hpp"
#include "edgemed.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<long> by_library{0}, by_others{0};
std::atomic<size_t> most{SIZE_MAX};  // a larger block is not to be had from operator new

// Counts an allocation by who asked for it: the object file in which the caller lies.
void count(void* caller) {
    counting = false;  // dladdr may allocate
    Dl_info info{};
    const bool mine = ::dladdr(caller, &info) && info.dli_fname && std::strstr(info.dli_fname, "libedgemed.so");
    ++(mine ? by_library : by_others);
    counting = true;
}

long resident_kib() {
    long pages = 0;
    std::FILE* file = std::fopen("/proc/self/statm", "r");
    if (!file || std::fscanf(file, "%*s %ld", &pages) != 1) pages = -1;
    if (file) std::fclose(file);
    return pages * ::sysconf(_SC_PAGESIZE) / 1024;
}

}  // namespace

// These stand before libc's and libstdc++'s own, for every library of the process.
extern "C" void* __libc_malloc(size_t);
extern "C" void* __libc_calloc(size_t, size_t);
extern "C" void* __libc_realloc(void*, size_t);
extern "C" void* malloc(size_t size) {
    if (counting) count(__builtin_return_address(0));
    return __libc_malloc(size);
}
extern "C" void* calloc(size_t n, size_t size) {
    if (counting) count(__builtin_return_address(0));
    return __libc_calloc(n, size);
}
extern "C" void* realloc(void* old, size_t size) {
    if (counting) count(__builtin_return_address(0));
    return __libc_realloc(old, size);
}
[[gnu::noinline]] void* operator new(size_t size) {
    if (counting) count(__builtin_return_address(0));
    void* memory = size > most ? nullptr : __libc_malloc(size ? size : 1);
    if (!memory) throw std::bad_alloc();
    return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

struct Calls {
    edgemed_model* model;
    std::vector<unsigned char> pixels = std::vector<unsigned char>(4 * 128 * 128, 99);
    std::vector<std::vector<unsigned char>> files;
    float probabilities[3 * 4], members[6 * 4];
    edgemed_decision decisions[4];
    unsigned char sets[3 * 4];
    edgemed_outputs outputs{probabilities, members, decisions, sets};

    explicit Calls(edgemed_model* model) : model(model) {}

    // One call of each kind: a frame as it is, one that needs a copy, a batch, and nothing wanted but the decision.
    void raw() {
        const edgemed_image frame{pixels.data(), 96, 128, 0, EDGEMED_RGB}, other{pixels.data(), 128, 128, 0, EDGEMED_BGR};
        const edgemed_image batch[2] = {{pixels.data(), 40, 30, 95, EDGEMED_RGB}, {pixels.data() + 99, 40, 30, 0, EDGEMED_GRAY8}};
        const edgemed_outputs decision{nullptr, nullptr, decisions, nullptr};
        CHECK(edgemed_predict(model, &frame, 1, &outputs) == EDGEMED_OK);
        CHECK(edgemed_predict(model, &other, 1, &decision) == EDGEMED_OK);
        CHECK(edgemed_predict(model, batch, 2, &outputs) == EDGEMED_OK);
    }

    void encoded() {
        for (const auto& file : files) CHECK(edgemed_predict_encoded(model, file.data(), file.size(), &outputs) == EDGEMED_OK);
    }
};

edgemed_model* opened(const std::string& data, const char* modules, const char* runtime) {
    edgemed_options options = edgemed_options_default();
    options.runtime = runtime, options.modules = modules, options.threads = 1;
    edgemed_model* model = nullptr;
    CHECK(edgemed_open((data + "/point").c_str(), &options, &model) == EDGEMED_OK, "%s", edgemed_last_error());
    return model;
}

void calls(const std::string& data, const char* modules, const char* runtime) {
    Calls all(opened(data, modules, runtime));
    if (!all.model) return;
    for (const char* name : {"rgb.png", "grey.png", "grey.jpg"}) all.files.push_back(content(data + "/" + name));
    for (int k = 0; k < 3; ++k) all.raw(), all.encoded();
    by_library = by_others = 0;
    counting = true;
    for (int k = 0; k < 100; ++k) all.raw();
    const long others = by_others;
    for (int k = 0; k < 100; ++k) all.encoded();
    counting = false;
    std::printf("%s: allocations per call by this library %ld, by the runtime %.1f, with decoders %.1f\n", runtime,
                long(by_library), double(others) / 300, double(by_others - others) / 300);
    CHECK(by_library == 0, "%ld allocations by the library in 600 calls", long(by_library));
    if (std::strcmp(runtime, "openvino") != 0) CHECK(others == 0, "%ld by anybody", others);
    for (int k = 0; k < 300; ++k) all.raw(), all.encoded();
    const long before = resident_kib();
    for (int k = 0; k < 1667; ++k) all.raw(), all.encoded();  // six calls each
    const long grown = resident_kib() - before;
    std::printf("%s: resident memory %ld KiB, %+ld KiB over 10,002 calls\n", runtime, resident_kib(), grown);
    CHECK(grown < 256, "%ld KiB", grown);
    edgemed_close(all.model);
}

void short_memory_is_said(const std::string& data, const char* modules) {
    edgemed_model* const model = opened(data, modules, "openvino");
    if (!model) return;
    const std::vector<unsigned char> pixels(3 * 512 * 512);
    const edgemed_image image{pixels.data(), 512, 512, 0, EDGEMED_BGR};
    const edgemed_outputs nothing{nullptr, nullptr, nullptr, nullptr};
    most = pixels.size() - 1;
    const edgemed_status status = edgemed_predict(model, &image, 1, &nothing);
    most = SIZE_MAX;
    CHECK(status == EDGEMED_ERROR_INTERNAL && std::strstr(edgemed_last_error(), "out of memory"), "%d %s", int(status),
          edgemed_last_error());
    CHECK(edgemed_predict(model, &image, 1, &nothing) == EDGEMED_OK);
    edgemed_close(model);
}

// How much more is resident after opening and closing so often.
long growth(const std::string& data, const char* modules, const char* runtime, int times) {
    const long before = resident_kib();
    for (int k = 0; k < times; ++k) {
        edgemed_model *model = opened(data, modules, runtime), *clone = nullptr;
        if (!model) return LONG_MAX;
        CHECK(edgemed_clone(model, &clone) == EDGEMED_OK);
        Calls(clone).raw();
        edgemed_close(k % 2 ? clone : model);
        edgemed_close(k % 2 ? model : clone);
    }
    ::malloc_trim(0);
    return resident_kib() - before;
}

void opens(const std::string& data, const char* modules, const char* runtime, int times) {
    growth(data, modules, runtime, 5);
    // A leak grows in every round; what a runtime's threads and pools take grows in some.
    long grown = LONG_MAX;
    for (int round = 0; round < 3; ++round) grown = std::min(grown, growth(data, modules, runtime, times));
    std::printf("%s: %+ld KiB after opening and closing %d times, in the best of 3 rounds\n", runtime, grown, times);
    CHECK(grown < 64 + 8L * times, "%ld KiB", grown);  // an engine kept would be hundreds of KiB each time
}

}  // namespace

int main(int, char** arguments) {
    const char* given = std::getenv("EDGEMED_TEST_OPENS");
    const int times = given ? std::atoi(given) : 100;
    for (const char* runtime : {"tensorrt-rtx", "openvino"}) {
        calls(arguments[1], arguments[2], runtime);
        if (std::strcmp(runtime, "openvino") == 0) short_memory_is_said(arguments[1], arguments[2]);
        opens(arguments[1], arguments[2], runtime, std::strcmp(runtime, "openvino") == 0 ? std::max(times / 50, 5) : times);
    }
    return result();
}
