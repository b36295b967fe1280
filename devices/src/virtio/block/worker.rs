//! A queue, whose requests are carried out.
#![expect(unsafe_code, reason = "gives the host buffers by their addresses")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use vm_memory::{Bytes as _, GuestAddress, Permissions};

use super::backend::{Image, SECTOR};
use super::buffers::{Bounce, Buffers};
use super::engine::{Engine, Operation};
use super::request::{Asked, Parser, Part, Request, Status, length_of};
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

/// What a request needs next of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read { offset: u64, left: u64 },
    Write { offset: u64, left: u64 },
    Zeroes { offset: u64, left: u64 },
    Allocate { mode: i32, offset: u64, left: u64 },
    Sync,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Read { .. } => "reading",
            Self::Write { .. } => "writing",
            Self::Zeroes { .. } => "writing zeroes",
            Self::Allocate { .. } => "discarding or zeroing",
            Self::Sync => "flushing",
        }
    }
}

/// A request that is under way.
struct Slot {
    head: u16,
    status: GuestAddress,
    /// Guest memory of when it was made.
    memory: Option<Arc<Memory>>,
    /// Bytes that it reads.
    into: u64,
    /// Bytes that it has read.
    read: u64,
    step: Step,
    /// Where no holes can be made, zeroes are written.
    or_zeroes: bool,
    /// It is on the host's storage before it is answered.
    synchronous: bool,
    buffers: Buffers,
    bounce: Option<Bounce>,
}

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
    slots: Vec<Slot>,
    free: Vec<u16>,
    spare: Vec<Bounce>,
    image: Arc<Image>,
    queue: VirtQueue,
    parser: Parser,
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
        engine: Engine,
        at_once: u16,
        host_cpus: Vec<u32>,
        synchronous: bool,
    ) -> Self {
        let slot = |_| Slot {
            head: 0,
            status: GuestAddress(0),
            memory: None,
            into: 0,
            read: 0,
            step: Step::Sync,
            or_zeroes: false,
            synchronous,
            buffers: Buffers::default(),
            bounce: None,
        };
        Self {
            engine,
            slots: (0..at_once).map(slot).collect(),
            free: (0..at_once).rev().collect(),
            spare: Vec::new(),
            image,
            queue,
            parser: Parser::default(),
            host_cpus,
            untold: false,
            broken: false,
        }
    }

    /// Takes what is available, and gives back what has ended.
    fn work(&mut self) -> Result<(), Fault> {
        let memory = self.queue.memory();
        let mut left = ROUND;
        loop {
            self.queue.be_quiet(&memory)?;
            while left > 0 && !self.free.is_empty() {
                let Some(chain) = self.queue.pop(&memory)? else {
                    break;
                };
                left -= 1;
                self.take(chain, &memory)?;
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
            // With none free, what ends brings us here again.
            if self.free.is_empty() || !self.queue.wait(&memory)? {
                return Ok(());
            }
        }
    }

    /// Takes a request up.
    fn take(&mut self, chain: Chain, memory: &Arc<Memory>) -> Result<(), Fault> {
        let head = chain.head_index();
        let Some(index) = self.free.pop() else {
            return Ok(());
        };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Ok(());
        };
        let request = self.parser.parse(chain, memory);
        slot.head = head;
        slot.into = length_of(request.into);
        slot.read = 0;
        slot.or_zeroes = false;
        slot.memory = Some(Arc::clone(memory));
        let Some(status) = request.status else {
            // There is nowhere to say anything.
            slot.into = u64::MAX;
            return self.answer(index, None);
        };
        slot.status = status;
        match judge(&self.image, slot, &request, memory) {
            Verdict::Answer(status) => self.answer(index, Some(status)),
            Verdict::Begin(step) => {
                slot.step = step;
                if matches!(step, Step::Read { .. } | Step::Write { .. }) {
                    let blocks = self.image.blocks;
                    if !slot.buffers.are_aligned(blocks.memory, blocks.offset) {
                        let spare = self.spare.pop();
                        slot.bounce = Some(spare.unwrap_or_else(|| Bounce::new(blocks.memory)));
                    }
                }
                self.go_on(index)
            }
        }
    }

    /// Asks the host for the next step of a request, until it does not answer at once.
    fn go_on(&mut self, index: u16) -> Result<(), Fault> {
        loop {
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                return Ok(());
            };
            let operation = slot.operation();
            // SAFETY: the slot keeps the iovecs, and guest memory or the bounce buffer, as they are until
            // the operation has ended. Of guest memory there are no references.
            let begun = unsafe { self.engine.begin(operation, index) }?;
            let Some(result) = begun else {
                return Ok(());
            };
            if let Some(status) = slot.advance(result, &self.image) {
                return self.answer(index, Some(status));
            }
        }
    }

    /// Gives back what has ended, and goes on with what has ended in part.
    fn give_back(&mut self) -> Result<(), Fault> {
        let mut first = Ok(());
        while let Some((index, result)) = self.engine.next_completion() {
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
        slot.buffers.clear();
        let bounce = slot.bounce.take();
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

impl Slot {
    fn operation(&mut self) -> Operation {
        let synchronous = self.synchronous;
        match self.step {
            Step::Read { offset, left } => {
                let (iovecs, count) = match &mut self.bounce {
                    Some(bounce) => bounce.next(left, None),
                    None => self.buffers.next(),
                };
                Operation::Read {
                    iovecs,
                    count,
                    offset,
                }
            }
            Step::Write { offset, left } => {
                let (iovecs, count) = match &mut self.bounce {
                    Some(bounce) => bounce.next(left, Some(&self.buffers)),
                    None => self.buffers.next(),
                };
                Operation::Write {
                    iovecs,
                    count,
                    offset,
                    synchronous,
                }
            }
            Step::Zeroes { offset, left } => {
                self.buffers.set_zeroes(left);
                let (iovecs, count) = self.buffers.next();
                Operation::Write {
                    iovecs,
                    count,
                    offset,
                    synchronous,
                }
            }
            Step::Allocate { mode, offset, left } => Operation::Allocate {
                mode,
                offset,
                length: left,
            },
            Step::Sync => Operation::Sync,
        }
    }

    /// Takes in what came of the last operation.
    ///
    /// # Returns
    /// How the request has ended; nothing if the host is to be asked again.
    fn advance(&mut self, result: i32, image: &Image) -> Option<Status> {
        let moved = match u32::try_from(result) {
            Ok(moved) => moved,
            Err(_) => return self.fail(-result, image),
        };
        let bytes = moved as usize;
        match &mut self.step {
            Step::Read { .. } | Step::Write { .. } | Step::Zeroes { .. } if moved == 0 => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                image.complain(self.step.name(), &error);
                Some(Status::IoError)
            }
            Step::Read { offset, left } => {
                if let Some(bounce) = &mut self.bounce {
                    bounce.give(&self.buffers, bytes);
                }
                self.buffers.advance(bytes);
                self.read = self.read.saturating_add(moved.into());
                *offset = offset.saturating_add(moved.into());
                *left = left.saturating_sub(moved.into());
                (*left == 0).then_some(Status::Ok)
            }
            Step::Write { offset, left } | Step::Zeroes { offset, left } => {
                self.buffers.advance(bytes);
                *offset = offset.saturating_add(moved.into());
                *left = left.saturating_sub(moved.into());
                (*left == 0).then_some(Status::Ok)
            }
            Step::Allocate { .. } if self.synchronous => {
                self.step = Step::Sync;
                None
            }
            Step::Allocate { .. } | Step::Sync => Some(Status::Ok),
        }
    }

    fn fail(&mut self, number: i32, image: &Image) -> Option<Status> {
        match (number, self.step) {
            (libc::EINTR, _) => None,
            (libc::EOPNOTSUPP, Step::Allocate { offset, left, .. }) => match self.or_zeroes {
                true => {
                    self.step = Step::Zeroes { offset, left };
                    None
                }
                false => Some(Status::Unsupported),
            },
            (number, step) => {
                image.complain(step.name(), &io::Error::from_raw_os_error(number));
                Some(Status::IoError)
            }
        }
    }
}

/// Looks whether a request can be carried out, and puts its buffers into its slot.
fn judge(image: &Image, slot: &mut Slot, request: &Request<'_>, memory: &Arc<Memory>) -> Verdict {
    let failed = Verdict::Answer(Status::IoError);
    match request.asked {
        Asked::Nothing(status) => Verdict::Answer(status),
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
            match slot.buffers.set(memory, request.into, Permissions::Write) {
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
            match slot.buffers.set(memory, request.out, Permissions::Read) {
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
        descriptors
    }

    fn ready(&mut self, token: Token) -> Result<(), Fault> {
        if token == KICK {
            // Somebody else may have read it, which is all the same.
            let _ = self.queue.kick().read();
        }
        self.work()
    }

    fn settle(&mut self) -> Result<(), Fault> {
        let memory = self.queue.memory();
        let mut first = Ok(());
        while self.engine.is_busy() {
            if let Err(error) = self.engine.wait() {
                // The host has nothing of it.
                self.slots.iter_mut().for_each(|slot| {
                    slot.memory = None;
                    slot.buffers.clear();
                });
                self.broken = true;
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
