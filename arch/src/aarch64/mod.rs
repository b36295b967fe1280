//! 64-bit Arm: memory map, boot protocol, hand-over to the kernel, vCPU state.
//!
//! The memory map, the loaders and the table builders compile everywhere, so that a plan for an
//! Arm guest can be made and tested on any machine; `vcpu` alone needs an Arm host.

pub mod boot;
pub mod efi;
pub mod fdt;
mod image;
pub mod layout;
mod mpidr;
#[cfg(target_arch = "aarch64")]
pub mod vcpu;

pub use image::{Foreign, ImageError};
pub use mpidr::mpidr;
