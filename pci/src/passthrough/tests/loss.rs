//! Devices that are lost.

use super::*;

/// What makes a function ask its device for something, and notice.
type Notice = fn(&Rig);

const NOTICES: [(&str, Notice); 7] = [
    ("mark", |guest| {
        guest.function.mark_lost(io::ErrorKind::BrokenPipe.into());
    }),
    ("configuration read", |guest| {
        assert_eq!(guest.u32(VENDOR), u32::MAX);
    }),
    ("configuration write", |guest| guest.set_u16(0x0c, 1)),
    ("region read", |guest| {
        assert_eq!(guest.memory_u32(0xc000_0000), u32::MAX);
    }),
    ("region write", |guest| guest.set_memory_u32(0xc000_0000, 1)),
    ("interrupts", |guest| guest.set_u16(MSIX + 2, 0x8000)),
    ("reset", |guest| guest.set_u8(AF + 4, 1)),
];

#[test]
fn a_lost_device_is_all_ones() {
    for (name, notice) in NOTICES {
        let guest = Rig::new();
        guest.set_u16(COMMAND, MEMORY);
        let places = guest.space.places();
        guest.device.set_mood(Mood::Lost);
        assert_eq!(guest.u32(0), 0x2342_10de, "{name}: nobody has noticed");

        notice(&guest);
        assert!(guest.function.is_lost(), "{name}");
        assert_eq!(guest.losses.load(Ordering::SeqCst), 1, "{name}");
        let config: [u8; SIZE] = guest.bytes(0);
        assert!(config.iter().all(|byte| *byte == 0xff), "{name}");
        // Trapped registers, the table and the pending bits.
        if name != "reset" {
            assert_eq!(guest.space.places(), places, "{name}");
            for at in [0xc000_0000, 0xc0b9_0000, 0xc0ba_0000] {
                assert_eq!(guest.memory_u32(at), u32::MAX, "{name} {at:#x}");
            }
        }
        let places = guest.space.places();

        // Nothing is asked of it any more, even if it came back.
        guest.device.set_mood(Mood::Willing);
        guest.device.calls();
        for at in (0..SIZE as u16).step_by(2) {
            guest.set_u16(at, 0xffff);
        }
        guest.set_memory_u32(0xc0b9_0000, 0);
        guest.set_memory_u32(0xc000_0000, 0);
        assert!(guest.function.reset().is_err(), "{name}");
        guest.function.mark_lost(io::ErrorKind::BrokenPipe.into());
        assert_eq!(guest.space.places(), places, "{name}");
        drop(guest.function);
        assert_eq!(guest.device.calls(), [], "{name}");
        assert_eq!(guest.losses.load(Ordering::SeqCst), 1, "{name}");
    }
}

#[test]
fn interrupts_of_a_lost_device_go_back_to_the_machine() {
    let guest = Rig::new();
    guest.set_u16(MSIX + 2, 0x8000);
    guest.function.abandon_interrupts();
    assert_eq!(guest.msi.vectors().len(), 6, "it is there still");
    assert!(Arc::strong_count(&guest.line) > 1);
    guest.function.mark_lost(io::ErrorKind::BrokenPipe.into());
    guest.device.calls();
    for _ in 0..2 {
        guest.function.abandon_interrupts();
        assert!(guest.msi.vectors().is_empty());
        assert_eq!(Arc::strong_count(&guest.line), 1);
    }
    guest.set_u16(MSIX + 2, 0);
    guest.set_u16(MSIX + 2, 0x8000);
    assert!(guest.msi.vectors().is_empty());
    assert_eq!(guest.device.calls(), []);
}

#[test]
fn a_device_that_refuses_is_not_lost() {
    let guest = Rig::new();
    guest.set_u16(COMMAND, MEMORY);
    guest.device.set_mood(Mood::RefusesAll);
    assert_eq!(guest.memory_u32(0xc000_0000), u32::MAX);
    guest.set_memory_u32(0xc000_0000, 1);
    // The emulated part is there.
    assert_eq!(guest.u32(VENDOR), 0xff10_b009);
    guest.set_u16(MSIX + 2, 0x8000);
    guest.set_u16(COMMAND, 0);
    assert_eq!(guest.space.places(), [None; 4]);
    assert!(!guest.function.is_lost());
    guest.device.set_mood(Mood::Willing);
    guest.set_u16(COMMAND, MEMORY);
    assert_eq!(guest.memory_u32(0xc000_0000), 0x0302_0100);
    assert_eq!(guest.losses.load(Ordering::SeqCst), 0);
}

#[test]
fn a_device_can_be_lost_at_the_start() {
    let device = device();
    let facts = probe(&device, None, &[]).unwrap();
    let guest = Rig::planned(device, &facts, &ADDRESSES, FakeSpace::default());
    guest.function.mark_lost(io::ErrorKind::NotConnected.into());
    guest.set_u16(COMMAND, MEMORY);
    assert_eq!(guest.space.places(), [None; 4]);
}
