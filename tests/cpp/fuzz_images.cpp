// libFuzzer: any bytes given to the image entry point are a picture or an error, never anything else.
//   fuzz_images -max_total_time=600 CORPUS
#include "images.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace edgemed::impl;
    static Picture picture;  // as a handle keeps it
    try {
        decode(data, size, {1, 512, 64}, picture);
        volatile uint8_t last = picture.pixels[3 * picture.height * picture.width - 1];
        (void)last;
    } catch (const Error&) {
    }
    return 0;
}
