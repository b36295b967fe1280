//! What a device function needs of the machine it sits in, as small traits.
//!
//! The traits live below every device so that devices can be written and tested without KVM;
//! the VMM implements them. PCI configuration space, BARs and segments join them in this crate.
#![forbid(unsafe_code)]

mod machine;

pub use machine::{AcpiNode, AcpiScope, InterruptLine, MsiMessage};
