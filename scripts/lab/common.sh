# Sourced by the scripts beside it: where the lab's files are and what they are called.
# shellcheck shell=bash disable=SC2034

# Goes up whenever scripts/lab/fetch would make something else: a new number is a new folder.
LAB_RECIPE=10
# Debian release that the tools, the kernels and busybox come from.
LAB_SUITE=trixie

LAB_CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/vmm-lab/$LAB_RECIPE"
# QEMU and the ACPI tools with every library they need, and wrappers for them in bin/; the kernels'
# headers in usr/src/.
LAB_TOOLS="$LAB_CACHE/tools"
# The system's Python, and schemathesis for it; see fetch-schemathesis.
LAB_PYTHON=/usr/bin/python3
LAB_SCHEMATHESIS="$(dirname "$LAB_CACHE")/schemathesis-$({
    cat "$(dirname "${BASH_SOURCE[0]}")/schemathesis.txt"
    "$LAB_PYTHON" --version 2>&1 || true
} | sha256sum | cut -c 1-16)/bin/schemathesis"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# Architecture $1 as Rust spells it.
rust_arch() {
    case "$1" in
        x86_64 | amd64) echo x86_64 ;;
        aarch64 | arm64) echo aarch64 ;;
        *) die "unknown architecture $1: x86_64 or aarch64 are meant" ;;
    esac
}
BUILD_ARCH=$(rust_arch "$(uname -m)")

# The same architecture as Debian spells it.
debian_arch() {
    case "$1" in
        x86_64) echo amd64 ;;
        aarch64) echo arm64 ;;
    esac
}

# The folder with the kernels, modules and busybox of an architecture.
lab_assets() { echo "$LAB_CACHE/$1"; }

# Does this machine run guests of architecture $1 by itself? A /dev/kvm without vmx or svm is an
# instruction emulator: good for probe guests, not for Linux.
has_hardware_kvm() {
    [ "$1" = "$BUILD_ARCH" ] && [ -r /dev/kvm ] && [ -w /dev/kvm ] || return 1
    [ "$1" = aarch64 ] || grep -qE '^flags\s*:.*\b(vmx|svm)\b' /proc/cpuinfo
}
