//! The end of a server.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::super::sys;
use super::{LONG, Limits, Running};

/// Stops the server and returns how long it took.
fn stop(running: &mut Running) -> Duration {
    let start = Instant::now();
    drop(running.server.take());
    start.elapsed()
}

#[test]
fn idle_connections_do_not_keep_it() {
    let limits = Limits {
        drain: LONG,
        ..Limits::default()
    };
    let mut running = Running::start(limits);
    let mut new = running.connect();
    let mut used = running.connect();
    used.send(b"GET /a HTTP/1.1\r\n\r\n");
    used.answer();
    let mut half = running.connect();
    half.send(b"GET /a");
    // It has begun.
    while sys::unread(&half.0).unwrap() > 0 {
        thread::yield_now();
    }
    assert!(stop(&mut running) < LONG / 2);
    assert!(new.is_closed());
    assert!(used.is_closed());
    half.answer().assert_refused(503, "stops");
    assert!(!running.path.exists());
    assert!(UnixStream::connect(&running.path).is_err());
}

#[test]
fn answers_under_way_are_finished() {
    let mut running = Running::start(Limits {
        drain: LONG,
        ..Limits::default()
    });
    let mut waiting = running.connect();
    waiting.send(b"GET /wait HTTP/1.1\r\n\r\n");
    let mut reading = running.connect();
    reading.send(b"GET /big HTTP/1.1\r\n\r\n");
    reading.head();
    running.service.gate.wait_for(1);
    let service = running.service.clone();
    let path = running.path.clone();
    let server = running.server.take();
    let stopper = thread::spawn(move || drop(server));
    // Nothing new is accepted any more, and then the service gets on.
    let start = Instant::now();
    while path.exists() {
        assert!(start.elapsed() < LONG);
        thread::yield_now();
    }
    assert!(!stopper.is_finished());
    service.gate.open();
    let answer = waiting.answer();
    assert_eq!(answer.text(), "\"waited\"");
    assert!(answer.closes());
    assert!(waiting.is_closed());
    let mut body = vec![0; super::BIG];
    std::io::Read::read_exact(&mut reading.0, &mut body).unwrap();
    assert!(reading.is_closed());
    stopper.join().unwrap();
}

#[test]
fn nothing_keeps_it_for_ever() {
    let mut running = Running::start(Limits {
        drain: Duration::from_millis(200),
        linger: Duration::from_millis(200),
        write: LONG,
        ..Limits::default()
    });
    let mut stuck = running.connect();
    stuck.send(b"GET /wait HTTP/1.1\r\n\r\n");
    let mut deaf = running.connect();
    deaf.send(b"GET /big HTTP/1.1\r\n\r\n");
    deaf.head();
    running.service.gate.wait_for(1);
    let took = stop(&mut running);
    assert!(
        took >= Duration::from_millis(200) && took < LONG / 2,
        "{took:?}"
    );
    assert!(stuck.is_closed());
    running.service.gate.open();
}
