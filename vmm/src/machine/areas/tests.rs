//! Memory that goes.

use std::fs::File;

use pci::device::{Device, DeviceRegion, IrqKind};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::events::Events;

const PAGE: u64 = 64 << 10;
const PLACE: u64 = 0x40_0000_0000;

/// Two areas of a file with a hole between them; a third of the last is of a device.
struct Memory {
    file: File,
    areas: Vec<MappableArea>,
}

impl Memory {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 * PAGE).unwrap();
        let shared = Arc::new(OwnedFd::from(file.try_clone().unwrap()));
        let area = |offset, size, file_offset| MappableArea {
            offset,
            size,
            file: Arc::clone(&shared),
            file_offset,
            readable: true,
            writable: true,
        };
        Self {
            file,
            areas: vec![area(0, PAGE, PAGE), area(4 * PAGE, 2 * PAGE, 3 * PAGE)],
        }
    }
}

impl Region for Memory {
    fn size(&self) -> u64 {
        8 * PAGE
    }

    fn mappable(&self) -> &[MappableArea] {
        &self.areas
    }

    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// What a device says to whoever asks.
#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    Lost,
}

struct Fake(Answer);

impl Device for Fake {
    fn region(&self, _index: u32) -> &DeviceRegion {
        panic!("nothing here asks for it")
    }

    fn irqs(&self, _kind: IrqKind) -> u32 {
        0
    }

    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        assert_eq!((region, offset, data.len()), (7, 4, 4));
        match self.0 {
            Answer::Status(status) => data[2..].copy_from_slice(&status.to_le_bytes()),
            Answer::Lost => return Err(DeviceError::Lost(io::ErrorKind::NotConnected.into())),
        }
        Ok(())
    }

    fn write(&self, _region: u32, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        panic!("nothing here asks for it")
    }

    fn set_irqs(&self, _kind: IrqKind, _events: &[Option<&EventFd>]) -> Result<(), DeviceError> {
        panic!("nothing here asks for it")
    }

    fn unmask_intx_on(&self, _event: &EventFd) -> Result<(), DeviceError> {
        panic!("nothing here asks for it")
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        panic!("nothing here asks for it")
    }

    fn can_reset(&self) -> bool {
        false
    }

    fn reset(&self) -> Result<(), DeviceError> {
        panic!("nothing here asks for it")
    }
}

fn owner(answer: Answer) -> Owner {
    let losses = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    Owner {
        device: Arc::new(Fake(answer)),
        presence: Arc::new(Presence::new(String::new(), &losses, &Events::none())),
    }
}

fn willing() -> Owner {
    owner(Answer::Status(0x10))
}

fn byte(region: &MappedRegion, offset: u64) -> u8 {
    let address = region.address().wrapping_add(offset as usize);
    // SAFETY: callers name offsets in areas.
    unsafe { address.read_volatile() }
}

fn set_byte(region: &MappedRegion, offset: u64, value: u8) {
    let address = region.address().wrapping_add(offset as usize);
    // SAFETY: callers name offsets in areas.
    unsafe { address.write_volatile(value) };
}

#[test]
fn areas_of_a_file_that_shrank_are_zeros_and_the_others_are_left_alone() {
    let areas = DeviceAreas::default();
    let (memory, other) = (Memory::new(), Memory::new());
    let owners = [willing(), willing()];
    let region = areas.map(&owners[0], &memory).unwrap();
    let other_region = areas.map(&owners[1], &other).unwrap();
    for region in [&region, &other_region] {
        set_byte(region, 0, 1);
        set_byte(region, 5 * PAGE, 2);
    }
    assert!(!areas.recheck(areas.replaced(), None));

    memory.file.set_len(4 * PAGE).unwrap();
    let before = areas.replaced();
    assert!(areas.recheck(before, None));
    assert!(owners[0].presence.is_lost());
    assert_eq!((byte(&region, 0), byte(&region, 5 * PAGE)), (1, 0));
    set_byte(&region, 5 * PAGE, 3);
    assert_eq!(byte(&region, 5 * PAGE), 3);
    assert_eq!(
        [0, 1, 2].map(|number| region.is_gone(number)),
        [false, true, false]
    );
    // Another vCPU that met the same, and one that met something else later.
    assert!(areas.recheck(before, None));
    assert!(!areas.recheck(areas.replaced(), None));
    assert_eq!(byte(&region, 5 * PAGE), 3);

    memory.file.set_len(0).unwrap();
    assert!(areas.recheck(areas.replaced(), None));
    assert_eq!(byte(&region, 0), 0);
    assert!(!areas.recheck(areas.replaced(), None));
    assert!(!owners[1].presence.is_lost());
    assert_eq!(
        (byte(&other_region, 0), byte(&other_region, 5 * PAGE)),
        (1, 2)
    );
}

#[test]
fn an_address_of_the_guest_tells_which_area_it_is() {
    let areas = DeviceAreas::default();
    let memory = Memory::new();
    let owner = willing();
    let region = areas.map(&owner, &memory).unwrap();
    let recheck = |gpa| areas.recheck(areas.replaced(), Some(gpa));
    assert!(!recheck(PLACE));
    assert!(!recheck(u64::MAX));
    region.set_place(Some(PLACE));
    for gpa in [
        0,
        PLACE - 1,
        PLACE + PAGE,
        PLACE + 4 * PAGE - 1,
        PLACE + 6 * PAGE,
        u64::MAX,
    ] {
        assert!(!recheck(gpa), "{gpa:#x}");
    }
    assert!(!owner.presence.is_lost());
    assert!(recheck(PLACE + 6 * PAGE - 1));
    assert!(owner.presence.is_lost());
    assert!(region.is_gone(1) && !region.is_gone(0));
    assert!(!recheck(PLACE + 4 * PAGE));
    region.set_place(None);
    assert!(!recheck(PLACE));
}

/// A descriptor of a device, which has no size, as far as this matters here.
fn device_descriptor() -> Memory {
    let mut memory = Memory::new();
    let zero = Arc::new(OwnedFd::from(
        File::options()
            .read(true)
            .write(true)
            .open("/dev/zero")
            .unwrap(),
    ));
    for area in &mut memory.areas {
        area.file = Arc::clone(&zero);
    }
    memory
}

#[test]
fn a_device_without_a_file_is_asked() {
    for (answer, is_there) in [
        (Answer::Status(0x10), true),
        (Answer::Status(0xffff), false),
        (Answer::Lost, false),
    ] {
        let areas = DeviceAreas::default();
        let owner = owner(answer);
        let _region = areas.map(&owner, &device_descriptor()).unwrap();
        // An address that is elsewhere is not its business.
        assert!(!areas.recheck(areas.replaced(), Some(0)));
        assert_eq!(areas.recheck(areas.replaced(), None), !is_there);
        assert_eq!(owner.presence.is_lost(), !is_there);
    }
}

#[test]
fn what_is_let_go_of_is_replaced_once() {
    let areas = DeviceAreas::default();
    let memory = Memory::new();
    let owner = willing();
    let region = areas.map(&owner, &memory).unwrap();
    set_byte(&region, 0, 1);
    region.let_go();
    assert_eq!(byte(&region, 0), 0);
    assert_eq!(areas.replaced(), 2);
    region.let_go();
    assert_eq!(areas.replaced(), 2);
    // Who decides that decides about the device too.
    assert!(!owner.presence.is_lost());
}

#[test]
fn an_access_of_our_own_loses_the_device() {
    let losses = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    super::super::sigbus::prepare(&losses).unwrap();
    let areas = DeviceAreas::default();
    let memory = Memory::new();
    let owner = willing();
    let region = areas.map(&owner, &memory).unwrap();
    areas.look();
    assert!(!owner.presence.is_lost());
    memory.file.set_len(0).unwrap();
    assert_eq!(byte(&region, 5 * PAGE), 0);
    areas.look();
    assert!(owner.presence.is_lost());
    assert!(region.is_gone(0) && region.is_gone(1));
    assert_eq!(areas.replaced(), 2);
}

#[test]
fn files_are_looked_at_without_a_complaint() {
    let areas = DeviceAreas::default();
    let (memory, device) = (Memory::new(), device_descriptor());
    let owners = [willing(), owner(Answer::Lost)];
    let region = areas.map(&owners[0], &memory).unwrap();
    let _device_region = areas.map(&owners[1], &device).unwrap();
    areas.look();
    assert_eq!(areas.replaced(), 0);
    memory.file.set_len(5 * PAGE - 1).unwrap();
    areas.look();
    assert!(owners[0].presence.is_lost());
    assert!(region.is_gone(1) && !region.is_gone(0));
    // Devices are asked only if there is a reason.
    assert!(!owners[1].presence.is_lost());
}
