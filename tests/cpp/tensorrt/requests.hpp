// Sessions of the module under test, requests whose answers are known, and what its messages say.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>

#include "check.hpp"
#include "runtime.hpp"

using namespace edgemed::impl;

constexpr int labels = 3, members = 2, entropy_side = 4;
using Pixels = std::vector<uint8_t>;
using Opened = std::unique_ptr<Session>;

inline Runtime* runtime;
inline std::vector<std::string> warnings;

inline void remember(const char* message, void*) { warnings.push_back(message); }

struct Profile {
    int64_t batch[3], side[3];
};
constexpr Profile any_size{{1, 1, 8}, {16, 48, 2048}}, fixed_size{{2, 2, 2}, {48, 48, 48}};

inline Opened open(const Profile& profile, const char* behaviour, Message& error, int side = 0) {
    const std::string plan = std::string(64, 'x') + behaviour;
    Source source{plan.data(), plan.size(), "made-by-hand", "ab", {}, {}, labels, members, side, 0, {remember, nullptr}};
    std::copy(profile.batch, profile.batch + 3, source.batch);
    std::copy(profile.side, profile.side + 3, source.image_side);
    return Opened(runtime->open(source, error));
}

inline Opened open(const Profile& profile) {
    Message error;
    Opened opened = open(profile, "", error);
    CHECK(opened, "%s", error.text);
    return opened;
}

inline Pixels noise(const Shape& shape, unsigned seed) {
    std::mt19937 random(seed);
    Pixels pixels(shape.bytes());
    for (uint8_t& value : pixels) value = uint8_t(random());
    return pixels;
}

struct Found {
    std::vector<float> probabilities, each, entropy;
    Answers answers;
    explicit Found(const Shape& shape, bool with_entropy = false)
        : probabilities(size_t(shape.n) * labels),
          each(size_t(shape.n) * members * labels),
          entropy(with_entropy ? size_t(shape.n) * entropy_side * entropy_side : 0),
          answers{probabilities.data(), each.data(), with_entropy ? entropy.data() : nullptr} {}

    // To the last bit: the bytes are noise, among them many that are not numbers.
    bool same(const Pixels& pixels) const {
        return std::memcmp(probabilities.data(), pixels.data(), probabilities.size() * 4) == 0 &&
               std::memcmp(each.data(), pixels.data(), each.size() * 4) == 0 &&
               (entropy.empty() || std::memcmp(entropy.data(), pixels.data(), entropy.size() * 4) == 0);
    }
};

// Whether the session answers a request rightly, the pixels coming from the caller's memory, or from its own.
inline bool right(Session& session, const Shape& shape, unsigned seed, bool staged = false) {
    const Pixels pixels = noise(shape, seed);
    Found found(shape);
    Message error;
    const uint8_t* from = pixels.data();
    if (staged) {
        uint8_t* const memory = session.staging(shape, error);
        if (!memory) return false;
        std::memcpy(memory, pixels.data(), pixels.size());
        from = memory;
    }
    const bool ran = session.run(from, shape, found.answers, error) == EDGEMED_OK;
    if (!ran) std::fprintf(stderr, "the message is: %s\n", error.text);
    return ran && found.same(pixels);
}

inline double median_microseconds(Session& session, const Shape& shape) {
    Message error;
    Found found(shape);
    uint8_t* const pixels = session.staging(shape, error);
    std::vector<double> times;
    for (int k = 0; k < 2000; ++k) {
        const auto start = std::chrono::steady_clock::now();
        CHECK(session.run(pixels, shape, found.answers, error) == EDGEMED_OK, "%s", error.text);
        times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(times.begin(), times.begin() + 1000, times.end());
    return times[1000];
}

inline bool says(const Message& message, const char* text) {
    if (std::strstr(message.text, text)) return true;
    std::fprintf(stderr, "the message is: %s\n", message.text);
    return false;
}
