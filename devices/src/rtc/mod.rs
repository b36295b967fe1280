//! Real-time clocks: the PC's CMOS clock and ARM's PL031.
//!
//! A clock shows the host's time (`CLOCK_REALTIME`) plus an offset, which changes when the guest
//! sets it. There are no alarm interrupts: the clocks are described to the guest without one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod calendar;
pub mod cmos;
pub mod pl031;

pub use cmos::{Cmos, CmosState};
pub use pl031::{Pl031, Pl031State};

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixTime {
    /// Whole seconds since 1970-01-01 00:00:00 UTC, rounded down; negative before.
    pub seconds: i64,
    /// Nanoseconds since then, below 1 000 000 000.
    pub nanoseconds: u32,
}

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// The present time.
    fn now(&self) -> UnixTime;
}

/// The host's clock, `CLOCK_REALTIME`.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> UnixTime {
        since_epoch(SystemTime::now())
    }
}

fn since_epoch(time: SystemTime) -> UnixTime {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => UnixTime {
            seconds: seconds(after),
            nanoseconds: after.subsec_nanos(),
        },
        Err(error) => {
            let before = error.duration();
            match before.subsec_nanos() {
                0 => UnixTime {
                    seconds: -seconds(before),
                    nanoseconds: 0,
                },
                nanoseconds => UnixTime {
                    seconds: -seconds(before) - 1,
                    nanoseconds: 1_000_000_000 - nanoseconds,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_before_the_epoch_rounds_down() {
        let time = |seconds, nanoseconds| UnixTime {
            seconds,
            nanoseconds,
        };
        let half = Duration::from_millis(500);
        assert_eq!(since_epoch(UNIX_EPOCH), time(0, 0));
        assert_eq!(since_epoch(UNIX_EPOCH + half), time(0, 500_000_000));
        assert_eq!(since_epoch(UNIX_EPOCH - half), time(-1, 500_000_000));
        let second = Duration::from_secs(1);
        assert_eq!(since_epoch(UNIX_EPOCH - second), time(-1, 0));
    }

    #[test]
    fn the_host_is_past_2024() {
        assert!(HostClock.now().seconds > 1_704_067_200);
    }
}
