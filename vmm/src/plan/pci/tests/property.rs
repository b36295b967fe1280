//! What holds of every machine with devices.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use super::*;
use crate::config::{
    DeviceConfig, GenericInitiator, GuestNumaIds, NumaConfig, PciSegmentConfig, RngConfig,
};
use crate::plan::GpaRange;

/// A device as it is asked for, and as it is.
#[derive(Clone, Debug)]
struct Wish {
    segment: u16,
    slot: Option<u8>,
    nodes: Option<u32>,
    initiators: GenericInitiator,
    facts: DeviceFacts,
}

fn bars() -> impl Strategy<Value = Vec<(u8, BarKind, u64)>> {
    let bar = (0..3_u8, 4..39_u32).prop_map(|(kind, shift)| match kind {
        0 => (IO, 1 << (shift % 7 + 2)),
        1 => (MEM32, 1 << (shift % 20 + 4)),
        _ => (MEM64, 1 << shift),
    });
    vec(bar, 0..4).prop_map(|bars| {
        let mut free = 0;
        let place = |(kind, size)| {
            let index = free;
            free += if kind == MEM64 { 2 } else { 1 };
            (index, kind, size)
        };
        let bars: Vec<_> = bars.into_iter().map(place).collect();
        bars.into_iter()
            .filter(|(index, kind, _)| *index + u8::from(*kind == MEM64) < 6)
            .collect()
    })
}

fn wishes() -> impl Strategy<Value = Wish> {
    let initiators = prop_oneof![
        Just(GenericInitiator::Auto),
        Just(GenericInitiator::On),
        Just(GenericInitiator::Off),
        Just(GenericInitiator::Only),
    ];
    (any::<u16>(), of(1..32_u8), of(1..9_u32), initiators, bars()).prop_map(
        |(segment, slot, nodes, initiators, bars)| Wish {
            segment,
            slot,
            nodes,
            initiators: match nodes {
                Some(_) => initiators,
                None => GenericInitiator::Auto,
            },
            facts: device(&bars),
        },
    )
}

prop_compose! {
    fn machines()(
        isa in proptest::sample::select(ISAS.as_slice()),
        segments in prop_oneof![4 => 1..5_u16, 1 => 90..97_u16],
        wishes in vec(wishes(), 0..10),
        weights in vec((1..1000_u32, 1..1000_u32), 0..4),
        phys_bits in 36..53_u8,
        memory in 1..64_u64,
        memory_only in of(1..6_u32),
        rng in of((any::<u16>(), of(1..32_u8))),
    ) -> (VmConfig, HostFacts) {
        let mut config = VmConfig::default();
        config.payload.kernel = Some("k".into());
        config.platform.num_pci_segments = segments;
        config.cpus.max_phys_bits = Some(phys_bits);
        config.memory.size = memory << 30;
        config.numa = vec![NumaConfig {
            cpus: vec![0],
            memory_zones: vec!["mem0".to_owned()],
            ..NumaConfig::bare(0)
        }];
        config.numa.extend(memory_only.map(NumaConfig::bare));
        config.pci_segments = (0..segments)
            .zip(weights)
            .map(|(pci_segment, (mmio32, mmio64))| PciSegmentConfig {
                pci_segment,
                mmio32_aperture_weight: mmio32,
                mmio64_aperture_weight: mmio64,
            })
            .collect();
        let mut host = HostFacts::assumed(isa, HostMemory::default());
        host.phys_bits = phys_bits;
        let mut taken = BTreeSet::new();
        for (number, wish) in wishes.into_iter().enumerate() {
            let path = format!("/d{number}");
            let pci_segment = wish.segment % segments;
            host.devices.insert(path.clone(), wish.facts);
            config.devices.push(DeviceConfig {
                path: path.into(),
                iommu: false,
                id: None,
                pci_segment,
                pci_device_id: wish.slot.filter(|slot| taken.insert((pci_segment, *slot))),
                x_exclude_mmap_bars: Vec::new(),
                guest_numa_ids: wish.nodes.map(GuestNumaIds::Auto),
                generic_initiator: wish.initiators,
                x_allow_noncacheable: false,
            });
        }
        config.rng = rng.map(|(segment, slot)| {
            let pci_segment = segment % segments;
            RngConfig {
                src: "/r".into(),
                id: None,
                pci_segment,
                pci_device_id: slot.filter(|slot| taken.insert((pci_segment, *slot))),
            }
        });
        (config, host)
    }
}

/// Fails unless the ranges lie apart and inside of `around`.
fn assert_apart(mut ranges: Vec<GpaRange>, around: GpaRange) -> Result<(), TestCaseError> {
    ranges.retain(|range| range.size > 0);
    ranges.sort_by_key(|range| range.start);
    let mut free = around.start;
    for range in ranges {
        prop_assert!(range.start >= free, "{range:x?} begins before {free:#x}");
        free = range.end();
    }
    prop_assert!(free <= around.end(), "{free:#x} is behind {around:x?}");
    Ok(())
}

/// Addresses of all BARs that `window` is for, each with its size.
fn placed(segment: &SegmentPlan, window: fn(BarKind) -> bool) -> Vec<GpaRange> {
    let functions = segment.functions.iter();
    let bars = functions.flat_map(|function| function.facts.bars.iter().zip(&function.bars));
    bars.filter(|(facts, _)| window(facts.kind))
        .filter_map(|(facts, address)| {
            Some(GpaRange {
                start: (*address)?,
                size: facts.size,
            })
        })
        .collect()
}

fn check_segment(isa: Isa, segment: &SegmentPlan) -> Result<(), TestCaseError> {
    let page = if isa == Isa::Aarch64 {
        1 << 16
    } else {
        1 << 12
    };
    let mut devices: Vec<u8> = segment.functions.iter().map(|f| f.bdf.device).collect();
    let sorted = devices.clone();
    devices.sort_unstable();
    devices.dedup();
    prop_assert_eq!(&devices, &sorted);
    prop_assert!(devices.iter().all(|device| (1..32).contains(device)));
    for function in &segment.functions {
        prop_assert_eq!(function.bdf.segment, segment.number);
        for (facts, address) in function.facts.bars.iter().zip(&function.bars) {
            let hidden = facts.kind == BarKind::Io && segment.io.is_none();
            prop_assert_eq!(address.is_none(), hidden);
            let address = address.unwrap_or(0);
            prop_assert!(address.is_multiple_of(facts.size));
            prop_assert!(facts.kind == BarKind::Io || address.is_multiple_of(page));
        }
    }
    let is_io = |kind| kind == BarKind::Io;
    let is_32 = |kind| matches!(kind, BarKind::Memory32 { .. });
    let is_64 = |kind| matches!(kind, BarKind::Memory64 { .. });
    let whole_pages = |bars: Vec<GpaRange>| {
        let whole = |bar: GpaRange| GpaRange {
            size: bar.size.max(page),
            ..bar
        };
        bars.into_iter().map(whole).collect()
    };
    assert_apart(whole_pages(placed(segment, is_32)), segment.mmio32)?;
    assert_apart(whole_pages(placed(segment, is_64)), segment.mmio64)?;
    let ports = segment
        .io
        .map_or(GpaRange { start: 0, size: 0 }, |io| GpaRange {
            start: io.base.into(),
            size: io.size.into(),
        });
    assert_apart(placed(segment, is_io), ports)?;
    prop_assert_eq!(
        segment.io.is_some(),
        isa == Isa::X86_64 && segment.number == 0
    );
    Ok(())
}

fn check_nodes(plan: &Plan) -> Result<(), TestCaseError> {
    let nodes = &plan.numa.as_ref().unwrap().nodes;
    let mut owned = BTreeSet::new();
    for function in segments(plan).iter().flat_map(|segment| &segment.functions) {
        let Some(DeviceNodes {
            ids,
            dsd,
            generic_initiators,
            auto,
        }) = &function.nodes
        else {
            continue;
        };
        prop_assert!(*dsd || *generic_initiators);
        prop_assert!(*dsd || !*auto);
        for id in ids {
            prop_assert!(owned.insert(*id), "node {id} has two owners");
            let node = nodes.iter().find(|node| node.id == *id).unwrap();
            prop_assert!(node.is_empty());
            prop_assert_eq!(node.device.as_ref(), Some(&function.id));
        }
    }
    let without = nodes.iter().filter(|node| !owned.contains(&node.id));
    prop_assert!(without.into_iter().all(|node| node.device.is_none()));
    let mut numbers: Vec<_> = nodes.iter().map(|node| node.linux_node).collect();
    numbers.sort_unstable();
    let all: Vec<_> = (0..nodes.len() as u32).map(Some).collect();
    prop_assert_eq!(numbers, all);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn everything_has_a_place_of_its_own((config, host) in machines()) {
        let isa = host.isa;
        prop_assume!(config.validate(isa).is_ok());
        let plan = match Plan::new(&config, &host) {
            Ok(plan) => plan,
            Err(
                PlanError::PciWindow64 { needed, available, .. }
                | PlanError::PciWindow32 { needed, available }
            ) => {
                prop_assert!(needed > available);
                return Ok(());
            }
            Err(PlanError::TooMuchMemory { .. }) => return Ok(()),
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let all = segments(&plan);
        prop_assert_eq!(all.len(), usize::from(config.platform.num_pci_segments));
        let functions: usize = all.iter().map(|segment| segment.functions.len()).sum();
        prop_assert_eq!(functions, config.device_ids().len());
        let below_4_gib = GpaRange { start: 0, size: 1 << 32 };
        assert_apart(all.iter().map(|segment| segment.ecam).collect(), below_4_gib)?;
        assert_apart(all.iter().map(|segment| segment.mmio32).collect(), plan.memory.mmio32)?;
        assert_apart(all.iter().map(|segment| segment.mmio64).collect(), plan.memory.mmio64)?;
        for segment in all {
            check_segment(isa, segment)?;
        }
        check_nodes(&plan)?;
        prop_assert_eq!(&Plan::new(&config, &host).unwrap(), &plan);
        let stored = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), plan);
    }
}
