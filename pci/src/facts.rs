//! What is found out about a device before anything is decided about it: plain data, which a plan
//! is made from, and which can be recorded on one machine and planned with on another.

use serde::{Deserialize, Serialize};

use crate::config_space::{BarKind, Identity};

/// A device, as far as guests will see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// What it is.
    pub identity: Identity,
    /// Its BARs, ascending.
    pub bars: Vec<BarFacts>,
    /// Whether it has a wired interrupt.
    pub intx: bool,
    /// The host driver that passes it through, such as `vfio-pci`; `None` where there is none.
    pub driver: Option<String>,
    /// Memory that CPUs may cache, if it has some.
    pub coherent: Option<CoherentMemory>,
}

/// A BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarFacts {
    /// Number of its first register, 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u64,
    /// Bytes that can be mapped into the guest; the rest is trapped.
    pub mappable: u64,
}

/// Memory of a device that CPUs may cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoherentMemory {
    /// The BAR that it is behind.
    pub bar: u8,
    /// Bytes from the start of the BAR that are memory.
    pub usable: u64,
}
