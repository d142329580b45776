#include "engines.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "document.hpp"

namespace edgemed::impl {
namespace {

const char* const order[] = {"tensorrt", "tensorrt-rtx", "openvino"};

// The runtime in a module, or null with the reason. A module stays loaded: its code may be in use until the end.
Runtime* runtime_in(const std::string& file, std::string& why_not) {
    std::error_code failed;
    if (!std::filesystem::exists(file, failed)) {
        why_not = file + (failed ? ": " + failed.message() : " is not there");
        return nullptr;
    }
    void* module = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* symbol = module ? ::dlsym(module, EDGEMED_RUNTIME_SYMBOL) : nullptr;
    if (!symbol) {
        const char* reason = ::dlerror();
        why_not = reason ? reason : file + " is not a module of this library";
        return nullptr;
    }
    return reinterpret_cast<Runtime* (*)()>(symbol)();
}

// The runtime of a name, ready to use here, or null with the reason; status: EDGEMED_ERROR_INTERNAL where it is memory.
Runtime* usable_runtime(const std::string& name, const std::string& modules, Here& here, std::string& why_not,
                        edgemed_status& status) {
    Message message;
    const auto works = [&](Runtime& runtime) {
        const edgemed_status found = runtime.available(here, message);
        if (found == EDGEMED_OK) return true;
        if (found == EDGEMED_ERROR_INTERNAL) status = found;
        why_not += (why_not.empty() ? "" : "; ") + std::string(message.text);
        return false;
    };
    if (name == "openvino") {
#ifdef EDGEMED_OPENVINO
        return works(openvino_runtime()) ? &openvino_runtime() : nullptr;
#else
        why_not = "this library was built without OpenVINO";
        return nullptr;
#endif
    }
    // Newer libraries first; each module looks for its own major version of TensorRT, and works only where that is.
    const bool rtx = name == "tensorrt-rtx";
    for (const char* file : {rtx ? "edgemed_tensorrt_rtx.so" : "edgemed_tensorrt11.so", "edgemed_tensorrt10.so"}) {
        std::string reason;
        Runtime* runtime = runtime_in((std::filesystem::path(modules) / file).string(), reason);
        if (runtime && works(*runtime)) return runtime;
        if (!runtime) why_not += (why_not.empty() ? "" : "; ") + reason;
        if (rtx) break;
    }
    return nullptr;
}

Source source_of(const Bundle& bundle, const Choice& choice, const Bytes& data, const std::string& name,
                 const std::string& sha256) {
    Source source{};
    source.data = data.data(), source.size = data.size();
    source.name = name.c_str(), source.sha256 = sha256.c_str();
    source.labels = int(bundle.manifest.labels.size()), source.members = int(bundle.manifest.member_names.size());
    source.entropy_side = int(bundle.manifest.entropy_side);
    source.threads = choice.threads, source.warn = choice.warn;
    return source;
}

Session* opened(Runtime& runtime, const Source& source) {
    Message message;
    Session* session = runtime.open(source, message);
    if (!session) throw Error(message.status, message.text);
    return session;
}

// Python's module of TensorRT may leave the build number out: its "10.3.0" is this "10.3.0.30".
void complete(std::string& version, const std::string& here) {
    const bool three_numbers = std::count(version.begin(), version.end(), '.') == 2;
    if (three_numbers && here.compare(0, version.size() + 1, version + ".") == 0) version = here;
}

// The best plan for this GPU. `allowed`: one that is not certified here may run, with a warning.
Session* open_plan(const Bundle& bundle, const Choice& choice, Runtime& runtime, const Here& here, bool allowed,
                   Engine& engine) {
    const std::string name = runtime.name();
    const auto [os, architecture] = platform();
    const Machine machine{name, here.version, here.capability, os, architecture};
    const Place place{name, here.version, choice.precision, here.device, here.capability, os, architecture};
    std::vector<PlanRecord> records = bundle.plans();
    records.erase(std::remove_if(records.begin(), records.end(),
                                 [&](const PlanRecord& one) {
                                     return one.runtime != name || !one.sha256 || one.precision != choice.precision ||
                                            (!choice.plan.empty() && one.id != choice.plan);
                                 }),
                  records.end());
    if (records.empty())
        throw Error(EDGEMED_ERROR_BUNDLE, bundle.path + " holds no " + choice.precision + " plan for " + name +
                                              "; build one with `edgemed build-engine " + bundle.path + " --runtime " +
                                              name + "`");
    for (PlanRecord& record : records) {
        complete(record.version, machine.version);
        if (record.certified_place) complete(record.certified_place->version, machine.version);
    }
    std::stable_sort(records.begin(), records.end(), [&](const PlanRecord& a, const PlanRecord& b) {
        const auto rank = [&](const PlanRecord& one) { return std::pair(one.version == machine.version, one.created); };
        return rank(a) > rank(b);
    });
    const PlanRecord* best = nullptr;
    Bytes plan;
    std::vector<std::string> reasons;  // why the others, as far as they were looked at, may not run
    for (const PlanRecord& record : records) {
        try {
            Bytes content = bundle.read_plan(record);
            check_plan(record, content, machine);
            if (best && !record.certified_at(place, bundle.manifest.bundle_id)) continue;
            best = &record, plan = std::move(content);
            if (record.certified_at(place, bundle.manifest.bundle_id)) break;
        } catch (const Error& error) {
            reasons.push_back(error.what());
        }
    }
    if (!best) {
        std::string all;
        for (const std::string& reason : reasons) all += (all.empty() ? "" : "; ") + reason;
        throw Error(EDGEMED_ERROR_BUNDLE, all);
    }
    for (const std::string& reason : reasons) choice.warn(reason.c_str());
    const bool certified = best->certified_at(place, bundle.manifest.bundle_id);
    engine.state = certified ? "certified" : best->state == "self-tested" ? "self-tested" : "built";
    if (!certified && !allowed)
        throw Error(EDGEMED_ERROR_RUNTIME, "plan " + best->id + " is not certified on this machine; run `edgemed certify " +
                                               bundle.path + " DATA --runtime " + name + " --precision " +
                                               choice.precision + "`, or ask for this runtime by name");
    if (!certified)
        choice.warn(("plan " + best->id + " is not certified on this machine, and runs because it was asked for").c_str());
    Source source = source_of(bundle, choice, plan, best->id, *best->sha256);
    std::copy(best->batch, best->batch + 3, source.batch);
    std::copy(best->image_side, best->image_side + 3, source.image_side);
    engine.plan = best->id;
    engine.taken = {best->batch[0], best->image_side[0], best->image_side[2]};
    return opened(runtime, source);
}

// Whether one of the bundle's records certifies the ONNX file as it runs here.
bool onnx_certified(const Bundle& bundle, const Choice& choice, const std::string& runtime, const Here& here,
                    const std::string& sha256) {
    const auto [os, architecture] = platform();
    const Place place{runtime, here.version, choice.precision, here.device, here.capability, os, architecture};
    try {
        const std::vector<PlanRecord> records = bundle.plans();
        return std::any_of(records.begin(), records.end(), [&](const PlanRecord& one) {
            const bool mine = !one.sha256 && one.onnx_sha256 == sha256;
            if (!mine || !one.certified_at(place, bundle.manifest.bundle_id)) return false;
            try {
                bundle.check_trusted(one);
                return true;
            } catch (const Error& error) {
                choice.warn(error.what());
                return false;
            }
        });
    } catch (const Error& error) {
        choice.warn(error.what());
        return false;
    }
}

// The runtime of the plan that is asked for. Throws where there is none, or it is of another runtime or precision.
std::string runtime_of_plan(const Bundle& bundle, const Choice& choice) {
    std::string known;
    for (const PlanRecord& one : bundle.plans()) {
        if (!one.sha256) continue;
        known += (known.empty() ? "" : ", ") + one.id;
        if (one.id != choice.plan) continue;
        if (choice.runtime != "auto" && choice.runtime != one.runtime)
            throw Error(EDGEMED_ERROR_INPUT, "plan " + one.id + " is for " + one.runtime + ", not " + choice.runtime +
                                                 "; leave the runtime to \"auto\"");
        if (choice.precision != one.precision)
            throw Error(EDGEMED_ERROR_INPUT, "plan " + one.id + " is " + one.precision + "; ask for that precision");
        return one.runtime;
    }
    throw Error(EDGEMED_ERROR_INPUT, bundle.path + " holds no plan '" + printable(choice.plan) + "'" +
                                         (known.empty() ? "" : ". Known: " + known) + ".");
}

}  // namespace

Engine open_engine(const Bundle& bundle, const Choice& wanted) {
    Choice choice = wanted;
    if (!choice.plan.empty()) choice.runtime = runtime_of_plan(bundle, wanted);
    const bool named = choice.runtime != "auto";
    if (named && std::none_of(std::begin(order), std::end(order), [&](const char* name) { return choice.runtime == name; }))
        throw Error(EDGEMED_ERROR_INPUT,
                    "this library has no runtime of that name. Known: auto, openvino, tensorrt, tensorrt-rtx.");
    bundle.verify_small_files();
    const std::string model = bundle.model_name(choice.precision), sha256 = bundle.manifest.files.at(model).sha256;
    const Bytes onnx = bundle.read(model);
    std::string passed_over;
    edgemed_status status = EDGEMED_ERROR_RUNTIME;  // if none works: where one had no memory, it may another time
    for (const char* name : order) {
        if (named && choice.runtime != name) continue;
        std::string why_not;
        Here here;
        if (Runtime* runtime = usable_runtime(name, choice.modules, here, why_not, status)) {
            try {
                Engine engine;
                if (runtime->takes_plans()) {
                    engine.session.reset(
                        open_plan(bundle, choice, *runtime, here, named || choice.uncertified, engine));
                } else {
                    engine.session.reset(opened(*runtime, source_of(bundle, choice, onnx, model, sha256)));
                    engine.state = onnx_certified(bundle, choice, name, here, sha256) ? "certified" : "built";
                }
                engine.runtime = name, engine.version = here.version;
                const std::string why = !choice.plan.empty() ? "plan " + choice.plan + " was asked for"
                                        : named              ? "asked for by name"
                                                             : "the first that works here";
                engine.reason = std::string(name) + ": " + why +
                                (passed_over.empty() ? "" : " (" + passed_over + ")");
                return engine;
            } catch (const Error& error) {
                if (named) throw;
                if (error.status == EDGEMED_ERROR_INTERNAL) status = error.status;
                why_not = error.what();
                choice.warn((std::string(name) + " is passed over: " + why_not).c_str());
            }
        }
        passed_over += (passed_over.empty() ? "" : "; ") + std::string(name) + ": " + why_not;
    }
    throw Error(status, "no runtime for " + bundle.path + ": " + passed_over);
}

}  // namespace edgemed::impl
