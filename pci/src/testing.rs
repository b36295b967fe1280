//! A device and a machine that remember what was asked of them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Device, DeviceError, DeviceRegion, IrqKind, region};
use crate::{
    AddressSpace, Bdf, MappableArea, MsiMessage, MsiSource, MsiVector, PlacedRegion, Region,
    ResampledLine, Space,
};

/// Something that a device was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read(u32, u64, usize),
    Write(u32, u64, Vec<u8>),
    SetIrqs(IrqKind, usize),
    UnmaskOn(RawFd),
    Reset,
}

/// How a device answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Willing,
    /// It refuses interrupts of this kind.
    RefusesIrqs(IrqKind),
    /// It refuses to be told of the end of INTx.
    RefusesUnmasking,
    RefusesReset,
    /// It refuses everything.
    RefusesAll,
    Lost,
}

/// A device whose registers keep whatever is written to them.
pub(crate) struct FakeDevice {
    pub regions: Vec<DeviceRegion>,
    pub irqs: [u32; 3],
    pub resettable: bool,
    pub mood: Mutex<Mood>,
    config: Mutex<Vec<u8>>,
    memory: Mutex<HashMap<(u32, u64), u8>>,
    calls: Mutex<Vec<Call>>,
    /// What is turned on, and where it goes.
    events: Mutex<Option<(IrqKind, Vec<Option<RawFd>>)>>,
}

impl FakeDevice {
    /// A device without BARs, with `config` for its configuration space.
    pub fn new(config: Vec<u8>) -> Self {
        let mut regions = vec![DeviceRegion::default(); region::COUNT as usize];
        regions[region::CONFIG as usize] = DeviceRegion {
            size: config.len() as u64,
            readable: true,
            writable: true,
            ..DeviceRegion::default()
        };
        Self {
            regions,
            irqs: [0; 3],
            resettable: true,
            mood: Mutex::default(),
            config: Mutex::new(config),
            memory: Mutex::default(),
            calls: Mutex::default(),
            events: Mutex::default(),
        }
    }

    /// Gives it a region with areas of these offsets and sizes.
    pub fn set_region(&mut self, index: u32, size: u64, areas: &[(u64, u64)]) {
        let file = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let area = |(offset, size): &(u64, u64)| MappableArea {
            offset: *offset,
            size: *size,
            file: Arc::clone(&file),
            file_offset: (u64::from(index) << 40) + offset,
            readable: true,
            writable: true,
        };
        self.regions[index as usize] = DeviceRegion {
            size,
            readable: true,
            writable: true,
            mappable: areas.iter().map(area).collect(),
            sparse: areas.iter().any(|(_, length)| *length != size),
        };
    }

    pub fn poke(&self, offset: usize, bytes: &[u8]) {
        self.config.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn peek<const N: usize>(&self, offset: usize) -> [u8; N] {
        *self.config.lock().unwrap()[offset..]
            .first_chunk()
            .expect("inside")
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// What was asked of it since the last time, without reads.
    pub fn requests(&self) -> Vec<Call> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.retain(|call| !matches!(call, Call::Read(..)));
        calls
    }

    /// What was asked of it since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// What is turned on, and where it goes.
    pub fn events(&self) -> Option<(IrqKind, Vec<Option<RawFd>>)> {
        self.events.lock().unwrap().clone()
    }

    fn answer(&self, call: Call) -> Result<(), DeviceError> {
        let refuses = match (*self.mood.lock().unwrap(), &call) {
            (Mood::Lost, _) => return Err(DeviceError::Lost(io::ErrorKind::BrokenPipe.into())),
            (Mood::RefusesIrqs(kind), Call::SetIrqs(asked, count)) => kind == *asked && *count > 0,
            (Mood::RefusesUnmasking, Call::UnmaskOn(_))
            | (Mood::RefusesReset, Call::Reset)
            | (Mood::RefusesAll, _) => true,
            _ => false,
        };
        self.calls.lock().unwrap().push(call);
        match refuses {
            true => Err(DeviceError::Refused(io::ErrorKind::Unsupported.into())),
            false => Ok(()),
        }
    }

    /// A function must not ask for what devices cannot do.
    fn check(&self, index: u32, offset: u64, length: usize) {
        let most = if index == region::CONFIG { 4 } else { 8 };
        assert!(length.is_power_of_two() && length <= most, "{length}");
        assert!(offset.is_multiple_of(length as u64), "{offset:#x} {length}");
        assert!(offset + length as u64 <= self.regions[index as usize].size);
    }
}

impl Device for FakeDevice {
    fn region(&self, index: u32) -> &DeviceRegion {
        &self.regions[index as usize]
    }

    fn irqs(&self, kind: IrqKind) -> u32 {
        self.irqs[kind.index() as usize]
    }

    fn read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        self.check(index, offset, data.len());
        // What is left there by a failure must not be seen.
        data.fill(0x5a);
        self.answer(Call::Read(index, offset, data.len()))?;
        if index == region::CONFIG {
            let config = self.config.lock().unwrap();
            data.copy_from_slice(&config[offset as usize..offset as usize + data.len()]);
        } else {
            let memory = self.memory.lock().unwrap();
            for (at, byte) in (offset..).zip(data) {
                *byte = memory.get(&(index, at)).copied().unwrap_or(at as u8);
            }
        }
        Ok(())
    }

    fn write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.check(index, offset, data.len());
        self.answer(Call::Write(index, offset, data.to_vec()))?;
        if index == region::CONFIG {
            self.poke(offset as usize, data);
        } else {
            let mut memory = self.memory.lock().unwrap();
            memory.extend((offset..).zip(data).map(|(at, byte)| ((index, at), *byte)));
        }
        Ok(())
    }

    fn set_irqs(&self, kind: IrqKind, events: &[Option<&EventFd>]) -> Result<(), DeviceError> {
        let mut on = self.events.lock().unwrap();
        assert!(events.len() <= self.irqs[kind.index() as usize] as usize);
        self.answer(Call::SetIrqs(kind, events.len()))?;
        let other = on.as_ref().is_some_and(|(on, _)| *on != kind);
        assert!(!other, "{kind:?} while {on:?} is on");
        let events: Vec<_> = events.iter().map(|e| e.map(|e| e.as_raw_fd())).collect();
        *on = (!events.is_empty()).then_some((kind, events));
        Ok(())
    }

    fn unmask_intx_on(&self, event: &EventFd) -> Result<(), DeviceError> {
        let on = self.events.lock().unwrap();
        assert!(matches!(*on, Some((IrqKind::Intx, _))));
        self.answer(Call::UnmaskOn(event.as_raw_fd()))
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        panic!("the line does that");
    }

    fn can_reset(&self) -> bool {
        self.resettable
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.answer(Call::Reset)?;
        assert_eq!(*self.events.lock().unwrap(), None, "interrupts are off");
        Ok(())
    }
}

/// An address space, in which a region is not placed before accesses to its old place have ended.
#[derive(Default)]
pub(crate) struct FakeSpace {
    slots: Mutex<Vec<Arc<Slot>>>,
    /// Whether a region may be where another one is.
    overlaps: bool,
    /// How often a region was placed.
    pub moves: AtomicUsize,
    /// Taken by those who want no region to be placed.
    pub placing: Mutex<()>,
}

pub(crate) struct Slot {
    pub space: Space,
    pub region: Arc<dyn Region>,
    at: RwLock<Option<u64>>,
    gone: AtomicBool,
}

impl Slot {
    pub fn at(&self) -> Option<u64> {
        *self.at.read().unwrap()
    }
}

struct Placed {
    slot: Arc<Slot>,
    space: Weak<FakeSpace>,
}

/// An address space that can be shared with a function.
pub(crate) struct SharedSpace(pub Arc<FakeSpace>);

impl FakeSpace {
    /// One in which regions may be where others are.
    pub fn with_overlaps() -> Self {
        Self {
            overlaps: true,
            ..Self::default()
        }
    }

    /// Where the regions are that it was given, in that order.
    pub fn places(&self) -> Vec<Option<u64>> {
        self.slots.lock().unwrap().iter().map(|s| s.at()).collect()
    }

    pub fn slot(&self, index: usize) -> Arc<Slot> {
        Arc::clone(&self.slots.lock().unwrap()[index])
    }

    /// Whether all regions were taken back.
    pub fn is_empty(&self) -> bool {
        let slots = self.slots.lock().unwrap();
        slots.iter().all(|slot| slot.gone.load(Ordering::SeqCst))
    }

    fn find(&self, space: Space, address: u64) -> Option<Arc<Slot>> {
        let slots = self.slots.lock().unwrap();
        let hit = |slot: &&Arc<Slot>| {
            let offset = slot.at().and_then(|at| address.checked_sub(at));
            slot.space == space && offset.is_some_and(|offset| offset < slot.region.size())
        };
        slots.iter().find(hit).cloned()
    }

    /// A vCPU's read, which is ones where nothing is.
    pub fn read(&self, space: Space, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(slot) = self.find(space, address) {
            // Held during the access, so that nobody moves the region meanwhile.
            let at = slot.at.read().unwrap();
            if let Some(offset) = at.and_then(|at| address.checked_sub(at)) {
                slot.region.read(offset, data);
            }
        }
    }

    /// A vCPU's write.
    pub fn write(&self, space: Space, address: u64, data: &[u8]) {
        if let Some(slot) = self.find(space, address) {
            let at = slot.at.read().unwrap();
            if let Some(offset) = at.and_then(|at| address.checked_sub(at)) {
                slot.region.write(offset, data);
            }
        }
    }
}

impl AddressSpace for SharedSpace {
    fn add(&self, space: Space, region: Arc<dyn Region>) -> io::Result<Box<dyn PlacedRegion>> {
        if space == Space::Memory {
            assert!(region.size().is_power_of_two());
        }
        let slot = Arc::new(Slot {
            space,
            region,
            at: RwLock::new(None),
            gone: AtomicBool::new(false),
        });
        self.0.slots.lock().unwrap().push(Arc::clone(&slot));
        Ok(Box::new(Placed {
            slot,
            space: Arc::downgrade(&self.0),
        }))
    }
}

impl PlacedRegion for Placed {
    fn place(&self, address: Option<u64>) -> io::Result<()> {
        let space = self.space.upgrade().expect("the machine is there");
        let _placing = space.placing.lock().unwrap();
        space.moves.fetch_add(1, Ordering::SeqCst);
        *self.slot.at.write().unwrap() = None;
        if let Some(address) = address {
            let end = address.checked_add(self.slot.region.size() - 1).unwrap();
            let slots = space.slots.lock().unwrap();
            let taken = slots.iter().any(|slot| {
                let there = slot.at().filter(|_| slot.space == self.slot.space);
                there.is_some_and(|at| at <= end && address <= at + (slot.region.size() - 1))
            });
            if taken && !space.overlaps {
                return Err(io::ErrorKind::AddrInUse.into());
            }
        }
        *self.slot.at.write().unwrap() = address;
        Ok(())
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.slot.gone.store(true, Ordering::SeqCst);
    }
}

/// Where interrupts come from.
pub(crate) struct FakeMsi {
    vectors: Mutex<Vec<Weak<FakeVector>>>,
    /// Vectors that there is room for.
    pub room: usize,
}

pub(crate) struct FakeVector {
    event: EventFd,
    message: Mutex<Option<MsiMessage>>,
}

impl FakeVector {
    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub fn message(&self) -> Option<MsiMessage> {
        *self.message.lock().unwrap()
    }
}

impl FakeMsi {
    pub fn new(room: usize) -> Self {
        Self {
            vectors: Mutex::default(),
            room,
        }
    }

    /// Vectors in use, in the order in which they were asked for.
    pub fn vectors(&self) -> Vec<Arc<FakeVector>> {
        let vectors = self.vectors.lock().unwrap();
        vectors.iter().filter_map(Weak::upgrade).collect()
    }
}

impl MsiSource for FakeMsi {
    fn vector(&self, _bdf: Bdf) -> io::Result<Arc<dyn MsiVector>> {
        if self.vectors().len() >= self.room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let vector = Arc::new(FakeVector {
            event: EventFd::new(EFD_NONBLOCK)?,
            message: Mutex::new(None),
        });
        self.vectors.lock().unwrap().push(Arc::downgrade(&vector));
        Ok(vector)
    }
}

impl MsiVector for FakeVector {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn set_message(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.message.lock().unwrap() = message;
        Ok(())
    }
}

/// A wired interrupt.
pub(crate) struct FakeLine {
    trigger: EventFd,
    resample: EventFd,
}

impl FakeLine {
    pub fn new() -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            trigger: event(),
            resample: event(),
        }
    }
}

impl ResampledLine for FakeLine {
    fn trigger(&self) -> &EventFd {
        &self.trigger
    }

    fn resample(&self) -> &EventFd {
        &self.resample
    }
}
