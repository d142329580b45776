#include "bundle.hpp"

#include <algorithm>
#include <filesystem>

#include "document.hpp"

namespace edgemed::impl {
namespace {

namespace fs = std::filesystem;

constexpr size_t max_document_bytes = size_t(4) << 20;

Error bundle_error(const std::string& text) { return Error(EDGEMED_ERROR_BUNDLE, text); }

Bytes document_content(const std::string& path) {
    Bytes data = plain_content(path, max_document_bytes + 1);
    if (data.size() > max_document_bytes)
        throw bundle_error(path + " is larger than " + std::to_string(max_document_bytes) + " bytes, which no " +
                           fs::path(path).filename().string() + " is; " + again);
    return data;
}

Bytes verified_content(const std::string& path, const FileEntry& entry) {
    Bytes data = plain_content(path, entry.bytes + 1);
    if (data.size() != entry.bytes)
        throw bundle_error(path + " has not the " + std::to_string(entry.bytes) + " bytes that were built; " + again);
    if (sha256_of(data.data(), data.size()) != entry.sha256)
        throw bundle_error(path + " was changed after the build (its sha256 differs); " + again);
    return data;
}

// Length of every file below `folder`, by its name with `/`; a link or a special file is an error.
std::map<std::string, size_t> files_below(const fs::path& folder) {
    std::map<std::string, size_t> found;
    std::vector<fs::path> paths;
    std::error_code gone;
    for (fs::recursive_directory_iterator entry(folder), end; entry != end; entry.increment(gone))
        paths.push_back(entry->path());
    if (gone) throw fs::filesystem_error("", gone);
    std::sort(paths.begin(), paths.end());
    for (const fs::path& path : paths) {
        const fs::file_status status = fs::symlink_status(path, gone);
        if (status.type() == fs::file_type::not_found) continue;  // a temporary file of a plan that is being added
        if (status.type() == fs::file_type::none) throw fs::filesystem_error("", gone);
        if (fs::is_symlink(status))
            throw bundle_error(path.string() +
                               " is a symbolic link; a bundle holds plain files: copy it with `cp -rL`");
        if (fs::is_regular_file(status)) {
            const auto size = fs::file_size(path, gone);
            if (gone && gone != std::errc::no_such_file_or_directory) throw fs::filesystem_error("", gone);
            if (!gone) found[path.lexically_relative(folder).generic_string()] = size;
        } else if (!fs::is_directory(status))
            throw bundle_error(path.string() + " is not a plain file; remove it from the bundle");
    }
    return found;
}

std::string joined(const std::string& folder, const std::string& name) { return (fs::path(folder) / name).string(); }

}  // namespace

Bundle::Bundle(std::string folder, Bytes public_key, Bytes plan_key)
    : path(std::move(folder)), plan_key_(plan_key.empty() ? public_key : std::move(plan_key)) {
    std::error_code ignored;
    if (public_key.empty() && !plan_key_.empty())
        throw Error(EDGEMED_ERROR_INPUT, "plan_key is the key of plans alone, and the bundle itself would be believed "
                                         "unsigned; give public_key too");
    if (!fs::exists(path, ignored))
        throw bundle_error(path + " does not exist; build a bundle with `edgemed build-engine RUN --out " + path + "`");
    if (!fs::is_directory(path, ignored))
        throw bundle_error(path + " is a file, not a bundle; give the folder that `edgemed build-engine` wrote");
    const std::string where = joined(path, "manifest.json");
    if (fs::symlink_status(where, ignored).type() == fs::file_type::not_found)
        throw bundle_error(path + " holds no manifest.json: no bundle, or an incomplete copy; " + again);
    std::map<std::string, size_t> found;
    try {
        found = files_below(path);
    } catch (const fs::filesystem_error& error) {
        throw bundle_error("cannot read " + path + ": " + error.code().message() + "; " + again);
    }
    const Bytes content = document_content(where);
    if (!public_key.empty()) check_signature(where, content, public_key);
    manifest = manifest_from(content, where);
    for (const auto& [name, entry] : manifest.files) {
        const auto file = found.find(name);
        if (file == found.end()) throw bundle_error(joined(path, name) + " is missing; " + again);
        if (file->second != entry.bytes)
            throw bundle_error(joined(path, name) + " has " + std::to_string(file->second) +
                               " bytes, the manifest states " + std::to_string(entry.bytes) + "; " + again);
    }
    for (const auto& [name, size] : found) {
        const bool known = manifest.files.count(name) || name == "manifest.json" || name == "manifest.sig";
        if (!known && name.compare(0, 6, "plans/") != 0 && name != "plans")
            throw bundle_error(printable(joined(path, name)) +
                               " is not listed in the manifest; remove it from the bundle");
    }
}

void Bundle::check_signature(const std::string& document, const Bytes& data, const Bytes& key) const {
    const fs::path where = fs::path(document).replace_extension(".sig");
    std::error_code ignored;
    if (fs::symlink_status(where, ignored).type() == fs::file_type::not_found)
        throw bundle_error(document + " is not signed (" + where.filename().string() +
                           " is missing); sign it with --sign KEY where it is made");
    verify_signature(key, data.data(), data.size(), plain_content(where.string(), 65), document);
}

Bytes Bundle::read(const std::string& name) const {
    return verified_content(joined(path, name), manifest.files.at(name));
}

void Bundle::verify_small_files() const {
    for (const auto& [name, entry] : manifest.files)
        if (name != "model.fp32.onnx" && name != "model.fp16.onnx") read(name);
}

std::string Bundle::model_name(const std::string& precision) const {
    if (precision != "fp32" && precision != "fp16")
        throw Error(EDGEMED_ERROR_INPUT, "precision '" + printable(precision) + "' is unknown. Known: fp16, fp32.");
    const std::string name = "model." + precision + ".onnx";
    if (!manifest.files.count(name))
        throw bundle_error(path + " holds no " + precision + " graph (" + name +
                           "); take another precision or build again");
    return name;
}

std::vector<PlanRecord> Bundle::plans() const {
    std::vector<fs::path> files;
    std::error_code none;
    for (const fs::directory_entry& entry : fs::directory_iterator(fs::path(path) / "plans", none))
        if (entry.path().extension() == ".json" && entry.path().filename().string()[0] != '.')
            files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    std::vector<PlanRecord> records;
    for (const fs::path& file : files) {
        records.push_back(record_from(document_content(file.string()), file.string()));
        if (records.back().id != file.stem().string())
            throw bundle_error(file.string() + " records the plan '" + records.back().id +
                               "': the file was renamed; build the plan again");
    }
    return records;
}

void Bundle::check_trusted(const PlanRecord& record) const {
    // Of the bytes that were read then, not of the file, which may be another one by now.
    if (!plan_key_.empty()) check_signature(joined(path, "plans/" + record.id + ".json"), record.document, plan_key_);
}

Bytes Bundle::read_plan(const PlanRecord& record) const {
    const std::string base = joined(path, "plans/" + record.id);
    if (!record.sha256 || !record.bytes)
        throw bundle_error(base + ".plan does not exist: this record certifies an ONNX file that runs without a plan");
    check_trusted(record);
    const auto source = manifest.files.find("model." + record.precision + ".onnx");
    if (source == manifest.files.end() || source->second.sha256 != record.onnx_sha256)  // it would answer too, wrongly
        throw bundle_error("plan " + record.id + " was built from another " + record.precision +
                           " graph than this bundle's; remove it from plans/, and build one with `edgemed build-engine " +
                           path + "`");
    return verified_content(base + ".plan", {*record.sha256, *record.bytes});
}

}  // namespace edgemed::impl
