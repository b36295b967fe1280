//! A level that a device derives from its registers.

use std::sync::Arc;

use pci::InterruptLine;

/// An interrupt line and its present level, so that only changes reach the machine.
pub(crate) struct Level {
    line: Arc<dyn InterruptLine>,
    asserted: bool,
}

impl Level {
    /// Drives `line` to its first level.
    pub(crate) fn new(line: Arc<dyn InterruptLine>, asserted: bool) -> Self {
        line.set_level(asserted);
        Self { line, asserted }
    }

    pub(crate) fn set(&mut self, asserted: bool) {
        if self.asserted != asserted {
            self.asserted = asserted;
            self.line.set_level(asserted);
        }
    }
}
