//! The virtual machine monitor: configuration, plan, machine.

mod acpi;
pub mod api;
pub mod config;
pub mod console;
pub mod events;
mod inherited;
mod listener;
pub mod logger;
pub mod machine;
pub mod passthrough;
pub mod plan;
pub mod remote;
pub mod show;
pub mod virtio;
mod vm;
mod vmm;

pub use self::vm::BootError;
pub use self::vmm::{AfterGuest, Handle, Outcome, Vmm, VmmError, block_signals};
