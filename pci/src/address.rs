//! Where a function is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Address of a function on its bus (PCI Express Base Specification 6.0, section 2.2.6.2).
///
/// Every segment has one bus, number 0, and each function a device number of its own: there are no
/// bridges, so functions sit on the root bus as if integrated into the root complex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bdf {
    /// Segment group, the `_SEG` of the host bridge.
    pub segment: u16,
    /// Device number, 0 to 31.
    pub device: u8,
}

/// Devices on a bus.
pub const DEVICES: u8 = 32;

impl Bdf {
    /// The requester id that the function's messages carry: bus, device and function.
    pub fn requester_id(self) -> u16 {
        u16::from(self.device) << 3
    }

    /// The device id by which an Arm ITS knows the function's messages: the requester id, with the
    /// segment above it.
    ///
    /// The IORT maps to these ids what the function sends, and whoever sends messages for it says
    /// them too (`devid` of `KVM_SIGNAL_MSI` and of MSI routes). KVM's ITS takes ids of 16 bits,
    /// which segments up to 255 keep to (Linux, arch/arm64/kvm/vgic/vgic-its.c,
    /// `VITS_TYPER_DEVBITS`).
    pub fn its_device_id(self) -> u32 {
        u32::from(self.segment) << 8 | u32::from(self.requester_id())
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:00:{:02x}.0", self.segment, self.device)
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_as_linux_writes_it() {
        let bdf = Bdf {
            segment: 1,
            device: 31,
        };
        assert_eq!(bdf.to_string(), "0001:00:1f.0");
        assert_eq!(bdf.requester_id(), 0xf8);
    }

    #[test]
    fn segments_share_an_its() {
        let id = |segment, device| Bdf { segment, device }.its_device_id();
        assert_eq!(id(0, 0), 0);
        assert_eq!(id(0, 31), 0xf8);
        assert_eq!(id(1, 0), 0x100);
        assert_eq!(id(0x5f, 5), 0x5f28);
        assert_eq!(id(u16::MAX, 31), 0xff_fff8);
        let ids = (0..=255).flat_map(|segment| (0..DEVICES).map(move |device| id(segment, device)));
        let ids: Vec<u32> = ids.collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "no two are the same");
        assert!(ids.iter().all(|id| u16::try_from(*id).is_ok()));
    }
}
