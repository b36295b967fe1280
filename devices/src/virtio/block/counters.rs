//! What a disk counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the disk to the guest.
    Read,
    /// From the guest to the disk.
    Write,
}

/// Counts for as long as an image is open, over all that the guest does with the device.
#[derive(Debug, Default)]
pub struct Counters {
    read: OneWay,
    write: OneWay,
    errors: AtomicU64,
}

/// Requests that went well.
#[derive(Debug, Default)]
struct OneWay {
    ops: AtomicU64,
    bytes: AtomicU64,
    /// Microseconds of all together.
    latency: AtomicU64,
    /// Microseconds and one, so that zero is that there was none.
    least: AtomicU64,
    /// Microseconds.
    most: AtomicU64,
}

impl Counters {
    /// A request has moved data.
    pub fn done(&self, way: Way, bytes: u64, took: Duration) {
        let one_way = match way {
            Way::Read => &self.read,
            Way::Write => &self.write,
        };
        one_way.done(bytes, took);
    }

    /// A request has failed.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// Everything, by names: those of Cloud Hypervisor, and `errors`. Latencies are microseconds from
    /// when a request is taken up until it is answered.
    pub fn values(&self) -> Vec<(&'static str, u64)> {
        let Self {
            read,
            write,
            errors,
        } = self;
        let [read_ops, read_bytes, read_min, read_max, read_avg] = read.values();
        let [write_ops, write_bytes, write_min, write_max, write_avg] = write.values();
        vec![
            ("read_bytes", read_bytes),
            ("read_ops", read_ops),
            ("read_latency_min", read_min),
            ("read_latency_max", read_max),
            ("read_latency_avg", read_avg),
            ("write_bytes", write_bytes),
            ("write_ops", write_ops),
            ("write_latency_min", write_min),
            ("write_latency_max", write_max),
            ("write_latency_avg", write_avg),
            ("errors", errors.load(Relaxed)),
        ]
    }
}

impl OneWay {
    fn done(&self, bytes: u64, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.ops.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.latency.fetch_add(micros, Relaxed);
        self.most.fetch_max(micros, Relaxed);
        let least = micros.saturating_add(1);
        // Whoever finds another value than it has seen has to look again.
        let mut seen = self.least.load(Relaxed);
        while seen == 0 || seen > least {
            match self.least.compare_exchange(seen, least, Relaxed, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
    }

    /// Operations, bytes, and latencies: the least, the most, and the average.
    fn values(&self) -> [u64; 5] {
        let ops = self.ops.load(Relaxed);
        let average = self.latency.load(Relaxed).checked_div(ops).unwrap_or(0);
        [
            ops,
            self.bytes.load(Relaxed),
            self.least.load(Relaxed).saturating_sub(1),
            self.most.load(Relaxed),
            average,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_those_of_their_way() {
        let counters = Counters::default();
        assert!(counters.values().iter().all(|(_, value)| *value == 0));
        for (bytes, micros) in [(512, 30), (4096, 10), (1024, 20)] {
            let took = Duration::from_micros(micros);
            counters.done(Way::Read, bytes, took);
        }
        counters.done(Way::Write, 512, Duration::ZERO);
        counters.done(Way::Write, 512, Duration::from_micros(7));
        counters.failed();
        let expected = [
            ("read_bytes", 5632),
            ("read_ops", 3),
            ("read_latency_min", 10),
            ("read_latency_max", 30),
            ("read_latency_avg", 20),
            ("write_bytes", 1024),
            ("write_ops", 2),
            ("write_latency_min", 0),
            ("write_latency_max", 7),
            ("write_latency_avg", 3),
            ("errors", 1),
        ];
        assert_eq!(counters.values(), expected);
    }
}
