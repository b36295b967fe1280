//! Memory of devices that is mapped into the guest, and what becomes of it when it goes.
//!
//! A server can truncate the file behind its device's memory, and a device of the host can fail. A
//! vCPU that touches such memory cannot be run: `KVM_RUN` fails with `EFAULT`, on newer kernels
//! with the guest's address (Linux, Documentation/virt/kvm/api.rst, "KVM_EXIT_MEMORY_FAULT"). The memory
//! is then replaced by zeros at the same address of the host, the device is lost, and the vCPU goes on.
//!
//! On x86 such a vCPU may instead wait for the page in KVM, again and again, for ever: KVM takes a failure of
//! its first, hasty attempt for a page that is yet to come (Linux, arch/x86/kvm/mmu/mmu.c, asynchronous page
//! faults). So files are also looked at now and then, whatever vCPUs do.
#![expect(
    unsafe_code,
    reason = "asks for the sizes of files and guards mappings"
)]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use pci::device::{DeviceError, SharedDevice, region};
use pci::{MappableArea, Region};

use super::memory::Mapping;
use super::sigbus::Guard;
use crate::passthrough::Presence;

/// Where a region is that answers nowhere.
const NOWHERE: u64 = u64::MAX;

/// Offset of command and status in configuration space (PCI 3.0, section 6.2): no device has all
/// bits of its status set.
const COMMAND_AND_STATUS: u64 = 4;

/// The mapped memory of all devices of a machine.
#[derive(Default)]
pub struct DeviceAreas {
    regions: Mutex<Vec<Weak<MappedRegion>>>,
    replaced: Arc<AtomicU64>,
}

/// What is known of memory that cannot be accessed.
#[derive(Clone, Copy, Debug)]
enum Suspicion {
    /// There may be none.
    No,
    /// A vCPU met some.
    Somewhere,
    /// A vCPU met it at this address of the guest.
    At(u64),
}

/// Whose memory it is.
#[derive(Clone)]
pub struct Owner {
    /// The device.
    pub device: SharedDevice,
    /// Whether it is still there.
    pub presence: Arc<Presence>,
}

impl DeviceAreas {
    /// Maps what can be mapped of a region.
    ///
    /// # Errors
    /// The host refuses.
    pub fn map(&self, owner: &Owner, region: &dyn Region) -> io::Result<Arc<MappedRegion>> {
        let areas = region.mappable();
        let mapping = Mapping::of_region(region.size(), areas)?;
        // SAFETY: the mapping is new, a device's, and goes after the guard. Nobody refers to it.
        let guard = unsafe { Guard::new(mapping.address(), mapping.size()) };
        if guard.is_none() {
            log::warn!("there are too many devices to guard the memory of all");
        }
        let area = |area: &MappableArea| Area {
            is_file: file_size(&area.file).is_some(),
            area: area.clone(),
            is_gone: AtomicBool::new(false),
        };
        let region = Arc::new(MappedRegion {
            owner: owner.clone(),
            at: AtomicU64::new(NOWHERE),
            areas: areas.iter().map(area).collect(),
            replaced: Arc::clone(&self.replaced),
            guard,
            mapping,
        });
        let mut regions = lock(&self.regions);
        regions.retain(|region| region.strong_count() > 0);
        regions.push(Arc::downgrade(&region));
        Ok(region)
    }

    /// How many areas were replaced, ever: for [`DeviceAreas::recheck`].
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    /// Looks for memory that has gone and replaces it, after a vCPU could not be run because of
    /// memory. `before` is [`DeviceAreas::replaced`] before it was to run, `gpa` the guest's address, if
    /// that is known.
    ///
    /// # Returns
    /// Whether it is worth another try: some was replaced since. Every area is replaced once, so
    /// that comes to an end.
    pub fn recheck(&self, before: u64, gpa: Option<u64>) -> bool {
        // One vCPU looks, and the others see what it has done.
        let regions = lock(&self.regions);
        let suspicion = gpa.map_or(Suspicion::Somewhere, Suspicion::At);
        for region in regions.iter().filter_map(Weak::upgrade) {
            region.recheck(suspicion);
        }
        self.replaced() != before
    }

    /// Looks whether files have become too short, though nobody complains, and notices what was
    /// replaced because this process itself accessed it.
    pub fn look(&self) {
        let regions = lock(&self.regions);
        for region in regions.iter().filter_map(Weak::upgrade) {
            region.recheck(Suspicion::No);
        }
    }
}

/// A region of a device that is mapped into this process.
pub struct MappedRegion {
    owner: Owner,
    /// Where the guest has it.
    at: AtomicU64,
    areas: Vec<Area>,
    replaced: Arc<AtomicU64>,
    /// Before the mapping.
    guard: Option<Guard>,
    mapping: Mapping,
}

struct Area {
    area: MappableArea,
    /// Whether it is a file with a size, and not a device.
    is_file: bool,
    /// Whether zeros have taken its place.
    is_gone: AtomicBool,
}

impl Area {
    fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }
}

impl MappedRegion {
    /// First address in this process.
    pub fn address(&self) -> *mut u8 {
        self.mapping.address()
    }

    /// Remembers where the guest has it; `None` is nowhere.
    pub fn set_place(&self, gpa: Option<u64>) {
        self.at.store(gpa.unwrap_or(NOWHERE), Ordering::Release);
    }

    /// Whether zeros have taken the place of an area, by its position.
    pub fn is_gone(&self, position: usize) -> bool {
        self.areas.get(position).is_some_and(Area::is_gone)
    }

    /// Puts zeros in the place of all of it: nothing of the device is mapped any more.
    pub fn let_go(&self) {
        for area in &self.areas {
            self.replace(area);
        }
    }

    fn notice_replacement(&self) {
        if !self.guard.as_ref().is_some_and(Guard::was_replaced) {
            return;
        }
        for area in &self.areas {
            if !area.is_gone.swap(true, Ordering::AcqRel) {
                self.replaced.fetch_add(1, Ordering::AcqRel);
            }
        }
        let text = "its memory cannot be accessed any more";
        self.owner.presence.lose(&io::Error::other(text));
    }

    fn recheck(&self, suspicion: Suspicion) {
        self.notice_replacement();
        for area in &self.areas {
            if !area.is_gone()
                && let Some(reason) = self.fault(area, suspicion)
                && self.replace(area)
            {
                self.owner.presence.lose(&reason);
            }
        }
    }

    /// Why an area cannot be accessed, if it is known that it cannot.
    fn fault(&self, area: &Area, suspicion: Suspicion) -> Option<io::Error> {
        let MappableArea {
            offset,
            size,
            file,
            file_offset,
            readable: _,
            writable: _,
        } = &area.area;
        let needed = file_offset.saturating_add(*size);
        if let Some(length) = file_size(file).filter(|length| *length < needed) {
            return Some(io::Error::other(format!(
                "the file of its memory has {length:#x} bytes, and had {needed:#x} or more"
            )));
        }
        match suspicion {
            Suspicion::No => None,
            Suspicion::Somewhere if area.is_file => None,
            Suspicion::Somewhere => self.silence(),
            Suspicion::At(gpa) => {
                let at = self.at.load(Ordering::Acquire);
                let start = at.checked_add(*offset)?;
                let inside = gpa.checked_sub(start).is_some_and(|into| into < *size);
                (at != NOWHERE && inside)
                    .then(|| io::Error::other(format!("its memory at {gpa:#x} cannot be accessed")))
            }
        }
    }

    /// Why the device is not there, going by what it says itself.
    fn silence(&self) -> Option<io::Error> {
        let mut data = [0; 4];
        let read = self
            .owner
            .device
            .read(region::CONFIG, COMMAND_AND_STATUS, &mut data);
        match read {
            Err(DeviceError::Lost(reason)) => Some(reason),
            Ok(()) if data.ends_with(&[0xff; 2]) => Some(io::Error::other("it does not answer")),
            Ok(()) | Err(DeviceError::Refused(_)) => None,
        }
    }

    /// Puts zeros in the place of an area, unless that was done.
    fn replace(&self, area: &Area) -> bool {
        if area.is_gone() {
            return false;
        }
        let MappableArea { offset, size, .. } = area.area;
        match self.mapping.replace(offset, size) {
            Ok(()) => {
                area.is_gone.store(true, Ordering::Release);
                self.replaced.fetch_add(1, Ordering::AcqRel);
                true
            }
            Err(error) => {
                log::error!("cannot replace {size:#x} bytes of a device's memory: {error}");
                false
            }
        }
    }
}

/// Bytes of a file; `None` if it has no size.
fn file_size(file: &OwnedFd) -> Option<u64> {
    // SAFETY: zeroes are a valid `stat`.
    let mut stat: libc::stat = unsafe { zeroed() };
    // SAFETY: the descriptor is open and the structure ours.
    let result = unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) };
    let is_file = result == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    is_file.then(|| u64::try_from(stat.st_size).unwrap_or(0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
