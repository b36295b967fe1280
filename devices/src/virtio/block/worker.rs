//! A queue, whose requests are carried out.
#![expect(unsafe_code, reason = "gives the host buffers by their addresses")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use vm_memory::{Bytes as _, Permissions};

use super::backend::{Image, SECTOR};
use super::counters::Way;
use super::engine::Engine;
use super::pool::{Port, Reply};
use super::request::{Asked, Parser, Request, Status};
use super::slot::{Next, Slot, Step};
use crate::virtio::buffers::{Bounce, Part, length_of};
use crate::virtio::rate_limiter::RateLimiter;
use crate::virtio::{Chain, Fault, Handler, Memory, Token, VirtQueue};

/// Requests of a queue that are under way at once, at most.
pub const MOST_AT_ONCE: u16 = 1024;
/// Sectors of one request to discard or to write zeroes to, at most: 2 GiB.
pub const MOST_SECTORS: u32 = 1 << 22;
/// Requests after which it is looked whether the thread is to do something else.
const ROUND: usize = 1024;
/// Bounce buffers that are kept for the next request.
const SPARE: usize = 4;

/// Told of by the driver.
const KICK: Token = 0;
/// Told of by the host.
const ENDED: Token = 1;
/// The time of a request that was over the limits has come.
const DUE: Token = 2;
/// Told of by the image's threads.
const REPLIED: Token = 3;

/// What is done with a request.
enum Verdict {
    /// It is answered.
    Answer(Status),
    /// The host is asked.
    Begin(Step),
}

/// Serves a queue.
pub struct BlockHandler {
    // First, so that it is dropped before what the host may still be using.
    engine: Engine,
    port: Option<Port>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    spare: Vec<Bounce>,
    image: Arc<Image>,
    queue: VirtQueue,
    parser: Parser,
    limiter: Option<RateLimiter>,
    host_cpus: Vec<u32>,
    /// Something was given back that the driver was not told of.
    untold: bool,
    /// The driver has broken the rules: nothing is given back any more.
    broken: bool,
}

impl BlockHandler {
    pub fn new(
        image: Arc<Image>,
        queue: VirtQueue,
        (engine, port): (Engine, Option<Port>),
        at_once: u16,
        host_cpus: Vec<u32>,
        synchronous: bool,
        limiter: Option<RateLimiter>,
    ) -> Self {
        Self {
            engine,
            port,
            slots: (0..at_once).map(|_| Slot::new(synchronous)).collect(),
            free: (0..at_once).rev().collect(),
            spare: Vec::new(),
            image,
            queue,
            parser: Parser::default(),
            limiter,
            host_cpus,
            untold: false,
            broken: false,
        }
    }

    /// Takes what is available, and gives back what has ended.
    fn work(&mut self) -> Result<(), Fault> {
        let memory = self.queue.memory();
        let mut left = ROUND;
        let mut limited = false;
        loop {
            self.queue.be_quiet(&memory)?;
            while left > 0 && !self.free.is_empty() {
                let Some(chain) = self.queue.pop(&memory)? else {
                    // A driver may have taken back what has waited.
                    self.limiter.iter_mut().for_each(RateLimiter::clear);
                    break;
                };
                left -= 1;
                limited = !self.take(chain, &memory)?;
                if limited {
                    self.queue.unpop(1);
                    break;
                }
                if self.engine.event().is_none() {
                    // The next request may take long.
                    self.tell(&memory)?;
                }
            }
            self.engine.submit();
            self.give_back()?;
            self.tell(&memory)?;
            if left == 0 || self.engine.has_unsubmitted() {
                // A full counter is as good.
                let _ = self.queue.kick().write(1);
                return Ok(());
            }
            // With none free, what ends brings us here again; over the limits, that the time has come.
            if limited || self.free.is_empty() || !self.queue.wait(&memory)? {
                return Ok(());
            }
        }
    }

    /// Takes a request up.
    ///
    /// # Returns
    /// Whether the limits allow it; it has to wait if they do not.
    fn take(&mut self, chain: Chain, memory: &Arc<Memory>) -> Result<bool, Fault> {
        let head = chain.head_index();
        let request = self.parser.parse(chain, memory);
        if let Some(limiter) = &mut self.limiter
            && !limiter.take(bytes_moved(&self.image, &request))
        {
            return Ok(false);
        }
        let Some(index) = self.free.pop() else {
            return Ok(true);
        };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Ok(true);
        };
        slot.head = head;
        slot.into = length_of(request.into);
        slot.read = 0;
        slot.moves = match request.asked {
            Asked::Read { .. } => Some((Way::Read, slot.into)),
            Asked::Write { .. } => Some((Way::Write, length_of(request.out))),
            _ => None,
        };
        slot.since = Instant::now();
        slot.or_zeroes = false;
        slot.with_threads = false;
        slot.memory = Some(Arc::clone(memory));
        let Some(status) = request.status else {
            // There is nowhere to say anything.
            slot.into = u64::MAX;
            return self.answer(index, None).map(|()| true);
        };
        slot.status = status;
        let begun = match judge(&self.image, slot, &request, memory) {
            Verdict::Answer(status) => self.answer(index, Some(status)),
            Verdict::Begin(step) => {
                slot.step = step;
                if matches!(step, Step::Read { .. } | Step::Write { .. }) {
                    let blocks = self.image.blocks;
                    if !slot
                        .scatter
                        .buffers
                        .are_aligned(blocks.memory, blocks.offset)
                    {
                        let spare = self.spare.pop();
                        slot.scatter.bounce =
                            Some(spare.unwrap_or_else(|| Bounce::new(blocks.memory)));
                    }
                }
                self.go_on(index)
            }
        };
        begun.map(|()| true)
    }

    /// Asks the host for the next step of a request, until it does not answer at once.
    fn go_on(&mut self, index: u16) -> Result<(), Fault> {
        loop {
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                return Ok(());
            };
            let result = match slot.next(&self.image) {
                Next::Host(file, operation) => {
                    // SAFETY: the slot keeps the iovecs, and guest memory or the bounce buffer, as they
                    // are until the operation has ended. Of guest memory there are no references. The
                    // image keeps its files open.
                    let begun = unsafe { self.engine.begin(file, operation, index) }?;
                    let Some(result) = begun else {
                        return Ok(());
                    };
                    result
                }
                Next::Threads(work) => match &mut self.port {
                    Some(port) => {
                        let scatter = std::mem::take(&mut slot.scatter);
                        port.give(work, scatter, slot.synchronous, index);
                        return Ok(());
                    }
                    None => -libc::EIO,
                },
                Next::Done(result) => result,
            };
            if let Some(status) = slot.advance(result, &self.image) {
                return self.answer(index, Some(status));
            }
        }
    }

    /// Gives back what has ended, and goes on with what has ended in part.
    fn give_back(&mut self) -> Result<(), Fault> {
        let mut first = Ok(());
        while let Some((index, result)) = self.next_completion() {
            let done = match self.slots.get_mut(usize::from(index)) {
                None => Ok(()),
                Some(slot) => match slot.advance(result, &self.image) {
                    Some(status) => self.answer(index, Some(status)),
                    None if self.broken => self.answer(index, None),
                    None => self.go_on(index),
                },
            };
            first = first.and(done);
        }
        self.engine.submit();
        first
    }

    /// What the host or the image's threads have ended.
    fn next_completion(&mut self) -> Option<(u16, i32)> {
        let completion = self.engine.next_completion();
        if completion.is_some() {
            return completion;
        }
        let Reply {
            user,
            scatter,
            result,
            error,
        } = self.port.as_mut()?.next()?;
        if let Some(slot) = self.slots.get_mut(usize::from(user)) {
            slot.scatter = scatter;
            slot.error = error;
            slot.is_past = true;
        }
        Some((user, result))
    }

    /// Waits until something ends.
    fn wait(&mut self) -> io::Result<()> {
        match (&self.port, self.engine.is_busy()) {
            (Some(port), false) => {
                port.wait();
                Ok(())
            }
            _ => self.engine.wait(),
        }
    }

    fn is_busy(&self) -> bool {
        self.engine.is_busy() || self.port.as_ref().is_some_and(Port::is_busy)
    }

    /// Tells the driver of what was given back.
    fn tell(&mut self, memory: &Arc<Memory>) -> Result<(), Fault> {
        match std::mem::take(&mut self.untold) {
            true => self.queue.notify(memory),
            false => Ok(()),
        }
    }

    /// Answers a request; its slot is free then.
    fn answer(&mut self, index: u16, status: Option<Status>) -> Result<(), Fault> {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Ok(());
        };
        let memory = slot.memory.take();
        slot.flight = None;
        slot.scatter.buffers.clear();
        let counters = &self.image.counters;
        match (status, slot.moves) {
            (Some(Status::Ok), Some((way, bytes))) => {
                counters.done(way, bytes, slot.since.elapsed());
            }
            (Some(Status::IoError), _) => counters.failed(),
            _ => {}
        }
        let bounce = slot.scatter.bounce.take();
        if self.spare.len() < SPARE {
            self.spare.extend(bounce);
        }
        self.free.push(index);
        let (Some(memory), false) = (memory, self.broken) else {
            return Ok(());
        };
        let mut written = slot.read;
        if let Some(status) = status {
            let said = memory.write_obj(status as u8, slot.status);
            if said.is_ok() && slot.read == slot.into {
                written += 1;
            }
        }
        // Drivers that count so far have no use for it (section 2.7.8).
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        let now = self.queue.memory();
        let pushed = self.queue.push(&now, slot.head, written);
        self.broken |= pushed.is_err();
        self.untold = true;
        pushed
    }
}

/// Bytes that a request moves, for the limits: none if it moves none, or is refused.
fn bytes_moved(image: &Image, request: &Request<'_>) -> u64 {
    let (offset, length) = match request.asked {
        Asked::Read { offset } => (offset, length_of(request.into)),
        Asked::Write { offset } => (offset, length_of(request.out)),
        _ => return 0,
    };
    match fits(image, offset, length) {
        true => length,
        false => 0,
    }
}

/// Looks whether a request can be carried out, and puts its buffers into its slot.
fn judge(image: &Image, slot: &mut Slot, request: &Request<'_>, memory: &Arc<Memory>) -> Verdict {
    let failed = Verdict::Answer(Status::IoError);
    match request.asked {
        Asked::Nothing(status) => Verdict::Answer(status),
        Asked::Flush if image.is_unflushed() => failed,
        Asked::Flush => Verdict::Begin(Step::Sync),
        Asked::Id => {
            slot.read = give_id(&image.serial, request.into, memory);
            Verdict::Answer(Status::Ok)
        }
        Asked::Read { offset } => {
            let left = slot.into;
            if !fits(image, offset, left) {
                return failed;
            }
            if left == 0 {
                return Verdict::Answer(Status::Ok);
            }
            match slot
                .scatter
                .buffers
                .set(memory, request.into, Permissions::Write)
            {
                true => Verdict::Begin(Step::Read { offset, left }),
                false => failed,
            }
        }
        Asked::Write { offset } => {
            let left = length_of(request.out);
            if !fits(image, offset, left) || !may_change(image, offset, left) {
                return failed;
            }
            if left == 0 {
                return Verdict::Answer(Status::Ok);
            }
            match slot
                .scatter
                .buffers
                .set(memory, request.out, Permissions::Read)
            {
                true => Verdict::Begin(Step::Write { offset, left }),
                false => failed,
            }
        }
        Asked::Discard { .. } if !image.discards => Verdict::Answer(Status::Unsupported),
        Asked::Discard { offset, length } => allocate(image, slot, (offset, length), true, false),
        Asked::WriteZeroes {
            offset,
            length,
            unmap,
        } => allocate(image, slot, (offset, length), unmap && image.discards, true),
    }
}

fn allocate(
    image: &Image,
    slot: &mut Slot,
    (offset, length): (u64, u64),
    punch: bool,
    or_zeroes: bool,
) -> Verdict {
    let is_possible = fits(image, offset, length)
        && length <= u64::from(MOST_SECTORS) * SECTOR
        && may_change(image, offset, length);
    if !is_possible {
        return Verdict::Answer(Status::IoError);
    }
    if length == 0 {
        return Verdict::Answer(Status::Ok);
    }
    slot.or_zeroes = or_zeroes;
    let mode = match punch {
        true => FALLOC_FL_PUNCH_HOLE,
        false => FALLOC_FL_ZERO_RANGE,
    };
    Verdict::Begin(Step::Allocate {
        mode: mode | FALLOC_FL_KEEP_SIZE,
        offset,
        left: length,
    })
}

/// Whether it is on the disk, in whole blocks of the host where these matter.
fn fits(image: &Image, offset: u64, length: u64) -> bool {
    let unit = image.blocks.offset.max(SECTOR);
    let end = offset.checked_add(length);
    end.is_some_and(|end| end <= image.capacity)
        && offset.is_multiple_of(unit)
        && length.is_multiple_of(unit)
}

fn may_change(image: &Image, offset: u64, length: u64) -> bool {
    if image.guarded && offset < SECTOR && length > 0 {
        image.complain_of_guard();
        return false;
    }
    !image.readonly
}

/// Gives a serial number, as much of it as there is room for.
///
/// # Returns
/// Bytes that were given.
fn give_id(serial: &[u8], into: &[Part], memory: &Memory) -> u64 {
    let mut given = 0;
    for part in into {
        let rest = serial.get(given..).unwrap_or_default();
        let count = rest.len().min(part.bytes as usize);
        let Some(rest) = rest.get(..count).filter(|rest| !rest.is_empty()) else {
            break;
        };
        if memory.write_slice(rest, part.gpa).is_err() {
            break;
        }
        given += count;
    }
    given as u64
}

impl Handler for BlockHandler {
    fn begin(&mut self) {
        if self.host_cpus.is_empty() {
            return;
        }
        if let Err(error) = self.engine.bind(&self.host_cpus) {
            let (queue, cpus) = (self.queue.index, &self.host_cpus);
            log::warn!("queue {queue} of a disk is not bound to host CPUs {cpus:?}: {error}");
        }
    }

    fn descriptors(&self) -> Vec<(RawFd, Token)> {
        let mut descriptors = vec![(self.queue.kick().as_raw_fd(), KICK)];
        descriptors.extend(self.engine.event().map(|event| (event, ENDED)));
        let limiter = self.limiter.as_ref();
        descriptors.extend(limiter.map(|limiter| (limiter.event(), DUE)));
        let port = self.port.as_ref();
        descriptors.extend(port.map(|port| (port.event().as_raw_fd(), REPLIED)));
        descriptors
    }

    fn ready(&mut self, token: Token) -> Result<(), Fault> {
        // Somebody else may have read it, which is all the same. What else is told of is not read: taking
        // completions and asking the limits again turn it off.
        let _ = match (token, &self.port) {
            (KICK, _) => self.queue.kick().read(),
            (REPLIED, Some(port)) => port.event().read(),
            _ => Ok(0),
        };
        self.work()
    }

    fn settle(&mut self) -> Result<(), Fault> {
        let memory = self.queue.memory();
        let mut first = Ok(());
        while self.is_busy() {
            if let Err(error) = self.wait() {
                // The host has nothing of it.
                self.slots.iter_mut().for_each(|slot| {
                    slot.memory = None;
                    slot.flight = None;
                    slot.scatter.buffers.clear();
                });
                self.broken = true;
                self.wait_for_threads();
                return first.and(Err(Fault::Host(error)));
            }
            first = first.and(self.give_back());
        }
        let told = match self.broken {
            true => Ok(()),
            false => self.tell(&memory),
        };
        first.and(told)
    }
}

impl BlockHandler {
    /// Waits until the image's threads have nothing of ours any more.
    fn wait_for_threads(&mut self) {
        while let Some(port) = &mut self.port
            && port.is_busy()
        {
            port.wait();
            while port.next().is_some() {}
        }
    }
}

impl Drop for BlockHandler {
    fn drop(&mut self) {
        // The host first: threads may wait until it is done with some place.
        self.engine = Engine::Calls;
        self.slots.iter_mut().for_each(|slot| slot.flight = None);
        self.wait_for_threads();
    }
}
