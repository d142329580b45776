// libFuzzer: any bytes given to the image entry point are a picture or an error, never anything else. Hardly a changed PNG
// has the right checksums, so it is tried once more with those mended: then the decoder sees the change.
//   fuzz_images -max_total_time=600 CORPUS
#include <zlib.h>

#include <cstring>

#include "images.hpp"

namespace {

using namespace edgemed::impl;

void try_to_decode(const Bytes& data) {
    static Picture picture;  // as a handle keeps it
    try {
        decode(data.data(), data.size(), {1, 512, 64}, picture);
        volatile uint8_t last = picture.pixels[3 * picture.height * picture.width - 1];
        (void)last;
    } catch (const Error&) {
    }
}

// The PNG with the checksum of every whole chunk made right.
Bytes mended(Bytes png) {
    for (size_t at = 8; png.size() >= 12 && at <= png.size() - 12;) {
        const size_t length = size_t(png[at]) << 24 | size_t(png[at + 1]) << 16 | size_t(png[at + 2]) << 8 | png[at + 3];
        if (length > png.size() - at - 12) break;
        const uLong sum = crc32(crc32(0, nullptr, 0), &png[at + 4], uInt(length + 4));
        for (int k = 0; k < 4; ++k) png[at + 8 + length + size_t(k)] = uint8_t(sum >> (24 - 8 * k));
        at += 12 + length;
    }
    return png;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const Bytes bytes(data, data + size);
    try_to_decode(bytes);
    if (size > 8 && std::memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0) try_to_decode(mended(bytes));
    return 0;
}
