//! Frames from the host to the guest.

use super::*;

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let (mut driver, peer, backend) = started(0, 64);
    for number in 0..40 {
        post(&mut driver, number, 1526);
    }
    driver.kick(RX);
    for (length, buffers) in [(60, 1), (1514, 1), (1515, 2), (3040, 2), (9014, 6)] {
        peer.send(&frame(1, length));
        assert_eq!(take_frame(&mut driver), (frame(1, length), buffers));
    }
    driver.wait_interrupt(1);
    let lengths = [60, 1514, 1515, 3040, 9014];
    assert_eq!(counted(&backend), [lengths.iter().sum(), 5, 0, 0]);
}

#[test]
fn the_largest_frame_comes_whole() {
    let (mut driver, peer, _backend) = started(0, 64);
    for number in 0..64 {
        post(&mut driver, number, 1100);
    }
    driver.kick(RX);
    let largest = super::super::LARGEST - HEADER;
    peer.send(&frame(2, largest));
    let (bytes, count) = take_frame(&mut driver);
    assert_eq!((bytes == frame(2, largest), count), (true, 60));
    // What is larger is none.
    peer.send(&frame(3, largest + 1));
    peer.send(&frame(4, 60));
    assert_eq!(take_frame(&mut driver), (frame(4, 60), 1));
}

/// One that has not as many buffers as it needs waits for them, and nothing of it is lost.
#[test]
fn a_frame_waits_for_buffers() {
    // With large frames and without: then it is read into less than it could be.
    for without in [0, feature::GUEST_SEGMENTS | feature::GUEST_ECN] {
        let (mut driver, peer, _backend) = started(without, 64);
        post(&mut driver, 0, 300);
        post(&mut driver, 1, 100);
        driver.kick(RX);
        peer.send(&frame(5, 2500));
        peer.send(&frame(6, 100));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(driver.take_used(RX), None);
        for number in 2..8 {
            post(&mut driver, number, 400);
            driver.kick(RX);
            std::thread::sleep(Duration::from_millis(1));
        }
        post(&mut driver, 8, 1000);
        driver.kick(RX);
        assert_eq!(take_frame(&mut driver), (frame(5, 2500), 8));
        assert_eq!(take_frame(&mut driver), (frame(6, 100), 1));
    }
}

#[test]
fn a_frame_that_fits_into_no_buffers_is_dropped() {
    let (mut driver, peer, backend) = started(0, 4);
    for number in 0..4 {
        post(&mut driver, number, 100);
    }
    driver.kick(RX);
    peer.send(&frame(7, 389));
    peer.send(&frame(8, 388));
    assert_eq!(take_frame(&mut driver), (frame(8, 388), 4));
    assert_eq!(counted(&backend)[1], 1);
}

#[test]
fn without_merging_a_frame_has_one_chain() {
    let (mut driver, peer, backend) = started(feature::MRG_RXBUF, 64);
    // The header by itself, then in parts of a byte, as nobody does it.
    let parts = [writable(DATA, 12), writable(DATA + 0x100, 1500)];
    driver.make_available(RX, 0, &parts);
    let parts = [
        writable(DATA + 0x1000, 5),
        writable(DATA + 0x1100, 0),
        writable(DATA + 0x1200, 6),
        writable(DATA + 0x1300, 2),
        writable(DATA + 0x1400, 200),
    ];
    driver.make_available(RX, 8, &parts);
    driver.kick(RX);
    let mut bytes = frame(9, 1000);
    bytes[0] = 1;
    bytes[4] = 7;
    peer.send(&bytes);
    assert_eq!(driver.wait_used(RX), (0, 1012));
    let mut header = bytes[..12].to_vec();
    header[10] = 1;
    assert_eq!(driver.bytes(DATA, 12), header);
    assert_eq!(driver.bytes(DATA + 0x100, 1000), bytes[12..]);
    // The next one has room for 201 bytes.
    peer.send(&frame(10, 202));
    peer.send(&frame(11, 201));
    assert_eq!(driver.wait_used(RX), (8, 213));
    // There is one buffer, and that is said in the last byte of one part and in the first of the next.
    assert_eq!(driver.bytes(DATA + 0x1205, 1), [1]);
    assert_eq!(driver.bytes(DATA + 0x1300, 2), [0, frame(11, 201)[12]]);
    assert_eq!(driver.bytes(DATA + 0x1400, 200), frame(11, 201)[13..]);
    assert_eq!(counted(&backend), [1201, 2, 0, 0]);
}

/// Section 5.1.6.4.1: flags are zero for a driver that has not asked for checksums.
#[test]
fn flags_are_for_drivers_that_know_them() {
    let offloads = feature::GUEST_CSUM
        | feature::GUEST_SEGMENTS
        | feature::GUEST_ECN
        | feature::CTRL_GUEST_OFFLOADS;
    for (without, expected) in [(0, 3), (offloads, 0)] {
        let (mut driver, peer, _backend) = started(without, 8);
        post(&mut driver, 0, 100);
        driver.kick(RX);
        let mut bytes = frame(0, 50);
        bytes[0] = 3;
        peer.send(&bytes);
        driver.wait_used(RX);
        assert_eq!(
            driver.bytes(DATA, 12),
            [expected, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
        );
    }
}

/// A driver that offers what nothing can be written into has broken the rules.
#[test]
fn buffers_that_cannot_be_written_cost_the_device() {
    let bad = [
        readable(DATA, 1000),
        writable(u64::MAX - 100, 1000),
        writable(crate::virtio::testing::RAM as u64, 1000),
        writable(DATA, 0),
    ];
    for buffer in bad {
        let (mut driver, peer, _backend) = started(0, 8);
        post(&mut driver, 0, 1000);
        driver.kick(RX);
        peer.send(&frame(1, 100));
        assert_eq!(take_frame(&mut driver).1, 1);
        driver.make_available(RX, 1, &[buffer]);
        driver.kick(RX);
        peer.send(&frame(1, 100));
        driver.wait_for_fault();
        // Until it is reset.
        driver.start(0, 8);
        post(&mut driver, 0, 1000);
        driver.kick(RX);
        // What came for the driver before is gone.
        peer.send(&frame(2, 100));
        assert_eq!(take_frame(&mut driver), (frame(2, 100), 1));
    }
}

/// A chain is used as far as it can be: up to what cannot be written, and as many parts as a call takes.
#[test]
fn odd_chains_are_used_as_far_as_they_go() {
    let (mut driver, peer, _backend) = started(0, 64);
    let ends = [
        writable(DATA, 100),
        writable(DATA + 0x1000, 0xffff_ffff),
        writable(DATA, 100),
    ];
    driver.make_available(RX, 0, &ends);
    let ends = [writable(DATA + 0x2000, 200), readable(DATA, 100)];
    driver.make_available(RX, 8, &ends);
    // A chain that goes on with itself.
    driver.describe(RX, 16, writable(DATA + 0x3000, 10), 1, 16);
    driver.offer(RX, 16);
    driver.kick(RX);
    peer.send(&frame(1, 288));
    assert_eq!(driver.wait_used(RX), (0, 100));
    assert_eq!(driver.wait_used(RX), (8, 200));
    let mut bytes = driver.bytes(DATA, 100);
    bytes.extend(driver.bytes(DATA + 0x2000, 200));
    assert_eq!(bytes[12..], frame(1, 288)[12..]);
    peer.send(&frame(2, 628));
    assert_eq!(driver.wait_used(RX), (16, 640));
    assert_eq!(driver.status(), 15);
}

#[test]
fn buffers_behind_many_empty_ones_are_not_seen() {
    let (mut driver, peer, _backend) = started(0, 64);
    let behind = |count: usize| {
        let mut buffers = vec![writable(DATA, 0); count];
        buffers.push(writable(DATA, 1000));
        buffers
    };
    driver.make_table_available(RX, 1, DATA + 0x1_0000, &behind(1023));
    driver.kick(RX);
    peer.send(&frame(1, 100));
    assert_eq!(driver.wait_used(RX), (1, 112));
    driver.make_table_available(RX, 1, DATA + 0x1_0000, &behind(1024));
    driver.kick(RX);
    peer.send(&frame(1, 100));
    driver.wait_for_fault();
}

/// Of a table with more parts than one call takes, the first are used.
#[test]
fn a_chain_may_have_more_parts_than_a_call() {
    let (mut driver, peer, _backend) = started(0, 64);
    let mut table = Vec::new();
    for at in 0..2000_u16 {
        // Those that follow each other would be one part.
        table.extend((DATA + 0x1_0000 + 2 * u64::from(at)).to_le_bytes());
        table.extend(1_u32.to_le_bytes());
        table.extend(3_u16.to_le_bytes());
        table.extend((at + 1).to_le_bytes());
    }
    let gpa = DATA + 0x2_0000;
    driver.fill(gpa, &table);
    for (head, queue_bytes) in [(1, 500), (2, 500)] {
        driver.describe(RX, head, readable(gpa, 32000), 4, 0);
        driver.offer(RX, head);
        driver.kick(RX);
        peer.send(&frame(3, queue_bytes));
        assert_eq!(driver.wait_used(RX), (u32::from(head), 512));
    }
    // Three of them do not go together.
    driver.offer(RX, 1);
    post(&mut driver, 3, 1000);
    driver.kick(RX);
    peer.send(&frame(4, 2500));
    peer.send(&frame(5, 1011));
    assert_eq!(driver.wait_used(RX), (1, 1023));
    let bytes = driver.bytes(DATA + 0x1_0000, 2 * 1023);
    let parts: Vec<u8> = bytes.into_iter().step_by(2).skip(12).collect();
    assert_eq!(parts, frame(5, 1011)[12..]);
}
