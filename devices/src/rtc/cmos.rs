//! The PC's CMOS clock: an MC146818 with 128 bytes behind an index and a data port.
//!
//! Source: Motorola MC146818 data sheet. The century at 0x32 is a PC convention, to be announced
//! in the FADT.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::calendar::{self, Date};
use super::{Clock, HostClock};
use crate::bus::BusDevice;
use crate::lock::lock;

/// The index port; the data port follows it.
pub const PORT: u16 = 0x70;
/// Ports.
pub const SIZE: u16 = 2;
/// Register that holds the century (FADT: `CENTURY`).
pub const CENTURY: u8 = 0x32;

const INDEX_PORT: u64 = 0;
const DATA_PORT: u64 = 1;
/// Bit 7 of what is written to the index port masks the NMI on a PC; it is not part of the index.
const INDEX_MASK: u8 = 0x7f;
const REGISTERS: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// Register A: an update is in progress, or is less than [`UPDATE_WARNING`] away.
const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A at start: a 32.768 kHz time base and a periodic rate of 1024 Hz.
const A_INITIAL: u8 = 0x26;
/// Register B: the guest is setting the time; no updates.
const B_SET: u8 = 1 << 7;
/// Register B: update-ended interrupt enable.
const B_UPDATE_INTERRUPT: u8 = 1 << 4;
/// Register B: numbers are binary rather than BCD.
const B_BINARY: u8 = 1 << 2;
/// Register B: hours count to 24 rather than to 12.
const B_24_HOURS: u8 = 1 << 1;
/// Register D: the clock did not lose power.
const D_VALID: u8 = 1 << 7;
/// Hours register in the 12-hour format: afternoon.
const HOURS_PM: u8 = 1 << 7;

/// Nanoseconds: how long before an update the clock warns of it, so that a reader who saw no
/// warning has this long to read a consistent time.
const UPDATE_WARNING: u32 = 244_000;

/// State of a [`Cmos`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    /// Register that the data port accesses.
    pub index: u8,
    /// Seconds that the guest is ahead of the host.
    pub offset: i64,
    /// The 128 registers. Those that hold the time only count while the guest is setting it.
    pub registers: Vec<u8>,
}

impl Default for CmosState {
    fn default() -> Self {
        let mut registers = vec![0; REGISTERS];
        registers[usize::from(REGISTER_A)] = A_INITIAL;
        registers[usize::from(REGISTER_B)] = B_24_HOURS;
        Self {
            index: 0,
            offset: 0,
            registers,
        }
    }
}

/// The clock. Alarm registers and interrupt enables are kept; no interrupt is ever raised.
pub struct Cmos {
    clock: Box<dyn Clock>,
    registers: Mutex<Registers>,
}

struct Registers {
    index: u8,
    offset: i64,
    bytes: [u8; REGISTERS],
}

impl Cmos {
    /// A clock that shows the host's time, in UTC.
    pub fn new() -> Self {
        Self::restore(&CmosState::default())
    }

    /// A clock that is as far from the host's time as a saved one was.
    pub fn restore(state: &CmosState) -> Self {
        Self::with_clock(Box::new(HostClock), state)
    }

    fn with_clock(clock: Box<dyn Clock>, state: &CmosState) -> Self {
        let mut bytes = [0; REGISTERS];
        for (to, from) in bytes.iter_mut().zip(&state.registers) {
            *to = *from;
        }
        let registers = Mutex::new(Registers {
            index: state.index & INDEX_MASK,
            offset: state.offset,
            bytes,
        });
        Self { clock, registers }
    }

    /// The clock's state.
    pub fn save(&self) -> CmosState {
        let registers = lock(&self.registers);
        CmosState {
            index: registers.index,
            offset: registers.offset,
            registers: registers.bytes.to_vec(),
        }
    }
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Cmos {
    /// The index port cannot be read, as on a PC: it reads as ones.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = lock(&self.registers);
        for (port, byte) in (offset..=u64::MAX).zip(data) {
            *byte = match port {
                DATA_PORT => registers.read(&*self.clock),
                _ => 0xff,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = lock(&self.registers);
        for (port, byte) in (offset..=u64::MAX).zip(data) {
            match port {
                INDEX_PORT => registers.index = byte & INDEX_MASK,
                DATA_PORT => registers.write(&*self.clock, *byte),
                _ => {}
            }
        }
    }
}

impl Registers {
    /// Register `index`, below 128.
    fn get(&self, index: u8) -> u8 {
        self.bytes[usize::from(index & INDEX_MASK)]
    }

    fn set(&mut self, index: u8, value: u8) {
        self.bytes[usize::from(index & INDEX_MASK)] = value;
    }

    fn being_set(&self) -> bool {
        self.get(REGISTER_B) & B_SET != 0
    }

    fn read(&self, clock: &dyn Clock) -> u8 {
        match self.index {
            REGISTER_A => {
                let update = 1_000_000_000 - UPDATE_WARNING;
                let warning = !self.being_set() && clock.now().nanoseconds >= update;
                let value = self.get(REGISTER_A);
                if warning {
                    value | A_UPDATE_IN_PROGRESS
                } else {
                    value
                }
            }
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            index if is_time(index) && !self.being_set() => {
                let mut shown = Self { ..*self };
                shown.show_time(clock);
                shown.get(index)
            }
            index => self.get(index),
        }
    }

    fn write(&mut self, clock: &dyn Clock, value: u8) {
        match self.index {
            REGISTER_A => self.set(REGISTER_A, value & !A_UPDATE_IN_PROGRESS),
            REGISTER_B => self.write_control(clock, value),
            REGISTER_C | REGISTER_D => {}
            index if is_time(index) && !self.being_set() => {
                self.show_time(clock);
                self.set(index, value);
                self.take_time(clock);
            }
            index => self.set(index, value),
        }
    }

    fn write_control(&mut self, clock: &dyn Clock, value: u8) {
        let was_being_set = self.being_set();
        // Beginning to set the time disables the interrupt that reports its updates.
        let value = match value & B_SET {
            0 => value,
            _ => value & !B_UPDATE_INTERRUPT,
        };
        self.set(REGISTER_B, value);
        match (was_being_set, self.being_set()) {
            (false, true) => self.show_time(clock),
            (true, false) => self.take_time(clock),
            _ => {}
        }
    }

    /// Puts the present time into the registers, in the format of register B.
    fn show_time(&mut self, clock: &dyn Clock) {
        let time = clock.now().seconds.saturating_add(self.offset);
        let (days, second) = (time.div_euclid(86_400), time.rem_euclid(86_400));
        let date = calendar::date(days);
        let hour = second / 3600;
        let hours = if self.get(REGISTER_B) & B_24_HOURS != 0 {
            self.encode(hour)
        } else {
            let pm = if hour >= 12 { HOURS_PM } else { 0 };
            self.encode((hour + 11) % 12 + 1) | pm
        };
        self.set(SECONDS, self.encode(second % 60));
        self.set(MINUTES, self.encode(second / 60 % 60));
        self.set(HOURS, hours);
        self.set(DAY_OF_WEEK, self.encode(calendar::weekday(days) + 1));
        self.set(DAY_OF_MONTH, self.encode(date.day));
        self.set(MONTH, self.encode(date.month));
        self.set(YEAR, self.encode(date.year.rem_euclid(100)));
        self.set(
            CENTURY,
            self.encode(date.year.div_euclid(100).rem_euclid(100)),
        );
    }

    /// Makes what the registers show the present time.
    fn take_time(&mut self, clock: &dyn Clock) {
        let decode = |index| self.decode(self.get(index));
        let hour = if self.get(REGISTER_B) & B_24_HOURS != 0 {
            decode(HOURS)
        } else {
            let hours = self.get(HOURS);
            let pm = i64::from(hours & HOURS_PM != 0);
            self.decode(hours & !HOURS_PM) % 12 + 12 * pm
        };
        let date = Date {
            year: decode(CENTURY) * 100 + decode(YEAR),
            month: decode(MONTH).clamp(1, 12),
            day: decode(DAY_OF_MONTH).max(1),
        };
        let second = hour * 3600 + decode(MINUTES) * 60 + decode(SECONDS);
        let time = calendar::days_since_epoch(date) * 86_400 + second;
        self.offset = time.saturating_sub(clock.now().seconds);
    }

    /// A number below 100 as register B wants it.
    fn encode(&self, number: i64) -> u8 {
        let number = number as u8;
        if self.get(REGISTER_B) & B_BINARY != 0 {
            number
        } else {
            ((number / 10) << 4) | (number % 10)
        }
    }

    fn decode(&self, byte: u8) -> i64 {
        if self.get(REGISTER_B) & B_BINARY != 0 {
            i64::from(byte)
        } else {
            i64::from(byte >> 4) * 10 + i64::from(byte & 0xf)
        }
    }
}

/// Whether register `index` shows the time.
fn is_time(index: u8) -> bool {
    matches!(
        index,
        SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY
    )
}

#[cfg(test)]
mod tests;
