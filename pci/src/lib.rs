//! PCI: what a device function needs of the machine it sits in, as small traits, and what it is.
//!
//! The traits live below every device so that devices can be written and tested without KVM;
//! the VMM implements them. Beside them is what all functions have in common: addresses, configuration
//! space, BARs, capabilities, MSI-X, and the segments that functions sit on.

mod access;
mod address;
pub mod config_space;
pub mod device;
pub mod emulated;
mod facts;
mod few;
mod function;
mod host_bridge;
mod locks;
mod machine;
mod msix;
pub mod passthrough;
mod placement;
mod segment;
#[cfg(test)]
mod testing;
mod vectors;
pub mod vfio;
pub mod vfio_user;

pub use address::{Bdf, DEVICES};
pub use facts::{BarFacts, CoherentMemory, DeviceFacts};
pub use function::Function;
pub use host_bridge::HostBridge;
pub use machine::{
    AcpiNode, AcpiScope, AddressSpace, DmaArea, DmaTarget, InterruptLine, MappableArea, MsiMessage,
    MsiSource, MsiVector, Notification, PlacedRegion, Region, ResampledLine, Space,
};
pub use msix::MsixTable;
pub use segment::{ECAM_SIZE, Segment, SlotError};
