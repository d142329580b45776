#include "golden.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "document.hpp"
#include "operating.hpp"

namespace edgemed::impl {
namespace {

constexpr double max_entropy_error = 0.02;  // gates.py's MAX_ENTROPY_ERROR

std::vector<float> row_from(const Json& list, size_t length, const std::string& place) {
    std::vector<float> row;
    if (list.is_array() && list.size() == length)  // nothing else may stand between them
        for (const Json& value : list)
            if (value.is_number() && std::isfinite(float(value.get<double>()))) row.push_back(float(value.get<double>()));
    if (row.size() != length) throw FieldError(place, "should hold " + std::to_string(length) + " finite numbers");
    return row;
}

// The figures of gates.compare_batches: each image was answered in every place of a batch.
struct Comparison {
    size_t images = 0, flips = 0;
    double worst = 0;

    // K probabilities in `truth`, and in each of the answers, which lie one behind the other.
    void add(const float* truth, const std::vector<float>& answers, size_t labels, double tie_margin) {
        const size_t best = largest(truth, labels);
        double second = -std::numeric_limits<double>::infinity();
        for (size_t k = 0; k < labels; ++k)
            if (k != best) second = std::max(second, double(truth[k]));
        const bool clear = tie_margin <= 0 || double(truth[best]) - second > tie_margin;
        bool flipped = false;
        for (const float* other = answers.data(); other != answers.data() + answers.size(); other += labels) {
            for (size_t k = 0; k < labels; ++k)
                worst = std::isfinite(other[k]) ? std::max(worst, std::fabs(double(truth[k]) - double(other[k])))
                                                : std::numeric_limits<double>::infinity();
            flipped = flipped || (largest(other, labels) != best && clear);
        }
        flips += flipped;
        ++images;
    }

    void check(double max_error, bool judge_flips, const std::string& what) const {
        char text[200] = "";
        if (judge_flips && flips > 0)
            std::snprintf(text, sizeof text, "%zu decision flips, at most 0 allowed", flips);
        else if (!(worst <= max_error))
            std::snprintf(text, sizeof text, "largest probability error %.2e, at most %g allowed", worst, max_error);
        if (*text)
            throw Error(EDGEMED_ERROR_GATE, what + " differs from its reference on " + std::to_string(images) +
                                                " images: " + text + "; do not use this engine here");
    }
};

}  // namespace

std::vector<Golden> golden_from(const Bytes& outputs, const Manifest& manifest, const std::string& where) {
    const size_t labels = manifest.labels.size(), members = manifest.member_names.size();
    return document_from(outputs, where, [&](Json& document) {
        Fields fields(document, "");
        fields.integer("schema_version", 1, 1);
        std::vector<Golden> found;
        for (Json& item : fields.array("images")) {
            const std::string place = "images." + std::to_string(found.size());
            Fields row(item, place);
            Golden golden;
            golden.file = "golden/" + row.text("file");
            if (!manifest.files.count(golden.file)) throw FieldError(place, "names a file that the bundle has not");
            golden.probabilities = row_from(row.at("probabilities"), labels, place + ".probabilities");
            const Json& table = row.array("members");
            if (table.size() != members) throw FieldError(place + ".members", "has not a row for each member");
            for (const Json& line : table) {
                const std::vector<float> values = row_from(line, labels, place + ".members");
                golden.members.insert(golden.members.end(), values.begin(), values.end());
            }
            if (const size_t side = size_t(manifest.entropy_side)) {
                const Json& map = row.array("entropy");
                if (map.size() != side) throw FieldError(place + ".entropy", "has not a row for each row of patches");
                for (const Json& line : map) {
                    const std::vector<float> values = row_from(line, side, place + ".entropy");
                    golden.entropy.insert(golden.entropy.end(), values.begin(), values.end());
                }
            }
            row.done();
            found.push_back(std::move(golden));
        }
        if (found.empty()) throw FieldError("images", "lists none");
        fields.done();
        return found;
    });
}

void self_test(const Bundle& bundle, const std::string& precision, const std::string& what, const Taken& taken,
               const std::function<const float*(const uint8_t*, const Shape&, float*, float*)>& predict) {
    if (taken.least_batch > max_batch)
        throw Error(EDGEMED_ERROR_INPUT, "the plan of " + bundle.path + " takes no batch of fewer than " +
                                             std::to_string(taken.least_batch) + " images, a request holds at most " +
                                             std::to_string(max_batch) + "; build one with a smaller --batch");
    const Manifest& manifest = bundle.manifest;
    const size_t labels = manifest.labels.size(), members = manifest.member_names.size();
    const bool half = precision == "fp16";
    const double max_error = half ? 5e-3 : 1e-3, tie_margin = half ? 1e-2 : 0;  // gates.py's default_gates, TIE_MARGINS
    const SideLimits limits{manifest.min_side, manifest.max_side, manifest.opt_side};
    double entropy_error = 0;  // of finite numbers: what is none fails the request
    Comparison whole;
    std::vector<Comparison> each(members);
    const size_t batch = size_t(taken.least_batch);
    std::vector<float> probabilities(batch * labels), shares(batch * members * labels);
    std::vector<uint8_t> pixels;
    Picture picture;
    const std::string name = "golden/outputs.json";
    for (const Golden& golden : golden_from(bundle.read(name), manifest, bundle.path + "/" + name)) {
        const Bytes file = bundle.read(golden.file);
        decode(file.data(), file.size(), limits, picture);
        if (std::min(picture.height, picture.width) < taken.smallest_side ||
            std::max(picture.height, picture.width) > taken.largest_side)
            continue;
        const Shape shape{taken.least_batch, picture.height, picture.width};
        const size_t one = shape.bytes() / batch;
        std::vector<std::vector<float>> answers(members + 1);  // of the ensemble, of each member
        // Among copies, rows that are mixed up would not show. So a request holds the image in the places whose number
        // has a certain bit (or has it not), and its negative in the others: any two places differ in one.
        for (size_t request = 0; request < 2 || (batch - 1) >> request / 2; ++request) {
            const auto holds = [&](size_t place) { return (place >> request / 2 & 1) == request % 2; };
            if (batch == 1 && !holds(0)) continue;
            pixels.resize(shape.bytes());
            for (size_t place = 0; place < batch; ++place)
                std::transform(picture.pixels, picture.pixels + one, pixels.data() + place * one,
                               [&](uint8_t value) { return holds(place) ? value : uint8_t(255 - value); });
            const float* entropy = predict(pixels.data(), shape, probabilities.data(), shares.data());
            for (size_t place = 0; place < batch; ++place) {
                if (!holds(place)) continue;
                const float* row = probabilities.data() + place * labels;
                answers[0].insert(answers[0].end(), row, row + labels);
                for (size_t m = 0; m < members; ++m) {
                    const float* share = shares.data() + (place * members + m) * labels;
                    answers[m + 1].insert(answers[m + 1].end(), share, share + labels);
                }
                for (size_t k = 0, values = golden.entropy.size(); k < values; ++k)
                    entropy_error = std::max(
                        entropy_error, std::fabs(double(entropy[place * values + k]) - double(golden.entropy[k])));
            }
        }
        whole.add(golden.probabilities.data(), answers[0], labels, tie_margin);
        for (size_t m = 0; m < members; ++m)
            each[m].add(golden.members.data() + m * labels, answers[m + 1], labels, tie_margin);
    }
    if (!whole.images)
        throw Error(EDGEMED_ERROR_INPUT, "no golden image of " + bundle.path + " has a size that this plan takes");
    whole.check(max_error, true, what);
    // A member alone decides nothing, so only its probabilities are judged.
    for (size_t m = 0; m < members; ++m) each[m].check(max_error, false, what + ", member " + manifest.member_names[m] + ",");
    if (entropy_error > max_entropy_error) {
        char text[120];
        std::snprintf(text, sizeof text, " differs from the reference's entropy: largest error %.2e bits, at most %g allowed",
                      entropy_error, max_entropy_error);
        throw Error(EDGEMED_ERROR_GATE, what + text + "; do not use this engine here");
    }
}

}  // namespace edgemed::impl
