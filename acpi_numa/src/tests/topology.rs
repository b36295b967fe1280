//! What a topology accepts, and what it says about what it does not.

use alloc::string::ToString;

use super::*;

/// The only thing that is wrong with a description.
#[track_caller]
fn error(spec: TopologySpec) -> TopologyError {
    let mut errors = Topology::new(spec).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

#[test]
fn nodes_are_sorted_and_found() {
    let topology = topology(vec![host(7), Node::new(pxm(1)), host(0)]);
    let order: Vec<_> = topology.nodes().iter().map(|node| node.pxm.0).collect();
    assert_eq!(order, [0, 1, 7]);
    assert_eq!(topology.node(pxm(7)), Some(&host(7)));
    assert_eq!(topology.node(pxm(2)), None);
}

#[test]
fn numbers_of_nodes() {
    assert_eq!(error(spec(vec![])), TopologyError::NoNodes);
    let highest = topology(vec![host(1023)]);
    assert_eq!(highest.distance(pxm(0), pxm(1023)), Some(Distance(40)));
    assert_eq!(
        error(spec(vec![host(1024)])),
        TopologyError::NodeTooHigh { pxm: pxm(1024) }
    );
    assert_eq!(
        error(spec(vec![Node::new(pxm(u32::MAX))])).to_string(),
        "node 4294967295 has too high a number: use 0 to 1023"
    );
    assert_eq!(
        error(spec(vec![host(1), Node::new(pxm(1))])),
        TopologyError::DuplicateNode { pxm: pxm(1) }
    );
}

#[test]
fn nodes_that_no_table_shows() {
    let mut node = Node::new(pxm(3));
    node.memory_placeholder = false;
    assert_eq!(
        error(spec(vec![host(0), node.clone()])),
        TopologyError::Invisible { pxm: pxm(3) }
    );
    node.initiators.push(pci(0, 0, 0, 0));
    topology(vec![host(0), node]);
}

#[test]
fn memory_entries_of_nodes() {
    let entries = |node: &Node| {
        let topology = topology(vec![node.clone()]);
        let entries: Vec<_> = srat::entries(&topology)
            .filter_map(|entry| match entry {
                srat::Entry::Memory(memory) => Some(memory.range()),
                _ => None,
            })
            .collect();
        assert_eq!(node.has_memory_entry(), !entries.is_empty());
        entries
    };
    let placeholder = MemoryRange {
        hotpluggable: true,
        ..MemoryRange::new(0, 0)
    };

    let mut node = Node::new(pxm(0));
    assert!(node.is_empty() && node.has_placeholder());
    assert_eq!(entries(&node), [placeholder]);
    node.processors.push(x2apic(0));
    assert!(!node.is_empty() && node.has_placeholder());
    assert_eq!(entries(&node), [placeholder]);
    node.memory_placeholder = false;
    assert_eq!(entries(&node), []);

    node.memory_placeholder = true;
    let range = AddressRange {
        base: 0x1000,
        length: 0x1000,
    };
    node.hotplug.push(range);
    let hotplug = MemoryRange {
        hotpluggable: true,
        ..MemoryRange::new(0x1000, 0x1000)
    };
    assert_eq!(entries(&node), [hotplug]);
    node.processors.clear();
    assert!(!node.is_empty() && !node.has_placeholder());
    let memory = MemoryRange::new(0, 0x1000);
    node.memory.push(memory);
    assert_eq!(entries(&node), [memory, hotplug]);
}

#[test]
fn ranges_without_length_and_past_the_end() {
    let with = |base, length| {
        let mut node = Node::new(pxm(2));
        node.memory.push(MemoryRange::new(base, length));
        spec(vec![node])
    };
    assert_eq!(
        error(with(0x1000, 0)).to_string(),
        "node 2 has a memory range of no length at 0x1000: leave it out"
    );
    Topology::new(with(u64::MAX - 1, 1)).unwrap();
    assert_eq!(
        error(with(u64::MAX - 1, 2)).to_string(),
        "node 2 has a memory range that passes the end of the address space: 0x2 bytes from \
         0xfffffffffffffffe"
    );
    let mut hotplug = Node::new(pxm(2));
    hotplug.hotplug.push(AddressRange {
        base: u64::MAX,
        length: u64::MAX,
    });
    assert!(matches!(
        error(spec(vec![hotplug])),
        TopologyError::RangeTooLong { .. }
    ));
}

#[test]
fn ranges_that_overlap() {
    let memory = |number, ranges: &[(u64, u64)]| {
        let ranges = ranges.iter();
        Node {
            memory: ranges
                .map(|(base, length)| MemoryRange::new(*base, *length))
                .collect(),
            ..Node::new(pxm(number))
        }
    };
    topology(vec![memory(0, &[(10, 10), (0, 10)]), memory(1, &[(20, 1)])]);
    assert_eq!(
        error(spec(vec![memory(4, &[(15, 1)]), memory(3, &[(10, 10)])])).to_string(),
        "memory ranges overlap: node 3 has 0xa bytes from 0xa, node 4 0x1 bytes from 0xf"
    );
    // Within one node too, and behind a range that ended in between.
    let errors = Topology::new(spec(vec![memory(0, &[(0, 100), (10, 5), (50, 60)])]));
    assert_eq!(errors.unwrap_err().len(), 2);
    let mut hotplug = Node::new(pxm(1));
    hotplug.hotplug.push(AddressRange {
        base: 99,
        length: 1,
    });
    assert!(matches!(
        error(spec(vec![memory(0, &[(0, 100)]), hotplug])),
        TopologyError::Overlap { .. }
    ));
}

#[test]
fn processors_that_are_there_twice() {
    let mut nodes = vec![host(0), host(1)];
    nodes[1].processors.push(Processor::LocalApic {
        apic_id: 0,
        sapic_eid: 0,
        clock_domain: 9,
    });
    assert_eq!(
        error(spec(nodes.clone())).to_string(),
        "the processor with APIC id 0 is in node 0 and again in node 1: name it once"
    );
    nodes[1].processors[1] = Processor::LocalApic {
        apic_id: 0,
        sapic_eid: 1,
        clock_domain: 0,
    };
    nodes[1].processors.push(Processor::Gicc {
        uid: 0,
        clock_domain: 0,
    });
    topology(nodes);
}

#[test]
fn devices_that_are_there_twice() {
    let mut node = Node::new(pxm(1));
    node.initiators = vec![pci(0, 1, 2, 3); 2];
    assert_eq!(
        error(spec(vec![node.clone()])).to_string(),
        "node 1 names the generic initiator 0000:01:02.3 twice: name it once"
    );
    // A device may have several nodes, and be both.
    node.initiators.pop();
    node.ports = node.initiators.clone();
    let other = Node {
        pxm: pxm(2),
        ..node.clone()
    };
    topology(vec![node.clone(), other]);
    let acpi = DeviceHandle::Acpi {
        hid: *b"ACPI0016",
        uid: 4,
    };
    node.ports = vec![acpi; 2];
    assert_eq!(
        error(spec(vec![node])).to_string(),
        "node 1 names the generic port ACPI0016 with _UID 4 twice: name it once"
    );
}

#[test]
fn pci_addresses_that_do_not_exist() {
    for (device, function) in [(32, 0), (0, 8)] {
        let mut node = Node::new(pxm(1));
        node.initiators.push(pci(0, 0, device, function));
        assert!(matches!(
            error(spec(vec![node])),
            TopologyError::PciAddress { .. }
        ));
    }
    let mut node = Node::new(pxm(1));
    node.ports.push(pci(0xffff, 0xff, 31, 7));
    topology(vec![node]);
}

#[test]
fn too_many_entries() {
    let mut node = Node::new(pxm(0));
    node.processors = (0..1 << 16).map(x2apic).collect();
    node.memory_placeholder = false;
    topology(vec![node.clone()]);
    node.memory_placeholder = true;
    assert_eq!(
        error(spec(vec![node])).to_string(),
        "65537 processors, memory ranges and devices are too many: at most 65536"
    );
}

#[test]
fn distances_that_are_not_given() {
    let mut processors = Node::new(pxm(1));
    processors.processors.push(x2apic(1));
    let mut hotplug = Node::new(pxm(2));
    hotplug.hotplug.push(AddressRange { base: 0, length: 1 });
    let mut spec = spec(vec![processors, hotplug, Node::new(pxm(4))]);
    let distance = |spec: &TopologySpec, from, to| {
        let topology = Topology::new(spec.clone()).unwrap();
        topology.distance(pxm(from), pxm(to))
    };
    assert_eq!(distance(&spec, 1, 1), Some(Distance(10)));
    assert_eq!(distance(&spec, 1, 2), Some(Distance(20)));
    assert_eq!(distance(&spec, 1, 4), Some(Distance(40)));
    assert_eq!(distance(&spec, 4, 1), Some(Distance(40)));
    assert_eq!(distance(&spec, 4, 4), Some(Distance(10)));
    // Numbers without a node, inside the matrix and outside.
    assert_eq!(distance(&spec, 0, 0), Some(Distance(10)));
    assert_eq!(distance(&spec, 3, 1), Some(Distance(40)));
    assert_eq!(distance(&spec, 1, 5), None);
    assert_eq!(distance(&spec, u32::MAX, 1), None);
    spec.distances.default = Distance(12);
    spec.distances.default_empty = Distance(254);
    assert_eq!(distance(&spec, 1, 2), Some(Distance(12)));
    assert_eq!(distance(&spec, 2, 4), Some(Distance(254)));
}

#[test]
fn distances_hold_both_ways_unless_both_are_given() {
    let mut spec = spec(vec![host(0), host(1), host(2)]);
    spec.distances.given.extend([
        ((pxm(0), pxm(1)), Distance(30)),
        ((pxm(2), pxm(0)), Distance(31)),
        ((pxm(1), pxm(2)), Distance(32)),
        ((pxm(2), pxm(1)), Distance(33)),
        ((pxm(1), pxm(1)), Distance(10)),
    ]);
    let topology = Topology::new(spec).unwrap();
    let distance = |from, to| topology.distance(pxm(from), pxm(to)).unwrap().0;
    assert_eq!([distance(0, 1), distance(1, 0)], [30, 30]);
    assert_eq!([distance(2, 0), distance(0, 2)], [31, 31]);
    assert_eq!([distance(1, 2), distance(2, 1)], [32, 33]);
    assert_eq!([distance(0, 0), distance(1, 1)], [10, 10]);
}

#[test]
fn distances_that_the_slit_cannot_have() {
    for distance in [0, 10, 255].map(Distance) {
        let mut spec = spec(vec![host(0), host(1)]);
        spec.distances.given.insert((pxm(1), pxm(0)), distance);
        let (from, to) = (pxm(1), pxm(0));
        assert_eq!(error(spec), TopologyError::Distance { from, to, distance });

        let mut spec = super::spec(vec![host(0), host(1)]);
        spec.distances.default = distance;
        assert_eq!(
            error(spec.clone()).to_string(),
            std::format!("the default distance is {distance}: use 11 to 254")
        );
        spec.distances.default_empty = distance;
        let errors = Topology::new(spec).unwrap_err();
        assert_eq!(
            errors[1].to_string(),
            std::format!("the default distance of empty nodes is {distance}: use 11 to 254")
        );
    }
    let mut spec = spec(vec![host(0)]);
    spec.distances.given.insert((pxm(0), pxm(0)), Distance(11));
    assert_eq!(
        error(spec).to_string(),
        "the distance of node 0 to itself is 11: it is 10 by definition, leave it out"
    );
}

#[test]
fn distances_to_nodes_that_are_not_there() {
    for (from, to) in [(0, 9), (9, 0)] {
        let mut spec = spec(vec![host(0)]);
        spec.distances
            .given
            .insert((pxm(from), pxm(to)), Distance(20));
        assert_eq!(
            error(spec).to_string(),
            std::format!("there is a distance from node {from} to node {to}, but no node 9")
        );
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let mut spec = spec(vec![host(2000), host(0), host(0)]);
    spec.distances.default = Distance(1);
    spec.distances.given.insert((pxm(0), pxm(5)), Distance(2));
    spec.performance.attachments.insert(pxm(0), pxm(77));
    let errors = Topology::new(spec).unwrap_err();
    let found: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "node 2000 has too high a number",
        "node 0 is declared twice",
        "the processor with APIC id 0",
        "memory ranges overlap",
        "the default distance is 1",
        "no node 5",
        "from node 0 to node 5 is 2",
        "node 77, which is not declared",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
}
