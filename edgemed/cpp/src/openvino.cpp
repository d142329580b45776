// OpenVINO on the CPU: the settings, the cache and the answers of runtimes/openvino.py.
//
// One compilation per batch size: N is fixed, H and W stay dynamic up to the resize, and everything after it is static.
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <openvino/openvino.hpp>
#include <sstream>
#include <streambuf>

#include "engines.hpp"
#include "guarded.hpp"

namespace edgemed::impl {
namespace {

namespace fs = std::filesystem;

// The last line of an exception's text that is not blank, cut to 200 bytes. Allocates nothing, so it cannot fail.
struct Reason {
    char text[201] = "";
    explicit Reason(const std::exception& error) noexcept {
        for (const char* line = error.what(); *line;) {
            line += std::strspn(line, " \t\r\n");
            const size_t length = std::strcspn(line, "\n");
            if (length > 0) std::snprintf(text, sizeof text, "%.*s", int(std::min(length, sizeof text - 1)), line);
            line += length;
        }
    }
};

// Runs `work`; what it throws becomes a status and a message. what, step: for what OpenVINO throws.
template <typename Work>
edgemed_status guarded(Message& error, const char* what, const char* step, Work work) noexcept {
    return guarded(error, work, [&](const std::exception& failure) {
        return error.set(EDGEMED_ERROR_RUNTIME, "OpenVINO %s %s (%s)%s", ov::get_openvino_version().buildNumber, what,
                         Reason(failure).text, step);
    });
}

Error other_outputs() {
    return Error(EDGEMED_ERROR_BUNDLE, "the graph has other outputs than the manifest says; build the bundle again");
}

// The compiled form and the sha256 beside it, by the names that Python gives them.
struct Kept {
    const fs::path file, note;
    explicit Kept(const fs::path& folder) : file(folder / "compiled.blob"), note(folder / "compiled.sha256") {}

    // Empty where there is none, or not byte for byte the one that was written.
    Bytes content(const Warn& warn) const {
        if (!fs::is_regular_file(file)) return {};
        Bytes data = plain_content(file.string(), SIZE_MAX);
        const Bytes text = fs::is_regular_file(note) ? plain_content(note.string(), 65) : Bytes();
        if (std::string(text.begin(), text.end()) == sha256_of(data.data(), data.size())) return data;
        warn((file.string() + " was damaged, and is compiled again").c_str());
        return {};
    }

    void keep(const std::string& data) const {
        const std::string text = sha256_of(data.data(), data.size());
        write_atomic(file.string(), data.data(), data.size());
        write_atomic(note.string(), text.data(), text.size());
    }
};

// Reads from memory that somebody else owns.
struct MemoryBuffer : std::streambuf {
    explicit MemoryBuffer(Bytes& data) {
        char* const begin = reinterpret_cast<char*>(data.data());
        setg(begin, begin, begin + data.size());
    }
    pos_type seekoff(off_type by, std::ios_base::seekdir from, std::ios_base::openmode) override {
        char* const base = from == std::ios_base::beg ? eback() : from == std::ios_base::cur ? gptr() : egptr();
        if (by < eback() - base || by > egptr() - base) return pos_type(off_type(-1));
        setg(eback(), base + by, egptr());
        return gptr() - eback();
    }
    pos_type seekpos(pos_type at, std::ios_base::openmode which) override {
        return seekoff(off_type(at), std::ios_base::beg, which);
    }
};

// A compiled graph of one batch size, and which output is which.
struct Compiled {
    ov::CompiledModel model;
    size_t probabilities = SIZE_MAX, members = SIZE_MAX, entropy = SIZE_MAX;  // where they are not
};

// What a handle and its clones share.
class OpenVinoEngine {
public:
    const size_t labels, members, entropy;  // values of an image: K, M K / K, E E

    explicit OpenVinoEngine(const Source& source)
        : labels(size_t(source.labels)),
          members(size_t(source.members)),
          entropy(size_t(source.entropy_side) * size_t(source.entropy_side)),
          graph_(static_cast<const char*>(source.data), source.size),
          sha256_(source.sha256),
          threads_(source.threads > 0 ? source.threads : usable_cores()),
          warn_(source.warn) {}

    // The compiled model for a batch size, made on first use. Thread-safe.
    const Compiled& prepare(int64_t batch) {
        const std::lock_guard<std::mutex> hold(mutex_);
        const auto found = compiled_.find(batch);
        return found != compiled_.end() ? found->second : compiled_.emplace(batch, compile(batch)).first->second;
    }

private:
    Compiled compile(int64_t batch) {
        const ov::AnyMap settings{
            ov::hint::inference_precision(ov::element::f32), ov::num_streams(1), ov::inference_num_threads(threads_),
            {"CPU_RUNTIME_CACHE_CAPACITY", 0}};  // else memory grows by a MiB with each new size of an image, for ever
        Compiled result;
        try {
            const std::string device = core_.get_property("CPU", ov::device::full_name);
            const fs::path folder = cache_folder(
                "openvino", {sha256_, ov::get_openvino_version().buildNumber, device, std::to_string(batch)});
            const Lock lock(folder.string());  // the others wait for what the first one compiles
            const Kept kept(folder);
            result.model = from_cache(kept, settings);
            if (!result.model) {
                result.model = from_graph(batch, settings);
                std::ostringstream compiled;
                result.model.export_model(compiled);
                kept.keep(compiled.str());
            }
        } catch (const std::exception& error) {
            // The cache only saves time. A fault of the graph itself comes up again below.
            warn_((std::string("OpenVINO's cache is not used: ") + Reason(error).text).c_str());
            if (!result.model) result.model = from_graph(batch, settings);
        }
        for (size_t k = 0; k < result.model.outputs().size(); ++k) {
            if (result.model.output(k).get_names().count("probabilities")) result.probabilities = k;
            if (result.model.output(k).get_names().count("member_probabilities")) result.members = k;
            if (result.model.output(k).get_names().count("entropy")) result.entropy = k;
        }
        if (result.probabilities == SIZE_MAX || result.members == SIZE_MAX || (result.entropy == SIZE_MAX) != (entropy == 0))
            throw other_outputs();
        return result;
    }

    // Empty where nothing is kept, or where OpenVINO refuses it.
    ov::CompiledModel from_cache(const Kept& kept, const ov::AnyMap& settings) {
        Bytes data = kept.content(warn_);
        if (data.empty()) return {};
        MemoryBuffer buffer(data);
        std::istream stream(&buffer);
        try {
            return core_.import_model(stream, "CPU", settings);
        } catch (const std::exception& error) {
            warn_((kept.file.string() + " is refused (" + Reason(error).text + "), and is compiled again").c_str());
            return {};
        }
    }

    ov::CompiledModel from_graph(int64_t batch, const ov::AnyMap& settings) {
        const std::shared_ptr<ov::Model> model = core_.read_model(graph_, ov::Tensor());
        model->reshape({{"image", ov::PartialShape{batch, -1, -1, 3}}});
        return core_.compile_model(model, "CPU", settings);
    }

    ov::Core core_;
    const std::string graph_, sha256_;
    const int threads_;
    const Warn warn_;
    std::mutex mutex_;
    std::map<int64_t, Compiled> compiled_;
};

class OpenVinoSession : public Session {
public:
    explicit OpenVinoSession(std::shared_ptr<OpenVinoEngine> engine) : engine_(std::move(engine)) { request(1); }

    Session* clone(Message& error) noexcept override {
        Session* made = nullptr;
        asked(error, [&] { made = new OpenVinoSession(engine_); });
        return made;
    }

    uint8_t* staging(const Shape& shape, Message& error) noexcept override {
        asked(error, [&] {
            if (staging_.size() < shape.bytes()) staging_.resize(shape.bytes());
        });
        return staging_.size() < shape.bytes() ? nullptr : staging_.data();
    }

    edgemed_status run(const uint8_t* pixels, const Shape& shape, const Answers& answers,
                       Message& error) noexcept override {
        return asked(error, [&] {
            Request& mine = request(shape.n);
            if (mine.pixels != pixels || !(mine.shape == shape)) {
                const ov::Shape sides{size_t(shape.n), size_t(shape.height), size_t(shape.width), 3};
                mine.pixels = nullptr;
                mine.request.set_input_tensor(ov::Tensor(ov::element::u8, sides, const_cast<uint8_t*>(pixels)));
                mine.pixels = pixels, mine.shape = shape;
            }
            mine.request.infer();
            const size_t n = size_t(shape.n) * engine_->labels;
            copy(mine.request.get_output_tensor(mine.probabilities), answers.probabilities, n);
            copy(mine.request.get_output_tensor(mine.members), answers.member_probabilities, n * engine_->members);
            if (answers.entropy)
                copy(mine.request.get_output_tensor(mine.entropy), answers.entropy, size_t(shape.n) * engine_->entropy);
        });
    }

private:
    struct Request {
        ov::InferRequest request;
        size_t probabilities, members, entropy;
        const uint8_t* pixels = nullptr;  // what the request's input stands for now
        Shape shape;
    };

    Request& request(int64_t batch) {
        const auto found = requests_.find(batch);
        if (found != requests_.end()) return found->second;
        const Compiled& compiled = engine_->prepare(batch);
        Request made{const_cast<ov::CompiledModel&>(compiled.model).create_infer_request(), compiled.probabilities,
                     compiled.members, compiled.entropy, nullptr, {}};
        return requests_.emplace(batch, std::move(made)).first->second;
    }

    static void copy(const ov::Tensor& tensor, float* to, size_t count) {
        if (tensor.get_size() != count) throw other_outputs();
        std::memcpy(to, tensor.data<const float>(), count * sizeof(float));
    }

    template <typename Work>
    static edgemed_status asked(Message& error, Work work) noexcept {
        return guarded(error, "refuses the graph or the request", "; build the bundle again", work);
    }

    std::shared_ptr<OpenVinoEngine> engine_;
    std::map<int64_t, Request> requests_;
    Bytes staging_;
};

class OpenVino : public Runtime {
public:
    const char* name() const noexcept override { return "openvino"; }
    bool takes_plans() const noexcept override { return false; }

    edgemed_status available(Here& here, Message& why_not) noexcept override {
        return guarded(why_not, "has no CPU plugin", "", [&] {
            ov::Core().get_property("CPU", ov::device::full_name);
            const auto [device, capability] = cpu();
            Here::put(here.version, ov::get_openvino_version().buildNumber);
            Here::put(here.device, device);
            Here::put(here.capability, capability);
        });
    }

    Session* open(const Source& source, Message& error) noexcept override {
        Session* made = nullptr;
        guarded(error, "refuses the graph", "; build the bundle again",
                [&] { made = new OpenVinoSession(std::make_shared<OpenVinoEngine>(source)); });
        return made;
    }
};

}  // namespace

Runtime& openvino_runtime() {
    static OpenVino runtime;
    return runtime;
}

}  // namespace edgemed::impl
