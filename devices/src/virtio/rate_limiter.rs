//! Limits of how much devices move: token buckets, which several queues and devices can share.
//!
//! A [`Limits`] has a bucket of bytes, one of operations, or both; each queue's thread has a
//! [`RateLimiter`] of it. An operation takes one token of the one and its bytes of the other, from both
//! at once.
//!
//! - A bucket is full at first, and holds its burst beyond that, which does not come back. It fills
//!   evenly, up to its size, and parts of tokens are kept.
//! - An operation is carried out when there are as many tokens as it takes. One that takes more than the
//!   bucket holds is carried out when the bucket is full, and leaves a debt that is filled up before
//!   anything else of the kind is carried out.
//! - What has to wait is carried out in the order in which it was asked for, whoever asked. A queue waits
//!   with one operation at a time, so each waits for at most one of every other, however many these
//!   have: nobody starves.
//! - Tokens are set aside for what waits as soon as they are due, even if its thread has not come for
//!   them. So a thread that is held up holds nobody else up, and a limit is exceeded by no more than the
//!   one operation that it comes late with.

mod buckets;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

pub use buckets::Bucket;
use buckets::Buckets;

/// Limits, shared by all that they hold for.
#[derive(Debug)]
pub struct Limits {
    /// Times are nanoseconds since then.
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// After the last operation whose time has come.
    settled: Buckets,
    /// After all that wait, too.
    planned: Buckets,
    /// What waits, in its order.
    waiting: VecDeque<Waiting>,
}

/// An operation whose time has not come.
#[derive(Debug)]
struct Waiting {
    bytes: u64,
    /// It is not carried out earlier, whatever the buckets hold.
    since: u64,
    /// When it is.
    due: u64,
    timer: Arc<Timer>,
}

/// The timer of a limiter. Those who move its operation forward set it too.
#[derive(Debug)]
struct Timer {
    event: RawFd,
    timer: Mutex<TimerFd>,
}

/// What a queue's thread asks before it takes an operation up.
#[derive(Debug)]
pub struct RateLimiter {
    limits: Arc<Limits>,
    timer: Arc<Timer>,
    /// Bytes of the operation that was told to wait.
    reserved: Option<u64>,
}

impl Limits {
    /// Limits of bytes and of operations, whose buckets are full. A bucket of size 0, or that fills in no
    /// time, is no limit.
    pub fn new(bandwidth: Option<Bucket>, ops: Option<Bucket>) -> Self {
        Self::since(Instant::now(), bandwidth, ops)
    }

    fn since(origin: Instant, bandwidth: Option<Bucket>, ops: Option<Bucket>) -> Self {
        let buckets = Buckets::new(bandwidth, ops);
        let state = Mutex::new(State {
            settled: buckets,
            planned: buckets,
            waiting: VecDeque::new(),
        });
        Self { origin, state }
    }

    /// Whether nobody ever has to wait, so that nobody needs to ask.
    pub fn is_unlimited(&self) -> bool {
        self.lock().settled.is_unlimited()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl State {
    /// Carries out what is due.
    fn settle(&mut self, now: u64) {
        while let Some(first) = self.waiting.front()
            && first.due <= now
        {
            // What was planned, since all before it went as planned.
            self.settled.grant(first.bytes, first.since);
            self.waiting.pop_front();
        }
    }

    fn position(&self, timer: &Arc<Timer>) -> Option<usize> {
        let mut waiting = self.waiting.iter();
        waiting.position(|waiting| Arc::ptr_eq(&waiting.timer, timer))
    }

    /// Takes out what waits at a position; those behind it move forward.
    fn remove(&mut self, position: usize, now: u64) {
        self.waiting.remove(position);
        self.planned = self.settled;
        for waiting in &mut self.waiting {
            waiting.since = now;
            let due = self.planned.grant(waiting.bytes, now);
            if due != waiting.due {
                waiting.due = due;
                // If that fails it comes at the time it was told before.
                let _ = waiting.timer.set(now, due);
            }
        }
        // What has moved forward may be due at once.
        self.settle(now);
    }

    /// Takes tokens for an operation, or lets it wait.
    ///
    /// # Returns
    /// When its time comes; nothing if that is now.
    fn ask(&mut self, bytes: u64, now: u64, timer: &Arc<Timer>) -> Option<u64> {
        let due = self.planned.grant(bytes, now);
        if due <= now {
            // Then nobody waits: all before it would be due, too.
            self.settled = self.planned;
            return None;
        }
        self.waiting.push_back(Waiting {
            bytes,
            since: now,
            due,
            timer: Arc::clone(timer),
        });
        Some(due)
    }
}

impl Timer {
    fn new() -> io::Result<Self> {
        let timer = TimerFd::new()?;
        Ok(Self {
            event: timer.as_raw_fd(),
            timer: Mutex::new(timer),
        })
    }

    fn lock(&self) -> MutexGuard<'_, TimerFd> {
        self.timer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, now: u64, due: u64) -> io::Result<()> {
        // None at all would turn it off.
        let left = Duration::from_nanos(due.saturating_sub(now).max(1));
        Ok(self.lock().reset(left, None)?)
    }

    /// Turns it off; it is not readable then.
    fn clear(&self) {
        // Of a timer that is there no call of this kind fails.
        let _ = self.lock().clear();
    }
}

impl RateLimiter {
    /// A limiter for one thread.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(limits: Arc<Limits>) -> io::Result<Self> {
        let timer = Arc::new(Timer::new()?);
        Ok(Self {
            limits,
            timer,
            reserved: None,
        })
    }

    /// A limiter for one thread, if there is anything to ask for: nothing without limits.
    ///
    /// # Errors
    /// As for [`RateLimiter::new`].
    pub fn of(limits: Option<&Arc<Limits>>) -> io::Result<Option<Self>> {
        let limits = limits.filter(|limits| !limits.is_unlimited());
        limits.cloned().map(Self::new).transpose()
    }

    /// Asks for an operation that moves so many bytes, 0 if it moves none.
    ///
    /// # Returns
    /// Whether it is carried out now; its tokens are taken then. If not, it has its place among those that
    /// wait, and [`RateLimiter::event`] becomes readable when its time has come: the same is asked for
    /// again then. Asking earlier, and as often as one likes, changes nothing. Whoever asks for another
    /// number of bytes instead loses the place, and whoever does not want to wait any more has to say so:
    /// [`RateLimiter::clear`].
    pub fn take(&mut self, bytes: u64) -> bool {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&mut self, bytes: u64, now: Instant) -> bool {
        let now = self.limits.nanoseconds(now);
        let mut state = self.limits.lock();
        state.settle(now);
        let due = match self.reserved {
            None => state.ask(bytes, now, &self.timer),
            Some(reserved) => match state.position(&self.timer) {
                Some(position) if reserved != bytes => {
                    state.remove(position, now);
                    state.ask(bytes, now, &self.timer)
                }
                None if reserved != bytes => state.ask(bytes, now, &self.timer),
                position => {
                    let waiting = position.and_then(|position| state.waiting.get(position));
                    waiting.map(|waiting| waiting.due)
                }
            },
        };
        match due {
            // A limit is not worth a device that stands still: without a timer nothing waits.
            Some(due) if self.timer.set(now, due).is_ok() => {
                self.reserved = Some(bytes);
                false
            }
            _ => {
                if self.reserved.take().is_some() {
                    self.timer.clear();
                }
                true
            }
        }
    }

    /// Readable when it is worth asking again for what has to wait, until it is asked for.
    pub fn event(&self) -> RawFd {
        self.timer.event
    }

    /// Gives up what waits; those behind it move forward. Does nothing, and costs nothing, if nothing does.
    pub fn clear(&mut self) {
        self.clear_at(Instant::now);
    }

    fn clear_at(&mut self, now: impl FnOnce() -> Instant) {
        if self.reserved.take().is_none() {
            return;
        }
        let now = self.limits.nanoseconds(now());
        let mut state = self.limits.lock();
        state.settle(now);
        if let Some(position) = state.position(&self.timer) {
            state.remove(position, now);
        }
        self.timer.clear();
    }
}

impl Drop for RateLimiter {
    fn drop(&mut self) {
        self.clear();
    }
}
