#include "manifest.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <set>
#include <tuple>

#include "document.hpp"

namespace edgemed::impl {
namespace {

constexpr int64_t max_count = int64_t(1) << 62, max_side = int64_t(1) << 20;

bool is_part(const std::string& part) {
    const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); };
    return !part.empty() && part.size() <= 100 && plain(part[0]) &&
           std::all_of(part.begin(), part.end(), [&](char c) { return plain(c) || c == '.' || c == '_' || c == '-'; });
}

// A name that cannot leave the bundle, or stand for the manifest or a plan: parts of plain ASCII joined by `/`.
void check_file_name(const std::string& name, const std::string& place) {
    std::vector<std::string> parts(1);
    for (const char c : name) {
        if (c == '/') parts.emplace_back();
        else parts.back() += c;
    }
    if (parts.size() > 4 || !std::all_of(parts.begin(), parts.end(), is_part))
        throw FieldError(place, "'" + printable(name) + "' is not a plain file name inside the bundle");
    if (parts[0] == "manifest.json" || parts[0] == "manifest.sig" || parts[0] == "plans")
        throw FieldError(place, "'" + name + "' cannot be listed as a file of the bundle");
}

bool is_bundle_id(const std::string& text) {
    return text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool is_plan_id(const std::string& text) {
    return !text.empty() && text.size() <= 80 && text[0] != '.' && text[0] != '_' && text[0] != '-' &&
           text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789._-") == std::string::npos;
}

void check_distinct(const std::vector<std::string>& names, const char* place) {
    if (std::set<std::string>(names.begin(), names.end()).size() != names.size())
        throw FieldError(place, "a name stands twice");
}

// Whether fields are all null (false) or all given (true); some of each is an error.
bool together(Fields& fields, std::initializer_list<const char*> names) {
    size_t missing = 0;
    for (const char* name : names) missing += fields.null(name);
    if (missing != 0 && missing != names.size())
        throw FieldError(fields.place(*names.begin()), "and the fields that belong to it must be given together");
    return missing == 0;
}

OperatingPoint operating_point_from(Json& document, const std::vector<std::string>& labels) {
    Fields fields(document, "operating_point");
    OperatingPoint point;
    fields.integer("images", 0, max_count);
    if (together(fields, {"positive", "threshold", "target", "target_value"})) {
        const std::string positive = fields.text("positive");
        const auto found = std::find(labels.begin(), labels.end(), positive);
        if (found == labels.end()) throw FieldError("operating_point", "names '" + positive + "', which is not a label");
        point.positive = size_t(found - labels.begin());
        point.threshold = fields.number("threshold", 0, 1);
        fields.choice("target", {"sensitivity", "specificity"});
        fields.number("target_value", 0, 1);
    }
    if (!fields.null("max_disagreement")) point.max_disagreement = fields.number("max_disagreement", 0, 1);
    if (together(fields, {"coverage", "min_probability"})) {
        fields.number("coverage", 0, 1);
        point.min_probability = fields.number("min_probability", 0, 1);
    }
    fields.done();
    return point;
}

FileEntry file_entry_from(Json& document, const std::string& place) {
    Fields fields(document, place);
    const FileEntry entry{fields.matching("sha256", "a sha256 in hex", is_sha256),
                          size_t(fields.integer("bytes", 0, max_count))};
    fields.done();
    return entry;
}

std::string digest_without(Json document, std::initializer_list<const char*> names) {
    for (const char* name : names) document.erase(name);
    const std::string text = canonical_bytes(document);
    return sha256_of(text.data(), text.size());
}

Place place_from(Json& document) {
    Fields fields(document, "certificate.place");
    Place place;
    place.runtime = fields.choice("runtime", {"tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"});
    place.version = fields.text("version");
    place.precision = fields.choice("precision", {"fp32", "fp16"});
    place.device = fields.text("device");
    place.capability = fields.text("capability");
    place.os = fields.text("os");
    place.architecture = fields.text("architecture");
    fields.done();
    return place;
}

void read_certificate(Json& document, PlanRecord& record) {
    Fields fields(document, "certificate");
    record.certified_bundle = fields.matching("bundle_id", "16 hex digits", is_bundle_id);
    fields.matching("created", "a time", is_time);
    fields.integer("images", 1, INT64_MAX);
    fields.number("max_prob_error", 0, DBL_MAX);
    fields.number("mean_prob_error", 0, DBL_MAX);
    fields.integer("unclear", 0, max_count);
    for (const Json& flip : fields.array("flips"))
        if (!flip.is_string() || !is_sha256(flip.get_ref<const std::string&>()))
            throw FieldError("certificate.flips", "holds what is not a sha256 in hex");
    if (!fields.null("auroc_change")) {
        Fields change(fields.object("auroc_change"), "certificate.auroc_change");
        change.number("value", -DBL_MAX, DBL_MAX);
        for (const char* name : {"low", "high"})
            if (!change.null(name)) change.number(name, -DBL_MAX, DBL_MAX);
        change.done();
    }
    Fields gates(fields.object("gates"), "certificate.gates");
    gates.integer("max_flips", 0, max_count);
    gates.number("max_prob_error", 0, DBL_MAX);
    if (!gates.null("max_auroc_drop")) gates.number("max_auroc_drop", 0, DBL_MAX);
    gates.done();
    record.certified_place = place_from(fields.object("place"));
    fields.done();
}

}  // namespace

bool Place::operator==(const Place& other) const {
    const auto all = [](const Place& p) {
        return std::tie(p.runtime, p.version, p.precision, p.device, p.capability, p.os, p.architecture);
    };
    return all(*this) == all(other);
}

Manifest manifest_from(const Bytes& data, const std::string& where) {
    return document_from(data, where, [&](Json& document) {
        Fields fields(document, "");
        Manifest manifest;
        fields.integer("schema_version", 1, 1);
        manifest.bundle_id = fields.matching("bundle_id", "16 hex digits", is_bundle_id);
        const std::string checksum = fields.matching("checksum", "a sha256 in hex", is_sha256);
        fields.matching("created", "a time", is_time);
        fields.text("edgemed_version");
        fields.text("backbone");
        manifest.labels = fields.texts("labels", 2);
        manifest.member_names = fields.texts("member_names", 1);
        check_distinct(manifest.labels, "labels");
        check_distinct(manifest.member_names, "member_names");
        const std::vector<double> temperatures = fields.numbers("temperatures");
        for (const double value : temperatures)
            if (!(value > 0)) throw FieldError("temperatures", "should be greater than 0");
        if (temperatures.size() != manifest.member_names.size())
            throw FieldError("temperatures", "must have one value per member");
        Fields input(fields.object("input"), "input");
        input.choice("layout", {"NHWC"});
        input.choice("dtype", {"uint8"});
        input.choice("colour", {"RGB"});
        manifest.min_side = input.integer("min_side", 1, max_side);
        manifest.opt_side = input.integer("opt_side", manifest.min_side, max_side);
        manifest.max_side = input.integer("max_side", manifest.opt_side, max_side);
        input.done();
        const int64_t size = fields.integer("size", 1, max_side);
        const bool entropy = fields.flag("entropy");
        if (entropy && size % 32)
            throw FieldError("entropy", "is of 32-pixel patches, and size " + std::to_string(size) + " has no whole ones");
        if (entropy) manifest.entropy_side = size / 32;
        fields.integer("flops", 0, max_count);
        fields.integer("weight_bytes", 0, max_count);
        if (!fields.null("operating_point"))
            manifest.operating_point = operating_point_from(fields.at("operating_point"), manifest.labels);
        for (auto& item : fields.object("files").items()) {
            check_file_name(item.key(), "files." + item.key());
            manifest.files[item.key()] = file_entry_from(item.value(), "files." + item.key());
        }
        for (const char* name : {"model.fp32.onnx", "golden/outputs.json"})
            if (!manifest.files.count(name)) throw FieldError("files", std::string("must list ") + name);
        fields.done();
        if (digest_without(document, {"bundle_id", "checksum", "created", "edgemed_version"}).substr(0, 16) !=
                manifest.bundle_id ||
            digest_without(document, {"checksum"}) != checksum)
            throw Error(EDGEMED_ERROR_BUNDLE, where + " was changed after the build; " + again);
        return manifest;
    });
}

PlanRecord record_from(const Bytes& data, const std::string& where) {
    return document_from(data, where, [&](Json& document) {
        Fields fields(document, "");
        PlanRecord record;
        record.document = data;
        fields.integer("schema_version", 1, 1);
        record.id = fields.matching("id", "a plan's id", is_plan_id);
        record.created = fields.matching("created", "a time", is_time);
        record.onnx_sha256 = fields.matching("onnx_sha256", "a sha256 in hex", is_sha256);
        record.precision = fields.choice("precision", {"fp32", "fp16"});
        record.runtime = fields.choice("runtime", {"tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"});
        record.version = fields.text("version");
        record.targets = fields.texts("targets", 0);
        record.os = fields.text("os");
        record.architecture = fields.text("architecture");
        fields.range("batch", record.batch);
        fields.range("image_side", record.image_side);
        record.state = fields.choice("state", {"built", "self-tested", "certified"});
        if (!fields.null("sha256")) record.sha256 = fields.matching("sha256", "a sha256 in hex", is_sha256);
        if (!fields.null("bytes")) record.bytes = size_t(fields.integer("bytes", 0, max_count));
        if (!fields.null("certificate")) read_certificate(fields.object("certificate"), record);
        fields.done();
        return record;
    });
}

}  // namespace edgemed::impl
