//! ARM PrimeCell Real Time Clock, PL031 (ARM DDI 0224C): 32 bits of seconds since 1970.
//!
//! The model is ours rather than vm-superio's, in which enabling the clock, as Linux does on every
//! boot, undoes what the guest has set.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::{Clock, HostClock};
use crate::bus::BusDevice;
use crate::lock::lock;
use crate::registers::{read_u32, written_u32};

/// Bytes of the register block.
pub const SIZE: u64 = 0x1000;

/// `RTCDR`, the present time.
const DATA: u64 = 0x000;
/// `RTCMR`, the alarm.
const MATCH: u64 = 0x004;
/// `RTCLR`, sets the time.
const LOAD: u64 = 0x008;
/// `RTCCR`; its bit 0, "RTC start", cannot be taken back once it is set.
const CONTROL: u64 = 0x00c;
/// `RTCIMSC`, one bit.
const INTERRUPT_MASK: u64 = 0x010;
/// `RTCPeriphID0` to `RTCPCellID3`.
const IDS: u64 = 0xfe0;
/// Their values: part 0x031 by ARM (0x41), revision 0, and the PrimeCell signature (table 3-1).
const ID_BYTES: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// State of a [`Pl031`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pl031State {
    /// Seconds that the guest is ahead of the host.
    pub offset: u32,
    /// `RTCLR`: what the guest last set the time to.
    pub load: u32,
    /// `RTCMR`.
    pub alarm: u32,
    /// `RTCIMSC`.
    pub interrupt_mask: u32,
}

/// The clock. It runs from the start on, as firmware would leave it.
///
/// The alarm can be set and never fires: no interrupt is described to the guest.
pub struct Pl031 {
    clock: Box<dyn Clock>,
    state: Mutex<Pl031State>,
}

impl Pl031 {
    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self::restore(&Pl031State::default())
    }

    /// A clock that is as far from the host's time as a saved one was.
    pub fn restore(state: &Pl031State) -> Self {
        Self::with_clock(Box::new(HostClock), state)
    }

    fn with_clock(clock: Box<dyn Clock>, state: &Pl031State) -> Self {
        let mut state = state.clone();
        state.interrupt_mask &= 1;
        Self {
            clock,
            state: Mutex::new(state),
        }
    }

    /// The clock's state.
    pub fn save(&self) -> Pl031State {
        lock(&self.state).clone()
    }

    /// The host's time in the register's 32 bits, which overflow in 2106.
    fn host_time(&self) -> u32 {
        self.clock.now().seconds as u32
    }

    fn read_register(&self, register: u64) -> u32 {
        let state = lock(&self.state);
        match register {
            DATA => self.host_time().wrapping_add(state.offset),
            MATCH => state.alarm,
            LOAD => state.load,
            CONTROL => 1,
            INTERRUPT_MASK => state.interrupt_mask,
            IDS.. => usize::try_from((register - IDS) / 4)
                .ok()
                .and_then(|index| ID_BYTES.get(index))
                .map_or(0, |id| u32::from(*id)),
            // RTCRIS and RTCMIS among them: no interrupt is pending.
            _ => 0,
        }
    }

    fn write_register(&self, register: u64, value: u32) {
        let mut state = lock(&self.state);
        match register {
            MATCH => state.alarm = value,
            LOAD => {
                state.load = value;
                state.offset = value.wrapping_sub(self.host_time());
            }
            INTERRUPT_MASK => state.interrupt_mask = value & 1,
            // RTCCR among them: it is set already, and then "any writes have no effect".
            _ => {}
        }
    }
}

impl Default for Pl031 {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Pl031 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        read_u32(offset, data, |register| self.read_register(register));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((register, value)) = written_u32(offset, data) {
            self.write_register(register, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::rtc::UnixTime;
    use crate::testing::{never_panics, readl, writel};

    #[derive(Clone, Default)]
    struct TestClock(Arc<AtomicI64>);

    impl Clock for TestClock {
        fn now(&self) -> UnixTime {
            UnixTime {
                seconds: self.0.load(Ordering::Relaxed),
                nanoseconds: 0,
            }
        }
    }

    fn device(seconds: i64, state: &Pl031State) -> (Pl031, TestClock) {
        let clock = TestClock::default();
        clock.0.store(seconds, Ordering::Relaxed);
        (Pl031::with_clock(Box::new(clock.clone()), state), clock)
    }

    /// The AMBA bus's identification, then `pl031_probe` and `pl031_read_time`.
    #[test]
    fn linux_finds_a_running_clock() {
        let (rtc, clock) = device(1_700_000_000, &Pl031State::default());
        let id = |base: u64| (0..4).fold(0, |id, i| id | readl(&rtc, base + 4 * i) << (8 * i));
        assert_eq!(id(0xfe0) & 0x000f_ffff, 0x0004_1031);
        assert_eq!(id(0xff0), 0xb105_f00d);
        let control = readl(&rtc, 0x00c);
        writel(&rtc, 0x00c, control | 1);
        assert_eq!(readl(&rtc, 0x00c), 1);
        assert_eq!(readl(&rtc, 0x000), 1_700_000_000);
        clock.0.fetch_add(2, Ordering::Relaxed);
        assert_eq!(readl(&rtc, 0x000), 1_700_000_002);
    }

    #[test]
    fn a_time_that_was_set_goes_on_and_survives_the_next_probe() {
        let (rtc, clock) = device(1000, &Pl031State::default());
        writel(&rtc, 0x008, 500);
        clock.0.fetch_add(7, Ordering::Relaxed);
        writel(&rtc, 0x00c, 1);
        assert_eq!(readl(&rtc, 0x000), 507);
        assert_eq!(readl(&rtc, 0x008), 500);
        writel(&rtc, 0x000, 0);
        assert_eq!(readl(&rtc, 0x000), 507);
    }

    #[test]
    fn the_alarm_is_kept_and_never_rings() {
        let (rtc, clock) = device(1000, &Pl031State::default());
        writel(&rtc, 0x004, 1001);
        writel(&rtc, 0x010, 0xffff_ffff);
        clock.0.fetch_add(5, Ordering::Relaxed);
        assert_eq!(readl(&rtc, 0x004), 1001);
        assert_eq!(readl(&rtc, 0x010), 1);
        assert_eq!((readl(&rtc, 0x014), readl(&rtc, 0x018)), (0, 0));
    }

    #[test]
    fn narrow_reads_get_their_bytes() {
        let (rtc, _) = device(0x1234_5678, &Pl031State::default());
        let mut half = [0; 2];
        rtc.read(2, &mut half);
        assert_eq!(half, [0x34, 0x12]);
        let mut wide = [0xff; 8];
        rtc.read(0, &mut wide);
        assert_eq!(wide, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn state_round_trips(offset: u32, load: u32, alarm: u32, interrupt_mask in 0..2_u32) {
            let state = Pl031State { offset, load, alarm, interrupt_mask };
            let json = serde_json::to_string(&state).unwrap();
            let (rtc, _) = device(0, &serde_json::from_str(&json).unwrap());
            prop_assert_eq!(rtc.save(), state);
            prop_assert_eq!(readl(&rtc, 0x000), offset);
        }
    }

    #[test]
    fn no_access_panics() {
        never_panics(Pl031::new);
    }
}
