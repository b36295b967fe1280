//! Which parts of a disk the host is reading or writing in place right now, so that a cluster is given to
//! another use only after whoever has looked up its old place is done with it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Parts that are told apart: more of them let fewer requests wait for nothing.
const STRIPES: usize = 256;
/// log2 of the bytes that are one part; parts this far apart, times the number of them, share a counter.
const STRIPE_BITS: u32 = 20;

/// Counts what is under way, part by part.
pub struct Flights {
    counts: Box<[AtomicU32]>,
    /// Those who wait for a part.
    waiting: AtomicU32,
    turn: Mutex<()>,
    landed: Condvar,
}

/// Something is under way until this is dropped.
pub struct Flight {
    flights: Arc<Flights>,
    stripes: Range<u64>,
}

impl Flights {
    pub fn new() -> Arc<Self> {
        let counts = (0..STRIPES).map(|_| AtomicU32::new(0));
        Arc::new(Self {
            counts: counts.collect(),
            waiting: AtomicU32::new(0),
            turn: Mutex::new(()),
            landed: Condvar::new(),
        })
    }

    /// Something of these bytes begins. To be called while nobody can change where they are.
    pub fn begin(self: &Arc<Self>, offset: u64, length: u64) -> Flight {
        let flight = Flight {
            flights: Arc::clone(self),
            stripes: stripes(offset, length),
        };
        for count in flight.counts() {
            count.fetch_add(1, Ordering::SeqCst);
        }
        flight
    }

    /// Waits until nothing of these bytes is under way. To be called while nothing can begin.
    pub fn wait(&self, offset: u64, length: u64) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for count in self.counts(stripes(offset, length)) {
            while count.load(Ordering::SeqCst) > 0 {
                let waited = self.landed.wait(turn);
                turn = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(turn);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn counts(&self, stripes: Range<u64>) -> impl Iterator<Item = &AtomicU32> {
        stripes.filter_map(|stripe| self.counts.get(stripe as usize % STRIPES))
    }
}

impl Flight {
    fn counts(&self) -> impl Iterator<Item = &AtomicU32> {
        self.flights.counts(self.stripes.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut landed = false;
        for count in self.counts() {
            landed |= count.fetch_sub(1, Ordering::SeqCst) == 1;
        }
        // Who waits has said so before it looked at the counter.
        if landed && self.flights.waiting.load(Ordering::SeqCst) > 0 {
            let turn = self.flights.turn.lock();
            drop(turn.unwrap_or_else(PoisonError::into_inner));
            self.flights.landed.notify_all();
        }
    }
}

/// Parts of a range, each at most once.
fn stripes(offset: u64, length: u64) -> Range<u64> {
    let first = offset >> STRIPE_BITS;
    let last = offset.saturating_add(length.saturating_sub(1)) >> STRIPE_BITS;
    let end = last.saturating_add(1);
    first..end.min(first.saturating_add(STRIPES as u64))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_for_a_part_waits_for_all_that_is_under_way_there() {
        let flights = Flights::new();
        let first = flights.begin(5 << 20, 4096);
        let second = flights.begin(0, 6 << 20);
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                // Another part is free.
                flights.wait(7 << 20, 1 << 20);
                tell.send(1).unwrap();
                flights.wait(5 << 20, 512);
                tell.send(2).unwrap();
            });
            assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(1));
            drop(first);
            let early = told.recv_timeout(Duration::from_millis(50));
            assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
            drop(second);
            assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(2));
        });
        let rest = flights.counts.iter();
        assert!(
            rest.map(|count| count.load(Ordering::SeqCst))
                .all(|count| count == 0)
        );
    }

    #[test]
    fn a_range_that_is_longer_than_all_parts_counts_each_once() {
        let flights = Flights::new();
        let flight = flights.begin(3 << 20, 1 << 40);
        let counts = flights
            .counts
            .iter()
            .map(|count| count.load(Ordering::SeqCst));
        assert!(counts.eq([1; STRIPES]));
        drop(flight);
        flights.wait(0, u64::MAX);
    }
}
