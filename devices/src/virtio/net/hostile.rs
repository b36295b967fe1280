//! What hostile drivers find: an interface of the host that is made of sockets which keep frames whole, as
//! a tap does. It fails now and then, and looks at what it is given.
#![expect(
    unsafe_code,
    reason = "makes pairs of sockets that stand for an interface of the host"
)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use libc::iovec;

use super::{
    HEADER, HardwareAddress, Interface, LARGEST, Net, NetBackend, NetParts, OffloadChoice, Offloads,
};
use crate::virtio::Device;
use crate::virtio::rate_limiter::Limits;
use crate::virtio::testing::hostile::Subject;
use crate::virtio::testing::{Buffer, Driver, PATIENCE};

const PAIRS: usize = 2;
/// Queues of the device: those of the first pair, where the second receives, and control.
const RX: usize = 0;
const TX: usize = 1;
const SECOND_RX: usize = 2;
const CONTROL: usize = 2 * PAIRS;

/// Where frames to the guest go, in buffers of so many bytes; one more is for the second pair.
const RECEIVED: u64 = 0x8_0000;
const LENGTH: u32 = 0x800;
const BUFFERS: u16 = 8;
const SECOND: u64 = 0x9_0000;
/// Where its own frame is, and its command with the answer.
const SENT: u64 = 0xa_0000;
const COMMAND: u64 = 0xb_0000;
const ANSWER: u64 = 0xb_1000;

/// Bytes of frames that the host has by the rules, without header: one is for several buffers.
const BY_THE_RULES: [usize; 3] = [100, 1000, 5000];
/// Bytes of any that it has, with header.
const ANY: [usize; 9] = [5, HEADER, 13, 72, 1526, 9026, 65562, LARGEST, LARGEST + 1];

/// A queue of the interface: the device's end, the host's end, and whether it is attached.
struct Queue {
    ours: OwnedFd,
    theirs: OwnedFd,
    attached: AtomicBool,
}

/// An interface of the host, both ends of it.
struct Wire {
    queues: Vec<Queue>,
    /// So many of the next frames are lost.
    failures: AtomicU64,
    /// The next queue but the first that is to be attached is not.
    refuses: AtomicBool,
    /// Where a frame is read there is another one.
    flooded: AtomicBool,
    /// Frames that were written.
    written: AtomicU64,
    /// What no driver may bring about.
    complaints: Mutex<Vec<String>>,
}

impl Wire {
    fn new() -> Self {
        let queue = |_| {
            let (ours, theirs) = pair_of_sockets();
            Queue {
                ours,
                theirs,
                attached: AtomicBool::new(false),
            }
        };
        Self {
            queues: (0..PAIRS).map(queue).collect(),
            failures: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            flooded: AtomicBool::new(false),
            written: AtomicU64::new(0),
            complaints: Mutex::default(),
        }
    }

    fn complain(&self, what: String) {
        self.complaints.lock().unwrap().push(what);
    }

    /// The host has a frame. As with a tap, it is lost if nobody is there or there is no room.
    fn send(&self, queue: usize, frame: &[u8]) {
        let queue = &self.queues[queue];
        if queue.attached.load(Ordering::SeqCst) {
            let fd = queue.theirs.as_raw_fd();
            // SAFETY: the bytes are there.
            unsafe { libc::write(fd, frame.as_ptr().cast(), frame.len()) };
        }
    }

    /// What the device has written, if it has.
    fn take(&self, queue: usize) -> Option<Vec<u8>> {
        read_frame(&self.queues[queue].theirs)
    }

    /// Why the next frame cannot be moved, if it cannot.
    fn failure(&self, queue: &Queue) -> Option<io::Error> {
        if !queue.attached.load(Ordering::SeqCst) {
            return Some(io::Error::from_raw_os_error(libc::EBADFD));
        }
        let one_less = |left: u64| left.checked_sub(1);
        let failures = &self.failures;
        let failed = failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        failed.ok().map(|_| io::Error::from_raw_os_error(libc::EIO))
    }

    /// What a call has returned. Whoever gives it addresses that are not there, or too many, is at fault.
    fn moved(&self, what: &str, count: isize) -> io::Result<usize> {
        usize::try_from(count).map_err(|_| {
            let error = io::Error::last_os_error();
            if let Some(libc::EFAULT | libc::EINVAL | libc::EMSGSIZE) = error.raw_os_error() {
                self.complain(format!("a frame cannot be {what}: {error}"));
            }
            error
        })
    }
}

impl Interface for Arc<Wire> {
    fn name(&self) -> &str {
        "hostile0"
    }

    fn queues(&self) -> usize {
        PAIRS
    }

    fn descriptor(&self, queue: usize) -> RawFd {
        self.queues[queue].ours.as_raw_fd()
    }

    unsafe fn read(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize> {
        let number = queue;
        let queue = &self.queues[number];
        if let Some(error) = self.failure(queue) {
            return Err(error);
        }
        let (fd, count) = (queue.ours.as_raw_fd(), buffers.len() as i32);
        // SAFETY: as the caller says.
        let read = self.moved("read", unsafe { libc::readv(fd, buffers.as_ptr(), count) });
        if read.is_ok() && self.flooded.load(Ordering::SeqCst) {
            self.send(number, &frame(100));
        }
        read
    }

    unsafe fn write(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize> {
        let queue = &self.queues[queue];
        let length: usize = buffers.iter().map(|buffer| buffer.iov_len).sum();
        if !(HEADER + 1..=LARGEST).contains(&length) {
            self.complain(format!("a frame of {length} bytes is written"));
        }
        if let Some(error) = self.failure(queue) {
            return Err(error);
        }
        let (fd, count) = (queue.ours.as_raw_fd(), buffers.len() as i32);
        // SAFETY: as the caller says.
        let written = unsafe { libc::writev(fd, buffers.as_ptr(), count) };
        let written = self.moved("written", written)?;
        self.written.fetch_add(1, Ordering::SeqCst);
        Ok(written)
    }

    fn set_attached(&self, queue: usize, attached: bool) -> io::Result<()> {
        let refuses = attached && queue > 0 && self.refuses.swap(false, Ordering::SeqCst);
        if refuses {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let number = queue;
        let queue = &self.queues[number];
        queue.attached.store(attached, Ordering::SeqCst);
        if !attached {
            while read_frame(&queue.ours).is_some() {}
        } else if self.flooded.load(Ordering::SeqCst) {
            self.send(number, &frame(100));
        }
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let Offloads {
            checksums,
            tso4,
            tso6,
            ecn,
            ufo,
        } = offloads;
        if !checksums && (tso4 || tso6 || ufo) || ecn && !tso4 && !tso6 {
            self.complain(format!("no host can do this: {offloads:?}"));
        }
        let attached = |queue: &Queue| queue.attached.load(Ordering::SeqCst);
        if !self.queues.iter().any(attached) {
            self.complain("offloads of an interface without queues".to_owned());
        }
        Ok(())
    }

    fn knows_ufo(&self) -> bool {
        true
    }

    fn mtu(&self) -> io::Result<usize> {
        Ok(1500)
    }
}

fn pair_of_sockets() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: there is room for two.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    // SAFETY: they were just opened, and nobody else has them.
    fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into()
}

fn read_frame(end: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; LARGEST + 1];
    // SAFETY: there is as much room.
    let count = unsafe { libc::read(end.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes.truncate(usize::try_from(count).ok()?);
    Some(bytes)
}

/// A frame with an empty header, of so many bytes without it.
fn frame(length: usize) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ (at / 251) as u8;
    let header = [0; HEADER];
    header.into_iter().chain((0..length).map(byte)).collect()
}

/// A network interface, from the host's side.
pub struct Host {
    wire: Arc<Wire>,
    backend: Arc<NetBackend>,
}

impl Host {
    pub fn new() -> Self {
        let wire = Arc::new(Wire::new());
        let unlimited = || Limits::new(None, None);
        let interface = Box::new(Arc::clone(&wire));
        let backend = NetBackend::new(interface, unlimited(), unlimited());
        Self {
            wire,
            backend: Arc::new(backend),
        }
    }

    fn wait_sent(&self) -> Vec<u8> {
        let began = Instant::now();
        loop {
            if let Some(sent) = self.wire.take(0) {
                return sent;
            }
            assert!(began.elapsed() < PATIENCE, "nothing is sent");
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// A frame that the driver has been given, in the buffers of `ask`.
fn take_frame(driver: &mut Driver) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = 1;
    while left > 0 {
        let (head, written) = driver.wait_used(RX);
        assert!((1..=LENGTH).contains(&written), "{written}");
        let at = RECEIVED + u64::from(head) * u64::from(LENGTH);
        let part = driver.bytes(at, written as usize);
        if bytes.is_empty() {
            left = u16::from_le_bytes([part[10], part[11]]);
            assert!((1..=BUFFERS).contains(&left), "{left} buffers");
        }
        bytes.extend(part);
        left -= 1;
    }
    bytes[10..12].fill(0);
    bytes
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

impl Subject for Host {
    fn device(&mut self) -> Box<dyn Device> {
        Box::new(Net::new(NetParts {
            backend: Arc::clone(&self.backend),
            mac: HardwareAddress([0x52, 0x54, 0, 1, 2, 3]),
            mtu: Some(1500),
            pairs: PAIRS as u16,
            queue_size: 64,
            offloads: OffloadChoice {
                checksums: true,
                tso: true,
                ufo: true,
            },
        }))
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        let mut contents = Vec::new();
        for pairs in [1_u16, 2, 0, 3, u16::MAX] {
            contents.push([&[4, 0], &pairs.to_le_bytes()[..]].concat());
        }
        for offloads in [0_u64, 2, 0x782, 0x700, u64::MAX] {
            contents.push([&[5, 0], &offloads.to_le_bytes()[..]].concat());
        }
        // A command that is not known.
        contents.push(vec![1, 1]);
        // Headers of frames: nothing to do, a checksum, segments, nonsense.
        contents.push(frame(4));
        contents.push([&[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0], &[1; 52][..]].concat());
        contents.push(vec![0xff; HEADER]);
        contents
    }

    fn ask(&mut self, driver: &mut Driver) {
        let wire = &self.wire;
        wire.failures.store(0, Ordering::SeqCst);
        wire.refuses.store(false, Ordering::SeqCst);
        // What drivers of before have sent.
        while wire.take(0).is_some() {}
        for at in 0..BUFFERS {
            let gpa = RECEIVED + u64::from(at) * u64::from(LENGTH);
            driver.make_available(RX, at, &[writable(gpa, LENGTH)]);
        }
        let second = writable(SECOND, LENGTH);
        driver.make_available(SECOND_RX, 0, &[second]);
        let sent = frame(200);
        driver.fill(SENT, &sent);
        let parts = [
            readable(SENT, HEADER as u32),
            readable(SENT + HEADER as u64, 200),
        ];
        driver.make_available(TX, 0, &parts);
        driver.fill(COMMAND, &[4, 0, 2, 0]);
        driver.fill(ANSWER, &[0xee]);
        let command = [readable(COMMAND, 4), writable(ANSWER, 1)];
        driver.make_available(CONTROL, 0, &command);
        for queue in [RX, SECOND_RX, TX, CONTROL] {
            driver.kick(queue);
        }
        for length in BY_THE_RULES {
            wire.send(0, &frame(length));
        }
    }

    fn check_answer(&mut self, driver: &mut Driver) {
        assert_eq!(driver.wait_used(TX), (0, 0));
        assert!(self.wait_sent() == frame(200), "what is sent");
        for length in BY_THE_RULES {
            assert!(take_frame(driver) == frame(length), "what is received");
        }
        assert_eq!(driver.wait_used(CONTROL), (0, 1));
        assert_eq!(driver.bytes(ANSWER, 1), [0], "two pairs are to be used");
        let other = frame(300);
        self.wire.send(1, &other);
        assert_eq!(driver.wait_used(SECOND_RX), (0, other.len() as u32));
        let received = driver.bytes(SECOND, other.len());
        assert!(received[HEADER..] == other[HEADER..], "by the second pair");
    }

    fn act(&mut self, what: u8) {
        let (what, more) = (what % 8, usize::from(what / 8));
        match what {
            0..=3 => {
                let length = ANY[more % ANY.len()];
                let mut bytes = frame(length);
                bytes.truncate(length);
                // Headers of all kinds.
                let end = HEADER.min(length);
                bytes[..end].fill(more as u8);
                self.wire.send(usize::from(what) % PAIRS, &bytes);
            }
            4 | 5 => drop(self.wire.take(usize::from(what) % PAIRS)),
            6 => {
                let failures = more as u64 % 4;
                self.wire.failures.store(failures, Ordering::SeqCst);
            }
            _ => self.wire.refuses.store(true, Ordering::SeqCst),
        }
    }

    fn check_host(&mut self) {
        let complaints = self.wire.complaints.lock().unwrap();
        assert!(complaints.is_empty(), "{complaints:?}");
        for (queue, number) in self.wire.queues.iter().zip(0..) {
            let attached = queue.attached.load(Ordering::SeqCst);
            assert!(!attached, "queue {number} is still attached");
        }
        let counters = self.backend.counters();
        let sent = counters.iter().find(|(name, _)| *name == "tx_frames");
        let written = self.wire.written.load(Ordering::SeqCst);
        assert_eq!(sent, Some(&("tx_frames", written)));
    }

    fn flood(&mut self) {
        self.wire.flooded.store(true, Ordering::SeqCst);
    }
}
