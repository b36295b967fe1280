//! Guest memory as devices in this process reach it: RAM, and memory of passed-through devices that is
//! mapped into the guest, which it may use for buffers as it does RAM.
#![expect(unsafe_code, reason = "makes regions of mappings that others own")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use pci::{DmaArea, DmaTarget};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

/// The memory at one moment.
pub type Memory = GuestMemoryMmap<()>;

/// How long it is waited before it is looked again whether nobody uses memory that goes.
const LOOK_AGAIN: Duration = Duration::from_micros(50);

/// Guest memory. Areas come and go; who has a [`Memory`] of before keeps those that go waiting.
#[derive(Default)]
pub struct GuestMemory {
    now: ArcSwap<Memory>,
    /// What somebody may still have, of before.
    before: Mutex<Vec<Weak<Memory>>>,
}

impl GuestMemory {
    /// The memory as it is now. To be kept for as long as it is accessed, and no longer: requests that
    /// are under way keep it, threads that wait do not.
    pub fn get(&self) -> Arc<Memory> {
        self.now.load_full()
    }

    /// Puts another memory in the place of what there is.
    fn change(&self, areas: Vec<Arc<GuestRegionMmap>>) -> io::Result<()> {
        let memory = match areas.is_empty() {
            true => Memory::default(),
            false => Memory::from_arc_regions(areas).map_err(io::Error::other)?,
        };
        let old = self.now.swap(Arc::new(memory));
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        before.retain(|memory| memory.strong_count() > 0);
        before.push(Arc::downgrade(&old));
        Ok(())
    }

    fn areas(&self) -> Vec<Arc<GuestRegionMmap>> {
        // What is iterated over is what `from_arc_regions` was given; the regions themselves are cheap
        // to make again, since they own nothing.
        let now = self.now.load_full();
        now.iter()
            .filter_map(|region| GuestRegionMmap::with_arc(region.get_mmap(), region.start_addr()))
            .map(Arc::new)
            .collect()
    }
}

impl DmaTarget for GuestMemory {
    fn map(&self, area: &DmaArea) -> io::Result<()> {
        let DmaArea {
            gpa,
            size,
            host_address,
            file: _,
            writable,
        } = *area;
        if !writable {
            // A device would have to look which of its buffers are there to be read alone.
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it can be read alone",
            ));
        }
        let bytes = usize::try_from(size).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let address = host_address as *mut u8;
        // SAFETY: the area is mapped there, and stays so until `unmap` has returned, which waits for
        // everybody who has the region.
        let mapping =
            unsafe { MmapRegion::build_raw(address, bytes, protection, libc::MAP_SHARED) };
        let mapping = mapping.map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(gpa))
            .ok_or_else(|| io::Error::other("it is at the end of the address space"))?;
        let mut areas = self.areas();
        let at = areas.partition_point(|area| area.start_addr().0 < gpa);
        areas.insert(at, Arc::new(region));
        self.change(areas)
    }

    fn unmap(&self, gpa: u64, _size: u64) -> io::Result<()> {
        let mut areas = self.areas();
        areas.retain(|area| area.start_addr().0 != gpa);
        self.change(areas)?;
        loop {
            let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
            before.retain(|memory| memory.strong_count() > 0);
            if before.is_empty() {
                return Ok(());
            }
            drop(before);
            thread::sleep(LOOK_AGAIN);
        }
    }
}
