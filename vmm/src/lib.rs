//! The virtual machine monitor: configuration, plan, machine.

mod acpi;
pub mod config;
pub mod console;
pub mod logger;
pub mod machine;
pub mod passthrough;
pub mod plan;
pub mod show;
mod vmm;

pub use self::vmm::{Handle, Vmm, VmmError, block_signals};
