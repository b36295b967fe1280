//! Frames from the guest to the host.
#![expect(unsafe_code, reason = "gives the host buffers by their addresses")]

use std::os::fd::RawFd;
use std::sync::Arc;

use libc::iovec;
use vm_memory::Permissions;

use super::backend::Counters;
use super::port::{Moved, Port};
use super::receive::Next;
use super::{HEADER, LARGEST, ROUND};
use crate::virtio::buffers::{Finder, MOST, Part};
use crate::virtio::rate_limiter::RateLimiter;
use crate::virtio::{Chain, Fault, MOST_DESCRIPTORS, Memory, VirtQueue};

/// Serves a transmit queue.
pub struct Transmitter {
    queue: VirtQueue,
    limiter: Option<RateLimiter>,
    frame: Frame,
    /// The time of the frame that comes next has come.
    due: bool,
    /// Frames have come since it was last looked without finding any.
    busy: bool,
}

/// Buffers of a frame. Keeps its room for the next one.
#[derive(Default)]
struct Frame(Vec<iovec>);

// SAFETY: addresses are the same in all threads, and are used only by who has the memory.
unsafe impl Send for Frame {}

impl Transmitter {
    /// Serves a queue.
    pub fn new(queue: VirtQueue, limiter: Option<RateLimiter>) -> Self {
        Self {
            queue,
            limiter,
            frame: Frame::default(),
            due: false,
            busy: false,
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
        self.queue.be_quiet(&memory)?;
        let next = self.rounds(port, &memory)?;
        self.queue.notify(&memory)?;
        Ok(next)
    }

    fn rounds(&mut self, port: &Port, memory: &Arc<Memory>) -> Result<Next, Fault> {
        for _ in 0..ROUND {
            let Some(chain) = self.queue.pop(memory)? else {
                // A driver that has taken back what it said waits for nothing any more.
                self.limiter.iter_mut().for_each(RateLimiter::clear);
                self.due = false;
                // Those that follow soon cost the driver nothing that way.
                if std::mem::take(&mut self.busy) {
                    return Ok(Next::Look);
                }
                if !self.queue.wait(memory)? {
                    return Ok(Next::Driver);
                }
                self.queue.be_quiet(memory)?;
                continue;
            };
            self.busy = true;
            let head = chain.head_index();
            // What is no frame is not sent: as with a real card, nobody is told.
            if let Some(length) = self.frame.set(chain, memory) {
                let bytes = length - HEADER;
                if !self.is_due(bytes) {
                    self.queue.unpop(1);
                    return Ok(Next::Limit);
                }
                // SAFETY: the memory is there until this function ends, and nobody has references to it.
                match unsafe { port.write(&self.frame.0) } {
                    Moved::Yes(_) => {
                        let counters = &port.backend().counters;
                        Counters::count(&counters.tx_frames, &counters.tx_bytes, bytes);
                    }
                    Moved::Later => {
                        self.queue.unpop(1);
                        return Ok(Next::Host);
                    }
                    Moved::Lost | Moved::Never => {}
                }
                self.due = false;
            }
            self.queue.push(memory, head, 0)?;
        }
        Ok(Next::Again)
    }

    /// Whether the time of a frame of so many bytes has come.
    fn is_due(&mut self, bytes: usize) -> bool {
        if !self.due {
            let limiter = self.limiter.as_mut();
            self.due = limiter.is_none_or(|limiter| limiter.take(bytes as u64));
        }
        self.due
    }
}

impl Frame {
    /// Takes the buffers of a frame.
    ///
    /// # Returns
    /// Its bytes, header included; nothing if it is none.
    fn set(&mut self, chain: Chain, memory: &Memory) -> Option<usize> {
        self.0.clear();
        let mut length = 0_usize;
        let mut finder = Finder::new(memory, Permissions::Read);
        for (count, descriptor) in chain.enumerate() {
            if count == MOST_DESCRIPTORS || descriptor.is_write_only() {
                return None;
            }
            let part = Part {
                gpa: descriptor.addr(),
                bytes: descriptor.len(),
            };
            if part.bytes == 0 {
                continue;
            }
            length = length.checked_add(part.bytes as usize)?;
            if length > LARGEST || self.0.len() >= MOST {
                return None;
            }
            if !finder.add(&mut self.0, part) {
                return None;
            }
        }
        (length > HEADER && self.0.len() <= MOST).then_some(length)
    }
}
