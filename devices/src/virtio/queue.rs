//! A queue, from the device's side (section 2.7, split virtqueues).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Chain, Fault, GuestMemory, Memory};

/// Descriptors of a request that are looked at, at most. A driver may not use more than its queue has entries
/// (section 2.7.5.3.1), but a table has room for 65535, which may all be empty: without an end the driver
/// would keep the thread, and whoever waits for it.
pub const MOST_DESCRIPTORS: usize = 1024;

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
    /// Where the used ring ended when it was last asked whether the driver wants to be told.
    told: u16,
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
        let told = queue.next_used();
        Self {
            index,
            queue,
            memory,
            kick,
            interrupt,
            told,
        }
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.queue.size()
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
            .iter(&**memory)
            .map_err(|source| Fault::Queue { index, source })?;
        let Some(head) = chains.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        let (table, size) = (self.queue.desc_table(), self.queue.size());
        Ok(Some(Chain::new(Arc::clone(memory), table, size, head)))
    }

    /// Takes the last so many [`VirtQueue::pop`] back: the requests come again, in the same order. For those
    /// that have to wait for something, so that they do not hold memory meanwhile.
    pub fn unpop(&mut self, count: u16) {
        let next = self.queue.next_avail().wrapping_sub(count);
        self.queue.set_next_avail(next);
    }

    /// Gives a request back, into which `written` bytes were written.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn push(&mut self, memory: &Arc<Memory>, head: u16, written: u32) -> Result<(), Fault> {
        self.push_together(memory, &[(head, written)])
    }

    /// Gives requests back, each with the bytes that were written into it: the driver sees all of them or
    /// none.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn push_together(
        &mut self,
        memory: &Arc<Memory>,
        used: &[(u16, u32)],
    ) -> Result<(), Fault> {
        let pushed = write_used(&mut self.queue, memory, used);
        pushed.map_err(|source| self.broken(source))
    }

    /// Tells the driver of what was given back, if it wants to be told.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn notify(&mut self, memory: &Arc<Memory>) -> Result<(), Fault> {
        let now = self.queue.next_used();
        let before = std::mem::replace(&mut self.told, now);
        if now == before {
            return Ok(());
        }
        let wanted = wants_interrupt(&self.queue, memory, before);
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

/// Bytes of a ring before its first entry: flags and index (sections 2.7.6 and 2.7.8).
const RING_HEADER: u64 = 4;
/// Bytes from a ring's beginning to its index.
const RING_INDEX: u64 = 2;
/// Bytes of an entry of the available ring, and of the used ring.
const AVAILABLE_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;
/// The driver wants no interrupts (section 2.7.7).
const NO_INTERRUPT: u16 = 1;

fn place(ring: u64, offset: u64) -> Result<GuestAddress, virtio_queue::Error> {
    let address = ring.checked_add(offset);
    address
        .map(GuestAddress)
        .ok_or(virtio_queue::Error::AddressOverflow)
}

/// Writes entries into the used ring, and then its index.
fn write_used(
    queue: &mut Queue,
    memory: &Memory,
    used: &[(u16, u32)],
) -> Result<(), virtio_queue::Error> {
    let (ring, size) = (queue.used_ring(), queue.size());
    let mut next = queue.next_used();
    for (head, written) in used {
        if *head >= size {
            return Err(virtio_queue::Error::InvalidDescriptorIndex);
        }
        // No queue has a size of 0.
        let slot = u64::from(next.checked_rem(size).unwrap_or(0));
        let entry = u64::from(*head) | u64::from(*written) << 32;
        let address = place(ring, RING_HEADER + slot * USED_ENTRY)?;
        let stored = memory.write_obj(entry.to_le(), address);
        stored.map_err(virtio_queue::Error::GuestMemory)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    let stored = memory.store(next.to_le(), place(ring, RING_INDEX)?, Ordering::Release);
    stored.map_err(virtio_queue::Error::GuestMemory)
}

/// Whether the driver wants an interrupt for what was given back since the used ring ended at `before`
/// (sections 2.7.7 and 2.7.10).
fn wants_interrupt(
    queue: &Queue,
    memory: &Memory,
    before: u16,
) -> Result<bool, virtio_queue::Error> {
    // The driver writes what it wants and then looks at the index of the used ring; here it is the other
    // way round.
    fence(Ordering::SeqCst);
    let ring = queue.avail_ring();
    let load = |offset| {
        let loaded = memory.load(place(ring, offset)?, Ordering::Relaxed);
        let loaded: u16 = loaded.map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(loaded))
    };
    if !queue.event_idx_enabled() {
        return Ok(load(0)? & NO_INTERRUPT == 0);
    }
    let event = load(RING_HEADER + u64::from(queue.size()) * AVAILABLE_ENTRY)?;
    let now = queue.next_used();
    Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
}
