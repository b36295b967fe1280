//! The two ways to PCI configuration space: memory (ECAM) and, on x86, a pair of I/O ports.

use std::sync::{Arc, Mutex};

use pci::Segment;
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::lock::lock;

/// First of the ports (PCI Local Bus Specification 3.0, section 3.2.2.3.2).
pub const PORT: u16 = 0xcf8;
/// Number of ports: CONFIG_ADDRESS and CONFIG_DATA, 32 bits each.
pub const PORTS: u16 = 8;

const DATA: u64 = 4;
/// CONFIG_ADDRESS: accesses to CONFIG_DATA are configuration accesses.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: bus 23:16, device 15:11, function 10:8, register 7:2.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// A segment's configuration space in memory (PCI Express Base Specification 6.0, section 7.2.2).
pub struct Ecam(pub Arc<Segment>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The I/O ports, which reach the first 256 bytes of the functions of segment 0.
pub struct ConfigPorts {
    segment: Arc<Segment>,
    address: Mutex<u32>,
}

/// State of [`ConfigPorts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPortsState {
    /// CONFIG_ADDRESS.
    pub address: u32,
}

impl ConfigPorts {
    /// Ports to `segment`, as after a reset.
    pub fn new(segment: Arc<Segment>) -> Self {
        Self::restore(segment, ConfigPortsState::default())
    }

    /// Ports in a state that [`ConfigPorts::save`] gave.
    pub fn restore(segment: Arc<Segment>, state: ConfigPortsState) -> Self {
        let ConfigPortsState { address } = state;
        Self {
            segment,
            address: Mutex::new(address & ADDRESS_BITS),
        }
    }

    /// The state.
    pub fn save(&self) -> ConfigPortsState {
        ConfigPortsState {
            address: *lock(&self.address),
        }
    }

    /// Where in the segment's ECAM an access to CONFIG_DATA goes; `None` if it is no configuration
    /// access.
    fn target(&self, offset: u64, length: usize) -> Option<u64> {
        let within = offset.checked_sub(DATA)?;
        let room = DATA.checked_sub(within)?;
        (length as u64 <= room).then_some(())?;
        let address = *lock(&self.address);
        let function = u64::from(address >> 8 & 0xffff);
        let register = u64::from(address & 0xfc);
        (address & ENABLE != 0).then_some(function << 12 | register | within)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        // CONFIG_ADDRESS answers to 32 bits alone.
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&lock(&self.address).to_le_bytes());
        } else if let Some(target) = self.target(offset, data.len()) {
            self.segment.read(target, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(value)) = (offset, <[u8; 4]>::try_from(data)) {
            *lock(&self.address) = u32::from_le_bytes(value) & ADDRESS_BITS;
        } else if let Some(target) = self.target(offset, data.len()) {
            self.segment.write(target, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use pci::HostBridge;

    use super::*;
    use crate::testing::{never_panics, readl, writel};

    fn segment() -> Arc<Segment> {
        let mut segment = Segment::new();
        segment.insert(3, Arc::new(HostBridge::new())).unwrap();
        Arc::new(segment)
    }

    fn ports() -> ConfigPorts {
        ConfigPorts::new(segment())
    }

    fn u16_at(device: &dyn BusDevice, offset: u64) -> u16 {
        let mut data = [0; 2];
        device.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn ports_reach_a_function() {
        let ports = ports();
        writel(&ports, 0, 1 << 31 | 3 << 11);
        assert_eq!(readl(&ports, 0), 1 << 31 | 3 << 11);
        assert_eq!(readl(&ports, 4), 0x0008_1b36);
        assert_eq!(u16_at(&ports, 6), 0x0008);
        // Bits of no meaning do not stay.
        writel(&ports, 0, u32::MAX);
        assert_eq!(readl(&ports, 0), 0x80ff_fffc);
        assert_eq!(readl(&ports, 4), u32::MAX);
    }

    #[test]
    fn other_accesses_reach_nobody() {
        let ports = ports();
        writel(&ports, 0, 3 << 11);
        assert_eq!(readl(&ports, 4), u32::MAX);
        writel(&ports, 0, 1 << 31 | 3 << 11);
        assert_eq!(readl(&ports, 2), u32::MAX);
        assert_eq!(readl(&ports, 6), u32::MAX);
        // A byte is no CONFIG_ADDRESS.
        ports.write(0, &[0]);
        assert_eq!(readl(&ports, 4), 0x0008_1b36);
    }

    #[test]
    fn registers_change_through_either_way() {
        let segment = segment();
        let ports = ConfigPorts::new(Arc::clone(&segment));
        writel(&ports, 0, 1 << 31 | 3 << 11 | 0x3c);
        ports.write(4, &[0x5a]);
        let mut data = [0];
        Ecam(segment).read(3 << 15 | 0x3c, &mut data);
        assert_eq!(data, [0x5a]);
    }

    #[test]
    fn state_comes_back() {
        let ports = ports();
        writel(&ports, 0, 0x8000_1840);
        let copy = ConfigPorts::restore(segment(), ports.save());
        assert_eq!(readl(&copy, 0), 0x8000_1840);
    }

    #[test]
    fn no_access_panics() {
        never_panics(ports);
        never_panics(|| Ecam(segment()));
    }
}
