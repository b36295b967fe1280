//! The machine as a device sees it.

use acpi_tables::Aml;

/// A wired interrupt line into the machine's interrupt controller.
///
/// Implementations are cheap to call and never block: a device may drive its line from a vCPU
/// thread with its own lock held.
pub trait InterruptLine: Send + Sync {
    /// Drives the line: `true` asserts it, `false` releases it.
    ///
    /// For an edge-triggered line the rising edge is the interrupt. Whether "asserted" means
    /// electrically high or low is the interrupt controller's business.
    fn set_level(&self, asserted: bool);

    /// One pulse: asserts the line and releases it at once.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

/// A message-signalled interrupt as it appears on the bus: a 32-bit write of `data` to `address`.
///
/// Source: PCI Local Bus Specification 3.0, section 6.8.1; for x86 the meaning of the bits is in
/// the Intel SDM volume 3, section 12.11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Address written to, in guest-physical bytes.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// Where in the ACPI namespace a planned device's node belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AcpiScope {
    /// Directly under `\_SB`.
    SystemBus,
}

/// A planned device that announces itself in the DSDT.
///
/// Implemented by plain data: neither descriptors nor KVM are needed to describe a device.
pub trait AcpiNode {
    /// The scope that the node is placed in.
    fn scope(&self) -> AcpiScope {
        AcpiScope::SystemBus
    }

    /// The node, a complete `Device (…) { … }` term.
    fn aml(&self) -> Box<dyn Aml + '_>;
}
