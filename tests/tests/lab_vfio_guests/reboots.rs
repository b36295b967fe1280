//! What devices cost the VMM over many boots of its guest.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::coherent_device::Options;
use tests::passthrough::{HostDevice, PassedThrough};
use tests::{CMDLINE, CoherentDevice, Initramfs, Usage, Vmm, usage};

use crate::{COMMANDS, device};

/// All drivers at work; then what it is told on the console.
const SCRIPT: &str = r#"
modprobe -a nvme igb
insmod /lib/coherent_memory.ko
card=$(device 0x8086 0x10c9)
appears $disk && appears "$card/net/eth0" && ip link set eth0 up && sum_of_disk 0 1 >/dev/null || exit 1
echo ready
read -r order </dev/console
[ "$order" = off ] || { reboot -f; sleep 1000; }
"#;

/// KiB that the kernel has pinned for devices.
fn pinned(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.with_context(|| status.clone())?.parse()?)
}

#[test]
#[ignore = "8 reboots, run by scripts/test --full"]
fn reboots_with_devices_leave_nothing_behind_in_the_vmm() -> Result<()> {
    /// Bytes that an allocator may keep.
    const SLACK: u64 = 512 << 10;
    const REBOOTS: usize = 8;
    const EARLY: usize = 3;

    let devices = [
        HostDevice::Nvme,
        HostDevice::NetworkCard,
        HostDevice::SharedMemory,
        HostDevice::Edu,
    ];
    let _host = PassedThrough::take(&devices)?;
    let coherent = CoherentDevice::start(Options::default())?;
    let script = format!("{COMMANDS}{SCRIPT}");
    let initramfs = Initramfs::new(&script).module("coherent_memory").drivers();
    let options = devices.map(|host| device(host, ""));
    let options: Vec<_> = options.into_iter().collect::<Result<_>>()?;
    let mut vmm = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--memory", "size=256M,shared=on", "--device"])
        .args(options)
        .arg("--user-device")
        .arg(format!("socket={}", coherent.socket().display()))
        .timeout(Duration::from_secs(60))
        .spawn()?;
    let mut usages: Vec<(Usage, u64)> = Vec::new();
    for boot in 0..=REBOOTS {
        vmm.wait_for_lines("ready", boot + 1)?;
        usages.push((usage(vmm.pid())?, pinned(vmm.pid())?));
        vmm.write(if boot < REBOOTS { "reboot\n" } else { "off\n" })?;
    }
    vmm.wait()?.report()?;
    let ((early, early_pinned), (late, late_pinned)) = (usages[EARLY], usages[REBOOTS]);
    assert_eq!(late.threads, early.threads, "{usages:#?}");
    assert_eq!(late.descriptors, early.descriptors, "{usages:#?}");
    assert_eq!(late.guest_ram, early.guest_ram, "{usages:#?}");
    assert!(late.own_memory <= early.own_memory + SLACK, "{usages:#?}");
    // All of RAM, in KiB.
    ensure!(early_pinned >= 256 << 10, "{usages:#?}");
    assert_eq!(late_pinned, early_pinned, "{usages:#?}");
    Ok(())
}
