//! Devices that the host's kernel passes through: VFIO.
//!
//! A [`Container`] is an IOMMU's view of guest memory, for all devices in it alike. Devices come in
//! groups that the IOMMU cannot tell apart, and a container takes a whole group or nothing of it.
//!
//! Source: Linux, Documentation/driver-api/vfio.rst and include/uapi/linux/vfio.h.

mod container;
mod device;
mod error;
mod info;
mod sys;
mod sysfs;

pub use container::Container;
pub use device::VfioDevice;
pub use error::{DmaError, OpenError};
pub use info::InfoError;
