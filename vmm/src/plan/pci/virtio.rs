//! What virtio devices are to a guest: ids and registers (Virtio 1.3, section 4.1).

use std::fmt;

use ::pci::config_space::{BarKind, Identity};
use ::pci::{BarFacts, DeviceFacts};
use devices::virtio::BAR_SIZE;
use serde::{Deserialize, Serialize};

/// Vendor of virtio devices, and of their subsystems (section 4.1.2).
const VENDOR: u16 = 0x1af4;
/// Device ids begin here, with the type of the device added (section 4.1.2).
const FIRST_DEVICE: u16 = 0x1040;
/// Devices without the legacy interface have at least revision 1 (section 4.1.2.1).
const REVISION: u8 = 1;
/// Devices without the legacy interface have at least subsystem id 0x40 (section 4.1.2.1).
const SUBSYSTEM: u16 = 0x1100;

/// What a virtio device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtioKind {
    /// A disk.
    Block,
    /// A console.
    Console,
    /// A network interface.
    Net,
    /// A source of entropy.
    Rng,
    /// Sockets between guest and host.
    Vsock,
}

impl VirtioKind {
    /// What it is to a guest.
    pub fn facts(self) -> DeviceFacts {
        DeviceFacts {
            identity: Identity {
                vendor: VENDOR,
                device: FIRST_DEVICE + self.device_type(),
                revision: REVISION,
                class: self.class(),
                subsystem_vendor: VENDOR,
                subsystem: SUBSYSTEM,
            },
            bars: vec![BarFacts {
                index: 0,
                kind: BarKind::Memory64 {
                    prefetchable: false,
                },
                size: BAR_SIZE,
                mappable: 0,
            }],
            intx: false,
            driver: None,
            coherent: None,
        }
    }

    /// Its type (section 5).
    fn device_type(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Rng => 4,
            Self::Vsock => 19,
        }
    }

    /// Base class, sub-class and programming interface (PCI Code and ID Assignment 1.11, section 1).
    fn class(self) -> u32 {
        match self {
            // A SCSI controller: what comes nearest.
            Self::Block => 0x01_00_00,
            // A communication controller of another kind.
            Self::Console => 0x07_80_00,
            // An Ethernet controller.
            Self::Net => 0x02_00_00,
            // There is no class for it.
            Self::Rng => 0xff_00_00,
            // A communication controller of another kind.
            Self::Vsock => 0x07_80_00,
        }
    }
}

impl fmt::Display for VirtioKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "virtio-blk",
            Self::Console => "virtio-console",
            Self::Net => "virtio-net",
            Self::Rng => "virtio-rng",
            Self::Vsock => "virtio-vsock",
        })
    }
}
