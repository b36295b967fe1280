//! The register behind the Generic Event Device (ACPI 6.5, section 5.6.9).
//!
//! The guest's `_EVT` method reads the register, one byte with a bit for each pending event, and
//! notifies the device that each bit stands for. What the register looks like is an agreement
//! between this file and the AML: ACPI leaves it to the platform.

use std::sync::{Arc, Mutex};

use pci::InterruptLine;
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::lock::lock;

/// Bytes of the register block: the event register alone.
pub const SIZE: u64 = 1;

/// What can happen to a guest. The value is the event's bit number in the event register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GedEvent {
    /// The power button was pressed.
    PowerButton = 0,
}

impl GedEvent {
    /// The event's bit in the event register, as a mask.
    pub const fn mask(self) -> u8 {
        1 << self as u8
    }
}

/// State of an [`EventDevice`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDeviceState {
    /// The event register.
    pub pending: u8,
}

/// The event register and its edge-triggered interrupt.
pub struct EventDevice {
    state: Mutex<EventDeviceState>,
    line: Arc<dyn InterruptLine>,
}

impl EventDevice {
    /// A device without pending events.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self::restore(&EventDeviceState::default(), line)
    }

    /// A device that goes on where another one was saved.
    ///
    /// An interrupt that the guest has not taken yet is part of the interrupt controller's state.
    pub fn restore(state: &EventDeviceState, line: Arc<dyn InterruptLine>) -> Self {
        let state = Mutex::new(state.clone());
        Self { state, line }
    }

    /// The device's state.
    pub fn save(&self) -> EventDeviceState {
        lock(&self.state).clone()
    }

    /// Tells the guest that `event` happened.
    ///
    /// Events of one kind that happen before the guest looks are one event.
    pub fn notify(&self, event: GedEvent) {
        lock(&self.state).pending |= event.mask();
        // After the bit is set: the guest may read the register at once.
        self.line.pulse();
    }
}

impl BusDevice for EventDevice {
    /// Reads the event register and clears it.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(register)) = (offset, data.first_mut()) {
            *register = std::mem::take(&mut lock(&self.state).pending);
        }
    }

    /// Does nothing: the register is read-only.
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{TestLine, inb, never_panics, outb};

    #[test]
    fn an_event_is_seen_once() {
        let line = Arc::new(TestLine::default());
        let device = EventDevice::new(line.clone());
        assert_eq!(inb(&device, 0), 0);
        device.notify(GedEvent::PowerButton);
        device.notify(GedEvent::PowerButton);
        assert_eq!((line.edges(), line.asserted()), (2, false));
        outb(&device, 0, 0);
        assert_eq!(inb(&device, 1), 0);
        assert_eq!(inb(&device, 0), 0b1);
        assert_eq!(inb(&device, 0), 0);
    }

    proptest! {
        #[test]
        fn state_round_trips(pending: u8) {
            let line = Arc::new(TestLine::default());
            let state = EventDeviceState { pending };
            let json = serde_json::to_string(&state).unwrap();
            let device = EventDevice::restore(&serde_json::from_str(&json).unwrap(), line);
            prop_assert_eq!(device.save(), state);
            prop_assert_eq!(inb(&device, 0), pending);
        }
    }

    #[test]
    fn no_access_panics() {
        never_panics(|| EventDevice::new(Arc::new(TestLine::default())));
    }
}
