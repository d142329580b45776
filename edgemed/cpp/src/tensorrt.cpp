// TensorRT: classic (Jetson, data centre) and TensorRT-RTX (desktop), as modules of their own: runtimes/tensorrt.py in
// C++. One source is compiled against the headers of each major version.
//
// A request puts its pixels into pinned memory; a stream of the handle's own then carries upload, execution and
// download. Buffers grow to the largest request seen and keep their addresses otherwise, so that a plan of one fixed
// shape is captured into a CUDA graph once, after its first request, where TensorRT can be captured: one launch then
// stands for execution and download. The upload is outside of it: pixels come from pinned memory, or from the caller's
// own device memory, which is copied within the GPU, since TensorRT wants aligned addresses and the graph lasting ones.
#include <cstring>
#include <exception>

#include "guarded.hpp"
#include "tensorrt_engine.hpp"

namespace edgemed::impl {
namespace {

// Runs `work`; what it throws becomes a status and a message.
template <typename Work>
edgemed_status guarded(Message& error, Work work) noexcept {
    return guarded(error, work, [&](const std::exception& failure) {
        return error.set(EDGEMED_ERROR_INTERNAL, "%s: %s", runtime_name, failure.what());
    });
}

// What a handle needs to run requests: a context, a stream, pinned and device memory, a CUDA graph.
struct Lane {
    Stream stream;
    Memory<OnHost> pixels, probabilities, members, entropy;
    Memory<OnGpu> gpu_pixels, gpu_probabilities, gpu_members, gpu_entropy, scratch;
    std::unique_ptr<nvinfer1::IExecutionContext> context;  // destroyed before the memory that it knows
    Graph graph;
};

class TensorRtSession final : public Session {
public:
    explicit TensorRtSession(std::shared_ptr<TensorRtEngine> engine)
        : engine_(std::move(engine)), to_capture_(engine_->is_fixed()), lane_(std::make_unique<Lane>()) {
        lane_->context = engine_->context(lane_->scratch);
    }

    ~TensorRtSession() override {
        const OnDevice on(engine_->device);
        cudaStreamSynchronize(lane_->stream);
        lane_.reset();
    }

    Session* clone(Message& error) noexcept override {
        const OnDevice on(engine_->device);
        Session* made = nullptr;
        guarded(error, [&] { made = new TensorRtSession(engine_); });
        return made;
    }

    uint8_t* staging(const Shape& shape, Message& error) noexcept override {
        const OnDevice on(engine_->device);
        const bool reserved = guarded(error, [&] { lane_->pixels.reserve(shape.bytes()); }) == EDGEMED_OK;
        return reserved ? static_cast<uint8_t*>(lane_->pixels.data()) : nullptr;
    }

    edgemed_status run(const uint8_t* pixels, const Shape& shape, const Answers& answers,
                       Message& error) noexcept override {
        return request(shape, lane_->stream, answers, error, [&] {
            if (pixels != lane_->pixels.data()) {
                lane_->pixels.reserve(shape.bytes());
                std::memcpy(lane_->pixels.data(), pixels, shape.bytes());
            }
            copy(lane_->gpu_pixels.data(), lane_->pixels.data(), shape.bytes(), cudaMemcpyHostToDevice, lane_->stream);
        });
    }

    edgemed_status run_device(const void* pixels, const Shape& shape, void* stream, const Answers& answers,
                              Message& error) noexcept override {
        const cudaStream_t theirs = static_cast<cudaStream_t>(stream);
        return request(shape, theirs, answers, error, [&] {
            copy(lane_->gpu_pixels.data(), pixels, shape.bytes(), cudaMemcpyDeviceToDevice, theirs);
        });
    }

private:
    // One request on a stream; `upload` puts the pixels into the GPU's memory.
    template <typename Upload>
    edgemed_status request(const Shape& shape, cudaStream_t stream, const Answers& answers, Message& error,
                           Upload upload) noexcept {
        const OnDevice on(engine_->device);
        Log::of_process().take();  // an error that nobody asked for is not about this request
        const edgemed_status status = guarded(error, [&] {
            prepare(shape);
            upload();
            if (lane_->graph) {
                lane_->graph.launch(stream);
            } else {
                execute(stream);
            }
            check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
            const size_t n = size_t(shape.n) * engine_->labels * sizeof(float);
            std::memcpy(answers.probabilities, lane_->probabilities.data(), n);
            std::memcpy(answers.member_probabilities, lane_->members.data(), n * engine_->members);
            if (answers.entropy) std::memcpy(answers.entropy, lane_->entropy.data(), entropy_bytes());
            if (!(shape == kept_)) engine_->keep_kernels(kept_ = shape);
            if (to_capture_) capture();
        });
        if (status != EDGEMED_OK) cudaStreamSynchronize(stream);  // nothing may still read the caller's pixels
        return status;
    }

    // Buffers, addresses and shape for the requests that follow.
    void prepare(const Shape& shape) {
        if (shape == shape_) return;
        engine_->check_shape(shape);
        shape_ = Shape();
        const size_t outputs = size_t(shape.n) * engine_->labels * sizeof(float);
        address("image", lane_->gpu_pixels, shape.bytes());
        address("probabilities", lane_->gpu_probabilities, outputs);
        address("member_probabilities", lane_->gpu_members, outputs * engine_->members);
        lane_->probabilities.reserve(outputs);
        lane_->members.reserve(outputs * engine_->members);
        if (const size_t bytes = size_t(shape.n) * engine_->entropy * sizeof(float)) {
            address("entropy", lane_->gpu_entropy, bytes);
            lane_->entropy.reserve(bytes);
        }
        const nvinfer1::Dims sides{4, {shape.n, shape.height, shape.width, 3}};
        if (!lane_->context->setInputShape("image", sides)) engine_->fail("refuses the images of a request");
        shape_ = shape;
    }

    size_t entropy_bytes() const { return size_t(shape_.n) * engine_->entropy * sizeof(float); }

    void address(const char* tensor, Memory<OnGpu>& memory, size_t bytes) {
        memory.reserve(bytes);
        if (!lane_->context->setTensorAddress(tensor, memory.data())) engine_->fail("refuses the plan's memory");
    }

    // Execution and download.
    void execute(cudaStream_t stream) {
        if (!lane_->context->enqueueV3(stream)) engine_->fail("failed to run plan " + engine_->name);
        const size_t outputs = size_t(shape_.n) * engine_->labels * sizeof(float);
        copy(lane_->probabilities.data(), lane_->gpu_probabilities.data(), outputs, cudaMemcpyDeviceToHost, stream);
        copy(lane_->members.data(), lane_->gpu_members.data(), outputs * engine_->members, cudaMemcpyDeviceToHost, stream);
        if (const size_t bytes = entropy_bytes())
            copy(lane_->entropy.data(), lane_->gpu_entropy.data(), bytes, cudaMemcpyDeviceToHost, stream);
    }

    static void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
        check(cudaMemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
    }

    // After a request: a context may not be captured before it has run.
    void capture() {
        to_capture_ = false;
        try {
            engine_->check_capturable(*lane_->context, lane_->stream);
            lane_->graph.capture(lane_->stream, [&] { execute(lane_->stream); });
        } catch (const Error& failure) {
            engine_->warn((std::string("no CUDA graph is used: ") + failure.what()).c_str());
        }
    }

    const std::shared_ptr<TensorRtEngine> engine_;
    bool to_capture_;
    std::unique_ptr<Lane> lane_;
    Shape shape_;  // what buffers and context are ready for
    Shape kept_;   // of the last request that was answered
};

class TensorRt final : public Runtime {
public:
    const char* name() const noexcept override { return runtime_name; }
    bool takes_plans() const noexcept override { return true; }

    edgemed_status available(Here& here, Message& why_not) noexcept override {
        return guarded(why_not, [&] {
            int count = 0, device = 0, major = 0, minor = 0;
            check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
            if (!count) throw Error(EDGEMED_ERROR_RUNTIME, help_for(cudaErrorNoDevice));
            check(cudaGetDevice(&device), "cudaGetDevice");
            check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
            check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
            Here::put(here.version, library().version);
            Here::put(here.device, device_name(device));
            Here::put(here.capability, "sm" + std::to_string(major) + std::to_string(minor));
        });
    }

    Session* open(const Source& source, Message& error) noexcept override {
        Session* made = nullptr;
        guarded(error, [&] {
            int device = 0;
            check(cudaGetDevice(&device), "cudaGetDevice");
            made = new TensorRtSession(std::make_shared<TensorRtEngine>(source, device_name(device).c_str()));
        });
        return made;
    }

private:
    static std::string device_name(int device) {
        cudaDeviceProp properties{};
        check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
        return properties.name;
    }
};

}  // namespace
}  // namespace edgemed::impl

extern "C" EDGEMED_MODULE edgemed::impl::Runtime* edgemed_runtime_v4() {
    static edgemed::impl::TensorRt runtime;
    return &runtime;
}
