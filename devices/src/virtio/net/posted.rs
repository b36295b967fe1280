//! Buffers of a driver that frames are to go to.
#![expect(
    unsafe_code,
    reason = "copies between guest memory and buffers of our own, by addresses"
)]

use std::collections::VecDeque;

use libc::iovec;
use vm_memory::{Permissions, VolatileSlice};

use crate::virtio::buffers::{Finder, MOST, Part};
use crate::virtio::{Chain, MOST_DESCRIPTORS, Memory};

/// The most parts of guest memory that a frame is read into: one is left for what does not fit.
const MOST_PARTS: usize = MOST - 1;

/// Chains that were taken and not given back. They are of one memory, which the caller keeps. Keeps its
/// room.
#[derive(Default)]
pub struct Posted {
    list: Vec<iovec>,
    /// The first part that is not used.
    first: usize,
    chains: VecDeque<PostedChain>,
    bytes: usize,
}

/// One of them.
#[derive(Clone, Copy)]
struct PostedChain {
    head: u16,
    parts: usize,
    bytes: usize,
}

// SAFETY: addresses are the same in all threads.
unsafe impl Send for Posted {}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is there.
    Yes,
    /// It has too many parts to go with the others.
    NoRoom,
    /// Nothing can be written into it.
    Unusable,
}

impl Posted {
    /// Bytes that can be written into all of them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        // At most the entries of a queue.
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// Adds a chain: its writable parts up to the first that is not in memory, and as many as one call can
    /// take.
    pub fn add(&mut self, chain: Chain, memory: &Memory) -> Added {
        if self.first > 0 && self.list.len() >= MOST_PARTS {
            self.list.drain(..self.first);
            self.first = 0;
        }
        let head = chain.head_index();
        let before = self.list.len();
        let room = MOST_PARTS.saturating_sub(before - self.first);
        let mut ends_early = room == 0;
        let mut finder = Finder::new(memory, Permissions::Write);
        for descriptor in chain.take(MOST_DESCRIPTORS) {
            if !descriptor.is_write_only() {
                break;
            }
            let part = Part {
                gpa: descriptor.addr(),
                bytes: descriptor.len(),
            };
            let known = self.list.len();
            if part.bytes == 0 {
                continue;
            }
            if known - before >= room {
                ends_early = true;
                break;
            }
            if !finder.add(&mut self.list, part) {
                self.list.truncate(known);
                break;
            }
            if self.list.len() - before > room {
                self.list.truncate(before + room);
                ends_early = true;
                break;
            }
        }
        if ends_early && !self.chains.is_empty() {
            self.list.truncate(before);
            return Added::NoRoom;
        }
        let parts = self.list.get(before..).unwrap_or_default();
        let bytes = parts.iter().map(|part| part.iov_len).sum();
        if bytes == 0 {
            return Added::Unusable;
        }
        self.chains.push_back(PostedChain {
            head,
            parts: parts.len(),
            bytes,
        });
        self.bytes = self.bytes.saturating_add(bytes);
        Added::Yes
    }

    /// The chains that so many bytes fill, with what is written into each, in `used`. They are not here
    /// any more then.
    pub fn take(&mut self, length: usize, used: &mut Vec<(u16, u32)>) {
        let mut left = length;
        while left > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let PostedChain { head, parts, bytes } = chain;
            let written = left.min(bytes);
            left -= written;
            self.bytes = self.bytes.saturating_sub(bytes);
            self.first += parts;
            // Frames have less than 128 KiB.
            used.push((head, written as u32));
        }
    }

    /// How many chains so many bytes fill.
    pub fn needed(&self, length: usize) -> u16 {
        let mut left = length;
        let mut count = 0;
        for chain in &self.chains {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.bytes);
            count += 1;
        }
        count
    }

    /// Lets everything go.
    ///
    /// # Returns
    /// How many chains there were.
    pub fn clear(&mut self) -> u16 {
        let count = self.count();
        self.list.clear();
        self.chains.clear();
        self.first = 0;
        self.bytes = 0;
        count
    }

    /// All parts, and behind them a buffer of the caller's.
    pub fn with<R>(&mut self, last: iovec, call: impl FnOnce(&[iovec]) -> R) -> R {
        self.list.push(last);
        let result = call(self.list.get(self.first..).unwrap_or_default());
        self.list.pop();
        result
    }

    /// Writes into the buffers, from so many bytes behind their beginning on.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.each(offset, bytes.len(), |slice, at| {
            if let Some(bytes) = bytes.get(at..at + slice.len()) {
                slice.copy_from(bytes);
            }
        });
    }

    /// Reads what is in the buffers, from their beginning on.
    pub fn read(&self, bytes: &mut [u8]) {
        self.each(0, bytes.len(), |slice, at| {
            if let Some(bytes) = bytes.get_mut(at..at + slice.len()) {
                slice.copy_to(bytes);
            }
        });
    }

    /// Calls with each part of the buffers in a range, and where in the range it is.
    fn each(&self, offset: usize, length: usize, mut copy: impl FnMut(VolatileSlice<'_>, usize)) {
        let (mut skip, mut done) = (offset, 0);
        for part in self.list.get(self.first..).unwrap_or_default() {
            if skip >= part.iov_len {
                skip -= part.iov_len;
                continue;
            }
            let count = (part.iov_len - skip).min(length - done);
            if count == 0 {
                return;
            }
            let address = part.iov_base.cast::<u8>().wrapping_add(skip);
            // SAFETY: it is in a part of the memory that the caller keeps, and nobody has a reference there.
            let slice = unsafe { VolatileSlice::new(address, count) };
            copy(slice, done);
            done += count;
            skip = 0;
        }
    }
}
