//! What answers at the addresses of BARs.

use std::ops::Range;
use std::sync::Arc;

use super::Shared;
use super::msix::MsixLayout;
use crate::access::pieces;
use crate::config_space::BarKind;
use crate::device::DeviceRegion;
use crate::locks::lock;
use crate::msix::Part;
use crate::{BarFacts, MappableArea, Region};

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
                let holes = msix.iter().flat_map(|msix| msix.places.in_bar(facts.index));
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
        let msix = self.msix.as_ref();
        msix.map_or(Part::Device, |msix| {
            msix.places.part(self.facts.index, offset)
        })
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
                Part::Table(at) => lock(&self.shared.interrupts).msix.read(at, piece),
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
