//! Tests of the whole crate, through its public interface.

use alloc::vec;
use alloc::vec::Vec;

use crate::topology::*;
use crate::{Table, TableIds, hmat, slit, srat};

mod acpica;
mod aml;
mod damage;
mod linux;
mod performance;
mod property;
mod topology;
mod vectors;

const IDS: TableIds = TableIds {
    oem_id: *b"ACPNUM",
    oem_table_id: *b"TOPOLOGY",
    oem_revision: 0x0102_0304,
    creator_id: *b"TEST",
    creator_revision: 5,
};

fn pxm(number: u32) -> ProximityDomain {
    ProximityDomain(number)
}

fn x2apic(id: u32) -> Processor {
    Processor::X2apic {
        id,
        clock_domain: 0,
    }
}

fn pci(segment: u16, bus: u8, device: u8, function: u8) -> DeviceHandle {
    DeviceHandle::Pci {
        segment,
        bus,
        device,
        function,
    }
}

/// A node with a processor and memory.
fn host(number: u32) -> Node {
    Node {
        processors: vec![x2apic(number)],
        memory: vec![MemoryRange::new(u64::from(number) << 32, 1 << 30)],
        ..Node::new(pxm(number))
    }
}

fn spec(nodes: Vec<Node>) -> TopologySpec {
    TopologySpec {
        nodes,
        ..TopologySpec::default()
    }
}

fn topology(nodes: Vec<Node>) -> Topology {
    Topology::new(spec(nodes)).unwrap()
}

/// All tables of a topology.
fn tables(topology: &Topology) -> Vec<Table> {
    let mut tables = vec![srat::encode(topology, &IDS), slit::encode(topology, &IDS)];
    tables.extend(hmat::encode(topology, &IDS));
    tables
}

/// Length and checksum as they should be, whatever else is wrong.
fn mend(bytes: &mut [u8]) {
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = 0;
    bytes[9] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
}

/// Processor node 0, memory node 1, and two devices with four empty nodes each, named in every
/// way; with all that an HMAT can tell.
fn everything() -> TopologySpec {
    let mut nodes = vec![host(0), host(1)];
    nodes[0].processors.push(Processor::LocalApic {
        apic_id: 200,
        sapic_eid: 0,
        clock_domain: 1,
    });
    nodes[1].processors = vec![Processor::Gicc {
        uid: 1,
        clock_domain: 2,
    }];
    nodes[1].memory[0].non_volatile = true;
    nodes[1].hotplug.push(AddressRange {
        base: 0x100_0000_0000,
        length: 0x40_0000_0000,
    });
    for number in 2..10 {
        let bus = if number < 6 { 0 } else { 1 };
        nodes.push(Node {
            initiators: vec![pci(1, bus, 4, 0)],
            ..Node::new(pxm(number))
        });
    }
    nodes.push(Node {
        ports: vec![DeviceHandle::Acpi {
            hid: *b"ACPI0016",
            uid: 3,
        }],
        ..Node::new(pxm(12))
    });
    let mut spec = spec(nodes);
    spec.distances.given.insert((pxm(0), pxm(2)), Distance(31));
    for target in [0, 1, 2, 12] {
        let latency = Latency::from_nanoseconds(100 + 50 * target);
        let bandwidth = Bandwidth::from_megabytes_per_second(420_000 - 30_000 * target);
        let path = Path::Reachable {
            latency: latency.map(Figure::Access),
            bandwidth: Some(Figure::ReadWrite {
                read: bandwidth,
                write: Bandwidth::from_megabytes_per_second(10_000),
            }),
        };
        spec.performance.paths.insert((pxm(0), pxm(target)), path);
    }
    spec.performance
        .paths
        .insert((pxm(2), pxm(1)), Path::Unreachable);
    spec.performance.attachments.insert(pxm(0), pxm(0));
    spec.performance.attachments.insert(pxm(2), pxm(2));
    spec.performance.caches.push(MemorySideCache {
        memory: pxm(1),
        size: 1 << 34,
        total_levels: 2,
        level: 1,
        associativity: Associativity::DirectMapped,
        write_policy: WritePolicy::WriteBack,
        line_size: 64,
        smbios_handles: vec![0x1100, 0x1101, 0x1102],
    });
    spec
}
