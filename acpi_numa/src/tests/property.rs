//! Random topologies survive being written and read; random bytes do no harm.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::hmat::{Access, Metric, Structure, Value};
use crate::linux::{Kernel, numbering};
use crate::srat::Entry;

/// What a node is made from, before ranges and processors get addresses that nobody else has.
#[derive(Clone, Debug)]
struct Draft {
    processors: Vec<u8>,
    memory: Vec<(bool, bool)>,
    hotplug: usize,
    initiators: Vec<DeviceHandle>,
    ports: Vec<DeviceHandle>,
    placeholder: bool,
}

fn handle() -> impl Strategy<Value = DeviceHandle> {
    prop_oneof![
        (any::<[u8; 8]>(), any::<u32>()).prop_map(|(hid, uid)| DeviceHandle::Acpi { hid, uid }),
        (any::<u16>(), any::<u8>(), 0u8..32, 0u8..8)
            .prop_map(|(segment, bus, device, function)| pci(segment, bus, device, function)),
    ]
}

fn handles() -> impl Strategy<Value = Vec<DeviceHandle>> {
    vec(handle(), 0..3).prop_map(|mut handles| {
        handles.sort();
        handles.dedup();
        handles
    })
}

fn draft() -> impl Strategy<Value = Draft> {
    (
        vec(0u8..3, 0..4),
        vec(any::<(bool, bool)>(), 0..3),
        0usize..2,
        handles(),
        handles(),
        any::<bool>(),
    )
        .prop_map(
            |(processors, memory, hotplug, initiators, ports, placeholder)| Draft {
                processors,
                memory,
                hotplug,
                initiators,
                ports,
                placeholder,
            },
        )
}

/// The node, with the next free address and processor.
fn finish(number: u32, draft: Draft, next: &mut u8) -> Node {
    let mut unique = || {
        *next += 1;
        *next
    };
    let mut node = Node::new(pxm(number));
    node.memory_placeholder = false;
    for kind in draft.processors {
        let id = unique();
        let clock_domain = u32::from(id) << 20;
        node.processors.push(match kind {
            0 => Processor::LocalApic {
                apic_id: id,
                sapic_eid: 0,
                clock_domain,
            },
            1 => Processor::X2apic {
                id: 0xabc0_0000 | u32::from(id),
                clock_domain,
            },
            _ => Processor::Gicc {
                uid: 0xdef0_0000 | u32::from(id),
                clock_domain,
            },
        });
    }
    for (hotpluggable, non_volatile) in draft.memory {
        node.memory.push(MemoryRange {
            base: u64::from(unique()) << 40,
            length: 1 << 40,
            hotpluggable,
            non_volatile,
        });
    }
    for _ in 0..draft.hotplug {
        node.hotplug.push(AddressRange {
            base: u64::from(unique()) << 40,
            length: 1,
        });
    }
    node.memory.reverse();
    node.initiators = draft.initiators;
    node.ports = draft.ports;
    let visible = node.has_initiator() || node.has_memory_entry() || !node.ports.is_empty();
    node.memory_placeholder = draft.placeholder || !visible;
    node
}

fn figure<T: Clone + core::fmt::Debug>(
    value: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Figure<T>> {
    prop_oneof![
        value.clone().prop_map(Figure::Access),
        (value.clone(), value).prop_map(|(read, write)| Figure::ReadWrite { read, write }),
    ]
}

fn path() -> impl Strategy<Value = Path> {
    let latency = (1u32..4000).prop_map(|value| Latency::from_picoseconds(value * 100));
    let bandwidth = (1u32..0xfffe).prop_map(Bandwidth::from_megabytes_per_second);
    let latency = figure(latency);
    let bandwidth = figure(bandwidth);
    let reachable = (proptest::option::of(latency), bandwidth).prop_map(|(latency, bandwidth)| {
        Path::Reachable {
            latency,
            bandwidth: Some(bandwidth),
        }
    });
    prop_oneof![1 => Just(Path::Unreachable), 4 => reachable]
}

/// A description in which nothing is wrong.
fn any_spec() -> impl Strategy<Value = TopologySpec> {
    let pairs = vec((any::<(usize, usize)>(), 11u8..255), 0..6);
    let paths = vec((any::<(usize, usize)>(), path()), 0..6);
    let nodes = btree_map(0u32..300, draft(), 1..10);
    (nodes, pairs, paths, any::<bool>()).prop_map(|(drafts, pairs, paths, attach)| {
        let mut next = 0;
        let drafts = drafts.into_iter();
        let mut spec = spec(
            drafts
                .map(|(number, draft)| finish(number, draft, &mut next))
                .collect(),
        );
        let count = spec.nodes.len();
        for ((from, to), distance) in pairs {
            let pair = (spec.nodes[from % count].pxm, spec.nodes[to % count].pxm);
            if pair.0 != pair.1 {
                spec.distances.given.insert(pair, Distance(distance));
            }
        }
        for ((from, to), path) in paths {
            let (from, to) = (&spec.nodes[from % count], &spec.nodes[to % count]);
            if from.has_initiator() && (to.has_memory_entry() || !to.ports.is_empty()) {
                spec.performance.paths.insert((from.pxm, to.pxm), path);
            }
        }
        if let (true, Some(from), Some(to)) = (
            attach,
            spec.nodes.iter().find(|node| node.has_initiator()),
            spec.nodes.iter().find(|node| node.has_memory_entry()),
        ) {
            spec.performance.attachments.insert(to.pxm, from.pxm);
        }
        spec
    })
}

/// The nodes that a guest finds in the entries.
fn nodes_of(entries: &[Entry], numbers: &[u32]) -> Vec<Node> {
    let nodes = numbers.iter().map(|number| {
        let mut node = Node::new(pxm(*number));
        node.memory_placeholder = false;
        node
    });
    let mut nodes: Vec<_> = nodes.collect();
    for entry in entries {
        let number = entry.pxm().unwrap();
        let node = nodes.iter_mut().find(|node| node.pxm == number).unwrap();
        match entry {
            Entry::LocalApic(entry) => node.processors.push(entry.processor()),
            Entry::X2apic(entry) => node.processors.push(entry.processor()),
            Entry::Gicc(entry) => node.processors.push(entry.processor()),
            Entry::GenericInitiator(entry) => node.initiators.push(entry.device().unwrap()),
            Entry::GenericPort(entry) => node.ports.push(entry.device().unwrap()),
            Entry::Memory(entry) => node.memory.push(entry.range()),
            Entry::Unknown { .. } => panic!("{entry:?}"),
        }
    }
    nodes
}

/// The same nodes with all memory entries as memory, sorted.
fn with_entries(nodes: &[Node]) -> Vec<Node> {
    let nodes = nodes.iter().cloned().map(|mut node| {
        let mut memory = node.memory.clone();
        memory.extend(node.hotplug.iter().map(|range| MemoryRange {
            hotpluggable: true,
            ..MemoryRange::new(range.base, range.length)
        }));
        memory.sort_by_key(|range| range.base);
        if memory.is_empty() && node.memory_placeholder {
            memory.push(MemoryRange {
                hotpluggable: true,
                ..MemoryRange::new(0, 0)
            });
        }
        node.memory = memory;
        node.hotplug.clear();
        node.memory_placeholder = false;
        node
    });
    nodes.collect()
}

/// What the HMAT says of a pair in the matrices for reading or writing.
fn told(structures: &[Structure], metric: Metric, access: Access, pair: (u32, u32)) -> Value {
    let mut told = Value::Unknown;
    for structure in structures {
        let Structure::Localities(matrix) = structure else {
            continue;
        };
        let kind = matrix.data_type().unwrap();
        if kind.metric != metric || (kind.access != Access::Any && kind.access != access) {
            continue;
        }
        // Later matrices overwrite, as they do in Linux.
        if let Some(value) = matrix.value(pxm(pair.0), pxm(pair.1)) {
            told = value;
        }
    }
    told
}

fn figure_of<T: Copy>(figure: Option<Figure<T>>, write: bool, number: fn(T) -> u32) -> Value {
    let value = match figure {
        None => return Value::Unknown,
        Some(Figure::Access(value)) => value,
        Some(Figure::ReadWrite { write: value, .. }) if write => value,
        Some(Figure::ReadWrite { read, .. }) => read,
    };
    Value::Known(number(value).into())
}

proptest! {
    #[test]
    fn srat_says_what_the_nodes_are(spec in any_spec()) {
        let topology = Topology::new(spec.clone()).unwrap();
        let srat = srat::read(srat::encode(&topology, &IDS).bytes()).unwrap();
        prop_assert_eq!(&srat.entries, &srat::entries(&topology).collect::<Vec<_>>());
        let numbers: Vec<_> = spec.nodes.iter().map(|node| node.pxm.0).collect();
        prop_assert_eq!(nodes_of(&srat.entries, &numbers), with_entries(&spec.nodes));
    }

    #[test]
    fn srat_is_in_order(spec in any_spec()) {
        let topology = Topology::new(spec).unwrap();
        let rank = |entry: &Entry| match entry {
            Entry::LocalApic(_) | Entry::X2apic(_) | Entry::Gicc(_) => 0,
            Entry::GenericInitiator(_) => 1,
            Entry::GenericPort(_) => 2,
            Entry::Memory(_) => 3,
            Entry::Unknown { .. } => 4,
        };
        let base = |entry: &Entry| match entry {
            Entry::Memory(memory) => memory.range().base,
            _ => 0,
        };
        let keys: Vec<_> = srat::entries(&topology)
            .map(|entry| (rank(&entry), entry.pxm(), base(&entry)))
            .collect();
        prop_assert!(keys.is_sorted());
    }

    #[test]
    fn slit_says_how_far_the_nodes_are(spec in any_spec()) {
        let topology = Topology::new(spec.clone()).unwrap();
        let slit = slit::read(slit::encode(&topology, &IDS).bytes()).unwrap();
        let size = slit.localities() as u32;
        prop_assert_eq!(Some(size - 1), spec.nodes.iter().map(|node| node.pxm.0).max());
        let given = &spec.distances.given;
        let populated = |number| {
            let node = spec.nodes.iter().find(|node| node.pxm.0 == number);
            node.is_some_and(|node| !node.is_empty())
        };
        for from in 0..size {
            for to in 0..size {
                let pair = (pxm(from), pxm(to));
                let expected = match given.get(&pair).or_else(|| given.get(&(pair.1, pair.0))) {
                    Some(distance) => distance.0,
                    None if from == to => 10,
                    None if populated(from) && populated(to) => 20,
                    None => 40,
                };
                prop_assert_eq!(slit.distance(pair.0, pair.1), Some(Distance(expected)));
                prop_assert_eq!(topology.distance(pair.0, pair.1), Some(Distance(expected)));
            }
        }
    }

    #[test]
    fn hmat_says_what_accesses_cost(spec in any_spec()) {
        let topology = Topology::new(spec.clone()).unwrap();
        let Some(table) = hmat::encode(&topology, &IDS) else {
            prop_assert_eq!(spec.performance, Performance::default());
            return Ok(());
        };
        let hmat = hmat::read(table.bytes()).unwrap();
        prop_assert_eq!(hmat.structures.as_slice(), topology.structures());
        for ((from, to), path) in &spec.performance.paths {
            for access in [Access::Read, Access::Write] {
                let write = access == Access::Write;
                let pair = (from.0, to.0);
                let latency = told(&hmat.structures, Metric::Latency, access, pair);
                let bandwidth = told(&hmat.structures, Metric::Bandwidth, access, pair);
                match *path {
                    Path::Unreachable => prop_assert_eq!(latency, Value::Unreachable),
                    Path::Reachable { latency: expected, bandwidth: wide } => {
                        prop_assert_eq!(latency, figure_of(expected, write, Latency::picoseconds));
                        let number = Bandwidth::megabytes_per_second;
                        prop_assert_eq!(bandwidth, figure_of(wide, write, number));
                    }
                }
            }
        }
    }

    #[test]
    fn linux_numbers_every_node_once(spec in any_spec()) {
        let topology = Topology::new(spec.clone()).unwrap();
        let srat = srat::read(srat::encode(&topology, &IDS).bytes()).unwrap();
        let numbering = numbering(&srat, Kernel::X86_64);
        for node in &spec.nodes {
            let number = numbering.number(node.pxm);
            let seen = node.has_initiator() || node.has_memory_entry();
            prop_assert_eq!(number.is_some(), seen);
            let Some(number) = number else { continue };
            let found = numbering.nodes()[number];
            prop_assert_eq!(found.pxm, node.pxm);
            prop_assert_eq!(found.processors, !node.processors.is_empty());
            prop_assert_eq!(found.initiators, !node.initiators.is_empty());
            prop_assert_eq!(found.memory_entry, node.has_memory_entry());
            prop_assert_eq!(found.memory, node.has_memory_entry() && !node.has_placeholder());
        }
    }

    #[test]
    fn bytes_do_no_harm(
        signature in 0usize..3,
        revision in 0u8..4,
        body in vec(prop_oneof![4 => 0u8..50, 1 => any::<u8>()], 0..300),
    ) {
        let mut bytes = srat::encode(&topology(vec![host(0)]), &IDS).into_bytes();
        bytes.truncate(36);
        bytes[..4].copy_from_slice([b"SRAT", b"SLIT", b"HMAT"][signature]);
        bytes[8] = revision;
        bytes.extend(&body);
        read_all(&mut bytes);
        let mut body = body;
        read_all(&mut body);
    }

    #[test]
    fn mutations_do_no_harm(
        spec in any_spec(),
        mutations in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let topology = Topology::new(spec).unwrap();
        for table in tables(&topology) {
            let mut bytes = table.into_bytes();
            if let Some(end) = &end {
                bytes.truncate(end.index(bytes.len()) + 1);
            }
            let length = bytes.len();
            for (at, value) in &mutations {
                bytes[at.index(length)] = *value;
            }
            read_all(&mut bytes);
        }
    }
}

/// Reads bytes as every table, as they are and with length and checksum mended, and uses what
/// comes out.
fn read_all(bytes: &mut [u8]) {
    for mended in [false, true] {
        if mended && bytes.len() >= 36 {
            mend(bytes);
        }
        if let Ok(srat) = srat::read(bytes) {
            numbering(&srat, Kernel::ARM64);
            let domains = srat.entries.iter().filter_map(Entry::pxm);
            assert!(domains.count() <= srat.entries.len());
        }
        if let Ok(slit) = slit::read(bytes) {
            slit.distance(pxm(0), pxm(u32::MAX));
            slit.distance(pxm(u32::MAX), pxm(1));
        }
        if let Ok(hmat) = hmat::read(bytes) {
            for structure in hmat.structures {
                if let Structure::Localities(matrix) = structure {
                    for (from, to) in matrix.initiators().iter().zip(matrix.targets()) {
                        assert!(matrix.value(*from, *to).is_some());
                    }
                }
            }
        }
    }
}
