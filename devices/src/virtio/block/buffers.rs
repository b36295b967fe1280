//! Buffers of requests, as the host is given them.
#![expect(
    unsafe_code,
    reason = "copies between guest memory and buffers of our own, by addresses"
)]

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use libc::{c_int, iovec, off_t};
use vm_memory::{GuestMemory as _, Permissions, VolatileSlice};

use super::request::Part;
use crate::virtio::Memory;

/// The most buffers of one call (IOV_MAX, readv(2)).
pub const MOST: usize = 1024;
/// Bytes that go through a bounce buffer at once.
const BOUNCE: usize = 256 << 10;
/// Zeroes that are written at once to one place.
const ZEROES: usize = 64 << 10;

/// Zeroes for the host to read, aligned as direct I/O needs it.
#[repr(align(4096))]
pub struct Zeroes([u8; ZEROES]);

pub static NOTHING: Zeroes = Zeroes([0; ZEROES]);

impl Zeroes {
    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The buffers of a request. Keeps its room for the next one.
#[derive(Default)]
pub struct Buffers {
    list: Vec<iovec>,
    /// The next ones, where they are more than what is to be moved.
    part: Vec<iovec>,
    /// The first that is not done.
    at: usize,
    /// What guest memory the buffers are in.
    memory: Option<Arc<Memory>>,
}

// SAFETY: addresses are the same in all threads, and what they name is in `memory` or lives forever.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Takes parts of guest memory, which it keeps.
    ///
    /// # Returns
    /// Whether they all are in memory.
    pub fn set(&mut self, memory: &Arc<Memory>, parts: &[Part], permissions: Permissions) -> bool {
        self.clear();
        self.memory = Some(Arc::clone(memory));
        for part in parts {
            let Ok(slices) = memory.get_slices(part.gpa, part.bytes as usize, permissions) else {
                return false;
            };
            for slice in slices {
                let Ok(slice) = slice else {
                    return false;
                };
                self.list.push(iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        true
    }

    /// Zeroes to be written, as many as fit.
    pub fn set_zeroes(&mut self, bytes: u64) {
        self.list.clear();
        self.at = 0;
        let mut left = bytes;
        while left > 0 && self.list.len() < MOST {
            let length = left.min(ZEROES as u64);
            self.list.push(iovec {
                // The host only reads it.
                iov_base: NOTHING.0.as_ptr().cast_mut().cast(),
                iov_len: length as usize,
            });
            left -= length;
        }
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        self.list.clear();
        self.at = 0;
        self.memory = None;
    }

    /// What the host is given next. There until this is changed.
    pub fn next(&self) -> (*const iovec, u32) {
        let rest = self.list.get(self.at..).unwrap_or_default();
        // At most 1024.
        (rest.as_ptr(), rest.len().min(MOST) as u32)
    }

    /// What the host is given next, of so many bytes at most. There until this is changed.
    pub fn next_of(&mut self, bytes: u64) -> (*const iovec, u32) {
        let rest = self.list.get(self.at..).unwrap_or_default();
        let rest = rest.get(..rest.len().min(MOST)).unwrap_or_default();
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.part.clear();
        for buffer in rest {
            let iov_len = buffer.iov_len.min(left);
            if iov_len == 0 {
                break;
            }
            left -= iov_len;
            self.part.push(iovec { iov_len, ..*buffer });
        }
        // At most 1024.
        (self.part.as_ptr(), self.part.len() as u32)
    }

    /// Puts zeroes into the next bytes, and goes on behind them.
    pub fn fill(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.each(bytes, |slice, _| {
            let mut done = 0;
            while done < slice.len() {
                let count = (slice.len() - done).min(ZEROES);
                let zeroes = NOTHING.0.get(..count).unwrap_or_default();
                if let Ok(part) = slice.subslice(done, count) {
                    part.copy_from(zeroes);
                }
                done += count;
            }
        });
        self.advance(bytes);
    }

    /// Puts bytes into the next ones, and goes on behind them.
    pub fn give(&mut self, bytes: &[u8]) {
        self.each(bytes.len(), |slice, at| {
            if let Some(bytes) = bytes.get(at..at + slice.len()) {
                slice.copy_from(bytes);
            }
        });
        self.advance(bytes.len());
    }

    /// Whether all addresses and lengths are multiples of these powers of two.
    pub fn are_aligned(&self, memory: u64, length: u64) -> bool {
        self.list.iter().all(|buffer| {
            let (base, bytes) = (buffer.iov_base as u64, buffer.iov_len as u64);
            base & (memory - 1) == 0 && bytes & (length - 1) == 0
        })
    }

    /// Goes on behind so many bytes.
    pub fn advance(&mut self, bytes: usize) {
        let mut left = bytes;
        while let Some(buffer) = self.list.get_mut(self.at) {
            if left < buffer.iov_len {
                buffer.iov_base = buffer.iov_base.wrapping_byte_add(left);
                buffer.iov_len -= left;
                return;
            }
            left -= buffer.iov_len;
            self.at += 1;
        }
    }

    /// Copies from or to the next bytes, without going on. Calls `copy` with a part of guest memory and
    /// where in the bytes it belongs.
    fn each(&self, bytes: usize, mut copy: impl FnMut(VolatileSlice<'_>, usize)) {
        let mut done = 0;
        for buffer in self.list.get(self.at..).unwrap_or_default() {
            let length = buffer.iov_len.min(bytes - done);
            if length == 0 {
                return;
            }
            // SAFETY: it is in the memory that is kept, or in zeroes, which are only read: nothing is
            // bounced for those.
            let slice = unsafe { VolatileSlice::new(buffer.iov_base.cast(), length) };
            copy(slice, done);
            done += length;
        }
    }
}

/// A buffer of our own, for what guests' buffers are not aligned enough for.
pub struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    /// The host is given this.
    buffer: Box<iovec>,
}

// SAFETY: it owns what its address names.
unsafe impl Send for Bounce {}

impl Bounce {
    /// One that is aligned to `memory`, a power of two.
    pub fn new(memory: u64) -> Self {
        let align = usize::try_from(memory).unwrap_or(BOUNCE).min(BOUNCE);
        let bytes = vec![0; BOUNCE + align];
        let start = bytes.as_ptr().align_offset(align).min(align);
        Self {
            bytes,
            start,
            buffer: Box::new(iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }),
        }
    }

    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let end = self.start.saturating_add(bytes.min(BOUNCE));
        self.bytes.get_mut(self.start..end).unwrap_or_default()
    }

    /// What the host is given next, of so many bytes. There until this is called again.
    pub fn next(&mut self, left: u64, filled_from: Option<&Buffers>) -> (*const iovec, u32) {
        let length = usize::try_from(left).unwrap_or(BOUNCE).min(BOUNCE);
        let room = self.room(length);
        if let Some(buffers) = filled_from {
            buffers.each(length, |slice, at| {
                if let Some(room) = room.get_mut(at..at + slice.len()) {
                    slice.copy_to(room);
                }
            });
        }
        let iov_base = room.as_mut_ptr().cast();
        *self.buffer = iovec {
            iov_base,
            iov_len: length,
        };
        (&raw const *self.buffer, 1)
    }

    /// Gives to guest memory what was read.
    pub fn give(&mut self, buffers: &Buffers, bytes: usize) {
        let room = self.room(bytes);
        buffers.each(bytes, |slice, at| {
            if let Some(room) = room.get(at..at + slice.len()) {
                slice.copy_from(room);
            }
        });
    }
}

/// The buffers of a request that another thread works on.
#[derive(Default)]
pub struct Scatter {
    pub buffers: Buffers,
    /// Through which it goes, if the host cannot take them as they are.
    pub bounce: Option<Bounce>,
}

impl Scatter {
    /// Reads bytes of a file into the next ones, and goes on behind them.
    ///
    /// # Returns
    /// How many.
    ///
    /// # Errors
    /// The host fails.
    pub fn read(&mut self, file: RawFd, offset: u64, bytes: u64) -> io::Result<u64> {
        let (iovecs, count) = match &mut self.bounce {
            Some(bounce) => bounce.next(bytes, None),
            None => self.buffers.next_of(bytes),
        };
        let moved = moved(|| {
            // SAFETY: the buffers are in memory that is kept, or are our own.
            unsafe { libc::preadv(file, iovecs, count as c_int, offset as off_t) }
        })?;
        if let Some(bounce) = &mut self.bounce {
            bounce.give(&self.buffers, moved);
        }
        self.buffers.advance(moved);
        Ok(moved as u64)
    }

    /// Writes the next bytes to a file, and goes on behind them.
    ///
    /// # Returns
    /// How many.
    ///
    /// # Errors
    /// The host fails.
    pub fn write(&mut self, file: RawFd, offset: u64, bytes: u64) -> io::Result<u64> {
        let (iovecs, count) = match &mut self.bounce {
            Some(bounce) => bounce.next(bytes, Some(&self.buffers)),
            None => self.buffers.next_of(bytes),
        };
        let moved = moved(|| {
            // SAFETY: the buffers are in memory that is kept, or are our own.
            unsafe { libc::pwritev(file, iovecs, count as c_int, offset as off_t) }
        })?;
        self.buffers.advance(moved);
        Ok(moved as u64)
    }
}

/// Asks the host until nothing interrupts it.
fn moved(mut ask: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(ask()) {
            Ok(moved) => return Ok(moved),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
