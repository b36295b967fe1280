//! The x86 debug console: one I/O port whose bytes go to a writer.

use std::io::Write;

use crate::bus::BusDevice;
use crate::output::Output;

/// What the port reads as, wherever it is: the number of its usual port, by which guests find out
/// that it is there.
const SIGNATURE: u8 = 0xe9;

/// The debug console.
pub struct DebugConsole {
    output: Output,
}

impl DebugConsole {
    /// A debug console that writes to `output`.
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self {
            output: Output::new("debug console", output),
        }
    }
}

impl BusDevice for DebugConsole {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(SIGNATURE);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.output.write(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, never_panics};

    #[test]
    fn writes_come_out_and_reads_identify_the_port() {
        let output = Recorder::default();
        let console = DebugConsole::new(Box::new(output.clone()));
        console.write(0, b"O");
        console.write(0, b"K\n");
        assert_eq!(output.bytes(), b"OK\n");
        let mut data = [0; 1];
        console.read(0, &mut data);
        assert_eq!(data, [0xe9]);
    }

    #[test]
    fn lost_output_is_counted_and_not_felt() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let console = DebugConsole::new(Box::new(Full));
        console.write(0, b"abc");
        console.write(0, b"d");
        assert_eq!(console.output.lost(), 4);
    }

    #[test]
    fn no_access_panics() {
        never_panics(|| DebugConsole::new(Box::new(std::io::sink())));
    }
}
