//! A device that VFIO passes through.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_PCI_VGA_REGION_INDEX, vfio_irq_info,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::container::Membership;
use super::info::{RegionInfo, ResetSet};
use super::sysfs::{HostDevice, are_passed_through};
use super::{OpenError, sys};
use crate::device::{Device, DeviceError, DeviceRegion, IrqKind, region};

/// A device that VFIO passes through.
///
/// It is closed when it and all its [`MappableArea`](crate::MappableArea)s are dropped, or by
/// [`VfioDevice::close`].
#[derive(Debug)]
pub struct VfioDevice {
    file: Arc<OwnedFd>,
    /// Its folder in sysfs.
    path: PathBuf,
    driver: String,
    regions: Vec<Placed>,
    irqs: BTreeMap<u32, Irqs>,
    /// How many interrupts of a kind are turned on.
    enabled: Mutex<BTreeMap<IrqKind, usize>>,
    /// Whether it can be reset by itself.
    resettable: bool,
    /// Whether it was given back: the file is then something else.
    closed: AtomicBool,
    /// After the file: a group is closed after its devices.
    membership: Mutex<Option<Membership>>,
}

/// A region, and where it begins in the device's file.
#[derive(Debug, Default)]
struct Placed {
    region: DeviceRegion,
    offset: u64,
}

/// Interrupts of a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Irqs {
    count: u32,
    /// Whether more of them can be turned on while some are.
    resizable: bool,
}

impl VfioDevice {
    /// Opens a device of a group and reads what it has.
    pub(super) fn open(
        device: &HostDevice,
        group: &OwnedFd,
        membership: Membership,
    ) -> Result<Self, OpenError> {
        let path = &device.path;
        let describe = |what: String| {
            move |source| OpenError::Describe {
                path: path.clone(),
                what,
                source,
            }
        };
        let file = CString::new(device.name.as_str())
            .map_err(io::Error::from)
            .and_then(|name| sys::open_device(group, &name));
        let file = file.map_err(|source| not_opened(device, source))?;
        let file = Arc::new(file);
        let info = sys::device_info(&file).map_err(describe("the device".to_owned()))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(OpenError::NotPci { path: path.clone() });
        }
        let page = sys::page_size();
        let mut regions = Vec::new();
        for index in 0..region::COUNT.min(info.num_regions) {
            let bytes = match sys::region_info(&file, index) {
                Err(error) if is_absent_vga(index, &error) => {
                    regions.push(Placed::default());
                    continue;
                }
                result => result.map_err(describe(format!("region {index}")))?,
            };
            let region = RegionInfo::parse(&bytes).map_err(|source| OpenError::Region {
                path: path.clone(),
                index,
                source,
            })?;
            regions.push(Placed {
                offset: region.offset,
                region: region.into_region(&file, page),
            });
        }
        regions.resize_with(region::COUNT as usize, Placed::default);
        let mut irqs = BTreeMap::new();
        for index in 0..info.num_irqs.min(VFIO_PCI_REQ_IRQ_INDEX + 1) {
            let info = match sys::irq_info(&file, index) {
                Err(error) if is_absent_irq(index, &error) => continue,
                result => result.map_err(describe(format!("interrupts of kind {index}")))?,
            };
            irqs.insert(index, Irqs::from(info));
        }
        Ok(Self {
            file,
            path: path.clone(),
            driver: device.driver.clone(),
            regions,
            irqs,
            enabled: Mutex::default(),
            resettable: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            closed: AtomicBool::new(false),
            membership: Mutex::new(Some(membership)),
        })
    }

    /// The host's driver that passes it through, such as `vfio-pci`.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Has `event` written when the host wants the device back: it should be closed soon. The host
    /// repeats that until it is.
    ///
    /// # Errors
    /// The device has no such event, or refuses.
    pub fn on_request(&self, event: &EventFd) -> Result<(), DeviceError> {
        self.set_event(VFIO_PCI_REQ_IRQ_INDEX, "request for the device", event)
    }

    /// Has `event` written when the device reports an error that it cannot correct (PCI Express 6.0,
    /// section 6.2): what it does from then on cannot be trusted.
    ///
    /// # Errors
    /// The device has no such event, as devices without PCI Express have not, or refuses.
    pub fn on_error(&self, event: &EventFd) -> Result<(), DeviceError> {
        self.set_event(VFIO_PCI_ERR_IRQ_INDEX, "errors", event)
    }

    /// Gives the device back to the host, for good: its interrupts and its DMA stop, and it is lost
    /// to all who have it. Who has mapped some of it must unmap that for the host to get it.
    ///
    /// # Returns
    /// The file of its group, if it was the last device of it: for those who have told others of the
    /// group, such as KVM. The group is closed when nobody has the file.
    ///
    /// # Errors
    /// There is no descriptor left that could take its place. It is lost all the same.
    pub fn close(&self) -> io::Result<Option<Arc<OwnedFd>>> {
        self.closed.store(true, Ordering::Release);
        // Areas have the descriptor too, so it cannot just be closed.
        sys::replace(&self.file, &EventFd::new(EFD_CLOEXEC)?)?;
        let membership = lock(&self.membership).take();
        Ok(membership.and_then(Membership::leave))
    }

    fn set_event(&self, index: u32, what: &str, event: &EventFd) -> Result<(), DeviceError> {
        if self.irqs.get(&index).is_none_or(|irqs| irqs.count == 0) {
            return Err(refused(
                io::ErrorKind::Unsupported,
                format!("it has no event for {what}"),
            ));
        }
        self.trigger(index, &[event.as_raw_fd()])
    }

    /// Makes interrupts write to descriptors; an empty list turns them off.
    fn trigger(&self, index: u32, events: &[RawFd]) -> Result<(), DeviceError> {
        let kind = match events.is_empty() {
            true => VFIO_IRQ_SET_DATA_NONE,
            false => VFIO_IRQ_SET_DATA_EVENTFD,
        };
        let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
        let flags = VFIO_IRQ_SET_ACTION_TRIGGER | kind;
        let room = sys::set_irqs(&self.file, flags, index, count, events);
        let room = room.map_err(|error| self.error(error))?;
        match room {
            0 => Ok(()),
            _ => Err(refused(
                io::ErrorKind::Other,
                format!("the host has room for {room} interrupts, not for {count}"),
            )),
        }
    }

    /// Where an access to a region goes in the device's file.
    fn locate(&self, index: u32, offset: u64, length: usize) -> Result<u64, DeviceError> {
        let placed = self.regions.get(index as usize);
        let size = placed.map_or(0, |placed| placed.region.size);
        let end = offset.checked_add(length as u64);
        let at = placed.and_then(|placed| placed.offset.checked_add(offset));
        at.filter(|_| end.is_some_and(|end| end <= size))
            .ok_or_else(|| {
                refused(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "{length} bytes at {offset:#x} are not in region {index} of {size:#x} bytes"
                    ),
                )
            })
    }

    /// What an error of the kernel says.
    fn error(&self, error: io::Error) -> DeviceError {
        match self.closed.load(Ordering::Acquire) {
            // Whatever it is the error of.
            true => DeviceError::Lost(io::Error::new(
                io::ErrorKind::NotConnected,
                "the device was given back to the host",
            )),
            false => device_error(error),
        }
    }

    /// The files of all groups that are reset with this device, if all are ours and all their
    /// devices are in VFIO's hands: one that has no driver would be reset by surprise too, and the
    /// kernel refuses.
    fn reset_set(&self) -> Option<Vec<Arc<OwnedFd>>> {
        let bytes = sys::hot_reset_info(&self.file).ok()?;
        let ResetSet { groups, names } = ResetSet::parse(&bytes).ok()??;
        let files = lock(&self.membership).as_ref()?.files_of(&groups)?;
        let possible = !files.is_empty() && are_passed_through(&self.path, &names);
        possible.then_some(files)
    }
}

/// How to get from some interrupts of a kind to others.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    /// Whether all are turned off at first.
    disable: bool,
    /// How many there are then.
    enable: usize,
}

impl Change {
    fn new(before: usize, wanted: usize, resizable: bool) -> Self {
        let disable = before > 0 && (wanted == 0 || wanted > before && !resizable);
        Self {
            disable,
            enable: match disable || wanted == 0 {
                true => wanted,
                // The kernel leaves those alone that it is not told of.
                false => wanted.max(before),
            },
        }
    }
}

impl From<vfio_irq_info> for Irqs {
    fn from(info: vfio_irq_info) -> Self {
        let vfio_irq_info {
            argsz: _,
            flags,
            index: _,
            count,
        } = info;
        let has_events = flags & VFIO_IRQ_INFO_EVENTFD != 0;
        Self {
            count: if has_events { count } else { 0 },
            resizable: flags & VFIO_IRQ_INFO_NORESIZE == 0,
        }
    }
}

/// Why the kernel does not open a device.
fn not_opened(device: &HostDevice, source: io::Error) -> OpenError {
    let path = device.path.clone();
    let refused = source.kind() == io::ErrorKind::PermissionDenied;
    match device.passed_through_card().filter(|_| refused) {
        Some((card, driver)) => OpenError::NeedsToken {
            path,
            card,
            driver,
            source,
        },
        None => OpenError::Device { path, source },
    }
}

/// The kernel has no answer for the VGA region of what is no VGA card, rather than an empty one.
fn is_absent_vga(index: u32, error: &io::Error) -> bool {
    index == VFIO_PCI_VGA_REGION_INDEX && error.raw_os_error() == Some(libc::EINVAL)
}

/// So it is with errors of devices without PCI Express, and with requests before Linux 4.0.
fn is_absent_irq(index: u32, error: &io::Error) -> bool {
    index >= VFIO_PCI_ERR_IRQ_INDEX && error.raw_os_error() == Some(libc::EINVAL)
}

fn refused(kind: io::ErrorKind, text: String) -> DeviceError {
    DeviceError::Refused(io::Error::new(kind, text))
}

/// A device that was taken out is no device any more, and a transfer that ended early is one that VFIO
/// does not know.
fn device_error(error: io::Error) -> DeviceError {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => DeviceError::Lost(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => DeviceError::Lost(error),
        _ => DeviceError::Refused(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for VfioDevice {
    fn region(&self, index: u32) -> &DeviceRegion {
        static ABSENT: DeviceRegion = DeviceRegion {
            size: 0,
            readable: false,
            writable: false,
            mappable: Vec::new(),
            sparse: false,
        };
        let placed = self.regions.get(index as usize);
        placed.map_or(&ABSENT, |placed| &placed.region)
    }

    fn irqs(&self, kind: IrqKind) -> u32 {
        self.irqs.get(&kind.index()).map_or(0, |irqs| irqs.count)
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let at = self.locate(region, offset, data.len())?;
        sys::read_at(&self.file, at, data).map_err(|error| self.error(error))
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let at = self.locate(region, offset, data.len())?;
        sys::write_at(&self.file, at, data).map_err(|error| self.error(error))
    }

    fn set_irqs(&self, kind: IrqKind, events: &[Option<&EventFd>]) -> Result<(), DeviceError> {
        let index = kind.index();
        let irqs = self.irqs.get(&index).copied().unwrap_or_default();
        if events.len() > irqs.count as usize {
            return Err(refused(
                io::ErrorKind::InvalidInput,
                format!(
                    "it has {} interrupts of this kind, not {}",
                    irqs.count,
                    events.len()
                ),
            ));
        }
        let mut enabled = lock(&self.enabled);
        let before = enabled.get(&kind).copied().unwrap_or(0);
        let fd = |event: &Option<&EventFd>| event.map_or(-1, AsRawFd::as_raw_fd);
        let mut fds: Vec<RawFd> = events.iter().map(fd).collect();
        let change = Change::new(before, fds.len(), irqs.resizable);
        if change.disable {
            self.trigger(index, &[])?;
            enabled.remove(&kind);
        }
        if change.enable > 0 {
            fds.resize(change.enable, -1);
            self.trigger(index, &fds)?;
            enabled.insert(kind, fds.len());
        }
        Ok(())
    }

    fn unmask_intx_on(&self, event: &EventFd) -> Result<(), DeviceError> {
        let flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_EVENTFD;
        let index = IrqKind::Intx.index();
        sys::set_irqs(&self.file, flags, index, 1, &[event.as_raw_fd()])
            .map_err(|error| self.error(error))?;
        Ok(())
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        let flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;
        let index = IrqKind::Intx.index();
        sys::set_irqs(&self.file, flags, index, 1, &[]).map_err(|error| self.error(error))?;
        Ok(())
    }

    fn can_reset(&self) -> bool {
        self.resettable || self.reset_set().is_some()
    }

    /// A device that cannot be reset by itself is reset with all others on its bus or slot, if all of
    /// these are bound to drivers that pass them through and belong to groups of the same container.
    fn reset(&self) -> Result<(), DeviceError> {
        if self.resettable {
            return sys::reset(&self.file).map_err(|error| self.error(error));
        }
        let Some(groups) = self.reset_set() else {
            return Err(refused(
                io::ErrorKind::Unsupported,
                "it has no reset of its own, nor one that concerns this machine's devices alone"
                    .to_owned(),
            ));
        };
        let groups: Vec<RawFd> = groups.iter().map(|group| group.as_raw_fd()).collect();
        sys::hot_reset(&self.file, &groups).map_err(|error| self.error(error))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_device_that_is_gone_is_lost() {
        let error = |errno| device_error(io::Error::from_raw_os_error(errno));
        assert!(matches!(error(libc::ENODEV), DeviceError::Lost(_)));
        assert!(matches!(error(libc::EINVAL), DeviceError::Refused(_)));
        // Registers of a device that is asleep, or whose decoder is off.
        assert!(matches!(error(libc::EIO), DeviceError::Refused(_)));
        let short = io::Error::new(io::ErrorKind::UnexpectedEof, "2 of 4 bytes");
        assert!(matches!(device_error(short), DeviceError::Lost(_)));
    }

    #[test]
    fn a_device_that_was_given_back_is_lost_and_closed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let file = Arc::new(OwnedFd::from(writer));
        let device = VfioDevice {
            file: Arc::clone(&file),
            path: PathBuf::new(),
            driver: String::new(),
            regions: vec![Placed {
                region: DeviceRegion {
                    size: 4096,
                    ..DeviceRegion::default()
                },
                offset: 0,
            }],
            irqs: BTreeMap::from([(
                0,
                Irqs {
                    count: 1,
                    resizable: true,
                },
            )]),
            enabled: Mutex::default(),
            resettable: true,
            closed: AtomicBool::new(false),
            membership: Mutex::new(None),
        };
        let event = EventFd::new(0).unwrap();
        let ask = || {
            [
                device.read(0, 0, &mut [0]),
                device.write(0, 0, &[0]),
                device.set_irqs(IrqKind::Intx, &[Some(&event)]),
                device.unmask_intx_on(&event),
                device.unmask_intx(),
                device.reset(),
            ]
        };
        let refused = |result: Result<_, _>| matches!(result, Err(DeviceError::Refused(_)));
        assert!(ask().into_iter().all(refused));
        assert!(device.close().unwrap().is_none());
        // Somebody else has the descriptor still, and it is nothing of the device.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        let lost = |result: Result<_, _>| matches!(result, Err(DeviceError::Lost(_)));
        assert!(ask().into_iter().all(lost));
        assert!(device.close().unwrap().is_none());
        drop(file);
    }

    #[test]
    fn interrupts_without_events_are_none() {
        let info = |flags| {
            Irqs::from(vfio_irq_info {
                flags,
                count: 8,
                ..Default::default()
            })
        };
        assert_eq!(info(VFIO_IRQ_INFO_EVENTFD).count, 8);
        assert!(info(VFIO_IRQ_INFO_EVENTFD).resizable);
        assert!(!info(VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE).resizable);
        assert_eq!(info(0).count, 0);
    }

    #[test]
    fn interrupts_are_turned_off_only_where_they_must_be() {
        for (before, wanted, resizable, disable, enable) in [
            (0, 0, false, false, 0),
            (0, 3, false, false, 3),
            (3, 3, false, false, 3),
            (3, 1, false, false, 3),
            (3, 4, true, false, 4),
            (3, 4, false, true, 4),
            (3, 0, true, true, 0),
        ] {
            let expected = Change { disable, enable };
            assert_eq!(Change::new(before, wanted, resizable), expected);
        }
    }

    #[test]
    fn only_optional_things_may_be_absent() {
        let invalid = io::Error::from_raw_os_error(libc::EINVAL);
        assert!(is_absent_vga(8, &invalid) && !is_absent_vga(7, &invalid));
        assert!(is_absent_irq(3, &invalid) && !is_absent_irq(2, &invalid));
        let gone = io::Error::from_raw_os_error(libc::ENODEV);
        assert!(!is_absent_vga(8, &gone) && !is_absent_irq(3, &gone));
    }
}
