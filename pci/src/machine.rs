//! The machine as a device sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use acpi_tables::Aml;
use vmm_sys_util::eventfd::EventFd;

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

/// A level-triggered line, that others may share, for a device that is told when its interrupt has
/// been dealt with rather than asked for its level.
///
/// Dropping it disconnects the device from the line.
pub trait ResampledLine: Send + Sync {
    /// Written to assert the line, which stays so until the guest ends the interrupt.
    fn trigger(&self) -> &EventFd;

    /// Written when the guest has ended the interrupt and the line is released: a device that is
    /// not done triggers again.
    fn resample(&self) -> &EventFd;
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

/// One message-signalled interrupt of a device. Dropping it gives it back to the machine.
pub trait MsiVector: Send + Sync {
    /// Written to send the interrupt, by a device of the host without a detour through us.
    fn event(&self) -> &EventFd;

    /// Says what the interrupt is from now on. `None` masks it: what is sent meanwhile is kept and
    /// sent, once, when there is a message again.
    ///
    /// # Errors
    /// The host has no room for another route.
    fn set_message(&self, message: Option<MsiMessage>) -> io::Result<()>;
}

/// Where message-signalled interrupts come from.
pub trait MsiSource: Send + Sync {
    /// A new masked interrupt of the function at `bdf`, whose messages carry its requester id and
    /// segment.
    ///
    /// # Errors
    /// The host has no room for another one.
    fn vector(&self, bdf: crate::Bdf) -> io::Result<Arc<dyn MsiVector>>;
}

/// Host memory behind a part of a [`Region`], which guests reach without us.
#[derive(Clone, Debug)]
pub struct MappableArea {
    /// Where it begins in the region, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// What is mapped.
    pub file: Arc<OwnedFd>,
    /// Where the area begins in the file, in bytes.
    pub file_offset: u64,
    /// Whether it may be read.
    pub readable: bool,
    /// Whether it may be written.
    pub writable: bool,
}

/// What the machine is to write to without leaving the guest: an event that a write of any width to
/// exactly `offset` of a region signals, whatever its value.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// What is written to.
    pub event: Arc<EventFd>,
}

/// What answers at the addresses of a BAR.
///
/// Called from any vCPU thread, from several at once. Offsets and widths come from the guest:
/// nothing panics, and a read leaves nothing of `data` unwritten.
pub trait Region: Send + Sync {
    /// Bytes; for memory a power of two.
    fn size(&self) -> u64;

    /// Parts that are mapped into the guest: ascending, disjoint, inside the region, all of it whole
    /// pages. Accesses to the rest come here.
    fn mappable(&self) -> &[MappableArea];

    /// Whether it is memory, which guests access as they like, rather than registers (PCI 3.0,
    /// section 6.2.5.1, "prefetchable").
    fn is_prefetchable(&self) -> bool {
        false
    }

    /// Writes that the machine may turn into events instead: it then does not call
    /// [`Region::write`] for them. It may as well call it, so both lead to the same.
    fn notifications(&self) -> &[Notification] {
        &[]
    }

    /// Reads `data.len()` bytes, little-endian, at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data`, little-endian, at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Which addresses a region answers at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Guest-physical memory.
    Memory,
    /// x86 I/O ports.
    Io,
}

/// A region that the machine knows of. Dropping it takes the region out of the guest.
pub trait PlacedRegion: Send + Sync {
    /// Makes the region answer at `address`, in guest-physical bytes or I/O ports, and nowhere else;
    /// `None` is nowhere at all.
    ///
    /// When this returns, no access reaches the old place, and other devices' DMA follows.
    ///
    /// # Errors
    /// Something else is there, or the host refuses. The region then answers nowhere.
    fn place(&self, address: Option<u64>) -> io::Result<()>;
}

/// The address spaces of the machine, as far as functions change them.
pub trait AddressSpace: Send + Sync {
    /// Makes a region known, which answers nowhere yet.
    ///
    /// # Errors
    /// The host cannot map its areas.
    fn add(&self, space: Space, region: Arc<dyn Region>) -> io::Result<Box<dyn PlacedRegion>>;
}

/// Memory of the guest, as devices reach it by DMA.
#[derive(Clone, Debug)]
pub struct DmaArea {
    /// First address, guest-physical: what the device calls it.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Where it is mapped in this process.
    pub host_address: usize,
    /// What is mapped there, and where the area begins in it; `None` is memory that cannot be
    /// shared with another process.
    pub file: Option<(Arc<OwnedFd>, u64)>,
    /// Whether devices may write there.
    pub writable: bool,
}

/// Something that reaches guest memory by itself and has to be told where it is.
pub trait DmaTarget: Send + Sync {
    /// Lets the device reach an area. Areas never overlap.
    ///
    /// # Errors
    /// It cannot. The area is then not mapped.
    fn map(&self, area: &DmaArea) -> io::Result<()>;

    /// Takes an area away that was mapped, as it was. When this returns, no access reaches it.
    ///
    /// # Errors
    /// It does not say that it let go.
    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()>;
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
