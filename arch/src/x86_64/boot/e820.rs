//! The memory map that a guest is given, in the terms of the BIOS call that named it (ACPI 6.5,
//! section 15, "System Address Map Interfaces").

use super::layout;

/// What a range of addresses is used for, with the numbers of ACPI 6.5, table 15.374 ("Address
/// Range Types"), which `boot_params` and PVH share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Usable RAM.
    Ram = 1,
    /// Not for use.
    Reserved = 2,
    /// RAM that holds ACPI tables, usable once they have been read.
    AcpiReclaimable = 3,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Use.
    pub kind: E820Type,
}

/// The memory map: `ram` without the BIOS area (from the EBDA up to 1 MiB, reserved) and without
/// the ACPI window (reclaimable), ascending; adjacent ranges of RAM are one.
///
/// Ranges are `(start, size)`. `ram` is ascending and disjoint; no range ends beyond 2^64 - 1.
pub fn e820(ram: &[(u64, u64)], acpi_window: Option<(u64, u64)>) -> Vec<E820Entry> {
    let bios = E820Entry {
        start: layout::EBDA_START,
        size: layout::HIGH_MEMORY_START - layout::EBDA_START,
        kind: E820Type::Reserved,
    };
    let acpi = acpi_window.map(|(start, size)| E820Entry {
        start,
        size,
        kind: E820Type::AcpiReclaimable,
    });
    let mut holes: Vec<_> = [Some(bios), acpi].into_iter().flatten().collect();
    holes.sort_by_key(|hole| hole.start);

    let mut map = Vec::with_capacity(ram.len() + 2 * holes.len());
    for (start, size) in join(ram) {
        let end = start + size;
        let mut from = start;
        for hole in &holes {
            push_ram(&mut map, from, hole.start.min(end));
            from = from.max((hole.start + hole.size).min(end));
        }
        push_ram(&mut map, from, end);
    }
    map.append(&mut holes);
    map.sort_by_key(|entry| entry.start);
    map
}

/// Joins adjacent ranges.
fn join(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for &(start, size) in ranges {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += size,
            _ => joined.push((start, size)),
        }
    }
    joined
}

/// Adds RAM from `start` up to `end`, if that is anything.
fn push_ram(map: &mut Vec<E820Entry>, start: u64, end: u64) {
    if start < end {
        map.push(E820Entry {
            start,
            size: end - start,
            kind: E820Type::Ram,
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::E820Type::{AcpiReclaimable, Ram, Reserved};
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// Start, end and type of each entry.
    fn map(ram: &[(u64, u64)], acpi: Option<(u64, u64)>) -> Vec<(u64, u64, E820Type)> {
        e820(ram, acpi)
            .iter()
            .map(|e| (e.start, e.start + e.size, e.kind))
            .collect()
    }

    #[test]
    fn half_a_gib() {
        assert_eq!(
            map(&[(0, 512 * MIB)], Some((511 * MIB, MIB))),
            [
                (0, 0x9_fc00, Ram),
                (0x9_fc00, 0x10_0000, Reserved),
                (0x10_0000, 0x1ff0_0000, Ram),
                (0x1ff0_0000, 0x2000_0000, AcpiReclaimable),
            ]
        );
    }

    #[test]
    fn three_gib_exactly() {
        assert_eq!(
            map(&[(0, 3 * GIB)], Some((0xbff0_0000, 0x8_0000))),
            [
                (0, 0x9_fc00, Ram),
                (0x9_fc00, 0x10_0000, Reserved),
                (0x10_0000, 0xbff0_0000, Ram),
                (0xbff0_0000, 0xbff8_0000, AcpiReclaimable),
                (0xbff8_0000, 0xc000_0000, Ram),
            ]
        );
    }

    #[test]
    fn five_gib() {
        assert_eq!(
            map(&[(0, 3 * GIB), (4 * GIB, 2 * GIB)], None),
            [
                (0, 0x9_fc00, Ram),
                (0x9_fc00, 0x10_0000, Reserved),
                (0x10_0000, 0xc000_0000, Ram),
                (0x1_0000_0000, 0x1_8000_0000, Ram),
            ]
        );
    }

    #[test]
    fn adjacent_zones_are_one_range() {
        assert_eq!(
            map(
                &[(0, GIB), (GIB, GIB), (4 * GIB, GIB), (5 * GIB, GIB)],
                None
            ),
            [
                (0, 0x9_fc00, Ram),
                (0x9_fc00, 0x10_0000, Reserved),
                (0x10_0000, 0x8000_0000, Ram),
                (0x1_0000_0000, 0x1_8000_0000, Ram),
            ]
        );
    }

    proptest! {
        #[test]
        fn entries_ascend_and_account_for_all_ram(
            low in MIB..3 * GIB, high in 0..8 * GIB, below_top in 0..MIB
        ) {
            let ram = [(0, low), (4 * GIB, high)];
            let below_top = below_top.min(low - MIB);
            let acpi = (low - below_top, below_top / 2);
            let entries = e820(&ram, (acpi.1 > 0).then_some(acpi));
            for pair in entries.windows(2) {
                prop_assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            let total: u64 = entries.iter().map(|entry| entry.size).sum();
            prop_assert_eq!(total, low + high);
        }
    }
}
