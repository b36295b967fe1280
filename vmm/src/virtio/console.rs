//! The console: its line to what the host has of it.

use std::io;
use std::sync::{Arc, Weak};

use devices::virtio::console::{Line, LineOutput, LineParts, Size};

use crate::console::{InputSink, Port};

/// Connects a line for all boots to a port whose backend was opened for a queue.
///
/// # Errors
/// There are no descriptors left.
pub fn connect(port: &Port) -> io::Result<Arc<Line>> {
    let room = port.clone();
    let line = Arc::new(Line::new(LineParts {
        output: Box::new(Output(port.clone())),
        on_room: Box::new(move || room.room_again()),
        size: port.size(),
    })?);
    // The line has the port, so the port must not keep the line.
    port.attach(Arc::new(Input(Arc::downgrade(&line))));
    Ok(line)
}

struct Output(Port);

impl LineOutput for Output {
    fn take(&self, bytes: &[u8]) -> usize {
        self.0.offer(bytes)
    }
}

struct Input(Weak<Line>);

impl InputSink for Input {
    fn accept(&self, bytes: &[u8]) -> usize {
        let line = self.0.upgrade();
        line.map_or(0, |line| line.accept(bytes))
    }

    fn output_has_room(&self) {
        if let Some(line) = self.0.upgrade() {
            line.output_has_room();
        }
    }

    fn resized(&self, size: Size) {
        if let Some(line) = self.0.upgrade() {
            line.resize(size);
        }
    }
}
