//! What is right: connections, data, credit, ends.

use std::net::Shutdown;

use super::*;

#[test]
fn the_guest_reads_its_context() {
    let rig = Rig::new();
    assert_eq!(rig.driver.read::<8>(0x2000), 42_u64.to_le_bytes());
    assert_eq!(rig.driver.read::<4>(0x2004), [0; 4]);
    assert_eq!(rig.driver.read::<4>(0x2ffe), [0; 4]);
    // Streams alone.
    assert_eq!(rig.driver.offered() & 0xff_ffff, 0);
}

#[test]
fn a_program_of_the_host_connects_to_the_guest() {
    let mut rig = Rig::new();
    let (mut client, mut peer) = rig.connect(1234);
    assert!(peer.host_port >= 1 << 30);
    client.write_all(b"hello").unwrap();
    let (header, data) = rig.receive();
    assert_eq!(
        (header.op, header.flags, &data[..]),
        (op::RW, 0, &b"hello"[..])
    );
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER, 0));
    assert!(peer.owns(&header));
    rig.send(peer.data(5), b"world");
    assert_eq!(read(&mut client, 5), b"world");
    peer.forwarded = 5;
    client.write_all(b"x").unwrap();
    assert_eq!(rig.receive().0.fwd_cnt, 5);
    // It goes, and the guest says that it has noticed.
    drop(client);
    let header = rig.expect(op::SHUTDOWN);
    assert_eq!(header.flags, shutdown::BOTH);
    rig.send(peer.header(op::RST), b"");
    rig.expect_nothing();
    // It is not there any more.
    rig.send(peer.data(1), b"x");
    assert!(peer.owns(&rig.expect(op::RST)));
}

#[test]
fn the_guest_connects_to_a_program_of_the_host() {
    let mut rig = Rig::new();
    let listener = rig.listen(52);
    let (mut server, peer) = rig.connect_to(&listener, 5000, 52);
    let (mut other, other_peer) = rig.connect_to(&listener, 5001, 52);
    rig.send(peer.data(3), b"one");
    rig.send(other_peer.data(3), b"two");
    assert_eq!(read(&mut server, 3), b"one");
    assert_eq!(read(&mut other, 3), b"two");
    server.write_all(b"three").unwrap();
    let (header, data) = rig.receive();
    assert!(peer.owns(&header));
    assert_eq!(data, b"three");
    // All that it has sent is there before the end is.
    rig.send(peer.data(4), b"last");
    rig.send(peer.shutdown(shutdown::BOTH), b"");
    assert!(peer.owns(&rig.expect(op::RST)));
    assert_eq!(read(&mut server, 4), b"last");
    assert!(has_ended(&mut server));
    // The same ports, again.
    let (mut server, peer) = rig.connect_to(&listener, 5000, 52);
    rig.send(peer.data(1), b"x");
    assert_eq!(read(&mut server, 1), b"x");
    rig.send(other_peer.header(op::RST), b"");
    assert!(has_ended(&mut other));
}

#[test]
fn what_nobody_accepts_is_refused() {
    let mut rig = Rig::new();
    // Nobody is there, and then nobody any more.
    for port in [77, 78] {
        if port == 78 {
            drop(rig.listen(port));
        }
        let peer = Peer {
            guest_port: 5000,
            host_port: port,
            ..Peer::default()
        };
        rig.send(peer.header(op::REQUEST), b"");
        assert!(peer.owns(&rig.expect(op::RST)));
    }
    let mut client = rig.ask(1);
    let peer = Peer::of(&rig.expect(op::REQUEST));
    rig.send(peer.header(op::RST), b"");
    assert!(has_ended(&mut client));
    rig.expect_nothing();
    rig.check();
}

/// Those who do not wait for the answer.
#[test]
fn what_is_behind_the_line_is_for_the_guest() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    client.write_all(b"CONNECT 7\nearly\nbirds").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let peer = Peer::of(&rig.expect(op::REQUEST));
    rig.expect_nothing();
    rig.send(peer.header(op::RESPONSE), b"");
    assert_eq!(rig.receive().1, b"early\nbirds");
    assert_eq!(rig.expect(op::SHUTDOWN).flags, shutdown::SEND);
    let answer = format!("OK {}\n", peer.host_port);
    assert_eq!(read(&mut client, answer.len()), answer.as_bytes());
    rig.send(peer.data(2), b"ok");
    rig.send(peer.shutdown(shutdown::SEND), b"");
    // Nothing can come any more.
    assert_eq!(rig.expect(op::SHUTDOWN).flags, shutdown::BOTH);
    assert_eq!(read(&mut client, 2), b"ok");
    assert!(has_ended(&mut client));
    rig.send(peer.header(op::RST), b"");
    rig.check();
}

#[test]
fn lines_come_in_pieces() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    for piece in ["CON", "NECT", " 1", "2"] {
        client.write_all(piece.as_bytes()).unwrap();
        rig.expect_nothing();
    }
    client.write_all(b"\n").unwrap();
    assert_eq!(rig.expect(op::REQUEST).dst_port, 12);
}

/// One direction ends, the other goes on.
#[test]
fn half_a_connection_can_end() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.receive().1, b"question");
    assert_eq!(rig.expect(op::SHUTDOWN).flags, shutdown::SEND);
    rig.send(peer.data(6), b"answer");
    assert_eq!(read(&mut client, 6), b"answer");
    drop(client);
    assert_eq!(rig.expect(op::SHUTDOWN).flags, shutdown::BOTH);
    rig.send(peer.header(op::RST), b"");

    // The guest's half.
    let (mut client, peer) = rig.connect(2);
    rig.send(peer.data(8), b"question");
    rig.send(peer.shutdown(shutdown::SEND), b"");
    assert_eq!(read(&mut client, 8), b"question");
    assert!(has_ended(&mut client));
    client.write_all(b"answer").unwrap();
    assert_eq!(rig.receive().1, b"answer");
    // It does not want to hear more, and so has ended both.
    rig.send(peer.shutdown(shutdown::RECEIVE), b"");
    assert!(peer.owns(&rig.expect(op::RST)));
    assert!(client.write_all(b"more").is_err());

    // A guest that only writes.
    let (mut client, peer) = rig.connect(3);
    rig.send(peer.shutdown(shutdown::RECEIVE), b"");
    wait("the client can write", || client.write_all(b"x").is_err());
    rig.send(peer.data(1), b"x");
    assert_eq!(read(&mut client, 1), b"x");
    rig.expect_nothing();

    // A program that only writes: what the guest sends is for nobody.
    let (mut client, peer) = rig.connect(4);
    client.shutdown(Shutdown::Read).unwrap();
    rig.send(peer.data(1), b"x");
    assert_eq!(rig.expect(op::SHUTDOWN).flags, shutdown::RECEIVE);
    client.write_all(b"still here").unwrap();
    assert_eq!(rig.receive().1, b"still here");
    rig.check();
}

/// The guest is never sent more than it has room for, and is asked once.
#[test]
fn the_guest_is_sent_what_it_has_granted() {
    let mut rig = Rig::new();
    let (mut client, mut peer) = rig.connect(1);
    peer.buffer = 10_000;
    rig.send(peer.header(op::CREDIT_UPDATE), b"");
    let bytes = pattern(1, 100_000);
    client.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        let (header, data) = rig.receive();
        if header.op == op::CREDIT_REQUEST {
            let unread = received.len() as u32 - peer.forwarded;
            assert_eq!(
                unread, peer.buffer,
                "it was asked before its buffer was full"
            );
            rig.expect_nothing();
            // It takes out a part of it.
            peer.forwarded += if received.len() < 30_000 {
                3000
            } else {
                10_000
            };
            rig.send(peer.header(op::CREDIT_UPDATE), b"");
            continue;
        }
        assert_eq!(header.op, op::RW);
        received.extend(data);
        assert!(received.len() as u32 - peer.forwarded <= peer.buffer);
    }
    assert_eq!(received, bytes);
    rig.expect_nothing();
    // It has lied: there is none.
    peer.forwarded = u32::MAX;
    rig.send(peer.header(op::CREDIT_UPDATE), b"");
    client.write_all(b"x").unwrap();
    rig.expect(op::CREDIT_REQUEST);
    rig.expect_nothing();
}

/// A program that does not read costs nobody anything, and loses nothing.
#[test]
fn the_guest_may_send_what_it_was_granted() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    let bytes = pattern(2, 3 << 20);
    // What the guest knows of what was taken.
    let (mut sent, mut forwarded) = (0_usize, 0_u32);
    let mut received = Vec::new();
    while sent < bytes.len() {
        let credit = BUFFER - (sent as u32 - forwarded);
        let count = (credit as usize).min(60_000).min(bytes.len() - sent);
        if count > 0 {
            rig.send(peer.data(count), &bytes[sent..sent + count]);
            sent += count;
        }
        while let Some((header, _)) = rig.try_receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            forwarded = header.fwd_cnt;
        }
        if count == 0 {
            // Everything that is granted is sent: now something is read.
            let count = (sent - received.len()).min(100_000);
            received.extend(read(&mut client, count));
        }
    }
    let left = bytes.len() - received.len();
    received.extend(read(&mut client, left));
    assert!(received == bytes);
    assert_eq!(rig.driver.status(), 15);
}

#[test]
fn who_asks_for_credit_is_told() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    rig.send(peer.data(100), &[1; 100]);
    read(&mut client, 100);
    rig.expect_nothing();
    rig.send(peer.header(op::CREDIT_REQUEST), b"");
    let update = rig.expect(op::CREDIT_UPDATE);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (BUFFER, 100));
    rig.expect_nothing();
}

/// How a driver cuts packets is its own business, on both queues.
#[test]
fn packets_come_in_any_pieces() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    rig.driver.fill(TX_HEADER, &peer.data(1000).to_bytes());
    let bytes = pattern(3, 1000);
    // The end of the header and the beginning of the data are together.
    rig.driver.fill(TX_HEADER + 44, &bytes[..10]);
    rig.driver.fill(TX_DATA, &bytes[10..]);
    let pieces = [
        readable(TX_HEADER, 1),
        readable(TX_HEADER + 1, 0),
        readable(TX_HEADER + 1, 40),
        readable(TX_HEADER + 41, 13),
        readable(TX_DATA, 500),
        readable(TX_DATA + 500, 490),
    ];
    rig.driver.make_available(TX, 0, &pieces);
    rig.driver.kick(TX);
    rig.driver.wait_used(TX);
    assert_eq!(read(&mut client, 1000), bytes);

    // Buffers in pieces, after all others.
    rig.driver.start(0, RX_COUNT);
    rig.supply(31);
    rig.driver.kick(RX);
    let (mut client, peer) = rig.connect(1);
    client.write_all(&bytes).unwrap();
    let (_, first) = rig.receive();
    assert_eq!(first, bytes);
    // One buffer waits, and then this.
    let pieces = [
        writable(TX_DATA, 30),
        writable(TX_DATA + 100, 20),
        writable(TX_DATA + 200, 994),
    ];
    rig.driver.make_available(RX, 4, &pieces);
    rig.driver.kick(RX);
    client.write_all(b"x").unwrap();
    assert_eq!(rig.receive().1, b"x");
    client.write_all(&bytes).unwrap();
    assert_eq!(rig.driver.wait_used(RX), (4, 1044));
    let mut packet = rig.driver.bytes(TX_DATA, 30);
    packet.extend(rig.driver.bytes(TX_DATA + 100, 20));
    packet.extend(rig.driver.bytes(TX_DATA + 200, 994));
    assert_eq!(packet[HEADER..], bytes);
    let header = Header::from_bytes(packet.first_chunk().unwrap());
    assert_eq!((header.op, header.len), (op::RW, 1000));
    assert!(peer.owns(&header));
}

/// Ports of the host are another for each connection, and those of the guest may be the same.
#[test]
fn many_connections_at_once_keep_their_bytes() {
    let mut rig = Rig::new();
    let mut ends: Vec<_> = (0..100).map(|_| rig.connect(8)).collect();
    let ports: std::collections::BTreeSet<u32> =
        ends.iter().map(|(_, peer)| peer.host_port).collect();
    assert_eq!(ports.len(), 100);
    for (number, (client, _)) in ends.iter_mut().enumerate() {
        client.write_all(&[number as u8; 9]).unwrap();
    }
    for _ in 0..100 {
        let (header, data) = rig.receive();
        let number = ends
            .iter()
            .position(|(_, peer)| peer.owns(&header))
            .unwrap();
        assert_eq!(data, [number as u8; 9]);
        let peer = ends[number].1;
        rig.send(peer.data(9), &data);
    }
    for (number, (client, _)) in ends.iter_mut().enumerate() {
        assert_eq!(read(client, 9), [number as u8; 9]);
    }
}
