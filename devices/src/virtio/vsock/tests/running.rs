//! Pauses and resets.

use super::*;

#[test]
fn nothing_moves_while_it_is_paused() {
    let mut rig = Rig::new();
    let (mut client, peer) = rig.connect(1);
    for round in 0..20_u8 {
        rig.driver.function.pause();
        client.write_all(&[round]).unwrap();
        rig.offer(peer.data(1), &[round ^ 0xff]);
        let mut asking = rig.ask(2);
        rig.expect_nothing();
        assert_eq!(rig.driver.take_used(TX), None);
        rig.driver.function.resume();
        rig.driver.wait_used(TX);
        assert_eq!(read(&mut client, 1), [round ^ 0xff]);
        let mut is_asked = false;
        for _ in 0..2 {
            let (header, data) = rig.receive();
            if header.op == op::REQUEST {
                rig.send(Peer::of(&header).header(op::RST), b"");
                is_asked = true;
            } else {
                assert_eq!(data, [round]);
            }
        }
        assert!(is_asked && has_ended(&mut asking));
    }
}

/// A pause is not the client's fault.
#[test]
fn pauses_do_not_count() {
    let patience = Duration::from_millis(400);
    let mut rig = Rig::with_patience(Patience {
        half_open: patience,
        linger: NEVER,
    });
    let mut client = rig.client();
    // It is accepted.
    thread::sleep(patience / 4);
    rig.driver.function.pause();
    thread::sleep(patience * 2);
    rig.driver.function.resume();
    client.write_all(b"CONNECT 1\n").unwrap();
    rig.expect(op::REQUEST);
}

/// Connections end with a reset, in whatever stage they are; the socket is listened on all the time.
#[test]
fn a_reset_ends_all_connections() {
    let mut rig = Rig::new();
    for round in 0..10 {
        let listener = rig.listen(52);
        let (mut server, _) = rig.connect_to(&listener, 5000, 52);
        let (mut client, peer) = rig.connect(1);
        let mut asking = rig.ask(2);
        rig.expect(op::REQUEST);
        let mut silent = rig.client();
        // In the middle of a transfer both ways.
        let bytes = pattern(round, 100_000);
        client.write_all(&bytes).unwrap();
        rig.send(peer.data(60_000), &bytes[..60_000]);
        rig.offer(peer.data(60_000), &bytes[..60_000]);
        // A busy thread may not have accepted this one before.
        thread::sleep(Duration::from_millis(5));
        rig.driver.set_status(0);
        rig.driver.fill(RX_BUFFERS, &[0xee; 0x1_0000]);
        let mut received = Vec::new();
        let _ = client.read_to_end(&mut received);
        assert!(received.len() <= 120_000);
        for stream in [&mut server, &mut asking, &mut silent] {
            assert!(has_ended(stream));
        }
        assert_eq!(rig.driver.bytes(RX_BUFFERS, 0x1_0000), [0xee; 0x1_0000]);
        // Who comes meanwhile waits for the next driver.
        let early = rig.ask(3);
        rig.start();
        let peer = Peer::of(&rig.expect(op::REQUEST));
        assert_eq!(peer.guest_port, 3);
        // Nothing of before is known.
        rig.send(peer.header(op::RST), b"");
        rig.check();
        drop((early, listener));
        std::fs::remove_file(rig.folder.path().join("vsock_52")).unwrap();
    }
}

/// As the machine does it when memory of a device goes: it waits for those who use it, and not for ever.
#[test]
fn memory_can_go_while_connections_stay() {
    let mut rig = Rig::new();
    let (_client, peer) = rig.connect(1);
    // Some of it waits for the client to read.
    rig.exhaust(&peer);
    let memory = Arc::downgrade(&rig.driver.ram.memory.get());
    wait("a packet keeps guest memory", || memory.strong_count() <= 1);
}

/// A driver may leave queues out.
#[test]
fn queues_that_a_driver_does_not_use_are_not_served() {
    let mut rig = Rig::new();
    rig.driver.set_status(0);
    for status in [1, 3] {
        rig.driver.set_status(status);
    }
    let offered = rig.driver.offered();
    rig.driver.accept(offered);
    rig.driver.set_status(11);
    rig.driver.set_status(15);
    let mut client = rig.ask(1);
    rig.driver.kick(RX);
    rig.driver.kick(TX);
    thread::sleep(Duration::from_millis(30));
    assert_eq!(rig.driver.status(), 15);
    rig.start();
    assert!(has_ended(&mut client));
    rig.check();
}

/// Events may be waited for.
#[test]
fn buffers_for_events_are_accepted() {
    let mut rig = Rig::new();
    rig.driver.make_available(2, 0, &[writable(TX_DATA, 8)]);
    rig.driver.kick(2);
    rig.check();
    assert_eq!(rig.driver.take_used(2), None);
}
