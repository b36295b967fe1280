//! What goes over a connection.

use std::thread::sleep;
use std::time::Duration;

use super::{BIG, Limits, Running};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn answers_have_the_right_form() {
    let running = Running::start(Limits::default());
    let answer = running.ask("GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(answer.status_line, "HTTP/1.1 200 OK");
    assert_eq!(answer.text(), "GET /a ");
    assert_eq!(answer.fields["server"], "Cloud Hypervisor API");
    assert_eq!(answer.fields["content-type"], "application/json");
    assert_eq!(answer.fields["content-length"], "7");
    assert!(!answer.fields.contains_key("connection"));

    for path in ["/empty", "/empty-with-body"] {
        let mut client = running.connect();
        client.send(format!("PUT {path} HTTP/1.1\r\n\r\n").as_bytes());
        let answer = client.answer();
        assert_eq!(answer.status_line, "HTTP/1.1 204 No Content");
        assert!(!answer.fields.contains_key("content-length"));
        assert!(!answer.fields.contains_key("content-type"));
        // Nothing is left over that would be taken for the next answer.
        client.send(GET);
        assert_eq!(client.answer().text(), "GET /a ");
    }

    let answer = running.ask("PUT /nothing HTTP/1.1\r\n\r\n");
    assert_eq!(answer.fields["content-length"], "0");
    assert!(!answer.fields.contains_key("content-type"));

    let answer = running.ask("POST /not-allowed HTTP/1.1\r\n\r\n");
    assert_eq!(answer.status_line, "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(answer.fields["allow"], "GET, PATCH");
    assert!(!answer.closes());
}

#[test]
fn every_status_has_its_phrase() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    for (status, phrase) in [
        (200, "OK"),
        (400, "Bad Request"),
        (404, "Not Found"),
        (405, "Method Not Allowed"),
        (408, "Request Timeout"),
        (409, "Conflict"),
        (411, "Length Required"),
        (413, "Content Too Large"),
        (429, "Too Many Requests"),
        (431, "Request Header Fields Too Large"),
        (500, "Internal Server Error"),
        (501, "Not Implemented"),
        (503, "Service Unavailable"),
        (599, ""),
    ] {
        client.send(format!("GET /status/{status} HTTP/1.1\r\n\r\n").as_bytes());
        let answer = client.answer();
        assert_eq!(answer.status_line, format!("HTTP/1.1 {status} {phrase}"));
        // An error of the service's is no reason to close.
        assert!(!answer.closes());
    }
}

#[test]
fn targets_become_paths() {
    let running = Running::start(Limits::default());
    for (target, path) in [
        ("/a/b?c=d", "/a/b"),
        ("/a?b?c", "/a"),
        ("http://localhost/a?b", "/a"),
        ("http://localhost", "/"),
        ("http://localhost?/a", "/"),
        ("/a?b=http://c/d", "/a"),
        ("/a//b/../c%20d", "/a//b/../c%20d"),
        ("*", "*"),
    ] {
        let answer = running.ask(&format!("GET {target} HTTP/1.1\r\n\r\n"));
        assert_eq!(answer.text(), format!("GET {path} "));
    }
}

#[test]
fn other_methods_reach_the_service() {
    let running = Running::start(Limits::default());
    for method in ["DELETE", "PATCH", "get", "X-y!"] {
        let answer = running.ask(&format!("{method} /a HTTP/1.1\r\n\r\n"));
        assert_eq!(answer.text(), format!("{method} /a "));
    }
}

#[test]
fn head_is_told_of_a_body_and_gets_none() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(b"HEAD /a HTTP/1.1\r\n\r\n");
    let answer = client.answer_to_head();
    assert_eq!(answer.fields["content-length"], "8");
    client.send(GET);
    assert_eq!(client.answer().text(), "GET /a ");
}

#[test]
fn a_connection_serves_many_requests_in_order() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    for round in 0..3 {
        client.send(format!("PUT /{round} HTTP/1.1\r\nContent-Length: 2\r\n\r\nab").as_bytes());
        assert_eq!(client.answer().text(), format!("PUT /{round} ab"));
        sleep(Duration::from_millis(10));
    }
    let mut pipelined = String::new();
    for round in 0..100 {
        // Empty lines before a request are skipped: RFC 9112, section 2.2.
        pipelined += &format!("GET /{round} HTTP/1.1\r\n\r\n");
        pipelined += &format!("PUT /{round} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{round:02}\r\n");
    }
    client.send(pipelined.as_bytes());
    for round in 0..100 {
        assert_eq!(client.answer().text(), format!("GET /{round} "));
        assert_eq!(client.answer().text(), format!("PUT /{round} {round:02}"));
    }
}

#[test]
fn clients_say_whether_a_connection_stays() {
    let running = Running::start(Limits::default());
    for (version, field, answered) in [
        ("1.1", "Connection: close", Some("close")),
        ("1.1", "connection: Foo, CLOSE", Some("close")),
        ("1.1", "Connection: keep-alive", None),
        ("1.1", "X: close", None),
        ("1.0", "X: y", Some("close")),
        ("1.0", "Connection: Keep-Alive", Some("keep-alive")),
        (
            "1.0",
            "Connection: keep-alive\r\nConnection: close",
            Some("close"),
        ),
    ] {
        let mut client = running.connect();
        // The second request is there already, and is not answered if the first was the last.
        let request = format!("GET /a HTTP/{version}\r\n{field}\r\n\r\n");
        client.send(request.repeat(2).as_bytes());
        let answer = client.answer();
        assert_eq!(answer.text(), "GET /a ");
        let connection = answer.fields.get("connection").map(String::as_str);
        assert_eq!(connection, answered, "{request}");
        if answered == Some("close") {
            assert!(client.is_closed(), "{request}");
        } else {
            assert_eq!(client.answer().text(), "GET /a ");
        }
    }
}

#[test]
fn a_client_that_waits_for_permission_gets_it() {
    let running = Running::start(Limits::default());
    for length in ["Content-Length: 4", "Transfer-Encoding: chunked"] {
        let mut client = running.connect();
        client.send(
            format!("PUT /a HTTP/1.1\r\nExpect: 100-Continue\r\n{length}\r\n\r\n").as_bytes(),
        );
        assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
        client.send(match length {
            "Content-Length: 4" => b"body",
            _ => b"4\r\nbody\r\n0\r\n\r\n",
        });
        assert_eq!(client.answer().text(), "PUT /a body");
    }
    for request in [
        // There is no body to permit.
        "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
        // HTTP/1.0 does not know of it.
        "PUT /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    ] {
        assert_eq!(running.ask(request).text(), "PUT /a ");
    }
    // A body that is not wanted is not asked for.
    let refused = "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n";
    running.ask(refused).assert_refused(413, "4194304 bytes");
}

#[test]
fn chunks_make_a_body() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(
        b"PUT /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n\
          3\r\nabc\r\n00A;x=y\r\n0123456789\r\n0\r\nTrailer: of no use\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
    );
    assert_eq!(client.answer().text(), "PUT /a abc0123456789");
    assert_eq!(client.answer().text(), "GET /b ");

    for (chunks, reason) in [
        ("x\r\n", "length of a chunk"),
        ("-1\r\n", "length of a chunk"),
        ("\r\n", "length of a chunk"),
        ("1ffffffffffffffff\r\n", "length of a chunk"),
        ("1\r\nabc\r\n", "longer than it says"),
        (&"0".repeat(300), "too long"),
    ] {
        let request = format!("PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        running.ask(&request).assert_refused(400, reason);
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let running = Running::start(Limits::default());
    for (fields, status, reason) in [
        ("Content-Length: 1\r\nContent-Length: 2", 400, "twice"),
        ("Content-Length: 1, 2", 400, "twice"),
        ("Content-Length: +1", 400, "not a number"),
        ("Content-Length: -1", 400, "not a number"),
        ("Content-Length: 0x1", 400, "not a number"),
        ("Content-Length:", 400, "not a number"),
        ("Content-Length: 99999999999999999999999", 413, "bytes"),
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            400,
            "neither",
        ),
        ("Transfer-Encoding: gzip", 501, "chunked"),
        ("Transfer-Encoding: chunked, chunked", 501, "chunked"),
        (
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            501,
            "chunked",
        ),
        ("Transfer-Encoding:", 501, "chunked"),
        ("Content-Length : 1", 400, "HTTP/1.1"),
        (" Content-Length: 1", 400, "HTTP/1.1"),
    ] {
        let request = format!("PUT /a HTTP/1.1\r\n{fields}\r\n\r\n");
        running.ask(&request).assert_refused(status, reason);
    }
    running
        .ask("PUT /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")
        .assert_refused(400, "HTTP/1.0");
    let answer = running.ask("PUT /a HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\nx");
    assert_eq!(answer.text(), "PUT /a x");
}

#[test]
fn garbage_is_refused_before_it_ends() {
    let running = Running::start(Limits::default());
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"GET /a HTTP/2.0\r\n",
        b"GET /a\r\n",
        b"GET /\x00 HTTP/1.1\r\n",
        b"GET /a HTTP/1.1\r\nno colon\r\n",
        b" GET /a HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut client = running.connect();
        client.send(garbage);
        client
            .answer()
            .assert_refused(400, "not an HTTP/1.1 request");
        assert!(client.is_closed());
    }
    assert_eq!(running.ask("GET /a HTTP/1.1\r\n\r\n").status, 200);
}

#[test]
fn requests_come_in_pieces_with_pauses() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    for piece in [
        "PUT /a HT",
        "TP/1.1\r\nContent-Length: 4\r",
        "\n\r",
        "\n",
        "bo",
        "dy",
    ] {
        client.send(piece.as_bytes());
        sleep(Duration::from_millis(50));
    }
    assert_eq!(client.answer().text(), "PUT /a body");
    let request: &[u8] =
        b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    for byte in request {
        client.send(&[*byte]);
        sleep(Duration::from_millis(1));
    }
    assert_eq!(client.answer().text(), "PUT /a body");
}

#[test]
fn a_client_that_sends_no_more_gets_its_answer() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(GET);
    client.finish_sending();
    sleep(Duration::from_millis(50));
    assert_eq!(client.answer().text(), "GET /a ");
    assert!(client.is_closed());

    // And one that has not sent all is told so.
    for beginning in [
        "GET /a HT",
        "PUT /a HTTP/1.1\r\nContent-Length: 4\r\n\r\nbo",
    ] {
        let mut client = running.connect();
        client.send(beginning.as_bytes());
        client.finish_sending();
        client.answer().assert_refused(400, "not complete");
        assert!(client.is_closed());
    }
}

#[test]
fn large_bodies_pass_whole() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(format!("PUT /a HTTP/1.1\r\nContent-Length: {BIG}\r\n\r\n").as_bytes());
    let body: Vec<_> = (0..BIG).map(|index| (index % 251) as u8).collect();
    client.send(&body);
    assert!(client.answer().body.strip_prefix(b"PUT /a ") == Some(&body));

    client.send(b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for chunk in body.chunks(BIG / 16) {
        client.send(format!("{:x}\r\n", chunk.len()).as_bytes());
        client.send(chunk);
        client.send(b"\r\n");
    }
    client.send(b"0\r\n\r\n");
    assert!(client.answer().body.strip_prefix(b"PUT /a ") == Some(&body));
}

#[test]
fn threads_are_named() {
    let running = Running::start(Limits::default());
    for thread in ["http-0", "http-1"] {
        assert_eq!(running.ask("GET /thread HTTP/1.1\r\n\r\n").text(), thread);
    }
}

#[test]
fn a_service_that_panics_is_answered_for() {
    let running = Running::start(Limits::default());
    for path in ["/panic", "/nonsense"] {
        let mut client = running.connect();
        client.send(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
        client.answer().assert_refused(500, "internal error");
        assert!(client.is_closed());
    }
    assert_eq!(running.ask("GET /a HTTP/1.1\r\n\r\n").status, 200);
}
