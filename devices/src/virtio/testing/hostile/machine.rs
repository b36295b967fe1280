//! A machine in which a hostile driver runs.

use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use pci::{DmaTarget as _, Function as _};
use vm_memory::VolatileSlice;

use super::Subject;
use super::program::{
    AREA, AREA_SIZE, BUFFER_STEP, BUFFERS, INDIRECT, MOST_PARTS, Part, Place, Step, flag,
};
use super::shadow::{MEMORY, Rings, Shadow};
use super::watched::{Faults, Watched};
use crate::virtio::features;
use crate::virtio::testing::{Driver, Mapping, NOTIFY, RAM};

/// Bits of the device status (section 2.1).
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 64;

/// How long it is waited at most for a device that does not look at what it was told.
const REST: Duration = Duration::from_millis(50);

/// Where a program has put a queue.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    next: u16,
}

/// A machine with a device and a driver.
pub struct Machine {
    // First, so that the device is gone before the memory is.
    driver: Driver,
    area: Mapping,
    shadow: Shadow,
    contents: Vec<Vec<u8>>,
    faults: Faults,
    known: Vec<Known>,
    /// Numbers of the queues that the device has, while it runs.
    running: Option<Vec<usize>>,
    paused: bool,
}

impl Machine {
    pub fn new(subject: &mut dyn Subject) -> Self {
        let faults = Faults::default();
        let watched = Watched {
            device: subject.device(),
            faults: faults.clone(),
        };
        let driver = Driver::new(Box::new(watched));
        let area = Mapping::new(AREA_SIZE);
        driver.ram.memory.map(&area.at(AREA)).unwrap();
        let count = driver.region.notifications().len();
        Self {
            driver,
            area,
            shadow: Shadow::new(),
            contents: subject.contents(),
            faults,
            known: (0..count).map(place_of).collect(),
            running: None,
            paused: false,
        }
    }

    pub fn step(&mut self, step: &Step, subject: &mut dyn Subject) {
        match *step {
            Step::Write {
                offset,
                width,
                value,
            } => self.access(offset, &value.to_le_bytes()[..width.min(8).into()]),
            Step::Read { offset, width } => {
                let mut data = [0; 8];
                let data = &mut data[..width.min(8).into()];
                self.driver.read_into(offset.into(), data);
            }
            Step::WriteConfig {
                offset,
                width,
                value,
            } => {
                let (at, bytes) = aligned(offset, width);
                let value = value.to_le_bytes();
                self.driver.function.write_config(at, &value[..bytes]);
                self.observe();
            }
            Step::ReadConfig { offset, width } => {
                let (at, bytes) = aligned(offset, width);
                self.driver.function.read_config(at, &mut [0; 4][..bytes]);
            }
            Step::Fill { at, ref bytes } => self.write(self.address(at), bytes),
            Step::Describe {
                queue,
                at,
                buffer,
                length,
                flags,
                next,
            } => {
                let address = self.address(buffer);
                let table = self.known(queue).descriptors;
                let at = table.wrapping_add(u64::from(at) * 16);
                let descriptor = descriptor(address, length.bytes(), flags, next);
                self.write(at, &descriptor);
            }
            Step::Chain {
                queue,
                first,
                indirect,
                ref parts,
            } => self.make_chain(queue, first, indirect, parts),
            Step::Offer { queue, head } => self.offer(queue, head),
            Step::Jump { queue, by } => {
                let known = self.known(queue);
                let next = known.next.wrapping_add(by);
                known.next = next;
                let at = known.available.wrapping_add(2);
                self.write(at, &next.to_le_bytes());
            }
            Step::Event { queue, value } => {
                let Known {
                    size, available, ..
                } = *self.known(queue);
                self.write(available, &value.to_le_bytes());
                let at = available.wrapping_add(4 + u64::from(size) * 2);
                self.write(at, &value.to_le_bytes());
            }
            Step::Kick { queue } => {
                let index = self.index(queue);
                self.driver.region.notifications()[index]
                    .event
                    .write(1)
                    .unwrap();
            }
            Step::Notify { queue } => {
                let index = self.index(queue) as u16;
                self.access(NOTIFY as u16 + index * 4, &index.to_le_bytes());
            }
            Step::SetUp {
                queue,
                size,
                descriptors,
                available,
                used,
            } => {
                let known = Known {
                    size,
                    descriptors: self.address(descriptors),
                    available: self.address(available),
                    used: self.address(used),
                    next: 0,
                };
                self.set_up(self.index(queue), known);
            }
            Step::Negotiate { other } => self.negotiate(other),
            Step::DriverOk => {
                let status = self.driver.status();
                self.access(0x14, &[status | DRIVER_OK]);
            }
            Step::Start { without, exponent } => self.start(without, exponent),
            Step::Reset => self.access(0x14, &[0]),
            Step::Pause => {
                self.driver.function.pause();
                self.check();
                self.paused = self.running.is_some();
            }
            Step::Resume => {
                self.check();
                self.paused = false;
                self.driver.function.resume();
            }
            Step::Leave => {
                if !self.shadow.gone {
                    let memory = &self.driver.ram.memory;
                    memory.unmap(AREA, AREA_SIZE as u64).unwrap();
                    self.check();
                    self.shadow.gone = true;
                }
            }
            Step::Return => self.give_area_back(),
            Step::Rest => self.rest(),
            Step::Host { what } => subject.act(what),
        }
    }

    /// Ends the program, and looks at everything.
    pub fn finish(&mut self, subject: &mut dyn Subject) {
        self.check();
        self.paused = false;
        self.driver.function.resume();
        self.rest();
        self.access(0x14, &[0]);
        assert_eq!(self.driver.status(), 0, "it is reset");
        self.give_area_back();
        self.check();
        let faults = self.faults.take();
        assert!(faults.is_empty(), "{faults:?}");
        let secret = subject.secret();
        assert!(
            secret.is_empty() || !contains(&self.memory(), secret),
            "the driver has read what it may not"
        );
        self.driver.start(0, 16);
        subject.ask(&mut self.driver);
        subject.check_answer(&mut self.driver);
        let faults = self.faults.take();
        assert!(faults.is_empty(), "{faults:?}");
    }

    fn give_area_back(&mut self) {
        if self.shadow.gone {
            self.check();
            self.shadow.gone = false;
            let area = self.area.at(AREA);
            self.driver.ram.memory.map(&area).unwrap();
        }
    }

    fn index(&self, queue: u8) -> usize {
        usize::from(queue) % self.known.len()
    }

    fn known(&mut self, queue: u8) -> &mut Known {
        let index = self.index(queue);
        &mut self.known[index]
    }

    fn address(&self, place: Place) -> u64 {
        match place {
            Place::Buffer { slot, delta } => {
                (BUFFERS + u64::from(slot) * BUFFER_STEP).wrapping_add_signed(delta.into())
            }
            Place::Table { slot } => INDIRECT + u64::from(slot) * 0x200,
            Place::Queue {
                queue,
                part,
                offset,
            } => {
                let known = self.known[self.index(queue)];
                let start = [known.descriptors, known.available, known.used];
                start[usize::from(part % 3)].wrapping_add(offset.into())
            }
            Place::End { delta } => (MEMORY as u64).wrapping_add_signed(delta.into()),
            Place::Seam { delta } => AREA.wrapping_add_signed(delta.into()),
            Place::Any(address) => address,
        }
    }

    /// Writes a register, and looks at what has become of the device.
    fn access(&mut self, offset: u16, data: &[u8]) {
        self.driver.write(offset.into(), data);
        self.observe();
    }

    fn observe(&mut self) {
        let runs = self.driver.status() & DRIVER_OK != 0;
        if runs && self.running.is_none() {
            let rings = self.rings();
            self.running = Some(rings.iter().map(|(index, _)| *index).collect());
            let rings: Vec<_> = rings.into_iter().map(|(_, rings)| rings).collect();
            self.shadow.begin(&rings);
        } else if !runs && self.running.is_some() {
            // What it did up to then.
            self.check();
            self.running = None;
            self.paused = false;
            self.shadow.end();
        }
    }

    /// The queues that the device has.
    fn rings(&self) -> Vec<(usize, Rings)> {
        let driver = &self.driver;
        let selected: [u8; 2] = driver.read(0x16);
        let mut rings = Vec::new();
        for index in 0..self.known.len() {
            driver.write(0x16, &(index as u16).to_le_bytes());
            let enabled = u16::from_le_bytes(driver.read(0x1c)) == 1;
            let ring = Rings {
                descriptors: u64::from_le_bytes(driver.read(0x20)),
                used: u64::from_le_bytes(driver.read(0x30)),
                size: u16::from_le_bytes(driver.read(0x18)),
            };
            rings.extend(enabled.then_some((index, ring)));
        }
        driver.write(0x16, &selected);
        rings
    }

    fn negotiate(&mut self, other: u64) {
        self.access(0x14, &[0]);
        self.access(0x14, &[3]);
        let offered = self.driver.offered();
        self.driver.accept(offered ^ other);
        self.access(0x14, &[11]);
    }

    fn start(&mut self, without: u8, exponent: u8) {
        let choices = [
            features::INDIRECT_DESC,
            features::EVENT_IDX,
            self.driver.offered() & 0xff_ffff,
        ];
        let bits = choices.into_iter().enumerate();
        let bits = bits.filter(|(bit, _)| without >> bit & 1 == 1);
        self.negotiate(bits.fold(0, |other, (_, bits)| other | bits));
        for index in 0..self.known.len() {
            self.driver.write(0x16, &(index as u16).to_le_bytes());
            let most = u16::from_le_bytes(self.driver.read(0x18));
            let mut known = place_of(index);
            known.size = (1 << exponent.min(10)).min(most);
            self.write(known.descriptors, &[0; 0x8000]);
            self.set_up(index, known);
        }
        self.access(0x14, &[15]);
    }

    fn set_up(&mut self, index: usize, known: Known) {
        self.known[index] = known;
        self.access(0x16, &(index as u16).to_le_bytes());
        self.access(0x18, &known.size.to_le_bytes());
        self.access(0x1a, &(index as u16 + 1).to_le_bytes());
        self.access(0x20, &known.descriptors.to_le_bytes());
        self.access(0x28, &known.available.to_le_bytes());
        self.access(0x30, &known.used.to_le_bytes());
        self.access(0x1c, &1_u16.to_le_bytes());
    }

    fn make_chain(&mut self, queue: u8, first: u8, indirect: bool, parts: &[Part]) {
        let known = *self.known(queue);
        let count = parts.len().min(MOST_PARTS);
        let parts = &parts[..count];
        // A table of its own for each head.
        let own = INDIRECT + u64::from(first) * 0x200;
        let size = known.size.max(1);
        let (table, start, modulus) = match indirect {
            true => (own, 0, u16::MAX),
            false => (known.descriptors, u16::from(first) % size, size),
        };
        for (part, at) in parts.iter().zip(0_u16..) {
            let address = self.address(part.at);
            if let Some(content) = usize::from(part.content)
                .checked_sub(1)
                .and_then(|content| self.contents.get(content % self.contents.len().max(1)))
            {
                let content = content.clone();
                self.write(address, &content);
            }
            let mut flags = 0;
            for (bit, meaning) in [(flag::WRITABLE, 2), (flag::TABLE, 4)] {
                flags |= if part.flags & bit != 0 { meaning } else { 0 };
            }
            let is_last = usize::from(at) + 1 == count || part.flags & flag::ENDS != 0;
            let (more, next) = match part.flags & flag::LOOPS != 0 {
                true => (1, start),
                false => (u16::from(!is_last), start.wrapping_add(at + 1) % modulus),
            };
            let descriptor = descriptor(address, part.length.bytes(), flags | more, next);
            let at = start.wrapping_add(at) % modulus;
            self.write(table.wrapping_add(u64::from(at) * 16), &descriptor);
        }
        let head = u16::from(first) % size;
        if indirect {
            let whole = descriptor(own, count as u32 * 16, 4, 0);
            self.write(known.descriptors.wrapping_add(u64::from(head) * 16), &whole);
        }
        self.offer(queue, head);
    }

    fn offer(&mut self, queue: u8, head: u16) {
        let known = self.known(queue);
        let slot = u64::from(known.next % known.size.max(1)) * 2;
        known.next = known.next.wrapping_add(1);
        let Known {
            available, next, ..
        } = *known;
        self.write(available.wrapping_add(4 + slot), &head.to_le_bytes());
        self.write(available.wrapping_add(2), &next.to_le_bytes());
    }

    /// The driver writes memory, where there is some.
    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        let end = gpa.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > MEMORY as u64) {
            return;
        }
        self.shadow.write(gpa, bytes);
        let gpa = gpa as usize;
        let in_ram = RAM.saturating_sub(gpa).min(bytes.len());
        let (low, high) = bytes.split_at(in_ram);
        self.driver
            .ram
            .mapping
            .slice(gpa.min(RAM), low.len())
            .copy_from(low);
        let area = self.area.slice(gpa.saturating_sub(RAM), high.len());
        area.copy_from(high);
    }

    /// All memory as it is.
    fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; MEMORY];
        let (low, high) = memory.split_at_mut(RAM);
        self.driver.ram.mapping.slice(0, RAM).copy_to(low);
        self.area.slice(0, AREA_SIZE).copy_to(high);
        memory
    }

    fn check(&mut self) {
        let memory = self.memory();
        let may_write = self.running.is_some() && !self.paused;
        let checked = self.shadow.check(&memory, may_write);
        checked.unwrap_or_else(|what| panic!("{what}"));
    }

    /// Waits until the device has looked at what it was told, and has done it.
    fn rest(&mut self) {
        if self.paused || self.running.is_none() {
            // What is still under way comes now.
            thread::sleep(Duration::from_micros(300));
        }
        let (Some(queues), false) = (&self.running, self.paused) else {
            return;
        };
        let began = Instant::now();
        let notifications = self.driver.region.notifications();
        let is_told = || {
            let mut events = queues.iter().map(|index| &notifications[*index].event);
            events.any(|event| is_readable(event.as_raw_fd()))
        };
        for _ in 0..2 {
            while is_told() && self.driver.status() & NEEDS_RESET == 0 && began.elapsed() < REST {
                thread::sleep(Duration::from_micros(20));
            }
            self.driver.function.pause();
            self.driver.function.resume();
        }
    }
}

impl Mapping {
    fn slice(&self, at: usize, bytes: usize) -> VolatileSlice<'_> {
        assert!(at + bytes <= self.bytes);
        // SAFETY: it is in the mapping, which is there for as long as the slice is.
        unsafe { VolatileSlice::new(self.address().wrapping_byte_add(at), bytes) }
    }
}

/// Whether some bytes are among others; fast in builds that are not optimized, too.
fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    // SAFETY: both are there, and as long as is said.
    let found = unsafe {
        libc::memmem(
            bytes.as_ptr().cast(),
            bytes.len(),
            wanted.as_ptr().cast(),
            wanted.len(),
        )
    };
    !found.is_null()
}

fn is_readable(descriptor: std::os::fd::RawFd) -> bool {
    let mut asked = libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor, that is there.
    unsafe { libc::poll(&raw mut asked, 1, 0) == 1 }
}

/// Where a queue is by the rules.
fn place_of(index: usize) -> Known {
    let base = 0x1_0000 + index as u64 % 10 * 0x8000;
    Known {
        size: 16,
        descriptors: base,
        available: base + 0x4000,
        used: base + 0x6000,
        next: 0,
    }
}

/// An access as the machine makes them: 1, 2 or 4 bytes.
fn aligned(offset: u16, width: u8) -> (u16, usize) {
    let bytes = 1 << (width % 3);
    (offset & 0xfff & !(bytes - 1), bytes.into())
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}
