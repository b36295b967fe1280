//! Buckets of tokens, at times that they are told.

use std::time::Duration;

/// A bucket of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens that it holds: bytes or operations. 0 is no limit.
    pub size: u64,
    /// Tokens that there are beyond that at first. They are used before the others, and do not come back.
    pub one_time_burst: u64,
    /// In how long it fills when it is empty. 0 is no limit.
    pub refill: Duration,
}

/// Buckets of bytes and of operations at a time, which may be in the future. Times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    at: u64,
    bandwidth: Option<Level>,
    ops: Option<Level>,
}

/// What is in a bucket.
///
/// Amounts are in parts: a token is `period` of them, and each tick brings `size`. So nothing is ever
/// divided, and nothing is lost.
#[derive(Clone, Copy, Debug)]
struct Level {
    size: u64,
    /// Ticks in which it fills.
    period: u64,
    /// A tick is 2 to the power of this, in nanoseconds.
    shift: u32,
    /// Below 0 it is a debt; beyond what the bucket holds, what is left of the burst.
    parts: i128,
    /// The tick of which this is the level.
    at: u64,
}

/// Bits of a period: a token has so many that what buckets hold, with bursts and debts of 2^64 tokens
/// each, has room in 127 bits. Periods beyond 36 years are counted in longer ticks.
const PERIOD_BITS: u32 = 60;

impl Buckets {
    /// Full buckets at time 0.
    pub fn new(bandwidth: Option<Bucket>, ops: Option<Bucket>) -> Self {
        Self {
            at: 0,
            bandwidth: bandwidth.and_then(Level::new),
            ops: ops.and_then(Level::new),
        }
    }

    pub fn is_unlimited(&self) -> bool {
        self.bandwidth.is_none() && self.ops.is_none()
    }

    /// Takes the tokens of an operation at the first time that there are enough, which is neither before
    /// `not_before` nor before the last operation.
    ///
    /// # Returns
    /// That time. What is in the buckets is that of then.
    pub fn grant(&mut self, bytes: u64, not_before: u64) -> u64 {
        let Self {
            at: last,
            bandwidth,
            ops,
        } = self;
        // What moves nothing does not wait for bytes.
        let mut bandwidth = bandwidth.as_mut().filter(|_| bytes > 0);
        let ready = [
            bandwidth.as_ref().map_or(0, |level| level.ready(bytes)),
            ops.as_ref().map_or(0, |level| level.ready(1)),
        ];
        let at = ready.into_iter().fold(not_before.max(*last), u64::max);
        if let Some(level) = &mut bandwidth {
            level.take(bytes, at);
        }
        if let Some(level) = ops {
            level.take(1, at);
        }
        *last = at;
        at
    }
}

impl Level {
    fn new(bucket: Bucket) -> Option<Self> {
        let Bucket {
            size,
            one_time_burst,
            refill,
        } = bucket;
        let nanoseconds = refill.as_nanos();
        let shift = (u128::BITS - nanoseconds.leading_zeros()).saturating_sub(PERIOD_BITS);
        let period = u64::try_from(nanoseconds >> shift).ok()?;
        if size == 0 || period == 0 {
            return None;
        }
        let tokens = i128::from(size) + i128::from(one_time_burst);
        Some(Self {
            size,
            period,
            shift,
            parts: tokens * i128::from(period),
            at: 0,
        })
    }

    fn parts_of(&self, tokens: u64) -> i128 {
        i128::from(tokens) * i128::from(self.period)
    }

    /// The first time at which there are so many tokens, or at which the bucket is full.
    fn ready(&self, tokens: u64) -> u64 {
        let wanted = self.parts_of(tokens.min(self.size));
        let missing = wanted.saturating_sub(self.parts);
        let ticks = match u128::try_from(missing) {
            Ok(missing) => missing.div_ceil(self.size.into()),
            Err(_) => 0,
        };
        let tick = u128::from(self.at).saturating_add(ticks);
        let time = tick.saturating_mul(1 << self.shift);
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// Fills it up to a time, and takes tokens out.
    fn take(&mut self, tokens: u64, time: u64) {
        let tick = time >> self.shift;
        let full = self.parts_of(self.size);
        if self.parts < full {
            let filled = i128::from(tick.saturating_sub(self.at)).saturating_mul(self.size.into());
            self.parts = self.parts.saturating_add(filled).min(full);
        }
        self.at = self.at.max(tick);
        self.parts = self.parts.saturating_sub(self.parts_of(tokens));
    }
}
