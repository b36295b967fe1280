//! What a client may not do, and that it harms nobody else.

use std::io::{Read, Write};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::{BIG, Client, LONG, Limits, Running};

const GET: &[u8] = b"GET /a HTTP/1.1\r\n\r\n";

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Waits until another client is served.
fn wait_for_room(running: &Running) {
    let start = Instant::now();
    loop {
        match running.ask("GET /a HTTP/1.1\r\n\r\n").status {
            200 => return,
            status => assert_eq!(status, 503),
        }
        assert!(start.elapsed() < LONG);
        sleep(ms(20));
    }
}

#[test]
fn headers_are_limited() {
    let running = Running::start(Limits::default());
    // The empty line is among the 16 KiB.
    let beginning = "GET /a HTTP/1.1\r\nX: ";
    let room = (16 << 10) - beginning.len() - 4;
    let fits = format!("{beginning}{}\r\n\r\n", "x".repeat(room));
    assert_eq!(running.ask(&fits).text(), "GET /a ");
    let too_long = format!("{beginning}{}\r\n\r\n", "x".repeat(room + 1));
    running.ask(&too_long).assert_refused(431, "16384 bytes");
    // One that never ends.
    running
        .ask(&format!("GET /{}", "x".repeat(1 << 17)))
        .assert_refused(431, "16384 bytes");
    running
        .ask(&"\r\n".repeat(1 << 13).replacen("\r\n", "\r\nGET", 1))
        .assert_refused(400, "");

    let fields = |count| format!("GET /a HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(count));
    assert_eq!(running.ask(&fields(100)).text(), "GET /a ");
    running
        .ask(&fields(101))
        .assert_refused(431, "100 header fields");

    let trailer = format!(
        "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}",
        "X: y\r\n".repeat(1 << 12)
    );
    running.ask(&trailer).assert_refused(400, "too long");
}

#[test]
fn bodies_are_limited_without_being_read() {
    let running = Running::start(Limits {
        linger: LONG,
        ..Limits::default()
    });
    let length = BIG + 1;
    let announced = format!("PUT /a HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
    running.ask(&announced).assert_refused(413, "4194304 bytes");
    let chunk = format!("PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
    running.ask(&chunk).assert_refused(413, "4194304 bytes");

    // Chunks that are too long together.
    let mut client = running.connect();
    client.send(b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..4 {
        client.send(format!("{:x}\r\n{}\r\n", BIG / 4, "x".repeat(BIG / 4)).as_bytes());
    }
    client.send(b"1\r\n");
    client.answer().assert_refused(413, "4194304 bytes");

    // A client that sends first and reads afterwards can do so, and finds the answer.
    let mut client = running.connect();
    client.send(announced.as_bytes());
    client.send(&vec![b'x'; length]);
    client.answer().assert_refused(413, "4194304 bytes");
}

/// Memory follows what has come: there is none for what is announced here.
#[test]
fn nothing_is_allocated_for_announcements() {
    let running = Running::start(Limits {
        body: usize::MAX,
        ..Limits::default()
    });
    for request in [
        format!("PUT /a HTTP/1.1\r\nContent-Length: {}\r\n\r\nx", i64::MAX),
        format!(
            "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\nx",
            i64::MAX >> 4
        ),
    ] {
        let mut client = running.connect();
        client.send(request.as_bytes());
        client.finish_sending();
        client.answer().assert_refused(400, "not complete");
    }
}

#[test]
fn a_request_has_to_be_complete_in_time() {
    let running = Running::start(Limits {
        request: ms(300),
        ..Limits::default()
    });
    for beginning in [
        "G",
        "GET /a HTTP/1.1\r\nX: y\r\n",
        "PUT /a HTTP/1.1\r\nContent-Length: 4\r\n\r\nbod",
        "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n",
    ] {
        let start = Instant::now();
        let mut client = running.connect();
        client.send(beginning.as_bytes());
        client.answer().assert_refused(408, "0.3 s");
        assert!(start.elapsed() >= ms(300));
        assert!(client.is_closed());
    }
    // There is always something, and never all. Chunks of one byte take long to reach the limit of a
    // body.
    let mut client = running.connect();
    client.send(b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut writer = client.0.try_clone().unwrap();
    let chunks = b"1\r\nx\r\n".repeat(1000);
    let start = Instant::now();
    let flood = thread::spawn(
        move || {
            while start.elapsed() < LONG && writer.write_all(&chunks).is_ok() {}
        },
    );
    client.answer().assert_refused(408, "0.3 s");
    // It may go on for a moment, to read the answer, but not for ever.
    flood.join().unwrap();
    assert!(start.elapsed() < LONG);
}

#[test]
fn waiting_for_a_request_takes_as_long_as_it_takes() {
    let running = Running::start(Limits {
        request: ms(500),
        ..Limits::default()
    });
    let mut client = running.connect();
    sleep(ms(700));
    client.send(GET);
    assert_eq!(client.answer().text(), "GET /a ");
    sleep(ms(700));
    client.send(GET);
    assert_eq!(client.answer().text(), "GET /a ");
}

#[test]
fn slow_readers_get_all_of_a_large_answer() {
    let running = Running::start(Limits {
        write: ms(800),
        ..Limits::default()
    });
    // Slow enough that there is room to write only after several times the limit.
    let mut client = running.connect();
    client.send(b"GET /half-big HTTP/1.1\r\nConnection: close\r\n\r\n");
    let mut body = Vec::new();
    loop {
        let mut piece = [0; 4096];
        match client.0.read(&mut piece).unwrap() {
            0 => break,
            count => body.extend_from_slice(&piece[..count]),
        }
        sleep(ms(30));
    }
    assert!(body.ends_with(&vec![b'x'; BIG / 8]));

    let mut client = running.connect();
    client.send(b"GET /big HTTP/1.1\r\n\r\n");
    client.head();
    let mut read = 0;
    while read < BIG {
        let mut piece = vec![0; 64 << 10];
        read += client.0.read(&mut piece).unwrap();
        sleep(ms(5));
    }
    client.send(GET);
    assert_eq!(client.answer().text(), "GET /a ");
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    let running = Running::start(Limits {
        write: ms(100),
        connections: 1,
        ..Limits::default()
    });
    let mut client = running.connect();
    client.send(b"GET /big HTTP/1.1\r\n\r\n");
    // There is room for another client only once this one is gone.
    wait_for_room(&running);
    let mut rest = Vec::new();
    let _ = client.0.read_to_end(&mut rest);
    assert!(rest.len() < BIG);
}

#[test]
fn clients_that_are_silent_or_slow_block_nobody() {
    let running = Running::start(Limits::default());
    let mut others: Vec<Client> = (0..60).map(|_| running.connect()).collect();
    for (index, client) in others.iter_mut().enumerate() {
        match index % 4 {
            0 => {}
            1 => client.send(b"GET"),
            2 => client.send(b"PUT /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nbo"),
            _ => client.send(b"GET /big HTTP/1.1\r\n\r\n"),
        }
    }
    assert_eq!(running.ask("GET /a HTTP/1.1\r\n\r\n").text(), "GET /a ");
}

#[test]
fn many_clients_are_served_at_once() {
    let running = Running::start(Limits::default());
    let mut clients: Vec<_> = (0..64).map(|_| running.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /wait HTTP/1.1\r\n\r\n");
    }
    running.service.gate.wait_for(64);
    running.service.gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().text(), "\"waited\"");
    }
}

#[test]
fn idle_connections_give_way_the_oldest_first() {
    let running = Running::start(Limits {
        connections: 3,
        ..Limits::default()
    });
    let mut clients: Vec<_> = (0..3).map(|_| running.connect()).collect();
    for client in &mut clients {
        client.send(GET);
        client.answer();
        sleep(ms(20));
    }
    // The first one is not the oldest any more.
    clients[0].send(GET);
    clients[0].answer();
    sleep(ms(20));
    assert_eq!(running.ask("GET /a HTTP/1.1\r\n\r\n").text(), "GET /a ");
    assert!(clients[1].is_closed());
    for index in [0, 2] {
        clients[index].send(GET);
        assert_eq!(clients[index].answer().text(), "GET /a ");
    }
}

#[test]
fn connections_beyond_the_limit_are_told() {
    let running = Running::start(Limits {
        linger: LONG,
        connections: 2,
        ..Limits::default()
    });
    let mut clients: Vec<_> = (0..2).map(|_| running.connect()).collect();
    for client in &mut clients {
        client.send(b"GET /wait HTTP/1.1\r\n\r\n");
    }
    running.service.gate.wait_for(2);
    // More than are kept until they have read it.
    for _ in 0..40 {
        let mut refused = running.connect();
        refused.send(GET);
        refused.answer().assert_refused(503, "too many connections");
        assert!(refused.is_closed());
    }
    running.service.gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    wait_for_room(&running);
}

#[test]
fn connections_come_and_go() {
    let running = Running::start(Limits {
        connections: 4,
        ..Limits::default()
    });
    for _ in 0..200 {
        assert_eq!(running.ask("GET /a HTTP/1.1\r\n\r\n").text(), "GET /a ");
    }
}
