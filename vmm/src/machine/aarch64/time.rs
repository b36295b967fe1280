//! The guest's time while it is paused.

use std::io;
use std::sync::{Mutex, PoisonError};

use arch::aarch64::vcpu::{set_virtual_counter, virtual_counter};
use kvm_ioctls::{VcpuFd, VmFd};

/// Where the virtual counter stands in a paused guest.
#[derive(Default)]
pub struct GuestTime(Mutex<Option<u64>>);

impl GuestTime {
    /// Remembers the time; no vCPU runs.
    ///
    /// # Errors
    /// KVM does not tell it.
    pub fn stop(&self, _vm: &VmFd, vcpu: &VcpuFd) -> io::Result<()> {
        let now = virtual_counter(vcpu).map_err(io::Error::other)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(())
    }

    /// Goes on with the remembered time, which no vCPU has seen going on. What KVM is told of one vCPU
    /// is so for all of them.
    ///
    /// # Errors
    /// KVM does not take it.
    pub fn start(&self, _vm: &VmFd, vcpu: &VcpuFd) -> io::Result<()> {
        let stopped = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(counter) = stopped else {
            return Ok(());
        };
        set_virtual_counter(vcpu, counter).map_err(io::Error::other)
    }
}

/// Nothing: a guest whose time has stood still needs not be told.
pub fn after_pause(_vcpu: &VcpuFd) {}
