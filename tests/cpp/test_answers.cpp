// What Python answered (golden_files.py), C++ answers on OpenVINO: 1e-6 in every probability, and every decision.
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "check.hpp"
#include "edgemed.hpp"

namespace {

using Json = nlohmann::json;
constexpr double tolerance = 1e-6;
const std::map<std::string, edgemed_format> formats = {
    {"RGB", EDGEMED_RGB}, {"BGR", EDGEMED_BGR}, {"RGBA", EDGEMED_RGBA}, {"GRAY8", EDGEMED_GRAY8}};

std::vector<edgemed::Prediction> predicted(edgemed::Model& model, const Json& item, const std::string& data) {
    if (item.contains("encoded")) {
        const auto file = content(data + "/" + item["encoded"].get<std::string>());
        return {model.predict_encoded(file.data(), file.size())};
    }
    std::vector<std::vector<unsigned char>> memory;
    std::vector<edgemed_image> images;
    for (const Json& image : item["images"]) {
        memory.push_back(content(data + "/" + image["file"].get<std::string>()));
        const ptrdiff_t stride = image["stride"];
        const int height = image["height"];
        const unsigned char* first = memory.back().data() + (stride < 0 ? -stride * (height - 1) : 0);
        images.push_back({first, height, image["width"], stride, formats.at(image["format"])});
    }
    return model.predict(images.data(), images.size());
}

void compare(const edgemed::Model& model, const Json& item, const std::vector<edgemed::Prediction>& found) {
    const std::string name = item["name"];
    CHECK(found.size() == item["probabilities"].size(), "%s", name.c_str());
    for (std::size_t i = 0; i < found.size(); ++i) {
        const std::size_t labels = model.labels().size();
        for (std::size_t k = 0; k < labels; ++k) {
            const double expected = item["probabilities"][i][k];
            CHECK(std::fabs(found[i].probabilities[k] - expected) <= tolerance, "%s %zu", name.c_str(), i);
            for (std::size_t m = 0; m < model.members().size(); ++m) {
                const double share = item["members"][i][m][k];
                CHECK(std::fabs(found[i].members[m * labels + k] - share) <= tolerance, "%s %zu", name.c_str(), i);
            }
        }
        CHECK(found[i].decision == item["decisions"][i], "%s %zu: %s", name.c_str(), i, found[i].decision.c_str());
        CHECK(std::fabs(found[i].disagreement - item["disagreements"][i].get<double>()) <= tolerance, "%s", name.c_str());
        CHECK(found[i].has_set == !item["sets"][i].is_null(), "%s", name.c_str());
        std::vector<float> map;
        for (const Json& row : item["entropy"][i])
            for (const Json& bits : row) map.push_back(bits);
        CHECK(found[i].entropy.size() == map.size() && map.empty() == (item["bundle"] == "bundle"), "%s", name.c_str());
        for (std::size_t k = 0; k < map.size(); ++k)
            CHECK(std::fabs(found[i].entropy[k] - map[k]) <= 1e-5, "%s %zu", name.c_str(), i);
        Json set = Json::array();
        for (const std::size_t label : found[i].set) set.push_back(model.labels()[label]);
        CHECK(!found[i].has_set || set == item["sets"][i], "%s %zu", name.c_str(), i);
    }
}

void a_wider_image_in_the_same_memory_is_another(edgemed::Model& model) {
    std::vector<unsigned char> pixels(3 * 20 * 40, 10);
    for (std::size_t k = 3 * 20 * 20; k < pixels.size(); k += 3) pixels[k] = 250;
    const edgemed_image narrow{pixels.data(), 20, 20, 0, EDGEMED_RGB}, wide{pixels.data(), 20, 40, 0, EDGEMED_RGB};
    const auto first = model.predict(narrow).probabilities, second = model.predict(wide).probabilities;
    CHECK(first != second && second == model.clone().predict(wide).probabilities);
}

}  // namespace

int main(int, char** arguments) {
    const std::string data = arguments[1];
    const auto text = content(data + "/cases.json");
    const Json golden = Json::parse(text.begin(), text.end());
    CHECK(golden["version"] == 3, "golden files of another version: delete %s", data.c_str());
    edgemed_options options = edgemed_options_default();
    options.runtime = "openvino";
    options.threads = 1;
    options.self_test = 1;
    std::map<std::string, std::unique_ptr<edgemed::Model>> models;
    std::map<std::string, int> decisions;
    std::set<std::size_t> sizes;
    for (const Json& item : golden["cases"]) {
        auto& model = models[item["bundle"]];
        if (!model) model = std::make_unique<edgemed::Model>(data + "/" + item["bundle"].get<std::string>(), options);
        compare(*model, item, predicted(*model, item, data));
        for (const Json& decision : item["decisions"]) ++decisions[decision];
        for (const Json& set : item["sets"])
            if (!set.is_null()) sizes.insert(set.size());
    }
    CHECK(models.size() == 2 && golden["cases"].size() > 30);
    CHECK(decisions.size() == 4);  // each label, and "refer": the golden files reach every branch
    CHECK(sizes.count(0) && sizes.count(1) && sizes.size() > 2);  // an empty set is one, too
    a_wider_image_in_the_same_memory_is_another(*models["bundle"]);
    CHECK(models["bundle"]->runtime() == "openvino");
    CHECK(models["bundle"]->reason() == "openvino: asked for by name");
    const edgemed::Model kept = std::move(*models["bundle"]);
    CHECK(kept.runtime() == "openvino" && models["bundle"]->runtime().empty() && models["bundle"]->reason().empty());
    return result();
}
