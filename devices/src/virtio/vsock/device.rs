//! What the device offers: its context, and three queues.

use std::sync::Arc;

use super::backend::VsockHost;
use super::switch::{PATIENCE, Patience, Switch};
use super::worker::VsockHandler;
use crate::virtio::{Device, DeviceConfig, NotStarted, OneWorker, Running, Start, Worker};

/// Entries of the queues: packets to the guest, packets of the guest, events.
const QUEUES: [u16; 3] = [256, 256, 64];

/// Sockets between guest and host.
pub struct Vsock {
    cid: u32,
    host: Arc<VsockHost>,
    patience: Patience,
}

impl Vsock {
    /// Connects the guest, whose context is `cid`, to the host. Contexts up to 2 are not for guests.
    pub fn new(cid: u32, host: Arc<VsockHost>) -> Self {
        Self {
            cid,
            host,
            patience: PATIENCE,
        }
    }

    /// The same, for tests: with other times.
    #[cfg(test)]
    pub(super) fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }
}

impl Device for Vsock {
    fn features(&self) -> u64 {
        // Without any, connections of bytes are all that there is (section 5.10.3).
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        Arc::new(VsockConfig {
            cid: u64::from(self.cid).to_le_bytes(),
        })
    }

    fn start(self: Box<Self>, start: Start) -> Result<Box<dyn Running>, NotStarted> {
        let Start {
            features: _,
            queues,
            config_changes: _,
            faults,
        } = start;
        let host = Arc::clone(&self.host);
        let started = Switch::new(host, self.cid.into(), self.patience);
        let started = started.and_then(|switch| {
            let handler = VsockHandler::new(switch, queues);
            Worker::start("virtio-vsock", handler, faults).map_err(|(_, error)| error)
        });
        match started {
            Ok(worker) => Ok(Box::new(OneWorker {
                device: self,
                worker,
            })),
            Err(reason) => {
                let device = self;
                Err(NotStarted { device, reason })
            }
        }
    }
}

/// The registers (section 5.10.4).
struct VsockConfig {
    cid: [u8; 8],
}

impl DeviceConfig for VsockConfig {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, byte) in data.iter_mut().enumerate() {
            let at = offset.checked_add(at);
            let found = at.and_then(|at| self.cid.get(at));
            *byte = found.copied().unwrap_or(0);
        }
    }
}
