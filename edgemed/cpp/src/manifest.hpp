// What manifest.json and the plan records say: manifest.py's and records.py's schemas, with the same refusals.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "files.hpp"

namespace edgemed::impl {

struct FileEntry {
    std::string sha256;
    size_t bytes;
};

// See OperatingPoint in manifest.py; what is empty is not applied.
struct OperatingPoint {
    std::optional<size_t> positive;  // index of the label whose probability is compared with the threshold
    double threshold = 0;
    std::optional<double> max_disagreement, min_probability;
};

struct Manifest {
    std::string bundle_id;
    std::vector<std::string> labels, member_names;
    int64_t min_side, opt_side, max_side;
    int64_t entropy_side = 0;  // of the map of 32-pixel patches that the graphs give; 0 = they give none
    std::optional<OperatingPoint> operating_point;
    std::map<std::string, FileEntry> files;
};

struct Place {
    std::string runtime, version, precision, device, capability, os, architecture;
    bool operator==(const Place& other) const;
};

struct PlanRecord {
    std::string id, created, onnx_sha256, precision, runtime, version, os, architecture, state;
    std::vector<std::string> targets;
    int64_t batch[3], image_side[3];
    std::optional<std::string> sha256;       // of the plan; none where an ONNX file runs as it is
    std::optional<size_t> bytes;
    std::optional<Place> certified_place;    // where its certificate was made
    std::string certified_bundle;            // of which bundle: its id
    Bytes document;                          // what all of this was read from: a signature is of these very bytes

    bool certified_at(const Place& place, const std::string& bundle_id) const {
        return state == "certified" && certified_place == place && certified_bundle == bundle_id;
    }
};

// The document in `data`, the content of `where`. Throws Error(EDGEMED_ERROR_BUNDLE).
Manifest manifest_from(const Bytes& data, const std::string& where);
PlanRecord record_from(const Bytes& data, const std::string& where);

}  // namespace edgemed::impl
