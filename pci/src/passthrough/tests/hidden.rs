//! Which capabilities a guest sees, and that the others cannot be reached.

use super::*;

#[test]
fn the_lists_have_what_is_shown() {
    let guest = Rig::new();
    let shown = [
        (PM, 0x01),
        (MSI, 0x05),
        (PCIE, 0x10),
        (VENDOR, 0x09),
        (MSIX, 0x11),
        (VPD, 0x03),
        (AF, 0x13),
    ];
    assert_eq!(guest.list(), shown);
    assert_eq!(guest.u16(6), 0x10);
    // The first one is hidden, and there for its link alone.
    assert_eq!(guest.u32(0x100), 0x148 << 20);
    let extended = [(0x100, 0), (0x148, 0x03), (0x1a0, 0x23), (0x1d0, 0x0b)];
    assert_eq!(guest.extended_list(), extended);
    // Versions stay.
    assert_eq!(guest.u32(0x148), 0x1a01_0003);
    assert_eq!(guest.bytes(0x14c), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(guest.u32(0x1a4), 0x0181_10de);
    assert_eq!(guest.bytes(0x1d8), [8; 8]);
}

/// What a guest may read that is not zero, by offset and length, but for the header.
const VISIBLE: [(u16, u16); 11] = [
    (PM, 8),
    (MSI, 24),
    (PCIE, 0x2c),
    (VENDOR, 16),
    (MSIX, 12),
    (VPD, 8),
    (AF, 6),
    (0x100, 4),
    (0x148, 12),
    (0x1a0, 24),
    (0x1d0, 16),
];

#[test]
fn everything_else_reads_as_zero_and_cannot_be_written() {
    let guest = Rig::new();
    let visible: BTreeSet<u16> = VISIBLE
        .iter()
        .flat_map(|(at, length)| *at..at + length)
        .collect();
    guest.device.calls();
    for at in (0x40..SIZE as u16).filter(|at| !visible.contains(at)) {
        guest.set_u8(at, 0xff);
        assert_eq!(guest.u8(at), 0, "{at:#x}");
    }
    // The device learns of none of it.
    assert_eq!(guest.device.calls(), []);
}

#[test]
fn what_is_harmless_is_read_only() {
    let guest = Rig::new();
    guest.device.calls();
    for at in 0x100..0x200 {
        guest.set_u8(at, 0x77);
    }
    assert_eq!(guest.device.requests(), []);
    assert_eq!(guest.u32(0x14c), 0x0403_0201);
}

#[test]
fn the_device_is_integrated_into_the_root_complex() {
    let guest = Rig::new();
    // Interrupt message 1, integrated endpoint, version 2.
    assert_eq!(guest.u16(PCIE + 2), 0x0292);
    // All that it claims except a slot's power.
    assert_eq!(guest.u32(PCIE + 4), 0xf003_ffff);
    // Device control 2: the timeouts and AtomicOps of the device.
    assert_eq!(guest.u32(PCIE + 0x24), 0x39f);
    assert_eq!(guest.u32(PCIE + 0x28), 0x5f);
    for at in (0x0c..0x24).chain(0x2c..0x3c) {
        assert_eq!(guest.u8(PCIE + at), 0, "{at:#x}");
    }
}

#[test]
fn other_kinds_of_ports_are_hidden() {
    for (flags, is_shown) in [
        (0x02, true),
        (0x12, true),
        (0x92, true),
        (0x01, true),
        (0x42, false),
        (0x52, false),
        (0xa2, false),
        (0x00, false),
    ] {
        let device = device();
        device.poke(PCIE.into(), &[0x10, 0xa0, flags, 0]);
        let guest = Rig::with(device);
        assert_eq!(guest.list().contains(&(PCIE, 0x10)), is_shown, "{flags:#x}");
        if is_shown {
            assert_eq!(guest.u8(PCIE + 2), 0x90 | flags & 0xf);
        } else {
            assert_eq!(guest.bytes(PCIE), [0; 0x3c]);
        }
    }
    // Version 1 has no second registers.
    let device = device();
    device.poke(PCIE.into(), &[0x10, 0xa0, 0x01, 0]);
    let guest = Rig::with(device);
    assert_eq!(guest.bytes(PCIE + 0xc), [0; 0x30]);
}

#[test]
fn a_device_that_cannot_be_reset_does_not_say_so() {
    let mut device = device();
    device.resettable = false;
    let guest = Rig::with(device);
    assert_eq!(guest.u32(PCIE + 4), 0xe003_ffff);
    assert_eq!(guest.u32(AF), 0x0106_0013);
    guest.device.calls();
    guest.set_u16(PCIE + 8, 1 << 15);
    guest.set_u8(AF + 4, 1);
    assert!(!guest.device.calls().contains(&Call::Reset));
}

#[test]
fn interrupts_that_cannot_be_signalled_are_hidden() {
    let mut device = device();
    device.irqs = [0; 3];
    let guest = Rig::with(device);
    let ids: Vec<u8> = guest.list().iter().map(|(_, id)| *id).collect();
    assert_eq!(ids, [0x01, 0x10, 0x09, 0x03, 0x13]);
    assert_eq!(guest.u8(0x3d), 0);
    guest.set_u16(MSIX + 2, 0x8000);
    guest.set_u16(MSI + 2, 1);
    assert_eq!(guest.device.events(), None);
    // The device's table is nobody's business all the same.
    guest.set_u16(COMMAND, MEMORY);
    guest.device.calls();
    guest.set_memory_u32(0xc0b9_0000, 1);
    assert_eq!(guest.memory_u32(0xc0b9_0000), 0);
    assert_eq!(guest.device.calls(), []);
}

#[test]
fn lists_that_loop_or_leave_end_there() {
    for (at, next) in [
        (PM, 0x40),
        (AF, 0x40),
        (AF, 0x48),
        (AF, 0x3c),
        (AF, 0x10),
        (AF, 0x03),
    ] {
        let device = device();
        device.poke(usize::from(at) + 1, &[next]);
        let guest = Rig::with(device);
        let list = guest.list();
        assert_eq!(list.len(), if at == PM { 1 } else { 7 }, "{list:x?}");
    }
    for next in [0x100_u32, 0x148, 0x0fc, 0x003, 0xfff] {
        let device = device();
        let header = 0x000b | 1 << 16 | next << 20;
        device.poke(0x1d0, &header.to_le_bytes());
        let guest = Rig::with(device);
        let list = guest.extended_list();
        assert_eq!(list.last(), Some(&(0x1d0, 0x0b)), "{next:#x}: {list:x?}");
        assert_eq!(list.len(), 4);
    }
    // Every capability leads to the next 4 bytes on.
    let device = device();
    for at in (0x40_u8..=0xfc).step_by(4) {
        device.poke(at.into(), &[0x09, at.wrapping_add(4), 4, 0]);
    }
    for at in (0x100_u32..0x1000).step_by(4) {
        device.poke(at as usize, &(3 | (at + 4) << 20).to_le_bytes());
    }
    let guest = Rig::with(device);
    assert_eq!(guest.list().len(), 48);
    // None of these has room for its number.
    assert_eq!(guest.u32(0x100), 0);
}

#[test]
fn without_capabilities_there_is_no_list() {
    let device = device();
    device.poke(6, &[0]);
    device.poke(0x100, &[0xff; 4]);
    let guest = Rig::with(device);
    assert_eq!(guest.u8(0x34), 0);
    assert_eq!(guest.u16(6), 0);
    assert_eq!(guest.u32(0x100), 0);

    let mut short = FakeDevice::new(config()[..0x100].to_vec());
    short.irqs = [1, 4, 6];
    let guest = Rig::with(short);
    assert_eq!(guest.bytes(0x100), [0; 0xf00]);
    // Without BAR 0 there is no table.
    assert_eq!(guest.list().len(), 6);
    assert_eq!(guest.u16(0xffe), 0);
}

#[test]
fn a_visible_first_one_stays_first() {
    let device = device();
    device.poke(0x100, &0x1481_0003_u32.to_le_bytes());
    device.poke(0x148, &0x1602_0001_u32.to_le_bytes());
    let guest = Rig::with(device);
    let list = [(0x100, 0x03), (0x1a0, 0x23), (0x1d0, 0x0b)];
    assert_eq!(guest.extended_list(), list);
    assert_eq!(guest.u32(0x148), 0);
}

#[test]
fn capabilities_that_reach_into_the_next_are_cut_or_hidden() {
    // A vendor's that claims 255 bytes ends where MSI-X begins.
    let device = device();
    device.poke(VENDOR.into(), &[0x09, 0xb0, 0xff]);
    let guest = Rig::with(device);
    assert_eq!(guest.u8(VENDOR + 2), 0x10);
    guest.device.calls();
    guest.set_u16(MSIX + 2, 0);
    assert!(
        !guest
            .device
            .calls()
            .iter()
            .any(|c| matches!(c, Call::Write(7, ..)))
    );

    // MSI-X 4 bytes before VPD.
    let device = self::device();
    device.poke(VENDOR.into(), &[0x09, 0xbc]);
    device.poke(0xbc, &[0x11, 0xc0, 7, 0]);
    let guest = Rig::with(device);
    assert!(guest.list().iter().all(|(_, id)| *id != 0x11));

    // The same for the others, each followed by a null capability.
    for (at, room) in [(PM, 4), (MSI, 20), (PCIE, 0x28), (VPD, 4), (AF, 4)] {
        let device = self::device();
        let [id, next] = device.peek(at.into());
        device.poke(usize::from(at), &[id, (at + room) as u8]);
        device.poke(usize::from(at + room), &[0, next]);
        let guest = Rig::with(device);
        assert!(
            !guest.list().iter().any(|(found, _)| *found == at),
            "{at:#x}"
        );
        assert_eq!(guest.u32(at), 0, "{at:#x}");
    }
}

#[test]
fn the_first_of_a_kind_counts() {
    let device = device();
    // One that is not possible comes before it, one that is comes behind it.
    device.poke(0xd0, &[0x10]);
    device.poke(0xd8, &[0x10, 0xc0, 0x01, 0]);
    let guest = Rig::with(device);
    let express = guest.list().into_iter().filter(|(_, id)| *id == 0x10);
    assert_eq!(express.collect::<Vec<_>>(), [(PCIE, 0x10)]);
}

#[test]
fn a_table_that_is_not_in_a_bar_is_none() {
    let places: [(u32, u32); 6] = [
        // Past the end, in ports that are too few, in no BAR, over each other.
        (0x00ff_ffc0, 0),
        (0x01, 0),
        (0x03, 0),
        (0x07, 0),
        (0x1000, 0x1078),
        (0x1000, 0x0100_0000),
    ];
    for (table, pending) in places {
        let device = device();
        device.poke(usize::from(MSIX) + 4, &table.to_le_bytes());
        device.poke(usize::from(MSIX) + 8, &pending.to_le_bytes());
        let guest = Rig::with(device);
        assert!(
            !guest.list().contains(&(MSIX, 0x11)),
            "{table:#x} {pending:#x}"
        );
        assert_eq!(guest.bytes(MSIX), [0; 12]);
    }
}
