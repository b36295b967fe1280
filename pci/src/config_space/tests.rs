use proptest::prelude::*;

use super::*;

const IDENTITY: Identity = Identity {
    vendor: 0x10de,
    device: 0x2342,
    revision: 0xa1,
    class: 0x03_02_00,
    subsystem_vendor: 0x10de,
    subsystem: 0x16eb,
};

fn space() -> ConfigSpace {
    ConfigSpace::new(&IDENTITY)
}

fn memory64(size: u64) -> Bar {
    Bar {
        kind: BarKind::Memory64 { prefetchable: true },
        size,
    }
}

fn memory32(size: u64) -> Bar {
    Bar {
        kind: BarKind::Memory32 {
            prefetchable: false,
        },
        size,
    }
}

/// PCI 3.0, figure 6-1, byte by byte.
#[test]
fn the_header_is_that_of_the_specification() {
    let mut header = [0; 0x40];
    space().read(0, &mut header);
    let mut expected = [0; 0x40];
    expected[..4].copy_from_slice(&[0xde, 0x10, 0x42, 0x23]);
    expected[8..12].copy_from_slice(&[0xa1, 0x00, 0x02, 0x03]);
    expected[0x2c..0x30].copy_from_slice(&[0xde, 0x10, 0xeb, 0x16]);
    assert_eq!(header, expected);
}

#[test]
fn bars_tell_their_size_and_keep_addresses() {
    let mut space = space();
    space.add_bar(0, memory32(16 << 20)).unwrap();
    space.add_bar(2, memory64(128 << 30)).unwrap();
    let io = Bar {
        kind: BarKind::Io,
        size: 32,
    };
    space.add_bar(5, io).unwrap();
    // PCI 3.0, section 6.2.5.1, "Implementation Note: Sizing a 32-bit Base Address Register".
    for (register, sized) in [
        (0, 0xff00_0000),
        (1, 0),
        (2, 0x0000_000c),
        (3, 0xffff_ffe0),
        (4, 0),
        (5, 0xffff_ffe1),
    ] {
        space.write(0x10 + 4 * register, &[0xff; 4]);
        assert_eq!(space.u32_at(0x10 + 4 * register), sized, "{register}");
    }
    space.write(0x10, &0xc123_4567_u32.to_le_bytes());
    assert_eq!(space.bar_address(0), Some(0xc100_0000));
    space.set_bar_address(2, 0x15_5540_0000_0000);
    assert_eq!(space.bar_address(2), Some(0x15_5540_0000_0000));
    assert_eq!(space.u32_at(0x18), 0x0000_000c);
    assert_eq!(space.bar_address(3), None);
}

#[test]
fn bars_answer_while_their_decoder_is_on() {
    let mut space = space();
    space.add_bar(0, memory32(4096)).unwrap();
    space.add_bar(4, memory64(1 << 30)).unwrap();
    space.set_bar_address(0, 0xd000_0000);
    space.set_bar_address(4, 1 << 40);
    assert_eq!(space.decoded_bar(0), None);
    space.write(4, &[1, 0]);
    assert_eq!(space.decoded_bar(0), None, "I/O alone");
    space.write(4, &[2, 0]);
    assert_eq!(space.decoded_bar(0), Some(0xd000_0000));
    assert_eq!(space.decoded_bar(4), Some(1 << 40));
    space.write(0x10, &[0xff; 4]);
    assert_eq!(space.decoded_bar(0), None, "being sized");
    space.write(0x10, &[0; 4]);
    assert_eq!(space.decoded_bar(0), None, "nowhere");
    space.write(0x20, &[0xff; 8]);
    assert_eq!(space.decoded_bar(4), None, "being sized");
}

#[test]
fn impossible_bars_are_refused() {
    let mut space = space();
    assert_eq!(
        space.add_bar(6, memory32(16)),
        Err(BarError::NoRegister { index: 6 })
    );
    assert_eq!(
        space.add_bar(5, memory64(16)),
        Err(BarError::NoRegister { index: 5 })
    );
    for size in [0, 8, 24, 1 << 32] {
        let refused = space.add_bar(0, memory32(size));
        assert!(matches!(refused, Err(BarError::Size { .. })), "{size:#x}");
    }
    space.add_bar(2, memory64(16)).unwrap();
    assert_eq!(
        space.add_bar(1, memory64(16)),
        Err(BarError::Taken { index: 1 })
    );
    assert_eq!(
        space.add_bar(3, memory32(16)),
        Err(BarError::Taken { index: 3 })
    );
    space.add_bar(1, memory32(16)).unwrap();
}

#[test]
fn guests_change_what_they_may() {
    let mut space = space();
    space.write(0, &[0; 64]);
    assert_eq!(space.u32_at(0), 0x2342_10de);
    space.write(4, &[0xff; 4]);
    assert_eq!(space.u16_at(4), COMMAND_WRITABLE);
    assert_eq!(
        space.u16_at(6),
        0,
        "nothing in the status register is set by writing it"
    );
    space.set(6, &[0x10, 0xf9]);
    space.allow_clearing(6, &[0, 0xf9]);
    space.write(6, &[0xff, 0x01]);
    assert_eq!(space.u16_at(6), 0xf810);
}

#[test]
fn capabilities_are_linked_in_their_order() {
    let mut space = space();
    assert_eq!(space.u16_at(6) & 0x10, 0);
    assert_eq!(space.add_capability(0x05, &[0; 12], &[0x71]), Ok(0x40));
    assert_eq!(space.add_capability(0x09, &[7, 1, 2, 3, 4], &[]), Ok(0x50));
    assert_eq!(space.add_capability(0x11, &[0; 10], &[0, 0xc0]), Ok(0x58));
    assert_eq!(space.u16_at(6) & 0x10, 0x10);
    let bytes = |at| space.u16_at(at).to_le_bytes();
    assert_eq!(space.u16_at(0x34) & 0xff, 0x40);
    assert_eq!(bytes(0x40), [0x05, 0x50]);
    assert_eq!(bytes(0x50), [0x09, 0x58]);
    assert_eq!(bytes(0x58), [0x11, 0x00]);
    space.write(0x40, &[0xff; 16]);
    assert_eq!(space.u32_at(0x40), 0x0071_5005);
    let full = space.add_capability(0x09, &[0; 0x9b], &[]);
    assert_eq!(full, Err(CapabilityError { id: 9, size: 0x9d }));
}

/// PCI Express 6.0, section 7.6.3: id in bits 15:0, version in 19:16, next in 31:20.
#[test]
fn extended_capabilities_are_linked_in_their_order() {
    let mut space = space();
    assert_eq!(space.u32_at(0x100), 0, "no extended capability");
    assert_eq!(
        space.add_extended_capability(0x0001, 2, &[0; 0x44], &[]),
        Ok(0x100)
    );
    assert_eq!(
        space.add_extended_capability(0x000f, 1, &[0; 4], &[]),
        Ok(0x148)
    );
    assert_eq!(space.u32_at(0x100), 0x1482_0001);
    assert_eq!(space.u32_at(0x148), 0x0001_000f);
    let full = space.add_extended_capability(0x23, 1, &[0; 4096], &[]);
    assert_eq!(
        full,
        Err(CapabilityError {
            id: 0x23,
            size: 4100
        })
    );
}

proptest! {
    #[test]
    fn no_access_panics_or_changes_what_is_fixed(
        accesses in prop::collection::vec(
            (prop_oneof![any::<usize>(), 0..SIZE + 8, 0usize..0x60], prop::collection::vec(any::<u8>(), 0..9)),
            0..32,
        ),
    ) {
        let mut space = space();
        space.add_bar(0, memory64(1 << 37)).unwrap();
        space.add_capability(0x05, &[0; 12], &[0x71]).unwrap();
        for (offset, data) in accesses {
            let offset = offset.min(usize::MAX - 16);
            space.write(offset, &data);
            let mut read = data.clone();
            space.read(offset, &mut read);
            let address = space.bar_address(0).unwrap();
            prop_assert!(address.is_multiple_of(1 << 37));
            prop_assert!(space.decoded_bar(0).is_none_or(|decoded| decoded == address));
        }
        prop_assert_eq!(space.u32_at(0), 0x2342_10de);
        prop_assert_eq!(space.u32_at(0x10) & 0xf, 0xc);
        prop_assert_eq!(space.u16_at(0x40), 0x0005);
    }
}
