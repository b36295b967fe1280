//! A queue, from the device's side (section 2.7, split virtqueues).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Fault, GuestMemory, Memory};

/// Descriptors that a driver has made available together: one request.
pub type Chain = DescriptorChain<Arc<Memory>>;

/// No interrupt (section 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Requests after which a thread looks whether it is to do something else.
const ROUND: usize = 1024;

/// Sends message-signalled interrupts by their numbers.
pub trait Signal: Send + Sync {
    /// Sends one, if it is there and on.
    fn signal(&self, vector: u16);
}

/// The interrupt of a queue, or of the device itself.
#[derive(Clone)]
pub struct QueueInterrupt {
    /// Where vectors are sent.
    pub signal: Arc<dyn Signal>,
    /// The number of the vector, which the driver may change.
    pub vector: Arc<AtomicU16>,
    /// The interrupt status, and the bit in it that says what happened (section 4.1.4.5).
    pub status: Arc<AtomicU8>,
    /// The bit.
    pub bit: u8,
}

impl QueueInterrupt {
    /// Sends the interrupt.
    pub fn send(&self) {
        self.status.fetch_or(self.bit, Ordering::SeqCst);
        let vector = self.vector.load(Ordering::SeqCst);
        if vector != NO_VECTOR {
            self.signal.signal(vector);
        }
    }
}

/// A queue that a driver has set up.
pub struct VirtQueue {
    /// Its number.
    pub index: u16,
    queue: Queue,
    memory: Arc<GuestMemory>,
    kick: Arc<EventFd>,
    interrupt: QueueInterrupt,
}

impl VirtQueue {
    /// A queue whose addresses are set. `kick` is written when the driver has made something available.
    pub(super) fn new(
        index: u16,
        queue: Queue,
        memory: Arc<GuestMemory>,
        kick: Arc<EventFd>,
        interrupt: QueueInterrupt,
    ) -> Self {
        Self {
            index,
            queue,
            memory,
            kick,
            interrupt,
        }
    }

    /// Readable when the driver has made something available.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Guest memory as it is now.
    pub fn memory(&self) -> Arc<Memory> {
        self.memory.get()
    }

    /// Serves what is available: `serve` does a request and returns how many bytes it has written into
    /// it. A driver that always has more does not keep the thread: after a round it is told again.
    ///
    /// # Errors
    /// The driver has broken the rules, or what `serve` says.
    pub fn serve_all(
        &mut self,
        mut serve: impl FnMut(Chain) -> Result<u32, Fault>,
    ) -> Result<(), Fault> {
        let memory = self.memory();
        let mut left = ROUND;
        loop {
            self.be_quiet(&memory)?;
            while left > 0 {
                let Some(chain) = self.pop(&memory)? else {
                    break;
                };
                left -= 1;
                let head = chain.head_index();
                let written = serve(chain)?;
                self.push(&memory, head, written)?;
            }
            self.notify(&memory)?;
            if left == 0 {
                // A full counter is as good.
                let _ = self.kick.write(1);
                return Ok(());
            }
            if !self.wait(&memory)? {
                return Ok(());
            }
        }
    }

    /// The next request, if there is one.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn pop(&mut self, memory: &Arc<Memory>) -> Result<Option<Chain>, Fault> {
        let index = self.index;
        let mut chains = self
            .queue
            .iter(Arc::clone(memory))
            .map_err(|source| Fault::Queue { index, source })?;
        Ok(chains.next())
    }

    /// Takes the last [`VirtQueue::pop`] back: the request comes again. For those that have to wait for
    /// something, so that they do not hold memory meanwhile.
    pub fn unpop(&mut self) {
        let next = self.queue.next_avail().wrapping_sub(1);
        self.queue.set_next_avail(next);
    }

    /// Gives a request back, into which `written` bytes were written.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn push(&mut self, memory: &Arc<Memory>, head: u16, written: u32) -> Result<(), Fault> {
        let pushed = self.queue.add_used(&**memory, head, written);
        pushed.map_err(|source| self.broken(source))
    }

    /// Tells the driver of what was given back, if it wants to be told.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn notify(&mut self, memory: &Arc<Memory>) -> Result<(), Fault> {
        let wanted = self.queue.needs_notification(&**memory);
        if wanted.map_err(|source| self.broken(source))? {
            self.interrupt.send();
        }
        Ok(())
    }

    /// Asks the driver not to tell of what it makes available.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn be_quiet(&mut self, memory: &Arc<Memory>) -> Result<(), Fault> {
        let quiet = self.queue.disable_notification(&**memory);
        quiet.map_err(|source| self.broken(source))
    }

    /// Asks the driver to tell of what it makes available.
    ///
    /// # Returns
    /// Whether something is available already.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn wait(&mut self, memory: &Arc<Memory>) -> Result<bool, Fault> {
        let more = self.queue.enable_notification(&**memory);
        more.map_err(|source| self.broken(source))
    }

    fn broken(&self, source: virtio_queue::Error) -> Fault {
        let index = self.index;
        Fault::Queue { index, source }
    }
}
