//! What a driver does, as data, and as bytes: every string of bytes is a program.
#![cfg_attr(
    not(test),
    expect(dead_code, reason = "tests alone write programs as bytes")
)]

use crate::virtio::testing::RAM;

/// The most steps of a program that is read from bytes.
pub const MOST_STEPS: usize = 128;
/// The most buffers of a chain.
pub const MOST_PARTS: usize = 20;
/// Where the memory is that comes and goes: directly behind RAM.
pub const AREA: u64 = RAM as u64;
/// Bytes of it.
pub const AREA_SIZE: usize = 64 << 10;
/// Where buffers are.
pub const BUFFERS: u64 = 0x8_0000;
/// Bytes from a buffer to the next.
pub const BUFFER_STEP: u64 = 0x1000;
/// How many there are.
pub const BUFFER_COUNT: u8 = 0x80;
/// Where tables of indirect descriptors are, below buffers.
pub const INDIRECT: u64 = 0x6_0000;

/// A driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program(pub Vec<Step>);

/// Something that a driver does, or that happens to the device meanwhile. Numbers of queues are taken
/// modulo how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes to the BAR: up to eight bytes.
    Write { offset: u16, width: u8, value: u64 },
    /// Reads from it.
    Read { offset: u16, width: u8 },
    /// Writes to configuration space: 1, 2 or 4 bytes.
    WriteConfig { offset: u16, width: u8, value: u32 },
    /// Reads from it.
    ReadConfig { offset: u16, width: u8 },
    /// Writes guest memory.
    Fill { at: Place, bytes: Vec<u8> },
    /// Writes a descriptor of a queue.
    Describe {
        queue: u8,
        at: u16,
        buffer: Place,
        length: Length,
        flags: u16,
        next: u16,
    },
    /// Makes a request, in descriptors from `first` on or in a table of their own.
    Chain {
        queue: u8,
        first: u8,
        indirect: bool,
        parts: Vec<Part>,
    },
    /// Puts a head into the available ring.
    Offer { queue: u8, head: u16 },
    /// Says that so many more are available than there are.
    Jump { queue: u8, by: u16 },
    /// Says from where on it wants to be told: `used_event`, or flags without event indices.
    Event { queue: u8, value: u16 },
    /// Tells the device, by its event.
    Kick { queue: u8 },
    /// Tells the device, by a register.
    Notify { queue: u8 },
    /// Sets a queue up, wherever that is.
    SetUp {
        queue: u8,
        size: u16,
        descriptors: Place,
        available: Place,
        used: Place,
    },
    /// Resets, and negotiates what is offered, less or more some bits.
    Negotiate { other: u64 },
    /// Says that the driver is ready.
    DriverOk,
    /// Does it all by the rules, with queues of 2 to the power of this many entries at most.
    Start { without: u8, exponent: u8 },
    /// Resets.
    Reset,
    /// The device stands still.
    Pause,
    /// It goes on.
    Resume,
    /// Memory goes.
    Leave,
    /// It comes back.
    Return,
    /// Waits until the device has done what it was told of.
    Rest,
    /// The host's side does something.
    Host { what: u8 },
}

/// A buffer of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub at: Place,
    pub length: Length,
    /// See [`flag`].
    pub flags: u8,
    /// What is written there before: one of the contents that the device's table has, from 1 on; nothing
    /// if it is 0.
    pub content: u8,
}

/// Bits of [`Part::flags`].
pub mod flag {
    /// The device may write it.
    pub const WRITABLE: u8 = 1;
    /// It is a table of descriptors.
    pub const TABLE: u8 = 2;
    /// The chain ends here, whatever follows.
    pub const ENDS: u8 = 4;
    /// The next one is the first one.
    pub const LOOPS: u8 = 8;
}

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A buffer of a page, or a few bytes from it.
    Buffer { slot: u8, delta: i8 },
    /// A table of indirect descriptors.
    Table { slot: u8 },
    /// In a queue: its descriptors, its available ring, its used ring.
    Queue { queue: u8, part: u8, offset: u16 },
    /// Around the end of memory.
    End { delta: i16 },
    /// Around the end of RAM, where memory begins that comes and goes.
    Seam { delta: i16 },
    /// Anywhere.
    Any(u64),
}

/// How many bytes: as many, or one of those that are special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length(pub u16);

/// Lengths that are special.
const SPECIAL: [u32; 16] = [
    u32::MAX,
    0x8000_0000,
    0x7fff_ffff,
    0x1_0000,
    0x1_0001,
    0x2_0000,
    RAM as u32,
    RAM as u32 + AREA_SIZE as u32,
    0xffff_fff0,
    0xf_fff0,
    0x10_0010,
    0x8_0000,
    0x4000_0000,
    0xffff_fe00,
    0x2_0200,
    0x1_fe00,
];

/// The first number that stands for another one.
pub const FIRST_SPECIAL: u16 = 0xfff0;

impl Length {
    pub fn bytes(self) -> u32 {
        match self.0.checked_sub(FIRST_SPECIAL) {
            Some(special) => SPECIAL[usize::from(special)],
            None => self.0.into(),
        }
    }
}

impl Program {
    /// The program that bytes are. What is missing at their end is zero.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut source = Source(bytes);
        let mut steps = Vec::new();
        while !source.0.is_empty() && steps.len() < MOST_STEPS {
            steps.push(step(&mut source));
        }
        Self(steps)
    }

    /// The bytes that are this program.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for step in &self.0 {
            put_step(&mut bytes, step);
        }
        bytes
    }
}

struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let count = N.min(self.0.len());
        taken[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn place(&mut self) -> Place {
        match self.u8() % 6 {
            0 => Place::Buffer {
                slot: self.u8() % BUFFER_COUNT,
                delta: self.u8() as i8,
            },
            1 => Place::Table { slot: self.u8() },
            2 => Place::Queue {
                queue: self.u8(),
                part: self.u8() % 3,
                offset: self.u16(),
            },
            3 => Place::End {
                delta: self.u16() as i16,
            },
            4 => Place::Seam {
                delta: self.u16() as i16,
            },
            _ => Place::Any(self.u64()),
        }
    }

    fn part(&mut self) -> Part {
        Part {
            at: self.place(),
            length: Length(self.u16()),
            flags: self.u8() & 15,
            content: self.u8(),
        }
    }
}

fn put_place(bytes: &mut Vec<u8>, place: Place) {
    match place {
        Place::Buffer { slot, delta } => bytes.extend([0, slot, delta as u8]),
        Place::Table { slot } => bytes.extend([1, slot]),
        Place::Queue {
            queue,
            part,
            offset,
        } => {
            bytes.extend([2, queue, part]);
            bytes.extend(offset.to_le_bytes());
        }
        Place::End { delta } => {
            bytes.push(3);
            bytes.extend(delta.to_le_bytes());
        }
        Place::Seam { delta } => {
            bytes.push(4);
            bytes.extend(delta.to_le_bytes());
        }
        Place::Any(address) => {
            bytes.push(5);
            bytes.extend(address.to_le_bytes());
        }
    }
}

/// How many kinds of steps there are.
const KINDS: u8 = 23;

fn step(source: &mut Source<'_>) -> Step {
    match source.u8() % KINDS {
        0 => Step::Write {
            offset: source.u16(),
            width: source.u8() % 9,
            value: source.u64(),
        },
        1 => Step::Read {
            offset: source.u16(),
            width: source.u8() % 9,
        },
        2 => Step::WriteConfig {
            offset: source.u16(),
            width: source.u8() % 3,
            value: source.u32(),
        },
        3 => Step::ReadConfig {
            offset: source.u16(),
            width: source.u8() % 3,
        },
        4 => {
            let at = source.place();
            let count = source.u8();
            let bytes = (0..count).map(|_| source.u8()).collect();
            Step::Fill { at, bytes }
        }
        5 => Step::Describe {
            queue: source.u8(),
            at: source.u16(),
            buffer: source.place(),
            length: Length(source.u16()),
            flags: source.u16(),
            next: source.u16(),
        },
        6 => {
            let (queue, first) = (source.u8(), source.u8());
            let kind = usize::from(source.u8());
            let count = kind / 2 % (MOST_PARTS + 1);
            Step::Chain {
                queue,
                first,
                indirect: kind % 2 == 1,
                parts: (0..count).map(|_| source.part()).collect(),
            }
        }
        7 => Step::Offer {
            queue: source.u8(),
            head: source.u16(),
        },
        8 => Step::Jump {
            queue: source.u8(),
            by: source.u16(),
        },
        9 => Step::Event {
            queue: source.u8(),
            value: source.u16(),
        },
        10 => Step::Kick { queue: source.u8() },
        11 => Step::Notify { queue: source.u8() },
        12 => Step::SetUp {
            queue: source.u8(),
            size: source.u16(),
            descriptors: source.place(),
            available: source.place(),
            used: source.place(),
        },
        13 => Step::Negotiate {
            other: source.u64(),
        },
        14 => Step::DriverOk,
        15 => Step::Start {
            without: source.u8() % 8,
            exponent: source.u8() % 11,
        },
        16 => Step::Reset,
        17 => Step::Pause,
        18 => Step::Resume,
        19 => Step::Leave,
        20 => Step::Return,
        21 => Step::Rest,
        _ => Step::Host { what: source.u8() },
    }
}

fn put_step(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write {
            offset,
            width,
            value,
        } => {
            put_access(bytes, 0, *offset, *width);
            bytes.extend(value.to_le_bytes());
        }
        Step::Read { offset, width } => put_access(bytes, 1, *offset, *width),
        Step::WriteConfig {
            offset,
            width,
            value,
        } => {
            put_access(bytes, 2, *offset, *width);
            bytes.extend(value.to_le_bytes());
        }
        Step::ReadConfig { offset, width } => put_access(bytes, 3, *offset, *width),
        Step::Fill { at, bytes: content } => {
            bytes.push(4);
            put_place(bytes, *at);
            let count = u8::try_from(content.len()).unwrap_or(u8::MAX);
            bytes.push(count);
            bytes.extend(&content[..count.into()]);
        }
        Step::Describe {
            queue,
            at,
            buffer,
            length,
            flags,
            next,
        } => {
            bytes.extend([5, *queue]);
            bytes.extend(at.to_le_bytes());
            put_place(bytes, *buffer);
            for value in [length.0, *flags, *next] {
                bytes.extend(value.to_le_bytes());
            }
        }
        Step::Chain {
            queue,
            first,
            indirect,
            parts,
        } => {
            let parts = &parts[..parts.len().min(MOST_PARTS)];
            let kind = parts.len() as u8 * 2 + u8::from(*indirect);
            bytes.extend([6, *queue, *first, kind]);
            for part in parts {
                put_place(bytes, part.at);
                bytes.extend(part.length.0.to_le_bytes());
                bytes.extend([part.flags, part.content]);
            }
        }
        Step::Offer { queue, head } => put_pair(bytes, 7, *queue, *head),
        Step::Jump { queue, by } => put_pair(bytes, 8, *queue, *by),
        Step::Event { queue, value } => put_pair(bytes, 9, *queue, *value),
        Step::Kick { queue } => bytes.extend([10, *queue]),
        Step::Notify { queue } => bytes.extend([11, *queue]),
        Step::SetUp {
            queue,
            size,
            descriptors,
            available,
            used,
        } => {
            put_pair(bytes, 12, *queue, *size);
            for place in [descriptors, available, used] {
                put_place(bytes, *place);
            }
        }
        Step::Negotiate { other } => {
            bytes.push(13);
            bytes.extend(other.to_le_bytes());
        }
        Step::DriverOk => bytes.push(14),
        Step::Start { without, exponent } => bytes.extend([15, *without, *exponent]),
        Step::Reset => bytes.push(16),
        Step::Pause => bytes.push(17),
        Step::Resume => bytes.push(18),
        Step::Leave => bytes.push(19),
        Step::Return => bytes.push(20),
        Step::Rest => bytes.push(21),
        Step::Host { what } => bytes.extend([22, *what]),
    }
}

fn put_access(bytes: &mut Vec<u8>, kind: u8, offset: u16, width: u8) {
    bytes.push(kind);
    bytes.extend(offset.to_le_bytes());
    bytes.push(width);
}

fn put_pair(bytes: &mut Vec<u8>, kind: u8, queue: u8, value: u16) {
    bytes.extend([kind, queue]);
    bytes.extend(value.to_le_bytes());
}
