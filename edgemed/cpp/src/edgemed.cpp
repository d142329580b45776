// The C functions of edgemed.h: arguments checked, exceptions turned into a status and a message.
#include "edgemed.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "golden.hpp"
#include "model.hpp"

using namespace edgemed::impl;

namespace {

thread_local char last_error[2048] = "";

// One line, whatever a file name held.
edgemed_status failed(edgemed_status status, const char* text) noexcept {
    std::snprintf(last_error, sizeof last_error, "%s", text);
    for (char* c = last_error; *c; ++c)
        if (static_cast<unsigned char>(*c) < 0x20 || *c == 0x7f) *c = ' ';
    return status;
}

// Runs `work`, which throws; nothing leaves this library as an exception.
template <typename Work>
edgemed_status guarded(Work&& work) noexcept {
    try {
        work();
        return EDGEMED_OK;
    } catch (const Error& error) {
        return failed(error.status, error.what());
    } catch (const std::bad_alloc&) {
        return failed(EDGEMED_ERROR_INTERNAL, out_of_memory);
    } catch (const std::exception& error) {
        return failed(EDGEMED_ERROR_INTERNAL, error.what());
    } catch (...) {
        return failed(EDGEMED_ERROR_INTERNAL, "an unknown failure");
    }
}

void require(bool fits, const char* what) {
    if (!fits) throw Error(EDGEMED_ERROR_INPUT, what);
}

void no_warning(const char*, void*) {}

// The caller's options over the defaults: a program built against an older header knows fewer of them.
edgemed_options known_options(const edgemed_options* given) {
    edgemed_options options = edgemed_options_default();
    if (given) {
        require(given->size >= offsetof(edgemed_options, runtime) && given->size <= sizeof options,
                "the options have a size that this library does not know; start from edgemed_options_default()");
        std::memcpy(&options, given, given->size);
    }
    require(options.runtime && options.precision, "options.runtime and options.precision are texts, not NULL");
    require(!options.plan || *options.plan, "options.plan is a plan's id, or NULL");
    require(options.threads >= 0 && options.threads <= 4096, "options.threads is 0 (all cores) to 4096");
    return options;
}

const char inside_this_library = 0;  // a function's address may be one of the program's own, which calls it from there

std::string folder_of_this_library() {
    Dl_info info{};
    if (!::dladdr(&inside_this_library, &info) || !info.dli_fname) return ".";
    std::error_code failed;
    const std::filesystem::path file = std::filesystem::canonical(info.dli_fname, failed);
    return failed ? "." : file.parent_path().string();
}

Shape checked_shape(const edgemed_model& model, size_t n, int height, int width) {
    require(n <= size_t(max_batch), "a batch holds at most 1048576 images");
    check_sides(height, width, model.shared->limits);
    return {int64_t(n), height, width};
}

// Whether n images are one block of packed RGB already.
bool is_packed_rgb(const edgemed_image* images, size_t n) {
    const ptrdiff_t row = ptrdiff_t(images->width) * 3;
    const uint8_t* next = static_cast<const uint8_t*>(images->data);
    for (size_t k = 0; k < n; ++k, next += row * images->height)
        if (images[k].data != next || images[k].format != EDGEMED_RGB || (images[k].stride && images[k].stride != row))
            return false;
    return true;
}

Shape checked_images(const edgemed_model& model, const edgemed_image* images, size_t n) {
    const Shape shape = checked_shape(model, n, images->height, images->width);
    for (size_t k = 0; k < n; ++k) {
        require(images[k].data, "an image's data is NULL");
        require(images[k].height == images->height && images[k].width == images->width,
                "the images of a request must have one size; predict them one by one");
        const int pixel = channels(images[k].format);
        require(pixel > 0, "an image's format is none of edgemed_format");
        const ptrdiff_t row = ptrdiff_t(images[k].width) * pixel, stride = images[k].stride;
        require(stride == 0 || stride >= row || stride <= -row, "an image's stride is shorter than a row of its pixels");
    }
    return shape;
}

// The first step of every request: what the one before it left is no answer any more.
void begin(edgemed_model* model, const void* data, const edgemed_outputs* outputs) {
    require(model, "the model is NULL: call edgemed_open first, and check its status");
    model->answered = false;
    require(data && outputs, "the image and the outputs must not be NULL");
}

void open_model(const char* path, const edgemed_options& options, edgemed_model** model) {
    const auto key = [](const char* file) { return file ? key_content(file) : Bytes(); };
    Bundle bundle(path, key(options.public_key), key(options.plan_key));
    Choice choice;
    choice.runtime = options.runtime, choice.precision = options.precision;
    choice.threads = options.threads, choice.uncertified = options.uncertified != 0;
    choice.plan = options.plan ? options.plan : "";
    choice.modules = options.modules ? options.modules : folder_of_this_library();
    choice.warn = {options.warn ? options.warn : no_warning, options.user};
    Engine engine = open_engine(bundle, choice);
    const Manifest& manifest = bundle.manifest;
    const SideLimits limits{manifest.min_side, manifest.max_side, manifest.opt_side};
    auto made = std::make_unique<edgemed_model>();
    made->session = std::move(engine.session);
    made->shared = std::make_shared<const Shared>(
        Shared{std::move(bundle), engine.runtime, engine.version, engine.reason, engine.state, engine.plan, limits});
    if (options.self_test) {
        const std::string what = made->shared->bundle.path + " on " + engine.runtime;
        self_test(made->shared->bundle, choice.precision, what, engine.taken,
                  [&](const uint8_t* pixels, const Shape& shape, float* probabilities, float* members) {
                      made->predict_rgb(pixels, shape, {probabilities, members, nullptr, nullptr});
                      return made->entropy();
                  });
        made->answered = false;
    }
    *model = made.release();
}

const char* name_at(const std::vector<std::string>& names, int index) {
    return index >= 0 && size_t(index) < names.size() ? names[size_t(index)].c_str() : nullptr;
}

}  // namespace

extern "C" {

void edgemed_options_init(edgemed_options* options, size_t size) {
    edgemed_options defaults{};
    defaults.size = size;  // the caller's
    defaults.runtime = "auto";
    defaults.precision = "fp32";
    if (options) std::memcpy(options, &defaults, std::min(size, sizeof defaults));
}

edgemed_status edgemed_open(const char* bundle, const edgemed_options* options, edgemed_model** model) {
    if (model) *model = nullptr;
    return guarded([&] {
        require(bundle && model, "the bundle's path and the place for the model must not be NULL");
        open_model(bundle, known_options(options), model);
    });
}

edgemed_status edgemed_clone(edgemed_model* model, edgemed_model** clone) {
    if (clone) *clone = nullptr;
    return guarded([&] {
        require(model && clone, "the model and the place for its clone must not be NULL");
        auto made = std::make_unique<edgemed_model>();
        Message message;
        made->shared = model->shared;
        made->session.reset(model->session->clone(message));
        if (!made->session) throw Error(message.status, message.text);
        *clone = made.release();
    });
}

void edgemed_close(edgemed_model* model) { delete model; }

edgemed_status edgemed_predict(edgemed_model* model, const edgemed_image* images, size_t n,
                               const edgemed_outputs* outputs) {
    return guarded([&] {
        begin(model, images, outputs);
        if (n == 0) return;
        const Shape shape = checked_images(*model, images, n);
        const uint8_t* pixels = static_cast<const uint8_t*>(images->data);
        if (!is_packed_rgb(images, n)) {
            uint8_t* const packed = model->staging(shape);
            for (size_t k = 0; k < n; ++k) pack_rgb(images[k], packed + k * (shape.bytes() / n));
            pixels = packed;
        }
        model->predict_rgb(pixels, shape, *outputs);
    });
}

edgemed_status edgemed_predict_encoded(edgemed_model* model, const void* data, size_t size,
                                       const edgemed_outputs* outputs) {
    return guarded([&] {
        begin(model, data, outputs);
        Picture& picture = model->scratch.picture;
        decode(data, size, model->shared->limits, picture);
        model->predict_rgb(picture.pixels, {1, picture.height, picture.width}, *outputs);
    });
}

edgemed_status edgemed_predict_device(edgemed_model* model, const void* pixels, size_t n, int height, int width,
                                      void* cuda_stream, const edgemed_outputs* outputs) {
    return guarded([&] {
        begin(model, pixels, outputs);
        if (n == 0) return;
        const Shape shape = checked_shape(*model, n, height, width);
        model->predict(n, *outputs, [&](const Answers& found, Message& message) {
            return model->session->run_device(pixels, shape, cuda_stream, found, message);
        });
    });
}

const float* edgemed_entropy(const edgemed_model* model) { return model ? model->entropy() : nullptr; }
int edgemed_entropy_side(const edgemed_model* model) {
    return model ? int(model->shared->bundle.manifest.entropy_side) : 0;
}

int edgemed_label_count(const edgemed_model* model) { return model ? int(model->labels()) : 0; }
int edgemed_member_count(const edgemed_model* model) { return model ? int(model->members()) : 0; }

const char* edgemed_label(const edgemed_model* model, int index) {
    return model ? name_at(model->shared->bundle.manifest.labels, index) : nullptr;
}

const char* edgemed_member_name(const edgemed_model* model, int index) {
    return model ? name_at(model->shared->bundle.manifest.member_names, index) : nullptr;
}

const char* edgemed_decision_name(const edgemed_model* model, int decision) {
    return decision == EDGEMED_REFER ? "refer" : edgemed_label(model, decision);
}

void edgemed_image_sides(const edgemed_model* model, int* smallest, int* largest) {
    if (smallest) *smallest = model ? int(model->shared->limits.smallest) : 0;
    if (largest) *largest = model ? int(model->shared->limits.largest) : 0;
}

const char* edgemed_bundle_id(const edgemed_model* model) {
    return model ? model->shared->bundle.manifest.bundle_id.c_str() : nullptr;
}
const char* edgemed_runtime(const edgemed_model* model) { return model ? model->shared->runtime.c_str() : nullptr; }
const char* edgemed_runtime_version(const edgemed_model* model) {
    return model ? model->shared->version.c_str() : nullptr;
}
const char* edgemed_reason(const edgemed_model* model) { return model ? model->shared->reason.c_str() : nullptr; }
const char* edgemed_plan(const edgemed_model* model) {
    return model && !model->shared->plan.empty() ? model->shared->plan.c_str() : nullptr;
}
const char* edgemed_state(const edgemed_model* model) { return model ? model->shared->state.c_str() : nullptr; }

const char* edgemed_last_error(void) { return last_error; }
const char* edgemed_version(void) { return EDGEMED_VERSION; }

}  // extern "C"
