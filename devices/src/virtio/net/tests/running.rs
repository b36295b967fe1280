//! Resets, pauses, limits, and interfaces that go.

use std::thread;

use super::*;
use crate::virtio::rate_limiter::Bucket;

const STATUS: u64 = 0x2006;

/// Whether a device waits: whatever it does, it does not ask its interface all the time.
fn is_still(peer: &Peer) -> bool {
    let asked = || {
        let state = &peer.state;
        state.reads.load(Ordering::SeqCst) + state.writes.load(Ordering::SeqCst)
    };
    thread::sleep(Duration::from_millis(20));
    let before = asked();
    thread::sleep(Duration::from_millis(50));
    asked() == before
}

/// CPU time of this process's threads of that name, in ticks.
fn ticks_of(name: &str) -> u64 {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else {
            continue;
        };
        let Some((front, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        if front.ends_with(&format!("({name}")) {
            let mut fields = rest.split_whitespace().skip(11);
            let mut next = || -> u64 { fields.next().unwrap().parse().unwrap() };
            ticks += next() + next();
        }
    }
    ticks
}

#[test]
fn frames_without_buffers_cost_nothing_until_there_are_some() {
    let (mut driver, peer, _backend) = started(0, 8);
    for seed in 0..20 {
        peer.send(&frame(seed, 100));
    }
    driver.kick(RX);
    assert!(is_still(&peer));
    for seed in 0..20 {
        post(&mut driver, 3, 200);
        driver.kick(RX);
        assert_eq!(take_frame(&mut driver).0, frame(seed, 100));
    }
    assert!(is_still(&peer));
}

/// What came for one driver is not given to the next.
#[test]
fn a_reset_drops_what_waits() {
    let (mut driver, peer, _backend) = started(0, 64);
    for round in 0..30_u8 {
        for seed in 0..5 {
            peer.send(&frame(seed, 100));
            peer.send(&frame(seed, 3000));
        }
        if round % 3 > 0 {
            // Some of them are under way.
            post(&mut driver, 0, 200);
            post(&mut driver, 1, 200);
            driver.kick(RX);
            driver.fill(DATA + 0x1_0000, &frame(1, 500));
            driver.make_available(TX, 0, &[readable(DATA + 0x1_0000, 512)]);
            driver.kick(TX);
        }
        driver.set_status(0);
        driver.fill(DATA, &[0xee; 0x3000]);
        assert_eq!(peer.attached(), NONE);
        thread::sleep(Duration::from_micros(300));
        assert_eq!(driver.bytes(DATA, 0x3000), [0xee; 0x3000]);
        driver.start(0, 64);
        post(&mut driver, 0, 200);
        driver.kick(RX);
        peer.send(&frame(0x80 | round, 100));
        assert_eq!(take_frame(&mut driver).0, frame(0x80 | round, 100));
        while peer.take_from(0).is_some() {}
    }
}

#[test]
fn nothing_moves_during_a_pause() {
    let (mut driver, peer, _backend) = started(0, 64);
    for round in 0..20 {
        driver.function.pause();
        post(&mut driver, 0, 200);
        driver.kick(RX);
        peer.send(&frame(round, 100));
        driver.fill(DATA + 0x1_0000, &frame(round, 500));
        driver.make_available(TX, 0, &[readable(DATA + 0x1_0000, 512)]);
        driver.kick(TX);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(driver.take_used(RX), None);
        assert_eq!(driver.take_used(TX), None);
        assert_eq!(peer.take_from(0), None);
        driver.function.resume();
        assert_eq!(take_frame(&mut driver).0, frame(round, 100));
        assert_eq!(driver.wait_used(TX), (0, 0));
        assert_eq!(peer.wait(), frame(round, 500));
    }
}

/// A frame that waits for buffers, or for anything else, keeps no memory.
#[test]
fn whatever_waits_keeps_no_memory() {
    let (mut driver, peer, _backend) = started(0, 64);
    post(&mut driver, 0, 200);
    driver.kick(RX);
    peer.send(&frame(1, 1000));
    assert!(is_still(&peer));
    assert_eq!(Arc::strong_count(&driver.ram.memory.get()), 2);
}

#[test]
fn buffers_that_wait_are_where_memory_is_then() {
    let (mut driver, peer, _backend) = started(0, 64);
    for number in 0..3 {
        post(&mut driver, number, 2000);
    }
    driver.kick(RX);
    assert!(is_still(&peer));
    driver.ram.replace();
    for number in 0..3 {
        peer.send(&frame(number, 1000));
        let (bytes, _) = take_frame(&mut driver);
        assert_eq!(bytes[HEADER..], frame(number, 1000)[HEADER..]);
    }
}

#[test]
fn an_interface_that_goes_costs_the_link_alone() {
    for buffers in [true, false] {
        let (mut driver, peer, backend) = started(0, 64);
        if buffers {
            post(&mut driver, 0, 200);
            driver.kick(RX);
        }
        transmit(&mut driver, &frame(1, 60));
        assert_eq!(driver.read::<2>(STATUS), [1, 0]);
        let generation = driver.read::<1>(0x15);
        peer.state.read_error.store(libc::EBADFD, Ordering::SeqCst);
        peer.state.write_error.store(libc::EBADFD, Ordering::SeqCst);
        driver.write(0x10, &0_u16.to_le_bytes());
        match buffers {
            true => peer.send(&frame(1, 60)),
            false => transmit(&mut driver, &frame(1, 60)),
        }
        wait_for("the end of the link", || {
            (driver.read::<2>(STATUS) == [0, 0]).then_some(())
        });
        driver.wait_interrupt(0);
        assert_ne!(driver.read::<1>(0x15), generation);
        assert_ne!(driver.isr() & 2, 0);
        assert!(is_still(&peer));
        // The driver goes on, and is not told again.
        for _ in 0..10 {
            transmit(&mut driver, &frame(1, 60));
        }
        assert_eq!(driver.interrupts(0), 0);
        assert_eq!(driver.status(), 15);
        assert_eq!(counted(&backend)[2..], [60, 1]);
        // The next driver finds it so.
        driver.start(0, 64);
        assert_eq!(driver.read::<2>(STATUS), [0, 0]);
        assert_eq!(driver.status(), 15);
        transmit(&mut driver, &frame(1, 60));
        assert!(is_still(&peer));
    }
}

#[test]
fn the_other_end_of_a_descriptor_may_hang_up() {
    let (mut driver, peer, _backend) = started(0, 64);
    post(&mut driver, 0, 200);
    driver.kick(RX);
    let state = Arc::clone(&peer.state);
    drop(peer.queues);
    wait_for("the end of the link", || {
        (driver.read::<2>(STATUS) == [0, 0]).then_some(())
    });
    thread::sleep(Duration::from_millis(20));
    let reads = state.reads.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(state.reads.load(Ordering::SeqCst), reads);
    transmit(&mut driver, &frame(1, 60));
}

/// Reads that fail for ever end the link; a device does not go on with them.
#[test]
fn an_interface_that_always_fails_is_given_up() {
    let (mut driver, peer, _backend) = started(0, 64);
    peer.state.read_error.store(libc::EIO, Ordering::SeqCst);
    post(&mut driver, 0, 200);
    driver.kick(RX);
    peer.send(&frame(1, 60));
    wait_for("the end of the link", || {
        (driver.read::<2>(STATUS) == [0, 0]).then_some(())
    });
    assert!(is_still(&peer));
}

#[test]
fn waiting_costs_no_time() {
    let (driver, peer, _backend) = started(0, 64);
    // Frames that wait for a driver, and a command that there is none of.
    for seed in 0..20 {
        peer.send(&frame(seed, 100));
    }
    driver.kick(RX);
    driver.kick(TX);
    driver.kick(2);
    thread::sleep(Duration::from_millis(100));
    // Other tests have threads of that name too, but none that is busy for long.
    let before = ticks_of("virtio-net q0");
    thread::sleep(Duration::from_millis(500));
    let busy = ticks_of("virtio-net q0").saturating_sub(before);
    assert!(busy < 40, "{busy} of 50 ticks");
}

fn limited(receiving: Limits, sending: Limits) -> (Driver, Peer, Arc<NetBackend>) {
    let (interface, peer) = fake(1);
    let parts = parts(NetBackend::new(interface, receiving, sending), 1);
    let backend = Arc::clone(&parts.backend);
    let mut driver = Driver::new(Box::new(Net::new(parts)));
    driver.start(0, 64);
    (driver, peer, backend)
}

fn bucket(size: u64, milliseconds: u64) -> Option<Bucket> {
    Some(Bucket {
        size,
        one_time_burst: 0,
        refill: Duration::from_millis(milliseconds),
    })
}

/// Each direction has its limits, and waits without asking again and again.
#[test]
fn frames_wait_for_their_time() {
    let limits = || Limits::new(bucket(1000, 100), None);
    let (mut driver, peer, backend) = limited(limits(), limits());
    driver.fill(DATA + 0x2_0000, &frame(1, 500));
    for number in 0..8 {
        post(&mut driver, number, 600);
        peer.send(&frame(1, 500));
        let buffer = readable(DATA + 0x2_0000, 512);
        driver.make_available(TX, number, &[buffer]);
    }
    let start = Instant::now();
    driver.kick(RX);
    driver.kick(TX);
    for head in 0..8 {
        assert_eq!(take_frame(&mut driver), (frame(1, 500), 1));
        assert_eq!(driver.wait_used(TX), (head, 0));
        assert_eq!(peer.wait(), frame(1, 500));
    }
    // Two at once, and one more every 50 ms.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(290), "{took:?}");
    assert_eq!(counted(&backend), [4000, 8, 4000, 8]);
    assert!(peer.state.reads.load(Ordering::SeqCst) < 30);
    assert!(is_still(&peer));
}

#[test]
fn a_frame_that_waits_for_its_time_can_be_reset_and_keeps_no_memory() {
    let limits = || Limits::new(None, bucket(1, 3_600_000));
    let (mut driver, peer, _backend) = limited(limits(), limits());
    for number in 0..4 {
        post(&mut driver, number, 600);
        peer.send(&frame(1, 500));
    }
    driver.kick(RX);
    transmit(&mut driver, &frame(1, 50));
    driver.make_available(TX, 0, &[readable(DATA, 62)]);
    driver.kick(TX);
    take_frame(&mut driver);
    assert!(is_still(&peer));
    assert_eq!(driver.take_used(RX), None);
    assert_eq!(driver.take_used(TX), None);
    assert_eq!(Arc::strong_count(&driver.ram.memory.get()), 2);
    driver.function.pause();
    driver.function.resume();
    driver.start(0, 64);
    driver.make_available(TX, 0, &[readable(DATA, 62)]);
    driver.kick(TX);
    assert!(is_still(&peer));
    assert_eq!(driver.take_used(TX), None);
}

#[test]
fn a_driver_may_leave_queues_out() {
    let (driver, peer, _backend) = idle(1);
    driver.set_status(0);
    driver.set_status(3);
    let offered = driver.offered();
    driver.accept(offered);
    driver.set_status(11);
    // None at all.
    driver.set_status(15);
    peer.send(&frame(1, 60));
    assert!(is_still(&peer));
    assert_eq!(driver.status(), 15);
}

#[test]
fn an_interface_that_cannot_be_attached_costs_the_device_until_it_can() {
    let (mut driver, peer, _backend) = idle(1);
    peer.state.stubborn.store(true, Ordering::SeqCst);
    driver.start(0, 8);
    driver.wait_for_fault();
    peer.state.stubborn.store(false, Ordering::SeqCst);
    driver.start(0, 8);
    transmit(&mut driver, &frame(1, 60));
    assert_eq!(peer.wait(), frame(1, 60));
}

/// What was opened for all boots is closed when the last device of it is gone.
#[test]
fn nothing_is_kept_of_an_interface() {
    let (mut driver, peer, backend) = started(0, 64);
    transmit(&mut driver, &frame(1, 60));
    peer.send(&frame(1, 60));
    drop(driver);
    assert_eq!(Arc::strong_count(&backend), 1);
}
