// The address sanitizer ends a process that loads a library with RTLD_DEEPBIND, as TBB does under OpenVINO: take it away.
#include <dlfcn.h>

extern "C" void* dlopen(const char* file, int flags) {
    static const auto real = reinterpret_cast<void* (*)(const char*, int)>(::dlsym(RTLD_NEXT, "dlopen"));
    return real(file, flags & ~RTLD_DEEPBIND);
}
