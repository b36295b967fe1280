//! The flat segments that both boot protocols start with.
//!
//! The Linux boot protocol fixes the selectors of code and data; PVH asks for segments of the same
//! kind and a task state segment, at selectors of the VMM's choice.

use super::layout;

/// Selector of the code segment (`__BOOT_CS`).
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment (`__BOOT_DS`).
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment.
pub const TSS_SELECTOR: u16 = 0x20;

/// Base 0, limit 4 GiB, 32-bit, execute and read, accessed.
pub const CODE: Descriptor = Descriptor(0x00cf_9b00_0000_ffff);
/// Base 0, limit 4 GiB, 32-bit, read and write, accessed.
pub const DATA: Descriptor = Descriptor(0x00cf_9300_0000_ffff);
/// Base 0, limit 0x67, 32-bit, busy: what PVH asks for.
pub const TSS: Descriptor = Descriptor(0x0000_8b00_0000_0067);

/// A segment descriptor (Intel SDM, volume 3, section 3.4.5, "Segment Descriptors").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base address.
    pub fn base(self) -> u32 {
        (self.bits(16, 24) | self.bits(56, 8) << 24) as u32
    }

    /// Highest offset, in bytes.
    pub fn limit(self) -> u32 {
        let limit = (self.bits(0, 16) | self.bits(48, 4) << 16) as u32;
        if self.granularity() == 1 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// Type field.
    pub fn kind(self) -> u8 {
        self.bits(40, 4) as u8
    }

    /// S flag: 1 for code and data, 0 for system segments.
    pub fn s(self) -> u8 {
        self.bits(44, 1) as u8
    }

    /// Privilege level.
    pub fn dpl(self) -> u8 {
        self.bits(45, 2) as u8
    }

    /// Present flag.
    pub fn present(self) -> u8 {
        self.bits(47, 1) as u8
    }

    /// D/B flag: 1 for 32-bit segments.
    pub fn db(self) -> u8 {
        self.bits(54, 1) as u8
    }

    /// G flag: 1 where the limit counts pages of 4 KiB.
    pub fn granularity(self) -> u8 {
        self.bits(55, 1) as u8
    }

    fn bits(self, from: u32, count: u32) -> u64 {
        self.0 >> from & ((1 << count) - 1)
    }
}

/// Base of the table in guest memory.
pub const BASE: u64 = layout::GDT_START;

/// Limit of the table: its size less one.
pub const LIMIT: u16 = TSS_SELECTOR + 7;

/// The table, as it stands at [`BASE`]: two null descriptors, code, data, TSS.
pub fn table() -> [u8; LIMIT as usize + 1] {
    let mut table = [0; LIMIT as usize + 1];
    for (slot, descriptor) in table.chunks_exact_mut(8).skip(2).zip([CODE, DATA, TSS]) {
        slot.copy_from_slice(&descriptor.0.to_le_bytes());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_decode_to_flat_segments() {
        for (segment, kind) in [(CODE, 0xb), (DATA, 0x3)] {
            assert_eq!((segment.base(), segment.limit()), (0, u32::MAX));
            assert_eq!((segment.kind(), segment.s(), segment.dpl()), (kind, 1, 0));
            assert_eq!(
                (segment.present(), segment.db(), segment.granularity()),
                (1, 1, 1)
            );
        }
        assert_eq!(
            (TSS.base(), TSS.limit(), TSS.kind(), TSS.s()),
            (0, 0x67, 0xb, 0)
        );
        assert_eq!((TSS.present(), TSS.granularity()), (1, 0));
    }

    #[test]
    fn split_fields_are_put_together() {
        let descriptor = Descriptor(0x124a_ff34_5678_9abc);
        assert_eq!(descriptor.base(), 0x1234_5678);
        assert_eq!(descriptor.limit(), 0xa_9abc);
        assert_eq!((descriptor.dpl(), descriptor.db()), (3, 1));
    }

    #[test]
    fn selectors_name_their_descriptor() {
        let table = table();
        for (selector, descriptor) in [(0x10, CODE), (0x18, DATA), (0x20, TSS)] {
            assert_eq!(table[selector..selector + 8], descriptor.0.to_le_bytes());
        }
        assert_eq!(table[..16], [0; 16]);
        assert_eq!(table.len(), 40);
    }
}
