#!/bin/sh
# The only process of a guest: runs /test.sh, says how it ended and powers off. busybox's shell
# finds its commands in itself, by way of /proc, so there is no PATH to fill.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
# From here on the console belongs to the test.
dmesg -n 1

# section NAME COMMAND…: one named answer, framed so that tests::Report finds it.
section() {
    echo "@@ begin $1"
    name="$1"
    shift
    "$@" 2>&1
    echo "@@ end $name $?"
}

# shellcheck source=/dev/null
(. /test.sh)
status=$?
# A script that has mounted a root file system there goes on in it.
if [ -d /newroot ]; then
    umount -l /tmp /dev /sys /proc
    exec /bin/busybox switch_root -c /dev/console /newroot /sbin/init
fi
echo "@@ exit $status"
poweroff -f
