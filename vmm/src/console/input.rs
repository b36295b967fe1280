//! The input side of a console: from a descriptor to a device, at the device's pace.

use std::fs::File;
use std::io::{self, ErrorKind, Read};

use super::InputSink;

/// Most bytes taken from the host at once.
const CHUNK: usize = 4096;

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Some input, or none for now.
    Input,
    /// The end: there will be no more.
    End,
}

/// Carries input to a sink, and keeps what the sink has no room for yet.
///
/// At most [`CHUNK`] bytes are kept; while there are any, nothing more is read, so that it is the
/// host's writer who waits for a slow guest.
#[derive(Default)]
pub(super) struct Pump {
    pending: Vec<u8>,
    delivered: usize,
}

impl Pump {
    /// Whether everything that was read has been delivered.
    pub(super) fn is_idle(&self) -> bool {
        self.delivered == self.pending.len()
    }

    /// Offers the sink what it has not taken yet.
    pub(super) fn deliver(&mut self, sink: &dyn InputSink) {
        let rest = self.pending.get(self.delivered..).unwrap_or_default();
        if !rest.is_empty() {
            self.delivered += sink.accept(rest).min(rest.len());
        }
    }

    /// Reads once and offers the sink what came. To be called only when idle.
    pub(super) fn receive(&mut self, mut file: &File, sink: &dyn InputSink) -> Received {
        self.pending.resize(CHUNK, 0);
        let result = file.read(&mut self.pending);
        self.pending
            .truncate(result.as_ref().map_or(0, |&read| read));
        self.delivered = 0;
        self.deliver(sink);
        match result {
            Ok(0) => Received::End,
            Ok(_) => Received::Input,
            Err(e) if is_transient(&e) => Received::Input,
            Err(_) => Received::End,
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
