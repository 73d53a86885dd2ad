#!/bin/sh
# Installs what some tests need besides Python: a C compiler, one for 64-bit ARM, and QEMU for compiled targets; OpenSSH
# for devices. Where that is not possible it says so in one line, and those tests are skipped with the same reason.
set -u

wanted=""
need() {
    # need COMMAND PACKAGE...
    command -v "$1" >/dev/null 2>&1 || { shift; wanted="$wanted $*"; }
}
need gcc gcc libc6-dev
if [ "$(uname -m)" != aarch64 ]; then
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    command -v qemu-aarch64 >/dev/null 2>&1 || need qemu-aarch64-static qemu-user-static
fi
need ssh openssh-client
# The server is seldom in a user's PATH.
[ -x /usr/sbin/sshd ] || need sshd openssh-server
[ -n "$wanted" ] || exit 0

skipped="tests of compiled targets or of devices are skipped; to run them: apt-get install$wanted"
command -v apt-get >/dev/null 2>&1 || { echo "$skipped"; exit 0; }
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "$skipped"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # both are lists
install() { $as_root apt-get install -y -qq --no-install-recommends $wanted >/dev/null 2>&1; }
echo "installing$wanted"
install || { $as_root apt-get update -qq >/dev/null 2>&1 && install; } || echo "$skipped"
exit 0
