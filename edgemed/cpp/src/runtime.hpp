// What executes a graph: the one interface between the library and its runtimes.
//
// OpenVINO is linked in. TensorRT comes as modules, one shared object per flavour (edgemed_tensorrt10.so,
// edgemed_tensorrt11.so, edgemed_tensorrt_rtx.so), loaded with dlopen, so that one library runs on machines with and
// without it. A module exports one function, `edgemed_runtime_v4`. What crosses the boundary is plain memory and these
// two classes; a function that can fail returns a status and writes a message, and nothing throws.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "edgemed.h"

namespace edgemed::impl {

// Why something failed: its kind, and one line for the user: what failed, and the step that mends it.
struct Message {
    edgemed_status status = EDGEMED_ERROR_INTERNAL;
    char text[1024] = "";

    // Writes the text (printf's format; cut off where it is too long) and gives the status back.
    __attribute__((format(printf, 3, 4))) edgemed_status set(edgemed_status kind, const char* format, ...) noexcept {
        status = kind;
        va_list values;
        va_start(values, format);
        std::vsnprintf(text, sizeof text, format, values);
        va_end(values);
        return kind;
    }
};

// Warnings go here; never null.
struct Warn {
    void (*function)(const char* message, void* user);
    void* user;
    void operator()(const char* message) const noexcept { function(message, user); }
};

// This machine as a plan sees it (preflight): version "10.3.0.30" in full, device "Orin", capability "sm87", or a CPU's
// "x86_64:avx2,f16c,fma". Certificates are compared with all three, so `put` writes a name whole or throws.
struct Here {
    char version[256] = "";
    char device[256] = "";
    char capability[256] = "";

    template <size_t N>
    static void put(char (&field)[N], const std::string& text) {
        if (text.size() >= N) throw std::length_error("a name of over " + std::to_string(N - 1) + " characters: " + text);
        std::memcpy(field, text.c_str(), text.size() + 1);
    }
};

// What a session is made from. All of it is verified, and valid during `open` only: copy what is needed longer.
struct Source {
    const void* data;       // the plan, or the ONNX file
    size_t size;            // bytes
    const char* name;       // for messages: the plan's id, or "model.fp32.onnx"
    const char* sha256;     // hex digest of data: the key of the runtime's caches
    int64_t batch[3];       // the plan's profile: min, opt, max of N (an ONNX file: all 0)
    int64_t image_side[3];  // min, opt, max of H and of W
    int labels, members;    // K and M
    int entropy_side;       // E, of the entropy map; 0 = the graph gives none
    int threads;            // CPU threads; 0 = all physical cores that this process may use
    Warn warn;
};

constexpr int64_t max_batch = int64_t(1) << 20;  // images of a request

// Packed RGB pixels (n, height, width, 3), uint8.
struct Shape {
    int64_t n = 0, height = 0, width = 0;
    size_t bytes() const noexcept { return size_t(n) * size_t(height) * size_t(width) * 3; }
    bool operator==(const Shape& other) const noexcept {
        return n == other.n && height == other.height && width == other.width;
    }
};

// Memory for (n, K), (n, M, K) and, where the graph gives it, (n, E, E); else null.
struct Answers {
    float* probabilities;
    float* member_probabilities;
    float* entropy;
};

// A graph that is ready to run, with a stream and buffers of its own: used by one thread at a time.
class Session {
public:
    virtual ~Session() = default;

    // A session on the same engine for another thread, or null and why. Thread-safe towards clones, not towards itself.
    virtual Session* clone(Message& error) noexcept = 0;

    // Memory for the pixels of the next `run`, from where it is fastest (pinned, with a GPU); or null, and why. Valid
    // until the next call with a larger shape; nothing is allocated for a shape that is not larger than one before.
    virtual uint8_t* staging(const Shape& shape, Message& error) noexcept = 0;

    // pixels: host memory, either from `staging` (then nothing is copied) or the caller's, not kept after the return.
    virtual edgemed_status run(const uint8_t* pixels, const Shape& shape, const Answers& answers,
                               Message& error) noexcept = 0;

    // pixels: device memory; all work is put on the caller's stream (a cudaStream_t), which is synchronised at the end.
    virtual edgemed_status run_device(const void* pixels, const Shape& shape, void* stream, const Answers& answers,
                                      Message& error) noexcept {
        (void)pixels, (void)shape, (void)stream, (void)answers;
        return error.set(EDGEMED_ERROR_RUNTIME, "this runtime takes no device memory; copy the pixels to the host");
    }
};

// A kind of engine that works on this machine, or says why not. Lives as long as the process; thread-safe.
class Runtime {
public:
    virtual const char* name() const noexcept = 0;      // "openvino", "tensorrt", "tensorrt-rtx"
    virtual bool takes_plans() const noexcept = 0;      // else the ONNX file

    // EDGEMED_OK where it works on this machine, with `here` filled; else the reason, in one line.
    virtual edgemed_status available(Here& here, Message& why_not) noexcept = 0;

    // A session, or null and why. A plan has passed preflight.
    virtual Session* open(const Source& source, Message& error) noexcept = 0;

protected:
    ~Runtime() = default;
};

}  // namespace edgemed::impl

#define EDGEMED_RUNTIME_SYMBOL "edgemed_runtime_v4"
// What a module exports: `extern "C" EDGEMED_MODULE edgemed::impl::Runtime* edgemed_runtime_v4() { ... }`
#define EDGEMED_MODULE __attribute__((visibility("default")))
