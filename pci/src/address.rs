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
}
