// TensorRT's library, found when it is first asked for, and an engine: a plan made ready. Included by the modules only.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "runtime.hpp"
#include "tensorrt_cuda.hpp"

namespace edgemed::impl {

#ifdef EDGEMED_TENSORRT_RTX
inline constexpr const char* runtime_name = "tensorrt-rtx";
#else
inline constexpr const char* runtime_name = "tensorrt";
#endif

// TensorRT's library. The module does not link to it: where it is missing, that is a reason in a message.
struct Library {
    void* (*create_runtime)(void* logger, int32_t version);
    std::string version;  // in full: "10.3.0.30"
};

// Loaded once and kept. Throws Error(EDGEMED_ERROR_RUNTIME) where it is not to be had, or is of another major version.
const Library& library();

// What TensorRT says on each thread: the first error since it was asked last, and the warnings of an opening. One for the
// process, and never destroyed: TensorRT keeps the first logger that it is given, whichever engines are closed.
class Log final : public nvinfer1::ILogger {
public:
    static Log& of_process();
    void log(Severity severity, const nvinfer1::AsciiChar* text) noexcept override;
    std::string take();  // "" where there was none
};

// As long as it lives, TensorRT's warnings on this thread are passed on.
class Opening {
public:
    explicit Opening(const Warn& warn) noexcept;
    ~Opening();
    Opening(const Opening&) = delete;
    Opening& operator=(const Opening&) = delete;
};

#ifdef TRT_MAJOR_RTX
// TensorRT-RTX compiles its kernels on the device when it meets a shape: here they are kept, in the folder and the
// form of tensorrt_cache.py, so that Python and this library share them. Only RTX's own headers declare what it needs.
class Kernels {
public:
    Kernels(nvinfer1::ICudaEngine& engine, const Source& source, const char* device, bool fixed);
    nvinfer1::IExecutionContext* context(nvinfer1::ICudaEngine& engine) { return engine.createExecutionContext(config_.get()); }
    size_t scratch() const noexcept { return scratch_; }  // bytes that each context has to be given; 0: it has its own
    static bool capturable(nvinfer1::IExecutionContext& context, cudaStream_t stream) {
        return context.isStreamCapturable(stream);
    }
    void keep(const Shape& shape);  // writes them down after the first request of a shape, where it needed new ones

private:
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    size_t scratch_ = 0;
    std::string file_;     // where the kernels are kept; "": nowhere
    std::string written_;  // the digest of what is there
    std::set<std::array<int64_t, 3>> shapes_;  // whose kernels are there
    Warn warn_;
};
#else
class Kernels {
public:
    Kernels(nvinfer1::ICudaEngine&, const Source&, const char*, bool) {}
    nvinfer1::IExecutionContext* context(nvinfer1::ICudaEngine& engine) { return engine.createExecutionContext(); }
    size_t scratch() const noexcept { return 0; }
    static bool capturable(nvinfer1::IExecutionContext&, cudaStream_t) { return true; }
    void keep(const Shape&) {}
};
#endif

// What a handle and its clones share. Lives on the device that was current when it was opened.
class TensorRtEngine {
public:
    TensorRtEngine(const Source& source, const char* device_name);
    ~TensorRtEngine();

    const std::string name;       // of the plan, for messages
    const size_t labels, members, entropy;  // K, M, and the values of an entropy map, 0 without one
    const int device;
    const Warn warn;

    std::unique_ptr<nvinfer1::IExecutionContext> context(Memory<OnGpu>& scratch);  // scratch: the memory it is given
    bool is_fixed() const noexcept { return batch_[0] == batch_[2] && side_[0] == side_[2]; }
    void check_shape(const Shape& shape) const;       // Error(EDGEMED_ERROR_INPUT) outside the plan's profile
    void check_capturable(nvinfer1::IExecutionContext& context, cudaStream_t stream) const;
    [[noreturn]] void fail(const std::string& what);  // with TensorRT's own words
    void keep_kernels(const Shape& shape);  // after a request

private:
    void check_tensor(const char* tensor, nvinfer1::DataType type, std::initializer_list<int64_t> sides) const;

    int64_t batch_[3], side_[3];
    std::mutex mutex_;  // contexts are made, and kernels kept, by one thread at a time
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<Kernels> kernels_;
};

}  // namespace edgemed::impl
