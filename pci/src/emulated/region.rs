//! A BAR that has the table and pending bits of MSI-X beside a device's registers.

use std::sync::{Arc, Mutex};

use super::interrupts::Interrupts;
use crate::access::pieces;
use crate::locks::lock;
use crate::msix::{MsixPlaces, Part};
use crate::{MappableArea, Notification, Region};

/// The widest access to table and pending bits (PCI 3.0, section 6.8.2).
const MOST: usize = 8;

/// The device's region, with a part of it that is not the device's.
pub(super) struct MsixRegion {
    pub region: Arc<dyn Region>,
    /// The BAR's first register.
    pub bar: u8,
    pub places: Arc<MsixPlaces>,
    pub interrupts: Arc<Mutex<Interrupts>>,
}

impl MsixRegion {
    /// Whether an access is the device's alone: it then gets it as it is.
    fn is_device(&self, offset: u64, length: usize) -> bool {
        let end = offset.saturating_add(length as u64);
        let mut parts = self.places.in_bar(self.bar);
        parts.all(|part| end <= part.start || part.end <= offset)
    }

    /// An access's bytes that lie in the BAR.
    fn clip(&self, offset: u64, length: usize) -> usize {
        let left = self.region.size().saturating_sub(offset);
        length.min(usize::try_from(left).unwrap_or(usize::MAX))
    }
}

impl Region for MsixRegion {
    fn size(&self) -> u64 {
        self.region.size()
    }

    fn mappable(&self) -> &[MappableArea] {
        // A page that holds a part of the table cannot be mapped, and nobody maps the others.
        &[]
    }

    fn is_prefetchable(&self) -> bool {
        self.region.is_prefetchable()
    }

    fn notifications(&self) -> &[Notification] {
        self.region.notifications()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if self.is_device(offset, data.len()) {
            self.region.read(offset, data);
            return;
        }
        data.fill(0xff);
        let length = self.clip(offset, data.len());
        for (at, part) in pieces(offset, length, MOST) {
            let piece = &mut data[part];
            match self.places.part(self.bar, at) {
                Part::Table(at) => lock(&self.interrupts).read_table(at, piece),
                // What waits behind a masked vector is sent when the mask goes: no guest has to act
                // on a pending bit.
                Part::Pending => piece.fill(0),
                Part::Device => self.region.read(at, piece),
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.is_device(offset, data.len()) {
            self.region.write(offset, data);
            return;
        }
        let length = self.clip(offset, data.len());
        for (at, part) in pieces(offset, length, MOST) {
            let piece = &data[part];
            match self.places.part(self.bar, at) {
                Part::Table(at) => lock(&self.interrupts).write_table(at, piece),
                Part::Pending => {}
                Part::Device => self.region.write(at, piece),
            }
        }
    }
}
