// Where a runtime's exceptions end: each becomes a status and a message.
#pragma once

#include <exception>
#include <new>

#include "files.hpp"
#include "runtime.hpp"

namespace edgemed::impl {

// Runs `work`. What the library itself throws has its status; `other` states that of a std::exception of somebody else.
template <typename Work, typename Other>
edgemed_status guarded(Message& error, Work work, Other other) noexcept {
    try {
        work();
        return EDGEMED_OK;
    } catch (const Error& failure) {
        return error.set(failure.status, "%s", failure.what());
    } catch (const std::bad_alloc&) {
        return error.set(EDGEMED_ERROR_INTERNAL, "%s", out_of_memory);
    } catch (const std::exception& failure) {
        return other(failure);
    }
}

}  // namespace edgemed::impl
