//! Sleep control, sleep status and reset registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7).

use crate::bus::BusDevice;

/// Offset of the sleep control register (FADT: `SLEEP_CONTROL_REG`), one byte.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register (FADT: `SLEEP_STATUS_REG`), one byte.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register (FADT: `RESET_REG`), one byte.
pub const RESET: u64 = 2;
/// Bytes of all three.
pub const SIZE: u64 = 3;

/// What the guest writes to [`RESET`] to be reset (FADT: `RESET_VALUE`).
pub const RESET_VALUE: u8 = 1;
/// The sleep type that means soft-off, the first element of the package `\_S5`.
pub const S5_SLEEP_TYPE: u8 = 5;

/// Lowest bit of `SLP_TYP`, three bits wide, in the sleep control register.
const SLEEP_TYPE_SHIFT: u32 = 2;
/// `SLP_EN` in the sleep control register: go to sleep now.
const SLEEP_ENABLE: u8 = 1 << 5;

/// What a guest asks of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerEvent {
    /// Soft-off, the end.
    PowerOff,
    /// A cold start.
    Reset,
}

/// The registers that a guest switches itself off with.
///
/// They hold nothing: whoever wrote them is gone.
pub struct SleepDevice {
    on_event: Box<dyn Fn(PowerEvent) + Send + Sync>,
}

impl SleepDevice {
    /// Registers that call `on_event`, from the vCPU thread, with every request of the guest.
    pub fn new(on_event: Box<dyn Fn(PowerEvent) + Send + Sync>) -> Self {
        Self { on_event }
    }
}

impl BusDevice for SleepDevice {
    /// Reads zeros: no sleep type chosen, not woken up from any sleep.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // A wide access to I/O ports is one byte to each of them.
        for (register, value) in (offset..=u64::MAX).zip(data) {
            match register {
                SLEEP_CONTROL => {
                    let sleep_type = (value >> SLEEP_TYPE_SHIFT) & 7;
                    if value & SLEEP_ENABLE != 0 && sleep_type == S5_SLEEP_TYPE {
                        (self.on_event)(PowerEvent::PowerOff);
                    }
                }
                RESET if *value == RESET_VALUE => (self.on_event)(PowerEvent::Reset),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::testing::{inb, never_panics, outb};

    fn device() -> (SleepDevice, Arc<Mutex<Vec<PowerEvent>>>) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&events);
        let device = SleepDevice::new(Box::new(move |event| log.lock().unwrap().push(event)));
        (device, events)
    }

    /// The order of ACPICA's `acpi_hw_extended_sleep`: clear the wake status, then write type
    /// and enable bit; 0x34 is type 5 << 2 | 0x20.
    #[test]
    fn acpica_powers_off() {
        let (device, events) = device();
        outb(&device, 1, 0x80);
        assert!(events.lock().unwrap().is_empty());
        outb(&device, 0, 0x34);
        assert_eq!(*events.lock().unwrap(), [PowerEvent::PowerOff]);
        assert_eq!(inb(&device, 1), 0);
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (device, events) = device();
        outb(&device, 2, 0);
        outb(&device, 2, 2);
        assert!(events.lock().unwrap().is_empty());
        outb(&device, 2, 1);
        assert_eq!(*events.lock().unwrap(), [PowerEvent::Reset]);
    }

    #[test]
    fn other_sleep_types_and_a_missing_enable_bit_do_nothing() {
        let (device, events) = device();
        for value in (0..=u8::MAX).filter(|value| value & 0x3c != 0x34) {
            outb(&device, 0, value);
        }
        assert!(events.lock().unwrap().is_empty());
    }

    #[test]
    fn no_access_panics() {
        never_panics(|| device().0);
    }
}
