//! What a guest does with a device, from finding it to turning it off.

use super::*;

#[test]
fn a_guest_finds_the_device() {
    let guest = Rig::new();
    assert_eq!(guest.u32(0), 0x2342_10de);
    assert_eq!(guest.u32(8), 0x0302_00a1);
    // One function, whatever the device has beside this one; no self-test.
    assert_eq!(guest.u16(0x0e), 0);
    assert_eq!(guest.u16(0x0c), 0x2010);
    assert_eq!(guest.u32(0x2c), 0x16eb_10de);
    // No CardBus, no expansion ROM.
    assert_eq!(guest.u32(0x28), 0);
    guest.set_u32(0x30, 0xffff_f800);
    assert_eq!(guest.u32(0x30), 0);
    // The planned line and pin, and the device's wishes.
    assert_eq!(guest.u32(0x3c), 0x0907_010b);
    // Decoders are off, and the device knows; what the host has set up beside them stays.
    assert_eq!(guest.u16(COMMAND), 0);
    assert_eq!(guest.device.peek(4), 0x0140_u16.to_le_bytes());
    assert_eq!(guest.space.places(), [None; 4]);
}

#[test]
fn bars_are_sized_assigned_and_reached() {
    let guest = Rig::new();
    let registers = [0xc000_0000, 0x6001, 0xc, 0x40, 0xc, 0x80];
    for (index, at) in (0x10..).step_by(4).take(6).enumerate() {
        assert_eq!(guest.u32(at), registers[index], "{index}");
        guest.set_u32(at, u32::MAX);
    }
    let sizes: [u8; 24] = guest.bytes(0x10);
    let (sizes, _) = sizes.as_chunks::<4>();
    let sizes: Vec<u32> = sizes.iter().map(|s| u32::from_le_bytes(*s)).collect();
    // 16 MiB, 32 ports, 1 GiB, 128 GiB.
    assert_eq!(
        sizes,
        [
            0xff00_0000,
            0xffff_ffe1,
            0xc000_000c,
            0xffff_ffff,
            0xc,
            0xffff_ffe0
        ]
    );
    guest.set_u16(COMMAND, IO | MEMORY);
    assert_eq!(guest.space.places(), [None; 4], "they are being sized");
    for (at, value) in (0x10..)
        .step_by(4)
        .zip([0xd000_0000, 0x7001, 0xc, 0x41, 0xc, 0xa0])
    {
        guest.set_u32(at, value);
    }
    assert_eq!(
        guest.space.places(),
        [
            Some(0xd000_0000),
            Some(0x7000),
            Some(0x41_0000_0000),
            Some(0xa0_0000_0000)
        ]
    );
    // The fake device's registers hold the low byte of their offsets.
    assert_eq!(guest.memory_u32(0xd000_0104), 0x0706_0504);
    guest.set_memory_u32(0xd000_0104, 0x1234_5678);
    assert_eq!(guest.memory_u32(0xd000_0104), 0x1234_5678);
    let mut port = [0; 2];
    guest.space.read(Space::Io, 0x7012, &mut port);
    assert_eq!(port, [0x12, 0x13]);
}

#[test]
fn firmware_addresses_count_once_decoders_are_on() {
    let guest = Rig::new();
    guest.device.calls();
    guest.set_u16(COMMAND, MEMORY | BUS_MASTER);
    let mut places = ADDRESSES;
    places[1] = None;
    assert_eq!(guest.space.places(), places);
    guest.set_u16(COMMAND, IO);
    assert_eq!(guest.space.places(), [None, ADDRESSES[1], None, None]);
    let command = |value: u16| Call::Write(region::CONFIG, 4, value.to_le_bytes().to_vec());
    assert_eq!(guest.device.requests(), [command(0x146), command(0x141)]);
}

#[test]
fn a_bar_moves_and_goes() {
    let guest = Rig::new();
    guest.set_u16(COMMAND, MEMORY);
    // With decoders on, the halves of a 64-bit BAR move it twice.
    guest.set_u32(0x18, 0x8000_000c);
    assert_eq!(guest.space.slot(2).at(), Some(0x40_8000_0000));
    guest.set_u32(0x1c, 0x50);
    assert_eq!(guest.space.slot(2).at(), Some(0x50_8000_0000));
    assert_eq!(guest.memory_u32(0x40_0000_0000), u32::MAX);
    assert_eq!(guest.memory_u32(0x50_8000_0000), 0x0302_0100);
    let moves = guest.space.moves.load(Ordering::SeqCst);
    guest.set_u32(0x1c, 0x50);
    guest.set_u16(COMMAND, MEMORY);
    assert_eq!(
        guest.space.moves.load(Ordering::SeqCst),
        moves,
        "nothing changed"
    );
    guest.set_u16(COMMAND, 0);
    assert_eq!(guest.space.places(), [None; 4]);
    assert_eq!(guest.u32(0x1c), 0x50);
}

#[test]
fn bars_can_trade_places() {
    let mut device = device();
    device.set_region(4, GIB, &[(0, GIB)]);
    let facts = probe(&device, None, &[]).unwrap();
    let addresses = [None, None, Some(0x40_0000_0000), Some(0x50_0000_0000)];
    let guest = Rig::planned(device, &facts, &addresses, FakeSpace::default());
    guest.set_u16(COMMAND, MEMORY);
    // One write, as a wide store does it: neither is in the other's way.
    let both: [u32; 4] = [0xc, 0x50, 0xc, 0x40];
    guest
        .function
        .write_config(0x18, &both.map(u32::to_le_bytes).concat());
    assert_eq!(
        guest.space.places(),
        [Some(0x50_0000_0000), Some(0x40_0000_0000)]
    );
}

#[test]
fn a_bar_in_the_way_of_another_is_nowhere_until_it_moves() {
    let guest = Rig::new();
    guest.set_u32(0x1c, 0x90);
    guest.set_u16(COMMAND, MEMORY);
    // BAR 2 came first; it lies where BAR 4 is.
    let places = guest.space.places();
    assert_eq!(places[2..], [Some(0x90_0000_0000), None]);
    guest.set_u32(0x1c, 0x40);
    assert_eq!(guest.space.slot(3).at(), ADDRESSES[3]);
    assert_eq!(guest.u32(0x24), 0x80);
}

#[test]
fn what_a_guest_is_not_shown_is_not_there() {
    let device = device();
    let facts = probe(&device, None, &[]).unwrap();
    let addresses = [None, None, ADDRESSES[2], None];
    let guest = Rig::planned(device, &facts, &addresses, FakeSpace::default());
    for at in [0x10, 0x14, 0x20, 0x24] {
        guest.set_u32(at, u32::MAX);
        assert_eq!(guest.u32(at), 0, "{at:#x}");
    }
    guest.set_u16(COMMAND, IO | MEMORY);
    assert_eq!(guest.space.places(), [ADDRESSES[2]]);
    // Its table would be in BAR 0.
    assert!(!guest.list().contains(&(MSIX, 0x11)));
}

#[test]
fn memory_is_mapped_except_around_the_table() {
    let guest = Rig::new();
    let areas = |index| {
        let slot = guest.space.slot(index);
        let areas = slot.region.mappable().iter();
        areas
            .map(|area| (area.offset, area.size, area.file_offset))
            .collect::<Vec<_>>()
    };
    let page = page::size();
    assert_eq!(
        areas(0),
        [
            (0, 0xb9_0000, 0),
            (0xb9_0000 + page, 0x1_0000 - page, 0xb9_0000 + page),
            (0xba_0000 + page, 0x46_0000 - page, 0xba_0000 + page),
        ]
    );
    assert_eq!(areas(1), []);
    assert_eq!(areas(2), [(0, GIB, 2 << 40)]);
    assert_eq!(areas(3), [(0, 0x17_2000_0000, 4 << 40)]);
}

#[test]
fn excluded_bars_are_trapped() {
    let device = device();
    let facts = probe(&device, None, &[0, 4]).unwrap();
    let mappable: Vec<u64> = facts.bars.iter().map(|bar| bar.mappable).collect();
    assert_eq!(mappable, [0, 0, GIB, 0]);
    let space = Arc::new(FakeSpace::default());
    let function = PassthroughFunction::new(Wiring {
        device: Arc::new(device),
        facts: &facts,
        bars: &ADDRESSES,
        bdf: Bdf {
            segment: 0,
            device: 1,
        },
        space: Arc::new(SharedSpace(Arc::clone(&space))),
        msi: Arc::new(FakeMsi::new(0)),
        intx: None,
        exclude_mmap_bars: &[0, 4],
        on_lost: Box::new(|_| ()),
    })
    .unwrap();
    let areas = |index: usize| space.slot(index).region.mappable().len();
    assert_eq!([0, 1, 2, 3].map(areas), [0, 0, 1, 0]);
    // Without a line there is no pin.
    let mut pin = [0xff];
    function.read_config(0x3d, &mut pin);
    assert_eq!(pin, [0]);
    drop(function);
    assert!(space.is_empty());
}

#[test]
fn holes_take_whole_pages_of_areas() {
    let mut device = device();
    // What a device says of areas within pages is cut to whole ones.
    device.set_region(2, 0x9800, &[(0x800, 0x3000), (0x4000, 0x5800)]);
    let region = device.regions[2].clone();
    let areas = |holes: &[Range<u64>]| {
        let areas = bars::mappable_areas(&region, holes.iter().cloned(), 0x1000);
        areas
            .iter()
            .map(|area| (area.offset, area.size))
            .collect::<Vec<_>>()
    };
    assert_eq!(areas(&[]), [(0x1000, 0x2000), (0x4000, 0x5000)]);
    assert_eq!(
        areas(&[0x4ff8..0x5008, 0x1000..0x1001]),
        [(0x2000, 0x1000), (0x6000, 0x3000)]
    );
    assert_eq!(areas(&[0..0x5000, 0x5000..0x9800]), []);
    let whole = 0x6000..0x6001;
    assert_eq!(
        areas(&[whole.clone(), whole]),
        [(0x1000, 0x2000), (0x4000, 0x2000), (0x7000, 0x2000)]
    );
}

#[test]
fn a_device_that_is_not_what_was_planned_is_refused() {
    let facts = probe(&device(), None, &[]).unwrap();
    let build = |device: FakeDevice, bars: &[Option<u64>]| {
        PassthroughFunction::new(Wiring {
            device: Arc::new(device),
            facts: &facts,
            bars,
            bdf: Bdf {
                segment: 0,
                device: 1,
            },
            space: Arc::new(SharedSpace(Arc::default())),
            msi: Arc::new(FakeMsi::new(0)),
            intx: None,
            exclude_mmap_bars: &[],
            on_lost: Box::new(|_| ()),
        })
        .err()
        .expect("must be refused")
        .to_string()
    };
    let mut grown = device();
    grown.set_region(2, GIB + 1, &[]);
    assert_eq!(
        build(grown, &ADDRESSES),
        "BAR 2 was planned with 0x40000000 bytes and the device has 0x40000001 now"
    );
    assert_eq!(build(device(), &ADDRESSES[1..]), "3 addresses for 4 BARs");
    let silent = device();
    silent.set_mood(Mood::Lost);
    assert_eq!(
        build(silent, &ADDRESSES),
        "cannot read the device's configuration space"
    );
    let mut headless = device();
    headless.set_region(region::CONFIG, 0xff, &[]);
    assert_eq!(
        build(headless, &ADDRESSES),
        "the device has no configuration space any more"
    );
}

#[test]
fn what_the_device_does_not_have_reads_as_ones() {
    let guest = Rig::new();
    guest.set_u16(COMMAND, IO);
    let read = |offset, length| {
        let mut data = vec![0; length];
        guest.space.slot(1).region.read(offset, &mut data);
        data
    };
    // 24 ports in a BAR of 32.
    assert_eq!(read(22, 4), [22, 23, 0xff, 0xff]);
    assert_eq!(read(30, 4), [0xff; 4]);
    assert_eq!(read(u64::MAX, 4), [0xff; 4]);
    guest.device.calls();
    guest.space.slot(1).region.write(22, &[1, 2, 3, 4]);
    guest.space.slot(1).region.write(32, &[1]);
    guest.space.slot(1).region.write(u64::MAX - 1, &[1; 4]);
    assert_eq!(guest.device.calls(), [Call::Write(1, 22, vec![1, 2])]);
    // Wide and crooked accesses come in pieces.
    let mut data = [0; 13];
    guest.space.slot(2).region.read(3, &mut data);
    assert_eq!(data, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(
        guest.device.calls(),
        [
            Call::Read(2, 3, 1),
            Call::Read(2, 4, 4),
            Call::Read(2, 8, 8)
        ]
    );
}

#[test]
fn regions_that_cannot_be_read_or_written_are_not() {
    let mut device = device();
    device.regions[0].readable = false;
    device.regions[2].writable = false;
    let guest = Rig::with(device);
    guest.device.calls();
    let mut data = [0; 4];
    guest.space.slot(0).region.read(0, &mut data);
    assert_eq!(data, [0xff; 4]);
    guest.space.slot(2).region.write(0, &data);
    assert_eq!(guest.device.calls(), []);
}
