//! Virtio devices, as Linux drives them.

use anyhow::{Result, ensure};
use tests::{CMDLINE, Initramfs, SharedReport, Vmm};

/// What the source of randomness gives, in hexadecimal.
const RANDOM: &str = "00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210";

/// On a segment of its own, bound and unbound again and again, which resets it.
const SCRIPT: &str = "
modprobe virtio-rng
device=/sys/bus/pci/devices/0001:00:07.0
section ids cat $device/vendor $device/device $device/class
section driver sh -c \"basename \\$(readlink $device/driver)\"
section current cat /sys/class/misc/hw_random/rng_current
section bytes sh -c 'dd if=/dev/hwrng bs=64 count=1 2>/dev/null | hexdump -v -e \"1/1 \\\"%02x\\\"\"; echo'
section interrupts sh -c 'grep -c virtio /proc/interrupts'
virtio=$(basename $device/virtio*)
for round in 1 2 3 4 5; do
    echo $virtio >/sys/bus/virtio/drivers/virtio_rng/unbind
    echo $virtio >/sys/bus/virtio/drivers/virtio_rng/bind
done
section again sh -c 'dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c'
section complaints sh -c 'dmesg | grep -iE \"virtio.*(fail|error|warn)\" || true'
";

static REPORT: SharedReport = SharedReport::new(|| {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("random");
    std::fs::write(&source, hex(RANDOM).repeat(4096))?;
    let rng = format!("src={},pci_segment=1,pci_device_id=7", source.display());
    let initramfs = Initramfs::new(SCRIPT).drivers();
    let vmm =
        Vmm::boot(&initramfs, CMDLINE)?.args(["--platform", "num_pci_segments=2", "--rng", &rng]);
    vmm.run()?.report()
});

fn hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| text.get(at..at + 2).unwrap_or("00");
    let byte = |at: usize| u8::from_str_radix(digits(at), 16).unwrap_or(0);
    (0..text.len()).step_by(2).map(byte).collect()
}

fn text(section: &str) -> Result<&'static str> {
    Ok(REPORT.get()?.text(section)?.trim())
}

#[test]
fn the_source_of_randomness_is_found_and_driven() -> Result<()> {
    assert_eq!(text("ids")?, "0x1af4\n0x1044\n0xff0000");
    assert_eq!(text("driver")?, "virtio-pci");
    ensure!(text("current")?.starts_with("virtio_rng"));
    assert_eq!(text("complaints")?, "");
    Ok(())
}

/// Linux may have taken some of it before, from the start of the file on.
#[test]
fn the_guest_gets_what_the_host_gives() -> Result<()> {
    let bytes = text("bytes")?;
    assert_eq!(bytes.len(), 128);
    let endless = RANDOM.repeat(8);
    ensure!(endless.contains(bytes), "{bytes}");
    Ok(())
}

#[test]
fn it_works_on_after_many_resets() -> Result<()> {
    assert_eq!(text("again")?, "16");
    // Registers, and the queue.
    assert_eq!(text("interrupts")?, "2");
    Ok(())
}
