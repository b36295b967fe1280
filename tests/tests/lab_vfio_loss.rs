//! A guest whose device the host takes back: the VMM lets go of it, and the guest goes on without.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pci::vfio::Container;
use tests::passthrough::{HostDevice, PassedThrough};
use tests::{CMDLINE, Initramfs, Vmm};

/// Version of NVM Express, in BAR 0 (NVM Express 2.0, section 3.1.3.2); no version is 0 or ones.
const VERSION: u32 = 8;

const SCRIPT: &str = r#"
device() {
    for folder in /sys/bus/pci/devices/*; do
        [ "$(cat "$folder/vendor"):$(cat "$folder/device")" != "$1" ] || echo "$folder"
    done
}
bar() { sed -n "$(($2 + 1))s/ .*//p" "$1/resource"; }
ids() { od -An -tx1 -N4 "$1/config"; }
disk=$(device 0x1b36:0x0010)
memory=$(device 0x1af4:0x1110)
if [ -z "$disk" ]; then
    section second/devices ls -1 /sys/bus/pci/devices
    return 0
fi
for folder in "$disk" "$memory"; do echo 1 >"$folder/enable"; done
registers=$(bar "$disk" 0)
large=$(bar "$memory" 2)
section before/disk ids "$disk"
section before/version devmem $((registers + VERSION)) 32
devmem $((large + 4096)) 64 0x1122334455667788
echo ready
read -r answer </dev/console
section after/disk ids "$disk"
section after/version devmem $((registers + VERSION)) 32
# Somebody else's device is as it was.
section after/memory devmem $((large + 4096)) 64
echo first
read -r answer </dev/console
# Memory stays memory.
section taken/ids ids "$memory"
section taken/load devmem $((large + 4096)) 64
section taken/store devmem $((large + 8192)) 64 0x5566
section taken/again devmem $((large + 8192)) 64
echo second
read -r answer </dev/console
reboot -f
sleep 1000
"#;

/// Whether somebody else can have a device that was taken back.
fn try_it(device: HostDevice) -> Result<()> {
    let path = device.path()?;
    let name = path.file_name().context("no name")?.display().to_string();
    fs::write(path.join("driver_override"), "vfio-pci")?;
    fs::write("/sys/bus/pci/drivers_probe", name)?;
    // Closed at once.
    drop(Container::new()?.open_device(&path)?);
    take_back(device)
}

/// Takes a device back; an error if the VMM does not let go of it.
fn take_back(device: HostDevice) -> Result<()> {
    let taker = thread::spawn(move || device.unbind());
    for _ in 0..600 {
        if taker.is_finished() {
            return taker.join().expect("no panic");
        }
        thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("{device:?} is not given back")
}

#[test]
fn devices_that_the_host_takes_back() -> Result<()> {
    // The memory can only be reset together with its neighbour.
    let devices = [HostDevice::Nvme, HostDevice::SharedMemory, HostDevice::Edu];
    let _host = PassedThrough::take(&devices)?;
    let mut paths = Vec::new();
    for device in devices {
        paths.push(format!("path={}", device.path()?.display()));
    }
    let script = format!("VERSION={VERSION}\n{SCRIPT}");
    let mut vmm = Vmm::boot(&Initramfs::new(&script), CMDLINE)?
        .args(["--memory", "size=256M", "--device"])
        .args(&paths)
        .timeout(Duration::from_secs(40))
        .spawn()?;
    vmm.wait_for_line("ready")?;
    take_back(HostDevice::Nvme)?;
    vmm.write("go on\n")?;
    vmm.wait_for_line("first")?;
    take_back(HostDevice::SharedMemory)?;
    vmm.write("go on\n")?;
    vmm.wait_for_line("second")?;
    // The memory's group is the guest's still, because of the third device.
    try_it(HostDevice::Nvme)?;
    vmm.write("go on\n")?;
    let outcome = vmm.wait()?;
    let report = outcome.report()?;
    let text = |name| report.text(name).map(str::trim);
    assert_eq!(text("before/disk")?, "36 1b 10 00");
    let version = text("before/version")?;
    ensure!(
        !["0x00000000", "0xFFFFFFFF"].contains(&version),
        "{version}"
    );
    assert_eq!(text("after/disk")?, "ff ff ff ff");
    assert_eq!(text("after/version")?, "0xFFFFFFFF");
    assert_eq!(text("after/memory")?, "0x1122334455667788");
    assert_eq!(text("taken/ids")?, "ff ff ff ff");
    assert_eq!(text("taken/load")?, "0x0000000000000000");
    text("taken/store")?;
    assert_eq!(text("taken/again")?, "0x0000000000005566");
    // Neither the disk nor the memory, but the bridge, the third device and the source of randomness.
    let devices = text("second/devices")?;
    assert_eq!(devices.lines().count(), 3, "{devices}");
    let stderr = &outcome.stderr;
    let lines: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("is lost"))
        .collect();
    ensure!(lines.len() == 2, "{stderr}");
    for (line, name) in lines.iter().zip(["_vfio0", "_vfio1"]) {
        ensure!(line.contains(&format!("device {name} ")), "{line}");
        ensure!(line.contains("the host asks for it back"), "{line}");
    }
    Ok(())
}
