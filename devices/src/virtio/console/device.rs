//! What the device offers: two queues, and the size of the terminal where there is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::backend::{Line, Size};
use super::worker::{ConsoleHandler, Screen};
use crate::virtio::{Device, DeviceConfig, NotStarted, OneWorker, Running, Start, Worker};

/// Buffers for input and for output (section 5.3.2: receiveq and transmitq of port 0).
const QUEUES: [u16; 2] = [256; 2];

/// The size of the terminal is known (`VIRTIO_CONSOLE_F_SIZE`).
pub(super) const F_SIZE: u64 = 1 << 0;

/// A console.
pub struct Console {
    line: Arc<Line>,
    shown: Arc<Shown>,
}

/// What size the driver is told (section 5.3.4).
pub(super) struct Shown(AtomicU32);

impl Shown {
    pub fn get(&self) -> Size {
        Size::from_bits(self.0.load(Ordering::SeqCst))
    }

    pub fn set(&self, size: Size) {
        self.0.store(size.to_bits(), Ordering::SeqCst);
    }
}

impl DeviceConfig for Shown {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Size { columns, rows } = self.get();
        let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
        // One port, and no emergency writes: neither was offered.
        let registers = [a, b, c, d, 1, 0, 0, 0, 0, 0, 0, 0];
        data.fill(0);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = registers.get(offset..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }
}

impl Console {
    /// A console at the end of `line`, which no other device is at.
    pub fn new(line: Arc<Line>) -> Self {
        let size = line.size().unwrap_or_default();
        Self {
            line,
            shown: Arc::new(Shown(AtomicU32::new(size.to_bits()))),
        }
    }
}

impl Device for Console {
    fn features(&self) -> u64 {
        match self.line.size() {
            Some(_) => F_SIZE,
            None => 0,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        Arc::clone(&self.shown) as _
    }

    fn start(self: Box<Self>, start: Start) -> Result<Box<dyn Running>, NotStarted> {
        let Start {
            features,
            queues,
            faults,
            config_changes,
        } = start;
        let screen =
            (features & F_SIZE != 0).then(|| Screen::new(Arc::clone(&self.shown), config_changes));
        let handler = ConsoleHandler::new(Arc::clone(&self.line), queues, screen);
        match Worker::start("virtio-console", handler, faults) {
            Ok(worker) => {
                // What came before it was there waits.
                self.line.wake();
                Ok(Box::new(OneWorker {
                    device: self,
                    worker,
                }))
            }
            Err((_, reason)) => {
                let device = self;
                Err(NotStarted { device, reason })
            }
        }
    }
}
