use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Reads as its tag; records what was written.
struct Tagged {
    tag: u8,
    written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Tagged {
    fn new(tag: u8) -> Arc<Self> {
        let written = Mutex::default();
        Arc::new(Self { tag, written })
    }
}

impl BusDevice for Tagged {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.tag);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn read(bus: &Bus, address: u64, width: usize) -> Option<Vec<u8>> {
    let mut data = vec![0xee; width];
    let hit = bus.read(address, &mut data);
    if !hit {
        assert_eq!(data, vec![0xee; width], "a miss touched the data");
    }
    hit.then_some(data)
}

#[test]
fn accesses_reach_the_device_with_its_offset() {
    let bus = Bus::new();
    let (low, high) = (Tagged::new(1), Tagged::new(2));
    bus.insert(0x3f8, 8, high.clone()).unwrap();
    bus.insert(0x60, 5, low.clone()).unwrap();
    assert!(bus.write(0x64, &[0xfe]));
    assert!(bus.write(0x3f8, b"AB"));
    assert_eq!(*low.written.lock().unwrap(), [(4, vec![0xfe])]);
    assert_eq!(*high.written.lock().unwrap(), [(0, b"AB".to_vec())]);
    assert_eq!(read(&bus, 0x3ff, 1), Some(vec![2]));
    assert_eq!(read(&bus, 0x60, 4), Some(vec![1; 4]));
}

#[test]
fn a_removed_device_leaves_room_for_another() {
    let bus = Bus::new();
    let (first, second) = (Tagged::new(1), Tagged::new(2));
    bus.insert(0x1000, 0x10, first.clone()).unwrap();
    bus.insert(0x1010, 0x10, first).unwrap();
    bus.remove(0x1008);
    assert_eq!(read(&bus, 0x1008, 1), Some(vec![1]));
    bus.remove(0x1000);
    assert_eq!(read(&bus, 0x1008, 1), None);
    assert_eq!(read(&bus, 0x1010, 1), Some(vec![1]));
    bus.insert(0xff8, 0x18, second).unwrap();
    assert_eq!(read(&bus, 0x1008, 1), Some(vec![2]));
}

#[test]
fn nothing_answers_outside_and_across_the_end() {
    let bus = Bus::new();
    let (first, second) = (Tagged::new(1), Tagged::new(2));
    bus.insert(0x1000, 0x10, first.clone()).unwrap();
    bus.insert(0x1010, 0x10, second.clone()).unwrap();
    for (address, width) in [
        (0xfff, 1),
        (0xffe, 4),
        (0x100e, 4),
        (0x101d, 4),
        (0x1020, 1),
    ] {
        assert_eq!(read(&bus, address, width), None, "{address:#x}");
        assert!(!bus.write(address, &vec![0; width]), "{address:#x}");
    }
    assert_eq!(read(&bus, 0x1000, 0), None);
    assert!(first.written.lock().unwrap().is_empty());
    assert!(second.written.lock().unwrap().is_empty());
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let bus = Bus::new();
    bus.insert(0x100, 0x10, Tagged::new(1)).unwrap();
    let insert = |base, size| bus.insert(base, size, Tagged::new(2));
    assert_eq!(insert(0x50, 0), Err(InsertError::Empty { base: 0x50 }));
    assert_eq!(
        insert(u64::MAX, 2),
        Err(InsertError::AboveAddressSpace {
            base: u64::MAX,
            size: 2
        })
    );
    for (base, size) in [
        (0x100, 0x10),
        (0xff, 2),
        (0x10f, 1),
        (0x104, 1),
        (0, 0x1000),
    ] {
        assert_eq!(
            insert(base, size),
            Err(InsertError::Overlap {
                base,
                last: base + size - 1,
                other_base: 0x100,
                other_last: 0x10f
            })
        );
    }
    assert_eq!(read(&bus, 0x10f, 1), Some(vec![1]));
    assert_eq!(format!("{bus:x?}"), "[100..=10f]");
}

#[test]
fn the_last_address_can_be_used() {
    let bus = Bus::new();
    bus.insert(u64::MAX - 3, 4, Tagged::new(7)).unwrap();
    assert_eq!(read(&bus, u64::MAX, 1), Some(vec![7]));
    assert_eq!(read(&bus, u64::MAX - 3, 4), Some(vec![7; 4]));
    assert_eq!(read(&bus, u64::MAX, 2), None);
}

#[test]
fn vcpus_find_their_devices_while_others_are_inserted() {
    let bus = Bus::new();
    bus.insert(0x8000, 1, Tagged::new(9)).unwrap();
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            while read(&bus, 499, 1).is_none() {
                assert_eq!(read(&bus, 0x8000, 1), Some(vec![9]));
            }
        });
        for base in 0..500 {
            bus.insert(base, 1, Tagged::new(base as u8)).unwrap();
        }
        vcpu.join().unwrap();
    });
    for base in 0..500 {
        assert_eq!(read(&bus, base, 1), Some(vec![base as u8]));
    }
}

proptest! {
    /// The bus agrees with a list of bytes that each have an owner or none.
    #[test]
    fn agrees_with_a_byte_map(
        ranges in proptest::collection::vec((0..60_u64, 1..12_u64), 0..12),
        address in 0..72_u64,
        width in 1..16_usize,
    ) {
        let bus = Bus::new();
        let mut owners = [None; 96];
        for (tag, (base, size)) in ranges.into_iter().enumerate() {
            let tag = tag as u8;
            let bytes = &mut owners[base as usize..(base + size) as usize];
            let free = bytes.iter().all(Option::is_none);
            prop_assert_eq!(bus.insert(base, size, Tagged::new(tag)).is_ok(), free);
            if free {
                bytes.fill(Some(tag));
            }
        }
        let bytes = &owners[address as usize..address as usize + width];
        let owner = bytes[0].filter(|_| bytes.iter().all(|owner| *owner == bytes[0]));
        prop_assert_eq!(read(&bus, address, width), owner.map(|tag| vec![tag; width]));
    }
}
