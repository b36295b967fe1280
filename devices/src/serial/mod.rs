//! Serial ports: the PC's 16550 and ARM's PL011.
//!
//! Output leaves at once, input waits in the receive FIFO of the real chip's size; what does not
//! fit stays with the caller, who is told when it is worth trying again. So a guest that reads
//! nothing costs no memory.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

use pci::InterruptLine;

use crate::bus::BusDevice;

pub mod pl011;
mod port;
pub mod uart16550;

pub use pl011::{Pl011, Pl011State};
pub use uart16550::{Uart16550, Uart16550State};

/// What a serial port is connected to.
pub struct Wiring {
    /// Its interrupt. The port drives it as a level; each new reason to interrupt a guest that
    /// has dealt with all the earlier ones is a rising edge.
    pub line: Arc<dyn InterruptLine>,
    /// Where the guest's output goes. Errors are logged and never reach the guest.
    pub output: Box<dyn Write + Send>,
    /// Called from a vCPU thread, with no lock held, when the guest has emptied the receive FIFO
    /// after [`SerialPort::enqueue_input`] or [`SerialPort::room`] had said that it was full.
    pub on_room: Box<dyn Fn() + Send + Sync>,
}

/// A serial port as the source of its input sees it.
pub trait SerialPort: BusDevice {
    /// Bytes that [`enqueue_input`](Self::enqueue_input) would take now.
    fn room(&self) -> usize;

    /// Gives `bytes` to the guest and returns how many of them were taken, the first ones.
    ///
    /// After fewer than all, or after as many as there was room for, `on_room` will be called.
    fn enqueue_input(&self, bytes: &[u8]) -> usize;
}

/// Moves what fits of `bytes` into a FIFO that has `room` for more; returns how many bytes.
fn fill(fifo: &mut VecDeque<u8>, room: usize, bytes: &[u8]) -> usize {
    let taken = room.min(bytes.len());
    fifo.extend(bytes.iter().take(taken));
    taken
}

#[cfg(test)]
mod testing;
