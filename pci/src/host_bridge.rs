//! The host bridge: device 0 of every segment, there to be found by guests that look for one.

use std::sync::{Mutex, PoisonError};

use crate::config_space::{ConfigSpace, Identity};
use crate::function::Function;

/// Vendor Red Hat, device "QEMU PCIe Host bridge": no driver binds to it, and systems know it for
/// the bridge of a virtual machine.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    // Bridge device, host bridge (PCI Code and ID Assignment Specification 1.16, section 1.7).
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// A host bridge without registers of its own.
pub struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    /// A host bridge.
    pub fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(&IDENTITY)))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.read(offset.into(), data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.write(offset.into(), data);
    }
}
