//! Which capabilities a guest sees, and what of them is the device's own.
//!
//! All keep their offsets. What is hidden reads as zero and no list leads to it: what belongs to the
//! link or to the root of the host, and what nobody here knows.
//!
//! Source: PCI Local Bus Specification 3.0, appendix H; PCI Bus Power Management Interface
//! Specification 1.2, section 3.2; PCI Express Base Specification 6.0, sections 7.5.3, 7.9.5 and 9.3.

use super::filter::Filter;
use super::lists::{self, Found};
use super::msi::{self, MsiLayout};
use super::msix::{self, MsixLayout};
use super::reader::Reader;
use crate::BarFacts;
use crate::config_space::{CONVENTIONAL_SIZE, ConfigSpace, STATUS_CAPABILITIES, offset};
use crate::device::{Device, DeviceError};

const POWER_MANAGEMENT: u16 = 0x01;
const VITAL_PRODUCT_DATA: u16 = 0x03;
const VENDOR_SPECIFIC: u16 = 0x09;
const PCI_EXPRESS: u16 = 0x10;
const ADVANCED_FEATURES: u16 = 0x13;

const EXTENDED_VENDOR_SPECIFIC: u16 = 0x0b;
const SERIAL_NUMBER: u16 = 0x03;
const DESIGNATED_VENDOR_SPECIFIC: u16 = 0x23;

/// Where guests find the emulated parts.
#[derive(Default)]
pub(super) struct Offsets {
    /// MSI, if it is shown.
    pub msi: Option<MsiLayout>,
    /// MSI-X, if the device has it.
    pub msix: Option<MsixLayout>,
    /// Bits that reset the function when a guest writes ones to them: each a byte and a mask.
    pub resets: Vec<(usize, u8)>,
    /// PCI Express, if it is shown; there is one.
    has_express: bool,
}

/// Puts the capabilities of a device into a guest's space.
pub(super) struct Capabilities<'a> {
    pub reader: &'a Reader<'a>,
    pub device: &'a dyn Device,
    /// BARs that the guest is shown.
    pub bars: &'a [BarFacts],
    pub space: &'a mut ConfigSpace,
    pub filter: &'a mut Filter,
}

impl Capabilities<'_> {
    /// Both lists.
    pub fn place(&mut self) -> Result<Offsets, DeviceError> {
        let mut offsets = Offsets::default();
        let mut link = offset::CAPABILITIES;
        for found in lists::conventional(self.reader)? {
            if !self.place_one(&found, &mut offsets)? {
                continue;
            }
            // Ids and offsets in the first 256 bytes fit a byte.
            self.space.set(found.offset, &[found.id as u8, 0]);
            self.space.set(link, &[found.offset as u8]);
            link = found.offset + 1;
        }
        if link != offset::CAPABILITIES {
            let status = STATUS_CAPABILITIES.to_le_bytes();
            self.space.set(offset::STATUS, &status);
        }
        self.place_extended()?;
        Ok(offsets)
    }

    /// # Returns
    /// Whether the guest is shown it.
    fn place_one(&mut self, found: &Found, offsets: &mut Offsets) -> Result<bool, DeviceError> {
        match found.id {
            POWER_MANAGEMENT => self.power_management(found),
            VITAL_PRODUCT_DATA => Ok(self.vital_product_data(found)),
            VENDOR_SPECIFIC => self.vendor_specific(found),
            PCI_EXPRESS if !offsets.has_express => {
                offsets.has_express = self.pci_express(found, &mut offsets.resets)?;
                Ok(offsets.has_express)
            }
            ADVANCED_FEATURES => self.advanced_features(found, &mut offsets.resets),
            msi::ID if offsets.msi.is_none() => {
                offsets.msi = MsiLayout::read(self.reader, found, self.device)?;
                if let Some(msi) = &offsets.msi {
                    msi.emulate(self.space);
                }
                Ok(offsets.msi.is_some())
            }
            msix::ID if offsets.msix.is_none() => {
                offsets.msix = MsixLayout::read(self.reader, found, self.device, self.bars)?;
                match &offsets.msix {
                    Some(msix) if msix.vectors > 0 => {
                        let (body, writable) = msix.places.capability(msix.vectors);
                        self.space.set(found.offset + msix::CONTROL, &body);
                        self.space.allow(found.offset + msix::CONTROL, &writable);
                        Ok(true)
                    }
                    _ => Ok(false),
                }
            }
            _ => Ok(false),
        }
    }

    /// Power states are emulated and the device stays in D0: a guest loses nothing in D3hot, which
    /// No_Soft_Reset tells it. There is no PME, which would have to wake a host.
    fn power_management(&mut self, found: &Found) -> Result<bool, DeviceError> {
        const SIZE: usize = 8;
        const VERSION: u16 = 0b111;
        const NO_SOFT_RESET: u16 = 1 << 3;
        const POWER_STATE: u16 = 0b11;
        if found.room < SIZE {
            return Ok(false);
        }
        let at = found.offset;
        let version = self.reader.u16(at + 2)? & VERSION;
        self.space.set(at + 2, &version.to_le_bytes());
        self.space.set(at + 4, &NO_SOFT_RESET.to_le_bytes());
        self.space.allow(at + 4, &POWER_STATE.to_le_bytes());
        Ok(true)
    }

    fn vital_product_data(&mut self, found: &Found) -> bool {
        const SIZE: usize = 8;
        if found.room < SIZE {
            return false;
        }
        self.filter.show(found.offset + 2, &[0xff; SIZE - 2]);
        self.filter.pass(found.offset + 2, &[0xff; SIZE - 2]);
        true
    }

    fn vendor_specific(&mut self, found: &Found) -> Result<bool, DeviceError> {
        const HEADER: usize = 3;
        if found.room < HEADER {
            return Ok(false);
        }
        let length = usize::from(self.reader.u8(found.offset + 2)?);
        let length = length.clamp(HEADER, found.room);
        let body = vec![0xff; length - HEADER];
        self.space.set(found.offset + 2, &[length as u8]);
        self.filter.show(found.offset + HEADER, &body);
        self.filter.pass(found.offset + HEADER, &body);
        Ok(true)
    }

    /// There is no root port above it, so an endpoint becomes one that is integrated into the root
    /// complex, which has no link. What the host has set up along the path to the device stays: sizes
    /// of payloads and requests, tags, and error messages, which go to the host.
    fn pci_express(
        &mut self,
        found: &Found,
        resets: &mut Vec<(usize, u8)>,
    ) -> Result<bool, DeviceError> {
        /// Bytes that a function without a link has, of versions 1 and 2.
        const SIZES: [usize; 2] = [0x0c, 0x2c];
        const ENDPOINT: u16 = 0;
        const LEGACY_ENDPOINT: u16 = 1;
        const INTEGRATED_ENDPOINT: u16 = 9;
        const INTERRUPT_NUMBER: u16 = 0x1f << 9;
        const SLOT_POWER_LIMIT: u32 = 0x3ff << 18;
        const FLR: u32 = 1 << 28;
        /// Device control: relaxed ordering and no snoop are the driver's business.
        const CONTROL: u16 = 1 << 4 | 1 << 11;
        const INITIATE_FLR: u16 = 1 << 15;
        /// Device status: errors, cleared by ones; auxiliary power; transactions pending.
        const ERRORS: u8 = 0x0f;
        const STATUS: u8 = 0x3f;

        let at = found.offset;
        let flags = self.reader.u16(at + 2)?;
        let version = usize::from(flags & 0xf);
        let is_version_2 = version >= 2;
        let kind = flags >> 4 & 0xf;
        let is_endpoint = matches!(kind, ENDPOINT | LEGACY_ENDPOINT | INTEGRATED_ENDPOINT);
        if version == 0 || !is_endpoint || found.room < SIZES[usize::from(is_version_2)] {
            return Ok(false);
        }
        let flags = flags & (INTERRUPT_NUMBER | 0xf) | INTEGRATED_ENDPOINT << 4;
        self.space.set(at + 2, &flags.to_le_bytes());

        let mut capabilities = self.reader.u32(at + 4)? & !SLOT_POWER_LIMIT;
        if !self.device.can_reset() {
            capabilities &= !FLR;
        }
        self.space.set(at + 4, &capabilities.to_le_bytes());

        let control = at + 8;
        let value = self.reader.u16(control)? & !INITIATE_FLR;
        self.space.set(control, &value.to_le_bytes());
        let emulated = !(CONTROL | INITIATE_FLR);
        self.space.allow(control, &emulated.to_le_bytes());
        self.filter.show(control, &CONTROL.to_le_bytes());
        self.filter.pass(control, &CONTROL.to_le_bytes());
        self.filter.keep(control, &emulated.to_le_bytes());
        if capabilities & FLR != 0 {
            resets.push((control + 1, (INITIATE_FLR >> 8) as u8));
        }
        self.filter.show(at + 10, &[STATUS]);
        self.filter.pass(at + 10, &[ERRORS]);
        if is_version_2 {
            self.second_registers(at)?;
        }
        Ok(true)
    }

    /// Device capabilities 2 and device control 2.
    fn second_registers(&mut self, at: usize) -> Result<(), DeviceError> {
        /// Completion timeouts, and which AtomicOps the function completes.
        const CAPABILITIES: u32 = 0x1f | 0x7 << 7;
        /// Completion timeouts.
        const CONTROL: u8 = 0x1f;
        /// AtomicOps that the function requests: only the host knows whether its root takes them.
        const ATOMIC_REQUESTER: u8 = 1 << 6;
        let capabilities = self.reader.u32(at + 0x24)? & CAPABILITIES;
        self.space.set(at + 0x24, &capabilities.to_le_bytes());
        self.filter.show(at + 0x28, &[CONTROL | ATOMIC_REQUESTER]);
        self.filter.pass(at + 0x28, &[CONTROL]);
        self.filter.keep(at + 0x28, &[!CONTROL]);
        Ok(())
    }

    fn advanced_features(
        &mut self,
        found: &Found,
        resets: &mut Vec<(usize, u8)>,
    ) -> Result<bool, DeviceError> {
        const SIZE: u8 = 6;
        const TRANSACTIONS_PENDING: u8 = 1 << 0;
        const FLR: u8 = 1 << 1;
        const INITIATE_FLR: u8 = 1 << 0;
        if found.room < SIZE.into() {
            return Ok(false);
        }
        let at = found.offset;
        let mut capabilities = self.reader.u8(at + 3)? & (TRANSACTIONS_PENDING | FLR);
        if !self.device.can_reset() {
            capabilities &= !FLR;
        }
        self.space.set(at + 2, &[SIZE, capabilities]);
        if capabilities & FLR != 0 {
            resets.push((at + 4, INITIATE_FLR));
        }
        self.filter
            .show(at + 5, &[capabilities & TRANSACTIONS_PENDING]);
        Ok(true)
    }

    /// Extended capabilities that say something about the device and change nothing.
    fn place_extended(&mut self) -> Result<(), DeviceError> {
        const HEADER: usize = 4;
        let mut last: Option<usize> = None;
        for found in lists::extended(self.reader)? {
            let Some(size) = self.extended_size(&found)? else {
                continue;
            };
            let at = found.offset;
            let header = u32::from(found.id) | u32::from(found.version) << 16;
            self.space.set(at, &header.to_le_bytes());
            self.filter.show(at + HEADER, &vec![0xff; size - HEADER]);
            // The first header is always at the same place: with id 0 it is there for its link alone.
            let previous = last.unwrap_or(CONVENTIONAL_SIZE);
            if previous != at {
                let header = self.space.u32_at(previous) | (at as u32) << 20;
                self.space.set(previous, &header.to_le_bytes());
            }
            last = Some(at);
        }
        Ok(())
    }

    /// Bytes of an extended capability, at least 8; `None` if it is hidden.
    fn extended_size(&self, found: &Found) -> Result<Option<usize>, DeviceError> {
        const LEAST: usize = 8;
        let size = match found.id {
            SERIAL_NUMBER => 12,
            EXTENDED_VENDOR_SPECIFIC | DESIGNATED_VENDOR_SPECIFIC => {
                (self.reader.u32(found.offset + 4)? >> 20) as usize
            }
            _ => return Ok(None),
        };
        Ok((LEAST..=found.room).contains(&size).then_some(size))
    }
}
