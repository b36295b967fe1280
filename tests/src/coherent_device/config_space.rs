//! The device's configuration space: that of an express endpoint with power management and MSI-X.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 6.0, section
//! 7.5. Where capabilities are is where NVIDIA's devices have them.

use super::Options;
use super::registers::{self, MSIX_PENDING, MSIX_TABLE};

const SIZE: usize = 4096;

const COMMAND: usize = 0x04;
const BARS: usize = 0x10;
const POWER_MANAGEMENT: usize = 0x60;
const EXPRESS: usize = 0x78;
const MSIX: usize = 0xc8;

/// Memory decoding, bus mastering, parity, SERR#, INTx disable: what a function with memory BARs has.
const COMMAND_WRITABLE: u16 = 0x0546;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// 64-bit memory that may be prefetched.
const BAR_64_PREFETCHABLE: u64 = 0xc;
/// Of the byte above the device control register's first.
const INITIATE_FUNCTION_LEVEL_RESET: u8 = 1 << 7;

/// What a write asked for beyond changing bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A function-level reset.
    Reset,
}

/// The configuration space.
pub struct ConfigSpace {
    initial: Box<[u8; SIZE]>,
    bytes: Box<[u8; SIZE]>,
    /// Bits that can be written.
    writable: Box<[u8; SIZE]>,
}

impl ConfigSpace {
    /// That of a device as `options` want it, after a reset.
    pub fn new(options: &Options) -> Self {
        let zeros = || Box::new([0; SIZE]);
        let mut space = Self {
            initial: zeros(),
            bytes: zeros(),
            writable: zeros(),
        };
        space.header(options);
        space.bar(0, registers::SIZE, 0);
        space.bar(2, options.reserved, BAR_64_PREFETCHABLE);
        space.bar(4, options.memory, BAR_64_PREFETCHABLE);
        space.power_management();
        space.express(options.msix > 0);
        if let Some(last) = options.msix.checked_sub(1) {
            space.msix(last);
        }
        space.reset();
        space
    }

    /// Puts everything back as it was.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&*self.initial);
    }

    /// Reads `data.len()` bytes at `offset`; beyond the end there are ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        for (byte, value) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *byte = *value;
        }
    }

    /// Writes `data` at `offset`, as far as bits can be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let Ok(offset) = usize::try_from(offset) else {
            return Effect::None;
        };
        let mut effect = Effect::None;
        let bytes = self.bytes.iter_mut().zip(&*self.writable).enumerate();
        for ((at, (byte, mask)), value) in bytes.skip(offset).zip(data) {
            *byte = (*byte & !mask) | (value & mask);
            if at == EXPRESS + 9 && value & INITIATE_FUNCTION_LEVEL_RESET != 0 {
                effect = Effect::Reset;
            }
        }
        effect
    }

    /// Whether the device may reach memory and send interrupts.
    pub fn is_bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }

    fn set(&mut self, offset: usize, value: &[u8]) {
        self.initial[offset..offset + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    fn header(&mut self, options: &Options) {
        self.set(0x00, &options.vendor.to_le_bytes());
        self.set(0x02, &options.device.to_le_bytes());
        self.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Status: there is a list of capabilities.
        self.set(0x06, &[0x10]);
        // Revision, then class 03.02.00: a 3D controller.
        self.set(0x08, &[0xa1, 0x00, 0x02, 0x03]);
        self.allow(0x0c, &[0xff]);
        self.set(0x2c, &options.vendor.to_le_bytes());
        self.set(0x2e, &options.device.to_le_bytes());
        self.set(0x34, &[POWER_MANAGEMENT as u8]);
        // Interrupt line.
        self.allow(0x3c, &[0xff]);
    }

    /// A BAR of `size` bytes, a power of two or 0, in registers from `index`.
    fn bar(&mut self, index: usize, size: u64, flags: u64) {
        if size == 0 {
            return;
        }
        let length = if flags == 0 { 4 } else { 8 };
        let offset = BARS + index * 4;
        self.set(offset, &flags.to_le_bytes()[..length]);
        self.allow(offset, &(!(size - 1)).to_le_bytes()[..length]);
    }

    fn power_management(&mut self) {
        // Version 3, no wake-up events.
        self.set(POWER_MANAGEMENT, &[0x01, EXPRESS as u8, 0x03, 0x00]);
        // It keeps its state in D3hot, and has only that and D0.
        self.set(POWER_MANAGEMENT + 4, &[0x08]);
        self.allow(POWER_MANAGEMENT + 4, &[0x03]);
    }

    fn express(&mut self, has_msix: bool) {
        let next = if has_msix { MSIX as u8 } else { 0 };
        // Version 2, an endpoint.
        self.set(EXPRESS, &[0x10, next, 0x02, 0x00]);
        // Payloads up to 256 bytes, role-based errors, function-level reset.
        self.set(EXPRESS + 4, &0x1000_8001_u32.to_le_bytes());
        self.allow(EXPRESS + 8, &0x7fff_u16.to_le_bytes());
        // 16 lanes at 16 GT/s: capability and status of the link, and the speeds that it supports.
        self.set(EXPRESS + 0x0c, &0x0104_u32.to_le_bytes());
        self.allow(EXPRESS + 0x10, &0x01c3_u16.to_le_bytes());
        self.set(EXPRESS + 0x12, &0x0104_u16.to_le_bytes());
        self.set(EXPRESS + 0x2c, &0x001e_u32.to_le_bytes());
    }

    /// MSI-X with vectors up to `last`, table and pending bits in BAR 0.
    fn msix(&mut self, last: u16) {
        self.set(MSIX, &[0x11, 0x00]);
        self.set(MSIX + 2, &last.to_le_bytes());
        // Enable and mask all.
        self.allow(MSIX + 3, &[0xc0]);
        self.set(MSIX + 4, &(MSIX_TABLE as u32).to_le_bytes());
        self.set(MSIX + 8, &(MSIX_PENDING as u32).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(options: &Options) -> ConfigSpace {
        ConfigSpace::new(options)
    }

    fn read(space: &ConfigSpace, offset: u64) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(space: &mut ConfigSpace, offset: u64, value: u32) -> Effect {
        space.write(offset, &value.to_le_bytes())
    }

    /// What a driver matches on: vendor 10de, device 2342, class 0302.
    #[test]
    fn it_is_a_gh200_unless_it_is_told_otherwise() {
        let default = space(&Options::default());
        assert_eq!(read(&default, 0x00), 0x2342_10de);
        assert_eq!(read(&default, 0x08), 0x0302_00a1);
        let other = space(&Options {
            vendor: 0x1af4,
            device: 0x1234,
            ..Options::default()
        });
        assert_eq!(read(&other, 0x00), 0x1234_1af4);
        assert_eq!(read(&other, 0x2c), 0x1234_1af4);
    }

    #[test]
    fn bars_tell_their_sizes() {
        let mut space = space(&Options {
            memory: 8 << 30,
            reserved: 1 << 20,
            ..Options::default()
        });
        let sized = [
            0xff00_0000,
            0,
            0xfff0_000c,
            0xffff_ffff,
            0x0000_000c,
            0xffff_fffe,
        ];
        for (index, expected) in (0..).zip(sized) {
            write(&mut space, 0x10 + index * 4, u32::MAX);
            assert_eq!(read(&space, 0x10 + index * 4), expected, "BAR {index}");
        }
        // No expansion ROM.
        write(&mut space, 0x30, u32::MAX);
        assert_eq!(read(&space, 0x30), 0);
    }

    #[test]
    fn bars_that_are_not_wanted_are_not_there() {
        let mut space = space(&Options {
            memory: 0,
            reserved: 0,
            ..Options::default()
        });
        for offset in [0x14, 0x18, 0x1c, 0x20, 0x24] {
            write(&mut space, offset, u32::MAX);
            assert_eq!(read(&space, offset), 0, "{offset:#x}");
        }
    }

    /// Ids of the capabilities in the order of the list.
    fn capabilities(space: &ConfigSpace) -> Vec<u8> {
        let mut ids = Vec::new();
        let mut at = read(space, 0x34) as u8;
        while at != 0 && ids.len() < 10 {
            let [id, next, ..] = read(space, at.into()).to_le_bytes();
            ids.push(id);
            at = next;
        }
        ids
    }

    #[test]
    fn capabilities_are_listed() {
        let with = space(&Options::default());
        assert_eq!(capabilities(&with), [0x01, 0x10, 0x11]);
        // Eight vectors; table and pending bits in BAR 0.
        assert_eq!(read(&with, 0xc8) >> 16, 7);
        assert_eq!(read(&with, 0xcc), 0x00b9_0000);
        assert_eq!(read(&with, 0xd0), 0x00ba_0000);
        let without = space(&Options {
            msix: 0,
            ..Options::default()
        });
        assert_eq!(capabilities(&without), [0x01, 0x10]);
        assert_eq!(read(&without, 0xc8), 0);
    }

    #[test]
    fn a_reset_takes_back_what_was_written() {
        let mut space = space(&Options::default());
        assert!(!space.is_bus_master());
        assert_eq!(write(&mut space, 0x04, u32::MAX), Effect::None);
        assert_eq!(read(&space, 0x04), 0x0010_0546);
        assert!(space.is_bus_master());
        write(&mut space, 0x20, 0x4000_0000);
        space.reset();
        assert!(!space.is_bus_master());
        assert_eq!(read(&space, 0x20), 0xc);
        // Device control: bit 15 asks for a reset, and never reads as one.
        assert_eq!(write(&mut space, 0x80, 0x8000), Effect::Reset);
        assert_eq!(read(&space, 0x80), 0);
        assert_eq!(space.write(0x81, &[0x80]), Effect::Reset);
        assert_eq!(space.write(0x80, &[0x80]), Effect::None);
    }

    #[test]
    fn beyond_the_end_are_ones() {
        let mut space = space(&Options::default());
        assert_eq!(read(&space, 4094), 0xffff_0000);
        assert_eq!(read(&space, u64::MAX), u32::MAX);
        assert_eq!(write(&mut space, 4094, 0), Effect::None);
        assert_eq!(write(&mut space, u64::MAX, 0), Effect::None);
    }
}
