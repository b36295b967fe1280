//! The x86 I/O APIC (Intel 82093AA data sheet; ICH9 data sheet, section 13.5, for version 0x20).
//!
//! KVM's split irqchip leaves it to user space: the local APICs are in the kernel, and what this
//! one has to say to them goes as MSIs.
//!
//! It calls itself version 0x20, which has the EOI register. With a split irqchip KVM's local
//! APICs offer to suppress the broadcast of EOIs, and a guest that takes the offer has no other
//! way to end a level-triggered interrupt here; with version 0x11 it would have none.

use std::sync::{Arc, Mutex};

use pci::{InterruptLine, MsiMessage};
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::lock::lock;
use crate::registers::{read_u32, written_u32};

mod entry;

use entry::Entry;

/// Interrupt pins.
pub const PINS: u8 = 24;
/// Bytes of the register block.
pub const SIZE: u64 = 0x1000;

// Registers by offset.
/// Selects the register behind [`WINDOW`].
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Ends the level-triggered interrupts of the vector that is written to it.
const EOI: u64 = 0x40;

// Registers behind the window.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
/// Two for each pin, the low half first.
const ENTRIES: u8 = 0x10;
const ENTRIES_END: u8 = ENTRIES + 2 * PINS;

/// The APIC id, four bits, in the ID register.
const ID_MASK: u32 = 0x0f00_0000;
/// Version 0x20, and the number of the last entry.
const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Where an I/O APIC's interrupts go: the local APICs.
///
/// Called with the I/O APIC locked: an implementation must not call back into it.
pub trait MsiPort: Send + Sync {
    /// Delivers `message` once.
    ///
    /// Bits 11:5 of the address are bits 14:8 of the destination id, for guests that were offered
    /// them (`KVM_FEATURE_MSI_EXT_DEST_ID`). Bits 15 and 14 of the data are set for
    /// level-triggered interrupts.
    fn send(&self, message: MsiMessage);

    /// Says what `pin` translates to from now on, or that it is masked. `level` is its trigger
    /// mode.
    ///
    /// KVM learns from the routes of GSIs 0 to 23 which vectors' EOIs it must report
    /// (`KVM_EXIT_IOAPIC_EOI`). Called only on changes; before the first call a pin is masked.
    fn set_route(&self, pin: u8, message: Option<MsiMessage>, level: bool);
}

/// State of an [`IoApic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// `IOREGSEL`.
    pub select: u8,
    /// The ID register.
    pub id: u32,
    /// The redirection table, as the guest reads it.
    pub entries: [u64; PINS as usize],
    /// The pins' levels, a bit for each pin.
    pub asserted: u32,
}

impl Default for IoApicState {
    fn default() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [Entry::default().bits(); PINS as usize],
            asserted: 0,
        }
    }
}

/// Called when a guest has ended the interrupt of a pin.
pub type OnEnd = Arc<dyn Fn() + Send + Sync>;

/// The I/O APIC.
pub struct IoApic {
    port: Arc<dyn MsiPort>,
    inner: Mutex<Inner>,
    /// By pin.
    resampled: Mutex<[Option<OnEnd>; PINS as usize]>,
}

struct Inner {
    select: u8,
    id: u32,
    pins: [Pin; PINS as usize],
}

#[derive(Clone, Copy, Default)]
struct Pin {
    entry: Entry,
    asserted: bool,
    /// What the port was last told.
    route: Option<(MsiMessage, bool)>,
}

impl IoApic {
    /// An I/O APIC after reset: all pins masked and released.
    pub fn new(port: Arc<dyn MsiPort>) -> Self {
        Self::restore(&IoApicState::default(), port)
    }

    /// An I/O APIC that goes on where another one was saved; tells `port` all routes.
    pub fn restore(state: &IoApicState, port: Arc<dyn MsiPort>) -> Self {
        let mut pins = [Pin::default(); PINS as usize];
        for (number, (pin, bits)) in (0..PINS).zip(pins.iter_mut().zip(state.entries)) {
            pin.entry = Entry::from_bits(bits);
            pin.asserted = state.asserted >> number & 1 != 0;
            pin.update(number, &*port);
        }
        let inner = Mutex::new(Inner {
            select: state.select,
            id: state.id & ID_MASK,
            pins,
        });
        Self {
            port,
            inner,
            resampled: Mutex::default(),
        }
    }

    /// The I/O APIC's state.
    pub fn save(&self) -> IoApicState {
        let inner = lock(&self.inner);
        let asserted = (0..).zip(&inner.pins).fold(0, |levels, (number, pin)| {
            levels | u32::from(pin.asserted) << number
        });
        IoApicState {
            select: inner.select,
            id: inner.id,
            entries: inner.pins.map(|pin| pin.entry.bits()),
            asserted,
        }
    }

    /// The line into pin `pin`; `None` if there is no such pin.
    ///
    /// One device drives one pin: lines of the same pin overrule each other.
    pub fn line(self: &Arc<Self>, pin: u8) -> Option<Arc<dyn InterruptLine>> {
        if pin >= PINS {
            return None;
        }
        let ioapic = Arc::clone(self);
        Some(Arc::new(Line { ioapic, pin }))
    }

    /// Releases a pin whenever the guest ends its interrupt, and then calls `on_end`, for devices
    /// that do not say when they are done but assert the pin again if they are not.
    pub fn resample(&self, pin: u8, on_end: OnEnd) {
        if let Some(slot) = lock(&self.resampled).get_mut(usize::from(pin)) {
            *slot = Some(on_end);
        }
    }

    /// A local APIC has ended the interrupt `vector`: level-triggered pins that sent it may
    /// interrupt again, and those that are still asserted do so at once.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut ended = Vec::new();
        {
            let mut inner = lock(&self.inner);
            let resampled = lock(&self.resampled);
            for ((number, pin), on_end) in (0..).zip(&mut inner.pins).zip(&*resampled) {
                if pin.entry.level() && pin.entry.vector() == vector {
                    pin.asserted &= on_end.is_none();
                    pin.entry.set_remote_irr(false);
                    pin.update(number, &*self.port);
                    ended.extend(on_end.clone());
                }
            }
        }
        // Without the locks: a device may assert its pin at once.
        ended.iter().for_each(|on_end| on_end());
    }

    fn set_level(&self, number: u8, asserted: bool) {
        let mut inner = lock(&self.inner);
        let Some(pin) = inner.pins.get_mut(usize::from(number)) else {
            return;
        };
        let edge = asserted && !pin.asserted;
        pin.asserted = asserted;
        if pin.entry.level() {
            pin.update(number, &*self.port);
        } else if edge && !pin.entry.masked() {
            // An edge on a masked pin is lost (82093AA, section 3.2.4, bit 16).
            self.port.send(pin.entry.message());
        }
    }
}

struct Line {
    ioapic: Arc<IoApic>,
    pin: u8,
}

impl InterruptLine for Line {
    fn set_level(&self, asserted: bool) {
        self.ioapic.set_level(self.pin, asserted);
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_u32(offset, data, |register| {
            let inner = lock(&self.inner);
            match register {
                SELECT => inner.select.into(),
                WINDOW => inner.read(),
                _ => 0,
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match written_u32(offset, data) {
            Some((SELECT, value)) => lock(&self.inner).select = value as u8,
            Some((WINDOW, value)) => lock(&self.inner).write(value, &*self.port),
            Some((EOI, value)) => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

impl Inner {
    /// The pin that the selected register belongs to, and whether it is the entry's high half.
    fn selected(&self) -> Option<(u8, bool)> {
        let index = self.select.checked_sub(ENTRIES)?;
        (self.select < ENTRIES_END).then_some((index / 2, index % 2 != 0))
    }

    fn read(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => return self.id,
            VERSION => return VERSION_VALUE,
            _ => {}
        }
        let selected = self.selected().and_then(|(number, high)| {
            let pin = self.pins.get(usize::from(number))?;
            let shift = if high { 32 } else { 0 };
            Some((pin.entry.bits() >> shift) as u32)
        });
        selected.unwrap_or(0)
    }

    fn write(&mut self, value: u32, port: &dyn MsiPort) {
        if self.select == ID {
            self.id = value & ID_MASK;
        }
        let Some((number, high)) = self.selected() else {
            return;
        };
        let Some(pin) = self.pins.get_mut(usize::from(number)) else {
            return;
        };
        if high {
            pin.entry.write_high(value);
        } else {
            pin.entry.write_low(value);
        }
        pin.update(number, port);
    }
}

impl Pin {
    /// Tells the port of a changed route, and sends the interrupt that is due.
    fn update(&mut self, number: u8, port: &dyn MsiPort) {
        // A masked level-triggered pin keeps its route: a guest may mask it and then end the
        // interrupt, which must be reported.
        let level = self.entry.level();
        let routed = !self.entry.masked() || level;
        let route = routed.then(|| (self.entry.message(), level));
        if route != self.route {
            self.route = route;
            port.set_route(number, route.map(|(message, _)| message), level);
        }
        if level && self.asserted && !self.entry.masked() && !self.entry.remote_irr() {
            self.entry.set_remote_irr(true);
            port.send(self.entry.message());
        }
    }
}

#[cfg(test)]
mod tests;
