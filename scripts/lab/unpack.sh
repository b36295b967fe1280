# Sourced: what is done with packages once they are there.
# shellcheck shell=bash

# Unpacks packages into folder $1, without documentation; stdin names the .deb files.
unpack() {
    local deb
    mkdir -p "$1"
    while read -r deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner -C "$1" \
            --exclude=./usr/share/{doc,man,locale,info} --exclude=./var --exclude=./etc
    done
}

# The uncompressed kernel (an ELF file with a PVH entry) out of bzImage $1. Where it lies is in the
# setup header (the kernel's Documentation/arch/x86/boot.rst): setup_sects at 0x1f1, payload_offset
# at 0x248 and payload_length at 0x24c; the last four bytes of the payload are its unpacked size.
extract_vmlinux() {
    local image="$1" sectors start length magic
    sectors=$(od -An -tu1 -j $((0x1f1)) -N1 "$image")
    start=$(od -An -tu4 -j $((0x248)) -N4 "$image")
    start=$(((sectors + 1) * 512 + start))
    length=$(od -An -tu4 -j $((0x24c)) -N4 "$image")
    bytes() { dd if="$image" iflag=skip_bytes,count_bytes skip="$start" count="$1" bs=1M status=none; }
    magic=$(bytes 4 | od -An -tx1 | tr -d ' ')
    case "$magic" in
        28b52ffd) bytes $((length - 4)) | zstd -dcq ;;
        fd377a58) bytes $((length - 4)) | xz -dc ;;
        *) die "$image: payload compressed in an unknown way ($magic)" ;;
    esac
}
