//! A device whose faults are written down.

use std::sync::{Arc, Mutex};

use crate::virtio::{Device, DeviceConfig, Fault, FaultSink, NotStarted, Running, Start};

/// Faults that no driver may cause.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

pub struct Watched {
    pub device: Box<dyn Device>,
    pub faults: Faults,
}

impl Device for Watched {
    fn features(&self) -> u64 {
        self.device.features()
    }

    fn accepts(&self, features: u64) -> bool {
        self.device.accepts(features)
    }

    fn queue_sizes(&self) -> &[u16] {
        self.device.queue_sizes()
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        self.device.config()
    }

    fn start(self: Box<Self>, mut start: Start) -> Result<Box<dyn Running>, NotStarted> {
        let Self { device, faults } = *self;
        start.faults = Arc::new(Sink {
            next: start.faults,
            faults: faults.clone(),
        });
        match device.start(start) {
            Ok(running) => Ok(Box::new(WatchedRunning { running, faults })),
            Err(NotStarted { device, reason }) => Err(NotStarted {
                device: Box::new(Self { device, faults }),
                reason,
            }),
        }
    }
}

struct WatchedRunning {
    running: Box<dyn Running>,
    faults: Faults,
}

impl Running for WatchedRunning {
    fn pause(&mut self) {
        self.running.pause();
    }

    fn resume(&mut self) {
        self.running.resume();
    }

    fn stop(self: Box<Self>) -> Box<dyn Device> {
        let Self { running, faults } = *self;
        let device = running.stop();
        Box::new(Watched { device, faults })
    }
}

struct Sink {
    next: Arc<dyn FaultSink>,
    faults: Faults,
}

impl FaultSink for Sink {
    fn fault(&self, fault: &Fault) {
        match fault {
            Fault::Queue { .. } => {}
            Fault::Host(_) | Fault::Panicked => {
                self.faults.0.lock().unwrap().push(format!("{fault:?}"));
            }
        }
        self.next.fault(fault);
    }
}
