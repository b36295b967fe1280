//! What a device may write, and whether it has written anything else.

use std::collections::BTreeMap;
use std::ops::Range;

use super::program::{AREA, AREA_SIZE};
use crate::virtio::testing::RAM;

/// All memory that there can be, from address 0 on.
pub const MEMORY: usize = RAM + AREA_SIZE;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// The most tables that are looked at.
const MOST_TABLES: usize = 512;

/// Flags of descriptors (section 2.7.5).
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A queue as the device has it.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    pub descriptors: u64,
    pub used: u64,
    pub size: u16,
}

/// Ranges of addresses.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            if from <= start && to >= end {
                return;
            }
            (start, end) = (start.min(from), end.max(to));
            self.0.remove(&from);
        }
        self.0.insert(start, end);
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        let before = self.0.range(..range.end).next_back();
        before.is_some_and(|(_, end)| *end > range.start)
    }

    /// What is between them.
    fn gaps(&self) -> Vec<Range<usize>> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for (start, end) in &self.0 {
            gaps.push(at..*start as usize);
            at = *end as usize;
        }
        gaps.push(at..MEMORY);
        gaps
    }
}

/// Descriptors that a device may read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    range: Range<u64>,
    base: u64,
    is_indirect: bool,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
}

/// Memory as the driver has left it, and what the device may make of it. Every descriptor that was ever
/// in a table counts, whether it was made available or not: when the device reads it is its own business.
pub struct Shadow {
    bytes: Vec<u8>,
    allowed: Ranges,
    tables: Vec<Table>,
    /// The device may write descriptors, and so may write anywhere.
    wild: bool,
    /// The memory that comes and goes is gone: nobody writes it.
    pub gone: bool,
}

impl Shadow {
    pub fn new() -> Self {
        Self {
            bytes: vec![0; MEMORY],
            allowed: Ranges::default(),
            tables: Vec::new(),
            wild: false,
            gone: false,
        }
    }

    /// The device runs from now on, with these queues.
    pub fn begin(&mut self, queues: &[Rings]) {
        for queue in queues {
            let size = u64::from(queue.size);
            self.allow(queue.used, 6 + 8 * size);
        }
        for queue in queues {
            self.add_table(queue.descriptors, queue.size.into(), false);
        }
    }

    /// The device is stopped.
    pub fn end(&mut self) {
        self.allowed = Ranges::default();
        self.tables.clear();
        self.wild = false;
    }

    /// The driver writes.
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        let Some(end) = gpa.checked_add(bytes.len() as u64) else {
            return;
        };
        if end > MEMORY as u64 {
            return;
        }
        let mut changed = Vec::new();
        for table in &self.tables {
            let (from, to) = (gpa.max(table.range.start), end.min(table.range.end));
            if from < to {
                let first = (from - table.base) / DESCRIPTOR;
                let last = (to - 1 - table.base) / DESCRIPTOR;
                for index in first..=last {
                    let at = table.base + index * DESCRIPTOR;
                    changed.extend(self.descriptor(at).map(|old| (at, old, table.is_indirect)));
                }
            }
        }
        self.bytes[gpa as usize..end as usize].copy_from_slice(bytes);
        for (at, old, is_indirect) in changed {
            let Some(new) = self.descriptor(at) else {
                continue;
            };
            // A device may read one part of it before and another one after.
            for mixed in 0..8 {
                let pick = |bit: u8| if mixed & bit == 0 { old } else { new };
                let seen = Descriptor {
                    address: pick(1).address,
                    length: pick(2).length,
                    flags: pick(4).flags,
                };
                self.consider(seen, is_indirect);
            }
        }
    }

    /// Compares memory with what it must be, and takes it for what it is from now on.
    ///
    /// # Errors
    /// The device has written what it may not.
    pub fn check(&mut self, now: &[u8], may_write: bool) -> Result<(), String> {
        let mut kept = match (may_write, self.wild) {
            (true, true) => Vec::new(),
            (true, false) => self.allowed.gaps(),
            (false, _) => Ranges::default().gaps(),
        };
        if self.gone {
            kept.push(AREA as usize..MEMORY);
        }
        for range in kept {
            let (before, after) = (&self.bytes[range.clone()], &now[range.clone()]);
            if before != after {
                let at = before.iter().zip(after).position(|(old, new)| old != new);
                let at = at.unwrap_or_default();
                return Err(format!(
                    "the device has written {:#x} to {:#x}, where it may not (it was {:#x})",
                    after[at],
                    range.start + at,
                    before[at]
                ));
            }
        }
        self.bytes.copy_from_slice(now);
        Ok(())
    }

    fn descriptor(&self, at: u64) -> Option<Descriptor> {
        let at = usize::try_from(at).ok()?;
        let bytes: &[u8; 16] = self.bytes.get(at..at.checked_add(16)?)?.try_into().ok()?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, rest @ ..] = *bytes;
        let [l0, l1, l2, l3, f0, f1, _, _] = rest;
        Some(Descriptor {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
        })
    }

    fn consider(&mut self, descriptor: Descriptor, is_indirect: bool) {
        let Descriptor {
            address,
            length,
            flags,
        } = descriptor;
        if flags & INDIRECT != 0 {
            let entries = u64::from(length) / DESCRIPTOR;
            if !is_indirect && entries > 0 && entries <= u16::MAX.into() {
                self.add_table(address, entries, true);
            }
        } else if flags & WRITE != 0 {
            self.allow(address, length.into());
        }
    }

    fn allow(&mut self, address: u64, length: u64) {
        let end = address.saturating_add(length).min(MEMORY as u64);
        if address < end && !self.wild {
            let range = address..end;
            let is_table = |table: &Table| table.range.start < end && address < table.range.end;
            self.wild = self.tables.iter().any(is_table);
            self.allowed.insert(range);
        }
    }

    fn add_table(&mut self, base: u64, entries: u64, is_indirect: bool) {
        let Some(end) = base.checked_add(entries * DESCRIPTOR) else {
            // The part before the end of the address space is not memory either.
            return;
        };
        let range = base..end.min(MEMORY as u64);
        let table = Table {
            range: range.clone(),
            base,
            is_indirect,
        };
        if range.is_empty() || self.wild || self.tables.contains(&table) {
            return;
        }
        if self.allowed.overlaps(&range) || self.tables.len() == MOST_TABLES {
            self.wild = true;
            return;
        }
        self.tables.push(table);
        let mut at = base;
        while at < range.end && !self.wild {
            if let Some(descriptor) = self.descriptor(at) {
                self.consider(descriptor, is_indirect);
            }
            at += DESCRIPTOR;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(address: u64, length: u32, flags: u16) -> Vec<u8> {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend([0, 0]);
        bytes
    }

    /// A queue of four entries, of which one is writable and one a table.
    fn running() -> Shadow {
        let mut shadow = Shadow::new();
        shadow.write(0x1000, &descriptor(0x5000, 16, WRITE));
        shadow.write(0x1010, &descriptor(0x6000, 32, INDIRECT));
        shadow.write(0x6010, &descriptor(0x7000, 1, WRITE));
        shadow.begin(&[Rings {
            descriptors: 0x1000,
            used: 0x3000,
            size: 4,
        }]);
        shadow
    }

    /// Whether a byte may be written.
    fn may(shadow: &mut Shadow, at: usize, may_write: bool) -> bool {
        let mut now = shadow.bytes.clone();
        now[at] ^= 1;
        let old = shadow.bytes.clone();
        let may = shadow.check(&now, may_write).is_ok();
        shadow.bytes = old;
        may
    }

    #[test]
    fn writable_buffers_and_used_rings_may_be_written_and_nothing_else() {
        let mut shadow = running();
        for (at, expected) in [
            (0x5000, true),
            (0x500f, true),
            (0x4fff, false),
            (0x5010, false),
            (0x3000, true),
            (0x3000 + 6 + 8 * 4 - 1, true),
            (0x3000 + 6 + 8 * 4, false),
            (0x7000, true),
            (0x7001, false),
            (0x6000, false),
            (0x1000, false),
            (0x2000, false),
            (MEMORY - 1, false),
        ] {
            assert_eq!(may(&mut shadow, at, true), expected, "{at:#x}");
            assert!(!may(&mut shadow, at, false), "{at:#x}");
        }
        shadow.end();
        assert!(!may(&mut shadow, 0x5000, true));
    }

    #[test]
    fn descriptors_of_before_count_as_those_of_now_do() {
        let mut shadow = running();
        shadow.write(0x1000, &descriptor(0x8000, 8, WRITE));
        assert!(may(&mut shadow, 0x5000, true));
        assert!(may(&mut shadow, 0x8007, true));
        // The length of before at the address of now.
        assert!(may(&mut shadow, 0x800f, true));
        assert!(!may(&mut shadow, 0x8010, true));
    }

    #[test]
    fn a_device_that_may_write_descriptors_may_write_anything_that_is_there() {
        let mut shadow = running();
        shadow.write(0x1020, &descriptor(0x1000, 1, WRITE));
        assert!(may(&mut shadow, 0x2000, true));
        assert!(may(&mut shadow, AREA as usize, true));
        shadow.gone = true;
        assert!(!may(&mut shadow, AREA as usize, true));
        assert!(!may(&mut shadow, 0x2000, false));
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let mut ranges = Ranges::default();
        for range in [10..20, 30..40, 50..60, 20..30, 35..55, 12..13] {
            ranges.insert(range);
        }
        assert_eq!(ranges.0.into_iter().collect::<Vec<_>>(), [(10, 60)]);
    }
}
