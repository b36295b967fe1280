//! What the device offers: one queue, and nothing else.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::worker::RngHandler;
use crate::virtio::{
    Device, DeviceConfig, NoConfig, NotStarted, OneWorker, Running, Start, Worker,
};

/// Requests that wait.
const QUEUE: [u16; 1] = [256];

/// A source of randomness that a file of the host feeds.
pub struct Rng {
    source: File,
}

impl Rng {
    /// Gives guests what `source` gives, whose reads must not block (`O_NONBLOCK`).
    pub fn new(source: File) -> Self {
        Self { source }
    }
}

impl Device for Rng {
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        Arc::new(NoConfig)
    }

    fn start(self: Box<Self>, start: Start) -> Result<Box<dyn Running>, NotStarted> {
        let Start {
            features: _,
            queues,
            faults,
            config_changes: _,
        } = start;
        // The thread reads a copy of the descriptor, so that this one can be given back whatever
        // becomes of it.
        let source = match self.source.as_fd().try_clone_to_owned() {
            Ok(source) => File::from(source),
            Err(reason) => {
                let device = self;
                return Err(NotStarted { device, reason });
            }
        };
        let handler = match RngHandler::new(source, queues) {
            Ok(handler) => handler,
            Err(reason) => {
                let device = self;
                return Err(NotStarted { device, reason });
            }
        };
        match Worker::start("virtio-rng", handler, faults) {
            Ok(worker) => Ok(Box::new(OneWorker {
                device: self,
                worker,
            })),
            Err((_, reason)) => {
                let device = self;
                Err(NotStarted { device, reason })
            }
        }
    }
}
