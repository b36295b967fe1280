//! A device somewhere else, whose function a guest is given: in the host's kernel (VFIO) or in
//! another process (vfio-user). Both speak of regions and interrupts in the same terms.
//!
//! Source of the terms: Linux, include/uapi/linux/vfio.h; the vfio-user protocol, version 0.1.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::machine::MappableArea;

/// Region numbers of a PCI device (`VFIO_PCI_*_REGION_INDEX`); 0 to 5 are the BARs.
pub mod region {
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// Regions that are read; a device may have more, which nobody needs.
    pub const COUNT: u32 = 9;
}

/// The interrupts of a PCI device (`VFIO_PCI_*_IRQ_INDEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IrqKind {
    /// The wired interrupt.
    Intx,
    /// Message-signalled interrupts.
    Msi,
    /// Message-signalled interrupts with a table.
    Msix,
}

impl IrqKind {
    /// Its number in the interface.
    pub fn index(self) -> u32 {
        match self {
            Self::Intx => 0,
            Self::Msi => 1,
            Self::Msix => 2,
        }
    }
}

/// A region of a device. What it says of itself has been checked: areas lie inside it.
#[derive(Clone, Debug, Default)]
pub struct DeviceRegion {
    /// Bytes; 0 is a region that is not there.
    pub size: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// What can be mapped, ascending and disjoint, in whole pages.
    pub mappable: Vec<MappableArea>,
    /// Whether the device listed its mappable areas, rather than saying that all can be mapped.
    pub sparse: bool,
}

/// Why a device cannot do what it was asked for.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// It is gone, or does not keep to the interface: it will not come back.
    #[error("the device is lost")]
    Lost(#[source] io::Error),
    /// It refused this request alone.
    #[error("the device refused")]
    Refused(#[source] io::Error),
}

impl From<DeviceError> for io::Error {
    fn from(error: DeviceError) -> Self {
        let (DeviceError::Lost(source) | DeviceError::Refused(source)) = &error;
        Self::new(source.kind(), error)
    }
}

/// A PCI device somewhere else. Its answers are not to be trusted.
///
/// Called from any thread, from several at once. No call takes longer than a few seconds, however
/// the device behaves.
pub trait Device: Send + Sync {
    /// The region with this number; one of size 0 if there is none.
    fn region(&self, index: u32) -> &DeviceRegion;

    /// How many interrupts of a kind it has.
    fn irqs(&self, kind: IrqKind) -> u32;

    /// Reads all of `data` at `offset` in a region.
    ///
    /// # Errors
    /// Any [`DeviceError`]; `data` is then unspecified.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes all of `data` at `offset` in a region.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Makes the device write to `events[i]` for interrupt `i` of `kind`, and to nothing for those
    /// that are `None` or beyond the list. Replaces what was set before; an empty list turns
    /// interrupts of this kind off. A device has one kind turned on at a time.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    fn set_irqs(&self, kind: IrqKind, events: &[Option<&EventFd>]) -> Result<(), DeviceError>;

    /// Makes a write to `event` unmask the wired interrupt, which masks itself when it is sent; to
    /// be called after `set_irqs` for [`IrqKind::Intx`].
    ///
    /// # Errors
    /// Any [`DeviceError`].
    fn unmask_intx_on(&self, event: &EventFd) -> Result<(), DeviceError>;

    /// Unmasks the wired interrupt.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    fn unmask_intx(&self) -> Result<(), DeviceError>;

    /// Whether it can be reset.
    fn can_reset(&self) -> bool;

    /// Resets it.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    fn reset(&self) -> Result<(), DeviceError>;
}

/// A device that several may hold.
pub type SharedDevice = Arc<dyn Device>;
