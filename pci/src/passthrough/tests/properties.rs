//! Guests that do anything.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// An access of a guest, somewhere.
#[derive(Clone, Debug)]
enum Access {
    Read(usize),
    Write(Vec<u8>),
}

fn access() -> impl Strategy<Value = Access> {
    let bytes = prop_oneof![
        any::<u8>(),
        Just(0),
        Just(0xff),
        (0..8_u32).prop_map(|bit| 1 << bit)
    ];
    prop_oneof![
        1 => (0..20_usize).prop_map(Access::Read),
        4 => vec(bytes, 0..20).prop_map(Access::Write),
    ]
}

/// Where something happens more often than elsewhere.
fn offset() -> impl Strategy<Value = u16> {
    prop_oneof![
        4 => 0..0x40_u16,
        4 => 0x40..0x100_u16,
        1 => 0x100..0x300_u16,
        1 => any::<u16>(),
    ]
}

fn config_access() -> impl Strategy<Value = (u16, Access)> {
    (offset(), access())
}

fn region_access() -> impl Strategy<Value = (usize, u64, Access)> {
    let offset = prop_oneof![
        3 => 0xb9_0000..0xb9_0090_u64,
        1 => 0xb9_fff0..0xba_0010_u64,
        1 => 0..40_u64,
        1 => any::<u64>(),
        1 => (24_u32..38, -20..20_i64).prop_map(|(bit, by)| (1_u64 << bit).wrapping_add_signed(by)),
    ];
    (0..4_usize, offset, access())
}

fn do_config(guest: &Rig, offset: u16, access: &Access) {
    match access {
        Access::Read(length) => guest.function.read_config(offset, &mut vec![0; *length]),
        Access::Write(data) => guest.function.write_config(offset, data),
    }
}

fn do_region(guest: &Rig, index: usize, offset: u64, access: &Access) {
    let region = &guest.space.slot(index).region;
    match access {
        Access::Read(length) => region.read(offset, &mut vec![0; *length]),
        Access::Write(data) => region.write(offset, data),
    }
}

/// What a guest cannot change: ids, class, header, sizes of BARs, the lists, what is hidden.
fn constants(guest: &Rig) -> BTreeMap<u16, Vec<u8>> {
    let mut constants = BTreeMap::new();
    let ranges: [(u16, u16); 7] = [
        (0, 4),
        (8, 4),
        (0x0e, 2),
        (0x28, 12),
        (0x34, 8),
        (0x3d, 1),
        (0xce, 0x32),
    ];
    for (at, length) in ranges.into_iter().chain([(0x100, 0xf00)]) {
        let mut data = vec![0; usize::from(length)];
        guest.function.read_config(at, &mut data);
        constants.insert(at, data);
    }
    for (at, _) in guest.list() {
        constants.insert(at, guest.bytes::<2>(at).to_vec());
    }
    constants.insert(PCIE + 2, guest.bytes::<6>(PCIE + 2).to_vec());
    constants.insert(PCIE + 0xc, guest.bytes::<0x1c>(PCIE + 0xc).to_vec());
    constants.insert(PCIE + 0x29, guest.bytes::<0x13>(PCIE + 0x29).to_vec());
    constants.insert(MSIX + 4, guest.bytes::<8>(MSIX + 4).to_vec());
    constants
}

/// The sizes that the BARs tell.
fn sizes(guest: &Rig) -> [u32; 6] {
    let registers: [u8; 24] = guest.bytes(0x10);
    guest.function.write_config(0x10, &[0xff; 24]);
    let sizes: [u8; 24] = guest.bytes(0x10);
    guest.function.write_config(0x10, &registers);
    std::array::from_fn(|index| {
        u32::from_le_bytes(std::array::from_fn(|byte| sizes[4 * index + byte]))
    })
}

/// BARs are where configuration space says, and so are the device's decoders and interrupts.
fn check_state(guest: &Rig) {
    assert_eq!(guest.space.places(), guest.decoded());
    let command = guest.u16(COMMAND);
    let device = u16::from_le_bytes(guest.device.peek(4));
    assert_eq!(device, command & 0x407 | 0x140);
    let kind = if guest.u16(MSIX + 2) & 0x8000 != 0 {
        Some(IrqKind::Msix)
    } else if guest.u16(MSI + 2) & 1 != 0 {
        Some(IrqKind::Msi)
    } else if command & INTX_DISABLE == 0 {
        Some(IrqKind::Intx)
    } else {
        None
    };
    assert_eq!(guest.device.events().map(|(kind, _)| kind), kind);
    // What the host has set up.
    assert_eq!(
        guest.device.peek::<1>(usize::from(PCIE) + 8)[0] & !0x10,
        0x2f
    );
    assert_eq!(
        guest.device.peek::<1>(usize::from(PCIE) + 9)[0] & !0x08,
        0x51
    );
    assert_eq!(guest.device.peek::<8>(0x10), [0, 0, 0, 0, 1, 0, 0, 0]);
}

/// A machine in which regions may overlap, so that they are where they are put.
fn rig(device: FakeDevice) -> Rig {
    let facts = probe(&device, None, &[]).unwrap();
    let space = FakeSpace::with_overlaps();
    Rig::planned(device, &facts, &ADDRESSES[..facts.bars.len()], space)
}

proptest! {
    #[test]
    fn a_function_stays_what_it_is(accesses in vec(config_access(), 1..60)) {
        let guest = rig(device());
        let before = (constants(&guest), sizes(&guest), guest.list(), guest.extended_list());
        for (offset, access) in &accesses {
            do_config(&guest, *offset, access);
            check_state(&guest);
        }
        let after = (constants(&guest), sizes(&guest), guest.list(), guest.extended_list());
        prop_assert_eq!(after, before);
        prop_assert_eq!(guest.losses.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn regions_and_configuration_do_not_disturb_each_other(
        accesses in vec(prop_oneof![
            config_access().prop_map(|(offset, access)| (None, u64::from(offset), access)),
            region_access().prop_map(|(index, offset, access)| (Some(index), offset, access)),
        ], 1..60)
    ) {
        let guest = rig(device());
        let before = constants(&guest);
        for (region, offset, access) in &accesses {
            match region {
                Some(index) => do_region(&guest, *index, *offset, access),
                None => do_config(&guest, *offset as u16, access),
            }
        }
        check_state(&guest);
        prop_assert_eq!(constants(&guest), before);
        // The device's table was not touched, by its own words.
        let table = guest.device.calls().into_iter().any(|call| matches!(
            call,
            Call::Read(0, 0xb9_0000..0xb9_0080 | 0xba_0000..0xba_0008, _)
                | Call::Write(0, 0xb9_0000..0xb9_0080 | 0xba_0000..0xba_0008, _)
        ));
        prop_assert!(!table);
        // Messages are those of the table.
        let control = guest.u16(MSIX + 2);
        if control & 0x8000 != 0 {
            let region = &guest.space.slot(0).region;
            let messages: Vec<_> = (0..6).map(|vector| {
                let word = |word: u64| {
                    let mut data = [0; 4];
                    region.read(0xb9_0000 + 16 * vector + 4 * word, &mut data);
                    u32::from_le_bytes(data)
                };
                (control & 0x4000 == 0 && word(3) == 0).then(|| MsiMessage {
                    address: u64::from(word(1)) << 32 | u64::from(word(0)),
                    data: word(2),
                })
            }).collect();
            prop_assert_eq!(guest.messages(), messages);
        }
    }

    /// Whatever a device says of itself, and whatever a guest does then.
    #[test]
    fn hostile_devices_do_no_harm(
        changes in vec((offset(), vec(any::<u8>(), 1..12)), 0..20),
        irqs in any::<[u32; 3]>(),
        sizes in any::<[u64; 6]>(),
        accesses in vec(config_access(), 0..20),
        mood in prop_oneof![Just(Mood::Willing), Just(Mood::RefusesAll), Just(Mood::Lost)],
    ) {
        let mut device = device();
        for (offset, bytes) in &changes {
            let offset = usize::from(*offset);
            if offset + bytes.len() <= SIZE {
                device.poke(offset, bytes);
            }
        }
        device.irqs = irqs.map(|irqs| irqs % 5000);
        for (index, size) in (0..).zip(sizes) {
            // Any order of magnitude.
            let size = size >> (size & 0x3f);
            device.set_region(index, size, &[(0, size)]);
        }
        if let Ok(facts) = probe(&device, None, &[]) {
            let addresses = vec![Some(0x1_0000_0000); facts.bars.len()];
            let space = FakeSpace::with_overlaps();
            let guest = Rig::planned(device, &facts, &addresses, space);
            guest.device.set_mood(mood);
            let before = (guest.bytes::<4>(0), guest.list());
            for (offset, access) in &accesses {
                do_config(&guest, *offset, access);
            }
            if !guest.function.is_lost() {
                prop_assert_eq!((guest.bytes::<4>(0), guest.list()), before);
                prop_assert_eq!(guest.space.places(), guest.decoded());
            }
        }
    }
}
