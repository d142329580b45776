// Files, hashes and folders. Used by the library and by its modules; nothing here knows what a bundle is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "edgemed.h"

namespace edgemed::impl {

// What the library's own code throws; it becomes a status and a message before it reaches a caller.
struct Error : std::runtime_error {
    edgemed_status status;
    Error(edgemed_status status, const std::string& text) : std::runtime_error(text), status(status) {}
};

using Bytes = std::vector<uint8_t>;

inline const char* const again = "copy the bundle again, or build it again with `edgemed build-engine`";

inline const char* const out_of_memory = "out of memory; use smaller images or batches";

// Up to `limit` bytes of a file that is not a symbolic link. Throws Error(EDGEMED_ERROR_BUNDLE).
Bytes plain_content(const std::string& path, size_t limit);

// The bytes of a key file. Throws Error(EDGEMED_ERROR_BUNDLE).
Bytes key_content(const std::string& path);

// Hex digest.
std::string sha256_of(const void* data, size_t size);

// Write beside `path`, flush, rename over it. Throws Error(EDGEMED_ERROR_INTERNAL).
void write_atomic(const std::string& path, const void* data, size_t size);

// One process at a time works in a folder of the cache; the others wait. Python holds the same lock.
class Lock {
public:
    explicit Lock(const std::string& folder);  // throws Error(EDGEMED_ERROR_INTERNAL)
    ~Lock();
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

private:
    int file_;
};

// A folder, mode 0700, for what a runtime compiles: ~/.cache/edgemed/RUNTIME/HASH-OF-KEY, or in $XDG_CACHE_HOME: the
// same one that Python uses for this key. Throws Error where it cannot be made or written, or is somebody else's.
std::string cache_folder(const std::string& runtime, std::initializer_list<std::string> key);

// Physical cores that this process may use: those of its affinity, within a container's quota.
int usable_cores();

// Throws Error unless `signature` (64 bytes) is the Ed25519 signature of the data by `public_key` (PEM). `where`: the
// signed file, for the message.
void verify_signature(const Bytes& public_key, const void* data, size_t size, const Bytes& signature,
                      const std::string& where);

}  // namespace edgemed::impl
