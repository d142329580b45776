// libFuzzer: any bytes as a manifest, a plan record or golden outputs are a document or an error, never anything else.
//   fuzz_documents -max_total_time=600 CORPUS
#include "golden.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace edgemed::impl;
    const Bytes bytes(data, data + size);
    Manifest manifest;
    manifest.labels = {"a", "b"}, manifest.member_names = {"m"};
    manifest.files["golden/000.png"] = {};
    try { manifest_from(bytes, "manifest.json"); } catch (const Error&) {}
    try { record_from(bytes, "plans/x.json"); } catch (const Error&) {}
    manifest.entropy_side = size % 2;  // half of the inputs need a map of one patch
    try { golden_from(bytes, manifest, "golden/outputs.json"); } catch (const Error&) {}
    return 0;
}
