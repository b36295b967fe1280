//! A request that is under way, step by step.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use libc::FALLOC_FL_PUNCH_HOLE;
use vm_memory::GuestAddress;

use super::backend::Image;
use super::counters::Way;
use super::engine::Operation;
use super::qcow2::{Disk, Flight, Place, Work};
use super::request::Status;
use super::scatter::Scatter;
use crate::virtio::Memory;

/// What a request needs next of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Read { offset: u64, left: u64 },
    Write { offset: u64, left: u64 },
    Zeroes { offset: u64, left: u64 },
    Allocate { mode: i32, offset: u64, left: u64 },
    Sync,
}

/// Who takes a step.
pub enum Next {
    /// The host, with a file.
    Host(RawFd, Operation),
    /// The image's threads.
    Threads(Work),
    /// It is taken: what came of it.
    Done(i32),
}

impl Step {
    pub fn name(self) -> &'static str {
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
pub struct Slot {
    pub head: u16,
    pub status: GuestAddress,
    /// Guest memory of when it was made.
    pub memory: Option<Arc<Memory>>,
    /// Bytes that it reads.
    pub into: u64,
    /// Bytes that it has read.
    pub read: u64,
    /// Which way it moves how many bytes, if it does, and since when.
    pub moves: Option<(Way, u64)>,
    pub since: Instant,
    pub step: Step,
    /// Where no holes can be made, zeroes are written.
    pub or_zeroes: bool,
    /// It is on the host's storage before it is answered.
    pub synchronous: bool,
    pub scatter: Scatter,
    /// Keeps the bytes where they are that the host moves.
    pub flight: Option<Flight>,
    /// It was not the host that took the last step, and its bytes are behind us.
    pub is_past: bool,
    /// The image's threads take the next step.
    pub with_threads: bool,
    /// What they have said of the last one.
    pub error: Option<io::Error>,
}

impl Slot {
    /// One that nothing uses.
    pub fn new(synchronous: bool) -> Self {
        Self {
            head: 0,
            status: GuestAddress(0),
            memory: None,
            into: 0,
            read: 0,
            moves: None,
            since: Instant::now(),
            step: Step::Sync,
            or_zeroes: false,
            synchronous,
            scatter: Scatter::default(),
            flight: None,
            is_past: false,
            with_threads: false,
            error: None,
        }
    }

    /// Who takes the next step.
    pub fn next(&mut self, image: &Image) -> Next {
        self.is_past = false;
        match image.disk() {
            Some(disk) => self.next_of(disk, image.fd()),
            None => Next::Host(image.fd(), self.operation(u64::MAX, None)),
        }
    }

    fn next_of(&mut self, disk: &Disk, file: RawFd) -> Next {
        match self.step {
            Step::Read { offset, left } if !self.with_threads => self.in_place(
                disk,
                (offset, left),
                Work::Read {
                    offset,
                    length: left,
                },
            ),
            Step::Write { offset, left } if !self.with_threads => self.in_place(
                disk,
                (offset, left),
                Work::Write {
                    offset,
                    length: left,
                },
            ),
            Step::Read { offset, left } => Next::Threads(Work::Read {
                offset,
                length: left,
            }),
            Step::Write { offset, left } => Next::Threads(Work::Write {
                offset,
                length: left,
            }),
            Step::Zeroes { offset, left } => Next::Threads(Work::Zero {
                offset,
                length: left,
                unmap: false,
            }),
            Step::Allocate { mode, offset, left } => {
                let (length, unmap) = (left, mode & FALLOC_FL_PUNCH_HOLE != 0);
                Next::Threads(match self.or_zeroes {
                    true => Work::Zero {
                        offset,
                        length,
                        unmap,
                    },
                    false => Work::Discard { offset, length },
                })
            }
            Step::Sync if disk.has_tables_to_write() => Next::Threads(Work::Flush),
            Step::Sync => Next::Host(file, Operation::Sync),
        }
    }

    /// Lets the host move bytes where they are, if that can be said.
    fn in_place(&mut self, disk: &Disk, (offset, left): (u64, u64), else_: Work) -> Next {
        let to_write = matches!(self.step, Step::Write { .. });
        match disk.place(offset, left, to_write) {
            Ok((
                Place::File {
                    file,
                    offset,
                    flight,
                },
                length,
            )) => {
                self.flight = Some(flight);
                Next::Host(file, self.operation(length, Some(offset)))
            }
            Ok((Place::Zeroes, length)) => {
                // What is answered is a number of 32 bits.
                let length = length.min(1 << 30);
                self.scatter.buffers.fill(length);
                self.is_past = true;
                Next::Done(length as i32)
            }
            // Threads find the same, and say so.
            Ok((Place::Unknown, _)) | Err(_) => Next::Threads(else_),
        }
    }

    /// What the host is asked for: of so many bytes at most, at another place than on the disk if one is given.
    fn operation(&mut self, most: u64, place: Option<u64>) -> Operation {
        let synchronous = self.synchronous;
        let Scatter { buffers, bounce } = &mut self.scatter;
        match self.step {
            Step::Read { offset, left } => {
                let (iovecs, count) = match bounce {
                    Some(bounce) => bounce.next(left.min(most), None),
                    None if most >= left => buffers.next(),
                    None => buffers.next_of(most),
                };
                Operation::Read {
                    iovecs,
                    count,
                    offset: place.unwrap_or(offset),
                }
            }
            Step::Write { offset, left } => {
                let (iovecs, count) = match bounce {
                    Some(bounce) => bounce.next(left.min(most), Some(buffers)),
                    None if most >= left => buffers.next(),
                    None => buffers.next_of(most),
                };
                Operation::Write {
                    iovecs,
                    count,
                    offset: place.unwrap_or(offset),
                    synchronous,
                }
            }
            Step::Zeroes { offset, left } => {
                buffers.set_zeroes(left);
                let (iovecs, count) = buffers.next();
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
    pub fn advance(&mut self, result: i32, image: &Image) -> Option<Status> {
        self.flight = None;
        let moved = match u32::try_from(result) {
            Ok(moved) => moved,
            Err(_) => return self.fail(-result, image),
        };
        let bytes = moved as usize;
        let is_placed = image.disk().is_some();
        let Scatter { buffers, bounce } = &mut self.scatter;
        match &mut self.step {
            Step::Zeroes { .. } if is_placed => Some(Status::Ok),
            Step::Read { .. } if moved == 0 && is_placed && !self.is_past => {
                // The file ends before the cluster does.
                self.with_threads = true;
                None
            }
            Step::Read { .. } | Step::Write { .. } | Step::Zeroes { .. } if moved == 0 => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                image.complain(self.step.name(), &error);
                Some(Status::IoError)
            }
            Step::Read { offset, left } => {
                if !self.is_past {
                    if let Some(bounce) = bounce {
                        bounce.give(buffers, bytes);
                    }
                    buffers.advance(bytes);
                }
                self.with_threads = false;
                self.read = self.read.saturating_add(moved.into());
                *offset = offset.saturating_add(moved.into());
                *left = left.saturating_sub(moved.into());
                (*left == 0).then_some(Status::Ok)
            }
            Step::Write { offset, left } | Step::Zeroes { offset, left } => {
                if !self.is_past {
                    buffers.advance(bytes);
                }
                *offset = offset.saturating_add(moved.into());
                *left = left.saturating_sub(moved.into());
                (*left == 0).then_some(Status::Ok)
            }
            // The image's threads have flushed.
            Step::Allocate { .. } if is_placed => Some(Status::Ok),
            Step::Allocate { .. } if self.synchronous => {
                self.step = Step::Sync;
                None
            }
            Step::Allocate { .. } => Some(Status::Ok),
            Step::Sync => Some(match image.is_unflushed() {
                false => Status::Ok,
                true => Status::IoError,
            }),
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
                let error = self.error.take();
                let error = error.unwrap_or_else(|| io::Error::from_raw_os_error(number));
                // Threads say themselves what they could not sync; tables that could not be written stay.
                let is_lost = match image.disk() {
                    Some(disk) if self.is_past => disk.is_lost(),
                    _ => step == Step::Sync,
                };
                match is_lost {
                    true => image.flush_failed(&error),
                    false => image.complain(step.name(), &error),
                }
                Some(Status::IoError)
            }
        }
    }
}
