//! MSI-X, MSI and INTx.

use super::*;

const TABLE: u64 = 0xc0b9_0000;
const PENDING: u64 = 0xc0ba_0000;
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

fn guest() -> Rig {
    let guest = Rig::new();
    guest.set_u16(COMMAND, MEMORY | BUS_MASTER);
    guest.device.calls();
    guest
}

fn set_entry(guest: &Rig, vector: u64, address: u64, data: u32, control: u32) {
    let at = TABLE + 16 * vector;
    for (index, value) in [address as u32, (address >> 32) as u32, data, control]
        .into_iter()
        .enumerate()
    {
        guest.set_memory_u32(at + 4 * index as u64, value);
    }
}

fn message(address: u64, data: u32) -> Option<MsiMessage> {
    Some(MsiMessage { address, data })
}

/// Where the device is told to write to.
fn fds(guest: &Rig) -> Vec<Option<i32>> {
    guest.msi.vectors().iter().map(|v| Some(v.fd())).collect()
}

/// As Linux does it: everything masked, the table, vectors one by one.
#[test]
fn msix_is_programmed() {
    let guest = guest();
    // Six vectors, though the table has room for eight; off, though the device's is on.
    assert_eq!(guest.u16(MSIX + 2), 5);
    assert_eq!(guest.u32(MSIX + 4), 0xb9_0000);
    assert_eq!(guest.u32(MSIX + 8), 0xba_0000);
    for vector in 0..6 {
        assert_eq!(guest.memory_u32(TABLE + 16 * vector + 12), 1, "{vector}");
    }
    assert_eq!(guest.device.calls(), []);

    guest.set_u16(MSIX + 2, ENABLE | MASK_ALL);
    assert_eq!(guest.u16(MSIX + 2), 0xc005);
    assert_eq!(guest.messages(), [None; 6]);
    assert_eq!(guest.device.events(), Some((IrqKind::Msix, fds(&guest))));
    assert_eq!(
        guest.device.requests(),
        [
            Call::SetIrqs(IrqKind::Intx, 0),
            Call::SetIrqs(IrqKind::Msix, 6)
        ]
    );
    set_entry(&guest, 0, 0xfee0_0000, 0x21, 0);
    set_entry(&guest, 5, 0x1_fee0_1000, 0x22, 0);
    set_entry(&guest, 1, 0xfee0_0000, 0x23, 1);
    assert_eq!(guest.messages(), [None; 6]);
    guest.set_u16(MSIX + 2, ENABLE);
    let first = message(0xfee0_0000, 0x21);
    let last = message(0x1_fee0_1000, 0x22);
    assert_eq!(guest.messages(), [first, None, None, None, None, last]);

    // One is masked, changed and unmasked.
    guest.set_memory_u32(TABLE + 12, 1);
    assert_eq!(guest.messages()[0], None);
    guest.set_memory_u32(TABLE, 0xfee0_2003);
    assert_eq!(guest.memory_u32(TABLE), 0xfee0_2000);
    guest.set_memory_u32(TABLE + 12, 0xffff_fffe);
    assert_eq!(guest.memory_u32(TABLE + 12), 0);
    assert_eq!(guest.messages()[0], message(0xfee0_2000, 0x21));
    guest.set_u16(MSIX + 2, ENABLE | MASK_ALL);
    assert_eq!(guest.messages(), [None; 6]);
    // The device was asked once.
    assert_eq!(guest.device.requests(), []);

    guest.set_u16(MSIX + 2, 0);
    assert_eq!(guest.msi.vectors().len(), 0);
    assert_eq!(
        guest.device.requests(),
        [
            Call::SetIrqs(IrqKind::Msix, 0),
            Call::SetIrqs(IrqKind::Intx, 1),
            unmask(&guest)
        ]
    );
    // The table keeps what was written.
    assert_eq!(guest.memory_u32(TABLE + 8), 0x21);
}

fn unmask(guest: &Rig) -> Call {
    Call::UnmaskOn(guest.line.resample().as_raw_fd())
}

#[test]
fn the_table_takes_any_width_and_ends_where_it_does() {
    let guest = guest();
    guest.space.write(Space::Memory, TABLE + 16, &[0xff; 16]);
    let mut entry = [0; 16];
    guest.space.read(Space::Memory, TABLE + 16, &mut entry);
    assert_eq!(
        entry,
        [
            0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0
        ]
    );
    guest.space.write(Space::Memory, TABLE + 15, &[0xee, 0xee]);
    assert_eq!(guest.memory_u32(TABLE + 12), 1);
    assert_eq!(guest.memory_u32(TABLE + 16), 0xffff_ffec);
    // Two entries of the device's table are not shown, and behind them are its registers.
    guest.set_memory_u32(TABLE + 6 * 16, 0x1234_5678);
    assert_eq!(guest.memory_u32(TABLE + 6 * 16), 0);
    guest.set_memory_u32(PENDING, 0x1234_5678);
    assert_eq!(guest.memory_u32(PENDING), 0);
    assert_eq!(guest.device.calls(), []);
    guest.set_memory_u32(TABLE + 8 * 16, 1);
    guest.set_memory_u32(PENDING + 8, 1);
    assert_eq!(
        guest.device.requests(),
        [
            Call::Write(0, 0xb9_0080, vec![1, 0, 0, 0]),
            Call::Write(0, 0xba_0008, vec![1, 0, 0, 0])
        ]
    );
    // An access across the end belongs to both.
    let mut across = [0; 16];
    guest
        .space
        .read(Space::Memory, TABLE + 8 * 16 - 8, &mut across);
    assert_eq!(across[..8], [0; 8]);
    assert_eq!(across[8..], [1, 0, 0, 0, 0x84, 0x85, 0x86, 0x87]);
}

#[test]
fn a_table_is_no_larger_than_its_capability_says() {
    let mut device = device();
    device.irqs = [1, 1000, 100_000];
    let guest = Rig::with(device);
    assert_eq!(guest.u16(MSIX + 2), 7);
    // Eight vectors of MSI, none in use.
    assert_eq!(guest.u16(MSI + 2), 0x0186);

    let device = self::device();
    device.poke(usize::from(MSIX) + 2, &[0xff, 0x3f]);
    let mut device = device;
    device.irqs = [1, 4, 100_000];
    let guest = Rig::with(device);
    assert_eq!(guest.u16(MSIX + 2), 2047);
}

#[test]
fn msi_is_programmed() {
    let guest = guest();
    // Four vectors, 64 bits, maskable.
    assert_eq!(
        guest.bytes(MSI + 2),
        [
            0x84, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        ]
    );
    guest.set_u32(MSI + 4, 0xfee0_100f);
    guest.set_u32(MSI + 8, 0x1);
    guest.set_u32(MSI + 12, 0xffff_4567);
    assert_eq!(guest.u32(MSI + 4), 0xfee0_100c);
    assert_eq!(guest.u32(MSI + 12), 0x4567);
    guest.set_u32(MSI + 16, 0xffff_fffd);
    assert_eq!(guest.u32(MSI + 16), 0xd);
    assert_eq!(guest.device.events().unwrap().0, IrqKind::Intx);
    // More than it has.
    guest.set_u16(MSI + 2, 0x0031);
    assert_eq!(guest.u16(MSI + 2), 0x01b5);
    let address = 0x1_fee0_100c;
    assert_eq!(
        guest.messages(),
        [None, message(address, 0x4565), None, None]
    );
    assert_eq!(guest.device.events(), Some((IrqKind::Msi, fds(&guest))));
    guest.set_u32(MSI + 16, 0);
    let data: Vec<u32> = guest.messages().iter().map(|m| m.unwrap().data).collect();
    assert_eq!(data, [0x4564, 0x4565, 0x4566, 0x4567]);
    guest.set_u16(MSI + 12, 0x1000);
    assert_eq!(guest.messages()[3], message(address, 0x1003));
    guest.device.calls();
    // Fewer: the device is asked again.
    guest.set_u16(MSI + 2, 0x0011);
    assert_eq!(
        guest.device.requests(),
        [
            Call::SetIrqs(IrqKind::Msi, 0),
            Call::SetIrqs(IrqKind::Msi, 2)
        ]
    );
    assert_eq!(
        guest.messages(),
        [message(address, 0x1000), message(address, 0x1001)]
    );
    guest.set_u16(MSI + 2, 0);
    assert_eq!(guest.msi.vectors().len(), 0);
    // Pending bits stay as they are.
    guest.set_u32(MSI + 20, u32::MAX);
    assert_eq!(guest.u32(MSI + 20), 0);
}

#[test]
fn msi_of_32_bits_without_masks() {
    let device = device();
    device.poke(usize::from(MSI) + 2, &[0x02, 0]);
    let guest = Rig::with(device);
    assert_eq!(guest.bytes(MSI + 2), [2, 0, 0, 0, 0, 0, 0, 0]);
    guest.function.write_config(MSI + 4, &[0xff; 20]);
    assert_eq!(
        guest.bytes(MSI + 4),
        [0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]
    );
    guest.set_u16(MSI + 2, 0x0011);
    let messages = [message(0xffff_fffc, 0xfffe), message(0xffff_fffc, 0xffff)];
    assert_eq!(guest.messages(), messages);
}

#[test]
fn one_kind_at_a_time() {
    let guest = guest();
    let kind = || guest.device.events().map(|(kind, _)| kind);
    assert_eq!(kind(), Some(IrqKind::Intx));
    guest.set_u16(MSI + 2, 1);
    assert_eq!(kind(), Some(IrqKind::Msi));
    guest.set_u16(MSIX + 2, ENABLE);
    assert_eq!(kind(), Some(IrqKind::Msix));
    guest.set_u16(MSI + 2, 0);
    assert_eq!(kind(), Some(IrqKind::Msix));
    guest.set_u16(COMMAND, INTX_DISABLE);
    guest.set_u16(MSIX + 2, 0);
    assert_eq!(kind(), None);
    // The device's own bit follows.
    assert_eq!(guest.device.peek(4), [0x40, 0x05]);
    guest.device.calls();
    guest.set_u16(COMMAND, 0);
    assert_eq!(kind(), Some(IrqKind::Intx));
    assert_eq!(
        guest.device.requests(),
        [
            Call::Write(region::CONFIG, 4, vec![0x40, 0x01]),
            Call::SetIrqs(IrqKind::Intx, 1),
            unmask(&guest)
        ]
    );
    let trigger = Some(guest.line.trigger().as_raw_fd());
    assert_eq!(guest.device.events(), Some((IrqKind::Intx, vec![trigger])));
    drop(guest.function);
    assert_eq!(guest.device.events(), None);
}

#[test]
fn a_device_that_does_not_hear_the_end_has_no_intx() {
    let device = device();
    device.set_mood(Mood::RefusesUnmasking);
    let guest = Rig::with(device);
    assert_eq!(guest.device.events(), None);
    assert_eq!(
        guest.device.requests()[1..],
        [
            Call::SetIrqs(IrqKind::Intx, 1),
            unmask(&guest),
            Call::SetIrqs(IrqKind::Intx, 0)
        ]
    );
    // It stays so, and the rest works.
    guest.set_u16(MSIX + 2, ENABLE);
    assert_eq!(guest.device.events().unwrap().0, IrqKind::Msix);
    guest.device.calls();
    guest.set_u16(MSIX + 2, 0);
    assert_eq!(guest.device.requests(), [Call::SetIrqs(IrqKind::Msix, 0)]);
    assert_eq!(guest.losses.load(Ordering::SeqCst), 0);
}

#[test]
fn a_refusal_is_not_asked_for_again_and_again() {
    let guest = guest();
    guest.device.set_mood(Mood::RefusesIrqs(IrqKind::Msix));
    guest.set_u16(MSIX + 2, ENABLE);
    assert_eq!(guest.device.events(), None);
    assert_eq!(guest.msi.vectors().len(), 0);
    guest.device.calls();
    guest.set_u16(MSIX + 2, ENABLE | MASK_ALL);
    set_entry(&guest, 0, 0xfee0_0000, 0x21, 0);
    assert_eq!(guest.device.calls(), []);
    // Off and on again is another try.
    guest.set_u16(MSIX + 2, 0);
    guest.device.set_mood(Mood::Willing);
    guest.set_u16(MSIX + 2, ENABLE);
    assert_eq!(guest.messages()[0], message(0xfee0_0000, 0x21));
}

#[test]
fn a_host_without_room_gives_what_it_has() {
    let device = device();
    let facts = probe(&device, None, &[]).unwrap();
    let device = Arc::new(device);
    let msi = Arc::new(FakeMsi::new(2));
    let function = PassthroughFunction::new(Wiring {
        device: Arc::clone(&device) as SharedDevice,
        facts: &facts,
        bars: &ADDRESSES,
        bdf: Bdf {
            segment: 0,
            device: 1,
        },
        space: Arc::new(SharedSpace(Arc::default())),
        msi: Arc::clone(&msi) as Arc<dyn MsiSource>,
        intx: None,
        exclude_mmap_bars: &[],
        on_lost: Box::new(|_| ()),
    })
    .unwrap();
    assert_eq!(device.events(), None, "there is no line");
    function.write_config(MSIX + 2, &ENABLE.to_le_bytes());
    let (_, events) = device.events().unwrap();
    let fds: Vec<_> = msi.vectors().iter().map(|v| Some(v.fd())).collect();
    assert_eq!(events[..2], fds);
    assert_eq!(events[2..], [None; 4]);
}
