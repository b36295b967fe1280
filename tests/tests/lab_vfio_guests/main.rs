//! Linux guests with real devices, which a real IOMMU lets into their memory.
//!
//! The devices are those of an emulated host ([`tests::passthrough`]). They are there once, so one
//! guest at a time has some.

mod devices;
mod peer_memory;
mod reboots;
mod refusals;
mod virtual_functions;
mod wired;

use anyhow::{Context as _, Result};
use tests::Report;
use tests::passthrough::HostDevice;

/// Functions for scripts. The kernel's drivers find their devices in their own time.
const COMMANDS: &str = r#"
# The folder of the first device with these ids: vendor and device.
device() {
    for folder in /sys/bus/pci/devices/*; do
        [ "$(cat "$folder/vendor"):$(cat "$folder/device")" != "$1:$2" ] || { echo "$folder"; break; }
    done
}
appears() {
    tries=0
    until [ -e "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { echo "no $1"; return 1; }
        usleep 100000
    done
}
# The ids of extended capabilities: 0 is the list's beginning without one, or with none at all.
extended() {
    at=256
    until [ $at -lt 256 ]; do
        header=$(($(od -An -tu4 -j $at -N4 "$1/config")))
        echo $((header & 65535))
        at=$((header >> 20))
    done
}
# Turns a network interface on, and gives it time for its link.
link_up() {
    ip link set "$1" up
    tries=0
    until [ "$(cat "/sys/class/net/$1/carrier" 2>/dev/null)" = 1 ] || [ $tries = 100 ]; do
        tries=$((tries + 1))
        usleep 100000
    done
}
# What the kernel counted of interrupts whose line matches.
interrupts() { grep -E "$1" /proc/interrupts; }
disk=/dev/nvme0n1
# MiB read past the page cache, from an offset in MiB.
read_disk() { dd if=$disk iflag=direct bs=256k skip=$(($1 * 4)) count=$(($2 * 4)) 2>/dev/null; }
sum_of_disk() { read_disk "$1" "$2" | md5sum; }
# A file written past the page cache, to an offset in MiB.
write_disk() { dd if="$1" of=$disk oflag=direct bs=256k seek=$(($2 * 4)) conv=notrunc 2>/dev/null; }
# Three packets to nobody, through the network card.
send() {
    for packet in 1 2 3; do arping -q -c 1 -w 1 -I eth0 10.1.1.2 & done
    wait
}
"#;

/// Values of `--device`, one for each of them, followed by what is wanted of it.
fn device(device: HostDevice, options: &str) -> Result<String> {
    Ok(format!("path={}{options}", device.path()?.display()))
}

fn text<'a>(report: &'a Report, name: &str) -> Result<&'a str> {
    Ok(report.text(name)?.trim())
}

/// How often each interrupt came, on all CPUs together, with how it comes and whose it is: from lines
/// " 25:   12   0   PCI-MSIX-0000:00:01.0   0-edge   nvme0q0".
fn interrupts(report: &Report, section: &str) -> Result<Vec<(u64, String)>> {
    let line = |line: &str| {
        let (_, line) = line.split_once(':')?;
        let mut words = line.split_whitespace().peekable();
        let mut count = 0;
        while let Some(more) = words.peek().and_then(|word| word.parse::<u64>().ok()) {
            count += more;
            words.next();
        }
        Some((count, words.collect::<Vec<_>>().join(" ")))
    };
    let text = report.text(section)?;
    text.lines()
        .map(|text| line(text).with_context(|| text.to_owned()))
        .collect()
}
