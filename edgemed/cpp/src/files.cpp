#include "files.hpp"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <pwd.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>

namespace edgemed::impl {
namespace {

namespace fs = std::filesystem;

struct Descriptor {
    int number;
    ~Descriptor() {
        if (number >= 0) ::close(number);
    }
};

std::string first_line(const std::string& path) {
    std::ifstream stream(path);
    std::string line;
    std::getline(stream, line);
    return line;
}

// Whole CPUs that a container may use (cgroup 2: "MICROSECONDS PERIOD", or "max PERIOD"); very many without one.
long quota(const std::string& path) {
    long allowed = 0, period = 0;
    if (std::sscanf(first_line(path).c_str(), "%ld %ld", &allowed, &period) != 2 || period <= 0) return 1L << 20;
    return allowed / period;
}

[[noreturn]] void cannot_write(const std::string& path) {
    throw Error(EDGEMED_ERROR_INTERNAL, "cannot write " + path + ": " + std::strerror(errno));
}

// HOME, or where it is not set, as for many a service, what the system knows of this user.
std::string home_folder() {
    if (const char* home = std::getenv("HOME"); home && *home) return home;
    struct passwd entry{}, *found = nullptr;
    std::vector<char> text(1 << 14);
    if (::getpwuid_r(::getuid(), &entry, text.data(), text.size(), &found) != 0 || !found || !*found->pw_dir)
        throw Error(EDGEMED_ERROR_INTERNAL, "no home folder: HOME is not set, and this user is not known");
    return found->pw_dir;
}

// Without it, OpenSSL would ask on the terminal.
int no_passphrase(char*, int, int, void*) { return -1; }

}  // namespace

Bytes plain_content(const std::string& path, size_t limit) {
    // Opened by descriptor, so that a link put there after a check is refused too.
    Descriptor file{::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC)};
    struct stat status{};
    if (file.number < 0 || ::fstat(file.number, &status) != 0)
        throw Error(EDGEMED_ERROR_BUNDLE, "cannot read " + path + ": " + std::strerror(errno) + "; " + again);
    Bytes data(std::min(limit, size_t(std::max<off_t>(status.st_size, 0)) + 1));  // one more, to see the end
    size_t have = 0;
    while (have < data.size()) {
        const ssize_t got = ::read(file.number, data.data() + have, data.size() - have);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            throw Error(EDGEMED_ERROR_BUNDLE, "cannot read " + path + ": " + std::strerror(errno) + "; " + again);
        if (got == 0) break;
        have += size_t(got);
    }
    data.resize(have);
    return data;
}

Bytes key_content(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    Bytes data(1 << 16);
    stream.read(reinterpret_cast<char*>(data.data()), std::streamsize(data.size()));
    if (!stream.is_open() || stream.bad())
        throw Error(EDGEMED_ERROR_BUNDLE, "cannot read the key " + path + ": " + std::strerror(errno));
    data.resize(size_t(stream.gcount()));
    if (data.empty()) throw Error(EDGEMED_ERROR_BUNDLE, "the key " + path + " is empty; put the public key there again");
    return data;
}

std::string sha256_of(const void* data, size_t size) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    if (EVP_Digest(data, size, digest, &length, EVP_sha256(), nullptr) != 1)
        throw Error(EDGEMED_ERROR_INTERNAL, "OpenSSL cannot compute a sha256");
    std::string text;
    for (unsigned k = 0; k < length; ++k) {
        text += "0123456789abcdef"[digest[k] >> 4];
        text += "0123456789abcdef"[digest[k] & 15];
    }
    return text;
}

void write_atomic(const std::string& path, const void* data, size_t size) {
    const fs::path target(path);
    const std::string temporary = (target.parent_path() / ("." + target.filename().string() + ".tmp")).string();
    {
        Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
        if (file.number < 0) cannot_write(path);
        const char* from = static_cast<const char*>(data);
        for (size_t left = size; left > 0;) {
            const ssize_t wrote = ::write(file.number, from, left);
            if (wrote < 0 && errno == EINTR) continue;
            if (wrote < 0) cannot_write(path);
            from += wrote, left -= size_t(wrote);
        }
        if (::fsync(file.number) != 0) cannot_write(path);
    }
    if (std::rename(temporary.c_str(), path.c_str()) != 0) cannot_write(path);
}

Lock::Lock(const std::string& folder) : file_(::open((folder + "/lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)) {
    if (file_ < 0) cannot_write(folder + "/lock");
    ::flock(file_, LOCK_EX);
}

Lock::~Lock() {
    ::flock(file_, LOCK_UN);  // outright: a process that was forked meanwhile holds the file open
    ::close(file_);
}

std::string cache_folder(const std::string& runtime, std::initializer_list<std::string> key) {
    const char* configured = std::getenv("XDG_CACHE_HOME");
    fs::path folder = configured && *configured == '/' ? fs::path(configured) : fs::path(home_folder()) / ".cache";
    std::string joined;
    for (const std::string& part : key) joined += (joined.empty() ? "" : "\n") + part;
    std::error_code failed;
    fs::create_directories(folder, failed);
    for (const std::string& part : {std::string("edgemed"), runtime, sha256_of(joined.data(), joined.size()).substr(0, 32)}) {
        folder /= part;
        struct stat status{};
        if ((::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) || ::stat(folder.c_str(), &status) != 0)
            cannot_write(folder.string());
        if (status.st_uid != ::getuid())
            throw Error(EDGEMED_ERROR_INTERNAL, folder.string() + " belongs to another user");
        if ((status.st_mode & 077) && ::chmod(folder.c_str(), 0700) != 0) cannot_write(folder.string());
    }
    if (::access(folder.c_str(), W_OK | X_OK) != 0) cannot_write(folder.string());
    return folder.string();
}

int usable_cores() {
    cpu_set_t mine;
    CPU_ZERO(&mine);
    if (::sched_getaffinity(0, sizeof mine, &mine) != 0) return 1;  // more than 1024 CPUs, which no device has
    std::set<std::string> cores;
    for (int number = 0; number < CPU_SETSIZE; ++number) {
        if (!CPU_ISSET(number, &mine)) continue;
        const std::string cpu = std::to_string(number);
        const std::string siblings = first_line("/sys/devices/system/cpu/cpu" + cpu + "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? cpu : siblings);
    }
    return int(std::max(1L, std::min(long(cores.size()), quota("/sys/fs/cgroup/cpu.max"))));
}

void verify_signature(const Bytes& public_key, const void* data, size_t size, const Bytes& signature,
                      const std::string& where) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> text(BIO_new_mem_buf(public_key.data(), int(public_key.size())),
                                                         BIO_free);
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
        text ? PEM_read_bio_PUBKEY(text.get(), nullptr, no_passphrase, nullptr) : nullptr, EVP_PKEY_free);
    ERR_clear_error();  // the host's own OpenSSL calls must not find our failures
    if (!key || EVP_PKEY_id(key.get()) != EVP_PKEY_ED25519)
        throw Error(EDGEMED_ERROR_BUNDLE,
                    "the public key is not an Ed25519 key in PEM; make one with `openssl genpkey -algorithm ed25519 -out "
                    "key.pem` and `openssl pkey -in key.pem -pubout`");
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    if (!context || EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) != 1 ||
        EVP_DigestVerify(context.get(), signature.data(), signature.size(), static_cast<const unsigned char*>(data),
                         size) != 1) {
        ERR_clear_error();
        throw Error(EDGEMED_ERROR_BUNDLE,
                    "the signature of " + where +
                        " is not by the given key: the file or the signature was changed, or the key is another one; "
                        "get the bundle, or the public key, again from who signed it");
    }
}

}  // namespace edgemed::impl
