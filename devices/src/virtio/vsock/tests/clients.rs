//! Programs of the host that do what they should not: it costs them alone.
#![expect(unsafe_code, reason = "asks for more descriptors")]

use super::*;
use crate::virtio::vsock::{MOST_CONNECTIONS, MOST_HALF_OPEN};

/// Short, and yet long enough for a busy machine.
const SHORT: Duration = Duration::from_millis(300);

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

fn impatient() -> Rig {
    Rig::with_patience(Patience {
        half_open: SHORT,
        linger: LONG,
    })
}

#[test]
fn what_is_no_request_is_hung_up_on() {
    let mut rig = Rig::new();
    for line in [
        "HELLO\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "\n",
        "CONNECT                        1\n",
        "a line that does not come to an end",
    ] {
        let mut client = rig.client();
        client.write_all(line.as_bytes()).unwrap();
        assert!(has_ended(&mut client), "{line:?}");
    }
    // Gone before anything was said, or in the middle of it.
    drop(rig.client());
    let mut client = rig.client();
    client.write_all(b"CONN").unwrap();
    drop(client);
    rig.expect_nothing();
    rig.check();
}

#[test]
fn who_says_nothing_is_hung_up_on() {
    let mut rig = impatient();
    let (mut other, peer) = rig.connect(1);
    let start = Instant::now();
    let mut silent = rig.client();
    let mut slow = rig.client();
    slow.write_all(b"CONNECT 1").unwrap();
    assert!(has_ended(&mut silent));
    assert!(has_ended(&mut slow));
    assert!(start.elapsed() >= SHORT);
    // Who is connected may be silent.
    rig.send(peer.data(1), b"x");
    assert_eq!(read(&mut other, 1), b"x");
    rig.check();
}

#[test]
fn a_guest_that_does_not_answer_is_not_waited_for() {
    let mut rig = impatient();
    let mut client = rig.ask(1);
    let peer = Peer::of(&rig.expect(op::REQUEST));
    assert!(has_ended(&mut client));
    assert!(peer.owns(&rig.expect(op::RST)));
    // Now it is too late.
    rig.send(peer.header(op::RESPONSE), b"");
    assert!(peer.owns(&rig.expect(op::RST)));
    // Nor one that gives no buffers: it never hears of it.
    rig.driver.start(0, RX_COUNT);
    let mut client = rig.ask(1);
    assert!(has_ended(&mut client));
    rig.supply(0);
    rig.driver.kick(RX);
    rig.expect_nothing();
}

#[test]
fn who_leaves_before_the_guest_accepts_leaves_nothing() {
    let mut rig = Rig::new();
    let client = rig.ask(1);
    let peer = Peer::of(&rig.expect(op::REQUEST));
    drop(client);
    assert!(peer.owns(&rig.expect(op::RST)));
    rig.check();
}

/// A guest that does not say that it has noticed the end of a connection.
#[test]
fn ends_are_not_waited_for_for_ever() {
    let mut rig = Rig::with_patience(Patience {
        half_open: LONG,
        linger: SHORT,
    });
    let (client, peer) = rig.connect(1);
    drop(client);
    assert_eq!(rig.expect(op::SHUTDOWN).flags, shutdown::BOTH);
    assert!(peer.owns(&rig.expect(op::RST)));
    rig.check();
}

#[test]
fn what_is_sent_behind_an_end_is_for_nobody() {
    let mut rig = Rig::with_patience(Patience {
        half_open: LONG,
        linger: LONG,
    });
    let (client, peer) = rig.connect(1);
    drop(client);
    assert_eq!(rig.expect(op::SHUTDOWN).flags, shutdown::BOTH);
    rig.send(peer.data(100), &[0; 100]);
    rig.expect_nothing();
    rig.send(peer.header(op::RST), b"");
    rig.check();
}

/// One that never reads, and one that never stops writing.
#[test]
fn others_go_on_beside_those_who_do_not_read() {
    let mut rig = Rig::new();
    let (_deaf, deaf) = rig.connect(1);
    rig.exhaust(&deaf);
    let (mut other, other_peer) = rig.connect(3);
    let (mut loud, mut peer) = rig.connect(2);
    let writer = thread::spawn(move || while loud.write_all(&[7; 10_000]).is_ok() {});
    for round in 0..20_u8 {
        other.write_all(&[round; 3]).unwrap();
        loop {
            let (header, data) = rig.receive();
            if other_peer.owns(&header) {
                assert_eq!(data, [round; 3]);
                break;
            }
            if peer.owns(&header) {
                peer.forwarded = peer.forwarded.wrapping_add(header.len);
                rig.send(peer.header(op::CREDIT_UPDATE), b"");
            }
        }
        rig.send(other_peer.data(1), &[round]);
        assert_eq!(read(&mut other, 1), [round]);
    }
    rig.send(peer.header(op::RST), b"");
    writer.join().unwrap();
}

/// Those that are not accepted yet are so many at most; more wait until there is room.
#[test]
fn there_are_so_many_half_open_connections_at_most() {
    let mut rig = Rig::new();
    let mut silent: Vec<_> = (0..MOST_HALF_OPEN).map(|_| rig.client()).collect();
    let mut waiting = rig.ask(1);
    rig.expect_nothing();
    // One of them goes, and there is room for who waited.
    silent.pop();
    let peer = Peer::of(&rig.expect(op::REQUEST));
    // The guest itself is not concerned.
    let listener = rig.listen(52);
    let _accepted = rig.connect_to(&listener, 5000, 52);
    // That one is accepted, and so there is room for another.
    let mut another = rig.ask(2);
    rig.expect_nothing();
    rig.send(peer.header(op::RESPONSE), b"");
    let answer = format!("OK {}\n", peer.host_port);
    assert_eq!(read(&mut waiting, answer.len()), answer.as_bytes());
    let peer = Peer::of(&rig.expect(op::REQUEST));
    rig.send(peer.header(op::RST), b"");
    assert!(has_ended(&mut another));
}

/// Room that is made by a guest that refuses is room for the next one at once.
#[test]
fn who_waits_is_accepted_as_soon_as_there_is_room() {
    let mut rig = Rig::new();
    let asking: Vec<_> = (0..MOST_HALF_OPEN).map(|_| rig.ask(1)).collect();
    let peers: Vec<_> = asking
        .iter()
        .map(|_| Peer::of(&rig.expect(op::REQUEST)))
        .collect();
    let _waiting: Vec<_> = (0..10).map(|_| rig.ask(2)).collect();
    rig.expect_nothing();
    for peer in &peers[..10] {
        rig.send(peer.header(op::RST), b"");
        assert_eq!(rig.expect(op::REQUEST).dst_port, 2);
    }
    rig.expect_nothing();
}

/// Lets this process have descriptors, as far as it may.
fn allow_descriptors(count: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes a limit.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(asked, 0);
    let most = limit.rlim_max;
    assert!(
        most >= count,
        "this machine allows {most} of {count} descriptors"
    );
    limit.rlim_cur = limit.rlim_cur.max(count);
    // SAFETY: the kernel reads a limit.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(set, 0);
}

#[test]
fn there_are_1023_connections_and_not_one_more() {
    // Both ends of each are here.
    allow_descriptors(4 * MOST_CONNECTIONS as u64);
    let mut rig = Rig::new();
    let listener = rig.listen(52);
    let mut ends: Vec<_> = (0..1000).map(|_| rig.connect(1)).collect();
    let guests = (5000..).take(MOST_CONNECTIONS - ends.len());
    for guest_port in guests {
        ends.push(rig.connect_to(&listener, guest_port, 52));
    }
    let mut client = rig.ask(1);
    assert!(has_ended(&mut client));
    let peer = Peer {
        guest_port: 4999,
        host_port: 52,
        ..Peer::default()
    };
    rig.send(peer.header(op::REQUEST), b"");
    assert!(peer.owns(&rig.expect(op::RST)));
    rig.expect_nothing();
    for (number, (stream, peer)) in ends.iter_mut().enumerate() {
        let bytes = (number as u32).to_le_bytes();
        rig.send(peer.data(4), &bytes);
        assert_eq!(read(stream, 4), bytes);
    }
    // One ends, and there is room for one.
    let (stream, peer) = ends.pop().unwrap();
    drop(stream);
    rig.expect(op::SHUTDOWN);
    let mut client = rig.ask(1);
    assert!(
        has_ended(&mut client),
        "its ports are free before the guest has said so"
    );
    rig.send(peer.header(op::RST), b"");
    rig.check();
}
