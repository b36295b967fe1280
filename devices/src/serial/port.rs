//! What the two serial ports have in common around their registers.

use std::sync::{Mutex, MutexGuard};

use super::Wiring;
use crate::level::Level;
use crate::lock::lock;
use crate::output::Output;

/// The registers of a serial port.
pub(super) trait Registers: Clone {
    /// The level of the interrupt.
    fn interrupting(&self) -> bool;

    /// Bytes that [`receive`](Self::receive) would take from outside now.
    fn room(&self) -> usize;

    /// Receives from outside what there is room for of `bytes`; returns how many bytes.
    fn receive(&mut self, bytes: &[u8]) -> usize;

    /// Whether the guest has read everything.
    fn drained(&self) -> bool;
}

/// Registers and their connections to the world.
pub(super) struct Port<R> {
    inner: Mutex<Inner<R>>,
    output: Output,
    on_room: Box<dyn Fn() + Send + Sync>,
}

struct Inner<R> {
    registers: R,
    level: Level,
    /// The source of input waits for room.
    awaited: bool,
}

impl<R: Registers> Port<R> {
    /// Connects `registers`; log messages call the port `name`.
    pub(super) fn new(name: &'static str, registers: R, wiring: Wiring) -> Self {
        let level = Level::new(wiring.line, registers.interrupting());
        let inner = Inner {
            registers,
            level,
            awaited: false,
        };
        Self {
            inner: Mutex::new(inner),
            output: Output::new(name, wiring.output),
            on_room: wiring.on_room,
        }
    }

    pub(super) fn save(&self) -> R {
        lock(&self.inner).registers.clone()
    }

    /// Does what an access of the guest does to the registers, and to the world as a consequence.
    pub(super) fn access<T>(&self, access: impl FnOnce(&mut R) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = access(&mut inner.registers);
        let told = inner.awaited && inner.registers.drained() && inner.registers.room() > 0;
        if told {
            inner.awaited = false;
        }
        update_level(inner);
        if told {
            (self.on_room)();
        }
        result
    }

    /// Sends a byte out of the machine, which may take as long as somebody takes to read it.
    ///
    /// Not part of an access, so that input and saving need not wait. To be called before the
    /// access that interrupts the guest for the next byte: another vCPU may write that one.
    pub(super) fn output(&self, byte: u8) {
        self.output.write(&[byte]);
    }

    /// [`SerialPort::room`](super::SerialPort::room).
    pub(super) fn room(&self) -> usize {
        let mut inner = lock(&self.inner);
        let room = inner.registers.room();
        inner.awaited |= room == 0;
        room
    }

    /// [`SerialPort::enqueue_input`](super::SerialPort::enqueue_input).
    pub(super) fn enqueue_input(&self, bytes: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        let room = inner.registers.room();
        let taken = inner.registers.receive(bytes);
        inner.awaited |= taken == room;
        update_level(inner);
        taken
    }
}

/// Drives the line with the lock held, so that levels arrive in the order of their reasons.
fn update_level<R: Registers>(mut inner: MutexGuard<'_, Inner<R>>) {
    let interrupting = inner.registers.interrupting();
    inner.level.set(interrupting);
}
