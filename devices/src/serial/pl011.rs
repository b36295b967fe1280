//! ARM PrimeCell UART, PL011 r1p5 (ARM DDI 0183G), which contains the SBSA generic UART (ARM DEN
//! 0094, appendix "Generic UART").
//!
//! Linux drives it as either: the amba driver (device tree) programs everything; the SBSA driver
//! (ACPI, `ARMH0011`) and early consoles touch neither the line settings nor the control register
//! and expect what firmware left. There is no firmware, so the port starts as one would leave it:
//! enabled, FIFOs on, 115200 8N1.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::port::{Port, Registers};
use super::{SerialPort, Wiring, fill};
use crate::bus::BusDevice;
use crate::registers::{read_u32, written_u32};

/// Bytes of the register block.
pub const SIZE: u64 = 0x1000;
/// Clock that the divisors at start are for, in Hz: 24 MHz / 16 / (13 + 1/64) is 115246 baud.
pub const CLOCK_HZ: u32 = 24_000_000;
/// Receive FIFO, bytes; 32 from revision 3 (r1p5) on.
const FIFO_SIZE: usize = 32;

// Registers by offset (table 3-1).
const DR: u64 = 0x00;
const RSR_ECR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
/// `UARTPeriphID0` to `UARTPCellID3`.
const IDS: u64 = 0xfe0;
/// Their values: part 0x011 by ARM (0x41), revision 3, and the PrimeCell signature.
const ID_BYTES: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const RSR_OVERRUN: u8 = 1 << 3;

const FR_CTS: u16 = 1 << 0;
const FR_DSR: u16 = 1 << 1;
const FR_DCD: u16 = 1 << 2;
const FR_RECEIVE_EMPTY: u16 = 1 << 4;
const FR_RECEIVE_FULL: u16 = 1 << 6;
/// Bytes leave at once: the transmitter is neither full nor busy.
const FR_TRANSMIT_EMPTY: u16 = 1 << 7;
const FR_RI: u16 = 1 << 8;

const LCR_H_FIFOS: u8 = 1 << 4;

const CR_ENABLE: u16 = 1 << 0;
const CR_LOOPBACK: u16 = 1 << 7;
const CR_RECEIVE: u16 = 1 << 9;
const CR_DTR: u16 = 1 << 10;
const CR_RTS: u16 = 1 << 11;
const CR_OUT1: u16 = 1 << 12;
const CR_OUT2: u16 = 1 << 13;
const CR_MASK: u16 = 0xff87;

const IFLS_MASK: u8 = 0x3f;
/// Receive trigger levels in bytes by bits 5:3 of IFLS: 1/8, 1/4, 1/2, 3/4 and 7/8 of the FIFO.
const TRIGGER_LEVELS: [usize; 5] = [4, 8, 16, 24, 28];

// Interrupts, in IMSC, RIS, MIS and ICR alike.
const INT_RI: u16 = 1 << 0;
const INT_CTS: u16 = 1 << 1;
const INT_DCD: u16 = 1 << 2;
const INT_DSR: u16 = 1 << 3;
const INT_RECEIVE: u16 = 1 << 4;
const INT_TRANSMIT: u16 = 1 << 5;
const INT_TIMEOUT: u16 = 1 << 6;
const INT_OVERRUN: u16 = 1 << 10;
const INT_MASK: u16 = 0x7ff;

/// State of a [`Pl011`]: its registers. What is not here follows from these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl011State {
    /// `UARTRSR`, receive errors.
    pub receive_status: u8,
    /// `UARTILPR`; nothing depends on it.
    pub ilpr: u8,
    /// `UARTIBRD`; nothing depends on it.
    pub ibrd: u16,
    /// `UARTFBRD`; nothing depends on it.
    pub fbrd: u8,
    /// `UARTLCR_H`.
    pub lcr_h: u8,
    /// `UARTCR`.
    pub cr: u16,
    /// `UARTIFLS`.
    pub ifls: u8,
    /// `UARTIMSC`.
    pub imsc: u16,
    /// `UARTRIS`.
    pub ris: u16,
    /// `UARTDMACR`; there is no DMA controller.
    pub dmacr: u8,
    /// Received bytes, the oldest first.
    pub received: VecDeque<u8>,
}

impl Default for Pl011State {
    fn default() -> Self {
        Self {
            receive_status: 0,
            ilpr: 0,
            ibrd: 13,
            fbrd: 1,
            // 8 bits.
            lcr_h: 0x60 | LCR_H_FIFOS,
            // Linux takes the baud rate from the divisors if it finds the port enabled.
            cr: 0x0300 | CR_ENABLE,
            ifls: 0x12,
            imsc: 0,
            ris: 0,
            dmacr: 0,
            received: VecDeque::new(),
        }
    }
}

/// A PL011.
///
/// A byte is transmitted whatever the control register says: a port that was never enabled, or
/// was disabled too early, would only lose somebody's last words. Input, which is kept by its
/// source, waits until the receiver is enabled.
pub struct Pl011 {
    port: Port<Pl011State>,
}

impl Pl011 {
    /// A port as firmware would leave it.
    pub fn new(wiring: Wiring) -> Self {
        Self::restore(&Pl011State::default(), wiring)
    }

    /// A port that goes on where another one was saved.
    ///
    /// The source of its input starts anew: `on_room` is called for what it is told from now on.
    pub fn restore(state: &Pl011State, wiring: Wiring) -> Self {
        let mut registers = state.clone();
        registers.receive_status &= 0x0f;
        registers.fbrd &= 0x3f;
        registers.cr &= CR_MASK;
        registers.ifls &= IFLS_MASK;
        registers.imsc &= INT_MASK;
        registers.ris &= INT_MASK;
        registers.dmacr &= 7;
        registers.received.truncate(FIFO_SIZE);
        let port = Port::new("PL011", registers, wiring);
        Self { port }
    }

    /// The port's state.
    pub fn save(&self) -> Pl011State {
        self.port.save()
    }
}

impl SerialPort for Pl011 {
    fn room(&self) -> usize {
        self.port.room()
    }

    fn enqueue_input(&self, bytes: &[u8]) -> usize {
        self.port.enqueue_input(bytes)
    }
}

impl BusDevice for Pl011 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_u32(offset, data, |register| {
            self.port.access(|registers| registers.read(register))
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some((register, value)) = written_u32(offset, data) else {
            return;
        };
        if register == DR && self.port.access(|registers| !registers.looped()) {
            self.port.output(value as u8);
        }
        self.port
            .access(|registers| registers.write(register, value));
    }
}

impl Registers for Pl011State {
    /// The level of `UARTINTR`, the one line that all interrupts share.
    fn interrupting(&self) -> bool {
        self.ris & self.imsc != 0
    }

    /// None while the receiver is off or connected to the transmitter.
    fn room(&self) -> usize {
        let receiving = CR_ENABLE | CR_RECEIVE;
        if self.cr & receiving == receiving && !self.looped() {
            self.free()
        } else {
            0
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        self.push(room, bytes)
    }

    fn drained(&self) -> bool {
        self.received.is_empty()
    }
}

impl Pl011State {
    /// Whether the transmitter is connected to the receiver.
    fn looped(&self) -> bool {
        self.cr & CR_LOOPBACK != 0
    }

    fn depth(&self) -> usize {
        match self.lcr_h & LCR_H_FIFOS {
            0 => 1,
            _ => FIFO_SIZE,
        }
    }

    /// Bytes at which the receive interrupt is raised.
    fn trigger(&self) -> usize {
        let level = TRIGGER_LEVELS.get(usize::from(self.ifls >> 3));
        // The other three values are reserved.
        level.copied().unwrap_or(FIFO_SIZE).min(self.depth())
    }

    fn free(&self) -> usize {
        self.depth().saturating_sub(self.received.len())
    }

    /// Puts up to `room` of `bytes` into the FIFO; returns how many bytes.
    fn push(&mut self, room: usize, bytes: &[u8]) -> usize {
        let before = self.received.len();
        let taken = fill(&mut self.received, room, bytes);
        if taken > 0 {
            // Real hardware waits for the time of 32 bits before it reports fewer bytes than the
            // trigger level; what comes next here may be hours away.
            self.ris |= INT_TIMEOUT;
        }
        let trigger = self.trigger();
        if before < trigger && self.received.len() >= trigger {
            self.ris |= INT_RECEIVE;
        }
        taken
    }

    /// Takes a byte from the guest.
    fn transmit(&mut self, byte: u8) {
        // The transmit interrupt means that the FIFO's level has fallen through the trigger
        // level, so it needs a first byte.
        self.ris |= INT_TRANSMIT;
        if self.looped() && self.push(self.free(), &[byte]) == 0 {
            self.receive_status |= RSR_OVERRUN;
            self.ris |= INT_OVERRUN;
        }
    }

    fn read(&mut self, register: u64) -> u32 {
        match register {
            DR => u32::from(self.read_data()),
            RSR_ECR => self.receive_status.into(),
            FR => self.flags().into(),
            ILPR => self.ilpr.into(),
            IBRD => self.ibrd.into(),
            FBRD => self.fbrd.into(),
            LCR_H => self.lcr_h.into(),
            CR => self.cr.into(),
            IFLS => self.ifls.into(),
            IMSC => self.imsc.into(),
            RIS => self.ris.into(),
            MIS => (self.ris & self.imsc).into(),
            DMACR => self.dmacr.into(),
            IDS.. => usize::try_from((register - IDS) / 4)
                .ok()
                .and_then(|index| ID_BYTES.get(index))
                .map_or(0, |id| u32::from(*id)),
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u32) {
        let byte = value as u8;
        let half = value as u16;
        match register {
            DR => self.transmit(byte),
            RSR_ECR => self.receive_status = 0,
            ILPR => self.ilpr = byte,
            IBRD => self.ibrd = half,
            FBRD => self.fbrd = byte & 0x3f,
            LCR_H => self.write_lcr_h(byte),
            CR => self.write_cr(half),
            IFLS => self.ifls = byte & IFLS_MASK,
            IMSC => self.imsc = half & INT_MASK,
            ICR => self.ris &= !half,
            DMACR => self.dmacr = byte & 7,
            _ => {}
        }
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.received.pop_front().unwrap_or(0);
        if self.received.len() < self.trigger() {
            self.ris &= !INT_RECEIVE;
        }
        if self.received.is_empty() {
            self.ris &= !INT_TIMEOUT;
        } else {
            self.ris |= INT_TIMEOUT;
        }
        byte
    }

    fn flags(&self) -> u16 {
        let mut flags = self.modem_lines() | FR_TRANSMIT_EMPTY;
        if self.received.is_empty() {
            flags |= FR_RECEIVE_EMPTY;
        }
        if self.free() == 0 {
            flags |= FR_RECEIVE_FULL;
        }
        flags
    }

    fn write_lcr_h(&mut self, value: u8) {
        if (self.lcr_h ^ value) & LCR_H_FIFOS != 0 {
            self.received.clear();
            self.ris &= !(INT_RECEIVE | INT_TIMEOUT);
        }
        self.lcr_h = value;
    }

    fn write_cr(&mut self, value: u16) {
        let before = self.modem_lines();
        self.cr = value & CR_MASK;
        let changed = before ^ self.modem_lines();
        for (line, interrupt) in [
            (FR_RI, INT_RI),
            (FR_CTS, INT_CTS),
            (FR_DCD, INT_DCD),
            (FR_DSR, INT_DSR),
        ] {
            if changed & line != 0 {
                self.ris |= interrupt;
            }
        }
    }

    /// The modem's lines: one that is always ready, or in loopback the port's own (`UARTCR`,
    /// bit 7).
    fn modem_lines(&self) -> u16 {
        if !self.looped() {
            return FR_CTS | FR_DSR | FR_DCD;
        }
        [
            (CR_RTS, FR_CTS),
            (CR_DTR, FR_DSR),
            (CR_OUT1, FR_DCD),
            (CR_OUT2, FR_RI),
        ]
        .into_iter()
        .filter(|(output, _)| self.cr & output != 0)
        .fold(0, |lines, (_, input)| lines | input)
    }
}

#[cfg(test)]
mod tests;
