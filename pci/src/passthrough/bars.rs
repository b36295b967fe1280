//! What answers at the addresses of BARs, and where they are.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::access::pieces;
use super::lost::Few;
use super::msix::{MsixLayout, Place};
use super::{Shared, lock};
use crate::config_space::{BarKind, ConfigSpace};
use crate::device::DeviceRegion;
use crate::{AddressSpace, BarFacts, Bdf, MappableArea, PlacedRegion, Region, Space};

/// What of a device's region can be mapped into a guest: what the device lets be mapped, in whole
/// pages of the host, without the pages that hold a part of `holes`.
///
/// A guest whose pages are larger than the host's reaches parts of its page through us: registers
/// that share it with the table of MSI-X are slower, and right.
pub(super) fn mappable_areas(
    region: &DeviceRegion,
    holes: impl Iterator<Item = Range<u64>>,
    page: u64,
) -> Vec<MappableArea> {
    let mut areas = Vec::new();
    let mut holes: Vec<Range<u64>> = holes
        .map(|hole| hole.start / page * page..hole.end.next_multiple_of(page))
        .collect();
    holes.sort_by_key(|hole| hole.start);
    for area in &region.mappable {
        let end = area.offset.saturating_add(area.size).min(region.size);
        let mut keep = |start: u64, end: u64| {
            let start = start.checked_next_multiple_of(page).unwrap_or(u64::MAX);
            let end = end / page * page;
            if start < end {
                areas.push(MappableArea {
                    offset: start,
                    size: end - start,
                    file: Arc::clone(&area.file),
                    file_offset: area.file_offset.saturating_add(start - area.offset),
                    readable: area.readable,
                    writable: area.writable,
                });
            }
        };
        let mut start = area.offset;
        for hole in &holes {
            keep(start, end.min(hole.start));
            start = start.max(hole.end);
        }
        keep(start, end);
    }
    areas
}

/// A BAR of the device.
pub(super) struct BarRegion {
    shared: Arc<Shared>,
    facts: BarFacts,
    /// Bytes that the device has; the rest of the BAR is nobody's.
    device_size: u64,
    readable: bool,
    writable: bool,
    mappable: Vec<MappableArea>,
    msix: Option<Arc<MsixLayout>>,
}

/// Who answers at an offset.
enum Part {
    /// The table of MSI-X, at an offset in it.
    Table(usize),
    /// Pending bits of MSI-X.
    Pending,
    Device,
}

impl BarRegion {
    /// The region of a BAR; `is_mapped` says whether a guest may reach it without us.
    pub fn new(
        shared: Arc<Shared>,
        facts: BarFacts,
        region: &DeviceRegion,
        msix: Option<Arc<MsixLayout>>,
        is_mapped: bool,
        page: u64,
    ) -> Self {
        let mappable = match is_mapped && facts.kind != BarKind::Io {
            true => {
                let holes = msix.iter().flat_map(|msix| msix.in_bar(facts.index));
                mappable_areas(region, holes, page)
            }
            false => Vec::new(),
        };
        Self {
            shared,
            facts,
            device_size: region.size,
            readable: region.readable,
            writable: region.writable,
            mappable,
            msix,
        }
    }

    /// An access's bytes that lie in the BAR.
    fn clip(&self, offset: u64, length: usize) -> usize {
        let left = self.facts.size.saturating_sub(offset);
        length.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// The widest access.
    fn most(&self) -> usize {
        match self.facts.kind {
            BarKind::Io => 4,
            BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => 8,
        }
    }

    fn part(&self, offset: u64) -> Part {
        // Whole pieces are in one part, because table and pending bits are in units of 8 bytes.
        let Some(msix) = &self.msix else {
            return Part::Device;
        };
        let is_in = |place: &Place| place.bar == self.facts.index && place.range.contains(&offset);
        if is_in(&msix.table) {
            // A table has 32 KiB at most.
            Part::Table((offset - msix.table.range.start) as usize)
        } else if is_in(&msix.pending) {
            Part::Pending
        } else {
            Part::Device
        }
    }

    /// Bytes of a piece that the device has.
    fn in_device(&self, offset: u64, length: usize) -> usize {
        let left = self.device_size.saturating_sub(offset);
        length.min(usize::try_from(left).unwrap_or(usize::MAX))
    }
}

impl Region for BarRegion {
    fn size(&self) -> u64 {
        self.facts.size
    }

    fn mappable(&self) -> &[MappableArea] {
        &self.mappable
    }

    fn is_prefetchable(&self) -> bool {
        match self.facts.kind {
            BarKind::Io => false,
            BarKind::Memory32 { prefetchable } | BarKind::Memory64 { prefetchable } => prefetchable,
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if self.shared.link.is_lost() {
            return;
        }
        let length = self.clip(offset, data.len());
        for (at, part) in pieces(offset, length, self.most()) {
            let piece = &mut data[part];
            match self.part(at) {
                Part::Table(at) => lock(&self.shared.interrupts).msix.read_table(at, piece),
                // Nobody knows what waits behind a masked vector but the host, which sends it when
                // the mask goes: no guest has to act on a pending bit.
                Part::Pending => piece.fill(0),
                Part::Device if self.readable => {
                    let length = self.in_device(at, piece.len());
                    let region = self.facts.index.into();
                    self.shared
                        .link
                        .read(region, at, &mut piece[..length], self.most());
                }
                Part::Device => {}
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.shared.link.is_lost() {
            return;
        }
        let length = self.clip(offset, data.len());
        for (at, part) in pieces(offset, length, self.most()) {
            let piece = &data[part];
            match self.part(at) {
                Part::Table(at) => {
                    lock(&self.shared.interrupts).write_table(&self.shared.link, at, piece)
                }
                Part::Device if self.writable => {
                    let length = self.in_device(at, piece.len());
                    let region = self.facts.index.into();
                    self.shared
                        .link
                        .write(region, at, &piece[..length], self.most());
                }
                Part::Pending | Part::Device => {}
            }
        }
    }
}

/// A BAR in the machine's address space.
struct PlacedBar {
    index: u8,
    region: Box<dyn PlacedRegion>,
    /// Where it answers.
    at: Option<u64>,
}

/// Where the BARs of a function are.
#[derive(Default)]
pub(super) struct Placement {
    bars: Vec<PlacedBar>,
    failures: Few,
}

impl Placement {
    /// Makes a BAR known to the machine; it answers nowhere yet.
    pub fn add(
        &mut self,
        facts: &BarFacts,
        region: BarRegion,
        space: &dyn AddressSpace,
    ) -> io::Result<()> {
        let kind = match facts.kind {
            BarKind::Io => Space::Io,
            BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => Space::Memory,
        };
        self.bars.push(PlacedBar {
            index: facts.index,
            region: space.add(kind, Arc::new(region))?,
            at: None,
        });
        Ok(())
    }

    /// Where configuration space wants the BARs, in the order in which they were added.
    pub fn wanted(&self, space: &ConfigSpace) -> Vec<Option<u64>> {
        let bars = self.bars.iter();
        bars.map(|bar| space.decoded_bar(bar.index.into()))
            .collect()
    }

    /// Takes the BARs away that are to be elsewhere, so that they do not stand in each other's way.
    pub fn leave(&mut self, wanted: &[Option<u64>], bdf: Bdf) {
        self.change(wanted, bdf, |at, wanted| {
            (at.is_some() && at != wanted).then_some(None)
        });
    }

    /// Puts the BARs where they are to be.
    pub fn arrive(&mut self, wanted: &[Option<u64>], bdf: Bdf) {
        self.change(wanted, bdf, |at, wanted| (at != wanted).then_some(wanted));
    }

    fn change(
        &mut self,
        wanted: &[Option<u64>],
        bdf: Bdf,
        next: impl Fn(Option<u64>, Option<u64>) -> Option<Option<u64>>,
    ) {
        for (bar, wanted) in self.bars.iter_mut().zip(wanted) {
            let Some(address) = next(bar.at, *wanted) else {
                continue;
            };
            match bar.region.place(address) {
                Ok(()) => bar.at = address,
                Err(error) => {
                    bar.at = None;
                    if self.failures.another() {
                        let index = bar.index;
                        log::warn!(
                            "{bdf}: BAR {index} cannot be at {:#x}, so it is nowhere: {error}",
                            address.unwrap_or_default()
                        );
                    }
                }
            }
        }
    }
}
