//! Nodes of devices: how guests are told of them, and what operators are warned of.

use acpi_numa::hmat::Structure;
use acpi_numa::srat::Entry;
use acpi_numa::{hmat, srat};

use super::*;

/// One CPU and RAM in node 0, then what is given.
fn with_nodes(rest: &str) -> String {
    format!(
        "--cpus boot=1 --memory-zone id=m0,size=1G id=m1,size=1G \
         --numa guest_numa_id=0,cpus=[0],memory_zones=[m0] {rest}"
    )
}

/// Declarations of empty nodes.
fn empty(ids: std::ops::RangeInclusive<u32>) -> String {
    ids.map(|id| format!("guest_numa_id={id} ")).collect()
}

/// A device's name, and whether it is told of its nodes by a `_DSD` and by initiators.
type Told<'a> = (&'a str, bool, bool);

/// How all devices are told, by their names.
fn told(plan: &Plan) -> Vec<Told<'_>> {
    let mut told: Vec<_> = functions(plan)
        .filter_map(|function| {
            let nodes = function.nodes.as_ref()?;
            Some((function.id.as_str(), nodes.dsd, nodes.generic_initiators))
        })
        .collect();
    told.sort_unstable();
    told
}

/// Nodes whose number in Linux is not their id.
fn renumbered(plan: &Plan) -> Vec<(u32, u32)> {
    let nodes = plan.numa.as_ref().unwrap().nodes.iter();
    nodes
        .filter_map(|node| Some((node.id, node.linux_node?)))
        .filter(|(id, number)| id != number)
        .collect()
}

/// Slots, segments and the order of the devices make no difference: what counts is which nodes they own.
#[test]
fn initiators_are_for_those_whose_numbers_stay() {
    let memory = |id: u32| format!("guest_numa_id={id},memory_zones=[m1] ");
    let cases: &[(String, &str, &[Told<'_>])] = &[
        (
            empty(1..=8),
            "path=/a,id=a,guest_numa_ids=[1-8]",
            &[("a", true, true)],
        ),
        (
            empty(1..=16),
            "path=/a,id=a,guest_numa_ids=[1-8] path=/b,id=b,guest_numa_ids=[9-16]",
            &[("a", true, true), ("b", true, true)],
        ),
        (
            empty(1..=16),
            "path=/a,id=a,guest_numa_ids=[9-16] path=/b,id=b,guest_numa_ids=[1-8]",
            &[("a", true, true), ("b", true, true)],
        ),
        (
            String::new(),
            "path=/a,id=a,guest_numa_ids=auto path=/b,id=b,guest_numa_ids=auto:3",
            &[("a", true, true), ("b", true, true)],
        ),
        // The layout that NVIDIA asked for: RAM alone in node 1.
        (
            memory(1) + &empty(2..=9),
            "path=/a,id=a,guest_numa_ids=[2-9]",
            &[("a", true, false)],
        ),
        (
            empty(1..=8) + &memory(9),
            "path=/a,id=a,guest_numa_ids=[1-8]",
            &[("a", true, true)],
        ),
        (
            empty(1..=2) + &memory(3) + &empty(4..=5),
            "path=/a,id=a,guest_numa_ids=[4-5] path=/b,id=b,guest_numa_ids=[1-2]",
            &[("a", true, false), ("b", true, true)],
        ),
        // Node 3 is nobody's.
        (
            empty(1..=5),
            "path=/a,id=a,guest_numa_ids=[1-2] path=/b,id=b,guest_numa_ids=[4-5]",
            &[("a", true, true), ("b", true, false)],
        ),
        // Initiators of `a` alone would put its nodes first; those of `b` put them right.
        (
            empty(1..=4),
            "path=/a,id=a,guest_numa_ids=[3-4],generic_initiator=on path=/b,id=b,guest_numa_ids=[1-2]",
            &[("a", true, true), ("b", true, true)],
        ),
        (
            empty(1..=4),
            "path=/a,id=a,guest_numa_ids=[1-2],generic_initiator=off \
             path=/b,id=b,guest_numa_ids=[3-4]",
            &[("a", true, false), ("b", true, false)],
        ),
        (
            empty(1..=4),
            "path=/a,id=a,guest_numa_ids=[1-2],generic_initiator=only \
             path=/b,id=b,guest_numa_ids=[3-4]",
            &[("a", false, true), ("b", true, true)],
        ),
    ];
    for isa in ISAS {
        for (nodes, devices, expected) in cases {
            let line = with_nodes(&format!("{nodes} --device {devices}"));
            let plan = plan(isa, &line, &device(&[]));
            assert_eq!(told(&plan), *expected, "{line}");
            assert_eq!(renumbered(&plan), [], "{line}");
            let warned = plan
                .warnings()
                .iter()
                .any(|text| text.contains("numbers nodes"));
            assert!(!warned, "{line}");
        }
    }
}

/// Ids with holes are not the numbers of nodes anyway; initiators leave them as they are.
#[test]
fn initiators_that_change_nothing_are_there_even_if_ids_are_no_numbers() {
    let line = with_nodes(&format!(
        "{} --device path=/a,id=a,guest_numa_ids=[3-4]",
        empty(3..=4)
    ));
    for isa in ISAS {
        let plan = plan(isa, &line, &device(&[]));
        assert_eq!(told(&plan), [("a", true, true)]);
        assert_eq!(renumbered(&plan), [(3, 1), (4, 2)]);
    }
}

#[test]
fn what_initiators_change_is_said() {
    let asked_for = with_nodes(&format!(
        "guest_numa_id=1,memory_zones=[m1] {} \
         --device path=/a,id=a,guest_numa_ids=[2-3],generic_initiator=on",
        empty(2..=3)
    ));
    let with_holes = with_nodes(&format!(
        "{} --device path=/a,id=a,guest_numa_ids=[1,3],generic_initiator=only",
        empty(1..=3)
    ));
    for (line, expected, text) in [
        (
            asked_for,
            [(1, 3), (2, 1), (3, 2)].as_slice(),
            "1 is 3, 2 is 1, 3 is 2 there",
        ),
        (with_holes, &[(2, 3), (3, 2)], "2 is 3, 3 is 2 there"),
    ] {
        let plan = plan(Isa::Aarch64, &line, &device(&[]));
        assert_eq!(renumbered(&plan), expected);
        let warnings = plan.warnings();
        let said = warnings.iter().find(|warning| warning.contains(text));
        assert!(
            said.is_some_and(|text| text.contains("then those with generic initiators")),
            "{warnings:?}"
        );
    }
}

#[test]
fn initiators_of_nvidia_devices_belong_to_device_0() {
    let warned = |vendor: u16, options: &str| {
        let mut facts = device(&[]);
        facts.identity.vendor = vendor;
        let line = format!(
            "{} --platform num_pci_segments=2 --device path=/a,id=a,guest_numa_ids=[1-2]{options}",
            with_nodes(&empty(1..=2))
        );
        let warnings = plan(Isa::Aarch64, &line, &facts).warnings();
        warnings.into_iter().find(|text| text.contains("NVIDIA"))
    };
    let text = warned(0x10de, "").unwrap();
    assert!(
        text.contains("device a is at 0000:00:01.0") && text.contains("_DSD of its ACPI node"),
        "{text}"
    );
    let text = warned(0x10de, ",pci_segment=1,generic_initiator=only").unwrap();
    assert!(
        text.contains("0001:00:01.0") && text.contains("will find no nodes"),
        "{text}"
    );
    assert_eq!(warned(0x10de, ",generic_initiator=off"), None);
    assert_eq!(warned(0x10de, ",pci_segment=1,pci_device_id=0"), None);
    assert_eq!(warned(0x1002, ""), None);
}

/// NVIDIA's driver of a device at device 0 takes every initiator of the bus for its own.
#[test]
fn initiators_do_not_go_where_another_device_would_take_them() {
    let line = |second: &str| {
        format!(
            "{} --platform num_pci_segments=3 --device \
             path=/a,id=a,pci_segment=1,pci_device_id=0,guest_numa_ids=[1-2] \
             path=/b,id=b,guest_numa_ids=[3-4]{second}",
            with_nodes(&empty(1..=4))
        )
    };
    let warned = |plan: &Plan| {
        let warnings = plan.warnings().into_iter();
        let mut claims = warnings.filter(|text| text.contains("will take them for those of"));
        claims.next()
    };
    let both = [("a", true, true), ("b", true, true)];
    let nvidia = gpu(GIB);
    let other = device(&[]);
    for (facts, second, expected) in [
        (&nvidia, ",pci_segment=1", [both[0], ("b", true, false)]),
        (&nvidia, ",pci_segment=2", both),
        (&other, ",pci_segment=1", both),
    ] {
        let plan = plan(Isa::Aarch64, &line(second), facts);
        assert_eq!(told(&plan), expected, "{second}");
        assert_eq!(warned(&plan), None, "{second}");
    }
    let asked_for = line(",pci_segment=1,generic_initiator=on");
    let plan = plan(Isa::Aarch64, &asked_for, &nvidia);
    assert_eq!(told(&plan), both);
    let text = warned(&plan).unwrap();
    assert!(
        text.starts_with("device b has generic initiators at 0001:00:01.0")
            && text.contains("device a at 0001:00:00.0"),
        "{text}"
    );
}

#[test]
fn memory_that_no_node_is_for_is_warned_of() {
    let line = with_nodes("--device path=/a,id=a");
    let warnings = plan(Isa::Aarch64, &line, &gpu(GIB)).warnings();
    let text = "device a has memory that CPUs may cache and no NUMA nodes";
    assert!(
        warnings.iter().any(|warning| warning.starts_with(text)),
        "{warnings:?}"
    );
    let line = with_nodes("--device path=/a,id=a,guest_numa_ids=auto");
    let warnings = plan(Isa::Aarch64, &line, &gpu(GIB)).warnings();
    assert!(
        !warnings.iter().any(|warning| warning.starts_with(text)),
        "{warnings:?}"
    );
}

#[test]
fn more_nodes_than_arm64_kernels_take_say_what_would_do() {
    let warned = |isa, devices: &str| {
        let line = with_nodes(&format!("--device {devices}"));
        let warnings = plan(isa, &line, &device(&[])).warnings();
        warnings
            .into_iter()
            .find(|text| text.contains("NODES_SHIFT"))
    };
    let two = "path=/a,guest_numa_ids=auto path=/b,guest_numa_ids=auto";
    let text = warned(Isa::Aarch64, two).unwrap();
    assert!(
        text.starts_with("17 nodes:")
            && text.ends_with("with 7 nodes at most for each device there would be room"),
        "{text}"
    );
    assert_eq!(warned(Isa::X86_64, two), None);
    let fewer = "path=/a,guest_numa_ids=auto:7 path=/b,guest_numa_ids=auto:7";
    assert_eq!(warned(Isa::Aarch64, fewer), None);
}

/// Linux drops an HMAT that speaks of memory without a memory entry, or of initiators that it does
/// not know.
#[test]
fn the_hmat_speaks_of_nodes_that_the_srat_has() {
    let hmat_of = "hmat=[0@100:100:400000:400000]";
    let nodes: String = (1..=8)
        .map(|id| format!("guest_numa_id={id},{hmat_of} "))
        .collect();
    for initiators in ["auto", "on", "off", "only"] {
        let line = with_nodes(&format!(
            "{nodes} --device path=/a,id=a,guest_numa_ids=[1-8],generic_initiator={initiators}"
        ));
        for isa in ISAS {
            let plan = plan(isa, &line, &gpu(128 * GIB));
            let srat = srat::read(&table(&plan, "SRAT").unwrap()).unwrap();
            let hmat = hmat::read(&table(&plan, "HMAT").unwrap()).unwrap();
            assert_eq!((srat.revision, hmat.revision), (3, 2));
            let is_memory = |pxm| {
                let mut entries = srat.entries.iter();
                entries.any(|entry| matches!(entry, Entry::Memory(_)) && entry.pxm() == Some(pxm))
            };
            let is_initiator = |pxm| {
                let mut entries = srat.entries.iter();
                entries.any(|entry| match entry {
                    Entry::Memory(_) | Entry::GenericPort(_) => false,
                    entry => entry.pxm() == Some(pxm),
                })
            };
            let count = srat.entries.iter();
            let count = count.filter(|entry| matches!(entry, Entry::GenericInitiator(_)));
            assert_eq!(count.count(), if initiators == "off" { 0 } else { 8 });
            let mut targets = 0;
            for structure in &hmat.structures {
                match structure {
                    Structure::MemoryDomain(domain) => {
                        assert!(is_memory(domain.memory()));
                        assert!(domain.initiator().is_none_or(is_initiator));
                    }
                    Structure::Localities(matrix) => {
                        targets = matrix.targets().len();
                        assert!(matrix.targets().iter().copied().all(is_memory));
                        assert!(matrix.initiators().iter().copied().all(is_initiator));
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(targets, 8);
        }
    }
}
