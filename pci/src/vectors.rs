//! The message-signalled interrupts of a function, while it has some turned on.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::few::Few;
use crate::{Bdf, MsiMessage, MsiSource, MsiVector};

/// Interrupts, each masked or with a message.
pub(crate) struct Vectors(Vec<Vector>);

struct Vector {
    /// `None` is one that the host had no room for; it is never sent.
    vector: Option<Arc<dyn MsiVector>>,
    message: Option<MsiMessage>,
}

impl Vectors {
    /// `count` masked interrupts.
    pub fn new(source: &dyn MsiSource, bdf: Bdf, count: usize, failures: &Few) -> Self {
        let vector = |index| {
            let vector = source.vector(bdf);
            if let Err(error) = &vector
                && failures.another()
            {
                log::warn!("{bdf}: no interrupt for vector {index} of {count}: {error}");
            }
            Vector {
                vector: vector.ok(),
                message: None,
            }
        };
        Self((0..count).map(vector).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What the device is to write to.
    pub fn events(&self) -> Vec<Option<&EventFd>> {
        let vectors = self.0.iter();
        vectors
            .map(|entry| entry.vector.as_ref().map(|vector| vector.event()))
            .collect()
    }

    /// What sends them, for those that do so themselves.
    pub fn senders(&self) -> Vec<Option<Arc<dyn MsiVector>>> {
        self.0.iter().map(|entry| entry.vector.clone()).collect()
    }

    /// Gives one its message, or masks it. One that is not there stays so.
    pub fn set_message(
        &mut self,
        index: usize,
        message: Option<MsiMessage>,
        bdf: Bdf,
        failures: &Few,
    ) {
        let Some(entry) = self.0.get_mut(index) else {
            return;
        };
        if entry.message == message {
            return;
        }
        let result = match &entry.vector {
            Some(vector) => vector.set_message(message),
            None => Ok(()),
        };
        match result {
            Ok(()) => entry.message = message,
            Err(error) if failures.another() => {
                log::warn!("{bdf}: vector {index} cannot have {message:x?}: {error}");
            }
            Err(_) => {}
        }
    }
}
