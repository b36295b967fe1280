//! What the operator is told of devices that cannot be passed through.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use tests::passthrough::{HostDevice, PassedThrough};
use tests::{CMDLINE, Initramfs, Lab, Vmm};

use crate::{COMMANDS, device};

/// A VMM with a kernel that boots and these devices.
fn with(devices: &[&str]) -> Result<Vmm> {
    Ok(Vmm::new()?
        .arg("--kernel")
        .arg(Lab::get()?.kernel())
        .args(["--serial", "tty", "--console", "off", "--device"])
        .args(devices))
}

/// Expects a VMM to refuse with all of `words`, before a guest runs.
fn refused(vmm: Vmm, words: &[&str]) -> Result<()> {
    let outcome = vmm.run()?;
    let stderr = &outcome.stderr;
    ensure!(outcome.code() == Some(1), "{}: {stderr}", outcome.status);
    ensure!(outcome.stdout.is_empty(), "a guest ran: {}", outcome.stdout);
    for word in words {
        ensure!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
    Ok(())
}

#[test]
fn devices_that_are_not_there_or_not_free() -> Result<()> {
    // Nobody binds devices meanwhile.
    let host = PassedThrough::take(&[])?;
    let nowhere = "/sys/bus/pci/devices/0000:00:1e.7";
    refused(
        with(&[&format!("path={nowhere}")])?,
        &["--device", nowhere, "there is no"],
    )?;
    refused(
        with(&["path=/sys/bus/pci"])?,
        &["--device path=/sys/bus/pci", "not the folder of a device"],
    )?;

    let path = HostDevice::Nvme.path()?;
    let name = path.file_name().context("no name")?.display().to_string();
    refused(
        with(&[&device(HostDevice::Nvme, "")?])?,
        &[
            "--device",
            &name,
            "bound to no driver",
            "vfio-pci",
            "driver_override",
        ],
    )?;

    let drivers = fs::read_dir("/sys/bus/pci/drivers/virtio-pci")?;
    let taken = drivers
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("vendor").exists())
        .context("the host has no virtio device")?;
    let taken = taken.file_name().context("no name")?.display().to_string();
    refused(
        with(&[&format!("path=/sys/bus/pci/devices/{taken}")])?,
        &[
            "--device",
            &taken,
            "bound to the driver virtio-pci",
            &format!("echo {taken} > /sys/bus/pci/drivers/virtio-pci/unbind"),
            "driver_override",
        ],
    )?;
    drop(host);

    let _host = PassedThrough::take(&[HostDevice::Entangled])?;
    let path = HostDevice::Entangled.path()?;
    let neighbour = path.file_name().context("no name")?.display().to_string();
    refused(
        with(&[&device(HostDevice::Entangled, "")?])?,
        &["IOMMU group", &neighbour.replace(".0", ".1"), "virtio-pci"],
    )
}

/// One guest is killed with the disk at work; the next one uses it. Beside it the next one has a device that
/// cannot be reset, because its neighbour is not passed through.
#[test]
#[ignore = "three guests, run by scripts/test --full"]
fn a_device_is_one_machines_until_that_ends() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme, HostDevice::SharedMemory])?;
    let nvme = device(HostDevice::Nvme, "")?;
    let boot = |script: &str| {
        let script = format!("{COMMANDS}\nmodprobe nvme\nsection disk appears $disk\n{script}");
        let vmm = Vmm::boot(&Initramfs::new(&script).drivers(), CMDLINE)?;
        anyhow::Ok(vmm.args(["--memory", "size=256M", "--device", &nvme]))
    };
    let first = boot("echo ready; while read_disk 0 16 >/dev/null; do :; done")?.spawn()?;
    first.wait_for_line("ready")?;
    refused(with(&[&nvme])?, &["--device", "in use", "fuser /dev/vfio/"])?;
    first.signal("KILL")?;
    assert_eq!(first.wait()?.signal(), Some(9));

    let second = boot("section sum sum_of_disk 0 1")?
        .arg(device(HostDevice::SharedMemory, "")?)
        .run()?;
    let report = second.report()?;
    for section in ["disk", "sum"] {
        report.text(section)?;
    }
    let stderr = &second.stderr;
    ensure!(stderr.contains("device _vfio1 cannot be reset"), "{stderr}");
    Ok(())
}
