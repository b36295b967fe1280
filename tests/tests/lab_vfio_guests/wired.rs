//! Devices without messages: their wired interrupts, which the guest's end of interrupt re-arms. The disk's
//! registers are trapped, too.

use anyhow::{Result, ensure};
use tests::passthrough::{HostDevice, PassedThrough};
use tests::{CMDLINE, Initramfs, Vmm};

use crate::{COMMANDS, device, interrupts, text};

/// On x86_64 RAM has a hole below 4 GiB, which is reached with as much as that.
const SIZE: &str = if cfg!(target_arch = "x86_64") {
    "size=4G"
} else {
    "size=512M"
};

const SCRIPT: &str = r#"
card=$(device 0x8086 0x10c9)
section drivers modprobe -a nvme igb
section disk appears $disk
section card appears "$card/net/eth0"
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
section original sh -c 'md5sum </tmp/data'
section before interrupts nvme
section write write_disk /tmp/data 16
section copy sum_of_disk 16 4
section after interrupts nvme
link_up eth0
ip addr add 10.1.1.1/24 dev eth0
send
section sent cat "$card/net/eth0/statistics/tx_packets"
section card/interrupts interrupts eth0
# An interrupt that nobody wants, or too many.
section complaints sh -c "dmesg -r | grep -E '^<[0-4]>' | grep -E 'nvme|igb|irq|IRQ|cut here' || true"
"#;

#[test]
#[ignore = "another guest for interrupts of the older kind, run by scripts/test --full"]
fn devices_without_messages_interrupt_by_wire() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme, HostDevice::NetworkCard])?;
    let initramfs = Initramfs::new(&format!("{COMMANDS}{SCRIPT}")).drivers();
    let report = Vmm::boot(&initramfs, &format!("{CMDLINE} pci=nomsi"))?
        .args(["--cpus", "boot=2", "--memory", SIZE, "--device"])
        .arg(device(HostDevice::Nvme, ",x_exclude_mmap_bars=[0]")?)
        .arg(device(HostDevice::NetworkCard, ",pci_segment=1")?)
        .args(["--platform", "num_pci_segments=2"])
        .run()?
        .report()?;
    report.text("drivers")?;
    report.text("write")?;
    assert_eq!(text(&report, "copy")?, text(&report, "original")?);
    let before = interrupts(&report, "before")?;
    let after = interrupts(&report, "after")?;
    // All queues share the one wire.
    let ([(before, _)], [(after, chip)]) = (&before[..], &after[..]) else {
        panic!("{before:?} {after:?}");
    };
    ensure!(!chip.contains("MSI"), "{chip}");
    // 16 writes and as many reads, at least.
    ensure!(*after >= before + 32, "{before} {after}");

    let sent: u64 = text(&report, "sent")?.parse()?;
    ensure!(sent >= 3, "{sent}");
    let card = interrupts(&report, "card/interrupts")?;
    ensure!(
        matches!(&card[..], [(count, chip)] if *count >= 3 && !chip.contains("MSI")),
        "{card:?}"
    );
    assert_eq!(text(&report, "complaints")?, "");
    Ok(())
}
