//! Virtio devices (Virtual I/O Device Specification 1.2), modern and behind PCI.
//!
//! | | |
//! |---|---|
//! | [`Device`] | a device that no driver has started: what it offers |
//! | [`Running`] | one that a driver has: threads that serve its queues |
//! | `transport` | what all have in common: registers, features, queues, interrupts, as a PCI function |
//! | `worker` | a thread that serves queues and waits for descriptors of the host |
//! | `queue` | a queue, from the device's side |
//! | `chain` | the descriptors of a request |
//! | `rate_limiter` | how much devices may move |
//! | `buffers` | parts of guest memory, as the host is given them |
//! | `complaints` | lines of the log, of which a guest cannot make a flood |
//! | `memory` | guest memory as devices reach it: RAM, and memory of passed-through devices |
//!
//! Each device has a folder: `device.rs` is what it offers, `worker.rs` what it does, `backend.rs` the
//! host's side where that is more than a file.

pub mod block;
mod buffers;
mod chain;
mod complaints;
pub mod console;
mod memory;
pub mod net;
mod queue;
pub mod rate_limiter;
pub mod rng;
mod transport;
pub mod vsock;
mod worker;

#[cfg(all(test, not(feature = "testing")))]
mod testing;
#[cfg(feature = "testing")]
pub mod testing;

use std::io;
use std::sync::Arc;

use thiserror::Error;

pub use chain::Chain;
pub use memory::{GuestMemory, Memory};
pub use queue::{MOST_DESCRIPTORS, QueueInterrupt, VirtQueue};
pub use transport::{BAR_SIZE, ConfigChanges, VirtioError, VirtioFunction, VirtioParts, vectors};
pub use worker::{Handler, OneWorker, Token, Worker};

/// Feature bits that every device offers (section 6).
pub mod features {
    /// Descriptors may be in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say from which entry on they want to be notified.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// It complies with version 1 of the specification. No driver can do without.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Why a device does not work any more until its driver resets it.
#[derive(Debug, Error)]
pub enum Fault {
    /// The driver has broken the rules of queues.
    #[error("its driver broke the rules of queue {index}")]
    Queue {
        /// The queue.
        index: u16,
        /// How.
        #[source]
        source: virtio_queue::Error,
    },
    /// The host fails.
    #[error("the host cannot go on")]
    Host(#[from] io::Error),
    /// The device itself is wrong.
    #[error("its thread panicked")]
    Panicked,
}

/// What a device's own registers say. Accesses come from the guest: any offset, any width.
pub trait DeviceConfig: Send + Sync {
    /// Reads; what is behind the end is zero.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes, where there is something to write.
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// Registers of a device that has none.
pub struct NoConfig;

impl DeviceConfig for NoConfig {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
}

/// A device that no driver has started.
pub trait Device: Send {
    /// Features that it offers of its own: bits 0 to 23 and 50 to 127 (section 2.2).
    fn features(&self) -> u64;

    /// Whether it can work with features that it offers and a driver has chosen among: some need others.
    fn accepts(&self, _features: u64) -> bool {
        true
    }

    /// The most entries of each of its queues: powers of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Its own registers.
    fn config(&self) -> Arc<dyn DeviceConfig>;

    /// Serves queues from now on.
    ///
    /// # Errors
    /// The host has no room for it. The device is given back.
    fn start(self: Box<Self>, start: Start) -> Result<Box<dyn Running>, NotStarted>;
}

/// What a driver has decided on.
pub struct Start {
    /// Features that both sides know.
    pub features: u64,
    /// The queues that it uses, by their numbers.
    pub queues: Vec<VirtQueue>,
    /// Where to say that the device cannot go on.
    pub faults: Arc<dyn FaultSink>,
    /// How to change its own registers, for as long as it runs.
    pub config_changes: ConfigChanges,
}

/// A device that could not be started.
pub struct NotStarted {
    /// The device, as before.
    pub device: Box<dyn Device>,
    /// Why.
    pub reason: io::Error,
}

/// A device that a driver has started.
pub trait Running: Send {
    /// Lets its threads stand still. What was asked for before is done.
    fn pause(&mut self);

    /// Lets them go on.
    fn resume(&mut self);

    /// Stops: when this returns, nothing touches the queues or guest memory any more.
    fn stop(self: Box<Self>) -> Box<dyn Device>;
}

/// Where a device says that it cannot go on until it is reset.
pub trait FaultSink: Send + Sync {
    /// Says so; from any thread.
    fn fault(&self, fault: &Fault);
}
