//! The host's side of a network interface, for all boots.
#![expect(unsafe_code, reason = "passes buffers on by their addresses")]

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libc::iovec;

use crate::virtio::rate_limiter::Limits;

/// What the host may leave undone in frames that it hands out, for the guest to do. None without
/// `checksums`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be missing.
    pub checksums: bool,
    /// TCP over IPv4 may come in frames that are to be segmented.
    pub tso4: bool,
    /// The same of TCP over IPv6.
    pub tso6: bool,
    /// The same with ECN.
    pub ecn: bool,
    /// UDP may come in frames that are to be fragmented.
    pub ufo: bool,
}

/// An interface of the host whose frames a guest is given: frames are read and written whole, with a
/// header of [`struct virtio_net_hdr`](super) of 12 bytes in front, little-endian.
pub trait Interface: Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// How many queues it has.
    fn queues(&self) -> usize;

    /// The descriptor to wait at until a frame can be read from a queue, or written to it.
    fn descriptor(&self, queue: usize) -> RawFd;

    /// Reads a frame. What does not fit into the buffers is lost.
    ///
    /// # Errors
    /// `EAGAIN` if there is none; `EBADFD` if the interface is not there any more.
    ///
    /// # Safety
    /// The buffers can be written to.
    unsafe fn read(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize>;

    /// Writes a frame.
    ///
    /// # Errors
    /// `EAGAIN` if there is no room now; `EBADFD` if the interface is not there any more; others if this
    /// frame cannot be sent.
    ///
    /// # Safety
    /// The buffers can be read.
    unsafe fn write(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize>;

    /// Gives frames to a queue, or no more. What waited there is dropped.
    ///
    /// # Errors
    /// The host refuses.
    fn set_attached(&self, queue: usize, attached: bool) -> io::Result<()>;

    /// Says what frames may be like that are read. At least one queue must be attached.
    ///
    /// # Errors
    /// The host refuses.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Whether frames of UDP that are to be fragmented can be read and written at all.
    fn knows_ufo(&self) -> bool;

    /// Bytes of the largest packet at this time.
    ///
    /// # Errors
    /// The interface is not there any more.
    fn mtu(&self) -> io::Result<usize>;
}

/// What was moved.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub rx_bytes: AtomicU64,
    pub rx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    pub tx_frames: AtomicU64,
}

impl Counters {
    /// Counts a frame.
    pub fn count(frames: &AtomicU64, bytes: &AtomicU64, length: usize) {
        frames.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// An interface of the host with all that belongs to it over all boots.
pub struct NetBackend {
    pub(super) interface: Box<dyn Interface>,
    pub(super) counters: Counters,
    /// What may be received, and what may be sent.
    pub(super) limits: [Arc<Limits>; 2],
    lost: AtomicBool,
}

impl NetBackend {
    /// An interface; `receiving` are limits of frames to the guest, `sending` of those from it.
    pub fn new(interface: Box<dyn Interface>, receiving: Limits, sending: Limits) -> Self {
        Self {
            interface,
            counters: Counters::default(),
            limits: [Arc::new(receiving), Arc::new(sending)],
            lost: AtomicBool::new(false),
        }
    }

    /// The name of the interface.
    pub fn name(&self) -> &str {
        self.interface.name()
    }

    /// What was moved so far, by the names of counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters {
            rx_bytes,
            rx_frames,
            tx_bytes,
            tx_frames,
        } = &self.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("rx_bytes", value(rx_bytes)),
            ("rx_frames", value(rx_frames)),
            ("tx_bytes", value(tx_bytes)),
            ("tx_frames", value(tx_frames)),
        ]
    }

    /// Whether the interface is not there any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Says that it is not there any more; the operator is told once.
    ///
    /// # Returns
    /// Whether that is news.
    pub(super) fn lose(&self) -> bool {
        let is_news = !self.lost.swap(true, Ordering::SeqCst);
        if is_news {
            let name = self.name();
            log::warn!(
                "network interface {name} of the host is gone; its guest goes on with a link that is down"
            );
        }
        is_news
    }

    /// Drops what waits in a queue.
    pub(super) fn drain(&self, queue: usize) {
        let mut bytes = [0_u8; super::HEADER];
        let buffer = iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // Frames come in all the time; what was there before is gone after so many.
        for _ in 0..MOST_WAITING {
            // SAFETY: the buffer is ours alone, and there until the end of this function.
            match unsafe { self.interface.read(queue, &[buffer]) } {
                Ok(0) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_gone(&error) => return,
                _ => {}
            }
        }
    }
}

/// The most frames that wait in an interface: more than `txqueuelen` of any tap that is meant well.
const MOST_WAITING: usize = 1 << 14;

/// Whether an interface that says so is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO | libc::EPIPE)
    )
}
