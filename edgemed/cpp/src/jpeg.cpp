// JPEG by libjpeg: 8-bit grey and RGB (YCbCr or not), baseline or progressive.
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include <jerror.h>
#include <jpeglib.h>

#include "images.hpp"

namespace edgemed::impl {
namespace {

// libjpeg reports a fault by a function that must not return: it jumps back to the last setjmp, so no object with a
// destructor may live between the two. Everything of that kind stands in `decode_jpeg`, outside.
struct Fault {
    jpeg_error_mgr manager;
    std::jmp_buf back;
    char text[JMSG_LENGTH_MAX];
};

void leave(j_common_ptr info) {
    Fault* fault = reinterpret_cast<Fault*>(info->err);
    info->err->format_message(info, fault->text);
    std::longjmp(fault->back, 1);
}

void note(j_common_ptr info, int level) {
    // Warnings are libjpeg's repairs. An early end is not repaired: what is cut off is no image.
    if (level == -1 && info->err->msg_code == JWRN_JPEG_EOF) leave(info);
}

void silent(j_common_ptr) {}

bool start(jpeg_decompress_struct& info, Fault& fault, const uint8_t* data, size_t size) {
    info.err = jpeg_std_error(&fault.manager);
    fault.manager.error_exit = leave;
    fault.manager.emit_message = note;
    fault.manager.output_message = silent;
    if (setjmp(fault.back)) return false;
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, static_cast<unsigned long>(size));
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&info, TRUE);
    return true;
}

bool read_rows(jpeg_decompress_struct& info, Fault& fault, uint8_t* const* rows) {
    if (setjmp(fault.back)) return false;
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
        const JDIMENSION y = info.output_scanline;
        jpeg_read_scanlines(&info, const_cast<JSAMPARRAY>(rows + y), info.output_height - y);
    }
    jpeg_finish_decompress(&info);
    return true;
}

int orientation_of(const jpeg_decompress_struct& info, Bytes& exif) {
    exif.clear();  // a long block is spread over several segments
    int from_xmp = 0;
    const char* const xmp = "http://ns.adobe.com/xap/1.0/";
    for (const jpeg_marker_struct* one = info.marker_list; one; one = one->next) {
        if (one->data_length >= 6 && std::memcmp(one->data, "Exif\0\0", 6) == 0)
            exif.insert(exif.end(), one->data + (exif.empty() ? 0 : 6), one->data + one->data_length);
        else if (one->data_length > 29 && std::memcmp(one->data, xmp, 29) == 0)
            from_xmp = xmp_orientation(one->data + 29, one->data_length - 29);
    }
    bool found = false;
    const int from_exif = exif_orientation(exif.data(), exif.size(), found);
    return found || from_xmp == 0 ? from_exif : from_xmp;
}

}  // namespace

int decode_jpeg(const uint8_t* data, size_t size, const SideLimits& limits, Picture& picture) {
    jpeg_decompress_struct info{};
    Fault fault{};
    struct Guard {
        jpeg_decompress_struct& info;
        ~Guard() { jpeg_destroy_decompress(&info); }
    } guard{info};
    const auto damaged = [&] {
        return refused(std::string("cannot be decoded: ") + fault.text, "export it again, or take it out");
    };
    if (!start(info, fault, data, size)) throw damaged();
    if (info.data_precision != 8 || (info.num_components != 1 && info.num_components != 3))
        throw refused("is a JPEG of " + std::to_string(info.num_components) + " components at " +
                          std::to_string(info.data_precision) + " bit: 8-bit grey and RGB are decoded here",
                      "convert it first, or use Python");
    check_pixels(info.image_height, info.image_width);
    check_sides(info.image_height, info.image_width, limits);
    const int orientation = orientation_of(info, picture.exif);
    reserve(picture, info.image_height, info.image_width);
    if (!read_rows(info, fault, picture.rows.data())) throw damaged();
    return orientation;
}

}  // namespace edgemed::impl
