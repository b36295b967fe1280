//! A segment: one bus and the functions on it, reached through ECAM.

use std::sync::Arc;

use thiserror::Error;

use crate::address::DEVICES;
use crate::config_space::SIZE;
use crate::function::Function;

/// Bytes of ECAM for one bus: 32 devices of eight functions (PCI Express 6.0, section 7.2.2).
pub const ECAM_SIZE: u64 = 1 << 20;

/// Why a function cannot be put on the bus.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SlotError {
    /// There are 32.
    #[error("there is no PCI device {0:#x}; the last is 0x1f")]
    NoSlot(u8),
    /// Another function is there.
    #[error("PCI device {0:#x} is taken")]
    Taken(u8),
}

/// A segment with bus 0 alone.
#[derive(Default)]
pub struct Segment {
    functions: [Option<Arc<dyn Function>>; DEVICES as usize],
}

impl Segment {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a function on the bus, as function 0 of `device`.
    ///
    /// # Errors
    /// If there is no such device number or it is taken.
    pub fn insert(&mut self, device: u8, function: Arc<dyn Function>) -> Result<(), SlotError> {
        let slot = self.functions.get_mut(usize::from(device));
        let slot = slot.ok_or(SlotError::NoSlot(device))?;
        if slot.is_some() {
            return Err(SlotError::Taken(device));
        }
        *slot = Some(function);
        Ok(())
    }

    /// Reads from the segment's ECAM. Where no function is, all bits are ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, offset)) = self.find(offset, data.len()) {
            function.read_config(offset, data);
        }
    }

    /// Writes to the segment's ECAM.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.find(offset, data.len()) {
            function.write_config(offset, data);
        }
    }

    /// The function at an offset, and the offset within it. An access across its end finds none.
    fn find(&self, offset: u64, length: usize) -> Option<(&dyn Function, u16)> {
        const FUNCTION_BITS: u32 = 12;
        let number = usize::try_from(offset >> FUNCTION_BITS).ok()?;
        // Function numbers other than 0 are nobody's.
        let function = self
            .functions
            .get(number / 8)
            .filter(|_| number.is_multiple_of(8))?;
        let within = (offset & (SIZE as u64 - 1)) as usize;
        (within + length <= SIZE).then_some(())?;
        Some((function.as_deref()?, within as u16))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::HostBridge;

    fn segment(device: u8) -> Segment {
        let mut segment = Segment::new();
        segment.insert(device, Arc::new(HostBridge::new())).unwrap();
        segment
    }

    fn u32_at(segment: &Segment, offset: u64) -> u32 {
        let mut data = [0; 4];
        segment.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn functions_are_found_at_their_device_number() {
        let segment = segment(5);
        assert_eq!(u32_at(&segment, 5 << 15), 0x0008_1b36);
        for elsewhere in [
            0,
            4 << 15,
            6 << 15,
            5 << 15 | 1 << 12,
            ECAM_SIZE,
            u64::MAX - 3,
        ] {
            assert_eq!(u32_at(&segment, elsewhere), u32::MAX, "{elsewhere:#x}");
        }
        // The class code of a host bridge.
        assert_eq!(u32_at(&segment, (5 << 15) + 8) >> 8, 0x06_00_00);
    }

    #[test]
    fn a_slot_is_for_one() {
        let mut segment = segment(31);
        let bridge = || Arc::new(HostBridge::new());
        assert_eq!(segment.insert(31, bridge()), Err(SlotError::Taken(31)));
        assert_eq!(segment.insert(32, bridge()), Err(SlotError::NoSlot(32)));
    }

    proptest! {
        #[test]
        fn no_access_panics(
            offset in prop_oneof![any::<u64>(), 0..2 * ECAM_SIZE], data in prop::collection::vec(any::<u8>(), 0..16)
        ) {
            let segment = segment(0);
            segment.write(offset, &data);
            let mut read = data.clone();
            segment.read(offset, &mut read);
            // The bridge stays what it is.
            prop_assert_eq!(u32_at(&segment, 0), 0x0008_1b36);
        }
    }
}
