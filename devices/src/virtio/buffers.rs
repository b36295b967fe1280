//! Parts of guest memory, and how the host is given them.
#![expect(
    unsafe_code,
    reason = "copies between guest memory and buffers of our own, by addresses"
)]

use std::sync::Arc;

use libc::iovec;
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _, GuestRegionMmap,
    Permissions, VolatileSlice,
};

use super::Memory;

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

/// A part of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub gpa: GuestAddress,
    pub bytes: u32,
}

/// Bytes of all parts.
pub fn length_of(parts: &[Part]) -> u64 {
    parts.iter().map(|part| u64::from(part.bytes)).sum()
}

/// Reads bytes from the beginning of parts, and takes them away.
pub fn take<const N: usize>(parts: &mut Vec<Part>, memory: &Memory) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    let mut used = 0;
    for part in parts.iter_mut() {
        let room = bytes.get_mut(filled..)?;
        if room.is_empty() {
            break;
        }
        let count = room.len().min(part.bytes as usize);
        memory.read_slice(room.get_mut(..count)?, part.gpa).ok()?;
        filled += count;
        // At most as many as there are, and no more than N.
        part.bytes -= count as u32;
        part.gpa = GuestAddress(part.gpa.0.checked_add(count as u64)?);
        used += usize::from(part.bytes == 0);
    }
    parts.drain(..used);
    (filled == N).then_some(bytes)
}

/// Writes bytes to the beginning of parts.
///
/// # Returns
/// Whether all of them found room in memory.
pub fn put(parts: &[Part], memory: &Memory, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for part in parts {
        let (now, later) = rest.split_at(rest.len().min(part.bytes as usize));
        if memory.write_slice(now, part.gpa).is_err() {
            return false;
        }
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    rest.is_empty()
}

/// Leaves at most so many bytes of parts.
pub fn truncate(parts: &mut Vec<Part>, bytes: u64) {
    let mut left = bytes;
    parts.retain_mut(|part| {
        // No part is longer than it was.
        part.bytes = u64::from(part.bytes).min(left) as u32;
        left -= u64::from(part.bytes);
        part.bytes > 0
    });
}

/// Finds parts of guest memory for the host. Buffers are there for as long as somebody has the memory.
pub struct Finder<'m> {
    memory: &'m Memory,
    permissions: Permissions,
    /// Where the last part was is mostly where the next one is.
    last: Option<&'m GuestRegionMmap>,
}

impl<'m> Finder<'m> {
    /// For parts that are used in one way.
    pub fn new(memory: &'m Memory, permissions: Permissions) -> Self {
        Self {
            memory,
            permissions,
            last: None,
        }
    }

    /// Adds a part to a list. One that follows the part before at once makes that one's buffer longer, so that
    /// the host has less to do.
    ///
    /// # Returns
    /// Whether all of it is in memory; if not, buffers of some of it may have been added.
    pub fn add(&mut self, list: &mut Vec<iovec>, part: Part) -> bool {
        if let Some(buffer) = self.last.and_then(|region| within(region, part)) {
            if !join(list.last_mut(), buffer) {
                list.push(buffer);
            }
            return true;
        }
        // Buffers are not joined over the ends of regions, which may be of different kinds.
        self.last = vm_memory::GuestMemoryBackend::find_region(self.memory, part.gpa);
        if let Some(buffer) = self.last.and_then(|region| within(region, part)) {
            list.push(buffer);
            return true;
        }
        self.last = None;
        self.add_pieces(list, part)
    }

    /// Adds a part that is in several regions.
    fn add_pieces(&self, list: &mut Vec<iovec>, part: Part) -> bool {
        let pieces = self
            .memory
            .get_slices(part.gpa, part.bytes as usize, self.permissions);
        let Ok(pieces) = pieces else {
            return false;
        };
        for piece in pieces {
            let Ok(piece) = piece else {
                return false;
            };
            list.push(buffer_of(&piece));
        }
        true
    }
}

fn buffer_of(slice: &VolatileSlice<'_>) -> iovec {
    iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

/// A part of guest memory that is within a region of it.
fn within(region: &GuestRegionMmap, part: Part) -> Option<iovec> {
    let start = region.to_region_addr(part.gpa)?;
    let slice = region.get_slice(start, part.bytes as usize).ok()?;
    Some(buffer_of(&slice))
}

/// Makes a buffer longer by one that follows it at once.
fn join(last: Option<&mut iovec>, buffer: iovec) -> bool {
    let Some(last) = last else {
        return false;
    };
    let end = last.iov_base.wrapping_byte_add(last.iov_len);
    // No request has more than 4 GiB.
    let follows = end == buffer.iov_base;
    last.iov_len += if follows { buffer.iov_len } else { 0 };
    follows
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
        let mut finder = Finder::new(memory, permissions);
        let list = &mut self.list;
        parts.iter().all(|part| finder.add(list, *part))
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

    /// Leaves at most so many bytes of what is not done.
    pub fn truncate(&mut self, bytes: usize) {
        let mut left = bytes;
        let mut end = self.at;
        while let Some(buffer) = self.list.get_mut(end) {
            if left == 0 {
                break;
            }
            buffer.iov_len = buffer.iov_len.min(left);
            left -= buffer.iov_len;
            end += 1;
        }
        self.list.truncate(end);
    }

    /// Bytes that are not done.
    pub fn left(&self) -> usize {
        let rest = self.list.get(self.at..).unwrap_or_default();
        let lengths = rest.iter().map(|buffer| buffer.iov_len);
        lengths.fold(0, usize::saturating_add)
    }

    /// Copies from or to the next bytes, without going on. Calls `copy` with a part of guest memory and
    /// where in the bytes it belongs.
    pub fn each(&self, bytes: usize, mut copy: impl FnMut(VolatileSlice<'_>, usize)) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::testing::{RAM, Ram};

    fn part(gpa: u64, bytes: u32) -> Part {
        Part {
            gpa: GuestAddress(gpa),
            bytes,
        }
    }

    fn lengths(buffers: &Buffers) -> Vec<usize> {
        buffers.list.iter().map(|buffer| buffer.iov_len).collect()
    }

    #[test]
    fn parts_that_follow_each_other_are_one_buffer() {
        let ram = Ram::default();
        let memory = ram.memory.get();
        let mut buffers = Buffers::default();
        let parts = [
            part(0x1000, 0x1000),
            part(0x2000, 0x1000),
            part(0x3000, 1),
            // A gap, the same again, and backwards.
            part(0x3002, 2),
            part(0x3002, 2),
            part(0x3000, 2),
        ];
        assert!(buffers.set(&memory, &parts, Permissions::Write));
        assert_eq!(lengths(&buffers), [0x2001, 2, 2, 2]);
        buffers.clear();
    }

    proptest! {
        /// The host is given the same bytes as part by part, and as much of memory.
        #[test]
        fn buffers_are_the_parts(
            parts in prop::collection::vec((0..RAM as u64 + 16, 1..0x8000_u32), 1..20),
            steps in prop::collection::vec(any::<bool>(), 20),
        ) {
            let ram = Ram::default();
            let memory = ram.memory.get();
            let mut parts: Vec<Part> = parts.iter().map(|(gpa, bytes)| part(*gpa, *bytes)).collect();
            for at in 1..parts.len() {
                if steps[at] {
                    parts[at].gpa.0 = parts[at - 1].gpa.0 + u64::from(parts[at - 1].bytes);
                }
            }
            let mut one_by_one = Vec::new();
            let are_there = parts
                .iter()
                .all(|part| Finder::new(&memory, Permissions::Write).add(&mut one_by_one, *part));
            let mut buffers = Buffers::default();
            prop_assert_eq!(buffers.set(&memory, &parts, Permissions::Write), are_there);
            if are_there {
                let spans = |list: &[iovec]| {
                    let mut spans: Vec<(u64, u64)> = Vec::new();
                    for buffer in list {
                        let (start, length) = (buffer.iov_base as u64, buffer.iov_len as u64);
                        match spans.last_mut() {
                            Some(last) if last.0 + last.1 == start => last.1 += length,
                            _ => spans.push((start, length)),
                        }
                    }
                    spans
                };
                prop_assert_eq!(spans(&buffers.list), spans(&one_by_one));
                prop_assert_eq!(buffers.list.len(), spans(&one_by_one).len());
            }
            buffers.clear();
        }
    }
}
