//! A process of its own, in which nothing else happens, so that what it holds can be counted: devices
//! are reset again and again, and hostile drivers come and go.
#![expect(unsafe_code, reason = "counts what is allocated")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::testing::hostile;
use fuzz::Holdings;

/// Bytes that are allocated.
static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does everything.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Rounds of resets of each device, with and without requests under way, unless `ENDURANCE_RESETS` says otherwise.
const RESETS: u32 = 1_000;
/// How long they may take on a machine that does nothing else; more is waited for.
const SLOW: Duration = Duration::from_secs(120);
/// Bytes that may have been allocated for good, such as output that a test has captured.
const SLACK: isize = 16 << 10;

/// Does something twice: what is there after the first time may be there for good.
fn nothing_is_left_over(what: &str, mut work: impl FnMut()) {
    work();
    let (before, allocated) = (Holdings::now().unwrap(), ALLOCATED.load(Ordering::Relaxed));
    work();
    before
        .is_all()
        .unwrap_or_else(|more| panic!("{what}: {more}"));
    let more = ALLOCATED.load(Ordering::Relaxed) - allocated;
    assert!(more < SLACK, "{what}: {more} more bytes are allocated");
}

/// One test, so that nothing runs beside it.
#[test]
fn devices_leave_nothing_behind() {
    let resets = match std::env::var("ENDURANCE_RESETS") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => RESETS,
    };
    for device in hostile::devices() {
        for while_busy in [false, true] {
            let began = Instant::now();
            let what = format!("resets of {device}, busy: {while_busy}");
            nothing_is_left_over(&what, || {
                hostile::reset_often(device, resets / 2, while_busy);
            });
            println!("{what}: {resets} in {:?}", began.elapsed());
            assert!(began.elapsed() < SLOW, "{what}: {:?}", began.elapsed());
        }
        nothing_is_left_over(&format!("drivers of {device}"), || {
            for number in 0..100_u32 {
                hostile::run(device, &noise(number));
            }
        });
    }
}

/// Bytes that are the same each time: a program that begins by the rules, and goes on somehow.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut bytes = vec![15, 0, 4];
    bytes.extend((0..400).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    }));
    bytes
}
