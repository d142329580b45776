#include "images.hpp"

#include <algorithm>
#include <cstring>

namespace edgemed::impl {
namespace {

constexpr size_t max_bytes = size_t(1) << 30;
constexpr int64_t max_pixels = 89478485;

// Turns picture.raw upright, into picture.turned.
void turn(Picture& picture, int orientation) {
    const int64_t stride = picture.width;
    const bool swapped = orientation >= 5;
    const bool flip_x = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    const bool flip_y = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    if (swapped) std::swap(picture.height, picture.width);
    uint8_t* to = picture.turned.data();
    for (int64_t y = 0; y < picture.height; ++y) {
        for (int64_t x = 0; x < picture.width; ++x, to += 3) {
            const int64_t across = flip_x ? picture.width - 1 - x : x, down = flip_y ? picture.height - 1 - y : y;
            const int64_t row = swapped ? across : down, column = swapped ? down : across;
            std::memcpy(to, picture.raw.data() + 3 * (row * stride + column), 3);
        }
    }
}

}  // namespace

Error refused(const std::string& what, const std::string& step) {
    return Error(EDGEMED_ERROR_INPUT, "the image " + what + "; " + step);
}

void check_pixels(int64_t height, int64_t width) {
    if (height < 1 || width < 1 || height > max_pixels / width)
        throw refused("has " + std::to_string(width) + " x " + std::to_string(height) + " pixels, not 1 to " +
                          std::to_string(max_pixels),
                      "crop or scale it down first");
}

void reserve(Picture& picture, int64_t height, int64_t width) {
    const size_t row = size_t(width) * 3, needed = row * size_t(height);
    picture.height = height, picture.width = width;
    if (picture.raw.size() < needed) picture.raw.resize(needed);
    if (picture.rows.size() < size_t(height)) picture.rows.resize(size_t(height));
    for (size_t y = 0; y < size_t(height); ++y) picture.rows[y] = picture.raw.data() + y * row;
}

void check_sides(int64_t height, int64_t width, const SideLimits& limits) {
    const auto text = [](int64_t value) { return std::to_string(value); };
    if (std::min(height, width) >= limits.smallest && std::max(height, width) <= limits.largest) return;
    throw refused("has " + text(width) + " x " + text(height) + " pixels, this bundle takes sides from " +
                      text(limits.smallest) + " to " + text(limits.largest),
                  "resize it, or build again with --image-size " +
                      text(std::min({height, width, limits.smallest})) + "," + text(limits.best) + "," +
                      text(std::max({height, width, limits.largest})));
}

void decode(const void* data, size_t size, const SideLimits& limits, Picture& picture) {
    const uint8_t* bytes = static_cast<const uint8_t*>(data);
    const auto starts = [&](const char* magic, size_t length) {
        return size >= length && std::memcmp(bytes, magic, length) == 0;
    };
    if (size == 0) throw refused("is empty (0 bytes)", "copy it again from its source");
    if (size > max_bytes)
        throw refused("has " + std::to_string(size) + " bytes, more than " + std::to_string(max_bytes),
                      "crop or scale it down first");
    int orientation = 1;
    if (starts("\x89PNG\r\n\x1a\n", 8)) orientation = decode_png(bytes, size, limits, picture);
    else if (starts("\xff\xd8\xff", 3)) orientation = decode_jpeg(bytes, size, limits, picture);
    else throw refused("is not a PNG or JPEG", "export it as one of these, or decode it yourself and pass its pixels");
    if (orientation >= 2 && orientation <= 8) {
        if (picture.turned.size() < picture.raw.size()) picture.turned.resize(picture.raw.size());
        turn(picture, orientation);
        picture.pixels = picture.turned.data();
    } else {
        picture.pixels = picture.raw.data();
    }
}

int channels(int format) noexcept {
    switch (format) {
        case EDGEMED_RGB:
        case EDGEMED_BGR: return 3;
        case EDGEMED_RGBA: return 4;
        case EDGEMED_GRAY8: return 1;
    }
    return 0;
}

void pack_rgb(const edgemed_image& image, uint8_t* rgb) noexcept {
    const ptrdiff_t stride = image.stride ? image.stride : ptrdiff_t(image.width) * channels(image.format);
    const uint8_t* row = static_cast<const uint8_t*>(image.data);
    for (int y = 0; y < image.height; ++y, row += stride) {
        const uint8_t* from = row;
        uint8_t* const end = rgb + 3 * ptrdiff_t(image.width);
        switch (image.format) {
            case EDGEMED_RGB:
                std::memcpy(rgb, from, size_t(end - rgb));
                rgb = end;
                break;
            case EDGEMED_BGR:
                for (; rgb != end; rgb += 3, from += 3) rgb[0] = from[2], rgb[1] = from[1], rgb[2] = from[0];
                break;
            case EDGEMED_RGBA:
                for (; rgb != end; rgb += 3, from += 4)
                    for (int c = 0; c < 3; ++c) rgb[c] = uint8_t((from[c] * from[3] + 127) / 255);
                break;
            case EDGEMED_GRAY8:
                for (; rgb != end; rgb += 3, from += 1) rgb[0] = rgb[1] = rgb[2] = from[0];
                break;
        }
    }
}

int exif_orientation(const uint8_t* data, size_t size, bool& found) {
    found = false;
    for (int k = 0; k < 2 && size >= 6 && std::memcmp(data, "Exif\0\0", 6) == 0; ++k) data += 6, size -= 6;
    if (size < 8) return 1;
    const bool little = std::memcmp(data, "II*\0", 4) == 0;
    const auto unusual = [] {
        return refused("states its orientation in EXIF data of an unusual kind", "convert it first, or use Python");
    };
    if (std::memcmp(data, "II\0*", 4) == 0 || std::memcmp(data, "MM*\0", 4) == 0) throw unusual();  // Pillow reads them
    if (!little && std::memcmp(data, "MM\0*", 4) != 0) return 1;
    const auto number = [&](size_t at, size_t width) {
        uint32_t value = 0;
        for (size_t k = 0; k < width; ++k) value |= uint32_t(data[at + k]) << 8 * (little ? k : width - 1 - k);
        return value;
    };
    const size_t directory = number(4, 4);
    if (directory > size - 2) return 1;
    const size_t entries = number(directory, 2);
    int orientation = 1;
    bool cut = false;  // Pillow reads no further than an entry whose value lies beyond the end
    for (size_t k = 0; k < entries && directory + 2 + 12 * (k + 1) <= size; ++k) {
        const size_t entry = directory + 2 + 12 * k;
        static constexpr uint8_t widths[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};  // by TIFF type
        const uint32_t type = number(entry + 2, 2), count = number(entry + 4, 4), at = number(entry + 8, 4);
        const uint64_t bytes = type < sizeof widths ? uint64_t(widths[type]) * count : 0;
        cut |= bytes > 4 && uint64_t(at) + bytes > size;
        if (number(entry, 2) != 274) continue;
        if (found || cut) throw unusual();  // Pillow 13 takes the first, older ones the last
        found = true;
        // Of other types, or of several values, Pillow takes the first for the orientation if it is a number to Python.
        if ((type != 3 && type != 4) || count != 1) throw unusual();
        const uint32_t value = number(entry + 8, type == 3 ? 2 : 4);
        orientation = value <= 8 ? int(value) : 1;
    }
    return orientation;
}

int xmp_orientation(const uint8_t* data, size_t size) noexcept {
    const char* const key = "tiff:Orientation";
    const size_t length = std::strlen(key);
    const uint8_t* const end = data + size;
    for (const uint8_t* at = data; (at = std::search(at, end, key, key + length)) != end;) {
        at += length;
        const size_t skip = end - at >= 3 && at[0] == '=' && at[1] == '"' ? 2 : end - at >= 2 && at[0] == '>' ? 1 : 0;
        if (skip && at[skip] >= '0' && at[skip] <= '9') return at[skip] - '0';
    }
    return 0;
}

}  // namespace edgemed::impl
