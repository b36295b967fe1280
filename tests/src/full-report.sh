# shellcheck shell=sh
# What a guest can say about the machine that it is shown, and no more than is of use: each
# character that it types costs it several exits, a millisecond in an emulated host.
section kernel cat /proc/version
section cmdline cat /proc/cmdline
section cpus nproc
section meminfo head -n 1 /proc/meminfo
section iomem cat /proc/iomem

# Not every architecture has every file.
topology() {
    for file in core_id die_id physical_package_id thread_siblings_list package_cpus_list; do
        [ ! -f "$file" ] || grep -H . "$file"
    done
}
for folder in /sys/devices/system/cpu/cpu[0-9]*; do
    cd "$folder/topology" && section "topology/${folder##*/}" topology
done

# files NAME COMMAND FILE…: a section called NAME/FILE for each file that there is.
files() {
    kind="$1"
    command="$2"
    shift 2
    for file in "$@"; do
        [ ! -f "$file" ] || section "$kind/${file##*/}" "$command" "$file"
    done
}
files dmi cat /sys/class/dmi/id/[bcps]*
files smbios base64 /sys/firmware/dmi/tables/*
files acpi base64 /sys/firmware/acpi/tables/*

section complaints sh -c 'dmesg -r | grep -E "^<[0-4]>|ACPI.*([Ee]rror|[Ww]arning)" || true'
