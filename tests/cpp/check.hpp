// The whole test framework: CHECK says what was false, `result()` is what main returns.
#pragma once

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

inline int& failures() {
    static int count = 0;
    return count;
}

inline int result() {
    if (failures()) std::fprintf(stderr, "%d checks failed\n", failures());
    return failures() ? 1 : 0;
}

#define CHECK(fact, ...)                                                     \
    do {                                                                     \
        if (!(fact)) {                                                       \
            ++failures();                                                    \
            std::fprintf(stderr, "%s:%d: not so: %s", __FILE__, __LINE__, #fact); \
            std::fprintf(stderr, " " __VA_ARGS__);                           \
            std::fputc('\n', stderr);                                        \
        }                                                                    \
    } while (0)

inline std::vector<unsigned char> content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) std::fprintf(stderr, "%s is missing: run golden_files.py\n", path.c_str());
    return {std::istreambuf_iterator<char>(file), {}};
}
