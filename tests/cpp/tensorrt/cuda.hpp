// What a test may ask of the stand-in for CUDA, and tell it.
#pragma once

#include <cstddef>

namespace stand_in {

int count(const char* call);  // how often a call was made
void fail(const char* call);  // from now on this call fails; "": none does
std::size_t live();           // blocks of pinned and device memory that were not freed

}  // namespace stand_in
