#!/bin/sh
# Puts Debian's Python for 64-bit ARM into a folder, to run the agent under QEMU: scripts/arm64-python.sh FOLDER
# The system's own packages stay as they are: apt keeps lists for that architecture in the folder.
set -eu

if [ -x "$1/usr/bin/python3" ]; then
    exit 0
fi
folder=$(mkdir -p "$1" && cd "$1" && pwd)
work=$folder/.apt
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/debs"
: > "$work/status"
apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$work/state" \
        -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}
apt update
cd "$work/debs"
version=$(apt-cache -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$work/state" \
    -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" depends python3-minimal |
    sed -n 's/.*Depends: \(python3\.[0-9]*\)-minimal/\1/p')
apt download libc6 libcrypt1 libexpat1 libffi8 libssl3 liblzma5 libbz2-1.0 zlib1g "$version-minimal" \
    "lib$version-minimal" "lib$version-stdlib"
for package in ./*.deb; do
    dpkg-deb -x "$package" "$folder"
done
# Where /lib is a link to /usr/lib, the program's loader is looked for in /lib.
[ -e "$folder/lib" ] || ln -s usr/lib "$folder/lib"
ln -sf "$version" "$folder/usr/bin/python3"
rm -rf "$work"
