//! What holds for the tables of any machine.

use std::collections::BTreeSet;

use ::pci::Bdf;
use proptest::prelude::*;

use super::samples::{Sample, function};
use crate::plan::{GpaRange, IoWindow, Isa, PciPlan, SegmentPlan};

/// Any topology that has room for up to 255 CPUs, any number of them, any number at boot.
fn samples() -> impl Strategy<Value = Sample> {
    prop_oneof![samples_of(Isa::X86_64), samples_of(Isa::Aarch64)]
}

fn samples_of(isa: Isa) -> impl Strategy<Value = Sample> {
    let levels = (1..=4u32, 1..=16u32, 1..=4u32);
    let pci = prop::option::of(pci_plans(isa));
    let boot = (levels, 1..=255u32, any::<bool>(), any::<bool>())
        .prop_flat_map(|(levels, max, serial, pmu)| (Just((levels, max, serial, pmu)), 1..=max));
    (boot, pci).prop_map(
        move |((((threads, cores, dies), max, serial, pmu), boot), pci)| {
            let packages = max.div_ceil(threads * cores * dies);
            let mut sample = Sample::new(isa, boot, max, [threads, cores, dies, packages]);
            sample.devices.serial = sample.devices.serial.filter(|_| serial);
            sample.cpus.pmu = pmu;
            sample.pci = pci;
            sample
        },
    )
}

/// A range that ends at `limit` at most, which may be empty.
fn ranges(limit: u64) -> impl Strategy<Value = GpaRange> {
    (0..limit).prop_flat_map(move |start| {
        (0..=limit - start).prop_map(move |size| GpaRange { start, size })
    })
}

/// Up to five segments, whatever they have.
fn pci_plans(isa: Isa) -> impl Strategy<Value = PciPlan> {
    let parts = (any::<u16>(), 0..1000u32, 1..9u32, any::<bool>());
    let functions = prop::collection::btree_map(1..32u8, parts, 0..32);
    let places = (ranges(1 << 52), ranges(u32::MAX.into()), ranges(u64::MAX));
    let io = (any::<u16>(), any::<u16>());
    let intx = prop::collection::vec(any::<u32>(), 0..9);
    let segment = (places, io, intx, any::<Option<u32>>(), functions);
    prop::collection::btree_map(0..=255u16, segment, 1..6).prop_map(move |segments| {
        let segments = segments.into_iter().map(|(number, parts)| {
            let ((ecam, mmio32, mmio64), (base, size), intx, numa_node, functions) = parts;
            let functions = functions.into_iter();
            let io = IoWindow {
                base,
                size: size.min(u16::MAX - base),
            };
            SegmentPlan {
                number,
                ecam,
                mmio32,
                mmio64,
                io: Some(io).filter(|_| isa == Isa::X86_64 && number == 0),
                intx,
                numa_node,
                functions: functions
                    .map(|(device, (vendor, first, count, dsd))| {
                        let ids = (first..first + count).collect();
                        let mut function = function(number, device, vendor, ids);
                        function.nodes = function.nodes.filter(|_| dsd);
                        function
                    })
                    .collect(),
            }
        });
        PciPlan {
            segments: segments.collect(),
        }
    })
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Splits a table into its type-length-value entries from `first` on.
fn entries(table: &[u8], first: usize) -> Vec<(usize, &[u8])> {
    let mut entries = Vec::new();
    let mut at = first;
    while at < table.len() {
        let length = usize::from(table[at + 1]);
        entries.push((at, &table[at..at + length]));
        at += length;
    }
    entries
}

/// UID, hardware id and flags of a processor entry.
fn processor(entry: &[u8]) -> Option<(u32, u64, u32)> {
    match entry[0] {
        0 => Some((entry[2].into(), entry[3].into(), u32_at(entry, 4))),
        9 => Some((u32_at(entry, 12), u32_at(entry, 4).into(), u32_at(entry, 8))),
        0xb => {
            let mpidr = u64::from(u32_at(entry, 72)) << 32 | u64::from(u32_at(entry, 68));
            Some((u32_at(entry, 8), mpidr, u32_at(entry, 12)))
        }
        _ => None,
    }
}

proptest! {
    #[test]
    fn tables_are_whole_and_fill_their_window(sample in samples()) {
        let size = sample.encode().size(sample.rsdp_at());
        let mut end = 0x4020_0000;
        for table in sample.place().tables {
            prop_assert!(table.bytes.iter().fold(0u8, |a, b| a.wrapping_add(*b)) == 0);
            prop_assert_eq!(table.gpa % 64, 0);
            if table.name == "RSDP" {
                prop_assert_eq!(table.bytes.len(), 36);
            } else {
                prop_assert_eq!(u32_at(&table.bytes, 4) as usize, table.bytes.len());
                prop_assert_eq!(&table.bytes[..4], table.name.as_bytes());
            }
            if table.gpa != 0xe_0000 {
                prop_assert_eq!(table.gpa, end);
                end += (table.bytes.len() as u64).next_multiple_of(64);
            }
        }
        prop_assert_eq!(end, 0x4020_0000 + size);
    }

    #[test]
    fn the_madt_has_every_cpu_once(sample in samples()) {
        let madt = sample.table("APIC");
        let processors: Vec<_> = entries(&madt, 44)
            .iter()
            .filter_map(|(_, entry)| processor(entry))
            .collect();
        let surplus = match sample.isa {
            Isa::X86_64 => 2,
            Isa::Aarch64 => 0,
        };
        let expected: Vec<_> = sample
            .cpus
            .cpus
            .iter()
            .map(|cpu| {
                let flags = if cpu.index < sample.cpus.boot { 1 } else { surplus };
                (cpu.index, cpu.hardware_id, flags)
            })
            .collect();
        prop_assert_eq!(processors, expected);
    }

    #[test]
    fn the_pptt_is_a_tree_with_every_cpu_as_a_leaf(sample in samples_of(Isa::Aarch64)) {
        let pptt = sample.table("PPTT");
        let mut seen = BTreeSet::new();
        let mut leaves = Vec::new();
        let mut packages = Vec::new();
        for (offset, node) in entries(&pptt, 36) {
            prop_assert_eq!(node.len(), 20);
            let (flags, parent, id) = (u32_at(node, 4), u32_at(node, 8), u32_at(node, 12));
            prop_assert!(seen.is_empty() == (parent == 0));
            prop_assert!(parent == 0 || seen.contains(&(parent as usize)));
            seen.insert(offset);
            if flags & 1 << 3 != 0 {
                leaves.push(id);
            }
            if flags & 1 << 0 != 0 {
                packages.push(id);
            }
        }
        prop_assert!(leaves.into_iter().eq(0..sample.cpus.cpus.len() as u32));
        prop_assert!(packages.into_iter().eq(0..sample.cpus.topology.packages));
    }

    #[test]
    fn every_segment_is_found_by_its_number(pci in pci_plans(Isa::Aarch64)) {
        let mut sample = Sample::new(Isa::Aarch64, 1, 1, [1; 4]);
        sample.pci = Some(pci.clone());
        let mcfg = sample.table("MCFG");
        let mcfg: Vec<_> = mcfg[44..]
            .chunks(16)
            .map(|entry| (u64_at(entry, 0), u32_at(entry, 8), u32_at(entry, 12)))
            .collect();
        let segments = pci.segments.iter();
        let expected: Vec<_> = segments
            .map(|segment| (segment.ecam.start, segment.number.into(), 0))
            .collect();
        prop_assert_eq!(mcfg, expected);
    }

    /// What a guest reads in the IORT is what messages are sent with.
    #[test]
    fn the_iort_maps_to_the_ids_of_the_its(
        pci in pci_plans(Isa::Aarch64), devices in prop::collection::vec(0..32u8, 5)
    ) {
        let mut sample = Sample::new(Isa::Aarch64, 1, 1, [1; 4]);
        sample.pci = Some(pci.clone());
        let iort = sample.table("IORT");
        prop_assert_eq!(u32_at(&iort, 36) as usize, 1 + pci.segments.len());
        let mut found = Vec::new();
        let mut at = u32_at(&iort, 40) as usize;
        while at < iort.len() {
            let node = &iort[at..];
            at += usize::from(u16::from_le_bytes([node[1], node[2]]));
            if node[0] != 2 {
                prop_assert_eq!(node[0], 0);
                continue;
            }
            let mapping = &node[u32_at(node, 12) as usize..];
            let (segment, device) = (u32_at(node, 28) as u16, devices[found.len()]);
            let bdf = Bdf { segment, device };
            let beyond = u32::from(bdf.requester_id()) - u32_at(mapping, 0);
            prop_assert!(beyond <= u32_at(mapping, 4));
            prop_assert_eq!(u32_at(mapping, 8) + beyond, bdf.its_device_id());
            prop_assert_eq!(iort[u32_at(mapping, 12) as usize], 0);
            found.push(segment);
        }
        prop_assert_eq!(at, iort.len());
        prop_assert!(found.into_iter().eq(pci.segments.iter().map(|segment| segment.number)));
    }
}
