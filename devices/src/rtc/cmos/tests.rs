use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::rtc::UnixTime;
use crate::testing::{accesses, never_panics, outb};

#[derive(Clone)]
struct TestClock(Arc<Mutex<UnixTime>>);

impl TestClock {
    fn set(&self, seconds: i64, nanoseconds: u32) {
        *self.0.lock().unwrap() = UnixTime {
            seconds,
            nanoseconds,
        };
    }
}

impl Clock for TestClock {
    fn now(&self) -> UnixTime {
        *self.0.lock().unwrap()
    }
}

/// 2026-11-22 15:04:05 UTC, a Sunday (`date -u -d @1795359845`).
const NOW: i64 = 1_795_359_845;

fn device() -> (Cmos, TestClock) {
    restored(&CmosState::default())
}

fn restored(state: &CmosState) -> (Cmos, TestClock) {
    let time = UnixTime {
        seconds: NOW,
        nanoseconds: 0,
    };
    let clock = TestClock(Arc::new(Mutex::new(time)));
    (Cmos::with_clock(Box::new(clock.clone()), state), clock)
}

fn get(cmos: &Cmos, index: u8) -> u8 {
    outb(cmos, 0, index);
    let mut data = [0];
    cmos.read(1, &mut data);
    data[0]
}

fn set(cmos: &Cmos, index: u8, value: u8) {
    outb(cmos, 0, index);
    outb(cmos, 1, value);
}

/// Second, minute, hour, day of week, day, month, year, century.
fn time(cmos: &Cmos) -> [u8; 8] {
    [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| get(cmos, index))
}

#[test]
fn shows_the_time_as_bcd_and_24_hours_at_first() {
    let (cmos, clock) = device();
    // What Linux's driver insists on: 24 hours (0x02 in B), VRT (0x80 in D), no update for ever.
    assert_eq!(get(&cmos, 0x0b), 0x02);
    assert_eq!(get(&cmos, 0x0d), 0x80);
    assert_eq!(get(&cmos, 0x0a), 0x26);
    assert_eq!(
        time(&cmos),
        [0x05, 0x04, 0x15, 0x01, 0x22, 0x11, 0x26, 0x20]
    );
    clock.set(NOW + 55, 0);
    assert_eq!(time(&cmos)[..3], [0x00, 0x05, 0x15]);
}

#[test]
fn shows_the_formats_that_register_b_asks_for() {
    let (cmos, clock) = device();
    set(&cmos, 0x0b, 0x06);
    assert_eq!(time(&cmos), [5, 4, 15, 1, 22, 11, 26, 20]);
    set(&cmos, 0x0b, 0x00);
    assert_eq!(get(&cmos, 4), 0x83);
    set(&cmos, 0x0b, 0x04);
    assert_eq!(get(&cmos, 4), 0x83);
    // Midnight is 12 AM, noon is 12 PM.
    set(&cmos, 0x0b, 0x00);
    clock.set(NOW - NOW % 86_400, 0);
    assert_eq!(get(&cmos, 4), 0x12);
    clock.set(NOW - NOW % 86_400 + 43_200, 0);
    assert_eq!(get(&cmos, 4), 0x92);
    clock.set(NOW - NOW % 86_400 + 39_600, 0);
    assert_eq!(get(&cmos, 4), 0x11);
}

#[test]
fn the_nmi_bit_is_not_part_of_the_index() {
    let (cmos, _) = device();
    assert_eq!(get(&cmos, 0x8d), 0x80);
    set(&cmos, 0xc0, 0x5a);
    assert_eq!(get(&cmos, 0x40), 0x5a);
}

/// The order of Linux's `mc146818_set_time`: SET, divider reset, the registers, and back.
#[test]
fn linux_sets_the_time() {
    let (cmos, clock) = device();
    let (a, b) = (get(&cmos, 0x0a), get(&cmos, 0x0b));
    set(&cmos, 0x0b, b | 0x80);
    set(&cmos, 0x0a, a | 0x70);
    for (index, value) in [
        (9, 0x00),
        (8, 0x02),
        (7, 0x29),
        (4, 0x23),
        (2, 0x59),
        (0, 0x58),
    ] {
        set(&cmos, index, value);
    }
    // Nothing moves meanwhile.
    clock.set(NOW + 10, 999_900_000);
    assert_eq!(get(&cmos, 0), 0x58);
    assert_eq!(get(&cmos, 0x0a) & 0x80, 0);
    set(&cmos, 0x0b, b);
    set(&cmos, 0x0a, a);
    assert_eq!(
        time(&cmos),
        [0x58, 0x59, 0x23, 0x03, 0x29, 0x02, 0x00, 0x20]
    );
    clock.set(NOW + 12, 0);
    assert_eq!(
        time(&cmos),
        [0x00, 0x00, 0x00, 0x04, 0x01, 0x03, 0x00, 0x20]
    );
    // 951868798 is 2000-02-29 23:59:58 UTC.
    assert_eq!(cmos.save().offset, 951_868_798 - (NOW + 10));
}

#[test]
fn the_time_can_be_set_in_12_hours_and_binary() {
    let (cmos, _) = device();
    for (hours, hour) in [(12, 0), (1, 1), (11, 11), (0x80 | 12, 12), (0x80 | 11, 23)] {
        set(&cmos, 0x0b, 0x84);
        set(&cmos, 4, hours);
        set(&cmos, 2, 30);
        set(&cmos, 0x0b, 0x04);
        assert_eq!(get(&cmos, 4), hours);
        set(&cmos, 0x0b, 0x06);
        assert_eq!(time(&cmos), [5, 30, hour, 1, 22, 11, 26, 20]);
    }
}

#[test]
fn a_single_register_can_be_set_on_the_run() {
    let (cmos, _) = device();
    set(&cmos, 2, 0x42);
    assert_eq!(
        time(&cmos),
        [0x05, 0x42, 0x15, 0x01, 0x22, 0x11, 0x26, 0x20]
    );
}

#[test]
fn the_last_244_microseconds_warn_of_the_update() {
    let (cmos, clock) = device();
    clock.set(NOW, 999_755_999);
    assert_eq!(get(&cmos, 0x0a), 0x26);
    clock.set(NOW, 999_756_000);
    assert_eq!(get(&cmos, 0x0a), 0xa6);
    clock.set(NOW + 1, 0);
    assert_eq!(get(&cmos, 0x0a), 0x26);
    set(&cmos, 0x0a, 0xff);
    assert_eq!(get(&cmos, 0x0a), 0x7f);
}

#[test]
fn alarms_and_ram_are_kept_and_c_and_d_are_read_only() {
    let (cmos, _) = device();
    for index in [1, 3, 5, 0x0e, 0x0f, 0x31, 0x33, 0x7f] {
        set(&cmos, index, 0xc0 | index);
        assert_eq!(get(&cmos, index), 0xc0 | index);
    }
    set(&cmos, 0x0c, 0xff);
    set(&cmos, 0x0d, 0x00);
    assert_eq!((get(&cmos, 0x0c), get(&cmos, 0x0d)), (0, 0x80));
    // SET takes the update interrupt's enable bit with it.
    set(&cmos, 0x0b, 0x92);
    assert_eq!(get(&cmos, 0x0b), 0x82);
}

#[test]
fn absurd_times_are_taken() {
    for offset in [i64::MIN, i64::MAX] {
        let state = CmosState {
            offset,
            ..CmosState::default()
        };
        let (cmos, _) = restored(&state);
        time(&cmos);
        set(&cmos, 2, 0xff);
    }
    let (cmos, _) = device();
    set(&cmos, 0x0b, 0x82);
    for index in [0, 2, 4, 7, 8, 9, 0x32] {
        set(&cmos, index, 0xff);
    }
    set(&cmos, 0x0b, 0x02);
    set(&cmos, 8, 0);
    set(&cmos, 7, 0);
    assert_eq!(get(&cmos, 7) & 0xf0, 0);
}

proptest! {
    #[test]
    fn state_round_trips(accesses in accesses(), later in 0..100_000_i64) {
        let (cmos, clock) = device();
        for access in &accesses {
            access.apply(&cmos);
        }
        let json = serde_json::to_string(&cmos.save()).unwrap();
        let (copy, copied_clock) = restored(&serde_json::from_str(&json).unwrap());
        prop_assert_eq!(copy.save(), cmos.save());
        clock.set(NOW + later, 0);
        copied_clock.set(NOW + later, 0);
        prop_assert_eq!(time(&copy), time(&cmos));
    }

    /// Whatever time is set is the time that is shown, in every format.
    #[test]
    fn what_is_set_is_shown(
        format in 0..4_u8,
        parts in (0..60_i64, 0..60_i64, 0..24_i64, 0..3_652_059_i64),
    ) {
        let (cmos, _) = device();
        let b = format << 1;
        let days = parts.3 - 719_528;
        let target = days * 86_400 + parts.2 * 3600 + parts.1 * 60 + parts.0;
        let (source, clock) = device();
        clock.set(target, 0);
        set(&source, 0x0b, b);
        let shown = time(&source);
        set(&cmos, 0x0b, b | 0x80);
        for (index, value) in [0, 2, 4, 6, 7, 8, 9, 0x32].into_iter().zip(shown) {
            set(&cmos, index, value);
        }
        set(&cmos, 0x0b, b);
        prop_assert_eq!(cmos.save().offset, target - NOW);
        prop_assert_eq!(time(&cmos), shown);
    }
}

#[test]
fn no_access_panics() {
    never_panics(Cmos::new);
}
