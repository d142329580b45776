// A bundle's folder, read with every byte accounted for (bundle.py), and the checks before a plan runs (preflight.py).
#pragma once

#include "manifest.hpp"

namespace edgemed::impl {

// This machine, as a plan sees it. runtime: "tensorrt" or "tensorrt-rtx"; capability: such as "sm86".
struct Machine {
    std::string runtime, version, capability, os, architecture;
};

class Bundle {
public:
    // The bundle at `path`, its manifest checked and its files found with the right lengths. public_key, plan_key: PEM,
    // or empty: then nothing has to be signed. Throws Error(EDGEMED_ERROR_BUNDLE), with a message per kind of damage.
    Bundle(std::string path, Bytes public_key, Bytes plan_key);

    // The bytes of a listed file, read once and verified: hand on this very buffer.
    Bytes read(const std::string& name) const;

    // Every listed file but the graphs: small, and a bundle with one that was changed is not the one that was proven.
    void verify_small_files() const;

    // The name of the graph of a precision. Throws where the bundle has none.
    std::string model_name(const std::string& precision) const;

    // The records in plans/, sorted by id.
    std::vector<PlanRecord> plans() const;

    // Throws unless the record, as it was read, is signed by the plan key, where there is one.
    void check_trusted(const PlanRecord& record) const;

    // The bytes of a plan of this bundle's own graph, verified against its record, which must be signed where there is
    // a plan key.
    Bytes read_plan(const PlanRecord& record) const;

    std::string path;
    Manifest manifest;

private:
    void check_signature(const std::string& document, const Bytes& data, const Bytes& key) const;

    Bytes plan_key_;
};

// Throws Error(EDGEMED_ERROR_BUNDLE), with the command that mends it, unless the plan can run here.
void check_plan(const PlanRecord& record, const Bytes& plan, const Machine& here);

// (os, architecture) of this machine, as Python's `platform` names them: ("Linux", "aarch64").
std::pair<std::string, std::string> platform();

// (model, capability) of this machine's CPU: ("AMD EPYC 7B13", "x86_64:avx2,f16c,fma").
std::pair<std::string, std::string> cpu();

}  // namespace edgemed::impl
