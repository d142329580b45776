# Cross-compiles libedgemed for a Jetson (aarch64, JetPack's Ubuntu 22.04 or newer) on an x86-64 Debian or Ubuntu machine.
#
#   sudo apt install g++-aarch64-linux-gnu
#   cmake -S "$(edgemed cmake-dir)" -B build -DEDGEMED_SYSROOT=FOLDER \
#         -DCMAKE_TOOLCHAIN_FILE="$(edgemed cmake-dir)/cmake/toolchain-aarch64.cmake"
#
# EDGEMED_SYSROOT: a copy of the device's /usr, or what sysroot-aarch64.sh makes (then with -DEDGEMED_STATIC=ON).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(EDGEMED_SYSROOT "" CACHE PATH "Root of the device's headers and libraries")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EDGEMED_SYSROOT)
if(NOT IS_DIRECTORY "${EDGEMED_SYSROOT}/usr/lib")
  message(FATAL_ERROR "EDGEMED_SYSROOT='${EDGEMED_SYSROOT}' holds no usr/lib: copy the device's (rsync -aR --copy-unsafe-links "
    "DEVICE:/usr/include :/usr/lib/aarch64-linux-gnu FOLDER), or make one with sysroot-aarch64.sh")
endif()
# A device's own copy has its C library too, which is then the newest that the result may need.
if(EXISTS "${EDGEMED_SYSROOT}/usr/include/stdio.h")
  set(CMAKE_SYSROOT "${EDGEMED_SYSROOT}")
else()
  set(CMAKE_C_FLAGS_INIT "-isystem ${EDGEMED_SYSROOT}/usr/include/aarch64-linux-gnu")
  set(CMAKE_CXX_FLAGS_INIT "${CMAKE_C_FLAGS_INIT}")
endif()
list(APPEND CMAKE_FIND_ROOT_PATH "${EDGEMED_SYSROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
