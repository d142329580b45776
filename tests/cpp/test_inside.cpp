// What cannot be seen through edgemed.h: exact pixels, orientations, decisions at their thresholds, numbers as Python's, names whole.
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "check.hpp"
#include "document.hpp"
#include "images.hpp"
#include "operating.hpp"
#include "runtime.hpp"

namespace {

using namespace edgemed::impl;

void formats_become_rgb() {
    unsigned char out[12];
    const auto packed = [&](const unsigned char* data, edgemed_format format, ptrdiff_t stride) {
        pack_rgb({data, 2, 2, stride, format}, out);
        return std::vector<int>(out, out + 12);
    };
    const unsigned char colour[] = {1, 2, 3, 4, 5, 6, 99, 7, 8, 9, 10, 11, 12, 99};
    using Row = std::vector<int>;
    CHECK(packed(colour, EDGEMED_RGB, 7) == Row({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}));
    CHECK(packed(colour, EDGEMED_BGR, 7) == Row({3, 2, 1, 6, 5, 4, 9, 8, 7, 12, 11, 10}));
    CHECK(packed(colour + 7, EDGEMED_RGB, -7) == Row({7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6}));
    CHECK(packed(colour, EDGEMED_GRAY8, 0) == Row({1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4}));
    const unsigned char alpha[] = {255, 128, 1, 255, 255, 128, 1, 128, 200, 100, 50, 0, 3, 2, 1, 127};
    CHECK(packed(alpha, EDGEMED_RGBA, 0) == Row({255, 128, 1, 128, 64, 1, 0, 0, 0, 1, 1, 0}));
}

void orientation_is_read_from_exif() {
    const auto block = [](const char* order, int type, int count, int value) {
        const bool little = order[0] == 'I';
        std::vector<unsigned char> data(order, order + 2);
        const auto put = [&](unsigned number, int bytes) {
            for (int k = 0; k < bytes; ++k) data.push_back((number >> 8 * (little ? k : bytes - 1 - k)) & 255);
        };
        put(42, 2), put(8, 4), put(1, 2), put(274, 2), put(unsigned(type), 2), put(unsigned(count), 4);
        put(unsigned(value), type == 3 ? 2 : 4), put(0, 2), put(0, 4);
        return data;
    };
    const auto read = [](const std::vector<unsigned char>& data, size_t size) {
        bool found = false;
        return exif_orientation(data.data(), size, found);
    };
    for (const char* order : {"II", "MM"}) {
        for (int k = 1; k <= 8; ++k) CHECK(read(block(order, 3, 1, k), 26) == k, "%s %d", order, k);
        CHECK(read(block(order, 4, 1, 6), 26) == 6);
        using Kind = std::pair<int, int>;  // a TIFF type, how many
        for (const auto& [type, count] : {Kind(3, 2), Kind(3, 0), Kind(1, 1), Kind(2, 2), Kind(13, 1)}) {
            bool refused = false;
            try {
                read(block(order, type, count, 6), 26);
            } catch (const Error& error) {
                refused = error.status == EDGEMED_ERROR_INPUT;
            }
            CHECK(refused, "%s type %d count %d", order, type, count);
        }
        CHECK(read(block(order, 3, 1, 9), 26) == 1);
        for (size_t cut = 0; cut < 22; ++cut) CHECK(read(block(order, 3, 1, 6), cut) == 1, "%zu", cut);
    }
    const auto xmp = [](const char* text) { return xmp_orientation(reinterpret_cast<const uint8_t*>(text), std::strlen(text)); };
    CHECK(xmp("<x tiff:Orientation=\"8\"/>") == 8 && xmp("<tiff:Orientation>3</tiff:Orientation>") == 3);
    CHECK(xmp("tiff:Orientation") == 0 && xmp("tiff:Orientation=\"x\" tiff:Orientation>5") == 5 && xmp("") == 0);
}

void decisions_stand_at_their_thresholds() {
    Manifest manifest;
    manifest.labels = {"a", "b", "c"}, manifest.member_names = {"one", "two"};
    const float p[] = {0.5f, 0.25f, 0.25f}, members[] = {0.75f, 0.125f, 0.125f, 0.25f, 0.375f, 0.375f};
    unsigned char set[3];
    CHECK(decide(manifest, p, members, set).disagreement == 0.25);
    CHECK(decide(manifest, p, members, set).set_size == -1 && set[0] == 0);
    float many[10] = {1}, mean[10] = {0.5f};
    for (size_t k = 1; k < 10; ++k) many[k] = 1e-17f;  // is lost where it is added to 0.5; nine of them would not be
    CHECK(disagreement(mean, many, 10, 1) == 0.25);
    OperatingPoint& point = manifest.operating_point.emplace();
    point.positive = 1, point.threshold = 0.25;
    CHECK(decide(manifest, p, members, set).decision == 1 && decide(manifest, p, members, set).label == 0);
    point.threshold = 0.25 + 1e-12;  // float32 probabilities are compared in float64
    CHECK(decide(manifest, p, members, set).decision == 0);
    point.positive = 0, point.threshold = 0.6;
    CHECK(decide(manifest, p, members, set).decision == 1);  // the first of the others at a tie
    point.max_disagreement = 0.25;
    CHECK(decide(manifest, p, members, set).decision == 1);
    point.max_disagreement = 0.2499999;
    CHECK(decide(manifest, p, members, set).decision == EDGEMED_REFER);
    point.min_probability = 0.25;
    CHECK(decide(manifest, p, members, set).set_size == 3);
    point.min_probability = 0.3;
    CHECK(decide(manifest, p, members, set).set_size == 1 && set[0] == 1 && set[1] == 0);
    point.min_probability = 1;
    CHECK(decide(manifest, p, members, set).set_size == 0);
}

void numbers_are_written_as_python_writes_them() {
    const std::pair<double, const char*> cases[] = {
        {0, "0.0"},         {1, "1.0"},          {-2.5, "-2.5"},         {0.1, "0.1"},       {1e-4, "0.0001"},
        {1e-5, "1e-05"},    {1.5e-7, "1.5e-07"}, {1e15, "1000000000000000.0"}, {1e16, "1e+16"},    {1.25e300, "1.25e+300"},
        {1 / 3., "0.3333333333333333"}, {123456789.125, "123456789.125"}, {5e-324, "5e-324"}};
    for (const auto& [value, text] : cases) CHECK(canonical_bytes(Json(value)) == std::string(text) + "\n", "%s", text);
    const Json nested = {{"b", Json::array()}, {"a", {1, "\u00e9\n"}}, {"c", Json::object()}};
    CHECK(canonical_bytes(nested) == "{\n  \"a\": [\n    1,\n    \"\u00e9\\n\"\n  ],\n  \"b\": [],\n  \"c\": {}\n}\n");
}

void a_link_is_not_followed() {
    std::string folder = std::filesystem::temp_directory_path() / "edgemed-link-XXXXXX";
    CHECK(::mkdtemp(folder.data()) != nullptr, "%s", folder.c_str());
    const std::string file = folder + "/file", link = folder + "/link";
    std::ofstream(file) << "text";
    CHECK(::symlink(file.c_str(), link.c_str()) == 0, "%s", link.c_str());
    CHECK(plain_content(file, 10).size() == 4, "%s", file.c_str());
    for (const std::string& path : {link, std::string("/nowhere")}) {
        edgemed_status status = EDGEMED_OK;
        try {
            plain_content(path, 10);
        } catch (const Error& error) {
            status = error.status;
        }
        CHECK(status == EDGEMED_ERROR_BUNDLE, "%s", path.c_str());
    }
    for (const std::string& path : {link, file, folder}) std::remove(path.c_str());
}

// Cut short, it would equal no certificate's: `certified` read `built` on CPUs with many features.
void a_machines_name_is_kept_whole() {
    const std::string sapphire_rapids =
        "x86_64:amx_bf16,amx_int8,avx2,avx512_bf16,avx512_fp16,avx512_vnni,avx512f,avx_vnni,f16c,fma";
    Here here;
    Here::put(here.capability, sapphire_rapids);
    CHECK(here.capability == sapphire_rapids, "%s", here.capability);
    bool refused = false;
    try {
        Here::put(here.device, std::string(256, 'x'));
    } catch (const std::length_error&) {
        refused = true;
    }
    CHECK(refused && here.device[0] == 0);
}

}  // namespace

int main() {
    formats_become_rgb();
    orientation_is_read_from_exif();
    decisions_stand_at_their_thresholds();
    numbers_are_written_as_python_writes_them();
    a_link_is_not_followed();
    a_machines_name_is_kept_whole();
    return result();
}
