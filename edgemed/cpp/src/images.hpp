// Pixels: from what a caller has in memory, and from PNG and JPEG, to packed RGB, by the rules of images.py.
//
// Decoded here: 8-bit grey and RGB, PNG and JPEG, turned upright by EXIF or XMP. Refused: 1, 2, 4 and 16 bit, palettes,
// transparency, CMYK, animations, an EXIF orientation that is not one whole number, and what is damaged or cut short.
#pragma once

#include <string>
#include <vector>

#include "files.hpp"

namespace edgemed::impl {

// Sides that the engine takes; checked by the image's header, before any memory is taken.
struct SideLimits {
    int64_t smallest, largest, best;
};

// Throws Error(EDGEMED_ERROR_INPUT) for an image outside the limits.
void check_sides(int64_t height, int64_t width, const SideLimits& limits);

// A decoded image. Used again and again: memory grows to the largest image seen.
struct Picture {
    const uint8_t* pixels = nullptr;  // (height, width, 3) RGB
    int64_t height = 0, width = 0;

    Bytes raw, turned, exif;          // the decoders' memory: as it lies in the file; upright; its EXIF block
    std::vector<uint8_t*> rows;
};

// Decodes into `picture`. Throws Error(EDGEMED_ERROR_INPUT) for what is refused.
void decode(const void* data, size_t size, const SideLimits& limits, Picture& picture);

// Writes an image as packed RGB. RGBA is composited over black: (colour * alpha + 127) / 255.
void pack_rgb(const edgemed_image& image, uint8_t* rgb) noexcept;

// Bytes of a pixel; 0 for a format that does not exist.
int channels(int format) noexcept;

// 1 to 8, from EXIF (a TIFF block, with or without its "Exif" header); 1 where there is none or it is damaged. `found`:
// whether an orientation is stated at all. Throws Error(EDGEMED_ERROR_INPUT) for one of an unusual type or count.
int exif_orientation(const uint8_t* data, size_t size, bool& found);

// 1 to 8, or 0 where the XMP text states none.
int xmp_orientation(const uint8_t* data, size_t size) noexcept;

// One decoder each: fills picture.raw with (height, width, 3) RGB and gives the orientation.
int decode_png(const uint8_t* data, size_t size, const SideLimits& limits, Picture& picture);
int decode_jpeg(const uint8_t* data, size_t size, const SideLimits& limits, Picture& picture);

// For the decoders. Throws for an image of no or too many pixels; makes room for one in picture.raw.
void check_pixels(int64_t height, int64_t width);
void reserve(Picture& picture, int64_t height, int64_t width);
Error refused(const std::string& what, const std::string& step);

}  // namespace edgemed::impl
