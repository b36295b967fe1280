//! MSI-X of a device: where its capability says that table and pending bits are. The device's own
//! table belongs to the host; the guest gets another one, in the same place.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.2.

use super::lists::Found;
use super::reader::Reader;
use crate::BarFacts;
use crate::device::{Device, DeviceError, IrqKind};
use crate::msix::{self, MsixPlaces, Place, SIZE};

pub(super) use crate::msix::CONTROL;

/// The capability's id.
pub(super) const ID: u16 = msix::ID as u16;
/// The capability of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MsixLayout {
    /// Offset of the capability.
    pub offset: usize,
    /// Vectors that the guest is shown; 0 if the device cannot signal any.
    pub vectors: u16,
    /// The device's table and pending bits.
    pub places: MsixPlaces,
}

impl MsixLayout {
    /// Reads the capability at `found`; `None` if it is not possible as it says it is.
    pub fn read(
        reader: &Reader,
        found: &Found,
        device: &dyn Device,
        bars: &[BarFacts],
    ) -> Result<Option<Self>, DeviceError> {
        if found.room < SIZE {
            return Ok(None);
        }
        let at = found.offset;
        let entries = (reader.u16(at + CONTROL)? & msix::TABLE_SIZE) + 1;
        let place = |register: u32, length: u64| {
            let start = u64::from(register & !7);
            let range = start..start + length;
            let bar = bars
                .iter()
                .find(|bar| u32::from(bar.index) == register & 7)?;
            (range.end <= bar.size).then_some(Place {
                bar: bar.index,
                range,
            })
        };
        let table = place(reader.u32(at + 4)?, msix::table_size(entries));
        let pending = place(reader.u32(at + 8)?, msix::pending_size(entries));
        let (Some(table), Some(pending)) = (table, pending) else {
            return Ok(None);
        };
        let places = MsixPlaces { table, pending };
        let irqs = u16::try_from(device.irqs(IrqKind::Msix)).unwrap_or(u16::MAX);
        Ok((!places.overlap()).then_some(Self {
            offset: at,
            vectors: entries.min(irqs),
            places,
        }))
    }
}
