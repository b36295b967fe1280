//! Buffers of a request that another thread than the queue's works on.
#![expect(
    unsafe_code,
    reason = "the host reads and writes guest memory by its addresses"
)]

use std::io;
use std::os::fd::RawFd;

use libc::{c_int, off_t};

use crate::virtio::buffers::{Bounce, Buffers};

/// The buffers of a request that another thread works on.
#[derive(Default)]
pub struct Scatter {
    pub buffers: Buffers,
    /// Through which it goes, if the host cannot take them as they are.
    pub bounce: Option<Bounce>,
}

impl Scatter {
    /// Reads bytes of a file into the next ones, and goes on behind them.
    ///
    /// # Returns
    /// How many.
    ///
    /// # Errors
    /// The host fails.
    pub fn read(&mut self, file: RawFd, offset: u64, bytes: u64) -> io::Result<u64> {
        let (iovecs, count) = match &mut self.bounce {
            Some(bounce) => bounce.next(bytes, None),
            None => self.buffers.next_of(bytes),
        };
        let moved = moved(|| {
            // SAFETY: the buffers are in memory that is kept, or are our own.
            unsafe { libc::preadv(file, iovecs, count as c_int, offset as off_t) }
        })?;
        if let Some(bounce) = &mut self.bounce {
            bounce.give(&self.buffers, moved);
        }
        self.buffers.advance(moved);
        Ok(moved as u64)
    }

    /// Writes the next bytes to a file, and goes on behind them.
    ///
    /// # Returns
    /// How many.
    ///
    /// # Errors
    /// The host fails.
    pub fn write(&mut self, file: RawFd, offset: u64, bytes: u64) -> io::Result<u64> {
        let (iovecs, count) = match &mut self.bounce {
            Some(bounce) => bounce.next(bytes, Some(&self.buffers)),
            None => self.buffers.next_of(bytes),
        };
        let moved = moved(|| {
            // SAFETY: the buffers are in memory that is kept, or are our own.
            unsafe { libc::pwritev(file, iovecs, count as c_int, offset as off_t) }
        })?;
        self.buffers.advance(moved);
        Ok(moved as u64)
    }
}

/// Asks the host until nothing interrupts it.
fn moved(mut ask: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(ask()) {
            Ok(moved) => return Ok(moved),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
