//! Frames from the host to the guest.
#![expect(unsafe_code, reason = "gives the host buffers by their addresses")]

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::iovec;

use super::backend::Counters;
use super::port::{Moved, Port};
use super::posted::{Added, Posted};
use super::{FLAGS, HEADER, LARGEST, NUM_BUFFERS, ROUND};
use crate::virtio::rate_limiter::RateLimiter;
use crate::virtio::{Fault, Memory, VirtQueue};

/// What is to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The driver.
    Driver,
    /// The host's interface.
    Host,
    /// The limit.
    Limit,
    /// Nothing: there is more to do.
    Again,
    /// Nothing, before it was looked once more: there may be more to do soon.
    Look,
    /// Nothing: there is nothing to do any more.
    Nothing,
}

/// Serves a receive queue.
pub struct Receiver {
    queue: VirtQueue,
    /// A frame may have several chains.
    mergeable: bool,
    /// Bytes of buffers that a frame is read into, if there are as many.
    room: usize,
    /// The driver takes checksums that are missing or known to be right.
    checksums: Arc<AtomicBool>,
    limiter: Option<RateLimiter>,
    posted: Posted,
    /// A frame that waits for buffers or for its time; as long as the largest, and one byte.
    spill: Box<[u8]>,
    /// Its bytes; 0 is none.
    pending: usize,
    /// Its time has come.
    due: bool,
    used: Vec<(u16, u32)>,
}

/// What became of an attempt to gather buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gathered {
    /// As many as were asked for, or as many as go together.
    All,
    /// All that the driver has made available.
    Fewer,
}

impl Receiver {
    /// Serves a queue. `room` are bytes of frames as they usually are, with their headers: larger ones are
    /// copied once more.
    pub fn new(
        queue: VirtQueue,
        mergeable: bool,
        room: usize,
        checksums: Arc<AtomicBool>,
        limiter: Option<RateLimiter>,
    ) -> Self {
        Self {
            queue,
            mergeable,
            room: room.min(LARGEST),
            checksums,
            limiter,
            posted: Posted::default(),
            spill: vec![0; LARGEST + 1].into_boxed_slice(),
            pending: 0,
            due: false,
            used: Vec::new(),
        }
    }

    /// The queue.
    pub fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Readable when the time of the frame that waits has come.
    pub fn limit(&self) -> Option<RawFd> {
        self.limiter.as_ref().map(RateLimiter::event)
    }

    /// Moves what can be moved now.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn serve(&mut self, port: &Port) -> Result<Next, Fault> {
        let memory = self.queue.memory();
        let next = self.rounds(port, &memory);
        let unused = self.posted.clear();
        let next = next?;
        self.queue.unpop(unused);
        self.queue.notify(&memory)?;
        Ok(next)
    }

    fn rounds(&mut self, port: &Port, memory: &Arc<Memory>) -> Result<Next, Fault> {
        self.queue.be_quiet(memory)?;
        for _ in 0..ROUND {
            if self.pending > 0 && !self.is_due() {
                return Ok(Next::Limit);
            }
            let wanted = match self.pending {
                0 => self.room,
                pending => pending,
            };
            let gathered = self.gather(memory, wanted)?;
            let is_enough = match self.pending {
                0 => self.posted.count() > 0,
                pending => self.posted.bytes() >= pending,
            };
            if is_enough {
                match self.pending {
                    0 => match self.read(port) {
                        Moved::Yes(length) => self.take_in(port, memory, length)?,
                        Moved::Lost => {}
                        Moved::Later => return Ok(Next::Host),
                        Moved::Never => return Ok(Next::Nothing),
                    },
                    length => {
                        if let Some(frame) = self.spill.get(..length) {
                            self.posted.write(0, frame);
                        }
                        self.give(port, memory, length)?;
                    }
                }
            } else if gathered == Gathered::All || self.posted.count() >= self.queue.size() {
                // The driver has no more buffers than these.
                self.forget();
            } else if !self.queue.wait(memory)? {
                return Ok(Next::Driver);
            } else {
                self.queue.be_quiet(memory)?;
            }
        }
        Ok(Next::Again)
    }

    /// Whether the time of the frame that waits has come.
    fn is_due(&mut self) -> bool {
        if !self.due {
            let bytes = self.pending.saturating_sub(HEADER);
            let limiter = self.limiter.as_mut();
            self.due = limiter.is_none_or(|limiter| limiter.take(bytes as u64));
        }
        self.due
    }

    /// Drops the frame that waits.
    fn forget(&mut self) {
        self.pending = 0;
        self.due = false;
    }

    /// Takes chains until there is room for so many bytes.
    fn gather(&mut self, memory: &Arc<Memory>, wanted: usize) -> Result<Gathered, Fault> {
        while self.posted.bytes() < wanted {
            if !self.mergeable && self.posted.count() > 0 {
                return Ok(Gathered::All);
            }
            let Some(chain) = self.queue.pop(memory)? else {
                return Ok(Gathered::Fewer);
            };
            match self.posted.add(chain, memory) {
                Added::Yes => {}
                Added::NoRoom => {
                    self.queue.unpop(1);
                    return Ok(Gathered::All);
                }
                Added::Unusable => {
                    return Err(Fault::Queue {
                        index: self.queue.index,
                        source: virtio_queue::Error::InvalidChain,
                    });
                }
            }
        }
        Ok(Gathered::All)
    }

    /// Reads a frame into the buffers; what does not fit there is behind so many bytes of the spill.
    fn read(&mut self, port: &Port) -> Moved {
        let behind = self.posted.bytes().min(LARGEST);
        let rest = self.spill.get_mut(behind..).unwrap_or_default();
        let last = iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        // SAFETY: parts of guest memory are there for as long as the caller has it, which is longer than
        // this call; nobody has references to them. The spill is ours alone.
        self.posted
            .with(last, |buffers| unsafe { port.read(buffers) })
    }

    /// Goes on with a frame that was read: it is in the buffers, or partly in the spill.
    fn take_in(&mut self, port: &Port, memory: &Arc<Memory>, length: usize) -> Result<(), Fault> {
        let room = self.posted.bytes();
        let fits = length <= room;
        if !(HEADER..=LARGEST).contains(&length) || !fits && !self.mergeable {
            return Ok(());
        }
        self.pending = length;
        if fits && self.is_due() {
            return self.give(port, memory, length);
        }
        if let Some(frame) = self.spill.get_mut(..length.min(room)) {
            self.posted.read(frame);
        }
        Ok(())
    }

    /// Gives a frame, which is in the buffers, to the driver.
    fn give(&mut self, port: &Port, memory: &Arc<Memory>, length: usize) -> Result<(), Fault> {
        self.forget();
        // Section 5.1.6.4.1: there is 1 where buffers are not merged.
        let count = self.posted.needed(length);
        self.posted.write(NUM_BUFFERS, &count.to_le_bytes());
        if !self.checksums.load(Ordering::Relaxed) {
            self.posted.write(FLAGS, &[0]);
        }
        self.used.clear();
        self.posted.take(length, &mut self.used);
        self.queue.push_together(memory, &self.used)?;
        let counters = &port.backend().counters;
        Counters::count(&counters.rx_frames, &counters.rx_bytes, length - HEADER);
        Ok(())
    }
}
