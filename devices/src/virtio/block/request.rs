//! What a driver asks of a disk (section 5.2.6).

use vm_memory::GuestAddress;

use super::backend::SECTOR;
use crate::virtio::buffers::{Part, take};
use crate::virtio::{Chain, MOST_DESCRIPTORS, Memory};

/// How a request has ended (section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What is asked for. Offsets and lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    Flush,
    Id,
    Discard {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        unmap: bool,
    },
    /// It is answered with this at once.
    Nothing(Status),
}

/// Takes requests apart; keeps its room for the next one.
#[derive(Default)]
pub struct Parser {
    readable: Vec<Part>,
    writable: Vec<Part>,
}

/// A request.
pub struct Request<'a> {
    pub asked: Asked,
    /// Where its status goes; nothing if the driver has left no room, or has made too long a request.
    pub status: Option<GuestAddress>,
    /// What is written to the disk.
    pub out: &'a [Part],
    /// What is read from the disk.
    pub into: &'a [Part],
}

/// Types of requests (section 5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Bytes of a request's header.
const HEADER: usize = 16;
/// Bytes of a segment to discard or to write zeroes to.
const SEGMENT: usize = 16;
/// The segment may be unmapped.
const UNMAP: u32 = 1;

impl Parser {
    /// Takes a chain apart. How a driver cuts it into descriptors is its own business (section 2.7.4.1).
    pub fn parse(&mut self, chain: Chain, memory: &Memory) -> Request<'_> {
        self.readable.clear();
        self.writable.clear();
        for (count, descriptor) in chain.enumerate() {
            // Each takes room here.
            if count == MOST_DESCRIPTORS {
                return self.too_long();
            }
            let part = Part {
                gpa: descriptor.addr(),
                bytes: descriptor.len(),
            };
            if part.bytes == 0 {
                continue;
            }
            match descriptor.is_write_only() {
                true => self.writable.push(part),
                false => self.readable.push(part),
            }
        }
        let status = take_last_byte(&mut self.writable);
        let header: Option<[u8; HEADER]> = take(&mut self.readable, memory);
        let asked = match header {
            Some(header) => self.asked(&header, memory),
            None => Asked::Nothing(Status::IoError),
        };
        Request {
            asked,
            status,
            out: &self.readable,
            into: &self.writable,
        }
    }

    /// Nobody knows where the status of such a request goes.
    fn too_long(&mut self) -> Request<'_> {
        self.readable.clear();
        self.writable.clear();
        Request {
            asked: Asked::Nothing(Status::IoError),
            status: None,
            out: &[],
            into: &[],
        }
    }

    fn asked(&mut self, header: &[u8; HEADER], memory: &Memory) -> Asked {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let offset = u64::from_le_bytes(sector).checked_mul(SECTOR);
        match (kind, offset) {
            (kind::IN, Some(offset)) => Asked::Read { offset },
            (kind::OUT, Some(offset)) => Asked::Write { offset },
            (kind::IN | kind::OUT, None) => Asked::Nothing(Status::IoError),
            (kind::FLUSH, _) => Asked::Flush,
            (kind::GET_ID, _) => Asked::Id,
            (kind::DISCARD | kind::WRITE_ZEROES, _) => self.segment(kind, memory),
            _ => Asked::Nothing(Status::Unsupported),
        }
    }

    /// The one segment that there may be.
    fn segment(&mut self, kind: u32, memory: &Memory) -> Asked {
        let segment: Option<[u8; SEGMENT]> = take(&mut self.readable, memory);
        let (Some(segment), []) = (segment, &self.readable[..]) else {
            return Asked::Nothing(Status::IoError);
        };
        let [s0, s1, s2, s3, s4, s5, s6, s7, rest @ ..] = segment;
        let [n0, n1, n2, n3, f0, f1, f2, f3] = rest;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let length = u64::from(sectors) * SECTOR;
        let Some(offset) = sector.checked_mul(SECTOR) else {
            return Asked::Nothing(Status::IoError);
        };
        match (kind, flags) {
            (kind::DISCARD, 0) => Asked::Discard { offset, length },
            (kind::WRITE_ZEROES, 0 | UNMAP) => Asked::WriteZeroes {
                offset,
                length,
                unmap: flags == UNMAP,
            },
            // Section 5.2.6.2: flags that are not known, and unmapping of what is discarded.
            _ => Asked::Nothing(Status::Unsupported),
        }
    }
}

fn take_last_byte(parts: &mut Vec<Part>) -> Option<GuestAddress> {
    let last = parts.last_mut()?;
    // No part is empty.
    last.bytes -= 1;
    let gpa = last.gpa.0.checked_add(last.bytes.into());
    if last.bytes == 0 {
        parts.pop();
    }
    gpa.map(GuestAddress)
}
