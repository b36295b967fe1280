//! Tables written down by hand, field by field, from ACPI 6.5. None was made by the encoders.

use super::*;
use crate::hmat::{Access, DataType, Localities, Metric, Structure, Value};
use crate::srat::Entry;

/// Section 5.2.16, with every structure that is written: sections 5.2.16.1 to .4, .6 and .7.
#[rustfmt::skip]
const SRAT: &[u8] = &[
    // Header (5.2.6): signature, length 0x15a, revision 3, checksum
    b'S', b'R', b'A', b'T', 0x5a, 0x01, 0x00, 0x00, 3, 0x62,
    // OEM id, OEM table id, OEM revision, creator id, creator revision
    b'A', b'C', b'P', b'N', b'U', b'M', b'T', b'O', b'P', b'O', b'L', b'O', b'G', b'Y',
    0x04, 0x03, 0x02, 0x01, b'T', b'E', b'S', b'T', 0x05, 0, 0, 0,
    // Reserved: 1, and 8 bytes
    0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,

    // Local APIC affinity: type 0, 16 bytes, PXM[7:0] = 0x00, APIC id 3
    0x00, 16, 0x00, 0x03,
    // Flags: enabled. SAPIC EID 9, PXM[31:8] = 0x000000, clock domain 0x11223344
    0x01, 0, 0, 0, 0x09, 0x00, 0x00, 0x00, 0x44, 0x33, 0x22, 0x11,

    // Local x2APIC affinity: type 2, 24 bytes, reserved, PXM 0, x2APIC id 0x12345
    0x02, 24, 0, 0, 0x00, 0x00, 0x00, 0x00, 0x45, 0x23, 0x01, 0x00,
    // Flags: enabled. Clock domain 7, reserved
    0x01, 0, 0, 0, 0x07, 0, 0, 0, 0, 0, 0, 0,

    // GICC affinity: type 3, 18 bytes, PXM 1, processor UID 0x0506, enabled, clock domain 8
    0x03, 18, 0x01, 0x00, 0x00, 0x00, 0x06, 0x05, 0x00, 0x00, 0x01, 0, 0, 0, 0x08, 0, 0, 0,

    // Local APIC affinity of PXM 0x0102: low byte before, upper three behind the flags
    0x00, 16, 0x02, 0x04, 0x01, 0, 0, 0, 0x00, 0x01, 0x00, 0x00, 0, 0, 0, 0,

    // Generic initiator affinity: type 5, 32 bytes, reserved, handle type 1 (PCI), PXM 2
    0x05, 32, 0, 0x01, 0x02, 0x00, 0x00, 0x00,
    // PCI handle: segment 0x0a0b, bus 0x0c, device 0x1e and function 5, reserved
    0x0b, 0x0a, 0x0c, 0xf5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    // Flags: enabled. Reserved
    0x01, 0, 0, 0, 0, 0, 0, 0,

    // Generic port affinity: type 6, 32 bytes, reserved, handle type 0 (ACPI), PXM 3
    0x06, 32, 0, 0x00, 0x03, 0x00, 0x00, 0x00,
    // ACPI handle: _HID "ACPI0016", _UID 0x04050607, reserved
    b'A', b'C', b'P', b'I', b'0', b'0', b'1', b'6', 0x07, 0x06, 0x05, 0x04, 0, 0, 0, 0,
    0x01, 0, 0, 0, 0, 0, 0, 0,

    // Memory affinity: type 1, 40 bytes, PXM 0, reserved
    0x01, 40, 0x00, 0x00, 0x00, 0x00, 0, 0,
    // Base 0 (low, high), length 0x1_8000_0000 (low, high), reserved
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x80, 0x01, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    // Flags: enabled (bit 0). Reserved
    0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,

    // Memory affinity of PXM 1: base 0x2_0000_0000, length 0x4000_0000, enabled, non-volatile
    // (bit 2)
    0x01, 40, 0x01, 0x00, 0x00, 0x00, 0, 0,
    0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,

    // Memory affinity of PXM 2: nothing yet, enabled, hot-pluggable (bit 1)
    0x01, 40, 0x02, 0x00, 0x00, 0x00, 0, 0,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,

    // Memory affinity of PXM 3: a range for memory, base 0x3_0000_0000, length 0x2_0000_0000
    0x01, 40, 0x03, 0x00, 0x00, 0x00, 0, 0,
    0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The description of what [`SRAT`] says, with nodes and ranges in another order.
fn srat_spec() -> TopologySpec {
    spec(vec![
        Node {
            memory_placeholder: false,
            processors: vec![Processor::LocalApic {
                apic_id: 4,
                sapic_eid: 0,
                clock_domain: 0,
            }],
            ..Node::new(pxm(0x102))
        },
        Node {
            ports: vec![DeviceHandle::Acpi {
                hid: *b"ACPI0016",
                uid: 0x0405_0607,
            }],
            hotplug: vec![AddressRange {
                base: 0x3_0000_0000,
                length: 0x2_0000_0000,
            }],
            ..Node::new(pxm(3))
        },
        Node {
            initiators: vec![pci(0x0a0b, 0x0c, 0x1e, 5)],
            ..Node::new(pxm(2))
        },
        Node {
            processors: vec![Processor::Gicc {
                uid: 0x0506,
                clock_domain: 8,
            }],
            memory: vec![MemoryRange {
                non_volatile: true,
                ..MemoryRange::new(0x2_0000_0000, 0x4000_0000)
            }],
            ..Node::new(pxm(1))
        },
        Node {
            processors: vec![
                Processor::LocalApic {
                    apic_id: 3,
                    sapic_eid: 9,
                    clock_domain: 0x1122_3344,
                },
                Processor::X2apic {
                    id: 0x12345,
                    clock_domain: 7,
                },
            ],
            memory: vec![MemoryRange::new(0, 0x1_8000_0000)],
            ..Node::new(pxm(0))
        },
    ])
}

#[test]
fn srat_is_written_as_specified() {
    let topology = Topology::new(srat_spec()).unwrap();
    let table = srat::encode(&topology, &IDS);
    assert_eq!(table.bytes(), SRAT);
    assert_eq!(table.signature().0, *b"SRAT");
}

#[test]
fn srat_is_read_as_specified() {
    let srat = srat::read(SRAT).unwrap();
    assert_eq!(srat.revision, 3);
    assert_eq!(srat.ids, IDS);
    assert!(srat.entries.iter().all(Entry::is_enabled));
    let domains: Vec<_> = srat.entries.iter().filter_map(Entry::pxm).collect();
    assert_eq!(domains, [0, 0, 1, 0x102, 2, 3, 0, 1, 2, 3].map(pxm));
    let [
        apic,
        x2apic,
        gicc,
        _,
        initiator,
        port,
        _,
        volatile,
        empty,
        hotplug,
    ] = srat.entries.as_slice()
    else {
        panic!("{srat:?}");
    };

    let expected = &srat_spec().nodes;
    let node = |number| expected.iter().find(|node| node.pxm.0 == number).unwrap();
    let (Entry::LocalApic(apic), Entry::X2apic(x2apic)) = (apic, x2apic) else {
        panic!("{apic:?} {x2apic:?}");
    };
    let processors = [apic.processor(), x2apic.processor()];
    assert_eq!(processors.as_slice(), node(0).processors);
    assert!(matches!(gicc, Entry::Gicc(gicc) if [gicc.processor()] == *node(1).processors));
    assert!(
        matches!(initiator, Entry::GenericInitiator(gi) if gi.device() == Some(node(2).initiators[0]))
    );
    assert!(matches!(port, Entry::GenericPort(port) if port.device() == Some(node(3).ports[0])));
    assert!(matches!(volatile, Entry::Memory(memory) if [memory.range()] == *node(1).memory));
    let hotpluggable = |base, length| MemoryRange {
        hotpluggable: true,
        ..MemoryRange::new(base, length)
    };
    assert!(matches!(empty, Entry::Memory(memory) if memory.range() == hotpluggable(0, 0)));
    let range = hotpluggable(0x3_0000_0000, 0x2_0000_0000);
    assert!(matches!(hotplug, Entry::Memory(memory) if memory.range() == range));
}

#[test]
fn a_local_apics_domain_has_32_bits() {
    let mut bytes = SRAT.to_vec();
    bytes[48 + 2] = 0x44;
    bytes[48 + 9..48 + 12].copy_from_slice(&[0x33, 0x22, 0x11]);
    mend(&mut bytes);
    let srat = srat::read(&bytes).unwrap();
    assert_eq!(srat.entries[0].pxm(), Some(pxm(0x1122_3344)));
}

/// Section 5.2.17. PXM 1 does not exist; 0 to 3 is 21, 3 to 0 is 33.
#[rustfmt::skip]
const SLIT: &[u8] = &[
    // Header: length 0x3c, revision 1, checksum
    b'S', b'L', b'I', b'T', 0x3c, 0x00, 0x00, 0x00, 1, 0x81,
    b'A', b'C', b'P', b'N', b'U', b'M', b'T', b'O', b'P', b'O', b'L', b'O', b'G', b'Y',
    0x04, 0x03, 0x02, 0x01, b'T', b'E', b'S', b'T', 0x05, 0, 0, 0,
    // Number of system localities
    4, 0, 0, 0, 0, 0, 0, 0,
    // Rows: from 0, from 1, …
    10, 40, 20, 21,
    40, 10, 40, 40,
    20, 40, 10, 254,
    33, 40, 254, 10,
];

#[test]
fn slit_is_written_as_specified() {
    let mut spec = spec(vec![host(3), host(0), host(2)]);
    spec.distances.given.extend([
        ((pxm(0), pxm(3)), Distance(21)),
        ((pxm(3), pxm(0)), Distance(33)),
        ((pxm(3), pxm(2)), Distance(254)),
    ]);
    let topology = Topology::new(spec).unwrap();
    assert_eq!(slit::encode(&topology, &IDS).bytes(), SLIT);
}

#[test]
fn slit_is_read_as_specified() {
    let slit = slit::read(SLIT).unwrap();
    assert_eq!((slit.revision, slit.ids), (1, IDS));
    assert_eq!(slit.localities(), 4);
    assert_eq!(slit.distance(pxm(0), pxm(3)), Some(Distance(21)));
    assert_eq!(slit.distance(pxm(3), pxm(0)), Some(Distance(33)));
    assert_eq!(slit.distance(pxm(1), pxm(1)), Some(Distance(10)));
    assert_eq!(slit.distance(pxm(0), pxm(4)), None);
    assert_eq!(slit.distance(pxm(4), pxm(0)), None);
}

/// Section 5.2.28, with every structure: sections 5.2.28.3 to .5.
#[rustfmt::skip]
const HMAT: &[u8] = &[
    // Header: length 0x10a, revision 2, checksum
    b'H', b'M', b'A', b'T', 0x0a, 0x01, 0x00, 0x00, 2, 0x63,
    b'A', b'C', b'P', b'N', b'U', b'M', b'T', b'O', b'P', b'O', b'L', b'O', b'G', b'Y',
    0x04, 0x03, 0x02, 0x01, b'T', b'E', b'S', b'T', 0x05, 0, 0, 0,
    // Reserved
    0, 0, 0, 0,

    // Memory proximity domain attributes: type 0, reserved, length 40
    0x00, 0x00, 0, 0, 40, 0x00, 0x00, 0x00,
    // Flags: bit 0, initiator valid. Reserved. Attached initiator 0, memory 2, reserved
    0x01, 0x00, 0, 0, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,

    // System locality latency and bandwidth: type 1, reserved, length 32 + 1 * 4 + 3 * 4 + 3 * 2
    0x01, 0x00, 0, 0, 54, 0x00, 0x00, 0x00,
    // Flags: memory. Data type 0: access latency. Minimum transfer size, reserved
    0x00, 0x00, 0x00, 0,
    // Initiators 1, targets 3, reserved, base unit 50000 ps
    0x01, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    0x50, 0xc3, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    // Initiator 0, targets 0 to 2: 2 units, unreachable, 17 units
    0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00,
    0x02, 0x00, 0xff, 0xff, 0x11, 0x00,

    // Data type 4: read bandwidth, length 32 + 4 + 8 + 4, base unit 70000 MB/s
    0x01, 0x00, 0, 0, 48, 0x00, 0x00, 0x00,
    0x00, 0x04, 0x00, 0,
    0x01, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    0x70, 0x11, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0xff, 0xff,

    // Data type 5: write bandwidth, base unit 35000 MB/s
    0x01, 0x00, 0, 0, 48, 0x00, 0x00, 0x00,
    0x00, 0x05, 0x00, 0,
    0x01, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    0xb8, 0x88, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0xff, 0xff,

    // Memory side cache: type 2, reserved, length 32 + 2 * 2, memory 2, reserved
    0x02, 0x00, 0, 0, 36, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0, 0, 0, 0,
    // Size 0x4_0000_0000
    0x00, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00,
    // Attributes: 3 levels, level 2, complex indexing (2), write through (2), lines of 128 bytes
    0x23, 0x22, 0x80, 0x00,
    // Reserved, 2 SMBIOS handles: 0x1100 and 0x1101
    0, 0, 0x02, 0x00, 0x00, 0x11, 0x01, 0x11,
];

fn hmat_spec() -> TopologySpec {
    let mut spec = spec(vec![host(0), host(1), Node::new(pxm(2))]);
    let latency = |nanoseconds| Latency::from_nanoseconds(nanoseconds).map(Figure::Access);
    let bandwidth = Bandwidth::from_megabytes_per_second;
    let performance = &mut spec.performance;
    performance.attachments.insert(pxm(2), pxm(0));
    performance.paths.extend([
        (
            (pxm(0), pxm(0)),
            Path::Reachable {
                latency: latency(100),
                bandwidth: Some(Figure::ReadWrite {
                    read: bandwidth(70_000),
                    write: bandwidth(35_000),
                }),
            },
        ),
        ((pxm(0), pxm(1)), Path::Unreachable),
        (
            (pxm(0), pxm(2)),
            Path::Reachable {
                latency: latency(850),
                bandwidth: None,
            },
        ),
    ]);
    performance.caches.push(MemorySideCache {
        memory: pxm(2),
        size: 0x4_0000_0000,
        total_levels: 3,
        level: 2,
        associativity: Associativity::Complex,
        write_policy: WritePolicy::WriteThrough,
        line_size: 128,
        smbios_handles: vec![0x1100, 0x1101],
    });
    spec
}

#[test]
fn hmat_is_written_as_specified() {
    let topology = Topology::new(hmat_spec()).unwrap();
    assert_eq!(hmat::encode(&topology, &IDS).unwrap().bytes(), HMAT);
}

#[test]
fn hmat_is_read_as_specified() {
    let hmat = hmat::read(HMAT).unwrap();
    assert_eq!((hmat.revision, hmat.ids), (2, IDS));
    let [
        Structure::MemoryDomain(domain),
        Structure::Localities(latency),
        Structure::Localities(read),
        Structure::Localities(write),
        Structure::Cache(cache),
    ] = hmat.structures.as_slice()
    else {
        panic!("{hmat:?}");
    };
    assert_eq!(domain.memory(), pxm(2));
    assert_eq!(domain.initiator(), Some(pxm(0)));

    let kind = |metric, access| Some(DataType { metric, access });
    assert_eq!(latency.data_type(), kind(Metric::Latency, Access::Any));
    assert_eq!(read.data_type(), kind(Metric::Bandwidth, Access::Read));
    assert_eq!(write.data_type(), kind(Metric::Bandwidth, Access::Write));
    assert_eq!((latency.flags(), latency.min_transfer_size()), (0, 0));
    assert_eq!(latency.base_unit(), 50_000);
    assert_eq!(latency.initiators(), [pxm(0)]);
    assert_eq!(latency.targets(), [0, 1, 2].map(pxm));
    let value = |matrix: &Localities, target| matrix.value(pxm(0), pxm(target));
    assert_eq!(value(latency, 0), Some(Value::Known(100_000)));
    assert_eq!(value(latency, 1), Some(Value::Unreachable));
    assert_eq!(value(latency, 2), Some(Value::Known(850_000)));
    assert_eq!(value(read, 0), Some(Value::Known(70_000)));
    assert_eq!(value(write, 0), Some(Value::Known(35_000)));
    assert_eq!(value(read, 2), None);
    assert_eq!(latency.value(pxm(1), pxm(0)), None);

    assert_eq!((cache.memory(), cache.size()), (pxm(2), 0x4_0000_0000));
    assert_eq!(cache.attributes(), 0x0080_2223);
    assert_eq!(cache.smbios_handles(), [0x1100, 0x1101]);
}
