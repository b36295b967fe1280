//! As much of a PC's keyboard controller as it takes to reset the machine with it: port 0x64.
//!
//! Nothing is described to the guest; this is for kernels that fall back to the keyboard
//! controller (Linux: `reboot=k`) because it is where every PC had its reset line.

use crate::bus::BusDevice;

/// The command port (writing) and status port (reading).
pub const PORT: u16 = 0x64;

/// "Pulse output lines", line 0 low: the processor's reset.
const PULSE_RESET: u8 = 0xfe;

/// The keyboard controller.
pub struct I8042 {
    reset: Box<dyn Fn() + Send + Sync>,
}

impl I8042 {
    /// A controller that calls `reset`, from the vCPU thread, when the guest pulses the reset
    /// line.
    pub fn new(reset: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { reset }
    }
}

impl BusDevice for I8042 {
    /// Reads zeros: neither buffer is full, so that a driver that waits to send a command need
    /// not wait.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(&PULSE_RESET)) = (offset, data.first()) {
            (self.reset)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::testing::{inb, never_panics};

    /// Linux's `native_machine_emergency_restart`: wait for bit 1 to be clear, then the command.
    #[test]
    fn only_the_reset_command_resets() {
        let resets = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&resets);
        let i8042 = I8042::new(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        i8042.write(0, &[0xff]);
        i8042.write(0, &[]);
        i8042.write(1, &[0xfe]);
        assert_eq!(resets.load(Ordering::Relaxed), 0);
        assert_eq!(inb(&i8042, 0) & 0x02, 0);
        i8042.write(0, &[0xfe]);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn no_access_panics() {
        never_panics(|| I8042::new(Box::new(|| ())));
    }
}
