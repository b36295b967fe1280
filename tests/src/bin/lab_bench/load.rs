//! Loads, and what carrying one out has taken.

use std::fmt;

use anyhow::{Result, bail};

use crate::guest::Guest;
use crate::image::{CLUSTER, MIB, SIZE};

/// What a guest is to do ([`tests::load`]).
pub struct Load {
    access: &'static str,
    pattern: &'static str,
    bytes: usize,
    /// Requests of each queue at once.
    depth: usize,
    /// Requests of each queue, of the shortest run. A connection takes some time until it is fast.
    pub first: usize,
    /// Requests of all queues, where a run ends when there is nothing left to do.
    pub all: Option<usize>,
}

/// Every load of a disk.
pub const DISK_LOADS: [Load; 4] = [
    Load::new("read", "random", 4 << 10, 16),
    Load::new("write", "random", 4 << 10, 16),
    Load::new("read", "sequential", 1 << 20, 4),
    Load::new("write", "sequential", 1 << 20, 4),
];

/// What a format with tables is asked beside these: to write where nothing is.
pub const FORMAT_LOADS: [Load; 6] = {
    let [first, second, third, fourth] = DISK_LOADS;
    let random = Load::new("fill", "random", 4 << 10, 16).at_most(SIZE / CLUSTER as usize);
    let sequential = Load::new("fill", "sequential", MIB, 4).at_most(SIZE / MIB);
    [first, second, third, fourth, random, sequential]
};

/// What is no requests of a driver.
const STREAM: &str = "stream";

/// Every load of a network interface: a TCP connection for each pair of queues.
pub const NET_LOADS: [Load; 2] = [Load::stream("send"), Load::stream("receive")];

impl Load {
    const fn new(access: &'static str, pattern: &'static str, bytes: usize, depth: usize) -> Self {
        Self {
            access,
            pattern,
            bytes,
            depth,
            first: 4 * depth,
            all: None,
        }
    }

    const fn at_most(self, requests: usize) -> Self {
        Self {
            all: Some(requests),
            ..self
        }
    }

    const fn stream(access: &'static str) -> Self {
        Self {
            first: 64,
            ..Self::new(access, STREAM, 64 << 10, 1)
        }
    }

    /// Lets a guest carry it out, from a thread for each queue.
    pub fn run(&self, guest: &mut Guest, jobs: usize, requests: u64) -> Result<Measured> {
        let Self {
            access,
            pattern,
            bytes,
            depth,
            first: _,
            all: _,
        } = self;
        let order = format!("{access} {pattern} {bytes} {depth} {jobs} {requests}");
        let (numbers, used) = guest.carry_out(&order)?;
        let numbers = numbers.split_whitespace().map(str::parse);
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>()?;
        let [nanoseconds, driver, interrupts] = numbers[..] else {
            bail!("a guest has said {numbers:?}");
        };
        // Large requests are several of the driver's. How many packets a stream is depends on the VMM.
        let count = if *pattern == STREAM { requests } else { driver };
        let each = |of: u64| of as f64 / count as f64;
        let seconds = nanoseconds as f64 / 1e9;
        Ok(Measured {
            seconds,
            rate: requests as f64 * *bytes as f64 / f64::from(1 << 20) / seconds,
            // A host of its own has no emulator: its guest's clock is as good.
            work: each(used.emulator.unwrap_or(nanoseconds)) / 1e3,
            cpu: each(used.nanoseconds) / 1e3,
            device_cpu: each(used.device_nanoseconds) / 1e3,
            exits: each(used.exits),
            mmio: each(used.mmio),
            interrupts: each(interrupts),
            waits: each(used.waits),
            driver: each(driver),
        })
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            access,
            pattern,
            bytes,
            depth: _,
            first: _,
            all: _,
        } = self;
        let size = match bytes >> 20 {
            0 => format!("{} KiB", bytes >> 10),
            count => format!("{count} MiB"),
        };
        f.pad(&format!("{size} {pattern} {access}"))
    }
}

/// What a run has taken. All but the first two are for each request of the guest's driver, of a stream for each of
/// its pieces.
pub struct Measured {
    /// How long it took by the guest's clock.
    pub seconds: f64,
    /// MiB in a second.
    pub rate: f64,
    /// What the whole emulated host took of a real CPU, in microseconds. Whoever else wants that CPU makes this
    /// no longer.
    pub work: f64,
    /// CPU time of the VMM's process by the host's clock, the guest's included, in microseconds.
    pub cpu: f64,
    /// What of it threads took that are no vCPUs'.
    pub device_cpu: f64,
    /// How often a vCPU left the guest.
    pub exits: f64,
    /// How often it did so for an access to a device that KVM gave to the VMM.
    pub mmio: f64,
    /// Interrupts of the device's queues.
    pub interrupts: f64,
    /// How often threads that are no vCPUs' have waited.
    pub waits: f64,
    /// Requests that the driver has seen, or packets.
    pub driver: f64,
}
