//! The PC's serial port: a 16550A (Texas Instruments TL16C550D data sheet, SLLS597, section
//! "Principles of Operation").
//!
//! The model is ours rather than vm-superio's, which reports two interrupt causes at once in IIR
//! (together they read as a third one), forgets received data when IIR is read, ignores FCR and
//! has pulses for an interrupt: Linux copes, drivers that go by the data sheet need not.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::port::{Port, Registers};
use super::{SerialPort, Wiring, fill};
use crate::bus::BusDevice;

/// I/O ports of one serial port.
pub const SIZE: u16 = 8;
/// Receive FIFO, bytes.
const FIFO_SIZE: usize = 16;

// Registers by offset.
/// Receiver buffer (reading), transmitter holding (writing); divisor's low byte with DLAB.
const DATA: u64 = 0;
/// Interrupt enable; divisor's high byte with DLAB.
const IER: u64 = 1;
/// Interrupt identification (reading), FIFO control (writing).
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_MASK: u8 = 0x0f;

// Interrupt causes in IIR, by falling priority.
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_RECEIVED: u8 = 0x04;
/// Fewer bytes than the trigger level wait, and no more came for the time of four characters.
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_NONE: u8 = 0x01;
const IIR_FIFOS_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_RESET_RECEIVER: u8 = 1 << 1;
/// The bits of FCR that stay: enable, DMA mode, trigger level.
const FCR_KEPT: u8 = 0xc9;
const FCR_TRIGGER_SHIFT: u32 = 6;
const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];

const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Transmitter holding register empty and transmitter empty: bytes leave at once.
const LSR_TRANSMITTER_IDLE: u8 = 0x60;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
/// How far a modem line is above its "changed" bit.
const MSR_DELTA_SHIFT: u32 = 4;

/// State of a [`Uart16550`]: its registers. What is not here follows from these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uart16550State {
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Scratch register.
    pub scr: u8,
    /// Divisor latch; nothing depends on it.
    pub divisor: u16,
    /// Bits 0 to 3 of the modem status register: lines that changed since it was read.
    pub modem_changes: u8,
    /// Overrun error in the line status register.
    pub overrun: bool,
    /// The transmitter became empty and the guest has not taken note.
    pub transmitter_emptied: bool,
    /// Received bytes, the oldest first.
    pub received: VecDeque<u8>,
}

/// A 16550A.
pub struct Uart16550 {
    port: Port<Uart16550State>,
}

impl Uart16550 {
    /// A port after power-on.
    pub fn new(wiring: Wiring) -> Self {
        Self::restore(&Uart16550State::default(), wiring)
    }

    /// A port that goes on where another one was saved.
    ///
    /// The source of its input starts anew: `on_room` is called for what it is told from now on.
    pub fn restore(state: &Uart16550State, wiring: Wiring) -> Self {
        let mut registers = state.clone();
        registers.ier &= IER_MASK;
        registers.fcr &= FCR_KEPT;
        registers.mcr &= MCR_MASK;
        registers.modem_changes &= 0x0f;
        registers.received.truncate(FIFO_SIZE);
        let port = Port::new("16550", registers, wiring);
        Self { port }
    }

    /// The port's state.
    pub fn save(&self) -> Uart16550State {
        self.port.save()
    }

    fn write_register(&self, offset: u64, value: u8) {
        // While the byte is on its way out the line is low: a driver that goes by edges gets its
        // next one, though the transmitter is never seen full.
        if offset == DATA && self.port.access(Uart16550State::fill_transmitter) {
            self.port.output(value);
        }
        self.port.access(|registers| registers.write(offset, value));
    }
}

impl SerialPort for Uart16550 {
    fn room(&self) -> usize {
        self.port.room()
    }

    fn enqueue_input(&self, bytes: &[u8]) -> usize {
        self.port.enqueue_input(bytes)
    }
}

impl BusDevice for Uart16550 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // A wide access to I/O ports is one byte from each of them.
        for (register, byte) in (offset..=u64::MAX).zip(data) {
            *byte = self.port.access(|registers| registers.read(register));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..=u64::MAX).zip(data) {
            self.write_register(register, *byte);
        }
    }
}

impl Registers for Uart16550State {
    fn interrupting(&self) -> bool {
        self.cause() != IIR_NONE
    }

    fn room(&self) -> usize {
        if self.looped() { 0 } else { self.free() }
    }

    fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        fill(&mut self.received, room, bytes)
    }

    fn drained(&self) -> bool {
        self.received.is_empty()
    }
}

impl Uart16550State {
    /// Whether the first two registers are the divisor.
    fn dlab(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    /// Whether the transmitter is connected to the receiver.
    fn looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn fifos_enabled(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn free(&self) -> usize {
        let depth = if self.fifos_enabled() { FIFO_SIZE } else { 1 };
        depth.saturating_sub(self.received.len())
    }

    /// The pending and enabled interrupt cause of the highest priority.
    fn cause(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(IER_LINE_STATUS) && self.overrun {
            return IIR_LINE_STATUS;
        }
        if enabled(IER_RECEIVED) && !self.received.is_empty() {
            let level = usize::from(self.fcr >> FCR_TRIGGER_SHIFT);
            let trigger = TRIGGER_LEVELS.get(level).copied().unwrap_or(1);
            let waiting = self.fifos_enabled() && self.received.len() < trigger;
            return if waiting { IIR_TIMEOUT } else { IIR_RECEIVED };
        }
        if enabled(IER_TRANSMITTER_EMPTY) && self.transmitter_emptied {
            return IIR_TRANSMITTER_EMPTY;
        }
        if enabled(IER_MODEM_STATUS) && self.modem_changes != 0 {
            return IIR_MODEM_STATUS;
        }
        IIR_NONE
    }

    fn read(&mut self, offset: u64) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.dlab() => divisor_low,
            IER if self.dlab() => divisor_high,
            DATA => self.received.pop_front().unwrap_or(0),
            IER => self.ier,
            IIR_FCR => self.read_iir(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => {
                let ready = if self.received.is_empty() {
                    0
                } else {
                    LSR_DATA_READY
                };
                let overrun = if std::mem::take(&mut self.overrun) {
                    LSR_OVERRUN
                } else {
                    0
                };
                LSR_TRANSMITTER_IDLE | ready | overrun
            }
            MSR => self.modem_lines() | std::mem::take(&mut self.modem_changes),
            SCR => self.scr,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u8) {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            DATA if self.dlab() => self.divisor = u16::from_le_bytes([value, divisor_high]),
            IER if self.dlab() => self.divisor = u16::from_le_bytes([divisor_low, value]),
            DATA => self.transmit(value),
            IER => self.write_ier(value),
            IIR_FCR => self.write_fcr(value),
            LCR => self.lcr = value,
            MCR => self.write_mcr(value),
            SCR => self.scr = value,
            _ => {}
        }
    }

    /// Prepares for a write to [`DATA`]; returns whether its byte leaves the machine.
    fn fill_transmitter(&mut self) -> bool {
        if self.dlab() {
            return false;
        }
        self.transmitter_emptied = false;
        !self.looped()
    }

    fn transmit(&mut self, byte: u8) {
        self.transmitter_emptied = true;
        if self.looped() {
            let free = self.free();
            self.overrun |= fill(&mut self.received, free, &[byte]) == 0;
        }
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        // Only this cause is acknowledged by reading it here.
        if cause == IIR_TRANSMITTER_EMPTY {
            self.transmitter_emptied = false;
        }
        if self.fifos_enabled() {
            cause | IIR_FIFOS_ENABLED
        } else {
            cause
        }
    }

    fn write_ier(&mut self, value: u8) {
        let enabled = value & !self.ier;
        self.ier = value & IER_MASK;
        // The transmitter is always empty, and whoever asks to hear of it hears of it again.
        self.transmitter_emptied |= enabled & IER_TRANSMITTER_EMPTY != 0;
    }

    fn write_fcr(&mut self, value: u8) {
        let before = self.fifos_enabled();
        // Without the enable bit the other bits are not programmed.
        let value = if value & FCR_ENABLE != 0 { value } else { 0 };
        self.fcr = value & FCR_KEPT;
        if before != self.fifos_enabled() || value & FCR_RESET_RECEIVER != 0 {
            self.received.clear();
        }
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value & MCR_MASK;
        let after = self.modem_lines();
        // Three lines report any change, the ring indicator only its end.
        let changed = (before ^ after) & !MSR_RI | before & !after & MSR_RI;
        self.modem_changes |= changed >> MSR_DELTA_SHIFT;
    }

    /// The modem's lines: one that is always ready, or in loopback the port's own.
    fn modem_lines(&self) -> u8 {
        if !self.looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        [
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ]
        .into_iter()
        .filter(|(output, _)| self.mcr & output != 0)
        .fold(0, |lines, (_, input)| lines | input)
    }
}

#[cfg(test)]
mod tests;
