//! Guest RAM: host mappings behind the plan's RAM ranges.
//!
//! Nothing is touched here unless the operator asks for it (`prefault=on`), so a large guest
//! starts as fast as a small one.
#![expect(
    unsafe_code,
    reason = "maps guest RAM and hands the mappings to vm-memory and KVM"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null_mut;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::config::MemoryConfig;
use crate::plan::GpaRange;

/// Host and guest addresses agree modulo this, so that the largest page size that either level of
/// translation knows can be used: 1 GiB.
const ALIGNMENT: u64 = 1 << 30;

/// Why guest RAM could not be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("--memory {option}: cannot map {size:#x} bytes of guest RAM: {advice}")]
    Map {
        /// The keys that asked for this kind of mapping.
        option: String,
        /// Bytes.
        size: u64,
        /// What to do about it.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file behind shared RAM could not be made.
    #[error("--memory {option}: cannot create a memory file of {size:#x} bytes")]
    Create {
        /// The keys that asked for a file.
        option: String,
        /// Bytes.
        size: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host refused a property of the mapping.
    #[error("--memory {option}: the host refuses it ({advice})")]
    Advise {
        /// The key and value at fault.
        option: &'static str,
        /// What to do about it.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A mapping cannot be used as guest RAM.
    #[error("--memory: a mapping cannot be used as guest RAM")]
    Region(#[source] MmapRegionError),
    /// A range leaves the address space.
    #[error("--memory: guest RAM at {gpa:#x} ends outside the address space")]
    Range {
        /// First guest-physical address.
        gpa: u64,
    },
    /// vm-memory does not accept the layout.
    #[error("--memory: the guest's RAM ranges cannot be described")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
    /// KVM does not accept a range.
    #[error("--memory: KVM refuses guest RAM at {gpa:#x}, {size:#x} bytes")]
    Slot {
        /// First guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// What KVM said.
        #[source]
        source: io::Error,
    },
}

/// A mapping that is removed when it is dropped.
#[derive(Debug)]
struct Mapping {
    address: *mut libc::c_void,
    size: usize,
}

// SAFETY: the pointer is only an address range to unmap; it is never dereferenced here.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `reserve` and nothing else unmaps it.
        unsafe { libc::munmap(self.address, self.size) };
    }
}

/// The guest's RAM. Dropping it unmaps everything, so it must outlive the VM and every user.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    mappings: Vec<(GpaRange, Mapping)>,
}

impl GuestRam {
    /// Maps all `ranges` as `config` asks; [`Self::populate`] is to follow.
    pub fn map(ranges: &[GpaRange], config: &MemoryConfig) -> Result<Self, MemoryError> {
        let total = ranges.iter().map(|range| range.size).sum();
        let file = config
            .shared
            .then(|| memory_file(config, total))
            .transpose()?;
        let mut mappings = Vec::new();
        let mut offset = 0;
        for range in ranges {
            let mapping = map_range(range, config, file.as_ref(), offset)?;
            advise(&mapping, config)?;
            mappings.push((*range, mapping));
            offset += range.size;
        }
        let memory = describe(&mappings)?;
        Ok(Self { memory, mappings })
    }

    /// Asks for huge pages, and for all memory to be there at once, where `config` does.
    ///
    /// What is written before this takes small pages: right for a few bytes here and there, each
    /// of which would otherwise cost a huge page, zeroed and resident, and wrong for a kernel.
    pub fn populate(&self, config: &MemoryConfig) -> Result<(), MemoryError> {
        let mut mappings = self.mappings.iter();
        mappings.try_for_each(|(_, mapping)| populate(mapping, config))
    }

    /// The memory as devices and loaders see it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Gives every range to `vm` as a memory slot, from slot 0.
    pub fn attach(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, (range, mapping)) in (0..).zip(&self.mappings) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: range.start,
                memory_size: range.size,
                userspace_addr: mapping.address as u64,
            };
            // SAFETY: the mapping is valid for its whole size and outlives the VM: the machine
            // drops the VM first.
            unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot {
                gpa: range.start,
                size: range.size,
                source: source.into(),
            })?;
        }
        Ok(())
    }
}

fn describe(mappings: &[(GpaRange, Mapping)]) -> Result<GuestMemoryMmap, MemoryError> {
    let mut regions = Vec::new();
    for (range, mapping) in mappings {
        // SAFETY: the mapping is valid for its whole size and `GuestRam` drops the memory before
        // the mappings.
        let region = unsafe {
            MmapRegionBuilder::new(mapping.size).with_raw_mmap_pointer(mapping.address.cast())
        };
        let region = region
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_NORESERVE)
            .build()
            .map_err(MemoryError::Region)?;
        let region = GuestRegionMmap::new(region, GuestAddress(range.start))
            .ok_or(MemoryError::Range { gpa: range.start })?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Regions)
}

/// The keys of `--memory` that decide what kind of mapping is made, for error messages.
fn keys(config: &MemoryConfig) -> String {
    let mut text = format!("size={:#x}", config.size);
    if config.shared {
        text.push_str(",shared=on");
    }
    if config.hugepages {
        text.push_str(",hugepages=on");
    }
    if let Some(size) = config.hugepage_size {
        text.push_str(&format!(",hugepage_size={size:#x}"));
    }
    text
}

/// The page size bits of `MAP_HUGETLB` and `MFD_HUGETLB`: the logarithm, in bits 31:26; zero is
/// the host's default size.
fn huge_page_bits(config: &MemoryConfig) -> u32 {
    config
        .hugepage_size
        .map_or(0, |size| size.trailing_zeros() << libc::MAP_HUGE_SHIFT)
}

fn memory_file(config: &MemoryConfig, size: u64) -> Result<File, MemoryError> {
    let failed = |source| MemoryError::Create {
        option: keys(config),
        size,
        source,
    };
    let huge = if config.hugepages {
        libc::MFD_HUGETLB | huge_page_bits(config)
    } else {
        0
    };
    // SAFETY: the name is a NUL-terminated string and the call takes no other pointer.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC | huge) };
    if fd < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size).map_err(failed)?;
    Ok(file)
}

/// An address range of `size` bytes that is congruent to `gpa`, with nothing in it.
fn reserve(gpa: u64, size: u64) -> io::Result<Mapping> {
    let too_large = || io::Error::from_raw_os_error(libc::ENOMEM);
    let alignment = ALIGNMENT as usize;
    let size = usize::try_from(size).map_err(|_| too_large())?;
    let padded = size.checked_add(alignment).ok_or_else(too_large)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
    let raw = unsafe { libc::mmap(null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
    if raw == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let wanted = gpa as usize % alignment;
    let head = (wanted + alignment - raw as usize % alignment) % alignment;
    let address = raw.wrapping_byte_add(head);
    let tail = padded - head - size;
    if head > 0 {
        // SAFETY: the first `head` bytes belong to the mapping just made.
        unsafe { libc::munmap(raw, head) };
    }
    if tail > 0 {
        // SAFETY: so do the last `tail` bytes.
        unsafe { libc::munmap(address.wrapping_byte_add(size), tail) };
    }
    Ok(Mapping { address, size })
}

fn map_range(
    range: &GpaRange,
    config: &MemoryConfig,
    file: Option<&File>,
    offset: u64,
) -> Result<Mapping, MemoryError> {
    let failed = |source| MemoryError::Map {
        option: keys(config),
        size: range.size,
        advice: if config.hugepages {
            "the host needs that many free huge pages of this size (see \
             /sys/kernel/mm/hugepages)"
        } else {
            "choose a smaller size"
        },
        source,
    };
    let mapping = reserve(range.start, range.size).map_err(failed)?;
    let mut flags = libc::MAP_FIXED;
    flags |= match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    // Huge pages are reserved here and now: without that, a host that runs out of them would kill
    // the guest with SIGBUS later.
    if !config.hugepages {
        flags |= libc::MAP_NORESERVE;
    } else if file.is_none() {
        flags |= libc::MAP_HUGETLB | huge_page_bits(config) as i32;
    }
    let fd = file.map_or(-1, File::as_raw_fd);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the range is ours and holds nothing yet.
    let raw = unsafe {
        libc::mmap(
            mapping.address,
            mapping.size,
            prot,
            flags,
            fd,
            offset as libc::off_t,
        )
    };
    if raw == libc::MAP_FAILED {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(mapping)
}

fn madvise(mapping: &Mapping, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range is ours, and none of the advices used here discards its contents.
    match unsafe { libc::madvise(mapping.address, mapping.size, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn advise(mapping: &Mapping, config: &MemoryConfig) -> Result<(), MemoryError> {
    // Core dumps of the VMM are for finding faults in the VMM, not for reading guests.
    let advice = madvise(mapping, libc::MADV_DONTDUMP);
    if let Err(error) = advice {
        log::debug!("guest RAM stays in core dumps: {error}");
    }
    if config.mergeable {
        madvise(mapping, libc::MADV_MERGEABLE).map_err(|source| MemoryError::Advise {
            option: "mergeable=on",
            advice: "the host kernel needs KSM, CONFIG_KSM",
            source,
        })?;
    }
    // Before anything is written: a host that gives everybody huge pages would do so at once.
    if !config.thp {
        advise_thp(mapping, config, libc::MADV_NOHUGEPAGE);
    }
    Ok(())
}

fn populate(mapping: &Mapping, config: &MemoryConfig) -> Result<(), MemoryError> {
    if config.thp {
        advise_thp(mapping, config, libc::MADV_HUGEPAGE);
    }
    if config.prefault {
        madvise(mapping, libc::MADV_POPULATE_WRITE).map_err(|source| MemoryError::Advise {
            option: "prefault=on",
            advice: "the host needs that much free memory and Linux 5.14 or later",
            source,
        })?;
    }
    Ok(())
}

/// Asks for transparent huge pages or against them. A kernel without them answers EINVAL; then there
/// are none, which is what `thp=off` asks for and all that `thp=on` can get.
fn advise_thp(mapping: &Mapping, config: &MemoryConfig, advice: libc::c_int) {
    if config.hugepages {
        return;
    }
    if let Err(error) = madvise(mapping, advice) {
        log::info!("--memory thp: the host has no transparent huge pages: {error}");
    }
}
