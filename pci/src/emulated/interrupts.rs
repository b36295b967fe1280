//! MSI-X, which the function sends itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::config_space::ConfigSpace;
use crate::few::Few;
use crate::vectors::Vectors;
use crate::{Bdf, MsiMessage, MsiSource, MsiVector, MsixTable};

/// Whether a function may reach memory by itself and send messages: the Bus Master Enable bit (PCI
/// 3.0, section 6.2.2).
#[derive(Debug, Default)]
pub struct BusMaster(AtomicBool);

impl BusMaster {
    /// Whether it may. Cheap, from any thread.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Takes over what a guest wrote; called with configuration space locked.
    pub(super) fn follow(&self, space: &ConfigSpace) {
        self.0.store(space.is_bus_master(), Ordering::Release);
    }
}

/// Sends the MSI-X of a function.
///
/// Cheap, from any thread, whatever locks it holds.
pub struct MsixVectors {
    count: u16,
    /// None while MSI-X is off. Changed with nothing else going on, so nobody waits for it long.
    senders: RwLock<Vec<Option<Arc<dyn MsiVector>>>>,
}

impl MsixVectors {
    /// Off.
    pub(super) fn new(count: u16) -> Self {
        Self {
            count,
            senders: RwLock::default(),
        }
    }

    /// How many vectors there are.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Sends an interrupt: nothing while MSI-X is off, or if there is no such vector. While the vector
    /// is masked, or the function no bus master, it is kept, and sent once when that ends.
    pub fn signal(&self, vector: u16) {
        let senders = self.senders.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Some(sender)) = senders.get(usize::from(vector)) else {
            return;
        };
        if let Err(error) = sender.event().write(1) {
            // Only a full counter refuses another one: there is more than enough to be sent.
            log::debug!("an interrupt is not counted: {error}");
        }
    }

    fn set(&self, senders: Vec<Option<Arc<dyn MsiVector>>>) {
        let mut there = self.senders.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *there, senders);
        drop(there);
        // The machine takes its time to take interrupts back.
        drop(before);
    }
}

/// What configuration space says about interrupts.
pub(super) struct Wanted {
    /// Message control of MSI-X.
    pub control: u16,
    /// Whether the function may send messages.
    pub bus_master: bool,
}

/// The interrupts of a function, as a guest sets them up.
pub(super) struct Interrupts {
    source: Arc<dyn MsiSource>,
    bdf: Bdf,
    table: MsixTable,
    bus_master: bool,
    /// While MSI-X is on.
    active: Option<Vectors>,
    vectors: Arc<MsixVectors>,
    failures: Few,
}

impl Interrupts {
    /// Nothing is turned on yet.
    pub fn new(source: Arc<dyn MsiSource>, bdf: Bdf, vectors: Arc<MsixVectors>) -> Self {
        Self {
            source,
            bdf,
            table: MsixTable::new(vectors.count()),
            bus_master: false,
            active: None,
            vectors,
            failures: Few::default(),
        }
    }

    /// Does what configuration space says.
    pub fn follow(&mut self, wanted: &Wanted) {
        self.table.set_control(wanted.control);
        self.bus_master = wanted.bus_master;
        if !self.table.is_enabled() {
            self.turn_off();
            return;
        }
        let is_new = self.active.is_none();
        if is_new {
            let count = self.table.vectors().into();
            let vectors = Vectors::new(&*self.source, self.bdf, count, &self.failures);
            self.active = Some(vectors);
        }
        self.set_messages(0..self.table.vectors().into());
        if let Some(active) = self.active.as_ref().filter(|_| is_new) {
            self.vectors.set(active.senders());
        }
    }

    /// Puts the table back to how it was at the start.
    pub fn reset(&mut self) {
        self.turn_off();
        self.table = MsixTable::new(self.table.vectors());
    }

    fn turn_off(&mut self) {
        if let Some(active) = self.active.take() {
            self.vectors.set(Vec::new());
            drop(active);
        }
    }

    fn set_messages(&mut self, vectors: impl Iterator<Item = usize>) {
        let Some(active) = &mut self.active else {
            return;
        };
        for index in vectors {
            let message: Option<MsiMessage> = self.table.message(index);
            let message = message.filter(|_| self.bus_master);
            active.set_message(index, message, self.bdf, &self.failures);
        }
    }

    /// A guest's read of the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        self.table.read(offset, data);
    }

    /// A guest's write to the table.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        let touched = self.table.write(offset, data);
        self.set_messages(touched);
    }
}
