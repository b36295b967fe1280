//! Whose a device is: the host's, ours, or somebody else's.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::*;

#[test]
fn the_host_asks_for_a_device_and_gets_it_back() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme])?;
    let container = Container::new()?;
    let nvme = open(&container, HostDevice::Nvme)?;
    let (request, error) = (event()?, event()?);
    nvme.on_request(&request)?;
    nvme.on_error(&error)?;
    assert!(!arrives_within(&request, SHORT));
    let taker = thread::spawn(|| HostDevice::Nvme.unbind());
    assert!(arrives(&request));
    assert!(!taker.is_finished());
    drop(nvme);
    taker.join().expect("no panic")?;
    assert!(error.read().is_err());
    Ok(())
}

#[test]
fn a_device_that_is_given_back_is_the_hosts_though_somebody_holds_it() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme])?;
    let container = Container::new()?;
    let nvme = open(&container, HostDevice::Nvme)?;
    let areas = nvme.region(0).mappable.clone();
    ensure!(!areas.is_empty());
    let group = nvme.close()?.context("it was the only one of its group")?;
    assert!(container.groups().is_empty());
    let lost = nvme.read(region::CONFIG, COMMAND, &mut [0; 2]);
    assert!(matches!(lost, Err(DeviceError::Lost(_))), "{lost:?}");
    drop(group);
    // Somebody else opens it, and the host takes it, while the first one is there still.
    drop(open(&Container::new()?, HostDevice::Nvme)?);
    HostDevice::Nvme.unbind()?;
    drop(areas);
    Ok(())
}

/// A device that another driver of the host has.
fn taken_device() -> Result<PathBuf> {
    let devices = fs::read_dir("/sys/bus/pci/drivers/virtio-pci")?;
    let mut devices = devices.filter_map(Result::ok).map(|entry| entry.path());
    devices
        .find(|path| path.join("vendor").exists())
        .context("the host has no virtio device")
}

#[test]
fn what_cannot_be_passed_through_is_refused() -> Result<()> {
    // Nobody binds devices meanwhile.
    let _host = PassedThrough::take(&[])?;
    let container = Container::new()?;
    let refusal = |path: &Path| container.open_device(path).map(drop).unwrap_err();

    let error = refusal(&taken_device()?);
    assert!(
        matches!(&error, OpenError::WrongDriver { driver, .. } if driver == "virtio-pci"),
        "{error}"
    );
    let error = refusal(&HostDevice::Nvme.path()?);
    assert!(matches!(error, OpenError::Unbound { .. }), "{error}");
    let error = refusal(Path::new("/sys/bus/pci"));
    assert!(matches!(error, OpenError::NotADevice { .. }), "{error}");
    let error = refusal(Path::new("/sys/bus/pci/devices/0000:00:1e.7"));
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    assert!(container.groups().is_empty());
    Ok(())
}

#[test]
fn a_group_that_the_host_uses_is_refused_with_the_names_of_its_devices() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Entangled])?;
    let container = Container::new()?;
    let error = open(&container, HostDevice::Entangled).unwrap_err();
    let Some(OpenError::NotViable { devices, .. }) = error.downcast_ref() else {
        panic!("{error:#}");
    };
    let path = HostDevice::Entangled.path()?;
    let name = path.file_name().context("no name")?.display().to_string();
    let neighbour = name.replace(".0", ".1");
    assert_eq!(*devices, [format!("{neighbour} (virtio-pci)")]);
    Ok(())
}

#[test]
fn the_files_of_groups_outlive_devices() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme])?;
    let container = Container::new()?;
    let nvme = open(&container, HostDevice::Nvme)?;
    let groups = container.groups();
    let link = fs::read_link(format!("/proc/self/fd/{}", groups[0].as_raw_fd()))?;
    assert_eq!(link.parent(), Some(Path::new("/dev/vfio")));
    drop(nvme);
    // As long as somebody has the group, nobody else gets it.
    let again = open(&container, HostDevice::Nvme).unwrap_err();
    let busy = again.downcast_ref::<OpenError>();
    assert!(
        matches!(busy, Some(OpenError::GroupBusy { .. })),
        "{again:#}"
    );
    drop(groups);
    open(&container, HostDevice::Nvme)?;
    Ok(())
}
