//! Where the bytes go that a guest writes to a console.

use std::io::Write;
use std::sync::Mutex;

use crate::lock::lock;

/// A writer whose failures the guest never sees.
///
/// It has its own lock: a terminal that nobody reads blocks the vCPU that writes to it, but
/// neither the device's input nor saving its state.
pub struct Output {
    name: &'static str,
    sink: Mutex<Sink>,
}

struct Sink {
    writer: Box<dyn Write + Send>,
    lost: u64,
}

impl Output {
    /// Sends bytes to `writer`; log messages call it `name`.
    pub fn new(name: &'static str, writer: Box<dyn Write + Send>) -> Self {
        let sink = Mutex::new(Sink { writer, lost: 0 });
        Self { name, sink }
    }

    /// Writes and flushes `bytes`. If that fails they are lost, and counted.
    pub fn write(&self, bytes: &[u8]) {
        let mut sink = lock(&self.sink);
        let result = sink.writer.write_all(bytes);
        if let Err(error) = result.and_then(|()| sink.writer.flush()) {
            let before = sink.lost;
            sink.lost = before.saturating_add(bytes.len() as u64);
            // A guest can fail to be heard a million times a second: a message for each doubling.
            if before.checked_ilog2() != sink.lost.checked_ilog2() {
                log::warn!("{}: {} bytes of output lost: {error}", self.name, sink.lost);
            }
        }
    }

    /// Bytes that could not be written so far.
    pub fn lost(&self) -> u64 {
        lock(&self.sink).lost
    }
}
