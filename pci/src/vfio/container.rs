//! Groups of devices that see the same guest memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_TYPE1v2_IOMMU,
};

use super::info::IommuInfo;
use super::sysfs::HostDevice;
use super::{DmaError, OpenError, VfioDevice, sys};
use crate::machine::{DmaArea, DmaTarget};

/// Devices of the host and the guest memory that they reach, through a type 1 IOMMU. Clones are the
/// same container.
///
/// Memory may be mapped before there is a device: the first one finds it mapped. A group is given
/// back to the host when all of its devices and all of their [`MappableArea`](crate::MappableArea)s
/// are dropped.
#[derive(Clone, Debug)]
pub struct Container {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    /// The folder that groups are in.
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<u32, Group>,
    /// What devices reach, by guest-physical address.
    areas: BTreeMap<u64, Area>,
    /// What the IOMMU can do for the groups that are there.
    iommu: IommuInfo,
}

#[derive(Debug)]
struct Group {
    file: Arc<OwnedFd>,
    /// Its devices that are open, by the names that the kernel has for them.
    devices: BTreeSet<String>,
}

/// A [`DmaArea`] as the kernel needs it.
#[derive(Clone, Copy, Debug)]
struct Area {
    size: u64,
    host_address: usize,
    writable: bool,
}

/// A device's place in its group; the last one that is dropped closes the group.
#[derive(Debug)]
pub struct Membership {
    container: Container,
    group: u32,
    name: String,
    /// Whether the place is free again.
    left: bool,
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.left {
            self.take_out();
        }
    }
}

impl Membership {
    /// Gives the place up.
    ///
    /// # Returns
    /// The group's file, if this was its last device: the group is closed when nobody has it.
    pub fn leave(mut self) -> Option<Arc<OwnedFd>> {
        self.left = true;
        self.take_out()
    }

    fn take_out(&self) -> Option<Arc<OwnedFd>> {
        let mut state = self.container.lock();
        let group = state.groups.get_mut(&self.group)?;
        group.devices.remove(&self.name);
        if !group.devices.is_empty() {
            return None;
        }
        state.groups.remove(&self.group).map(|group| group.file)
    }

    /// The files of these groups, if all of them are in the container.
    pub fn files_of(&self, groups: &BTreeSet<u32>) -> Option<Vec<Arc<OwnedFd>>> {
        let state = self.container.lock();
        let files = groups.iter().map(|group| state.groups.get(group));
        files
            .map(|group| group.map(|group| Arc::clone(&group.file)))
            .collect()
    }
}

impl Container {
    /// A container without devices.
    ///
    /// # Errors
    /// The kernel has no VFIO, or one that is not known here.
    pub fn new() -> Result<Self, OpenError> {
        Self::in_folder(Path::new("/dev/vfio"))
    }

    fn in_folder(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join("vfio");
        let file = open(&path).map_err(|source| no_vfio(&path, source))?;
        let version = sys::api_version(&file).map_err(|source| no_vfio(&path, source))?;
        if u32::try_from(version) != Ok(VFIO_API_VERSION) {
            return Err(OpenError::Version { version });
        }
        Ok(Self {
            shared: Arc::new(Shared {
                file,
                folder: folder.to_owned(),
                state: Mutex::default(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a device by its folder in sysfs, such as `/sys/bus/pci/devices/0000:01:00.0`, and its
    /// group if that is not open yet. The device is reset by that, if it can be.
    ///
    /// # Errors
    /// It cannot be passed through as it is, or is already; the error says what to do.
    pub fn open_device(&self, sysfs_path: &Path) -> Result<VfioDevice, OpenError> {
        let device = HostDevice::find(sysfs_path)?;
        let (membership, group) = self.join(&device)?;
        VfioDevice::open(&device, &group, membership)
    }

    /// The files of all groups, for KVM's VFIO device. A group stays with this process for as long
    /// as somebody has its file.
    pub fn groups(&self) -> Vec<Arc<OwnedFd>> {
        let state = self.lock();
        let groups = state.groups.values();
        groups.map(|group| Arc::clone(&group.file)).collect()
    }

    fn join(&self, device: &HostDevice) -> Result<(Membership, Arc<OwnedFd>), OpenError> {
        let mut state = self.lock();
        let name = device.name.clone();
        let file = match state.groups.get_mut(&device.group) {
            Some(group) => {
                if !group.devices.insert(name.clone()) {
                    let path = device.path.clone();
                    return Err(OpenError::AlreadyOpen { path });
                }
                Arc::clone(&group.file)
            }
            None => {
                let file = Arc::new(self.open_group(device)?);
                state.iommu = self.attach(device.group, &file, &state.areas)?;
                let group = Group {
                    file: Arc::clone(&file),
                    devices: BTreeSet::from([name.clone()]),
                };
                state.groups.insert(device.group, group);
                file
            }
        };
        let membership = Membership {
            container: self.clone(),
            group: device.group,
            name,
            left: false,
        };
        Ok((membership, file))
    }

    fn open_group(&self, device: &HostDevice) -> Result<OwnedFd, OpenError> {
        let path = self.shared.folder.join(device.group.to_string());
        let group = open(&path).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => OpenError::GroupBusy { path: path.clone() },
            _ if source.kind() == io::ErrorKind::PermissionDenied => OpenError::Permission {
                path: path.clone(),
                source,
            },
            _ => OpenError::Group {
                path: path.clone(),
                source,
            },
        })?;
        let group = OwnedFd::from(group);
        let flags = sys::group_flags(&group).map_err(|source| OpenError::Group { path, source })?;
        if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(OpenError::NotViable {
                group: device.group,
                devices: device.in_the_way(),
            });
        }
        Ok(group)
    }

    /// Puts a group into the container, and into the kernel's what the kernel has forgotten.
    fn attach(
        &self,
        group: u32,
        file: &OwnedFd,
        areas: &BTreeMap<u64, Area>,
    ) -> Result<IommuInfo, OpenError> {
        let container = &self.shared.file;
        sys::set_container(file, container)
            .map_err(|source| OpenError::Attach { group, source })?;
        // The kind of IOMMU, and all that is mapped, goes with the last group, which may be later than
        // we know of. Whether it has gone is seen from that a container without a kind says nothing.
        if sys::iommu_info(container).is_err() {
            let iommu_error = |source| OpenError::Iommu { group, source };
            if !sys::has_extension(container, VFIO_TYPE1v2_IOMMU).map_err(iommu_error)? {
                return Err(OpenError::NoIommu { group });
            }
            sys::set_iommu(container, VFIO_TYPE1v2_IOMMU).map_err(iommu_error)?;
            let info = self.iommu_info(group)?;
            for (gpa, area) in areas {
                let mapped = check(&info, *gpa, *area).and_then(|()| self.map_area(*gpa, *area));
                mapped.map_err(|error| OpenError::Memory {
                    group,
                    source: error.into(),
                })?;
            }
        }
        self.iommu_info(group)
    }

    fn iommu_info(&self, group: u32) -> Result<IommuInfo, OpenError> {
        let bytes = sys::iommu_info(&self.shared.file);
        let bytes = bytes.map_err(|source| OpenError::Iommu { group, source })?;
        IommuInfo::parse(&bytes).map_err(|source| OpenError::IommuInfo { group, source })
    }

    fn map_area(&self, gpa: u64, area: Area) -> Result<(), DmaError> {
        let Area {
            size,
            host_address,
            writable,
        } = area;
        let mut flags = VFIO_DMA_MAP_FLAG_READ;
        if writable {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        sys::map(&self.shared.file, flags, gpa, host_address as u64, size)
            .map_err(|source| DmaError::Map { gpa, size, source })
    }
}

impl DmaTarget for Container {
    fn map(&self, area: &DmaArea) -> io::Result<()> {
        let DmaArea {
            gpa,
            size,
            host_address,
            file: _,
            writable,
        } = *area;
        let area = Area {
            size,
            host_address,
            writable,
        };
        let mut state = self.lock();
        if !state.groups.is_empty() {
            check(&state.iommu, gpa, area)?;
        }
        match self.map_area(gpa, area) {
            Err(DmaError::Map { source, .. }) if state.knows_no_iommu(&source) => {}
            result => result?,
        }
        state.areas.insert(gpa, area);
        Ok(())
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        let mut state = self.lock();
        if state.areas.get(&gpa).is_none_or(|area| area.size != size) {
            return Err(DmaError::NotMapped { gpa, size }.into());
        }
        match sys::unmap(&self.shared.file, gpa, size) {
            Ok(done) if done != size => return Err(DmaError::Partial { gpa, size, done }.into()),
            Err(source) if !state.knows_no_iommu(&source) => {
                return Err(DmaError::Unmap { gpa, size, source }.into());
            }
            Ok(_) | Err(_) => {}
        }
        state.areas.remove(&gpa);
        Ok(())
    }
}

impl State {
    /// Whether the kernel refused because the container has no group, and so no kind of IOMMU.
    fn knows_no_iommu(&self, error: &io::Error) -> bool {
        self.groups.is_empty() && error.raw_os_error() == Some(libc::EINVAL)
    }
}

/// Whether an IOMMU can show an area to devices.
fn check(iommu: &IommuInfo, gpa: u64, area: Area) -> Result<(), DmaError> {
    let Area {
        size,
        host_address,
        writable: _,
    } = area;
    let page = iommu.page.max(1);
    let numbers = [gpa, size, host_address as u64];
    if size == 0 || !numbers.iter().all(|number| number.is_multiple_of(page)) {
        return Err(DmaError::Unaligned {
            gpa,
            size,
            host_address,
            page,
        });
    }
    let last = gpa.saturating_add(size - 1);
    let Some(ranges) = &iommu.ranges else {
        return Ok(());
    };
    let fits =
        |range: &std::ops::RangeInclusive<u64>| *range.start() <= gpa && last <= *range.end();
    match ranges.iter().any(fits) {
        true => Ok(()),
        false => Err(DmaError::Outside {
            first: gpa,
            last,
            ranges: ranges.clone(),
        }),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn no_vfio(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied => OpenError::Permission { path, source },
        _ => OpenError::NoVfio { path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::tests::Sysfs;
    use super::*;

    fn area(size: u64, host_address: usize) -> Area {
        Area {
            size,
            host_address,
            writable: true,
        }
    }

    fn iommu(ranges: Option<Vec<std::ops::RangeInclusive<u64>>>) -> IommuInfo {
        IommuInfo { page: 4096, ranges }
    }

    #[test]
    fn areas_fit_into_one_range_of_the_iommu() {
        let x86 = iommu(Some(vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1]));
        let fits = |gpa, size| check(&x86, gpa, area(size, 0)).is_ok();
        assert!(fits(0, 0xc000_0000));
        assert!(fits(1 << 32, (1 << 39) - (1 << 32)));
        assert!(!fits(1 << 32, 1 << 39));
        assert!(!fits(0xfede_f000, 0x20_0000));
        assert!(!fits(u64::MAX - 0xfff, 0x2000));
        let error = check(&x86, 1 << 40, area(0x1000, 0)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("0x10000000000-0x10000000fff"), "{text}");
        assert!(text.contains("0xfef00000-0x7fffffffff"), "{text}");
        assert!(check(&iommu(None), 1 << 40, area(0x1000, 0)).is_ok());
        assert!(check(&iommu(Some(vec![])), 0, area(0x1000, 0)).is_err());
    }

    #[test]
    fn areas_are_made_of_pages() {
        for (gpa, size, address) in [
            (0x800, 0x1000, 0),
            (0, 0x1800, 0),
            (0, 0x1000, 0x10),
            (0, 0, 0),
        ] {
            let result = check(&iommu(None), gpa, area(size, address));
            assert!(matches!(result, Err(DmaError::Unaligned { .. })));
        }
    }

    #[test]
    fn a_host_without_vfio_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = Container::in_folder(folder.path()).unwrap_err();
        assert!(matches!(error, OpenError::NoVfio { .. }));
        assert!(
            error
                .to_string()
                .contains("load the kernel module vfio-pci")
        );
        // Something else of that name.
        File::create(folder.path().join("vfio")).unwrap();
        let error = Container::in_folder(folder.path()).unwrap_err();
        assert!(matches!(error, OpenError::NoVfio { .. }));
    }

    /// A container that is a file, for what comes before the kernel is asked.
    fn fake(folder: &Path) -> Container {
        Container {
            shared: Arc::new(Shared {
                file: File::create(folder.join("vfio")).unwrap(),
                folder: folder.to_owned(),
                state: Mutex::default(),
            }),
        }
    }

    #[test]
    fn a_device_without_a_group_file_is_not_opened() {
        let sysfs = Sysfs::new();
        let device = sysfs.add("0000:00:02.0", Some("vfio-pci"), Some("12"));
        let folder = tempfile::tempdir().unwrap();
        let container = fake(folder.path());
        let error = container.open_device(&device).unwrap_err();
        let expected = folder.path().join("12");
        assert!(matches!(&error, OpenError::Group { path, .. } if *path == expected));
        // A group that is none.
        File::create(expected).unwrap();
        let error = container.open_device(&device).unwrap_err();
        assert!(matches!(&error, OpenError::Group { source, .. }
            if source.raw_os_error() == Some(libc::ENOTTY)));
        assert!(container.groups().is_empty());
    }

    #[test]
    fn what_was_not_mapped_is_not_unmapped() {
        let folder = tempfile::tempdir().unwrap();
        let error = fake(folder.path()).unmap(0x1000, 0x1000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
