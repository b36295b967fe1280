//! MSI-X: the capability, and the table and pending bits that lie in BARs. The device's own table
//! belongs to the host; the guest gets another one.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.2.

use std::ops::Range;

use super::lists::Found;
use super::reader::Reader;
use crate::device::{Device, DeviceError, IrqKind};
use crate::{BarFacts, MsiMessage};

/// The capability's id.
pub(super) const ID: u16 = 0x11;
/// Bytes of the capability.
const SIZE: usize = 12;
/// Offset of message control in the capability.
pub(super) const CONTROL: usize = 2;
/// Message control: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Message control: one less than the number of vectors.
const TABLE_SIZE: u16 = 0x7ff;
/// Bytes of an entry of the table.
const ENTRY: usize = 16;
/// Vector control: the vector is masked; the other bits are reserved.
const MASKED: u32 = 1;

/// A part of a BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The BAR's first register.
    pub bar: u8,
    /// Bytes in it.
    pub range: Range<u64>,
}

/// The capability of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MsixLayout {
    /// Offset of the capability.
    pub offset: usize,
    /// Vectors that the guest is shown; 0 if the device cannot signal any.
    pub vectors: u16,
    /// The device's table.
    pub table: Place,
    /// The device's pending bits.
    pub pending: Place,
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
        let entries = (reader.u16(at + CONTROL)? & TABLE_SIZE) + 1;
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
        let table = place(reader.u32(at + 4)?, u64::from(entries) * ENTRY as u64);
        let pending = place(
            reader.u32(at + 8)?,
            u64::from(entries).div_ceil(64) * size_of::<u64>() as u64,
        );
        let (Some(table), Some(pending)) = (table, pending) else {
            return Ok(None);
        };
        let overlap = table.bar == pending.bar
            && table.range.start < pending.range.end
            && pending.range.start < table.range.end;
        let irqs = u16::try_from(device.irqs(IrqKind::Msix)).unwrap_or(u16::MAX);
        Ok((!overlap).then_some(Self {
            offset: at,
            vectors: entries.min(irqs),
            table,
            pending,
        }))
    }

    /// The parts of a BAR that are not the device's.
    pub fn in_bar(&self, bar: u8) -> impl Iterator<Item = Range<u64>> {
        [&self.table, &self.pending]
            .into_iter()
            .filter(move |place| place.bar == bar)
            .map(|place| place.range.clone())
    }

    /// The emulated capability behind its header, and the bits of it that a guest may change.
    pub fn body(
        &self,
        reader: &Reader,
    ) -> Result<([u8; SIZE - CONTROL], [u8; SIZE - CONTROL]), DeviceError> {
        let mut body = [0; SIZE - CONTROL];
        body[..2].copy_from_slice(&self.vectors.saturating_sub(1).to_le_bytes());
        body[2..6].copy_from_slice(&reader.u32(self.offset + 4)?.to_le_bytes());
        body[6..].copy_from_slice(&reader.u32(self.offset + 8)?.to_le_bytes());
        let mut writable = [0; SIZE - CONTROL];
        writable[..2].copy_from_slice(&(ENABLE | FUNCTION_MASK).to_le_bytes());
        Ok((body, writable))
    }
}

/// What a guest has set up, by the capability and the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Msix {
    /// Whether it is on.
    pub enabled: bool,
    /// Whether all vectors are masked.
    pub masked: bool,
    /// The table, as it lies in the BAR.
    table: Vec<u8>,
}

impl Msix {
    /// It is off, and every vector is masked.
    pub fn new(vectors: u16) -> Self {
        let mut entry = [0; ENTRY];
        entry[12..].copy_from_slice(&MASKED.to_le_bytes());
        Self {
            enabled: false,
            masked: false,
            table: entry.repeat(vectors.into()),
        }
    }

    /// Vectors in the table.
    pub fn vectors(&self) -> usize {
        self.table.len() / ENTRY
    }

    /// Takes over what a guest wrote to message control.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & ENABLE != 0;
        self.masked = control & FUNCTION_MASK != 0;
    }

    /// Reads the table. What lies behind its end is zero.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.table.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the table.
    ///
    /// # Returns
    /// The vectors that it touched.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) -> Range<usize> {
        for (at, value) in (offset..).zip(data) {
            if let Some(byte) = self.table.get_mut(at) {
                *byte = match at % ENTRY {
                    // A message is a write of 32 bits, aligned.
                    0 => value & !3,
                    12 => value & MASKED as u8,
                    13.. => 0,
                    _ => *value,
                };
            }
        }
        offset / ENTRY..(offset + data.len()).div_ceil(ENTRY)
    }

    /// What a vector sends; `None` while it is masked.
    pub fn message(&self, vector: usize) -> Option<MsiMessage> {
        if !self.enabled || self.masked {
            return None;
        }
        let (entries, _) = self.table.as_chunks::<ENTRY>();
        let (words, _) = entries.get(vector)?.as_chunks::<4>();
        let [low, high, data, control] = words else {
            return None;
        };
        let [low, high, data, control] = [low, high, data, control].map(|w| u32::from_le_bytes(*w));
        (control & MASKED == 0).then_some(MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        })
    }
}
