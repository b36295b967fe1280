//! INTx: the wired interrupt. The device writes to the line and masks itself; when the guest has
//! ended the interrupt, the line writes to the device and that unmasks it, all without us.

use std::sync::Arc;

use super::lost::Link;
use crate::ResampledLine;
use crate::device::IrqKind;

/// How the wired interrupt of a function is connected.
#[derive(Clone)]
pub struct IntxWiring {
    /// The line into the interrupt controller.
    pub line: Arc<dyn ResampledLine>,
    /// What the interrupt pin register says: 1 is INTA#, 4 is INTD#.
    pub pin: u8,
    /// What the interrupt line register says at the start. Guests that know ACPI do not look at it.
    pub number: u8,
}

/// The wired interrupt.
pub(super) struct Intx {
    line: Arc<dyn ResampledLine>,
    /// Whether the device has shown that it cannot be told of the end of an interrupt: then there
    /// would be one and never another.
    unavailable: bool,
}

impl Intx {
    pub fn new(line: Arc<dyn ResampledLine>) -> Self {
        Self {
            line,
            unavailable: false,
        }
    }

    pub fn is_available(&self) -> bool {
        !self.unavailable
    }

    /// Connects the device with the line.
    ///
    /// # Returns
    /// Whether it is.
    pub fn connect(&mut self, link: &Link) -> bool {
        if !link.set_irqs(IrqKind::Intx, &[Some(self.line.trigger())]) {
            return false;
        }
        if link.unmask_intx_on(self.line.resample()) {
            return true;
        }
        self.unavailable = true;
        link.set_irqs(IrqKind::Intx, &[]);
        if !link.is_lost() {
            log::warn!("{}: the guest has to do without INTx", link.bdf());
        }
        false
    }
}
