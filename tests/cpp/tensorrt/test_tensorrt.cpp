// test_tensorrt MODULE: what the TensorRT module promises the library (runtime.hpp), on a stand-in for TensorRT whose
// answers are the image's own first bytes. On CUDA's stand-in it also counts calls; on a real GPU it also takes times.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <thread>

#include "requests.hpp"
#ifndef REAL_CUDA
#include "cuda.hpp"
#endif

namespace {

void sizes_may_grow_and_shrink() {
    Opened session = open(any_size);
    unsigned seed = 0;
    for (const Shape& shape : {Shape{1, 16, 16}, Shape{8, 64, 48}, Shape{1, 2048, 1536}, Shape{3, 20, 30}, Shape{8, 64, 48}})
        for (const bool staged : {false, true, true, false}) CHECK(right(*session, shape, ++seed, staged), "%u", seed);
    // A plan of one batch size, or of one size of images, is none of one shape.
    session = open({{3, 3, 3}, {16, 48, 2048}});
    for (const int64_t height : {48, 16, 64, 20}) CHECK(right(*session, {3, height, 48}, ++seed), "%u", seed);
    session = open({{1, 1, 8}, {48, 48, 48}});
    for (const int64_t n : {2, 8, 1, 3}) CHECK(right(*session, {n, 48, 48}, ++seed), "%u", seed);
}

void a_fixed_plan_is_right_before_and_after_its_capture() {
    const Opened session = open(fixed_size);
    for (unsigned seed = 0; seed < 20; ++seed) CHECK(right(*session, {2, 48, 48}, seed, seed % 2), "%u", seed);
}

void pixels_in_the_gpus_memory_are_read_on_the_callers_stream() {
    cudaStream_t stream = nullptr;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    for (const Profile& profile : {fixed_size, any_size}) {
        const Opened session = open(profile);
        const Shape shape{2, 48, 48};
        char* memory = nullptr;
        CHECK(cudaMalloc(reinterpret_cast<void**>(&memory), shape.bytes() + 256) == cudaSuccess);
        for (unsigned seed = 0; seed < 12; ++seed) {
            const Pixels pixels = noise(shape, seed);
            char* const at = memory + seed % 4;  // any address will do
            CHECK(cudaMemcpy(at, pixels.data(), pixels.size(), cudaMemcpyHostToDevice) == cudaSuccess);
            Found found(shape);
            Message error;
            CHECK(session->run_device(at, shape, stream, found.answers, error) == EDGEMED_OK, "%s", error.text);
            CHECK(found.same(pixels), "%u", seed);
            CHECK(right(*session, shape, seed + 100));  // and from the host in between
        }
        cudaFree(memory);
    }
    cudaStreamDestroy(stream);
}

void an_entropy_map_is_an_output_like_the_others() {
    for (const Profile& profile : {fixed_size, any_size}) {
        Message error;
        const Opened session = open(profile, "entropy", error, entropy_side);
        CHECK(session, "%s", error.text);
        unsigned seed = 0;
        for (const int64_t n : {2, 2, 8, 1, 3, 2}) {  // a plan of one shape: always 2
            const Shape shape{profile.batch[0] == 2 ? 2 : n, 48, 48};
            const Pixels pixels = noise(shape, ++seed);
            Found found(shape, true);
            CHECK(session->run(pixels.data(), shape, found.answers, error) == EDGEMED_OK, "%s", error.text);
            CHECK(found.same(pixels), "%u", seed);
        }
    }
}

void other_outputs_than_the_manifest_states_are_refused() {
    Message error;
    CHECK(!open(any_size, "entropy", error) && says(error, "has other outputs than the manifest says"));
    CHECK(!open(any_size, "", error, entropy_side) && says(error, "has other outputs than the manifest says"));
    CHECK(!open(any_size, "half", error) && says(error, "has the tensor 'probabilities' as (-1, 3)"));  // of another type
    CHECK(!open(any_size, "entropy", error, 3) && says(error, "has the tensor 'entropy' as (-1, 4, 4)"));
}

void clones_serve_threads_of_their_own() {
    Opened session = open(any_size);
    std::vector<Opened> clones;
    for (int k = 0; k < 4; ++k) {
        Message error;
        clones.emplace_back(session->clone(error));
        CHECK(clones.back(), "%s", error.text);
    }
    session.reset();  // the clones keep the engine
    std::vector<std::thread> threads;
    std::vector<int> wrong(clones.size());
    for (size_t k = 0; k < clones.size(); ++k)
        threads.emplace_back([&, k] {
            for (unsigned seed = 0; seed < 200; ++seed)
                wrong[k] += !right(*clones[k], {1 + seed % 4, 40 + int64_t(k), 64}, seed, seed % 2);
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(std::count(wrong.begin(), wrong.end(), 0) == 4);
}

void a_shape_outside_the_profile_names_the_flag() {
    const Opened session = open(any_size);
    const Pixels pixels(9 * 48 * 48 * 3);
    Message error;
    Found found({9, 48, 48});
    CHECK(session->run(pixels.data(), {9, 48, 48}, found.answers, error) == EDGEMED_ERROR_INPUT);
    CHECK(says(error, "takes batches from 1 to 8, not 9; build one with --batch 1,1,9"));
    CHECK(session->run(pixels.data(), {1, 48, 8}, found.answers, error) == EDGEMED_ERROR_INPUT);
    CHECK(says(error, "takes image sides from 16 to 2048, not 48 x 8; build one with --image-size 8,48,2048"));
    CHECK(session->run(pixels.data(), {1, 2049, 48}, found.answers, error) == EDGEMED_ERROR_INPUT);
    CHECK(says(error, "not 2049 x 48; build one with --image-size 16,48,2049"));
    CHECK(right(*session, {1, 48, 48}, 1));
    CHECK(open(fixed_size)->run(pixels.data(), {1, 48, 48}, found.answers, error) == EDGEMED_ERROR_INPUT);
    CHECK(says(error, "takes batches from 2 to 2, not 1; build one with --batch 1,2,2"));
}

void what_tensorrt_says_is_in_the_message() {
    Message error;
    warnings.clear();
    CHECK(!open(any_size, "refuse", error));
    CHECK(says(error, "tensorrt-rtx 1.7.1.116 refuses plan made-by-hand: the stand-in refuses, as its plan says; build it "
                      "again here with `edgemed build-engine BUNDLE --runtime tensorrt-rtx`"));
    CHECK(warnings.size() == 1 && warnings[0] == "the stand-in warns");
    CHECK(!open(any_size, "labels", error));
    CHECK(says(error, "has the tensor 'probabilities' as (-1, 4); it is not a plan of this bundle"));
    const Opened session = open(any_size, "fail", error);
    const Pixels pixels(48 * 48 * 3);
    Found found({1, 48, 48});
    CHECK(session->run(pixels.data(), {1, 48, 48}, found.answers, error) == EDGEMED_ERROR_RUNTIME);
    CHECK(says(error, "failed to run plan made-by-hand: the stand-in fails, as its plan says; build"));
    const Opened later = open(any_size, "fails later", error);
    CHECK(later->run(pixels.data(), {1, 48, 48}, found.answers, error) == EDGEMED_OK);
    CHECK(later->run(pixels.data(), {1, 48, 48}, found.answers, error) == EDGEMED_ERROR_RUNTIME);
    CHECK(says(error, ": the stand-in fails, as its plan says; build"));  // of this request
}

void what_tensorrt_says_of_an_engine_is_heard_after_another_one_is_closed() {
    Message error;
    Opened first = open(any_size, "", error);
    const Opened second = open(any_size, "fail", error);
    warnings.clear();
    first.reset();
    std::vector<std::vector<char>> others(100, std::vector<char>(1024, 'x'));  // takes the memory that is free again
    const Pixels pixels(48 * 48 * 3);
    Found found({1, 48, 48});
    CHECK(second->run(pixels.data(), {1, 48, 48}, found.answers, error) == EDGEMED_ERROR_RUNTIME);
    CHECK(says(error, "the stand-in fails, as its plan says"));
    CHECK(open(any_size, "", error) && warnings.size() == 1 && warnings[0] == "the stand-in warns");
}

void a_plan_that_cannot_be_captured_runs_without_a_graph() {
    for (const auto& [behaviour, tries] : {std::pair{"uncapturable", 1}, std::pair{"no capture", 0}}) {
        Message error;
        const Opened session = open(fixed_size, behaviour, error);
        warnings.clear();
#ifndef REAL_CUDA
        const int before = stand_in::count("cudaStreamBeginCapture");
#endif
        for (unsigned seed = 0; seed < 5; ++seed) CHECK(right(*session, {2, 48, 48}, seed));
        CHECK(warnings.size() == 1 && warnings[0].find("no CUDA graph is used") == 0);
#ifndef REAL_CUDA
        CHECK(stand_in::count("cudaStreamBeginCapture") == before + tries);
#endif
    }
}

void a_fixed_plan_is_given_the_memory_that_it_asks_for() {
    Message error;
    Opened session = open(fixed_size, "user allocation", error);
    CHECK(session, "%s", error.text);
    const Opened clone(session->clone(error));
    CHECK(clone, "%s", error.text);
    for (unsigned seed = 0; seed < 5; ++seed)
        CHECK(right(*session, {2, 48, 48}, seed) && right(*clone, {2, 48, 48}, seed + 10), "%u", seed);
}

#ifdef REAL_CUDA

void times_are_taken() {
    const Shape shape{1, 480, 640};
    for (const auto& [what, profile] : {std::pair{"any size, no CUDA graph", Profile{{1, 1, 1}, {16, 480, 2048}}},
                                        std::pair{"480 x 480, CUDA graph", Profile{{1, 1, 1}, {480, 480, 480}}},
                                        std::pair{"480 x 480, no CUDA graph", Profile{{1, 1, 1}, {479, 480, 480}}}}) {
        const Opened session = open(profile);
        const Shape one = profile.side[2] == 480 ? Shape{1, 480, 480} : shape;
        std::printf("{\"request\": \"%s\", \"height\": %ld, \"width\": %ld, \"median_us\": %.2f, \"n\": 2000}\n", what,
                    long(one.height), long(one.width), median_microseconds(*session, one));
    }
}

#else

void calls_are_those_that_are_needed() {
    const Opened session = open(fixed_size);
    CHECK(right(*session, {2, 48, 48}, 0));
    CHECK(stand_in::count("cudaGraphInstantiate") == 1 && stand_in::count("cudaGraphLaunch") == 0);
    const int copies = stand_in::count("cudaMemcpyAsync"), blocks = stand_in::count("cudaMalloc");
    for (unsigned seed = 0; seed < 5; ++seed) CHECK(right(*session, {2, 48, 48}, seed, true));
    CHECK(stand_in::count("cudaGraphLaunch") == 5 && stand_in::count("cudaGraphInstantiate") == 1);
    CHECK(stand_in::count("cudaMemcpyAsync") == copies + 5);  // the uploads; the rest is in the graph
    CHECK(stand_in::count("cudaMalloc") == blocks && blocks == 4);
    const Opened free_size = open(any_size);
    CHECK(right(*free_size, {1, 48, 48}, 0) && right(*free_size, {1, 48, 48}, 1));
    CHECK(stand_in::count("cudaGraphLaunch") == 5 && stand_in::count("cudaGraphInstantiate") == 1);
}

void a_full_gpu_is_one_clear_message_and_the_next_request_works() {
    const Opened session = open(any_size);
    for (const char* call : {"cudaMalloc", "cudaHostAlloc"}) {
        CHECK(right(*session, {1, 48, 48}, 0));
        stand_in::fail(call);
        const Shape shape{4, 300 + int64_t(std::strlen(call)), 300};
        const Pixels pixels = noise(shape, 1);
        Found found(shape);
        Message error;
        CHECK(session->run(pixels.data(), shape, found.answers, error) == EDGEMED_ERROR_RUNTIME);
        CHECK(says(error, "failed with cudaErrorMemoryAllocation (2): the GPU's memory is full"));
        CHECK(says(error, call));
        stand_in::fail("");
        CHECK(right(*session, {1, 48, 48}, 1));  // what was given back to make room is not there for a smaller one either
        CHECK(right(*session, shape, 2));
    }
    for (const char* call : {"cudaMemcpyAsync", "cudaStreamSynchronize"}) {
        stand_in::fail(call);
        CHECK(!right(*session, {1, 48, 48}, 3));
        stand_in::fail("");
        CHECK(right(*session, {1, 48, 48}, 4));
    }
}

void no_driver_is_a_reason() {
    Here here;
    Message why_not;
    CHECK(runtime->available(here, why_not) == EDGEMED_OK, "%s", why_not.text);
    CHECK(std::string(here.version) == "1.7.1.116" && std::string(here.capability) == "sm86");
    CHECK(std::string(here.device) == "Stand-in 3090");
    stand_in::fail("cudaGetDeviceCount");
    CHECK(runtime->available(here, why_not) == EDGEMED_ERROR_RUNTIME);
    CHECK(says(why_not, "cudaErrorInsufficientDriver (35): the NVIDIA driver is missing or older than this CUDA"));
    stand_in::fail("");
}

void host_memory_given_as_device_memory_is_refused() {
    const Opened session = open(any_size);
    const Shape shape{1, 48, 48};
    const Pixels pixels = noise(shape, 0);
    Found found(shape);
    Message error;
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    const int waits = stand_in::count("cudaStreamSynchronize");
    CHECK(session->run_device(pixels.data(), shape, stream, found.answers, error) == EDGEMED_ERROR_RUNTIME);
    CHECK(stand_in::count("cudaStreamSynchronize") == waits + 1);  // nothing may read the caller's memory afterwards
    CHECK(says(error, "an address or a stream that was given is not one of this GPU"));
    cudaStreamDestroy(stream);
}

#endif

}  // namespace

int main(int count, char** arguments) {
    void* const module = count > 1 ? ::dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    void* const symbol = module ? ::dlsym(module, EDGEMED_RUNTIME_SYMBOL) : nullptr;
    if (!symbol) {
        std::fprintf(stderr, "usage: test_tensorrt MODULE (%s)\n", count > 1 ? ::dlerror() : "none was given");
        return 2;
    }
    runtime = reinterpret_cast<Runtime* (*)()>(symbol)();
    Here here;
    Message why_not;
    if (runtime->available(here, why_not) != EDGEMED_OK) {
        std::fprintf(stderr, "%s\n", why_not.text);
        return 3;
    }
    std::fprintf(stderr, "%s %s on %s (%s)\n", runtime->name(), here.version, here.device, here.capability);
#ifndef REAL_CUDA
    calls_are_those_that_are_needed();  // the first, since it counts
#endif
    sizes_may_grow_and_shrink();
    a_fixed_plan_is_right_before_and_after_its_capture();
    pixels_in_the_gpus_memory_are_read_on_the_callers_stream();
    an_entropy_map_is_an_output_like_the_others();
    other_outputs_than_the_manifest_states_are_refused();
    clones_serve_threads_of_their_own();
    a_shape_outside_the_profile_names_the_flag();
    what_tensorrt_says_is_in_the_message();
    what_tensorrt_says_of_an_engine_is_heard_after_another_one_is_closed();
    a_plan_that_cannot_be_captured_runs_without_a_graph();
    a_fixed_plan_is_given_the_memory_that_it_asks_for();
#ifdef REAL_CUDA
    times_are_taken();
#else
    a_full_gpu_is_one_clear_message_and_the_next_request_works();
    no_driver_is_a_reason();
    host_memory_given_as_device_memory_is_refused();
    CHECK(stand_in::live() == 0, "%zu blocks were not freed", stand_in::live());
#endif
    return result();
}
