#!/bin/sh
# sysroot-aarch64.sh FOLDER: Debian's aarch64 packages of what libedgemed needs, unpacked into FOLDER, for toolchain-aarch64.cmake.
#
# For whoever has no device at hand to copy /usr from. Needs Debian 12 or newer and apt; nothing is installed. Link
# statically then (-DEDGEMED_STATIC=ON): the device has these libraries in other versions.
set -eu
folder=${1:?usage: sysroot-aarch64.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/archives/partial"
: > "$state/status"
apt() {  # apt-get for another architecture, with a state of its own
    command apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$state" \
        -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" -o Dir::Cache="$state" \
        -o APT::Sandbox::User=root "$@"
}
apt update
cd "$state"
apt download libpng-dev libjpeg62-turbo-dev libssl-dev zlib1g-dev nlohmann-json3-dev
for package in *.deb; do dpkg-deb -x "$package" "$folder"; done
