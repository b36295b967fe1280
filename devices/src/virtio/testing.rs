//! A machine and a driver for tests: memory, a PCI function that is reached through its BAR as guests
//! reach it, and queues that are filled by hand, rightly or wrongly.
#![expect(unsafe_code, reason = "maps memory for guests")]
#![cfg_attr(
    feature = "testing",
    expect(missing_docs, reason = "most are named as what the specification has")
)]

pub mod hostile;

use std::collections::BTreeMap;
use std::io;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pci::config_space::Identity;
use pci::{
    AddressSpace, Bdf, DmaArea, DmaTarget, Function, MsiMessage, MsiSource, MsiVector,
    PlacedRegion, Region, Space,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Device, GuestMemory, VirtioFunction, VirtioParts, features};

/// Bytes of RAM, from address 0.
pub const RAM: usize = 1 << 20;
/// Where the BAR is.
const BAR: u64 = 0x1_0000_0000;
/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Anonymous memory, with a page on each side that nobody may touch.
struct Mapping {
    whole: *mut u8,
    bytes: usize,
}

/// Bytes of the pages beside it.
const GUARD: usize = 64 << 10;

// SAFETY: it owns what its address names, and gives it away as a number and by copies alone.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, that nobody else has.
        let whole =
            unsafe { libc::mmap(null_mut(), bytes + 2 * GUARD, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(whole, libc::MAP_FAILED);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a part of the mapping of before.
        let opened = unsafe { libc::mprotect(whole.wrapping_byte_add(GUARD), bytes, protection) };
        assert_eq!(opened, 0);
        Self {
            whole: whole.cast(),
            bytes,
        }
    }

    fn address(&self) -> *mut u8 {
        self.whole.wrapping_byte_add(GUARD)
    }

    /// What a device reaches of it from `gpa` on.
    fn at(&self, gpa: u64) -> DmaArea {
        DmaArea {
            gpa,
            size: self.bytes as u64,
            host_address: self.address() as usize,
            file: None,
            writable: true,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody reaches it any more.
        unsafe { libc::munmap(self.whole.cast(), self.bytes + 2 * GUARD) };
    }
}

/// Memory that goes with it.
pub struct Ram {
    mapping: Mapping,
    pub memory: Arc<GuestMemory>,
}

impl Default for Ram {
    fn default() -> Self {
        let mapping = Mapping::new(RAM);
        let memory = Arc::new(GuestMemory::default());
        memory.map(&mapping.at(0)).unwrap();
        Self { mapping, memory }
    }
}

impl Ram {
    /// Other memory of the same bytes comes in its place, as that of a device that is moved does.
    pub fn replace(&mut self) {
        let mapping = Mapping::new(self.mapping.bytes);
        let (from, to) = (self.mapping.address(), mapping.address());
        // SAFETY: both are as long, and neither is a part of the other. Of memory there are no references.
        unsafe { std::ptr::copy_nonoverlapping(from, to, mapping.bytes) };
        self.memory.unmap(0, mapping.bytes as u64).unwrap();
        self.memory.map(&mapping.at(0)).unwrap();
        self.mapping = mapping;
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        self.memory.unmap(0, self.mapping.bytes as u64).unwrap();
    }
}

/// Where a region is.
type Places = Arc<Mutex<BTreeMap<u64, Arc<dyn Region>>>>;

/// The address space of a machine.
#[derive(Default)]
pub struct FakeSpace(Places);

struct FakePlace {
    places: Places,
    region: Arc<dyn Region>,
    at: Mutex<Option<u64>>,
}

impl AddressSpace for FakeSpace {
    fn add(&self, _: Space, region: Arc<dyn Region>) -> io::Result<Box<dyn PlacedRegion>> {
        Ok(Box::new(FakePlace {
            places: Arc::clone(&self.0),
            region,
            at: Mutex::default(),
        }))
    }
}

impl PlacedRegion for FakePlace {
    fn place(&self, address: Option<u64>) -> io::Result<()> {
        let mut at = self.at.lock().unwrap();
        let mut places = self.places.lock().unwrap();
        if let Some(old) = at.take() {
            places.remove(&old);
        }
        if let Some(address) = address {
            places.insert(address, Arc::clone(&self.region));
        }
        *at = address;
        Ok(())
    }
}

/// Events of vectors, by the addresses of their messages, which are the test's own.
type Sent = Arc<Mutex<BTreeMap<u64, EventFd>>>;

/// Message-signalled interrupts that are counted.
#[derive(Default)]
pub struct FakeMsi(Sent);

struct FakeVector {
    event: EventFd,
    sent: Sent,
}

impl MsiVector for FakeVector {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn set_message(&self, message: Option<MsiMessage>) -> io::Result<()> {
        if let Some(message) = message {
            let mut vectors = self.sent.lock().unwrap();
            // Tests know vectors by what they have put in the message.
            vectors.insert(message.address, self.event.try_clone()?);
        }
        Ok(())
    }
}

impl MsiSource for FakeMsi {
    fn vector(&self, _: Bdf) -> io::Result<Arc<dyn MsiVector>> {
        Ok(Arc::new(FakeVector {
            event: EventFd::new(EFD_NONBLOCK)?,
            sent: Arc::clone(&self.0),
        }))
    }
}

/// A request's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub gpa: u64,
    pub length: u32,
    pub writable: bool,
}

/// A queue, from the driver's side.
#[derive(Clone, Copy, Debug)]
pub struct DriverQueue {
    pub index: u16,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    next: u16,
    taken: u16,
}

/// A driver with its device.
pub struct Driver {
    pub function: VirtioFunction,
    region: Arc<dyn Region>,
    pub ram: Ram,
    pub queues: Vec<DriverQueue>,
    sent: Sent,
}

/// Offsets in the BAR.
const ISR: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;

/// Where the message of a vector goes.
fn message(vector: u16) -> u64 {
    0xfee0_0000 + u64::from(vector) * 16
}

impl Driver {
    /// Finds the device and turns it on, as far as PCI goes.
    pub fn new(device: Box<dyn Device>) -> Self {
        let ram = Ram::default();
        let space = FakeSpace::default();
        let sent = Sent::default();
        let vectors = device.queue_sizes().len() as u64 + 1;
        let function = VirtioFunction::new(VirtioParts {
            id: "under test".to_owned(),
            device,
            identity: Identity {
                vendor: 0x1af4,
                device: 0x1044,
                revision: 1,
                class: 0x00_ff_00,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
            },
            bdf: Bdf {
                segment: 0,
                device: 1,
            },
            address: BAR,
            space: &space,
            msi: Arc::new(FakeMsi(Arc::clone(&sent))),
            memory: Arc::clone(&ram.memory),
        })
        .unwrap();
        // Memory decoding and bus mastering.
        function.write_config(4, &6_u16.to_le_bytes());
        let region = space.0.lock().unwrap().get(&BAR).cloned().unwrap();
        let driver = Self {
            function,
            region,
            ram,
            queues: Vec::new(),
            sent,
        };
        for vector in 0..vectors {
            let entry = TABLE + vector * 16;
            driver.write(entry, &message(vector as u16).to_le_bytes());
            driver.write(entry + 12, &0_u32.to_le_bytes());
        }
        let msix = driver.capability(0x11).unwrap();
        driver
            .function
            .write_config(msix + 2, &0x8000_u16.to_le_bytes());
        driver
    }

    /// Where a capability lies in configuration space.
    pub fn capability(&self, id: u8) -> Option<u16> {
        let byte = |at: u16| {
            let mut data = [0];
            self.function.read_config(at, &mut data);
            data[0]
        };
        let mut at = u16::from(byte(0x34));
        while at != 0 {
            if byte(at) == id {
                return Some(at);
            }
            at = byte(at + 1).into();
        }
        None
    }

    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xa5; N];
        self.region.read(offset, &mut data);
        data
    }

    pub fn read_into(&self, offset: u64, data: &mut [u8]) {
        self.region.read(offset, data);
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        self.region.write(offset, data);
    }

    pub fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    pub fn set_status(&self, status: u8) {
        self.write(0x14, &[status]);
    }

    /// Features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.write(0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read(4)))
        };
        half(0) | half(1) << 32
    }

    pub fn accept(&self, features: u64) {
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            self.write(8, &select.to_le_bytes());
            self.write(12, &half.to_le_bytes());
        }
    }

    /// Negotiates everything but `without`, sets all queues up with `size` entries at most, and starts.
    pub fn start(&mut self, without: u64, size: u16) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        let offered = self.offered();
        assert_ne!(offered & features::VERSION_1, 0);
        self.accept(offered & !without);
        self.set_status(11);
        assert_eq!(self.status(), 11, "it takes back what it offered");
        self.set_up(size);
        self.set_status(15);
    }

    /// Sets all queues up, each in a part of memory of its own, from 64 KiB on.
    pub fn set_up(&mut self, size: u16) {
        self.queues.clear();
        self.write(0x10, &0_u16.to_le_bytes());
        let count = u16::from_le_bytes(self.read(0x12));
        for index in 0..count {
            self.write(0x16, &index.to_le_bytes());
            let size = size.min(u16::from_le_bytes(self.read(0x18)));
            let base = 0x1_0000 + u64::from(index) * 0x8000;
            let queue = DriverQueue {
                index,
                size,
                descriptors: base,
                available: base + 0x4000,
                used: base + 0x6000,
                next: 0,
                taken: 0,
            };
            self.fill(base, &[0; 0x8000]);
            self.write(0x18, &size.to_le_bytes());
            self.write(0x1a, &(index + 1).to_le_bytes());
            self.write(0x20, &queue.descriptors.to_le_bytes());
            // In halves, as some drivers do it.
            self.write(0x28, &(queue.available as u32).to_le_bytes());
            self.write(0x2c, &((queue.available >> 32) as u32).to_le_bytes());
            self.write(0x30, &queue.used.to_le_bytes());
            self.write(0x1c, &1_u16.to_le_bytes());
            assert_eq!(u16::from_le_bytes(self.read(0x1c)), 1);
            self.queues.push(queue);
        }
    }

    pub fn fill(&self, gpa: u64, bytes: &[u8]) {
        use vm_memory::{Bytes as _, GuestAddress};
        let memory = self.ram.memory.get();
        memory.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub fn bytes(&self, gpa: u64, length: usize) -> Vec<u8> {
        use vm_memory::{Bytes as _, GuestAddress};
        let mut bytes = vec![0; length];
        let memory = self.ram.memory.get();
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    fn u16_at(&self, gpa: u64) -> u16 {
        let bytes = self.bytes(gpa, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Writes a descriptor.
    pub fn describe(&self, queue: usize, at: u16, buffer: Buffer, flags: u16, next: u16) {
        let mut bytes = buffer.gpa.to_le_bytes().to_vec();
        bytes.extend(buffer.length.to_le_bytes());
        let flags = flags | if buffer.writable { 2 } else { 0 };
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.fill(self.queues[queue].descriptors + u64::from(at) * 16, &bytes);
    }

    /// Makes a chain of descriptors from `first` on available, without telling.
    pub fn make_available(&mut self, queue: usize, first: u16, buffers: &[Buffer]) {
        let size = self.queues[queue].size;
        for (at, buffer) in (first..).zip(buffers) {
            let last = usize::from(at - first) + 1 == buffers.len();
            let flags = if last { 0 } else { 1 };
            self.describe(queue, at % size, *buffer, flags, (at + 1) % size);
        }
        self.offer(queue, first);
    }

    /// Makes a request available whose descriptors are in a table of their own, without telling.
    pub fn make_table_available(
        &mut self,
        queue: usize,
        head: u16,
        table: u64,
        buffers: &[Buffer],
    ) {
        let mut bytes = Vec::new();
        for (buffer, next) in buffers.iter().zip(1_u16..) {
            let more = u16::from(usize::from(next) < buffers.len());
            bytes.extend(buffer.gpa.to_le_bytes());
            bytes.extend(buffer.length.to_le_bytes());
            bytes.extend((more | u16::from(buffer.writable) << 1).to_le_bytes());
            bytes.extend(next.to_le_bytes());
        }
        self.fill(table, &bytes);
        let whole = Buffer {
            gpa: table,
            length: bytes.len() as u32,
            writable: false,
        };
        self.describe(queue, head, whole, 4, 0);
        self.offer(queue, head);
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let DriverQueue {
            available,
            size,
            next,
            ..
        } = self.queues[queue];
        let slot = available + 4 + u64::from(next % size) * 2;
        self.fill(slot, &head.to_le_bytes());
        let next = next.wrapping_add(1);
        self.queues[queue].next = next;
        self.fill(available + 2, &next.to_le_bytes());
    }

    /// Tells the device of what is available, by its event, as KVM does.
    pub fn kick(&self, queue: usize) {
        let offset = NOTIFY + u64::from(self.queues[queue].index) * 4;
        let mut notifications = self.region.notifications().iter();
        let notification = notifications.find(|notification| notification.offset == offset);
        notification.unwrap().event.write(1).unwrap();
    }

    /// The same, by a write that came to us.
    pub fn kick_by_register(&self, queue: usize) {
        let index = self.queues[queue].index;
        self.write(NOTIFY + u64::from(index) * 4, &index.to_le_bytes());
    }

    /// What the device has given back next, if anything: head and bytes written.
    pub fn take_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let DriverQueue {
            used, size, taken, ..
        } = self.queues[queue];
        if self.u16_at(used + 2) == taken {
            return None;
        }
        let bytes = self.bytes(used + 4 + u64::from(taken % size) * 8, 8);
        self.queues[queue].taken = taken.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }

    /// Waits for what the device gives back.
    pub fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            assert!(start.elapsed() < PATIENCE, "nothing comes back");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// How often the interrupt of a vector was sent since this was last called.
    pub fn interrupts(&self, vector: u16) -> u64 {
        let sent = self.sent.lock().unwrap();
        let event = sent.get(&message(vector));
        event.and_then(|event| event.read().ok()).unwrap_or(0)
    }

    /// Waits for an interrupt.
    pub fn wait_interrupt(&self, vector: u16) {
        let start = Instant::now();
        while self.interrupts(vector) == 0 {
            assert!(start.elapsed() < PATIENCE, "no interrupt");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Reads the interrupt status, which clears it.
    pub fn isr(&self) -> u8 {
        self.read::<1>(ISR)[0]
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_for_fault(&self) {
        let start = Instant::now();
        while self.status() & 64 == 0 {
            assert!(start.elapsed() < PATIENCE, "the device goes on");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
