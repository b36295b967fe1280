//! A device's configuration space, read register by register.

use crate::config_space::{CONVENTIONAL_SIZE, SIZE};
use crate::device::{Device, DeviceError, region};

/// What reads it.
pub(super) struct Reader<'a> {
    device: &'a dyn Device,
    size: usize,
}

impl<'a> Reader<'a> {
    /// Reads the configuration space of `device`; `None` if it has less than the 256 bytes that
    /// every function has.
    pub fn new(device: &'a dyn Device) -> Option<Self> {
        let size = match device.region(region::CONFIG).size {
            ..0x100 => return None,
            0x100..0x1000 => CONVENTIONAL_SIZE,
            0x1000.. => SIZE,
        };
        Some(Self { device, size })
    }

    /// Whether there are extended capabilities.
    pub fn is_extended(&self) -> bool {
        self.size == SIZE
    }

    /// Bytes behind the end are ones.
    fn read<const N: usize>(&self, offset: usize) -> Result<[u8; N], DeviceError> {
        let mut data = [0xff; N];
        if offset + N <= self.size {
            self.device.read(region::CONFIG, offset as u64, &mut data)?;
        }
        Ok(data)
    }

    pub fn u8(&self, offset: usize) -> Result<u8, DeviceError> {
        Ok(u8::from_le_bytes(self.read(offset)?))
    }

    pub fn u16(&self, offset: usize) -> Result<u16, DeviceError> {
        Ok(u16::from_le_bytes(self.read(offset)?))
    }

    pub fn u32(&self, offset: usize) -> Result<u32, DeviceError> {
        Ok(u32::from_le_bytes(self.read(offset)?))
    }
}
