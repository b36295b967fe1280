//! Guests that break rules: it costs them the packet or the connection, and others nothing.

use super::*;
use crate::virtio::testing::RAM;
use crate::virtio::vsock::switch::MOST_REFUSALS;

#[test]
fn packets_of_others_are_dropped() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    for (src_cid, dst_cid) in [
        (2, 2),
        (u64::from(CID) + 1, 2),
        (u64::from(CID) | 1 << 32, 2),
        (CID.into(), 1),
        (CID.into(), CID.into()),
        (CID.into(), 2 | 1 << 32),
    ] {
        let header = Header {
            src_cid,
            dst_cid,
            ..peer.data(4)
        };
        rig.send(header, b"evil");
        rig.send(
            Header {
                op: op::RST,
                ..header
            },
            b"",
        );
        rig.send(
            Header {
                op: op::REQUEST,
                ..header
            },
            b"",
        );
    }
    rig.expect_nothing();
    rig.send(peer.data(4), b"good");
    assert_eq!(read(&mut client, 4), b"good");
}

#[test]
fn what_is_not_known_is_refused() {
    let mut rig = Rig::new();
    let (_client, connected) = rig.connect(1);
    let unknown = Peer {
        guest_port: 7,
        host_port: 8,
        ..Peer::default()
    };
    for op in [
        0,
        op::RESPONSE,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        8,
        0xffff,
    ] {
        rig.send(unknown.header(op), b"");
        assert!(unknown.owns(&rig.expect(op::RST)), "{op}");
    }
    rig.send(unknown.header(op::RST), b"");
    rig.expect_nothing();
    // Kinds of sockets: messages, and what nobody knows. The answer is of the same kind.
    for kind in [0, 2, 0xffff] {
        for peer in [unknown, connected] {
            let header = Header {
                kind,
                ..peer.header(op::REQUEST)
            };
            rig.send(header, b"");
            let (answer, _) = rig.receive();
            assert_eq!((answer.op, answer.kind), (op::RST, kind));
            assert!(peer.owns(&answer));
            rig.send(
                Header {
                    op: op::RST,
                    ..header
                },
                b"",
            );
        }
    }
    rig.expect_nothing();
    rig.check();
}

/// What may not come in a connection's stage ends it.
#[test]
fn what_is_out_of_place_ends_a_connection() {
    let mut rig = Rig::new();
    for op in [0, op::REQUEST, op::RESPONSE, 8] {
        let (mut client, peer) = rig.connect(1);
        rig.send(peer.header(op), b"");
        assert!(peer.owns(&rig.expect(op::RST)), "{op}");
        assert!(has_ended(&mut client));
    }
    for op in [
        0,
        op::REQUEST,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
    ] {
        let mut client = rig.ask(1);
        let peer = Peer::of(&rig.expect(op::REQUEST));
        rig.send(peer.header(op), b"");
        assert!(peer.owns(&rig.expect(op::RST)), "{op}");
        assert!(has_ended(&mut client));
    }
    // Data after it said that there is no more.
    let (mut client, peer) = rig.connect(1);
    rig.send(peer.shutdown(shutdown::SEND), b"");
    rig.send(peer.data(1), b"x");
    assert!(peer.owns(&rig.expect(op::RST)));
    assert!(has_ended(&mut client));
    rig.expect_nothing();
    rig.check();
}

#[test]
fn more_than_the_credit_ends_a_connection() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    let bytes = pattern(0, 60_000);
    let mut sent = 0;
    let reset = loop {
        if let Some((header, _)) = rig.try_receive()
            && header.op == op::RST
        {
            break header;
        }
        rig.send(peer.data(bytes.len()), &bytes);
        sent += bytes.len();
        assert!(sent < 16 << 20, "it takes everything");
    };
    assert!(peer.owns(&reset));
    // What was sent meanwhile is of no connection.
    thread::sleep(Duration::from_millis(30));
    while let Some((header, _)) = rig.try_receive() {
        assert_eq!(header.op, op::RST);
    }
    // What it took, it has delivered or dropped.
    let mut received = Vec::new();
    let _ = client.read_to_end(&mut received);
    assert!(received.len() < sent);
    assert_eq!(received, bytes.repeat(sent / bytes.len())[..received.len()]);

    // In a packet that is larger than all credit, and one whose data is not there.
    for length in [BUFFER + 1, u32::MAX] {
        let (_client, peer) = rig.connect(1);
        rig.driver
            .fill(TX_HEADER, &peer.data(length as usize).to_bytes());
        let mut pieces = vec![readable(TX_HEADER, 44)];
        pieces.extend([readable(TX_DATA, 0x4_0000); 8]);
        rig.driver.make_available(TX, 0, &pieces);
        rig.driver.kick(TX);
        rig.driver.wait_used(TX);
        assert!(peer.owns(&rig.expect(op::RST)));
    }
    rig.check();
}

/// Chains that are no packet are given back, and that is all.
#[test]
fn chains_without_a_packet_are_given_back() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    rig.driver.fill(TX_HEADER, &peer.data(100).to_bytes());
    let header = readable(TX_HEADER, 44);
    for chain in [
        vec![readable(TX_HEADER, 43)],
        vec![readable(TX_HEADER, 0)],
        vec![writable(TX_HEADER, 44)],
        vec![writable(TX_HEADER, 44), readable(TX_DATA, 100)],
        vec![readable(RAM as u64, 44)],
        vec![readable(RAM as u64 - 43, 44)],
        vec![readable(u64::MAX, 44)],
        vec![readable(u64::MAX - 43, 44)],
    ] {
        rig.driver.make_available(TX, 0, &chain);
        rig.driver.kick(TX);
        assert_eq!(rig.driver.wait_used(TX), (0, 0));
    }
    rig.expect_nothing();
    rig.send(peer.data(2), b"ok");
    assert_eq!(read(&mut client, 2), b"ok");
    // A header without the data that it speaks of.
    for data in [
        vec![],
        vec![readable(TX_DATA, 99)],
        vec![writable(TX_DATA, 100)],
        vec![readable(RAM as u64, 100)],
        vec![readable(RAM as u64 - 99, 100)],
        vec![readable(u64::MAX - 99, 100)],
        vec![readable(TX_DATA, 99), writable(TX_DATA, 1)],
    ] {
        let (mut client, peer) = rig.connect(1);
        rig.driver.fill(TX_HEADER, &peer.data(100).to_bytes());
        let chain: Vec<_> = [header].into_iter().chain(data).collect();
        rig.driver.make_available(TX, 0, &chain);
        rig.driver.kick(TX);
        assert_eq!(rig.driver.wait_used(TX), (0, 0));
        assert!(peer.owns(&rig.expect(op::RST)), "{chain:?}");
        assert!(has_ended(&mut client));
    }
    rig.check();
}

/// Descriptors that follow each other for ever, and ones that are not there.
#[test]
fn loops_have_an_end() {
    let mut rig = Rig::new();
    let (_client, peer) = rig.connect(1);
    rig.driver.fill(TX_HEADER, &peer.data(100).to_bytes());
    let next = 1;
    rig.driver.describe(TX, 0, readable(TX_HEADER, 44), next, 1);
    rig.driver.describe(TX, 1, readable(TX_DATA, 0), next, 1);
    rig.driver.offer(TX, 0);
    rig.driver.kick(TX);
    assert_eq!(rig.driver.wait_used(TX), (0, 0));
    assert!(peer.owns(&rig.expect(op::RST)));
    let (_client, peer) = rig.connect(1);
    rig.driver.fill(TX_HEADER, &peer.data(100).to_bytes());
    rig.driver
        .describe(TX, 0, readable(TX_HEADER, 44), next, 0xffff);
    rig.driver.offer(TX, 0);
    rig.driver.kick(TX);
    assert_eq!(rig.driver.wait_used(TX), (0, 0));
    assert!(peer.owns(&rig.expect(op::RST)));
    rig.check();
}

/// A table that all packets have in common takes little of a guest, and no more of the host.
#[test]
fn packets_of_more_descriptors_than_there_may_be_are_dropped() {
    const TABLE: u64 = 0x6_0000;
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    let entry = |rig: &Rig, at: u16, gpa: u64, next: u16| {
        let mut bytes = gpa.to_le_bytes().to_vec();
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        rig.driver.fill(TABLE + u64::from(at) * 16, &bytes);
    };
    let bytes = pattern(4, 212);
    rig.driver.fill(TX_HEADER, &peer.data(212).to_bytes());
    rig.driver.fill(TX_HEADER + 44, &bytes);
    for at in 0..300 {
        entry(&rig, at, TX_HEADER + u64::from(at), at + 1);
    }
    let mut offer = |entries: u32| {
        let indirect = 4;
        let table = readable(TABLE, entries * 16);
        rig.driver.describe(TX, 0, table, indirect, 0);
        rig.driver.offer(TX, 0);
        rig.driver.kick(TX);
        assert_eq!(rig.driver.wait_used(TX), (0, 0));
    };
    offer(256);
    assert_eq!(read(&mut client, 212), bytes);
    offer(257);
    // As many as a table can have, in a circle.
    offer(0xffff);
    rig.expect_nothing();
    rig.send(peer.data(2), b"ok");
    assert_eq!(read(&mut client, 2), b"ok");
}

/// Buffers that no packet fits into are given back empty, and nothing is lost.
#[test]
fn buffers_without_room_are_given_back() {
    let mut rig = Rig::new();
    rig.driver.start(0, RX_COUNT);
    let unfit = [
        readable(RX_BUFFERS, 4096),
        writable(RX_BUFFERS, 43),
        writable(RX_BUFFERS, 0),
        writable(RAM as u64, 4096),
        writable(RAM as u64 - 43, 4096),
        writable(u64::MAX - 4000, 4096),
    ];
    for (number, buffer) in (0..).zip(unfit) {
        rig.driver.make_available(RX, number, &[buffer]);
    }
    // Room for a header alone is enough for this.
    rig.driver
        .make_available(RX, 6, &[writable(RX_BUFFERS, 44)]);
    rig.driver.kick(RX);
    let mut client = rig.ask(1);
    for number in 0..6 {
        assert_eq!(rig.driver.wait_used(RX), (number, 0));
    }
    assert_eq!(rig.driver.wait_used(RX), (6, 44));
    let header = Header::from_bytes(rig.driver.bytes(RX_BUFFERS, 44).first_chunk().unwrap());
    assert_eq!(header.op, op::REQUEST);
    let peer = Peer::of(&header);
    rig.send(peer.header(op::RESPONSE), b"");
    client.write_all(b"data").unwrap();
    // But not for data.
    rig.driver
        .make_available(RX, 7, &[writable(RX_BUFFERS, 44)]);
    rig.driver
        .make_available(RX, 8, &[writable(RX_BUFFERS, 46)]);
    rig.driver
        .make_available(RX, 9, &[writable(RX_BUFFERS + 4096, 4096)]);
    rig.driver.kick(RX);
    assert_eq!(rig.driver.wait_used(RX), (7, 0));
    assert_eq!(rig.driver.wait_used(RX), (8, 46));
    assert_eq!(rig.driver.wait_used(RX), (9, 46));
    assert_eq!(rig.driver.bytes(RX_BUFFERS + 44, 2), b"da");
    assert_eq!(rig.driver.bytes(RX_BUFFERS + 4096 + 44, 2), b"ta");
    assert_eq!(rig.driver.status(), 15);
}

/// A guest that is refused something, and does not want to know: its packets wait until it does.
#[test]
fn refusals_that_nobody_takes_stop_the_guest() {
    let mut rig = Rig::new();
    rig.driver.start(0, RX_COUNT);
    let unknown = |number| Peer {
        guest_port: number,
        host_port: 8,
        ..Peer::default()
    };
    let most = MOST_REFUSALS as u32;
    for number in 0..most {
        rig.send(unknown(number).data(0), b"");
    }
    rig.offer(unknown(most).data(0), b"");
    thread::sleep(Duration::from_millis(30));
    assert_eq!(rig.driver.take_used(TX), None);
    for number in 0..RX_COUNT {
        rig.supply(number);
    }
    rig.driver.kick(RX);
    for number in 0..=most {
        assert!(unknown(number).owns(&rig.expect(op::RST)));
    }
    assert_eq!(rig.driver.wait_used(TX), (0, 0));
    rig.check();
}

/// Rings that make no sense cost the guest the device, until it resets it.
#[test]
fn a_queue_without_sense_costs_the_device() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.connect(1);
    let available = rig.driver.queues[TX].available;
    rig.driver.fill(available + 2, &0x8000_u16.to_le_bytes());
    rig.driver.kick(TX);
    rig.driver.wait_for_fault();
    rig.start();
    assert!(has_ended(&mut client));
    rig.check();
}
