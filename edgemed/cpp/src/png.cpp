// PNG by libpng: 8-bit grey and RGB without transparency, interlaced or not.
#include <png.h>
#include <zlib.h>

#include <csetjmp>
#include <cstring>

#include "images.hpp"

namespace edgemed::impl {
namespace {

struct Reader {
    const uint8_t* data;
    size_t size, position;
    char fault[200];
};

void read(png_structp png, png_bytep to, size_t length) {
    Reader& reader = *static_cast<Reader*>(png_get_io_ptr(png));
    if (length > reader.size - reader.position) png_error(png, "the file is truncated");
    std::memcpy(to, reader.data + reader.position, length);
    reader.position += length;
}

[[noreturn]] void leave(png_structp png, png_const_charp text) {
    Reader& reader = *static_cast<Reader*>(png_get_error_ptr(png));
    std::snprintf(reader.fault, sizeof reader.fault, "%s", text);
    png_longjmp(png, 1);
}

void silent(png_structp, png_const_charp) {}

// What libpng would pass over in silence, chunk by chunk: checksums, animations, orientation. Gives the orientation.
struct Header {
    uint32_t width, height;
    int depth, colour;
    int orientation;
};

Error damaged(const std::string& what) {
    return refused("cannot be decoded: " + what, "export it again, or take it out");
}

Header checked_chunks(const uint8_t* data, size_t size) {
    const auto number = [&](size_t at) {
        return uint32_t(data[at]) << 24 | uint32_t(data[at + 1]) << 16 | uint32_t(data[at + 2]) << 8 | data[at + 3];
    };
    Header header{};
    bool transparent = false, animated = false, exif_found = false;
    int from_exif = 1, from_xmp = 0;
    for (size_t at = 8;;) {
        if (size - at < 12) throw damaged("the file is truncated");
        const size_t length = number(at);
        if (length > size - at - 12) throw damaged("the file is truncated");
        const uint8_t* kind = data + at + 4;
        const uint8_t* body = kind + 4;
        const auto is = [&](const char* name) { return std::memcmp(kind, name, 4) == 0; };
        if (crc32(crc32(0, nullptr, 0), kind, uInt(length + 4)) != number(at + 8 + length))
            throw damaged("the checksum of a chunk is wrong");
        if (at == 8) {
            if (!is("IHDR") || length != 13) throw damaged("it has no header");
            header = {number(16), number(20), body[8], body[9], 1};
        }
        transparent |= is("tRNS");
        animated |= is("acTL");
        if (is("eXIf")) from_exif = exif_orientation(body, length, exif_found);
        const bool text = is("iTXt") || is("zTXt") || is("tEXt");
        const auto keyed = [&](const char* key) {
            return length > std::strlen(key) && std::memcmp(body, key, std::strlen(key) + 1) == 0;
        };
        if (text && keyed("Raw profile type exif"))
            throw refused("is a PNG with EXIF data of an old kind", "convert it first, or use Python");
        if (text && keyed("XML:com.adobe.xmp")) {
            // keyword \0, compressed, method, language \0, translated keyword \0, text
            const size_t flag = 18;
            if (!is("iTXt") || (length > flag && body[flag]))
                throw refused("is a PNG with compressed XMP data", "convert it first, or use Python");
            from_xmp = xmp_orientation(body, length);
        }
        if (is("IEND")) break;
        at += 12 + length;
    }
    if (animated) throw refused("is an animated PNG", "export the frame that matters as an image of its own");
    if (header.depth != 8 || (header.colour != PNG_COLOR_TYPE_GRAY && header.colour != PNG_COLOR_TYPE_RGB) || transparent)
        throw refused("is a PNG of " + std::to_string(header.depth) + " bit, colour type " +
                          std::to_string(header.colour) + (transparent ? " with a transparent colour" : "") +
                          ": 8-bit grey and RGB are decoded here",
                      "convert it first, or use Python");
    header.orientation = exif_found || from_xmp == 0 ? from_exif : from_xmp;
    return header;
}

bool read_rows(png_structp png, png_infop info, Reader& reader, uint8_t** rows) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_read_fn(png, &reader, read);
    png_read_info(png, info);
    png_set_gray_to_rgb(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    png_read_image(png, rows);
    return true;
}

}  // namespace

int decode_png(const uint8_t* data, size_t size, const SideLimits& limits, Picture& picture) {
    const Header header = checked_chunks(data, size);
    check_pixels(header.height, header.width);
    check_sides(header.height, header.width, limits);
    reserve(picture, header.height, header.width);
    Reader reader{data, size, 0, ""};
    struct Guard {
        png_structp png = nullptr;
        png_infop info = nullptr;
        ~Guard() { png_destroy_read_struct(&png, &info, nullptr); }
    } guard;
    guard.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, leave, silent);
    guard.info = guard.png ? png_create_info_struct(guard.png) : nullptr;
    if (!guard.info) throw Error(EDGEMED_ERROR_INTERNAL, "libpng cannot be started: out of memory, or another version");
    if (!read_rows(guard.png, guard.info, reader, picture.rows.data())) throw damaged(reader.fault);
    return header.orientation;
}

}  // namespace edgemed::impl
