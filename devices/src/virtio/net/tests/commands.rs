//! Features, registers and the control queue.

use super::*;

/// The control queue of a device with one pair.
const CONTROL: usize = 2;
/// Where a command and its answer are.
const COMMAND: u64 = 0x7_0000;
const ANSWER: u64 = 0x7_1000;

const OK: u8 = 0;
const ERROR: u8 = 1;

/// Gives a command, and returns its answer.
fn command(driver: &mut Driver, queue: usize, bytes: &[u8]) -> u8 {
    driver.fill(COMMAND, bytes);
    driver.fill(ANSWER, &[0xee]);
    let length = bytes.len() as u32;
    // As Linux does it: class and command, then what is to be done, then the answer.
    let buffers = [
        readable(COMMAND, 2.min(length)),
        readable(COMMAND + 2, length.saturating_sub(2)),
        writable(ANSWER, 1),
    ];
    driver.make_available(queue, 0, &buffers);
    driver.kick(queue);
    assert_eq!(driver.wait_used(queue), (0, 1));
    driver.bytes(ANSWER, 1)[0]
}

fn pairs(count: u16) -> Vec<u8> {
    let mut bytes = vec![4, 0];
    bytes.extend(count.to_le_bytes());
    bytes
}

fn guest_offloads(wanted: u64) -> Vec<u8> {
    let mut bytes = vec![5, 0];
    bytes.extend(wanted.to_le_bytes());
    bytes
}

#[test]
fn registers_say_what_the_interface_is() {
    let (driver, _peer, _backend) = idle(3);
    let mut expected = MAC.0.to_vec();
    expected.extend([1, 0, 3, 0, 0x78, 5]);
    assert_eq!(driver.read::<12>(0x2000)[..], expected);
    assert_eq!(driver.read::<4>(0x200a), [0x78, 5, 0, 0]);
    assert_eq!(driver.read::<2>(0x2fff), [0, 0]);
    // They cannot be written.
    driver.write(0x2000, &[0xff; 8]);
    assert_eq!(driver.read::<12>(0x2000)[..], expected);
    // A pair has two queues, and there is the control queue.
    assert_eq!(driver.read::<2>(0x12), [7, 0]);
}

#[test]
fn what_is_offered_is_what_was_asked_for() {
    let always = feature::MAC | feature::STATUS | feature::MRG_RXBUF | feature::CTRL_VQ;
    let checksums = feature::CSUM | feature::GUEST_CSUM | feature::CTRL_GUEST_OFFLOADS;
    let tso = feature::HOST_TSO4
        | feature::HOST_TSO6
        | feature::HOST_ECN
        | feature::GUEST_TSO4
        | feature::GUEST_TSO6
        | feature::GUEST_ECN;
    let ufo = feature::HOST_UFO | feature::GUEST_UFO;
    let cases = [
        ((true, true, true), checksums | tso | ufo),
        ((true, true, false), checksums | tso),
        ((true, false, true), checksums | ufo),
        ((true, false, false), checksums),
        ((false, true, true), 0),
        ((false, false, false), 0),
    ];
    for ((checksums, tso, ufo), expected) in cases {
        for (count, mtu) in [(1, None), (2, Some(1400))] {
            let (interface, _peer) = fake(count);
            let device = Net::new(NetParts {
                mtu,
                offloads: OffloadChoice {
                    checksums,
                    tso,
                    ufo,
                },
                ..parts(unlimited(interface), count)
            });
            let more = match mtu {
                Some(_) => feature::MQ | feature::MTU,
                None => 0,
            };
            let driver = Driver::new(Box::new(device));
            assert_eq!(driver.offered() & 0xff_ffff, always | expected | more);
        }
    }
}

/// The host does no more than what the driver has acknowledged.
#[test]
fn offloads_follow_the_driver() {
    let guest = feature::GUEST_SEGMENTS | feature::GUEST_ECN;
    let (mut driver, peer, _backend) = idle(1);
    driver.start(0, 8);
    let all = Offloads {
        checksums: true,
        tso4: true,
        tso6: true,
        ecn: true,
        ufo: true,
    };
    assert_eq!(peer.offloads(), all);
    driver.start(guest, 8);
    let checksums = Offloads {
        checksums: true,
        ..Offloads::default()
    };
    assert_eq!(peer.offloads(), checksums);
    driver.start(guest | feature::GUEST_CSUM, 8);
    assert_eq!(peer.offloads(), Offloads::default());
    driver.start(feature::GUEST_TSO6 | feature::GUEST_UFO, 8);
    let some = Offloads {
        tso6: false,
        ufo: false,
        ..all
    };
    assert_eq!(peer.offloads(), some);
}

#[test]
fn features_without_those_that_they_need_are_refused() {
    let (mut driver, _peer, _backend) = idle(2);
    let refused = [
        feature::CSUM,
        feature::GUEST_CSUM,
        feature::HOST_TSO4 | feature::HOST_TSO6,
        feature::GUEST_TSO4 | feature::GUEST_TSO6,
        feature::CTRL_VQ,
        feature::CTRL_VQ | feature::MQ,
    ];
    for without in refused {
        driver.set_status(0);
        driver.set_status(3);
        let offered = driver.offered();
        driver.accept(offered & !without);
        driver.set_status(11);
        assert_eq!(driver.status(), 3, "without {without:#x}");
    }
    driver.start(feature::HOST_TSO4 | feature::GUEST_TSO6, 8);
}

#[test]
fn offloads_are_changed_by_command() {
    let (mut driver, peer, _backend) = started(feature::GUEST_UFO, 8);
    let told = |peer: &Peer| peer.state.offloads.lock().unwrap().len();
    let refused = [
        feature::GUEST_UFO | feature::GUEST_CSUM,
        feature::GUEST_TSO4,
        feature::GUEST_ECN | feature::GUEST_CSUM,
        1 << 63,
        feature::CSUM,
    ];
    let before = told(&peer);
    for wanted in refused {
        assert_eq!(
            command(&mut driver, CONTROL, &guest_offloads(wanted)),
            ERROR
        );
    }
    assert_eq!(told(&peer), before);
    let accepted = [
        (0, Offloads::default()),
        (
            feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_ECN,
            Offloads {
                checksums: true,
                tso4: true,
                ecn: true,
                ..Offloads::default()
            },
        ),
    ];
    for (wanted, expected) in accepted {
        assert_eq!(command(&mut driver, CONTROL, &guest_offloads(wanted)), OK);
        assert_eq!(peer.offloads(), expected);
        // Flags mean something only with checksums.
        post(&mut driver, 0, 100);
        driver.kick(RX);
        let mut bytes = frame(0, 50);
        bytes[0] = 2;
        peer.send(&bytes);
        driver.wait_used(RX);
        let flags = if expected.checksums { 2 } else { 0 };
        assert_eq!(driver.bytes(DATA, 1), [flags]);
    }
}

#[test]
fn commands_that_are_none_are_refused() {
    let (mut driver, _peer, _backend) = started(0, 8);
    let bad: [&[u8]; 9] = [
        &[],
        &[4],
        &[4, 0],
        // Several pairs were not negotiated.
        &[4, 0, 1, 0],
        &[4, 1, 1, 0],
        &[5, 0, 0, 0, 0],
        &[5, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 1],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    for bytes in bad {
        assert_eq!(command(&mut driver, CONTROL, bytes), ERROR, "{bytes:?}");
    }
    // Without an answer, with one to nowhere, of what is not in memory, of a length that is none.
    let odd: [(&[Buffer], u32); 4] = [
        (&[readable(COMMAND, 2)], 0),
        (&[readable(COMMAND, 2), writable(u64::MAX - 3, 1)], 0),
        (&[readable(u64::MAX - 3, 2), writable(ANSWER, 1)], 1),
        (&[readable(COMMAND, 1 << 31), writable(ANSWER, 1)], 1),
    ];
    for (buffers, written) in odd {
        driver.fill(ANSWER, &[0xee]);
        driver.make_available(CONTROL, 0, buffers);
        driver.kick(CONTROL);
        assert_eq!(driver.wait_used(CONTROL), (0, written));
        let expected = if written == 1 { ERROR } else { 0xee };
        assert_eq!(driver.bytes(ANSWER, 1), [expected]);
    }
    assert_eq!(driver.status(), 15);
}

/// The host gives frames to the queues that the driver uses, and to no others.
#[test]
fn pairs_are_attached_as_the_driver_wants() {
    let (mut driver, peer, _backend) = idle(3);
    assert_eq!(peer.attached(), NONE);
    driver.start(0, 8);
    let control = 6;
    assert_eq!(peer.attached(), [0]);
    for (count, answer, attached) in [
        (3, OK, &[0, 1, 2][..]),
        (2, OK, &[0, 1]),
        (0, ERROR, &[0, 1]),
        (4, ERROR, &[0, 1]),
        (0x8000, ERROR, &[0, 1]),
        (1, OK, &[0]),
        (3, OK, &[0, 1, 2]),
    ] {
        assert_eq!(command(&mut driver, control, &pairs(count)), answer);
        assert_eq!(peer.attached(), attached);
    }
    // Frames come from each, and go to each.
    for pair in 0..3 {
        driver.make_available(2 * pair, 0, &[writable(DATA, 200)]);
        driver.kick(2 * pair);
        peer.send_to(pair, &frame(pair as u8, 100));
        assert_eq!(driver.wait_used(2 * pair), (0, 112));
        assert_eq!(driver.bytes(DATA + 12, 100), frame(pair as u8, 100)[12..]);
        driver.fill(DATA, &frame(7, 100));
        driver.make_available(2 * pair + 1, 0, &[readable(DATA, 112)]);
        driver.kick(2 * pair + 1);
        assert_eq!(driver.wait_used(2 * pair + 1), (0, 0));
        assert_eq!(peer.wait_from(pair), frame(7, 100));
    }
    // One that is not attached takes nothing in, and its driver loses what it sends.
    assert_eq!(command(&mut driver, control, &pairs(1)), OK);
    driver.make_available(5, 1, &[readable(DATA, 112)]);
    driver.kick(5);
    assert_eq!(driver.wait_used(5), (1, 0));
    assert_eq!(peer.take_from(2), None);
    assert_eq!(driver.read::<2>(0x2006), [1, 0], "the link is up");
    // It comes back with what the driver has made available before.
    driver.make_available(4, 1, &[writable(DATA, 200)]);
    driver.kick(4);
    assert_eq!(command(&mut driver, control, &pairs(3)), OK);
    peer.send_to(2, &frame(9, 100));
    assert_eq!(driver.wait_used(4), (1, 112));
    // A host that refuses is told of.
    assert_eq!(command(&mut driver, control, &pairs(1)), OK);
    peer.state.stubborn.store(true, Ordering::SeqCst);
    assert_eq!(command(&mut driver, control, &pairs(2)), ERROR);
    driver.set_status(0);
    assert_eq!(peer.attached(), NONE);
}

/// Section 5.1.2: the control queue is behind the pairs that the driver knows of.
#[test]
fn a_driver_that_knows_one_pair_has_its_control_queue_behind_it() {
    let (mut driver, peer, _backend) = idle(3);
    driver.start(feature::MQ, 8);
    assert_eq!(command(&mut driver, CONTROL, &guest_offloads(0)), OK);
    assert_eq!(command(&mut driver, CONTROL, &pairs(1)), ERROR);
    assert_eq!(peer.attached(), [0]);
    assert_eq!(peer.offloads(), Offloads::default());
    // Nobody serves others.
    driver.make_available(6, 0, &[readable(COMMAND, 4), writable(ANSWER, 1)]);
    driver.kick(6);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.take_used(6), None);
}

#[test]
fn answers_behind_many_empty_buffers_are_not_given() {
    let (mut driver, _peer, _backend) = started(0, 8);
    driver.fill(COMMAND, &[1, 1]);
    for (count, written) in [(1022, 1), (1023, 0)] {
        let mut buffers = vec![readable(COMMAND, 0); count];
        buffers.extend([readable(COMMAND, 2), writable(ANSWER, 1)]);
        driver.make_table_available(CONTROL, 0, DATA, &buffers);
        driver.kick(CONTROL);
        assert_eq!(driver.wait_used(CONTROL), (0, written), "{count}");
    }
}

/// A queue that is attached while its thread finds that it is not is no sign of an interface that is gone.
#[test]
fn a_queue_is_attached_while_it_is_read() {
    let (mut driver, peer, _backend) = idle(2);
    driver.start(0, 8);
    peer.state.late.store(true, Ordering::SeqCst);
    let before = peer.state.reads.load(Ordering::SeqCst);
    driver.make_available(2, 0, &[writable(DATA, 200)]);
    driver.kick(2);
    wait_for("a read", || {
        (peer.state.reads.load(Ordering::SeqCst) > before).then_some(())
    });
    assert_eq!(command(&mut driver, 4, &pairs(2)), OK);
    peer.send_to(1, &frame(1, 100));
    assert_eq!(driver.wait_used(2), (0, 112));
    assert_eq!(driver.read::<2>(0x2006), [1, 0], "the link");
}
