//! 64-bit x86: address space, CPU topology, boot protocols and vCPU set-up.
//!
//! What only computes (addresses, tables, kernel loading, APIC ids) is compiled on every host, so
//! that a plan for x86_64 can be made and tested anywhere. [`cpuid`] and [`vcpu`] speak KVM's x86
//! types and exist on x86_64 alone.

pub mod boot;
pub mod layout;
pub mod topology;

#[cfg(target_arch = "x86_64")]
pub mod cpuid;
#[cfg(target_arch = "x86_64")]
pub mod vcpu;
