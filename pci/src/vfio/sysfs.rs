//! What sysfs says of a device and of its group.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::OpenError;

/// Drivers that leave a group in the hands of who else has it: they do no DMA.
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];

/// A device of the host that is ready to be passed through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its folder in sysfs.
    pub path: PathBuf,
    /// What the kernel calls it, such as `0000:01:00.0`.
    pub name: String,
    /// The driver that passes it through.
    pub driver: String,
    /// Its IOMMU group.
    pub group: u32,
}

impl HostDevice {
    /// Looks a device up by its folder, or by a link to it.
    pub fn find(path: &Path) -> Result<Self, OpenError> {
        let folder = fs::canonicalize(path).map_err(|source| OpenError::Missing {
            path: path.to_owned(),
            source,
        })?;
        let name = folder.file_name().and_then(OsStr::to_str);
        let name = name.filter(|_| folder.join("subsystem").exists());
        let Some(name) = name.map(str::to_owned) else {
            return Err(OpenError::NotADevice {
                path: path.to_owned(),
            });
        };
        let Some(driver) = link_name(&folder, "driver") else {
            return Err(OpenError::Unbound {
                path: path.to_owned(),
                name,
            });
        };
        if !is_vfio(&folder, &driver) {
            return Err(OpenError::WrongDriver {
                path: path.to_owned(),
                name,
                driver,
            });
        }
        let group = link_name(&folder, "iommu_group").and_then(|name| name.parse().ok());
        let group = group.ok_or_else(|| OpenError::NoGroup {
            path: path.to_owned(),
        })?;
        Ok(Self {
            path: folder,
            name,
            driver,
            group,
        })
    }

    /// The card that it is a virtual function of and that card's driver, if that passes the card through.
    pub fn passed_through_card(&self) -> Option<(String, String)> {
        let card = self.path.join("physfn");
        let driver = link_name(&card, "driver").filter(|driver| is_vfio(&card, driver))?;
        Some((link_name(&self.path, "physfn")?, driver))
    }

    /// Devices of the same group whose drivers keep the group from being passed through, as
    /// `0000:01:00.1 (nvme)`.
    pub fn in_the_way(&self) -> Vec<String> {
        let devices = fs::read_dir(self.path.join("iommu_group/devices"));
        let mut found: Vec<String> = devices
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let driver = link_name(&entry.path(), "driver")?;
                let is_in_the_way =
                    !is_vfio(&entry.path(), &driver) && !HARMLESS.contains(&driver.as_str());
                let name = entry.file_name();
                is_in_the_way.then(|| format!("{} ({driver})", name.display()))
            })
            .collect();
        found.sort();
        found
    }
}

/// Whether the drivers of all these devices, by what the kernel calls them, pass them through.
/// `device` is the folder of any PCI device.
pub fn are_passed_through(device: &Path, names: &[String]) -> bool {
    let all = device.join("subsystem/devices");
    names.iter().all(|name| {
        let folder = all.join(name);
        link_name(&folder, "driver").is_some_and(|driver| is_vfio(&folder, &driver))
    })
}

/// Whether a device's driver passes it through. Linux says so from 6.1 on; before, only the names of
/// such drivers do.
fn is_vfio(device: &Path, driver: &str) -> bool {
    device.join("vfio-dev").exists() || driver.contains("vfio")
}

/// The last part of what a link in a folder points to.
fn link_name(folder: &Path, link: &str) -> Option<String> {
    let target = fs::read_link(folder.join(link)).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
pub mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A folder that looks like sysfs.
    pub struct Sysfs(TempDir);

    impl Sysfs {
        pub fn new() -> Self {
            let sysfs = Self(tempfile::tempdir().unwrap());
            for folder in ["devices/pci0000:00", "bus/pci/devices", "bus/pci/drivers"] {
                fs::create_dir_all(sysfs.0.path().join(folder)).unwrap();
            }
            sysfs
        }

        /// Adds a device and returns the link to it that users know.
        pub fn add(&self, name: &str, driver: Option<&str>, group: Option<&str>) -> PathBuf {
            let root = self.0.path();
            let folder = root.join("devices/pci0000:00").join(name);
            fs::create_dir(&folder).unwrap();
            symlink("../../../bus/pci", folder.join("subsystem")).unwrap();
            if let Some(driver) = driver {
                let target = format!("../../../bus/pci/drivers/{driver}");
                fs::create_dir_all(folder.join(&target)).unwrap();
                symlink(target, folder.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let target = format!("../../../kernel/iommu_groups/{group}");
                let devices = root.join(format!("kernel/iommu_groups/{group}/devices"));
                fs::create_dir_all(&devices).unwrap();
                symlink(target, folder.join("iommu_group")).unwrap();
                symlink(&folder, devices.join(name)).unwrap();
            }
            let link = root.join("bus/pci/devices").join(name);
            symlink(format!("../../../devices/pci0000:00/{name}"), &link).unwrap();
            link
        }

        pub fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }
    }

    #[test]
    fn a_device_is_found_by_any_path_to_it() {
        let sysfs = Sysfs::new();
        let link = sysfs.add("0000:00:02.0", Some("vfio-pci"), Some("12"));
        let folder = sysfs.path("devices/pci0000:00/0000:00:02.0");
        let expected = HostDevice {
            path: fs::canonicalize(&folder).unwrap(),
            name: "0000:00:02.0".to_owned(),
            driver: "vfio-pci".to_owned(),
            group: 12,
        };
        for path in [&link, &folder, &link.join("")] {
            assert_eq!(HostDevice::find(path).unwrap(), expected);
        }
    }

    #[test]
    fn a_driver_need_not_be_called_vfio() {
        let sysfs = Sysfs::new();
        let link = sysfs.add("0000:00:02.0", Some("nova"), Some("1"));
        assert!(HostDevice::find(&link).is_err());
        fs::create_dir(link.join("vfio-dev")).unwrap();
        assert_eq!(HostDevice::find(&link).unwrap().driver, "nova");
        let older = sysfs.add("0000:00:03.0", Some("nvgrace-gpu-vfio-pci"), Some("2"));
        assert_eq!(
            HostDevice::find(&older).unwrap().driver,
            "nvgrace-gpu-vfio-pci"
        );
    }

    #[test]
    fn what_cannot_be_passed_through_is_told_apart() {
        let sysfs = Sysfs::new();
        let text = |path: &Path| HostDevice::find(path).unwrap_err().to_string();

        let nowhere = sysfs.path("bus/pci/devices/0000:00:1f.0");
        assert!(matches!(
            HostDevice::find(&nowhere),
            Err(OpenError::Missing { .. })
        ));
        assert!(text(&nowhere).contains("0000:00:1f.0"));
        let no_device = sysfs.path("bus/pci");
        assert!(text(&no_device).contains("bus/pci is not the folder of a device"));

        let unbound = sysfs.add("0000:00:02.0", None, Some("1"));
        let message = text(&unbound);
        assert!(message.contains("0000:00:02.0 is bound to no driver"));
        assert!(message.contains("bind it to vfio-pci"), "{message}");

        let taken = sysfs.add("0000:00:03.0", Some("nvme"), Some("2"));
        let message = text(&taken);
        assert!(message.contains("driver nvme"), "{message}");
        assert!(message.contains("bind it to vfio-pci"), "{message}");

        let alone = sysfs.add("0000:00:04.0", Some("vfio-pci"), None);
        let message = text(&alone);
        assert!(message.contains("IOMMU group"), "{message}");
        assert!(message.contains("intel_iommu=on"), "{message}");
    }

    #[test]
    fn a_virtual_function_knows_a_card_that_is_passed_through() {
        let sysfs = Sysfs::new();
        for (slot, driver) in [Some("vfio-pci"), Some("igb"), None]
            .into_iter()
            .enumerate()
        {
            let card = format!("0000:00:{slot:02x}.0");
            sysfs.add(&card, driver, Some("1"));
            let link = sysfs.add(&format!("0000:00:1{slot}.0"), Some("vfio-pci"), Some("2"));
            let function = HostDevice::find(&link).unwrap();
            assert_eq!(function.passed_through_card(), None);
            symlink(format!("../{card}"), function.path.join("physfn")).unwrap();
            let expected = (driver == Some("vfio-pci")).then(|| (card, "vfio-pci".to_owned()));
            assert_eq!(function.passed_through_card(), expected);
        }
    }

    #[test]
    fn only_drivers_that_use_a_device_are_in_the_way() {
        let sysfs = Sysfs::new();
        let link = sysfs.add("0000:00:02.0", Some("vfio-pci"), Some("1"));
        sysfs.add("0000:00:02.1", Some("snd_hda_intel"), Some("1"));
        sysfs.add("0000:00:02.2", None, Some("1"));
        sysfs.add("0000:00:02.3", Some("xhci_hcd"), Some("1"));
        sysfs.add("0000:00:01.0", Some("pcieport"), Some("1"));
        sysfs.add("0000:00:05.0", Some("nvme"), Some("2"));
        let found = HostDevice::find(&link).unwrap().in_the_way();
        assert_eq!(
            found,
            ["0000:00:02.1 (snd_hda_intel)", "0000:00:02.3 (xhci_hcd)"]
        );
    }

    #[test]
    fn devices_are_passed_through_if_all_are_bound() {
        let sysfs = Sysfs::new();
        let link = sysfs.add("0000:00:02.0", Some("vfio-pci"), Some("1"));
        sysfs.add("0000:00:02.1", Some("vfio-pci"), Some("1"));
        sysfs.add("0000:00:02.2", None, Some("1"));
        sysfs.add("0000:00:02.3", Some("pci-stub"), Some("1"));
        let folder = HostDevice::find(&link).unwrap().path;
        for (others, expected) in [
            (vec![], true),
            (vec![1], true),
            (vec![1, 2], false),
            (vec![3], false),
            (vec![4], false),
        ] {
            let names = [0].into_iter().chain(others);
            let names: Vec<_> = names
                .map(|function| format!("0000:00:02.{function}"))
                .collect();
            assert_eq!(are_passed_through(&folder, &names), expected, "{names:?}");
        }
    }
}
