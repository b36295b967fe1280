//! Address ranges and the devices behind them, for memory and for x86 I/O ports.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use thiserror::Error;

/// A block of registers on a [`Bus`].
///
/// Called from any vCPU thread, from several at once: locking is the device's own business.
/// Offsets and widths come from the guest: a device answers all of them without panicking, and
/// leaves nothing of `data` unwritten in `read`.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes, little-endian, at `offset` bytes into the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data`, little-endian, at `offset` bytes into the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that a [`Bus`] cannot take.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InsertError {
    /// The range has no addresses.
    #[error("the range at {base:#x} is empty")]
    Empty {
        /// First address.
        base: u64,
    },
    /// The range goes on behind the last 64-bit address.
    #[error("the range of {size:#x} bytes at {base:#x} ends above the address space")]
    AboveAddressSpace {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// Some of the range belongs to another device.
    #[error("the range {base:#x}..={last:#x} overlaps {other_base:#x}..={other_last:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Last address.
        last: u64,
        /// First address of the range that is there.
        other_base: u64,
        /// Last address of the range that is there.
        other_last: u64,
    },
}

#[derive(Clone)]
struct Entry {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address.
///
/// Every exit of every vCPU looks something up here, so looking up takes no lock: the sorted list
/// of ranges is immutable, and an insertion swaps in a new one.
#[derive(Default)]
pub struct Bus {
    entries: ArcSwap<Vec<Entry>>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` behind the `size` addresses from `base` on.
    ///
    /// vCPUs may be running; they see the device from their next access on.
    ///
    /// # Errors
    /// If the range is empty, ends above the address space or overlaps another one. The bus is
    /// then unchanged.
    pub fn insert(
        &self,
        base: u64,
        size: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), InsertError> {
        let length = size.checked_sub(1).ok_or(InsertError::Empty { base })?;
        let last = base
            .checked_add(length)
            .ok_or(InsertError::AboveAddressSpace { base, size })?;
        let entry = Entry { base, last, device };
        // `rcu` may call the closure again when another insertion was faster.
        let mut result = Ok(());
        self.entries.rcu(|entries| {
            result = Ok(());
            let position = entries.partition_point(|there| there.last < base);
            if let Some(there) = entries.get(position).filter(|there| there.base <= last) {
                result = Err(InsertError::Overlap {
                    base,
                    last,
                    other_base: there.base,
                    other_last: there.last,
                });
                return Arc::clone(entries);
            }
            let mut entries = Vec::clone(entries);
            entries.insert(position, entry.clone());
            Arc::new(entries)
        });
        result
    }

    /// Takes away the device whose range begins at `base`, if there is one. An access that is under
    /// way may still reach it.
    pub fn remove(&self, base: u64) {
        self.entries.rcu(|entries| {
            let others = entries.iter().filter(|entry| entry.base != base);
            Arc::new(others.cloned().collect::<Vec<_>>())
        });
    }

    /// Reads `data.len()` bytes at `address`.
    ///
    /// Returns false, with `data` untouched, if no single device has all of these addresses: the
    /// caller then fills in what an empty bus reads as, all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let entries = self.entries.load();
        let Some((device, offset)) = lookup(&entries, address, data.len()) else {
            return false;
        };
        device.read(offset, data);
        true
    }

    /// Writes `data` at `address`; returns false if no single device has all of these addresses.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let entries = self.entries.load();
        let Some((device, offset)) = lookup(&entries, address, data.len()) else {
            return false;
        };
        device.write(offset, data);
        true
    }
}

/// The device that has all of the `length` addresses from `address` on, and the offset into it.
fn lookup(entries: &[Entry], address: u64, length: usize) -> Option<(&dyn BusDevice, u64)> {
    let position = entries.partition_point(|entry| entry.last < address);
    let entry = entries.get(position)?;
    let offset = address.checked_sub(entry.base)?;
    let room_behind_first = entry.last - address;
    let behind_first = u64::try_from(length).ok()?.checked_sub(1)?;
    (behind_first <= room_behind_first).then_some((&*entry.device, offset))
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.load();
        let ranges = entries.iter().map(|entry| entry.base..=entry.last);
        f.debug_list().entries(ranges).finish()
    }
}

#[cfg(test)]
mod tests;
