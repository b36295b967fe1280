//! MSI-X as a guest sees it: the capability, and the table and pending bits that lie in BARs.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.2.

use std::ops::Range;

use crate::MsiMessage;

/// The capability's id.
pub(crate) const ID: u8 = 0x11;
/// Bytes of the capability.
pub(crate) const SIZE: usize = 12;
/// Offset of message control in the capability.
pub(crate) const CONTROL: usize = 2;
/// Message control: one less than the number of vectors.
pub(crate) const TABLE_SIZE: u16 = 0x7ff;
/// The most vectors.
pub(crate) const MOST: u16 = TABLE_SIZE + 1;
/// Message control: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of an entry of the table.
const ENTRY: usize = 16;
/// Vector control: the vector is masked; the other bits are reserved.
const MASKED: u32 = 1;

/// Bytes of a table.
pub(crate) fn table_size(vectors: u16) -> u64 {
    u64::from(vectors) * ENTRY as u64
}

/// Bytes of pending bits, which come in units of 64.
pub(crate) fn pending_size(vectors: u16) -> u64 {
    u64::from(vectors).div_ceil(64) * size_of::<u64>() as u64
}

/// A part of a BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The BAR's first register.
    pub bar: u8,
    /// Bytes in it; both ends are multiples of 8.
    pub range: Range<u64>,
}

impl Place {
    /// What the capability says: an offset of 32 bits, with the register in the low three.
    fn register(&self) -> u32 {
        self.range.start as u32 | u32::from(self.bar)
    }
}

/// Where table and pending bits are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MsixPlaces {
    /// The table.
    pub table: Place,
    /// The pending bits.
    pub pending: Place,
}

/// Who answers at an offset of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The table of MSI-X, at an offset in it.
    Table(usize),
    /// Pending bits of MSI-X.
    Pending,
    /// The device.
    Device,
}

impl MsixPlaces {
    /// Whether table and pending bits are in each other's way.
    pub fn overlap(&self) -> bool {
        let Self { table, pending } = self;
        table.bar == pending.bar
            && table.range.start < pending.range.end
            && pending.range.start < table.range.end
    }

    /// The parts of a BAR that are not the device's.
    pub fn in_bar(&self, bar: u8) -> impl Iterator<Item = Range<u64>> {
        [&self.table, &self.pending]
            .into_iter()
            .filter(move |place| place.bar == bar)
            .map(|place| place.range.clone())
    }

    /// Who answers at an offset. Whole aligned pieces of up to 8 bytes are in one part, because
    /// table and pending bits are in units of 8 bytes.
    pub fn part(&self, bar: u8, offset: u64) -> Part {
        let is_in = |place: &Place| place.bar == bar && place.range.contains(&offset);
        if is_in(&self.table) {
            // A table has 32 KiB at most.
            Part::Table((offset - self.table.range.start) as usize)
        } else if is_in(&self.pending) {
            Part::Pending
        } else {
            Part::Device
        }
    }

    /// The capability of a function with `vectors` vectors, at least one, behind its header, and the
    /// bits of it that a guest may change.
    pub fn capability(&self, vectors: u16) -> ([u8; SIZE - CONTROL], [u8; SIZE - CONTROL]) {
        let mut body = [0; SIZE - CONTROL];
        body[..2].copy_from_slice(&vectors.saturating_sub(1).to_le_bytes());
        body[2..6].copy_from_slice(&self.table.register().to_le_bytes());
        body[6..].copy_from_slice(&self.pending.register().to_le_bytes());
        let mut writable = [0; SIZE - CONTROL];
        writable[..2].copy_from_slice(&(ENABLE | FUNCTION_MASK).to_le_bytes());
        (body, writable)
    }
}

/// What a guest has set up, by the capability and the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsixTable {
    enabled: bool,
    /// Whether all vectors are masked.
    masked: bool,
    /// The table, as it lies in the BAR.
    table: Vec<u8>,
}

impl MsixTable {
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
    pub fn vectors(&self) -> u16 {
        // It was made with as many.
        (self.table.len() / ENTRY) as u16
    }

    /// Whether MSI-X is on.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Takes over what a guest wrote to message control.
    pub fn set_control(&mut self, control: u16) {
        self.enabled = control & ENABLE != 0;
        self.masked = control & FUNCTION_MASK != 0;
    }

    /// Reads the table. What lies behind its end is zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.table.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the table.
    ///
    /// # Returns
    /// The vectors that it touched, some of which may not be there.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Range<usize> {
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
        offset / ENTRY..(offset.saturating_add(data.len())).div_ceil(ENTRY)
    }

    /// What a vector sends; `None` while it is masked or MSI-X is off.
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
