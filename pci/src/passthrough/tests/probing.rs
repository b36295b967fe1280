//! What is found out about a device.

use super::*;
use crate::CoherentMemory;
use crate::config_space::{BarKind, Identity};

const MEMORY64: BarKind = BarKind::Memory64 { prefetchable: true };

#[test]
fn a_device_is_found_out_about() {
    let facts = probe(&device(), None, &[]).unwrap();
    let page = page::size();
    let bar = |index, kind, size, mappable| BarFacts {
        index,
        kind,
        size,
        mappable,
    };
    let memory32 = BarKind::Memory32 {
        prefetchable: false,
    };
    assert_eq!(
        facts,
        DeviceFacts {
            identity: Identity {
                vendor: 0x10de,
                device: 0x2342,
                revision: 0xa1,
                class: 0x03_02_00,
                subsystem_vendor: 0x10de,
                subsystem: 0x16eb,
            },
            bars: vec![
                bar(0, memory32, 16 * MIB, 16 * MIB - 2 * page),
                bar(1, BarKind::Io, 32, 0),
                bar(2, MEMORY64, GIB, GIB),
                bar(4, MEMORY64, 128 * GIB, 0x17_2000_0000),
            ],
            intx: true,
            driver: None,
            coherent: Some(CoherentMemory {
                bar: 4,
                usable: 0x17_2000_0000,
            }),
        }
    );
    let facts = probe(&device(), Some("vfio-pci"), &[2, 4]).unwrap();
    assert_eq!(facts.driver.as_deref(), Some("vfio-pci"));
    let mappable: Vec<u64> = facts.bars.iter().map(|bar| bar.mappable).collect();
    assert_eq!(mappable, [16 * MIB - 2 * page, 0, 0, 0]);
    // How memory is reached does not change what it is.
    assert!(facts.coherent.is_some());
}

#[test]
fn a_pin_needs_an_interrupt_and_the_other_way_round() {
    let mut device = device();
    device.irqs[0] = 0;
    assert!(!probe(&device, None, &[]).unwrap().intx);
    device.irqs[0] = 1;
    device.poke(0x3d, &[0]);
    assert!(!probe(&device, None, &[]).unwrap().intx);
}

#[test]
fn coherent_memory_is_told_by_driver_or_area() {
    let usable = |device: &FakeDevice, driver| {
        let facts = probe(device, driver, &[]).unwrap();
        facts.coherent.map(|memory| memory.usable)
    };
    let with = |size, areas: &[(u64, u64)]| {
        let mut device = device();
        device.set_region(4, size, areas);
        device
    };
    let vfio = Some("vfio-pci");
    for driver in ["nvgrace_gpu_vfio_pci", "nvgrace-gpu-vfio-pci"].map(Some) {
        assert_eq!(
            usable(&with(128 * GIB, &[(0, 96 * GIB)]), driver),
            Some(96 * GIB)
        );
        assert_eq!(usable(&with(96 * GIB, &[]), driver), Some(96 * GIB));
        assert_eq!(usable(&with(0, &[]), driver), None);
    }
    assert_eq!(
        usable(&with(128 * GIB, &[(0, 96 * GIB)]), vfio),
        Some(96 * GIB)
    );
    // The region is as short as its area, and the BAR is rounded up; but the area must be listed.
    let mut short = with(96 * GIB, &[(0, 96 * GIB)]);
    assert_eq!(usable(&short, None), None);
    short.regions[4].sparse = true;
    assert_eq!(usable(&short, None), Some(96 * GIB));
    let mut whole = with(128 * GIB, &[(0, 128 * GIB)]);
    whole.regions[4].sparse = true;
    assert_eq!(usable(&whole, vfio), None);
    // All of a BAR, a part in the middle, parts around something.
    assert_eq!(usable(&with(128 * GIB, &[(0, 128 * GIB)]), vfio), None);
    assert_eq!(usable(&with(128 * GIB, &[(MIB, GIB)]), vfio), None);
    assert_eq!(
        usable(&with(128 * GIB, &[(0, GIB), (2 * GIB, GIB)]), vfio),
        None
    );
    // Registers, which are not prefetchable.
    let registers = with(128 * GIB, &[(0, 96 * GIB)]);
    registers.poke(0x20, &[0x04]);
    assert_eq!(usable(&registers, vfio), None);
    // A table at the end is why the area ends there.
    let table = with(MIB, &[(0, MIB / 2)]);
    table.poke(usize::from(MSIX) + 4, &(0x8_0004_u32).to_le_bytes());
    assert_eq!(usable(&table, vfio), None);
}

#[test]
fn sizes_are_rounded_up() {
    let mut device = device();
    for (index, size) in [(0, 1), (1, 1), (2, GIB + 1), (4, 0)] {
        device.set_region(index, size, &[]);
    }
    let facts = probe(&device, None, &[]).unwrap();
    let bars: Vec<_> = facts.bars.iter().map(|bar| (bar.index, bar.size)).collect();
    assert_eq!(bars, [(0, 16), (1, 4), (2, 2 * GIB)]);
    // The largest there are.
    device.set_region(0, 1 << 31, &[]);
    device.set_region(1, 256, &[]);
    device.set_region(2, 1 << 63, &[]);
    let facts = probe(&device, None, &[]).unwrap();
    let sizes: Vec<u64> = facts.bars.iter().map(|bar| bar.size).collect();
    assert_eq!(sizes, [1 << 31, 256, 1 << 63]);
}

#[test]
fn a_bar_that_is_not_there_may_say_what_it_likes() {
    let mut device = device();
    for index in [0, 1, 2, 4] {
        device.set_region(index, 0, &[]);
    }
    // What would be reserved types.
    device.poke(0x10, &[0xff; 24]);
    assert_eq!(probe(&device, None, &[]).unwrap().bars, []);
}

#[test]
fn what_cannot_be_passed_through_is_refused() {
    type Change = fn(&mut FakeDevice);
    let cases: [(Change, &str); 10] = [
        (
            |device| device.set_region(region::CONFIG, 0, &[]),
            "the device has 0x0 bytes of configuration space; a PCI function has 0x100 or 0x1000",
        ),
        (
            |device| device.set_region(region::CONFIG, 0x40, &[]),
            "the device has 0x40 bytes of configuration space; a PCI function has 0x100 or 0x1000",
        ),
        (
            |device| device.poke(0, &[0xff, 0xff]),
            "no device answers: its vendor id is 0xffff; it may be powered down or have fallen off the bus",
        ),
        (
            |device| device.poke(0x0e, &[0x81]),
            "the device has a header of type 0x1, a bridge; only functions with type 0x0 can be passed through",
        ),
        (
            |device| device.set_region(1, 257, &[]),
            "BAR 1 has a region of 0x101 bytes; the most that it can have is 0x100",
        ),
        (
            |device| device.set_region(0, (1 << 31) + 1, &[]),
            "BAR 0 has a region of 0x80000001 bytes; the most that it can have is 0x80000000",
        ),
        (
            |device| device.set_region(2, u64::MAX, &[]),
            "BAR 2 has a region of 0xffffffffffffffff bytes; the most that it can have is 0x8000000000000000",
        ),
        (
            |device| device.poke(0x10, &[0x06]),
            "BAR 0 has the value 0x6, whose type is reserved",
        ),
        (
            |device| {
                device.set_region(4, 0, &[]);
                device.set_region(5, MIB, &[]);
                device.poke(0x24, &[0x0c]);
            },
            "BAR 5 has 64 bits and no register behind it for its upper half",
        ),
        (
            |device| device.set_mood(Mood::Lost),
            "cannot read the device's configuration space",
        ),
    ];
    for (change, message) in cases {
        let mut device = device();
        change(&mut device);
        let error = probe(&device, None, &[]).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}
