// What tests/test_cpp.py asks for, as JSON on one line.
//   probe open BUNDLE [runtime=NAME] [precision=P] [public_key=FILE] [plan_key=FILE] [uncertified=1] [self_test=1]
//              [modules=DIR] [plan=ID] [threads=N]
//   probe entropy BUNDLE IMAGE    the map that OpenVINO gives of a PNG or JPEG: [E * E] bits, [] where the bundle has none
//   probe swap BUNDLE KEY RECORD  reads the records, puts another file in the first one's place, and reads its plan
//   probe decode FILE...          writes the pixels of each into FILE.rgb, after a line "HEIGHT WIDTH"
//   probe manifest|record FILE... null for each that is read, else status and message
//   probe place                   what a certificate says of this machine's CPU
//   probe visible FILE            of each text in a JSON list, whether it prints
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>

#include "bundle.hpp"
#include "check.hpp"
#include "document.hpp"
#include "edgemed.hpp"
#include "images.hpp"

namespace {

using namespace edgemed::impl;

Json opened(int count, char** arguments) {
    edgemed_options options = edgemed_options_default();
    std::vector<std::string> warnings;
    options.warn = [](const char* message, void* user) {
        static_cast<std::vector<std::string>*>(user)->push_back(message);
    };
    options.user = &warnings;
    for (int k = 3; k < count; ++k) {
        const std::string name(arguments[k], std::strcspn(arguments[k], "="));
        const char* value = arguments[k] + name.size() + 1;
        if (name == "runtime") options.runtime = value;
        if (name == "precision") options.precision = value;
        if (name == "public_key") options.public_key = value;
        if (name == "plan_key") options.plan_key = value;
        if (name == "modules") options.modules = value;
        if (name == "plan") options.plan = value;
        if (name == "threads") options.threads = std::atoi(value);
        if (name == "uncertified") options.uncertified = 1;
        if (name == "self_test") options.self_test = 1;
    }
    edgemed_model* model = nullptr;
    const int status = edgemed_open(arguments[2], &options, &model);
    if (status != EDGEMED_OK) return {{"status", status}, {"message", edgemed_last_error()}, {"warnings", warnings}};
    const char* const plan = edgemed_plan(model);
    const Json found = {{"status", 0}, {"plan", plan ? Json(plan) : Json()},
                        {"runtime", edgemed_runtime(model)}, {"reason", edgemed_reason(model)},
                        {"state", edgemed_state(model)}, {"version", edgemed_runtime_version(model)},
                        {"bundle_id", edgemed_bundle_id(model)}, {"warnings", warnings}};
    edgemed_close(model);
    return found;
}

std::vector<float> entropy(const char* bundle, const char* image) {
    edgemed_options options = edgemed_options_default();
    options.runtime = "openvino";
    options.self_test = 1;  // whose maps are nobody's answer
    edgemed::Model model(bundle, options);
    if (edgemed_entropy(model.get())) throw std::logic_error("an entropy before the first answer");
    const Bytes data = content(image);
    return model.predict_encoded(data.data(), data.size()).entropy;
}

Json swapped(char** arguments) {
    const Bytes key = key_content(arguments[3]), other = content(arguments[4]);
    const Bundle bundle(arguments[2], key, key);
    const PlanRecord record = bundle.plans().at(0);
    write_atomic(bundle.path + "/plans/" + record.id + ".json", other.data(), other.size());
    try {
        bundle.read_plan(record);
        return {{"status", 0}, {"state", record.state}};
    } catch (const Error& error) {
        return {{"status", error.status}, {"message", error.what()}};
    }
}

// Runs `work` for each file; null where it went well, else status and message.
template <typename Work>
Json each(int count, char** arguments, Work work) {
    Json found = Json::array();
    for (int k = 2; k < count; ++k) {
        found.push_back(nullptr);
        try {
            work(std::string(arguments[k]), content(arguments[k]));
        } catch (const Error& error) {
            found.back() = {{"status", error.status}, {"message", error.what()}};
        }
    }
    return found;
}

void write_pixels(const std::string& file, const Bytes& data) {
    static Picture picture;  // as a handle keeps it
    decode(data.data(), data.size(), {1, 1 << 20, 1}, picture);
    std::ofstream out(file + ".rgb", std::ios::binary);
    out << picture.height << ' ' << picture.width << '\n';
    out.write(reinterpret_cast<const char*>(picture.pixels), picture.height * picture.width * 3);
}

}  // namespace

int main(int count, char** arguments) {
    const std::string what = count > 1 ? arguments[1] : "";
    Json found;
    if (what == "open") found = opened(count, arguments);
    if (what == "entropy") found = entropy(arguments[2], arguments[3]);
    if (what == "swap") found = swapped(arguments);
    if (what == "decode") found = each(count, arguments, write_pixels);
    if (what == "manifest")
        found = each(count, arguments, [](const std::string& file, const Bytes& data) { manifest_from(data, file); });
    if (what == "record")
        found = each(count, arguments, [](const std::string& file, const Bytes& data) { record_from(data, file); });
    if (what == "place") found = {{"cpu", cpu()}, {"platform", platform()}, {"cores", usable_cores()}};
    if (what == "visible")
        for (const std::string text : Json::parse(std::ifstream(arguments[2]))) found.push_back(is_visible(text));
    std::cout << found.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    return found.is_null();
}
