//! Base address registers: how large they are, where a guest has put them.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.2.5.1.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ConfigSpace, offset};

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes the register behind it too.
    Memory64 {
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u64,
}

/// Why a function cannot have a BAR.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BarError {
    /// There are six registers, and a 64-bit BAR needs two.
    #[error("BAR {index} does not exist, or has no register behind it for its upper half")]
    NoRegister {
        /// The register.
        index: usize,
    },
    /// The register is in use.
    #[error("BAR {index} is taken")]
    Taken {
        /// The register.
        index: usize,
    },
    /// No register can say that size.
    #[error("BAR {index} of {size:#x} bytes: sizes are powers of two, {least:#x} to {most:#x}")]
    Size {
        /// The register.
        index: usize,
        /// Bytes asked for.
        size: u64,
        /// The least, in bytes.
        least: u64,
        /// The most, in bytes.
        most: u64,
    },
}

impl BarKind {
    /// Bits of the register that say what it is.
    fn flags(self) -> u32 {
        match self {
            Self::Io => 1,
            Self::Memory32 { prefetchable } => u32::from(prefetchable) << 3,
            Self::Memory64 { prefetchable } => 1 << 2 | u32::from(prefetchable) << 3,
        }
    }

    /// The least and the most bytes that it can have.
    pub(crate) fn sizes(self) -> (u64, u64) {
        match self {
            Self::Io => (4, 256),
            Self::Memory32 { .. } => (16, 1 << 31),
            Self::Memory64 { .. } => (16, 1 << 63),
        }
    }

    /// Whether it takes two registers.
    pub(crate) fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64 { .. })
    }
}

impl ConfigSpace {
    /// Adds a BAR at address 0.
    ///
    /// # Errors
    /// A register that is not there or taken, and a size that it cannot say.
    pub fn add_bar(&mut self, index: usize, bar: Bar) -> Result<(), BarError> {
        let registers = if bar.kind.is_64_bit() { 2 } else { 1 };
        if index + registers > self.bars.len() {
            return Err(BarError::NoRegister { index });
        }
        let is_upper = index > 0 && self.bars[index - 1].is_some_and(|bar| bar.kind.is_64_bit());
        if is_upper
            || self.bars[index..index + registers]
                .iter()
                .any(Option::is_some)
        {
            return Err(BarError::Taken { index });
        }
        let (least, most) = bar.kind.sizes();
        if !bar.size.is_power_of_two() || !(least..=most).contains(&bar.size) {
            return Err(BarError::Size {
                index,
                size: bar.size,
                least,
                most,
            });
        }
        let mask = (!(bar.size - 1)).to_le_bytes();
        let at = offset::BARS + 4 * index;
        self.bars[index] = Some(bar);
        self.allow(at, &mask[..4 * registers]);
        self.set(at, &bar.kind.flags().to_le_bytes());
        Ok(())
    }

    /// Puts a BAR at an address, as firmware would; bits below its size are dropped.
    pub fn set_bar_address(&mut self, index: usize, address: u64) {
        let Some(bar) = self.bar(index) else {
            return;
        };
        let value = address & !(bar.size - 1) | u64::from(bar.kind.flags());
        let bytes = value.to_le_bytes();
        let length = if bar.kind.is_64_bit() { 8 } else { 4 };
        self.set(offset::BARS + 4 * index, &bytes[..length]);
    }

    /// The BAR that starts at this register.
    pub fn bar(&self, index: usize) -> Option<Bar> {
        self.bars.get(index).copied().flatten()
    }

    /// Where a guest has put a BAR, whether or not the function decodes it.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let at = offset::BARS + 4 * index;
        let upper = match bar.kind.is_64_bit() {
            true => self.u32_at(at + 4),
            false => 0,
        };
        let value = u64::from(upper) << 32 | u64::from(self.u32_at(at));
        Some(value & !(bar.size - 1))
    }

    /// Where a BAR answers now: nowhere while its decoder is off, while it is being sized, and at
    /// address 0.
    pub fn decoded_bar(&self, index: usize) -> Option<u64> {
        let bar = self.bar(index)?;
        let decodes = match bar.kind {
            BarKind::Io => self.decodes_io(),
            BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => self.decodes_memory(),
        };
        let address = self.bar_address(index).filter(|_| decodes)?;
        let width = if bar.kind.is_64_bit() {
            u64::MAX
        } else {
            u32::MAX.into()
        };
        let being_sized = address == width & !(bar.size - 1);
        (address != 0 && !being_sized).then_some(address)
    }
}
