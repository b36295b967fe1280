#![expect(
    unsafe_code,
    reason = "makes pairs of sockets that stand for an interface of the host"
)]

mod commands;
mod property;
mod receiving;
mod running;
mod sending;
mod tap;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libc::iovec;

use super::backend::{Interface, NetBackend, Offloads};
use super::device::feature;
use super::{HEADER, HardwareAddress, Net, NetParts, OffloadChoice};
use crate::virtio::rate_limiter::Limits;
use crate::virtio::testing::{Buffer, Driver, PATIENCE};

/// Where the buffers of frames are.
const DATA: u64 = 0x8_0000;
/// The first pair's queues.
const RX: usize = 0;
const TX: usize = 1;

/// No queue.
const NONE: [usize; 0] = [];

/// An interface of the host that is made of sockets which keep frames whole, as a tap does.
struct Fake {
    queues: Vec<FakeQueue>,
    state: Arc<FakeState>,
}

struct FakeQueue {
    ours: OwnedFd,
    attached: AtomicBool,
}

/// What a test sees and changes.
#[derive(Default)]
struct FakeState {
    offloads: std::sync::Mutex<Vec<Offloads>>,
    attached: std::sync::Mutex<Vec<(usize, bool)>>,
    reads: AtomicUsize,
    writes: AtomicUsize,
    /// What every write fails with, unless it is 0.
    write_error: AtomicI32,
    /// The same of reads.
    read_error: AtomicI32,
    /// Whether reads of queues that are not attached fail only when they are.
    late: AtomicBool,
    /// Whether queues refuse to be attached.
    stubborn: AtomicBool,
}

impl Interface for Fake {
    fn name(&self) -> &str {
        "fake0"
    }

    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn descriptor(&self, queue: usize) -> RawFd {
        self.queues[queue].ours.as_raw_fd()
    }

    unsafe fn read(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize> {
        self.state.reads.fetch_add(1, Ordering::SeqCst);
        let queue = &self.queues[queue];
        let error = match self.state.read_error.load(Ordering::SeqCst) {
            0 if !queue.attached.load(Ordering::SeqCst) => libc::EBADFD,
            error => error,
        };
        if error == libc::EBADFD && self.state.late.load(Ordering::SeqCst) {
            wait_for("being attached", || {
                queue.attached.load(Ordering::SeqCst).then_some(())
            });
        }
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let (fd, count) = (queue.ours.as_raw_fd(), buffers.len() as i32);
        // SAFETY: as the caller says.
        let read = unsafe { libc::readv(fd, buffers.as_ptr(), count) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    unsafe fn write(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize> {
        self.state.writes.fetch_add(1, Ordering::SeqCst);
        let queue = &self.queues[queue];
        let error = match self.state.write_error.load(Ordering::SeqCst) {
            0 if !queue.attached.load(Ordering::SeqCst) => libc::EBADFD,
            error => error,
        };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let (fd, count) = (queue.ours.as_raw_fd(), buffers.len() as i32);
        // SAFETY: as the caller says.
        let written = unsafe { libc::writev(fd, buffers.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn set_attached(&self, queue: usize, attached: bool) -> io::Result<()> {
        if attached && self.state.stubborn.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.queues[queue]
            .attached
            .store(attached, Ordering::SeqCst);
        self.state.attached.lock().unwrap().push((queue, attached));
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.state.offloads.lock().unwrap().push(offloads);
        Ok(())
    }

    fn knows_ufo(&self) -> bool {
        true
    }

    fn mtu(&self) -> io::Result<usize> {
        Ok(1500)
    }
}

/// The other end of an interface.
struct Peer {
    queues: Vec<OwnedFd>,
    state: Arc<FakeState>,
}

impl Peer {
    /// Sends what the device is to read.
    fn send_to(&self, queue: usize, bytes: &[u8]) {
        let fd = self.queues[queue].as_raw_fd();
        // SAFETY: the bytes are there.
        let sent = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    fn send(&self, bytes: &[u8]) {
        self.send_to(0, bytes);
    }

    /// What the device has written, if it has.
    fn take_from(&self, queue: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let fd = self.queues[queue].as_raw_fd();
        // SAFETY: there is as much room.
        let count = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
        let count = usize::try_from(count).ok()?;
        bytes.truncate(count);
        (count > 0).then_some(bytes)
    }

    fn wait_from(&self, queue: usize) -> Vec<u8> {
        wait_for("a frame", || self.take_from(queue))
    }

    fn wait(&self) -> Vec<u8> {
        self.wait_from(0)
    }

    fn offloads(&self) -> Offloads {
        *self.state.offloads.lock().unwrap().last().unwrap()
    }

    /// Which queues are attached, after all that was done.
    fn attached(&self) -> Vec<usize> {
        let mut attached = Vec::new();
        for (queue, is_attached) in self.state.attached.lock().unwrap().iter() {
            attached.retain(|other| other != queue);
            if *is_attached {
                attached.push(*queue);
            }
        }
        attached.sort_unstable();
        attached
    }
}

/// Waits for something.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn pair_of_sockets() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: there is room for two.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0);
    let [one, other] = fds;
    // SAFETY: it was just opened.
    let one = unsafe { OwnedFd::from_raw_fd(one) };
    // SAFETY: it was just opened.
    let other = unsafe { OwnedFd::from_raw_fd(other) };
    (one, other)
}

fn fake(pairs: u16) -> (Box<Fake>, Peer) {
    let state = Arc::new(FakeState::default());
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..pairs).map(|_| pair_of_sockets()).unzip();
    let queue = |ours| FakeQueue {
        ours,
        attached: AtomicBool::new(false),
    };
    let interface = Fake {
        queues: ours.into_iter().map(queue).collect(),
        state: Arc::clone(&state),
    };
    let peer = Peer {
        queues: theirs,
        state,
    };
    (Box::new(interface), peer)
}

const MAC: HardwareAddress = HardwareAddress([0x52, 0x54, 0, 1, 2, 3]);

fn parts(backend: NetBackend, pairs: u16) -> NetParts {
    NetParts {
        backend: Arc::new(backend),
        mac: MAC,
        mtu: Some(1400),
        pairs,
        queue_size: 64,
        offloads: OffloadChoice {
            checksums: true,
            tso: true,
            ufo: true,
        },
    }
}

fn unlimited(interface: Box<Fake>) -> NetBackend {
    NetBackend::new(interface, Limits::new(None, None), Limits::new(None, None))
}

/// A device with so many pairs, whose driver has not started it.
fn idle(pairs: u16) -> (Driver, Peer, Arc<NetBackend>) {
    let (interface, peer) = fake(pairs);
    let parts = parts(unlimited(interface), pairs);
    let backend = Arc::clone(&parts.backend);
    (Driver::new(Box::new(Net::new(parts))), peer, backend)
}

/// One whose driver has started it, without these features and with queues of at most so many entries.
fn started(without: u64, size: u16) -> (Driver, Peer, Arc<NetBackend>) {
    let (mut driver, peer, backend) = idle(1);
    driver.start(without, size);
    (driver, peer, backend)
}

/// A frame with an empty header, of so many bytes without it.
fn frame(seed: u8, length: usize) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ (at / 251) as u8 ^ seed;
    let header = [0; HEADER];
    header.into_iter().chain((0..length).map(byte)).collect()
}

fn readable(gpa: u64, length: u32) -> Buffer {
    Buffer {
        gpa,
        length,
        writable: false,
    }
}

fn writable(gpa: u64, length: u32) -> Buffer {
    Buffer {
        gpa,
        length,
        writable: true,
    }
}

/// Makes a buffer available for frames, at its own place: the head is its number.
fn post(driver: &mut Driver, number: u16, length: u32) {
    let gpa = DATA + u64::from(number) * 0x1000;
    driver.make_available(RX, number, &[writable(gpa, length)]);
}

/// The next frame that the driver gets, from buffers that `post` has made available, and how many it
/// had.
fn take_frame(driver: &mut Driver) -> (Vec<u8>, u16) {
    let part = |driver: &mut Driver| {
        let (head, length) = driver.wait_used(RX);
        driver.bytes(DATA + u64::from(head) * 0x1000, length as usize)
    };
    let mut bytes = part(driver);
    let count = u16::from_le_bytes([bytes[10], bytes[11]]);
    for _ in 1..count {
        let more = part(driver);
        bytes.extend(more);
    }
    bytes[10..12].fill(0);
    (bytes, count)
}

/// Sends a frame of one buffer, and waits until it is given back.
fn transmit(driver: &mut Driver, bytes: &[u8]) {
    driver.fill(DATA, bytes);
    driver.make_available(TX, 0, &[readable(DATA, bytes.len() as u32)]);
    driver.kick(TX);
    assert_eq!(driver.wait_used(TX), (0, 0));
}

/// The counters: bytes and frames received, then sent.
fn counted(backend: &NetBackend) -> [u64; 4] {
    let counters = backend.counters();
    ["rx_bytes", "rx_frames", "tx_bytes", "tx_frames"].map(|name| {
        let counter = counters.iter().find(|(other, _)| *other == name);
        counter.unwrap().1
    })
}
