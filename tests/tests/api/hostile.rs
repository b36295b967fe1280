//! Clients that are broken, slow, or mean no good.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::api::{ApiServer, request};
use tests::usage;
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use crate::{machine, server};

/// A request whose answer is long: a virtual machine with a long command line, described.
fn with_a_long_answer(bytes: usize) -> ApiServer {
    let server = server(&[]);
    let mut body = machine(&server, "listen");
    body["payload"]["cmdline"] = json!("x".repeat(bytes));
    server.put("vm.create", &body).expect(204);
    server
}

#[test]
fn pieces_with_pauses_make_a_request() {
    let server = server(&[]);
    let mut connection = server.connect();
    let body = machine(&server, "listen").to_string();
    let text = request("PUT", "vm.create", Some(&body));
    let (headers, body) = text.split_once("\r\n\r\n").unwrap();
    for piece in [
        &headers[..7],
        &headers[7..],
        "\r\n",
        "\r\n",
        &body[..9],
        &body[9..],
    ] {
        connection.stream().write_all(piece.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(60));
    }
    connection.answer().expect(204);
    // The connection is as good as new.
    connection.request("GET", "vm.info", None).expect(200);
}

#[test]
fn a_half_closed_connection_gets_its_answer() {
    let server = with_a_long_answer(1000);
    let mut connection = server.connect();
    let text = request("GET", "vm.info", None);
    connection.stream().write_all(text.as_bytes()).unwrap();
    connection.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(connection.answer().expect(200).json()["state"], "Created");
    assert!(connection.is_closed());
}

/// The longest body that is taken makes an answer that no socket's buffer has room for.
#[test]
fn a_long_answer_reaches_a_slow_reader_whole() {
    let length = (4 << 20) - 1000;
    let server = with_a_long_answer(length);
    let mut slow = server.connect();
    let text = request("GET", "vm.info", None);
    slow.stream().write_all(text.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(500));
    // Nobody else waits for the slow one.
    let start = Instant::now();
    server.get("vmm.ping").expect(200);
    assert!(start.elapsed() < Duration::from_secs(5));
    let info = slow.answer().expect(200).json();
    let cmdline = info["config"]["payload"]["cmdline"].as_str().unwrap();
    assert_eq!(cmdline.len(), length);
}

#[test]
fn what_is_too_long_is_refused() {
    let server = server(&[]);
    let mut connection = server.connect();
    let header = "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n";
    connection.stream().write_all(header.as_bytes()).unwrap();
    let refused = connection.answer().expect(413);
    assert!(!refused.reasons().is_empty());
    let mut connection = server.connect();
    let header = format!(
        "GET /api/v1/vmm.ping HTTP/1.1\r\nX: {}\r\n",
        "x".repeat(100_000)
    );
    // It may hang up before it has all.
    let _ = connection.stream().write_all(header.as_bytes());
    connection.answer().expect(431);
    server.get("vmm.ping").expect(200);
}

#[test]
fn garbage_is_refused_and_closed() {
    let server = server(&[]);
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"\xff\xff\xff\xff\r\n\r\n",
        b"PUT\r\n\r\n",
        b"GET /api/v1/vmm.ping HTTP/9.9\r\n\r\n",
        b"GET /api/v1/vmm.ping HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /api/v1/vmm.ping HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ] {
        let mut connection = server.connect();
        connection.stream().write_all(garbage).unwrap();
        connection.answer().expect(400);
        assert!(connection.is_closed(), "{garbage:?}");
    }
    server.get("vmm.ping").expect(200);
}

/// Clients that begin a request and leave, in every way, leave nothing behind.
#[test]
fn who_leaves_in_the_middle_is_forgotten() {
    let server = server(&[]);
    server.get("vmm.ping").expect(200);
    let before = usage(server.pid()).unwrap();
    let body = machine(&server, "listen").to_string();
    let text = request("PUT", "vm.create", Some(&body));
    for end in (0..text.len()).step_by(7) {
        let mut connection = server.connect();
        connection
            .stream()
            .write_all(&text.as_bytes()[..end])
            .unwrap();
    }
    // None of them was carried out.
    server.get("vm.info").expect(404);
    let start = Instant::now();
    loop {
        let now = usage(server.pid()).unwrap();
        if (now.threads, now.descriptors) <= (before.threads, before.descriptors) {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{before:?} {now:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// As many silent clients as there is room for, and more: they give way to who has something to say.
#[test]
fn silent_clients_keep_nobody_out() {
    let server = server(&[]);
    let silent: Vec<_> = (0..300).map(|_| server.connect()).collect();
    for _ in 0..20 {
        server.get("vmm.ping").expect(200);
    }
    drop(silent);
}

#[test]
fn descriptors_that_nobody_asked_for_are_refused_and_closed() {
    let server = server(&[]);
    server.get("vmm.ping").expect(200);
    let before = usage(server.pid()).unwrap().descriptors;
    let null = std::fs::File::open("/dev/null").unwrap();
    for round in 0..50 {
        let mut connection = server.connect();
        let text = request("GET", "vmm.ping", None);
        let descriptors = vec![null.as_raw_fd(); 1 + round % 8];
        let stream = connection.stream();
        stream
            .send_with_fds(&[text.as_bytes()], &descriptors)
            .unwrap();
        let reason = connection.answer().expect(400).reasons().concat();
        assert!(reason.contains("descriptors"), "{reason}");
    }
    let start = Instant::now();
    while usage(server.pid()).unwrap().descriptors > before {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "descriptors stay open"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_socket_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = server(&[]);
    let mode = std::fs::metadata(server.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A VMM that ends closes what is open, so that nobody waits for it.
#[test]
fn clients_that_wait_see_the_end() {
    let mut server = server(&[]);
    let mut idle = server.connect();
    idle.request("GET", "vmm.ping", None).expect(200);
    let mut begun = server.connect();
    begun
        .stream()
        .write_all(b"PUT /api/v1/vm.create HTTP/1.1\r\n")
        .unwrap();
    let start = Instant::now();
    server.act("vmm.shutdown").expect(204);
    assert_eq!(server.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(idle.is_closed());
    let mut rest = Vec::new();
    match begun.stream().read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}
