// Stands for CUDA's runtime library. "Device" and pinned memory are host memory; work is queued on a stream and done when
// that is synchronised, so a missing upload, a copy in the wrong direction, a buffer that is too small or an answer that
// is read too early gives a wrong answer here too. Compiled against CUDA's own header, which checks the signatures.
#include "cuda.hpp"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

std::recursive_mutex mutex;
std::map<const char*, size_t> device, pinned;  // bytes, by address
std::map<std::string, int> calls;
std::string failing;

}  // namespace

struct CUstream_st {
    std::vector<Copy> work;
    std::vector<Copy>* captured = nullptr;
};
struct CUgraph_st {
    std::vector<Copy> work;
};
struct CUgraphExec_st {
    std::vector<Copy> work;
};

namespace {

using Hold = std::lock_guard<std::recursive_mutex>;

cudaError_t called(const char* name) {
    ++calls[name];
    return failing == name ? cudaErrorMemoryAllocation : cudaSuccess;
}

bool holds(const std::map<const char*, size_t>& memory, const void* data, size_t bytes) {
    const char* const from = static_cast<const char*>(data);
    const auto after = memory.upper_bound(from);
    if (after == memory.begin()) return false;
    const auto block = std::prev(after);
    return from + bytes <= block->first + block->second;
}

cudaError_t allocated(std::map<const char*, size_t>& memory, void** data, size_t bytes) {
    *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*data, 0xff, bytes);  // a float that was never written is not a number
    memory[static_cast<char*>(*data)] = bytes;
    return cudaSuccess;
}

cudaError_t freed(std::map<const char*, size_t>& memory, void* data) {
    if (data && !memory.erase(static_cast<char*>(data))) return cudaErrorInvalidValue;
    std::free(data);
    return cudaSuccess;
}

}  // namespace

int stand_in::count(const char* call) {
    const Hold hold(mutex);
    return calls[call];
}
void stand_in::fail(const char* call) {
    const Hold hold(mutex);
    failing = call;
}
size_t stand_in::live() {
    const Hold hold(mutex);
    return device.size() + pinned.size();
}

// NOLINTBEGIN: CUDA's names and signatures
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    const Hold hold(mutex);
    return called("cudaGetDeviceCount") == cudaSuccess ? cudaSuccess : cudaErrorInsufficientDriver;
}
cudaError_t cudaGetDevice(int* number) {
    *number = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 6;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    std::strcpy(properties->name, "Stand-in 3090");
    return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation      ? "cudaErrorMemoryAllocation"
           : error == cudaErrorInsufficientDriver ? "cudaErrorInsufficientDriver"
                                                   : "cudaErrorInvalidValue";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
    const Hold hold(mutex);
    const cudaError_t error = called("cudaHostAlloc");
    return error == cudaSuccess ? allocated(pinned, data, bytes) : error;
}
cudaError_t cudaFreeHost(void* data) {
    const Hold hold(mutex);
    return freed(pinned, data);
}
cudaError_t cudaMalloc(void** data, size_t bytes) {
    const Hold hold(mutex);
    const cudaError_t error = called("cudaMalloc");
    return error == cudaSuccess ? allocated(device, data, bytes) : error;
}
cudaError_t cudaFree(void* data) {
    const Hold hold(mutex);
    return freed(device, data);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    const Hold hold(mutex);
    *stream = new CUstream_st;
    return called("cudaStreamCreate");
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    const Hold hold(mutex);
    if (const cudaError_t error = called("cudaMemcpyAsync")) return error;
    const bool up = kind == cudaMemcpyHostToDevice, down = kind == cudaMemcpyDeviceToHost;
    if (!holds(down ? pinned : device, to, bytes) || !holds(up ? pinned : device, from, bytes))
        return cudaErrorInvalidValue;
    (stream->captured ? *stream->captured : stream->work).push_back({to, from, bytes});
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const Hold hold(mutex);
    for (const Copy& copy : stream->work) std::memcpy(copy.to, copy.from, copy.bytes);
    stream->work.clear();
    return called("cudaStreamSynchronize");
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = stream->captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    const Hold hold(mutex);
    stream->captured = new std::vector<Copy>;
    return called("cudaStreamBeginCapture");
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = new CUgraph_st{std::move(*stream->captured)};
    delete stream->captured;
    stream->captured = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    const Hold hold(mutex);
    *made = new CUgraphExec_st{graph->work};
    return called("cudaGraphInstantiate");
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    const Hold hold(mutex);
    stream->work.insert(stream->work.end(), graph->work.begin(), graph->work.end());
    return called("cudaGraphLaunch");
}
// NOLINTEND
