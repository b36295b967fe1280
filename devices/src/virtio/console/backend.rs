//! The host's side: a line on which input waits for the guest, and output goes to the host.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes of input that wait for the guest at most; what comes beyond that waits where it comes from.
const INPUT: usize = 4096;

/// Where the guest's output goes.
pub trait LineOutput: Send + Sync {
    /// Takes as many of `bytes` as there is room for, from the first on, and returns their number. Never
    /// waits. Whoever takes fewer than it is offered calls [`Line::output_has_room`] later.
    fn take(&self, bytes: &[u8]) -> usize;
}

/// The size of a terminal, in characters. Zeros are a size that nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Size {
    pub(super) fn to_bits(self) -> u32 {
        u32::from(self.rows) << 16 | u32::from(self.columns)
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self {
            columns: bits as u16,
            rows: (bits >> 16) as u16,
        }
    }
}

/// What a line is connected to.
pub struct LineParts {
    /// Where output goes.
    pub output: Box<dyn LineOutput>,
    /// Called, from any thread, once there is room for input that was refused.
    pub on_room: Box<dyn Fn() + Send + Sync>,
    /// The size of the host's terminal; nothing if there is no terminal.
    pub size: Option<Size>,
}

/// A line between the host and the devices of all boots, of which there is one at a time.
pub struct Line {
    output: Box<dyn LineOutput>,
    on_room: Box<dyn Fn() + Send + Sync>,
    input: Mutex<Input>,
    size: Option<AtomicU32>,
    /// Tells the device that there is input, or room for output, or another size.
    event: EventFd,
}

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Whether some was refused.
    starved: bool,
}

impl Line {
    /// A line on which nothing waits.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(parts: LineParts) -> io::Result<Self> {
        let LineParts {
            output,
            on_room,
            size,
        } = parts;
        Ok(Self {
            output,
            on_room,
            input: Mutex::default(),
            size: size.map(|size| AtomicU32::new(size.to_bits())),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Takes as much of the host's input as there is room for, from the first byte on, and returns how
    /// much that is. Never waits; see [`LineParts::on_room`].
    pub fn accept(&self, bytes: &[u8]) -> usize {
        let mut input = self.input();
        let count = bytes.len().min(INPUT.saturating_sub(input.bytes.len()));
        input.bytes.extend(bytes.get(..count).unwrap_or_default());
        input.starved = count < bytes.len();
        drop(input);
        if count > 0 {
            self.wake();
        }
        count
    }

    /// Says that there is room for output again; from any thread.
    pub fn output_has_room(&self) {
        self.wake();
    }

    /// Says what size the host's terminal is now. Without one, nothing happens.
    pub fn resize(&self, to: Size) {
        if let Some(size) = &self.size
            && size.swap(to.to_bits(), Ordering::SeqCst) != to.to_bits()
        {
            self.wake();
        }
    }

    /// The size of the host's terminal; nothing if there is no terminal.
    pub fn size(&self) -> Option<Size> {
        let size = self.size.as_ref()?;
        Some(Size::from_bits(size.load(Ordering::SeqCst)))
    }

    /// Readable when the device should look at the line.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Makes the device look at the line.
    pub(super) fn wake(&self) {
        // A full counter wakes as well.
        let _ = self.event.write(1);
    }

    /// As [`LineOutput::take`].
    pub(super) fn send(&self, bytes: &[u8]) -> usize {
        self.output.take(bytes).min(bytes.len())
    }

    /// Copies the oldest input into `buffer` and returns how many bytes that is.
    pub(super) fn peek(&self, buffer: &mut [u8]) -> usize {
        let input = self.input();
        let count = buffer.len().min(input.bytes.len());
        for (to, from) in buffer.iter_mut().zip(&input.bytes) {
            *to = *from;
        }
        count
    }

    /// Removes the oldest `count` bytes of input.
    pub(super) fn consume(&self, count: usize) {
        let mut input = self.input();
        let count = count.min(input.bytes.len());
        input.bytes.drain(..count);
        let has_room = count > 0 && std::mem::take(&mut input.starved);
        drop(input);
        if has_room {
            (self.on_room)();
        }
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
