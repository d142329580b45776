// Stands for libtensorrt_rtx.so.1. An engine copies within the GPU's memory, on the stream it is given, so its answers
// are known: each output takes as many of the image's first bytes as it has; those from the second on where a fallback
// kernel answers the first request of a shape. With CUDA's real library everything around it is real too: pinned memory,
// uploads, streams, CUDA graphs.
//
// The plan's text, after its header of 64 bytes, makes it misbehave: "refuse" (does not deserialise), "labels" (another
// number of labels), "half" (another type), "fail" (execution fails), "fails later" (after a complaint), "uncapturable"
// (only within a capture), "no capture" (and says so). With "entropy" it has that output. "user allocation" makes only
// contexts that are given their memory, as a plan built by REQUIRE_USER_ALLOCATION does; such a context computes in that
// memory.
#include <cstring>
#include <mutex>
#include <new>
#include <set>
#include <sstream>
#include <string>
#include <utility>

#include "NvInferRuntime.h"

using namespace nvinfer1;

namespace {

constexpr std::size_t header = 64, scratch_size = 4096;

bool is(char const* name, const char* other) { return std::strcmp(name, other) == 0; }

using Allocation = ExecutionContextAllocationStrategy;
using Strategy = DynamicShapesKernelSpecializationStrategy;

class Kernels final : public IHostMemory {
public:
    explicit Kernels(const std::set<std::string>& shapes) {
        for (const std::string& shape : shapes) text_ += shape + "\n";
    }
    void* data() const noexcept override { return const_cast<char*>(text_.data()); }
    std::size_t size() const noexcept override { return text_.size(); }

private:
    std::string text_;
};

// Of each shape a line: "kernels of 1 x 48 x 48".
class Cache final : public IRuntimeCache {
public:
    IHostMemory* serialize() const noexcept override {
        const std::lock_guard<std::mutex> hold(mutex_);
        return new (std::nothrow) Kernels(shapes_);
    }
    bool deserialize(void const* blob, std::size_t size) noexcept override {
        std::istringstream lines(std::string(static_cast<char const*>(blob), size));
        for (std::string line; std::getline(lines, line);) shapes_.insert(line);
        return true;
    }
    void compile(Dims const& shape) {
        const std::lock_guard<std::mutex> hold(mutex_);
        std::string line = "kernels of ";
        for (int k = 0; k < 3; ++k) line += (k ? " x " : "") + std::to_string(shape.d[k]);
        shapes_.insert(line);
    }

private:
    mutable std::mutex mutex_;
    std::set<std::string> shapes_;
};

class Config final : public IRuntimeConfig {
public:
    IRuntimeCache* createRuntimeCache() const noexcept override { return new (std::nothrow) Cache; }
    bool setRuntimeCache(IRuntimeCache const& chosen) noexcept override {
        cache = const_cast<Cache*>(static_cast<Cache const*>(&chosen));
        return true;
    }
    void setDynamicShapesKernelSpecializationStrategy(Strategy chosen) noexcept override { strategy = chosen; }
    void setExecutionContextAllocationStrategy(Allocation chosen) noexcept override { allocation = chosen; }

    Cache* cache = nullptr;
    Strategy strategy = Strategy::kLAZY;
    Allocation allocation = Allocation::kSTATIC;
};

class Context final : public IExecutionContext {
public:
    Context(const std::string& plan, ILogger& log, const Config& config) : plan_(plan), log_(log), config_(config) {}

    bool setInputShape(char const* tensor, Dims const& shape) noexcept override {
        shape_ = shape, batch_ = std::size_t(shape.d[0]);
        fallback_ = config_.strategy == Strategy::kLAZY;
        return is(tensor, "image") && shape.nbDims == 4;
    }

    bool setTensorAddress(char const* tensor, void* data) noexcept override {
        (is(tensor, "image") ? image_
         : is(tensor, "probabilities") ? mean_
         : is(tensor, "entropy") ? entropy_
                                 : members_) = data;
        return reinterpret_cast<std::uintptr_t>(data) % 256 == 0;  // as TensorRT demands
    }

    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override {
        if (size == int64_t(scratch_size)) scratch_ = memory;
    }

    bool isStreamCapturable(cudaStream_t) const noexcept override { return plan_ != "no capture"; }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
        cudaStreamIsCapturing(stream, &capturing);
        const bool uncapturable = plan_ == "uncapturable" || plan_ == "no capture";
        const bool late = plan_ == "fails later", first = !std::exchange(ran_, true);
        if (late && first) log_.log(ILogger::Severity::kERROR, "the stand-in complains, and goes on");
        if (plan_ == "fail" || (late && !first) || (uncapturable && capturing != cudaStreamCaptureStatusNone)) {
            log_.log(ILogger::Severity::kERROR, "the stand-in fails, as its plan says\nand says more");
            log_.log(ILogger::Severity::kERROR, "a consequence of that");
            return false;
        }
        const auto copy = [&](void* to, std::size_t floats) {
            const char* const from = static_cast<const char*>(image_) + fallback_;
            const std::size_t bytes = 4 * floats * batch_;
            const auto move = [&](void* target, const void* source) {
                return cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream) == cudaSuccess;
            };
            if (config_.allocation != Allocation::kUSER_MANAGED) return move(to, from);
            return move(scratch_, from) && move(to, scratch_);
        };
        const bool copied = copy(mean_, 3) && copy(members_, 6) && (plan_ != "entropy" || copy(entropy_, 16));
        fallback_ = false;
        config_.cache->compile(shape_);
        return copied;
    }

private:
    const std::string plan_;
    ILogger& log_;
    const Config& config_;
    Dims shape_{};
    std::size_t batch_ = 0;
    bool fallback_ = false, ran_ = false;
    void *scratch_ = nullptr, *image_ = nullptr, *mean_ = nullptr, *members_ = nullptr, *entropy_ = nullptr;
};

class Engine final : public ICudaEngine {
public:
    Engine(const std::string& plan, ILogger& log) : plan_(plan), log_(log) {}

    int64_t getDeviceMemorySizeV2() const noexcept override { return scratch_size; }
    int32_t getNbIOTensors() const noexcept override { return plan_ == "entropy" ? 4 : 3; }
    Dims getTensorShape(char const* tensor) const noexcept override {
        if (is(tensor, "image")) return {4, {-1, -1, -1, 3}};
        if (is(tensor, "probabilities")) return {2, {-1, plan_ == "labels" ? 4 : 3}};
        if (is(tensor, "member_probabilities")) return {3, {-1, 2, 3}};
        if (is(tensor, "entropy") && plan_ == "entropy") return {3, {-1, 4, 4}};
        return {-1, {}};
    }
    DataType getTensorDataType(char const* tensor) const noexcept override {
        if (plan_ == "half" && is(tensor, "probabilities")) return DataType::kHALF;
        return is(tensor, "image") ? DataType::kUINT8 : DataType::kFLOAT;
    }
    IRuntimeConfig* createRuntimeConfig() noexcept override { return new (std::nothrow) Config; }
    IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept override {
        const Config& chosen = static_cast<const Config&>(*config);
        if (plan_ == "user allocation" && chosen.allocation != Allocation::kUSER_MANAGED) return nullptr;
        return new (std::nothrow) Context(plan_, log_, chosen);
    }

private:
    const std::string plan_;
    ILogger& log_;
};

class Runtime final : public IRuntime {
public:
    explicit Runtime(ILogger& log) : log_(log) {}
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        const std::string plan(static_cast<char const*>(blob) + header, size - header);
        log_.log(ILogger::Severity::kWARNING, "the stand-in warns");
        if (plan != "refuse") return new (std::nothrow) Engine(plan, log_);
        log_.log(ILogger::Severity::kERROR, "the stand-in refuses, as its plan says");
        return nullptr;
    }

private:
    ILogger& log_;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT void* createInferRuntime_INTERNAL(void* log, int32_t) {
    static ILogger* const first = static_cast<ILogger*>(log);  // as TensorRT does: later loggers are ignored
    return new (std::nothrow) Runtime(*first);
}
EXPORT int32_t getInferLibMajorVersion() { return 1; }
EXPORT int32_t getInferLibMinorVersion() { return 7; }
EXPORT int32_t getInferLibPatchVersion() { return 1; }
EXPORT int32_t getInferLibBuildVersion() { return 116; }
