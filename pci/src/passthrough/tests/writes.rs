//! Registers that a guest shares with the device, and resets.

use super::*;
use crate::device::Device;

const CONFIG: u32 = region::CONFIG;

fn write(offset: u16, data: &[u8]) -> Call {
    Call::Write(CONFIG, offset.into(), data.to_vec())
}

#[test]
fn some_registers_are_the_devices() {
    let guest = Rig::new();
    guest.device.calls();
    guest.set_u16(0x0c, 0x4010);
    assert_eq!(guest.u16(0x0c), 0x4010);
    guest.set_u32(VENDOR + 4, 0x0102_0304);
    guest.set_u16(VPD + 2, 0x0010);
    assert_eq!(guest.u32(VENDOR + 4), 0x0102_0304);
    assert_eq!(
        guest.device.requests(),
        [
            write(0x0c, &[0x10, 0x40]),
            write(VENDOR + 4, &[4, 3, 2, 1]),
            write(VPD + 2, &[0x10, 0])
        ]
    );
    // What the device writes there is seen.
    guest
        .device
        .poke(usize::from(VPD) + 2, &[0x10, 0x80, 9, 8, 7, 6]);
    assert_eq!(guest.bytes(VPD + 2), [0x10, 0x80, 9, 8, 7, 6]);
    // The length of a vendor's capability is not among it.
    guest.set_u32(VENDOR, 0xffff_ffff);
    assert_eq!(guest.device.requests(), [write(VENDOR + 3, &[0xff])]);
    guest.device.poke(usize::from(VENDOR) + 2, &[0xfe]);
    assert_eq!(guest.u32(VENDOR), 0xff10_b009);
}

#[test]
fn errors_in_the_status_are_cleared_and_nothing_else() {
    let guest = Rig::new();
    guest.device.poke(6, &[0xff, 0xff]);
    // Reserved bits are zero.
    assert_eq!(guest.u16(6), 0xffb9);
    guest.device.calls();
    guest.set_u16(6, 0xffff);
    guest.set_u32(COMMAND, 0x8000_0000);
    guest.set_u8(6, 0xff);
    assert_eq!(
        guest.device.requests(),
        [write(7, &[0xf9]), write(7, &[0x80])]
    );
}

#[test]
fn what_the_host_set_up_in_device_control_stays() {
    let guest = Rig::new();
    assert_eq!(guest.u16(PCIE + 8), 0x512f);
    guest.device.calls();
    // Payloads of 4 KiB, requests of 128 bytes, no extended tags, no error messages; relaxed
    // ordering and no snoop.
    guest.set_u16(PCIE + 8, 0x08b0);
    assert_eq!(guest.device.requests(), [write(PCIE + 8, &[0x3f, 0x59])]);
    assert_eq!(guest.u16(PCIE + 8), 0x08b0);
    // With the status behind it, whose errors are cleared; a byte alone.
    guest.set_u32(PCIE + 8, 0x00ff_0000);
    guest.set_u8(PCIE + 9, 0x08);
    assert_eq!(
        guest.device.requests(),
        [
            write(PCIE + 8, &[0x2f, 0x51]),
            write(PCIE + 10, &[0x0f]),
            write(PCIE + 9, &[0x59])
        ]
    );
    // Completion timeouts are the driver's business, AtomicOps the host's.
    guest.set_u16(PCIE + 0x28, 0xff02);
    assert_eq!(guest.device.requests(), [write(PCIE + 0x28, &[0xe2])]);
    // A device that does not say what was set up is not written to.
    guest.device.set_mood(Mood::RefusesAll);
    guest.set_u16(PCIE + 8, 0x0010);
    assert_eq!(guest.device.requests(), []);
}

#[test]
fn power_states_are_emulated() {
    let guest = Rig::new();
    // Version 3, nothing else; D0, and nothing lost in D3hot.
    assert_eq!(guest.u32(PM), 0x0003_4801);
    assert_eq!(guest.u32(PM + 4), 0x0008);
    guest.device.calls();
    guest.set_u32(PM + 4, 0xffff_ffff);
    assert_eq!(guest.u32(PM + 4), 0x000b);
    assert_eq!(guest.device.calls(), []);
}

#[test]
fn flr_resets_the_device() {
    for (name, offset, value) in [
        ("express", PCIE + 8, 0x8010_u16),
        ("advanced features", AF + 4, 0x0001),
    ] {
        let guest = Rig::new();
        let fresh: [u8; SIZE] = guest.bytes(0);
        guest.set_u16(COMMAND, IO | MEMORY | BUS_MASTER | INTX_DISABLE);
        guest.set_u32(0x10, 0xd000_0000);
        guest.set_u16(MSIX + 2, 0x8000);
        guest.set_memory_u32(0xd0b9_000c, 0);
        guest.set_u8(0x3c, 9);
        guest.device.calls();

        guest.set_u16(offset, value);

        let requests = guest.device.requests();
        let reset = requests.iter().position(|c| *c == Call::Reset).expect(name);
        // Decoders and interrupts are off by then, and INTx is back afterwards.
        let (before, after) = requests.split_at(reset);
        let command = write(COMMAND, &[0x40, 0x01]);
        assert!(before.contains(&command), "{name}: {before:x?}");
        assert!(before.contains(&Call::SetIrqs(IrqKind::Msix, 0)), "{name}");
        assert!(after.contains(&command), "{name}: {after:x?}");
        assert!(after.contains(&Call::SetIrqs(IrqKind::Intx, 1)), "{name}");
        assert_eq!(guest.space.places(), [None; 4]);
        // Register by register as at the start, relaxed ordering aside, which is the device's.
        let mut now: [u8; SIZE] = guest.bytes(0);
        now[usize::from(PCIE) + 8] &= !0x10;
        assert_eq!(now, fresh, "{name}");
        // The table too.
        guest.set_u16(COMMAND, MEMORY);
        assert_eq!(guest.memory_u32(0xc0b9_000c), 1);
        // The bits read as zero.
        assert_eq!(guest.u16(PCIE + 8) & 1 << 15, 0);
        assert_eq!(guest.u8(AF + 4), 0);
    }
}

#[test]
fn every_width_of_write_reaches_flr() {
    let guest = Rig::new();
    let resets = |offset: u16, data: &[u8]| {
        guest.device.calls();
        guest.function.write_config(offset, data);
        let calls = guest.device.calls();
        calls.iter().filter(|call| **call == Call::Reset).count()
    };
    assert_eq!(resets(PCIE + 9, &[0x80]), 1);
    assert_eq!(resets(PCIE + 4, &[0, 0, 0, 0, 0, 0x80, 0, 0]), 1);
    assert_eq!(resets(AF, &[0, 0, 0, 0, 1]), 1);
    assert_eq!(resets(PCIE + 9, &[0x7f]), 0);
    assert_eq!(resets(PCIE + 8, &[0xff]), 0);
    assert_eq!(resets(PCIE + 10, &[0x80]), 0);
    assert_eq!(resets(AF + 4, &[0xfe]), 0);
    assert_eq!(resets(AF + 3, &[0xff]), 0);
}

#[test]
fn a_device_may_refuse_to_be_reset() {
    let guest = Rig::new();
    guest.set_u16(COMMAND, MEMORY);
    guest.device.set_mood(Mood::RefusesReset);
    assert!(matches!(
        guest.function.reset(),
        Err(DeviceError::Refused(_))
    ));
    assert_eq!(guest.u16(COMMAND), 0);
    assert_eq!(guest.space.places(), [None; 4]);
    assert_eq!(guest.device.events().unwrap().0, IrqKind::Intx);
    guest.device.set_mood(Mood::Willing);
    guest.function.reset().unwrap();
    assert_eq!(guest.losses.load(Ordering::SeqCst), 0);
}

#[test]
fn a_device_without_reset_is_put_back_as_far_as_possible() {
    let mut device = device();
    device.resettable = false;
    let guest = Rig::with(device);
    guest.set_u16(COMMAND, MEMORY);
    guest.device.calls();
    guest.function.reset().unwrap();
    assert!(!guest.device.calls().contains(&Call::Reset));
    assert_eq!(guest.u16(COMMAND), 0);
    assert_eq!(guest.space.places(), [None; 4]);
}

#[test]
fn a_new_function_starts_over() {
    let guest = Rig::new();
    guest.set_u16(COMMAND, MEMORY);
    guest.set_u16(MSIX + 2, 0x8000);
    let device = Arc::clone(&guest.device);
    let space = Arc::clone(&guest.space);
    drop(guest.function);
    assert!(space.is_empty());
    assert_eq!(device.events(), None);
    device.reset().unwrap();
    let facts = probe(&*device, None, &[]).unwrap();
    let line = Arc::new(FakeLine::new());
    let function = PassthroughFunction::new(Wiring {
        device: Arc::clone(&device) as SharedDevice,
        facts: &facts,
        bars: &ADDRESSES,
        bdf: Bdf {
            segment: 1,
            device: 0,
        },
        space: Arc::new(SharedSpace(space)),
        msi: Arc::new(FakeMsi::new(0)),
        intx: Some(IntxWiring {
            line: Arc::clone(&line) as Arc<dyn ResampledLine>,
            pin: 3,
            number: 0,
        }),
        exclude_mmap_bars: &[],
        on_lost: Box::new(|_| ()),
    })
    .unwrap();
    let mut data = [0; 2];
    function.read_config(COMMAND, &mut data);
    assert_eq!(data, [0, 0]);
    let trigger = Some(line.trigger().as_raw_fd());
    assert_eq!(device.events(), Some((IrqKind::Intx, vec![trigger])));
}
