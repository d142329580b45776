// A module that stands for TensorRT-RTX 1.7.1.116 on an sm86: it shows what the library does around a runtime, without
// one. Member m's share of label k is proportional to 1 + the mean of channel (k + m) % 3; an entropy map counts from
// the mean of red on; device memory is host memory.
// The first pixel makes it misbehave: (255, 0, 1) fails the request, (255, 0, 2) answers with a NaN, (255, 0, 8) and
// (255, 0, 9) with one of the last member and in the map, (255, 0, 7) is off by a bit in the maps after the first. A plan
// whose text after its header of 64 bytes is "wrong", "full" or "fails" is not opened, for a reason of that kind, and
// "threads" warns of how many it was given; pixels of 511 rows find no memory, and no clone does after them.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "runtime.hpp"

namespace {

using namespace edgemed::impl;

constexpr size_t header = 64;  // of a plan

struct Plan {
    std::unique_ptr<uint8_t[]> bytes;
    int labels, members, entropy_side;
    int64_t batch[3], image_side[3];
};

class StubSession : public Session {
public:
    explicit StubSession(std::shared_ptr<Plan> plan) : plan_(std::move(plan)) {}
    ~StubSession() override { std::free(staging_); }

    Session* clone(Message& error) noexcept override {
        if (!full_) return new (std::nothrow) StubSession(plan_);
        error.set(EDGEMED_ERROR_INTERNAL, "the stub has no memory for a clone");
        return nullptr;
    }

    uint8_t* staging(const Shape& shape, Message& error) noexcept override {
        full_ = shape.height == 511;
        if (full_ || shape.bytes() > size_) {
            std::free(staging_);
            staging_ = full_ ? nullptr : static_cast<uint8_t*>(std::malloc(shape.bytes()));
            size_ = staging_ ? shape.bytes() : 0;
        }
        if (!staging_) error.set(EDGEMED_ERROR_INTERNAL, "the stub is out of memory");
        return staging_;
    }

    edgemed_status run(const uint8_t* pixels, const Shape& shape, const Answers& answers,
                       Message& error) noexcept override {
        if (shape.n > plan_->batch[2]) return error.set(EDGEMED_ERROR_INPUT, "the stub's plan takes smaller batches");
        const auto [low, high] = std::minmax(shape.height, shape.width);
        if (low < plan_->image_side[0] || high > plan_->image_side[2])
            return error.set(EDGEMED_ERROR_INPUT, "the stub's plan takes other sides");
        const size_t labels = size_t(plan_->labels), members = size_t(plan_->members);
        const size_t area = size_t(shape.height * shape.width);
        for (int64_t n = 0; n < shape.n; ++n, pixels += 3 * area) {
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 1)
                return error.set(EDGEMED_ERROR_RUNTIME, "the stub fails, as it was told");
            double sums[3] = {0, 0, 0};
            for (size_t k = 0; k < 3 * area; ++k) sums[k % 3] += pixels[k];
            float* mean = answers.probabilities + size_t(n) * labels;
            float* each = answers.member_probabilities + size_t(n) * members * labels;
            std::memset(mean, 0, labels * sizeof(float));
            for (size_t m = 0; m < members; ++m, each += labels) {
                double total = 0;
                for (size_t k = 0; k < labels; ++k) total += 1 + sums[(k + m) % 3] / double(area);
                for (size_t k = 0; k < labels; ++k) {
                    each[k] = float((1 + sums[(k + m) % 3] / double(area)) / total);
                    mean[k] += each[k] / float(members);
                }
            }
            const size_t values = size_t(plan_->entropy_side) * size_t(plan_->entropy_side);
            for (size_t k = 0; k < values; ++k) answers.entropy[size_t(n) * values + k] = float(sums[0] / double(area)) + float(k);
            float* const map = answers.entropy ? answers.entropy + size_t(n) * values : nullptr;
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 7 && n > 0 && map) map[values - 1] += 1;
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 8) each[-1] = std::nanf("");
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 9 && map) map[values - 1] = std::nanf("");
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 2) mean[labels - 1] = std::nanf("");
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 3 && n > 0) std::swap(mean[0], mean[1]);
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 5) std::copy_n(answers.probabilities, labels, mean);
            if (pixels[0] == 255 && pixels[1] == 0 && pixels[2] == 6 && n > 1) std::copy_n(mean - 2 * labels, labels, mean);
        }
        return EDGEMED_OK;
    }

    edgemed_status run_device(const void* pixels, const Shape& shape, void* stream, const Answers& answers,
                              Message& error) noexcept override {
        if (!stream) return error.set(EDGEMED_ERROR_INPUT, "the stub wants a stream");
        return run(static_cast<const uint8_t*>(pixels), shape, answers, error);
    }

private:
    std::shared_ptr<Plan> plan_;
    uint8_t* staging_ = nullptr;
    size_t size_ = 0;
    bool full_ = false;
};

class Stub : public Runtime {
public:
    const char* name() const noexcept override { return "tensorrt-rtx"; }
    bool takes_plans() const noexcept override { return true; }

    edgemed_status available(Here& here, Message&) noexcept override {
        std::strcpy(here.version, "1.7.1.116");
        std::strcpy(here.device, "stub");
        std::strcpy(here.capability, "sm86");
        return EDGEMED_OK;
    }

    Session* open(const Source& source, Message& error) noexcept override {
        const char* const plan_text = static_cast<const char*>(source.data) + std::min(source.size, header);
        const std::string text(plan_text, source.size - std::min(source.size, header));
        using Told = std::pair<const char*, edgemed_status>;
        for (const auto& [told, status] : {Told("wrong", EDGEMED_ERROR_BUNDLE), Told("full", EDGEMED_ERROR_INTERNAL),
                                           Told("fails", EDGEMED_ERROR_RUNTIME)}) {
            if (text != told) continue;
            error.set(status, "the stub was told: %s", told);
            return nullptr;
        }
        auto plan = std::make_shared<Plan>();
        plan->bytes.reset(new uint8_t[source.size]);
        std::memcpy(plan->bytes.get(), source.data, source.size);
        plan->labels = source.labels, plan->members = source.members, plan->entropy_side = source.entropy_side;
        std::memcpy(plan->batch, source.batch, sizeof plan->batch);
        std::memcpy(plan->image_side, source.image_side, sizeof plan->image_side);
        if (text == "threads") source.warn(("the stub was given threads: " + std::to_string(source.threads)).c_str());
        return new StubSession(plan);
    }
};

}  // namespace

extern "C" EDGEMED_MODULE edgemed::impl::Runtime* edgemed_runtime_v4() {
    static Stub stub;
    return &stub;
}
