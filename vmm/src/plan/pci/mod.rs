//! PCI: segments, the functions on them, their addresses and interrupts.

mod facts;
mod layout;
#[cfg(test)]
mod tests;
mod virtio;
mod windows;

use ::pci::{Bdf, DeviceFacts};
use serde::{Deserialize, Serialize};

use super::{GpaRange, Gsi};

pub(super) use layout::plan;
pub use virtio::VirtioKind;

/// Segments, ascending; there is at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciPlan {
    /// The segments.
    pub segments: Vec<SegmentPlan>,
}

/// A segment: one host bridge with one bus, bus 0. Its device 0 is the bridge itself, unless a
/// function has that place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentPlan {
    /// Segment group, `_SEG`.
    pub number: u16,
    /// Configuration space: 1 MiB.
    pub ecam: GpaRange,
    /// Where its 32-bit BARs go.
    pub mmio32: GpaRange,
    /// Where its 64-bit BARs go.
    pub mmio64: GpaRange,
    /// Where its I/O BARs go, on x86_64, and there on segment 0 only.
    pub io: Option<IoWindow>,
    /// Wired interrupts: pin `p` of device `d`, both from 0, is `intx[(d + p) % intx.len()]`.
    pub intx: Vec<Gsi>,
    /// NUMA node of the devices on it, `_PXM`; none where there are no nodes.
    pub numa_node: Option<u32>,
    /// Functions on its bus other than the bridge, by ascending device numbers.
    pub functions: Vec<FunctionPlan>,
}

impl SegmentPlan {
    /// The interrupt of a pin, 0 for INTA#, of a device.
    pub fn gsi(&self, device: u8, pin: u8) -> Option<Gsi> {
        let line = usize::from(device) + usize::from(pin);
        let line = line.checked_rem(self.intx.len())?;
        self.intx.get(line).copied()
    }

    /// The device that would take generic initiators of every other device here for its own: NVIDIA's
    /// driver, for a device at device 0, compares segment and bus of an initiator and nothing else.
    pub fn claimant(&self) -> Option<&FunctionPlan> {
        let first = self
            .functions
            .first()
            .filter(|function| function.bdf.device == 0)?;
        let has_memory = first.nodes.is_some() || first.facts.coherent.is_some();
        (first.facts.identity.vendor == VENDOR_NVIDIA && has_memory).then_some(first)
    }
}

/// Vendor id of NVIDIA, whose driver has rules of its own for generic initiators.
pub(super) const VENDOR_NVIDIA: u16 = 0x10de;

/// I/O ports of a host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoWindow {
    /// First port.
    pub base: u16,
    /// Number of ports.
    pub size: u16,
}

/// A device, function 0 of its slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionPlan {
    /// Its name.
    pub id: String,
    /// Where it is.
    pub bdf: Bdf,
    /// What it is.
    pub facts: DeviceFacts,
    /// Where firmware puts its BARs, by the positions in `facts.bars`; a BAR that the guest cannot
    /// be shown, such as I/O ports on aarch64, is nowhere.
    pub bars: Vec<Option<u64>>,
    /// What is behind it.
    pub source: FunctionSource,
    /// NUMA nodes that its memory may use.
    pub nodes: Option<DeviceNodes>,
}

/// What is behind a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionSource {
    /// A device of the host, by its folder in sysfs.
    Vfio {
        /// The folder.
        path: String,
    },
    /// A device in another process.
    VfioUser {
        /// Its socket.
        socket: String,
    },
    /// A virtio device of the machine's own.
    Virtio {
        /// What it does.
        kind: VirtioKind,
    },
    /// Nothing yet: the slot is kept, with nodes and addresses, for a device that comes later.
    Reserved,
}

/// NUMA nodes of a device, and how the guest is told that they are its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNodes {
    /// Their ids, ascending.
    pub ids: Vec<u32>,
    /// Whether the device's ACPI node has their range in a `_DSD`.
    pub dsd: bool,
    /// Whether the SRAT has a generic initiator for each.
    pub generic_initiators: bool,
    /// Whether that was left to the planner.
    pub auto: bool,
}
