#include "tensorrt_engine.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

namespace edgemed::impl {
namespace {

// A function of TensorRT's library. Throws where it has none of that name.
template <typename Function>
Function* function_of(void* library, const char* name) {
    void* const found = ::dlsym(library, name);
    if (!found) throw Error(EDGEMED_ERROR_RUNTIME, std::string(EDGEMED_TENSORRT_LIBRARY) + " has no function " + name);
    return reinterpret_cast<Function*>(found);
}

Library load() {
    // By the linker's own rules: what is loaded already, LD_LIBRARY_PATH, this module's folder, the system's folders.
    void* const file = ::dlopen(EDGEMED_TENSORRT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!file) {
        const char* const reason = ::dlerror();
        throw Error(EDGEMED_ERROR_RUNTIME, std::string(reason ? reason : EDGEMED_TENSORRT_LIBRARY) +
                                               "; install it, or put its folder into LD_LIBRARY_PATH");
    }
    const auto number = [&](const char* name) { return std::to_string(function_of<int32_t()>(file, name)()); };
    return {function_of<void*(void*, int32_t)>(file, "createInferRuntime_INTERNAL"),
            number("getInferLibMajorVersion") + "." + number("getInferLibMinorVersion") + "." +
                number("getInferLibPatchVersion") + "." + number("getInferLibBuildVersion")};
}

std::string text_of(const nvinfer1::Dims& shape) {
    std::string text;
    for (int k = 0; k < shape.nbDims; ++k) text += (k ? ", " : "") + std::to_string(shape.d[k]);
    return "(" + text + ")";
}

// "--batch 1,4,8": the profile that would hold `low` to `high` too.
std::string wider(const char* flag, const int64_t (&profile)[3], int64_t low, int64_t high) {
    return std::string("build one with ") + flag + " " + std::to_string(std::min(profile[0], low)) + "," +
           std::to_string(profile[1]) + "," + std::to_string(std::max(profile[2], high));
}

thread_local const Warn* opening = nullptr;  // where TensorRT's warnings go
thread_local char first_error[600] = "";

int current_device() {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    return device;
}

}  // namespace

const Library& library() {
    static const Library loaded = load();  // a failure is tried again next time
    return loaded;
}

Log& Log::of_process() {
    static Log* const log = new Log;
    return *log;
}

void Log::log(Severity severity, const nvinfer1::AsciiChar* text) noexcept {
    if (severity > Severity::kWARNING) return;
    if (severity == Severity::kWARNING) {
        if (opening) (*opening)(text);
        return;
    }
    if (!*first_error)  // it is the cause
        std::snprintf(first_error, sizeof first_error, "%.*s", int(std::strcspn(text, "\n")), text);
}

std::string Log::take() {
    const std::string found = first_error;
    *first_error = 0;
    return found;
}

Opening::Opening(const Warn& warn) noexcept {
    opening = &warn;
    Log::of_process().take();  // an error that nobody asked for is none of the new engine's
}

Opening::~Opening() { opening = nullptr; }

TensorRtEngine::TensorRtEngine(const Source& source, const char* device_name)
    : name(source.name),
      labels(size_t(source.labels)),
      members(size_t(source.members)),
      entropy(size_t(source.entropy_side) * size_t(source.entropy_side)),
      device(current_device()),
      warn(source.warn) {
    const Opening now(warn);
    std::copy(source.batch, source.batch + 3, batch_);
    std::copy(source.image_side, source.image_side + 3, side_);
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(library().create_runtime(&Log::of_process(), NV_TENSORRT_VERSION)));
    if (!runtime_) fail("does not start");
    engine_.reset(runtime_->deserializeCudaEngine(source.data, source.size));
    if (!engine_) fail("refuses plan " + name);
    check_tensor("image", nvinfer1::DataType::kUINT8, {-1, -1, 3});
    check_tensor("probabilities", nvinfer1::DataType::kFLOAT, {source.labels});
    check_tensor("member_probabilities", nvinfer1::DataType::kFLOAT, {source.members, source.labels});
    if (engine_->getNbIOTensors() != (entropy ? 4 : 3))
        throw Error(EDGEMED_ERROR_BUNDLE, "plan " + name + " has other outputs than the manifest says; build it again");
    if (entropy) check_tensor("entropy", nvinfer1::DataType::kFLOAT, {source.entropy_side, source.entropy_side});
    kernels_ = std::make_unique<Kernels>(*engine_, source, device_name, is_fixed());
}

TensorRtEngine::~TensorRtEngine() {
    const OnDevice on(device);
    kernels_.reset();
    engine_.reset();
    runtime_.reset();
}

std::unique_ptr<nvinfer1::IExecutionContext> TensorRtEngine::context(Memory<OnGpu>& scratch) {
    const std::lock_guard<std::mutex> hold(mutex_);
    std::unique_ptr<nvinfer1::IExecutionContext> made(kernels_->context(*engine_));
    if (!made) fail("cannot make a context for plan " + name + " (is the GPU's memory full?)");
    if (const size_t bytes = kernels_->scratch()) {
        scratch.reserve(bytes);
        made->setDeviceMemoryV2(scratch.data(), int64_t(bytes));
    }
    return made;
}

void TensorRtEngine::check_capturable(nvinfer1::IExecutionContext& context, cudaStream_t stream) const {
    if (!Kernels::capturable(context, stream))
        throw Error(EDGEMED_ERROR_RUNTIME, "TensorRT-RTX cannot capture plan " + name);
}

void TensorRtEngine::check_shape(const Shape& shape) const {
    if (shape.n < batch_[0] || shape.n > batch_[2])
        throw Error(EDGEMED_ERROR_INPUT, "plan " + name + " takes batches from " + std::to_string(batch_[0]) + " to " +
                                             std::to_string(batch_[2]) + ", not " + std::to_string(shape.n) + "; " +
                                             wider("--batch", batch_, shape.n, shape.n));
    const auto [low, high] = std::minmax(shape.height, shape.width);
    if (low < side_[0] || high > side_[2])
        throw Error(EDGEMED_ERROR_INPUT, "plan " + name + " takes image sides from " + std::to_string(side_[0]) + " to " +
                                             std::to_string(side_[2]) + ", not " + std::to_string(shape.height) + " x " +
                                             std::to_string(shape.width) + "; " + wider("--image-size", side_, low, high));
}

void TensorRtEngine::fail(const std::string& what) {
    const std::string said = Log::of_process().take();
    throw Error(EDGEMED_ERROR_RUNTIME, std::string(runtime_name) + " " + library().version + " " + what +
                                           (said.empty() ? "" : ": " + said) +
                                           "; build it again here with `edgemed build-engine BUNDLE --runtime " +
                                           runtime_name + "`");
}

void TensorRtEngine::keep_kernels(const Shape& shape) {
    const std::lock_guard<std::mutex> hold(mutex_);
    kernels_->keep(shape);
}

// A tensor of the plan has to be (N, sides...), where -1 stands for any side.
void TensorRtEngine::check_tensor(const char* tensor, nvinfer1::DataType type, std::initializer_list<int64_t> sides) const {
    const nvinfer1::Dims shape = engine_->getTensorShape(tensor);
    bool fits = shape.nbDims == int(sides.size()) + 1 && engine_->getTensorDataType(tensor) == type;
    for (size_t k = 0; fits && k < sides.size(); ++k) {
        const int64_t want = sides.begin()[k];
        fits = want == -1 || shape.d[k + 1] == want;
    }
    if (!fits)
        throw Error(EDGEMED_ERROR_BUNDLE, "plan " + name + " has the tensor '" + tensor + "' as " + text_of(shape) +
                                              "; it is not a plan of this bundle: build it again");
}

#ifdef TRT_MAJOR_RTX
Kernels::Kernels(nvinfer1::ICudaEngine& engine, const Source& source, const char* device, bool fixed)
    : config_(engine.createRuntimeConfig()), warn_(source.warn) {
    if (!config_) throw Error(EDGEMED_ERROR_RUNTIME, std::string(runtime_name) + " makes no configuration of its runtime");
    // By default a fallback answers until these are compiled: what serves would not be what was tested and timed.
    config_->setDynamicShapesKernelSpecializationStrategy(nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    if (fixed) {  // built by REQUIRE_USER_ALLOCATION
        config_->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
        scratch_ = size_t(engine.getDeviceMemorySizeV2());
    }
    cache_.reset(config_->createRuntimeCache());
    if (!cache_) throw Error(EDGEMED_ERROR_RUNTIME, std::string(runtime_name) + " makes no cache for its kernels");
    try {
        const std::filesystem::path folder = cache_folder("tensorrt-rtx", {source.sha256, library().version, device});
        file_ = (folder / "kernels.bin").string();
        std::error_code unseen;  // what cannot be looked at is written anew
        if (std::filesystem::exists(file_, unseen) && std::filesystem::exists(folder / "kernels.sha256", unseen)) {
            const Bytes data = plain_content(file_, SIZE_MAX), note = plain_content((folder / "kernels.sha256").string(), 65);
            const std::string digest = sha256_of(data.data(), data.size());
            // Kernels are code: what was damaged or cut short is compiled anew.
            if (std::string(note.begin(), note.end()) == digest && cache_->deserialize(data.data(), data.size()))
                written_ = digest;
        }
    } catch (const Error& error) {
        warn_((std::string("TensorRT-RTX's kernel cache is not used: ") + error.what()).c_str());
    }
    config_->setRuntimeCache(*cache_);
}

void Kernels::keep(const Shape& shape) {
    if (file_.empty() || !shapes_.insert({shape.n, shape.height, shape.width}).second) return;
    try {
        const std::unique_ptr<nvinfer1::IHostMemory> data(cache_->serialize());
        if (!data) return;
        const std::string digest = sha256_of(data->data(), data->size());
        if (digest == written_) return;
        const Lock lock(std::filesystem::path(file_).parent_path().string());
        write_atomic(file_, data->data(), data->size());
        write_atomic(std::filesystem::path(file_).replace_extension(".sha256").string(), digest.data(), digest.size());
        written_ = digest;
    } catch (const Error& error) {
        file_.clear();
        warn_((std::string("TensorRT-RTX's kernel cache is not kept: ") + error.what()).c_str());
    }
}
#endif

}  // namespace edgemed::impl
