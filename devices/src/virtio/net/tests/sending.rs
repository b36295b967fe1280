//! Frames from the guest to the host.

use super::*;

#[test]
fn frames_are_sent_however_they_are_cut() {
    for without in [0, crate::virtio::features::INDIRECT_DESC] {
        let (mut driver, peer, backend) = started(without, 64);
        let mut total = 0;
        for length in [1, 14, 60, 1514, 9014, 65550] {
            let bytes = frame(length as u8, length);
            driver.fill(DATA, &bytes);
            let all = bytes.len() as u32;
            let shapes: [&[Buffer]; 4] = [
                &[readable(DATA, all)],
                &[readable(DATA, 12), readable(DATA + 12, all - 12)],
                &[
                    readable(DATA, 3),
                    readable(DATA + 3, 0),
                    readable(DATA + 3, 9),
                    readable(DATA + 12, 1),
                    readable(DATA + 13, all - 13),
                ],
                &[
                    readable(DATA, all - 1),
                    readable(DATA + u64::from(all) - 1, 1),
                ],
            ];
            for shape in shapes {
                driver.make_available(TX, 5, shape);
                driver.kick(TX);
                assert_eq!(driver.wait_used(TX), (5, 0));
                assert!(peer.wait() == bytes, "{length} bytes as {shape:?}");
                total += length as u64;
            }
        }
        assert_eq!(counted(&backend), [0, 0, total, 24]);
    }
}

/// What is no frame is given back, and nothing is sent; the device goes on.
#[test]
fn what_is_no_frame_is_not_sent() {
    let (mut driver, peer, backend) = started(0, 64);
    driver.fill(DATA, &[0; 0x2_0000]);
    let bad: [&[Buffer]; 8] = [
        &[readable(DATA, 0)],
        &[readable(DATA, 5)],
        &[readable(DATA, 12)],
        &[readable(DATA, 100), writable(DATA + 0x1000, 1)],
        &[writable(DATA, 100)],
        &[readable(DATA, 100), readable(u64::MAX - 10, 100)],
        &[readable(crate::virtio::testing::RAM as u64 - 10, 100)],
        &[readable(DATA, 0x1_0000), readable(DATA, 0x1_0000)],
    ];
    for shape in bad {
        driver.make_available(TX, 7, shape);
        driver.kick(TX);
        assert_eq!(driver.wait_used(TX), (7, 0), "{shape:?}");
    }
    // A chain that goes on with itself ends somewhere.
    driver.describe(TX, 16, readable(DATA, 0x1000), 1, 16);
    driver.offer(TX, 16);
    driver.kick(TX);
    assert_eq!(driver.wait_used(TX), (16, 0));
    assert_eq!(peer.take_from(0), None);
    assert_eq!(counted(&backend), [0; 4]);
    transmit(&mut driver, &frame(1, 60));
    assert_eq!(peer.wait(), frame(1, 60));
    assert_eq!(driver.status(), 15);
}

/// Nothing is kept of frames in more pieces than there may be, even if most are empty.
#[test]
fn frames_of_many_pieces_are_sent_up_to_a_bound() {
    const TABLE: u64 = DATA + 0x1_0000;
    let (mut driver, peer, _backend) = started(0, 64);
    let sent = frame(7, 2000);
    driver.fill(DATA, &sent);
    // The last piece has the rest.
    let pieces = |count: usize| {
        let mut pieces: Vec<_> = (0..count as u64).map(|at| readable(DATA + at, 1)).collect();
        pieces[count - 1].length = (sent.len() - count + 1) as u32;
        pieces
    };
    let behind_empty = |count: usize| {
        let mut pieces = vec![readable(DATA, 0); count];
        pieces.push(readable(DATA, sent.len() as u32));
        pieces
    };
    let cases = [
        (pieces(1024), true),
        (pieces(1025), false),
        (behind_empty(1023), true),
        (behind_empty(1024), false),
        (vec![readable(DATA, 1); 0x6000], false),
        (pieces(1024), true),
    ];
    for (pieces, is_sent) in cases {
        driver.make_table_available(TX, 2, TABLE, &pieces);
        driver.kick(TX);
        assert_eq!(driver.wait_used(TX), (2, 0), "{} pieces", pieces.len());
        let taken = peer.take_from(0);
        assert!(
            taken == is_sent.then(|| sent.clone()),
            "{} pieces",
            pieces.len()
        );
    }
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_head_that_is_none_costs_the_device() {
    let (mut driver, _peer, _backend) = started(0, 64);
    driver.offer(TX, 64);
    driver.kick(TX);
    driver.wait_for_fault();
}

/// An interface that has no room is waited for: nothing is lost, and nobody spins.
#[test]
fn frames_wait_for_room() {
    let (mut driver, peer, backend) = started(0, 64);
    driver.fill(DATA, &frame(1, 20_000));
    for head in 0..60 {
        driver.make_available(TX, head, &[readable(DATA, 20_012)]);
    }
    driver.kick(TX);
    std::thread::sleep(Duration::from_millis(50));
    let writes = peer.state.writes.load(Ordering::SeqCst);
    assert!(writes < 60, "a socket has room for 60 frames of 20 kB");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(peer.state.writes.load(Ordering::SeqCst), writes);
    for head in 0..60 {
        assert!(peer.wait() == frame(1, 20_000));
        assert_eq!(driver.wait_used(TX), (head, 0));
    }
    assert_eq!(counted(&backend), [0, 0, 60 * 20_000, 60]);
}

/// One whose interface is down loses frames, as a card without a link does.
#[test]
fn frames_that_cannot_be_sent_are_dropped() {
    let (mut driver, peer, backend) = started(0, 64);
    for error in [libc::EIO, libc::EINVAL, libc::ENOBUFS] {
        peer.state.write_error.store(error, Ordering::SeqCst);
        transmit(&mut driver, &frame(1, 60));
    }
    assert_eq!(counted(&backend), [0; 4]);
    assert_eq!(peer.take_from(0), None);
    peer.state.write_error.store(0, Ordering::SeqCst);
    transmit(&mut driver, &frame(2, 60));
    assert_eq!(peer.wait(), frame(2, 60));
    // The link was never down.
    assert_eq!(driver.read::<2>(0x2006), [1, 0]);
}
