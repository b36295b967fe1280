//! PCI in the tables: bytes transcribed from the specifications, and what ACPICA makes of them.

use super::super::EncodeError;
use super::golden::{assert_table, hex};
use super::iasl::{check, disassembles, evaluate};
use super::samples::{Sample, function, segment};
use crate::plan::{GpaRange, IoWindow, Isa, PciPlan, SegmentPlan};

const ISAS: [Isa; 2] = [Isa::X86_64, Isa::Aarch64];
const NVIDIA: u16 = 0x10de;

/// A machine with one segment, changed.
fn one(isa: Isa, change: impl FnOnce(&mut SegmentPlan)) -> Sample {
    let mut sample = Sample::with_pci(isa, 1);
    change(&mut sample.pci.as_mut().unwrap().segments[0]);
    sample
}

/// A machine whose segments have all that a segment can have.
fn full(isa: Isa, segments: u16) -> Sample {
    let mut sample = Sample::with_pci(isa, segments);
    for segment in &mut sample.pci.as_mut().unwrap().segments {
        let number = segment.number;
        segment.numa_node = Some(u32::from(number) * 3);
        segment.functions = vec![
            function(number, 1, 0x8086, vec![number.into()]),
            function(number, 5, NVIDIA, (2..10).collect()),
            function(number, 31, NVIDIA, vec![1000, 1001]),
        ];
    }
    sample
}

/// Two segments, the second of which is the last that anyone has asked for.
fn first_and_last(isa: Isa) -> Sample {
    let mut sample = Sample::with_pci(isa, 1);
    let last = segment(isa, 0x5f);
    sample.pci.as_mut().unwrap().segments.push(last);
    sample
}

#[test]
fn mcfg_of_two_segments() {
    let body = "
        0000000000000000
        000000e000000000 0000 00 00 00000000
        0000f0e500000000 5f00 00 00 00000000";
    let mcfg = first_and_last(Isa::X86_64).table("MCFG");
    assert_table(&mcfg, "MCFG", 1, body);
    let body = "
        0000000000000000
        0000001040000000 0000 00 00 00000000
        0000f01540000000 5f00 00 00 00000000";
    let mcfg = first_and_last(Isa::Aarch64).table("MCFG");
    assert_table(&mcfg, "MCFG", 1, body);
}

#[test]
fn iort_of_two_segments() {
    // Three nodes from 48 on: the ITS group with ITS 0; then root complexes, of 60 bytes with their
    // mapping at 40: coherent, 64 address bits, ids 0 to 0xff to segment << 8 of the node at 48.
    let body = "
        03000000 30000000 00000000
        00 1800 01 00000000 00000000 00000000 01000000 00000000
        02 3c00 04 01000000 01000000 28000000
            01000000 00 0000 03 00000000 00000000 40 0000 00 00000000
            00000000 ff000000 00000000 30000000 00000000
        02 3c00 04 02000000 01000000 28000000
            01000000 00 0000 03 00000000 5f000000 40 0000 00 00000000
            00000000 ff000000 005f0000 30000000 00000000";
    let iort = first_and_last(Isa::Aarch64).table("IORT");
    assert_table(&iort, "IORT", 5, body);
}

#[test]
fn tables_of_pci_are_listed() {
    let names = |sample: &Sample| -> Vec<String> {
        let tables = sample.place().tables.into_iter();
        tables.skip(4).map(|table| table.name).collect()
    };
    assert_eq!(
        names(&Sample::with_pci(Isa::X86_64, 1)),
        ["APIC", "SPCR", "MCFG"]
    );
    assert_eq!(
        names(&Sample::with_pci(Isa::Aarch64, 1)),
        ["APIC", "GTDT", "PPTT", "SPCR", "MCFG", "IORT"]
    );
}

#[test]
fn the_fadt_does_not_forbid_msi() {
    const MSI_NOT_SUPPORTED: u8 = 1 << 3;
    for isa in ISAS {
        let fadt = Sample::with_pci(isa, 1).table("FACP");
        assert_eq!(fadt[109] & MSI_NOT_SUPPORTED, 0);
    }
}

#[test]
fn one_segment_is_understood() {
    for isa in ISAS {
        check(&Sample::with_pci(isa, 1));
        check(&full(isa, 1));
    }
}

#[test]
fn two_segments_are_understood() {
    for isa in ISAS {
        check(&full(isa, 2));
    }
}

#[test]
fn ninety_six_segments_are_understood() {
    for isa in ISAS {
        check(&full(isa, 96));
    }
}

#[test]
fn segments_with_as_little_as_possible_are_understood() {
    for isa in ISAS {
        check(&one(isa, |segment| {
            segment.mmio32.size = 0;
            segment.mmio64.size = 0;
            segment.io = None;
            segment.intx.clear();
        }));
    }
}

#[test]
fn the_iort_is_where_acpica_looks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("iort.aml");
    std::fs::write(&path, first_and_last(Isa::Aarch64).table("IORT")).unwrap();
    if !disassembles(&path) {
        return;
    }
    let source = std::fs::read_to_string(path.with_extension("dsl")).unwrap();
    let values = |field: &str| -> Vec<u64> {
        let lines = source.lines().filter_map(|line| line.rsplit_once(" : "));
        lines
            .filter(|(name, _)| name.trim_end().ends_with(field))
            .map(|(_, value)| u64::from_str_radix(value.trim(), 16).unwrap())
            .collect()
    };
    assert_eq!(values("Node Count"), [3]);
    assert_eq!(values("ItsCount"), [1]);
    assert_eq!(values("PCI Segment Number"), [0, 0x5f]);
    assert_eq!(values("Memory Size Limit"), [64, 64]);
    assert_eq!(values("Cache Coherency"), [1, 1]);
    assert_eq!(values("Device Attribute"), [1, 1]);
    assert_eq!(values("ID Count"), [0xff, 0xff]);
    assert_eq!(values("Output Base"), [0, 0x5f00]);
    assert_eq!(values("Output Reference"), [48, 48]);
}

/// What `acpiexec` printed of integers.
fn integers(text: &str) -> Vec<u64> {
    let found = text
        .lines()
        .filter_map(|line| line.split_once("[Integer] = "));
    found
        .map(|(_, digits)| u64::from_str_radix(digits.trim(), 16).unwrap())
        .collect()
}

/// What `acpiexec` printed of buffers: `[Buffer] Length 0C =  0000: 11 00 …  // ….`
fn buffers(text: &str) -> Vec<Vec<u8>> {
    let parts = text.split("[Buffer] Length ").skip(1);
    parts
        .map(|part| {
            let length = part.split_whitespace().next().unwrap();
            let lines = part.lines().map_while(|line| {
                let line = line.split("//").next().unwrap_or_default();
                line.trim_end().ends_with('=').then_some("").or_else(|| {
                    let (_, bytes) = line.split_once(": ")?;
                    Some(bytes)
                })
            });
            let bytes: Vec<u8> = lines.flat_map(hex).collect();
            assert_eq!(bytes.len(), usize::from_str_radix(length, 16).unwrap());
            bytes
        })
        .collect()
}

/// Bytes as an argument of a command of `acpiexec`.
fn argument(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("({})", bytes.join(" "))
}

/// Evaluates a few at a time: `acpiexec` reads no more than 1,023 characters of commands.
fn evaluate_all(sample: &Sample, commands: &[String]) -> Option<String> {
    let texts = commands.chunks(6).map(|commands| {
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        evaluate(sample, 0, &commands)
    });
    texts.collect()
}

/// 33DB4D5B-1FF7-401C-9657-7441C03DD766, as AML has it.
const HOST_BRIDGE: &str = "5b4ddb33 f71f 1c40 9657 7441c03dd766";
/// E5C937D0-3553-4D7A-9117-EA4D19C3434D.
const PCI: &str = "d037c9e5 5335 7a4d 9117 ea4d19c3434d";

#[test]
fn osc_grants_the_express_capability_alone() {
    const QUERY: u32 = 1;
    let cases: &[(&str, u32, &[u32], &[u32])] = &[
        // A query for everything that Linux asks for, then what it requests.
        (HOST_BRIDGE, 1, &[QUERY, 0x13e, 0x1f], &[0x11, 0x13e, 0x10]),
        (HOST_BRIDGE, 1, &[QUERY, 0x13e, 0x10], &[0x01, 0x13e, 0x10]),
        (HOST_BRIDGE, 1, &[0, 0x13e, 0x10], &[0, 0x13e, 0x10]),
        // Without asking first.
        (HOST_BRIDGE, 1, &[0, 0, 0x3f], &[0x10, 0, 0x10]),
        (HOST_BRIDGE, 1, &[0, 0, 0x0f], &[0x10, 0, 0]),
        (HOST_BRIDGE, 1, &[0, 0, 0], &[0, 0, 0]),
        // Longer, as for CXL.
        (HOST_BRIDGE, 1, &[0, 0, 0x10, 7, 8], &[0, 0, 0x10, 7, 8]),
        // Unrecognized revisions and interfaces, and no place for an answer.
        (HOST_BRIDGE, 2, &[QUERY, 1, 0x1f], &[0x09, 1, 0x1f]),
        (HOST_BRIDGE, 0, &[0, 1, 0x1f], &[0x08, 1, 0x1f]),
        (PCI, 1, &[QUERY, 1, 0x1f], &[0x05, 1, 0x1f]),
        (PCI, 9, &[0], &[0x04]),
        (HOST_BRIDGE, 1, &[0, 1], &[0x02, 1]),
    ];
    let bytes = |words: &[u32]| -> Vec<u8> {
        let words = words.iter();
        words.flat_map(|word| word.to_le_bytes()).collect()
    };
    for isa in ISAS {
        let commands: Vec<String> = cases
            .iter()
            .map(|(uuid, revision, words, _)| {
                let (uuid, buffer) = (argument(&hex(uuid)), argument(&bytes(words)));
                let count = words.len();
                format!("\\_SB.PC01._OSC {uuid} {revision} {count} {buffer}")
            })
            .collect();
        if let Some(text) = evaluate_all(&full(isa, 2), &commands) {
            let expected: Vec<_> = cases.iter().map(|(.., words)| bytes(words)).collect();
            assert_eq!(buffers(&text), expected);
        }
    }
}

#[test]
fn dsm_keeps_what_firmware_assigned() {
    let call = |uuid: &str, revision: u32, function: u32| {
        let uuid = argument(&hex(uuid));
        format!("\\_SB.PC00._DSM {uuid} {revision} {function} [0]")
    };
    let commands = [
        // Functions 0 and 5.
        call(PCI, 1, 0),
        call(PCI, 3, 0),
        // Neither others nor revision 0 nor another interface.
        call(PCI, 1, 4),
        call(PCI, 0, 0),
        call(PCI, 0, 5),
        call(HOST_BRIDGE, 1, 0),
        call(HOST_BRIDGE, 1, 5),
    ];
    let sample = Sample::with_pci(Isa::Aarch64, 1);
    if let Some(text) = evaluate_all(&sample, &commands) {
        assert_eq!(buffers(&text), [[0x21], [0x21], [0], [0], [0], [0], [0]]);
        assert!(integers(&text).is_empty());
    }
    let commands = [call(PCI, 1, 5), call(PCI, 2, 5)];
    if let Some(text) = evaluate_all(&sample, &commands) {
        assert_eq!(integers(&text), [0, 0]);
        assert!(buffers(&text).is_empty());
    }
}

#[test]
fn prt_wires_every_pin() {
    for lines in [vec![16, 17, 18, 19, 20, 21, 22], vec![0x1_0025]] {
        let sample = one(Isa::X86_64, |segment| segment.intx = lines.clone());
        let Some(text) = evaluate(&sample, 0, &["\\_SB.PC00._PRT"]) else {
            return;
        };
        let expected: Vec<u64> = (0..32)
            .flat_map(|device| (0..4).map(move |pin| (device, pin)))
            .flat_map(|(device, pin)| {
                let line = lines[(device + pin) as usize % lines.len()];
                [device << 16 | 0xffff, pin, 0, line.into()]
            })
            .collect();
        assert_eq!(integers(&text), expected);
    }
}

#[test]
fn crs_has_the_windows() {
    // Bus 0; on x86 the configuration ports and I/O 0x1000 to 0xffff, both on segment 0 only;
    // 2 MiB that are not cacheable, and 256 GiB that are.
    let bus = "88 0d00 02 0c 00 0000 0000 0000 0000 0100";
    let ports = "47 01 f80c f80c 01 08";
    let io = "88 0d00 01 0c 03 0000 0010 ffff 0000 00f0";
    let mmio32 = |first: &str, last: &str| {
        format!("87 1700 00 0c 01 00000000 {first} {last} 00000000 00002000")
    };
    let mmio64 = |first: &str, last: &str| {
        format!(
            "8a 2b00 00 0c 03 0000000000000000 {first} {last} 0000000000000000 0000000040000000"
        )
    };
    let expect = |isa, expected: [String; 2]| {
        let sample = Sample::with_pci(isa, 2);
        let commands = ["\\_SB.PC00._CRS", "\\_SB.PC01._CRS"];
        if let Some(text) = evaluate(&sample, 0, &commands) {
            assert_eq!(buffers(&text), expected.map(|digits| hex(&digits)));
        }
    };
    let above = [
        mmio64("0000000000010000", "ffffffff3f010000"),
        mmio64("0000000040010000", "ffffffff7f010000"),
    ];
    expect(
        Isa::X86_64,
        [
            [
                bus,
                ports,
                io,
                &mmio32("000000c0", "ffff1fc0"),
                &above[0],
                "7900",
            ]
            .concat(),
            [bus, &mmio32("000020c0", "ffff3fc0"), &above[1], "7900"].concat(),
        ],
    );
    expect(
        Isa::Aarch64,
        [
            [bus, &mmio32("00000010", "ffff1f10"), &above[0], "7900"].concat(),
            [bus, &mmio32("00002010", "ffff3f10"), &above[1], "7900"].concat(),
        ],
    );
}

#[test]
fn configuration_space_is_reserved() {
    let ecam = |sample: &Sample| {
        let text = evaluate(sample, 0, &["\\_SB.ECAM._CRS"])?;
        Some(buffers(&text))
    };
    if let Some(found) = ecam(&first_and_last(Isa::X86_64)) {
        let expected = "86 0900 01 000000e0 00001000  86 0900 01 0000f0e5 00001000  7900";
        assert_eq!(found, [hex(expected)]);
    }
    if let Some(found) = ecam(&Sample::with_pci(Isa::Aarch64, 1)) {
        let expected = "8a 2b00 00 0d 01 0000000000000000 0000001040000000 ffff0f1040000000
            0000000000000000 0000100000000000 7900";
        assert_eq!(found, [hex(expected)]);
    }
}

#[test]
fn bridges_and_slots_say_where_they_are() {
    let mut sample = full(Isa::Aarch64, 2);
    let last = [0x5f, 0xff].map(|number| SegmentPlan {
        numa_node: Some(u32::MAX),
        ..segment(Isa::Aarch64, number)
    });
    sample.pci.as_mut().unwrap().segments.extend(last);
    let names = [
        "_SEG",
        "_UID",
        "_BBN",
        "_CCA",
        "_PXM",
        "S001._ADR",
        "S01F._ADR",
    ];
    let commands: Vec<String> = ["PC00", "PC01", "PC5F", "PCFF"]
        .iter()
        .flat_map(|bridge| names.map(|name| format!("\\_SB.{bridge}.{name}")))
        .collect();
    if let Some(text) = evaluate_all(&sample, &commands) {
        let slots = [1 << 16, 31 << 16];
        let of = |segment: u64, node: u64| [segment, segment, 0, 1, node, slots[0], slots[1]];
        let last = u32::MAX.into();
        let expected = [of(0, 0), of(1, 3), of(0x5f, last), of(0xff, last)];
        assert_eq!(integers(&text), expected.concat());
    }
}

#[test]
fn a_segment_without_a_node_has_no_pxm() {
    let dsdt = Sample::with_pci(Isa::X86_64, 1).table("DSDT");
    assert!(
        !dsdt
            .windows(4)
            .any(|name| name == b"_PXM" || name == b"_DSD")
    );
}

#[test]
fn dsd_names_the_nodes_of_a_device() {
    let sample = full(Isa::X86_64, 2);
    let told = |slot: &str| {
        let text = evaluate(&sample, 0, &[&format!("\\_SB.PC01.{slot}._DSD")])?;
        let names = text.lines().filter_map(|line| line.split_once("[String] "));
        let names: Vec<String> = names
            .filter_map(|(_, name)| name.split('"').nth(1))
            .map(str::to_owned)
            .collect();
        Some((names, integers(&text), buffers(&text)))
    };
    // daffd814-6eba-4d8c-8a91-bc9bbf4aa301.
    let uuid = vec![hex("14d8ffda ba6e 8c4d 8a91 bc9bbf4aa301")];
    let common = ["dev-mem-pxm-start", "dev-mem-pxm-count"];
    let nvidia = ["nvidia,gpu-mem-pxm-start", "nvidia,gpu-mem-pxm-count"];
    let texts = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    if let Some(found) = told("S001") {
        assert_eq!(found, (texts(&common), vec![1, 1], uuid.clone()));
    }
    let both = texts(&[common, nvidia].concat());
    if let Some(found) = told("S005") {
        assert_eq!(found, (both.clone(), vec![2, 8, 2, 8], uuid.clone()));
    }
    if let Some(found) = told("S01F") {
        assert_eq!(found, (both, vec![1000, 2, 1000, 2], uuid));
    }
}

#[test]
fn nodes_that_are_not_to_be_told_are_not() {
    let sample = one(Isa::X86_64, |segment| {
        let mut function = function(0, 3, NVIDIA, vec![4, 6]);
        function.nodes.as_mut().unwrap().dsd = false;
        segment.functions = vec![function];
    });
    assert_eq!(
        sample.table("DSDT"),
        Sample::with_pci(Isa::X86_64, 1).table("DSDT")
    );
}

#[test]
fn what_cannot_be_said_of_pci_is_refused() {
    let refuse = |isa, change: fn(&mut SegmentPlan)| {
        let error = one(isa, change).try_encode().err();
        error.expect("cannot be described")
    };
    let window = |start, size| GpaRange { start, size };
    assert_eq!(
        refuse(Isa::X86_64, |s| s.number = 256),
        EncodeError::Segment { segment: 256 }
    );
    assert_eq!(
        refuse(Isa::X86_64, |s| s.mmio32.size = (1 << 30) + 1),
        EncodeError::Window {
            segment: 0,
            space: "32-bit",
            window: window(0xc000_0000, (1 << 30) + 1)
        }
    );
    assert_eq!(
        refuse(Isa::Aarch64, |s| s.mmio64.size = u64::MAX),
        EncodeError::Window {
            segment: 0,
            space: "64-bit",
            window: window(0x100_0000_0000, u64::MAX)
        }
    );
    let io = IoWindow {
        base: 0x1000,
        size: 0xf001,
    };
    let mut sample = Sample::with_pci(Isa::X86_64, 1);
    sample.pci.as_mut().unwrap().segments[0].io = Some(io);
    assert_eq!(
        sample.try_encode().err().unwrap().to_string(),
        "the I/O window of PCI segment 0x0, 0xf001 ports at 0x1000, reaches past port 0xffff"
    );
    let text = |functions| {
        let mut segment = segment(Isa::X86_64, 1);
        segment.functions = vec![functions];
        let mut sample = Sample::with_pci(Isa::X86_64, 1);
        sample.pci = Some(PciPlan {
            segments: vec![segment],
        });
        sample.try_encode().err().unwrap().to_string()
    };
    for (on, device, bdf) in [(1, 32, "0001:00:20.0"), (0, 1, "0000:00:01.0")] {
        assert_eq!(
            text(function(on, device, NVIDIA, vec![2])),
            format!(
                "device device{device} is at {bdf}, which is no slot of PCI segment 0x1; the slots \
                 are devices 0x0 to 0x1f"
            )
        );
    }
    let mut sample = full(Isa::X86_64, 2);
    let segments = &mut sample.pci.as_mut().unwrap().segments;
    segments[1].functions[2].bdf.device = 5;
    assert_eq!(
        sample.try_encode().err().unwrap().to_string(),
        "device device31 is at 0001:00:05.0, where another is already"
    );
    let segments = &mut sample.pci.as_mut().unwrap().segments;
    segments[1] = segment(Isa::X86_64, 0);
    assert_eq!(
        sample.try_encode().err(),
        Some(EncodeError::SegmentTwice { segment: 0 })
    );
    for nodes in [vec![], vec![2, 4], vec![2, 2]] {
        assert_eq!(
            text(function(1, 7, NVIDIA, nodes)),
            "device device7 cannot be told its NUMA nodes"
        );
    }
}
