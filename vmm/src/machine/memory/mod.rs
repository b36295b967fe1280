//! Guest RAM: host mappings behind the plan's RAM ranges, zone by zone.
//!
//! Nothing is touched here unless the operator asks for it (`prefault=on`), so a large guest
//! starts as fast as a small one.

mod backing;
mod error;
mod mapping;
mod zone;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use pci::DmaArea;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::config::MemoryConfig;
use crate::plan::{GpaRange, MemoryPlan, ZonePlan};

pub use self::error::MemoryError;

use self::backing::Backing;
pub use self::mapping::Mapping;

use self::mapping::{Advice, Contents};
use self::zone::Zone;

/// The guest's RAM. Dropping it unmaps everything, so it must outlive the VM and every user.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    zones: Vec<ZoneRam>,
}

impl GuestRam {
    /// Maps the RAM of `plan` as `config` asks; [`Self::populate`] is to follow.
    ///
    /// # Errors
    /// The host cannot or may not do what a zone asks for, or plan and configuration do not belong
    /// together.
    pub fn map(plan: &MemoryPlan, config: &MemoryConfig) -> Result<Self, MemoryError> {
        let mut requests = Zone::all(config);
        let mut files = BTreeMap::new();
        let mut zones = Vec::new();
        for ZonePlan { id, ranges } in &plan.zones {
            let found = requests.iter().position(|zone| zone.config.id == *id);
            let found = found.ok_or_else(|| MemoryError::ForeignZone { id: id.clone() })?;
            let zone = requests.swap_remove(found);
            let backing = Backing::open(&zone)?;
            if let Some(file) = backing.named
                && let Some(other) = files.insert(file, id)
            {
                return Err(MemoryError::SameFile {
                    option: zone.source(),
                    other: other.clone(),
                });
            }
            zones.push(ZoneRam::map(zone, backing, ranges)?);
        }
        Ok(Self {
            memory: describe(&zones)?,
            zones,
        })
    }

    /// Asks for huge pages, and for all memory to be there at once, where the configuration does.
    ///
    /// What is written before this takes small pages: right for a few bytes here and there, each
    /// of which would otherwise cost a huge page, zeroed and resident, and wrong for a kernel.
    ///
    /// # Errors
    /// The host has too little memory, or none where it was asked for.
    pub fn populate(&self) -> Result<(), MemoryError> {
        self.zones.iter().try_for_each(ZoneRam::populate)
    }

    /// The memory as devices and loaders see it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The memory as devices reach it that do so by themselves.
    ///
    /// # Errors
    /// The process has no room for another descriptor.
    pub fn dma_areas(&self) -> io::Result<Vec<DmaArea>> {
        let mut areas = Vec::new();
        for zone in &self.zones {
            let file = zone.backing.file.as_ref();
            // What is written to a private mapping is not in the file.
            let file = file.filter(|_| zone.zone.config.shared);
            let file = file.map(|file| file.try_clone().map(|file| Arc::new(file.into())));
            let file = file.transpose()?;
            let mut offset = 0;
            for (range, mapping) in &zone.mappings {
                areas.push(DmaArea {
                    gpa: range.start,
                    size: range.size,
                    host_address: mapping.address() as usize,
                    file: file.clone().map(|file| (file, offset)),
                    writable: true,
                });
                offset += range.size;
            }
        }
        Ok(areas)
    }

    /// Gives every range to `vm` as a memory slot, from slot 0.
    ///
    /// # Returns
    /// The number of slots in use.
    ///
    /// # Errors
    /// KVM refuses one.
    #[expect(unsafe_code, reason = "gives guest RAM to KVM")]
    pub fn attach(&self, vm: &VmFd) -> Result<u32, MemoryError> {
        let mappings = self.zones.iter().flat_map(ZoneRam::mappings);
        let mut slots = 0;
        for (slot, (zone, range, mapping)) in (0..).zip(mappings) {
            slots = slot + 1;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: range.start,
                memory_size: range.size,
                userspace_addr: mapping.address() as u64,
            };
            // SAFETY: the mapping is valid for its whole size and outlives the VM: the machine
            // drops the VM first.
            unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot {
                option: zone.source(),
                gpa: range.start,
                size: range.size,
                source: source.into(),
            })?;
        }
        Ok(slots)
    }
}

#[expect(unsafe_code, reason = "hands the mappings to vm-memory")]
fn describe(zones: &[ZoneRam]) -> Result<GuestMemoryMmap, MemoryError> {
    let mut regions = Vec::new();
    for (zone, range, mapping) in zones.iter().flat_map(ZoneRam::mappings) {
        // SAFETY: the mapping is valid for its whole size and `GuestRam` drops the memory before
        // the mappings.
        let region = unsafe {
            MmapRegionBuilder::new(mapping.size()).with_raw_mmap_pointer(mapping.address())
        };
        let region = region
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_NORESERVE)
            .build()
            .map_err(|source| MemoryError::Region {
                option: zone.source(),
                source,
            })?;
        let region = GuestRegionMmap::new(region, GuestAddress(range.start));
        regions.push(region.ok_or_else(|| MemoryError::Range {
            option: zone.source(),
            gpa: range.start,
        })?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Regions)
}

/// The RAM of one zone.
#[derive(Debug)]
struct ZoneRam {
    zone: Zone,
    backing: Backing,
    mappings: Vec<(GpaRange, Mapping)>,
}

impl ZoneRam {
    /// Maps `ranges` one behind the other in what `backing` is, and touches nothing.
    fn map(zone: Zone, backing: Backing, ranges: &[GpaRange]) -> Result<Self, MemoryError> {
        let page = backing.page;
        for GpaRange { start, size } in ranges {
            if !start.is_multiple_of(page) || !size.is_multiple_of(page) {
                return Err(MemoryError::Pages {
                    option: zone.source(),
                    page,
                    gpa: *start,
                    size: *size,
                });
            }
        }
        let size = ranges.iter().map(|range| range.size).sum();
        backing.grow(&zone, size)?;
        let mut ram = Self {
            zone,
            backing,
            mappings: Vec::new(),
        };
        let mut offset = 0;
        for range in ranges {
            let mapping = ram.map_range(range, offset)?;
            // Before anything is written: memory is allocated by the rules that hold then.
            ram.bind(&mapping)?;
            ram.advise(&mapping)?;
            ram.mappings.push((*range, mapping));
            offset += range.size;
        }
        Ok(ram)
    }

    fn mappings(&self) -> impl Iterator<Item = (&Zone, &GpaRange, &Mapping)> {
        let mappings = self.mappings.iter();
        mappings.map(|(range, mapping)| (&self.zone, range, mapping))
    }

    fn map_range(&self, range: &GpaRange, offset: u64) -> Result<Mapping, MemoryError> {
        let Backing {
            file,
            named: _,
            page,
            hugetlb,
        } = &self.backing;
        let contents = Contents {
            file: file.as_ref().map(|file| (file, offset)),
            shared: self.zone.config.shared,
            // Without that, a host that runs out of huge pages would kill the guest with SIGBUS
            // later.
            reserved: *hugetlb,
        };
        Mapping::new(range.start, range.size, *page, contents).map_err(|source| MemoryError::Map {
            option: self.zone.source(),
            size: range.size,
            advice: match &self.zone.config.file {
                _ if *hugetlb => {
                    "the host needs that many free huge pages of this size (see \
                     /sys/kernel/mm/hugepages)"
                }
                Some(_) => "its file system must let files be mapped",
                None => "choose a smaller size",
            },
            source,
        })
    }

    fn bind(&self, mapping: &Mapping) -> Result<(), MemoryError> {
        let Some(node) = self.zone.config.host_numa_node else {
            return Ok(());
        };
        mapping.bind(node).map_err(|source| MemoryError::Advise {
            option: self.zone.option(format_args!("host_numa_node={node}")),
            advice: "the node must have memory that this process may use, see \
                     /sys/devices/system/node/has_memory, and pages of a file that are elsewhere \
                     must not be in use by others",
            source,
        })
    }

    fn advise(&self, mapping: &Mapping) -> Result<(), MemoryError> {
        // Core dumps of the VMM are for finding faults in the VMM, not for reading guests.
        if let Err(error) = mapping.advise(Advice::NoDump) {
            log::debug!("guest RAM stays in core dumps: {error}");
        }
        if self.zone.config.mergeable {
            let merge = mapping.advise(Advice::Mergeable);
            merge.map_err(|source| MemoryError::Advise {
                option: self.zone.option("mergeable=on"),
                advice: "the host kernel needs KSM, CONFIG_KSM",
                source,
            })?;
        }
        // Before anything is written: a host that gives everybody huge pages would do so at once.
        if !self.zone.thp {
            self.advise_thp(mapping, Advice::NoHugePages);
        }
        Ok(())
    }

    fn populate(&self) -> Result<(), MemoryError> {
        for (_, mapping) in &self.mappings {
            if self.zone.thp {
                self.advise_thp(mapping, Advice::HugePages);
            }
            if !self.zone.config.prefault {
                continue;
            }
            let populate = mapping.advise(Advice::Populate);
            populate.map_err(|source| MemoryError::Advise {
                option: self.zone.option("prefault=on"),
                advice: "the host needs that much free memory where this zone may have it, and \
                         Linux 5.14 or later",
                source,
            })?;
            // The binding has held for pages that were new. Those that the file had are known to
            // this process only now.
            if self.backing.named.is_some() {
                self.bind(mapping)?;
            }
        }
        Ok(())
    }

    /// Asks for transparent huge pages or against them. A kernel without them answers EINVAL; then
    /// there are none, which is what `thp=off` asks for and all that `thp=on` can get.
    fn advise_thp(&self, mapping: &Mapping, advice: Advice) {
        if self.backing.hugetlb {
            return;
        }
        if let Err(error) = mapping.advise(advice) {
            log::info!("--memory thp: the host has no transparent huge pages: {error}");
        }
    }
}
