// CUDA for the TensorRT modules: calls that are checked, memory and streams that are given back. Included by them only.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "files.hpp"

namespace edgemed::impl {

// What an error of CUDA means here, and what to do: the texts of tensorrt_limits.py.
inline const char* help_for(cudaError_t error) {
    switch (error) {
        case cudaErrorInsufficientDriver:
            return "the NVIDIA driver is missing or older than this CUDA; install a newer driver";
        case cudaErrorNoDevice:
            return "no NVIDIA GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES";
        case cudaErrorMemoryAllocation:
            return "the GPU's memory is full; free some, or build the plan with smaller --batch or --image-size";
        case cudaErrorDevicesUnavailable:
            return "the GPU is busy or in exclusive mode; check nvidia-smi";
        case cudaErrorIllegalAddress:
            return "the process cannot use the GPU any more; start it again, and report this";
        case cudaErrorNoKernelImageForDevice:
            return "the plan has no code for this GPU; build one here with `edgemed build-engine`";
        case cudaErrorSystemNotReady:
            return "the driver is not ready; start the fabric manager or restart the machine";
        case cudaErrorInvalidValue:
            return "an address or a stream that was given is not one of this GPU";
        default:
            return "see the CUDA documentation";
    }
}

inline std::string cuda_failure(cudaError_t error, const char* call) {
    return std::string(call) + " failed with " + cudaGetErrorName(error) + " (" + std::to_string(int(error)) +
           "): " + help_for(error);
}

// Throws Error(EDGEMED_ERROR_RUNTIME) where a call failed.
inline void check(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the host's own calls must not find our failures
    throw Error(EDGEMED_ERROR_RUNTIME, cuda_failure(error, call));
}

// Makes a device current for this thread, and the one before it afterwards.
class OnDevice {
public:
    explicit OnDevice(int device) noexcept {
        if (cudaGetDevice(&before_) != cudaSuccess || before_ == device) before_ = -1;
        if (before_ >= 0) cudaSetDevice(device);
    }
    OnDevice(const OnDevice&) = delete;
    ~OnDevice() {
        if (before_ >= 0) cudaSetDevice(before_);
    }

private:
    int before_ = -1;  // -1: nothing to put back
};

// Memory that grows to the largest request and never shrinks. A failed growth leaves it empty.
template <typename Allocation>
class Memory {
public:
    Memory() = default;
    Memory(const Memory&) = delete;
    ~Memory() { Allocation::release(data_); }

    void reserve(size_t bytes) {
        if (bytes <= bytes_) return;
        Allocation::release(data_);
        data_ = nullptr, bytes_ = 0;
        check(Allocation::allocate(&data_, bytes), Allocation::call);
        bytes_ = bytes;
    }
    void* data() const noexcept { return data_; }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

struct OnHost {  // pinned
    static constexpr const char* call = "cudaHostAlloc";
    static cudaError_t allocate(void** data, size_t bytes) { return cudaHostAlloc(data, bytes, cudaHostAllocDefault); }
    static void release(void* data) noexcept { cudaFreeHost(data); }
};

struct OnGpu {
    static constexpr const char* call = "cudaMalloc";
    static cudaError_t allocate(void** data, size_t bytes) { return cudaMalloc(data, bytes); }
    static void release(void* data) noexcept { cudaFree(data); }
};

class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
    Stream(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(stream_); }
    operator cudaStream_t() const noexcept { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

// What was put on a stream while it was captured, to be launched as one.
class Graph {
public:
    Graph() = default;
    Graph(const Graph&) = delete;
    ~Graph() {
        if (graph_) cudaGraphExecDestroy(graph_);
    }

    // Captures what `work` puts on the stream. The graph stays empty where that fails.
    template <typename Work>
    void capture(cudaStream_t stream, Work work) {
        // Of this thread only: other threads may allocate meanwhile.
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
        cudaGraph_t captured = nullptr;
        try {
            work();
        } catch (const Error&) {
            cudaStreamEndCapture(stream, &captured);
            if (captured) cudaGraphDestroy(captured);
            cudaGetLastError();
            throw;
        }
        check(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
        const cudaError_t made = cudaGraphInstantiateWithFlags(&graph_, captured, 0);
        cudaGraphDestroy(captured);
        check(made, "cudaGraphInstantiate");
    }
    explicit operator bool() const noexcept { return graph_ != nullptr; }
    void launch(cudaStream_t stream) const { check(cudaGraphLaunch(graph_, stream), "cudaGraphLaunch"); }

private:
    cudaGraphExec_t graph_ = nullptr;
};

}  // namespace edgemed::impl
