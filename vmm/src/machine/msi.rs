//! Message-signalled interrupts of functions, from an eventfd straight into the guest.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;
use pci::{Bdf, MsiMessage, MsiSource, MsiVector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::isa::msi_route;
use super::routes::Routes;
use crate::plan::Gsi;

/// Makes interrupts that KVM delivers.
pub struct KvmMsiSource {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
}

impl KvmMsiSource {
    /// Interrupts of `vm`, whose routes are in `routes`.
    pub fn new(vm: &Arc<VmFd>, routes: &Arc<Routes>) -> Self {
        Self {
            vm: Arc::clone(vm),
            routes: Arc::clone(routes),
        }
    }
}

impl MsiSource for KvmMsiSource {
    fn vector(&self, bdf: Bdf) -> io::Result<Arc<dyn MsiVector>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Arc::new(KvmMsi {
            gsi: self.routes.reserve()?,
            vm: Arc::clone(&self.vm),
            routes: Arc::clone(&self.routes),
            bdf,
            event,
            connected: Mutex::new(false),
        }))
    }
}

struct KvmMsi {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    gsi: Gsi,
    bdf: Bdf,
    event: EventFd,
    /// Whether KVM takes what is written to `event`. While it does not, the eventfd keeps count.
    connected: Mutex<bool>,
}

impl MsiVector for KvmMsi {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn set_message(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match message {
            Some(message) => {
                self.routes.set(msi_route(self.gsi, message, self.bdf))?;
                if !*connected {
                    // KVM looks at once whether something was written meanwhile.
                    self.vm.register_irqfd(&self.event, self.gsi)?;
                    *connected = true;
                }
            }
            None if *connected => {
                self.vm.unregister_irqfd(&self.event, self.gsi)?;
                *connected = false;
            }
            None => {}
        }
        Ok(())
    }
}

impl Drop for KvmMsi {
    fn drop(&mut self) {
        if let Err(error) = self.set_message(None) {
            log::warn!(
                "KVM does not let go of an interrupt of {}: {error}",
                self.bdf
            );
        }
        self.routes.release(self.gsi);
    }
}
