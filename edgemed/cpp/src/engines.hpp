// Which engine of a bundle serves on this machine: engines.py's choice, with its reasons.
#pragma once

#include <memory>

#include "bundle.hpp"
#include "golden.hpp"
#include "runtime.hpp"

namespace edgemed::impl {

struct Engine {
    std::unique_ptr<Session> session;
    std::string runtime, version, reason;
    std::string state;  // proven: "certified" in this very place, "self-tested" where it was built, or "built"
    std::string plan;   // its id; "" where the ONNX file runs
    Taken taken;        // by the plan, if it is one
};

struct Choice {
    std::string runtime, precision;  // "auto" or a name; "fp32" or "fp16"
    std::string plan;                // a plan's id, or "": the best
    int threads;
    bool uncertified;     // "auto" may take a plan that is not certified here
    std::string modules;  // folder of the TensorRT modules
    Warn warn;
};

// The first engine of the bundle that works here, or that of the named runtime. Throws Error with every reason.
Engine open_engine(const Bundle& bundle, const Choice& choice);

#ifdef EDGEMED_OPENVINO
Runtime& openvino_runtime();
#endif

}  // namespace edgemed::impl
