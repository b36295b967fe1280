//! Bytes that a guest has sent and a Unix socket did not take yet.

use crate::virtio::buffers::Buffers;

/// Rings without bytes that are kept for the next connection that needs one.
const SPARE: usize = 8;

/// A buffer that has an end.
pub struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    length: usize,
}

impl Ring {
    fn new(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity].into_boxed_slice(),
            start: 0,
            length: 0,
        }
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Takes so many bytes of guest memory, as far as there is room.
    pub fn push(&mut self, buffers: &Buffers, bytes: usize) {
        let bytes = bytes.min(self.bytes.len() - self.length);
        let end = self.start + self.length;
        buffers.each(bytes, |slice, at| {
            let capacity = self.bytes.len();
            let at = (end + at) % capacity;
            let first = slice.len().min(capacity - at);
            if let Some(room) = self.bytes.get_mut(at..at + first) {
                slice.copy_to(room);
            }
            let rest = slice.offset(first).ok();
            if let Some((rest, room)) = rest.zip(self.bytes.get_mut(..slice.len() - first)) {
                rest.copy_to(room);
            }
        });
        self.length += bytes;
    }

    /// What is in it, the first byte first.
    pub fn parts(&self) -> [&[u8]; 2] {
        let end = self.start + self.length;
        let first = self.bytes.get(self.start..end.min(self.bytes.len()));
        let second = self.bytes.get(..end.saturating_sub(self.bytes.len()));
        [first.unwrap_or_default(), second.unwrap_or_default()]
    }

    /// Lets the first bytes go.
    pub fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.length);
        self.start = (self.start + bytes) % self.bytes.len();
        self.length -= bytes;
    }
}

/// Makes rings, and keeps some.
pub struct Rings {
    capacity: usize,
    spare: Vec<Ring>,
}

impl Rings {
    /// Makes rings of so many bytes, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            spare: Vec::new(),
        }
    }

    /// An empty one.
    pub fn get(&mut self) -> Ring {
        let spare = self.spare.pop();
        spare.unwrap_or_else(|| Ring::new(self.capacity))
    }

    /// Takes one back that is not needed any more, if it is there.
    pub fn put(&mut self, ring: &mut Option<Ring>) {
        if let Some(ring) = ring.take_if(|_| self.spare.len() < SPARE) {
            self.spare.push(Ring {
                start: 0,
                length: 0,
                ..ring
            });
        }
        *ring = None;
    }
}
