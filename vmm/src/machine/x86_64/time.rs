//! The guest's time while it is paused.

use std::io;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{Cap, VcpuFd, VmFd};

/// Where KVM's clock stands in a paused guest.
///
/// That is the clock that guests ask KVM for; time-stamp counters cannot be stopped.
#[derive(Default)]
pub struct GuestTime(Mutex<Option<u64>>);

impl GuestTime {
    /// Remembers the time; no vCPU runs.
    ///
    /// # Errors
    /// KVM does not tell it.
    pub fn stop(&self, vm: &VmFd, _vcpu: &VcpuFd) -> io::Result<()> {
        let now = if vm.check_extension(Cap::AdjustClock) {
            Some(vm.get_clock()?.clock)
        } else {
            None
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(())
    }

    /// Goes on with the remembered time, which no vCPU has seen going on.
    ///
    /// # Errors
    /// KVM does not take it.
    pub fn start(&self, vm: &VmFd, _vcpu: &VcpuFd) -> io::Result<()> {
        let stopped = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(clock) = stopped else { return Ok(()) };
        // No flags: KVM_CLOCK_REALTIME would add the time that has passed
        // (Linux, Documentation/virt/kvm/api.rst, section 4.30).
        let now = kvm_clock_data {
            clock,
            ..kvm_clock_data::default()
        };
        Ok(vm.set_clock(&now)?)
    }
}

/// Tells a guest that its vCPU was stopped, so that its watchdogs do not complain of it.
pub fn after_pause(vcpu: &VcpuFd) {
    match vcpu.kvmclock_ctrl() {
        // A guest that does not use KVM's clock cannot be told.
        Err(error) if error.errno() != libc::EINVAL => {
            log::debug!("a guest is not told that it was paused: {error}");
        }
        _ => {}
    }
}
