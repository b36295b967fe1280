//! KVM's table of interrupt routes: one for all who need an entry, since KVM takes it whole.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_MAX_IRQ_ROUTES, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;

use crate::plan::Gsi;

/// The routes of one VM, by their GSI in KVM.
pub struct Routes {
    vm: Arc<VmFd>,
    /// GSIs below this belong to wired interrupts.
    first_free: Gsi,
    table: Mutex<BTreeMap<Gsi, Option<kvm_irq_routing_entry>>>,
}

impl Routes {
    /// An empty table; GSIs from `first_free` up are for [`Routes::reserve`].
    pub fn new(vm: &Arc<VmFd>, first_free: Gsi) -> Self {
        Self {
            vm: Arc::clone(vm),
            first_free,
            table: Mutex::default(),
        }
    }

    /// Routes the GSI of `entry`.
    ///
    /// # Errors
    /// KVM has no room for another route.
    pub fn set(&self, entry: kvm_irq_routing_entry) -> io::Result<()> {
        self.change(entry.gsi, Some(entry))
    }

    /// Takes the route of a GSI away, and keeps the GSI.
    ///
    /// # Errors
    /// KVM refuses the table.
    #[cfg(target_arch = "x86_64")]
    pub fn clear(&self, gsi: Gsi) -> io::Result<()> {
        self.change(gsi, None)
    }

    /// A GSI that nobody has, without a route yet.
    ///
    /// # Errors
    /// There is none left.
    pub fn reserve(&self) -> io::Result<Gsi> {
        let mut table = self.lock();
        let mut free = self.first_free..KVM_MAX_IRQ_ROUTES as Gsi;
        let gsi = free.find(|gsi| !table.contains_key(gsi));
        let gsi = gsi.ok_or_else(|| {
            io::Error::other(format!(
                "all {KVM_MAX_IRQ_ROUTES} interrupt routes of KVM are in use"
            ))
        })?;
        table.insert(gsi, None);
        Ok(gsi)
    }

    /// Gives a GSI back. Its route goes with the next change: nothing sends it any more.
    pub fn release(&self, gsi: Gsi) {
        self.lock().remove(&gsi);
    }

    fn change(&self, gsi: Gsi, entry: Option<kvm_irq_routing_entry>) -> io::Result<()> {
        let mut table = self.lock();
        let before = table.insert(gsi, entry);
        let result = self.commit(&table);
        if result.is_err() {
            match before {
                Some(before) => table.insert(gsi, before),
                None => table.remove(&gsi),
            };
        }
        result
    }

    fn commit(&self, table: &BTreeMap<Gsi, Option<kvm_irq_routing_entry>>) -> io::Result<()> {
        let entries: Vec<kvm_irq_routing_entry> = table.values().flatten().copied().collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm.set_gsi_routing(&routing).map_err(io::Error::from)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Gsi, Option<kvm_irq_routing_entry>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
