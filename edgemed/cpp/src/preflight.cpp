// Whether a plan can run here, decided from its record and its first bytes, before the runtime sees any of it.
#include <sys/utsname.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "bundle.hpp"

namespace edgemed::impl {
namespace {

constexpr size_t header = 64, rtx_version = 24;  // bytes; every real plan is far longer than its header

const char* const cpu_features[] = {"amx_bf16", "amx_int8", "asimd", "asimddp",     "asimdhp",     "avx2",
                                    "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f", "avx_vnni", "bf16",
                                    "f16c", "fma", "fphp", "i8mm", "sve", "sve2"};  // sorted

std::string kind_name(const std::string& runtime) {
    return runtime == "tensorrt-rtx" ? "TensorRT-RTX" : runtime == "tensorrt" ? "classic TensorRT" : runtime;
}

std::string trimmed(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t\n\0"), last = text.find_last_not_of(std::string(" \t\n\0", 4));
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// "1.7.1" of "1.7.1.116".
std::string three_numbers(const std::string& version) {
    size_t end = 0;
    for (int k = 0; k < 3 && end != std::string::npos; ++k) end = version.find('.', end + (k > 0));
    return version.substr(0, end);
}

}  // namespace

void check_plan(const PlanRecord& record, const Bytes& plan, const Machine& here) {
    const std::string name = "plan " + record.id;
    const auto require = [&](bool fits, const std::string& what) {
        if (!fits)
            throw Error(EDGEMED_ERROR_BUNDLE, name + what + "; build one here with `edgemed build-engine BUNDLE --runtime " +
                                                  here.runtime + "`");
    };
    require(plan.size() >= header, " is cut off: " + std::to_string(plan.size()) + " bytes hold no engine");
    const std::string kind = std::memcmp(plan.data(), "vtrt", 4) == 0   ? "tensorrt-rtx"
                             : std::memcmp(plan.data(), "ftrt", 4) == 0 ? "tensorrt"
                                                                        : "";
    require(!kind.empty(), " is not a TensorRT plan: its first bytes are not an engine's");
    require(kind == record.runtime,
            " is recorded as " + kind_name(record.runtime) + ", its header is " + kind_name(kind) + "'s");
    require(kind == here.runtime, " was built for " + kind_name(kind) + ", this is " + kind_name(here.runtime));
    require(record.os == here.os, " was built for " + record.os + ", this is " + here.os);
    require(record.architecture == here.architecture,
            " was built for " + record.architecture + " machines, this is " + here.architecture);
    require(record.version == here.version,
            " was built for " + kind_name(kind) + " " + record.version + ", this is " + here.version);
    if (kind == "tensorrt-rtx") {
        std::string written;
        for (size_t k = 0; k < 3; ++k) written += (k ? "." : "") + std::to_string(plan[rtx_version + k]);
        require(written == three_numbers(here.version),
                "'s header says version " + written + ", this is TensorRT-RTX " + here.version);
    }
    std::string targets;
    for (const std::string& target : record.targets) targets += (targets.empty() ? "" : ", ") + target;
    require(std::count(record.targets.begin(), record.targets.end(), here.capability) > 0,
            " was built for " + targets + ", this GPU is " + here.capability);
}

std::pair<std::string, std::string> platform() {
    utsname names{};
    ::uname(&names);
    return {names.sysname, names.machine};
}

std::pair<std::string, std::string> cpu() {
    const std::string architecture = platform().second;
    std::ifstream stream("/proc/cpuinfo");
    std::string model;
    std::set<std::string> flags;
    for (std::string line; std::getline(stream, line);) {
        const size_t colon = line.find(':');
        if (colon == std::string::npos) continue;
        const std::string key = trimmed(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
        if (key == "model name" && model.empty()) model = value;
        if ((key == "flags" || key == "Features") && flags.empty()) {
            std::istringstream words(value);
            for (std::string word; words >> word;) flags.insert(word);
        }
    }
    if (model.empty()) {
        std::ifstream board("/proc/device-tree/model");
        std::stringstream text;
        text << board.rdbuf();
        model = trimmed(text.str());
    }
    if (model.empty()) model = architecture.empty() ? "unknown CPU" : architecture;
    std::string features;
    for (const char* feature : cpu_features)
        if (flags.count(feature)) features += (features.empty() ? "" : ",") + std::string(feature);
    return {model, architecture + ":" + features};
}

}  // namespace edgemed::impl
