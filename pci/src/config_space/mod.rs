//! The registers of a function's configuration space: bytes, and which bits a guest may change.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 6.0, chapter 7.

mod bars;
mod capabilities;

use serde::{Deserialize, Serialize};

pub use bars::{Bar, BarError, BarKind};
pub use capabilities::CapabilityError;

/// Bytes of a configuration space.
pub const SIZE: usize = 4096;
/// Bytes that are reachable without ECAM, and first offset of extended capabilities.
pub(crate) const CONVENTIONAL_SIZE: usize = 256;

/// Offsets of a type 0 header (PCI 3.0, figure 6-1).
pub(crate) mod offset {
    pub const VENDOR: usize = 0x00;
    pub const DEVICE: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const CACHE_LINE_SIZE: usize = 0x0c;
    pub const LATENCY_TIMER: usize = 0x0d;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const BARS: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub const SUBSYSTEM: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    pub const MIN_GRANT: usize = 0x3e;
    pub const MAX_LATENCY: usize = 0x3f;
    pub const FIRST_CAPABILITY: usize = 0x40;
}

/// Command register bits that a guest may change: I/O, memory, bus master, parity error response,
/// SERR#, interrupt disable (PCI 3.0, section 6.2.2).
const COMMAND_WRITABLE: u16 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10;
pub(crate) const COMMAND_IO: u16 = 1 << 0;
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;
pub(crate) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status bit: there is a list of capabilities.
pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What a function is (PCI 3.0, section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, sub-class and programming interface, as in `0x06_00_00`.
    pub class: u32,
    /// Vendor id of the subsystem.
    pub subsystem_vendor: u16,
    /// Id of the subsystem.
    pub subsystem: u16,
}

/// The configuration space of a function with a type 0 header.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; SIZE]>,
    /// Bits that a guest may change.
    writable: Box<[u8; SIZE]>,
    /// Bits that a guest clears by writing one.
    cleared: Box<[u8; SIZE]>,
    bars: [Option<Bar>; 6],
    /// Where the next capability goes, and the byte that will point to it.
    next_capability: usize,
    link: usize,
    /// Where the next extended capability goes, and the header that will point to it.
    next_extended: usize,
    extended_link: Option<usize>,
}

impl ConfigSpace {
    /// A function without BARs and capabilities, whose decoders are off.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: Box::new([0; SIZE]),
            writable: Box::new([0; SIZE]),
            cleared: Box::new([0; SIZE]),
            bars: [None; 6],
            next_capability: offset::FIRST_CAPABILITY,
            link: offset::CAPABILITIES,
            next_extended: CONVENTIONAL_SIZE,
            extended_link: None,
        };
        let Identity {
            vendor,
            device,
            revision,
            class,
            subsystem_vendor,
            subsystem,
        } = *identity;
        let [interface, sub_class, base_class, _] = class.to_le_bytes();
        space.set(offset::VENDOR, &vendor.to_le_bytes());
        space.set(offset::DEVICE, &device.to_le_bytes());
        space.set(offset::REVISION, &[revision]);
        space.set(offset::CLASS, &[interface, sub_class, base_class]);
        space.set(offset::SUBSYSTEM_VENDOR, &subsystem_vendor.to_le_bytes());
        space.set(offset::SUBSYSTEM, &subsystem.to_le_bytes());
        space.allow(offset::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(offset::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Gives the function an interrupt pin: 1 is INTA#.
    pub fn set_interrupt_pin(&mut self, pin: u8, line: u8) {
        self.set(offset::INTERRUPT_PIN, &[pin]);
        self.set(offset::INTERRUPT_LINE, &[line]);
    }

    /// Changes registers from the device's side. What does not fit is left out.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        copy(&mut self.bytes[..], offset, bytes);
    }

    /// Lets guests change the bits of `mask` at `offset`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        copy(&mut self.writable[..], offset, mask);
    }

    /// Lets guests clear the bits of `mask` at `offset` by writing ones.
    pub fn allow_clearing(&mut self, offset: usize, mask: &[u8]) {
        copy(&mut self.cleared[..], offset, mask);
    }

    /// The 16 bits at `offset`; ones outside.
    pub fn u16_at(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The 32 bits at `offset`; ones outside.
    pub fn u32_at(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Whether the function answers at the I/O addresses of its BARs.
    pub fn decodes_io(&self) -> bool {
        self.u16_at(offset::COMMAND) & COMMAND_IO != 0
    }

    /// Whether the function answers at the memory addresses of its BARs.
    pub fn decodes_memory(&self) -> bool {
        self.u16_at(offset::COMMAND) & COMMAND_MEMORY != 0
    }

    /// Whether the function may reach memory and send messages by itself.
    pub fn is_bus_master(&self) -> bool {
        self.u16_at(offset::COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// A guest's read. What lies outside reads as ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// A guest's write. Bits that it may not change stay as they are.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, value) in (offset..).zip(data) {
            let (Some(byte), Some(writable), Some(cleared)) = (
                self.bytes.get_mut(at),
                self.writable.get(at),
                self.cleared.get(at),
            ) else {
                return;
            };
            *byte = (*byte & !writable | value & writable) & !(value & cleared);
        }
    }
}

/// Copies what fits.
pub(crate) fn copy(target: &mut [u8], offset: usize, source: &[u8]) {
    for (at, byte) in (offset..).zip(source) {
        if let Some(target) = target.get_mut(at) {
            *target = *byte;
        }
    }
}

#[cfg(test)]
mod tests;
