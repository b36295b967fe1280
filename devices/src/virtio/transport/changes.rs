//! Changes of a device's own registers while its driver uses them (section 2.5).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::virtio::QueueInterrupt;

/// Counts changes of a device's own registers; whoever reads or changes them holds it.
#[derive(Default)]
pub(super) struct Generation(Mutex<u8>);

impl Generation {
    pub fn lock(&self) -> MutexGuard<'_, u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a running device changes its own registers. To be dropped with what the device's driver has
/// started: the next driver reads them anyway.
#[derive(Clone)]
pub struct ConfigChanges {
    pub(super) generation: Arc<Generation>,
    pub(super) interrupt: QueueInterrupt,
}

impl ConfigChanges {
    /// Makes a change, and tells the driver; from any thread.
    ///
    /// The driver reads nothing while `change` runs, and sees another generation afterwards, so it
    /// never takes a mixture of old and new for what is there (section 4.1.4.3.1).
    pub fn make(&self, change: impl FnOnce()) {
        let mut generation = self.generation.lock();
        change();
        *generation = generation.wrapping_add(1);
        drop(generation);
        self.interrupt.send();
    }
}
