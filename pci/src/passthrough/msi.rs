//! MSI: one to 32 interrupts whose messages differ in the low bits of their data.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.8.1.

use super::lists::Found;
use super::reader::Reader;
use crate::MsiMessage;
use crate::config_space::ConfigSpace;
use crate::device::{Device, DeviceError, IrqKind};

/// The capability's id.
pub(super) const ID: u16 = 0x05;
/// Offset of message control in the capability.
const CONTROL: usize = 2;
/// Offset of the message's address.
const ADDRESS: usize = 4;
/// Message control: MSI is on.
const ENABLE: u16 = 1 << 0;
/// Message control: the address has 64 bits.
const WIDE: u16 = 1 << 7;
/// Message control: there are mask and pending bits.
const MASKABLE: u16 = 1 << 8;
/// First bit of the field of message control that says how many vectors there are, as a power of
/// two, and of the one that says how many are in use.
const CAPABLE: u32 = 1;
const IN_USE: u32 = 4;
/// What such a field can say.
const FIELD: u16 = 7;
/// The most that it says.
const MOST: u16 = 5;

/// The capability of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiLayout {
    /// Offset of the capability.
    pub offset: usize,
    /// Vectors, as a power of two.
    bits: u16,
    wide: bool,
    maskable: bool,
}

/// What a guest has set up while MSI is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Msi {
    /// Vectors in use.
    pub count: usize,
    address: u64,
    data: u16,
    /// A bit for each vector that is masked.
    masked: u32,
}

impl MsiLayout {
    /// Reads the capability at `found`; `None` if it does not fit, or the device cannot signal any
    /// interrupt with it.
    pub fn read(
        reader: &Reader,
        found: &Found,
        device: &dyn Device,
    ) -> Result<Option<Self>, DeviceError> {
        let control = reader.u16(found.offset + CONTROL)?;
        let Some(irqs) = device.irqs(IrqKind::Msi).checked_ilog2() else {
            return Ok(None);
        };
        let layout = Self {
            offset: found.offset,
            bits: (control >> CAPABLE & FIELD).min(MOST).min(irqs as u16),
            wide: control & WIDE != 0,
            maskable: control & MASKABLE != 0,
        };
        Ok((layout.size() <= found.room).then_some(layout))
    }

    /// Bytes of the capability.
    pub fn size(&self) -> usize {
        match (self.maskable, self.wide) {
            (true, _) => self.masks() + 8,
            (false, _) => self.data() + 2,
        }
    }

    fn data(&self) -> usize {
        ADDRESS + if self.wide { 8 } else { 4 }
    }

    fn masks(&self) -> usize {
        self.data() + 4
    }

    /// Puts the emulated capability into a function's space.
    pub fn emulate(&self, space: &mut ConfigSpace) {
        let at = self.offset;
        let flags = if self.wide { WIDE } else { 0 } | if self.maskable { MASKABLE } else { 0 };
        let control = flags | self.bits << CAPABLE;
        space.set(at + CONTROL, &control.to_le_bytes());
        space.allow(at + CONTROL, &(ENABLE | FIELD << IN_USE).to_le_bytes());
        space.allow(at + ADDRESS, &(!3_u32).to_le_bytes());
        if self.wide {
            space.allow(at + ADDRESS + 4, &[0xff; 4]);
        }
        space.allow(at + self.data(), &[0xff; 2]);
        if self.maskable {
            let vectors = u32::MAX >> (32 - (1_u32 << self.bits));
            space.allow(at + self.masks(), &vectors.to_le_bytes());
        }
    }

    /// What the guest has set up; `None` while MSI is off.
    pub fn settings(&self, space: &ConfigSpace) -> Option<Msi> {
        let control = space.u16_at(self.offset + CONTROL);
        if control & ENABLE == 0 {
            return None;
        }
        let high = match self.wide {
            true => space.u32_at(self.offset + ADDRESS + 4),
            false => 0,
        };
        let low = space.u32_at(self.offset + ADDRESS);
        Some(Msi {
            count: 1 << (control >> IN_USE & FIELD).min(self.bits),
            address: u64::from(high) << 32 | u64::from(low),
            data: space.u16_at(self.offset + self.data()),
            masked: match self.maskable {
                true => space.u32_at(self.offset + self.masks()),
                false => 0,
            },
        })
    }
}

impl Msi {
    /// What a vector sends; `None` while it is masked.
    pub fn message(&self, vector: usize) -> Option<MsiMessage> {
        let is_masked = self.masked >> (vector & 31) & 1 != 0;
        let low_bits = self.count as u16 - 1;
        (!is_masked).then_some(MsiMessage {
            address: self.address,
            data: u32::from(self.data & !low_bits | vector as u16 & low_bits),
        })
    }
}
