//! Descriptors that come with requests.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use super::super::{Server, Socket};
use super::{Client, Echo, LONG, Limits, Running};

/// Pipes that have one letter each.
fn letters(letters: &str) -> Vec<PipeReader> {
    let letters = letters.chars().map(|letter| {
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(letter.to_string().as_bytes()).unwrap();
        reader
    });
    letters.collect()
}

fn numbers(descriptors: &[impl AsRawFd]) -> Vec<RawFd> {
    descriptors.iter().map(AsRawFd::as_raw_fd).collect()
}

/// A pipe that ends once nobody has its writing end any more.
struct Witness {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Witness {
    fn new() -> Self {
        let (reader, writer) = pipe().unwrap();
        Self { reader, writer }
    }

    /// Waits for ever if a descriptor was lost.
    fn assert_closed(self) {
        let Self { mut reader, writer } = self;
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn they_come_with_any_piece_and_in_order() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    // Twice: the second request has none of the first one's.
    for _ in 0..2 {
        let files = letters("abcdefg");
        let files = numbers(&files);
        client.send_with(b"P", &files[..1]);
        client.send_with(b"UT /files HTTP/1.1\r\nContent-Len", &files[1..3]);
        client.send_with(b"gth: 4\r\n\r\nb", &files[3..4]);
        client.send(b"o");
        client.send_with(b"dy", &files[4..]);
        assert_eq!(client.answer().text(), "a b c d e f g ");
    }
}

#[test]
fn each_goes_to_the_request_it_was_sent_with() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    let files = letters("abc");
    let files = numbers(&files);
    // All of it is there before any of it is read.
    client.send(b"GET /wait HTTP/1.1\r\n\r\n");
    running.service.gate.wait_for(1);
    client.send(b"GET /files HTTP/1.1\r\n\r\n");
    client.send_with(b"GET /files HTTP/1.1\r\n\r\n", &files[..1]);
    client.send(b"GET /files HTTP/1.1\r\n\r\n");
    // Two requests in one piece: it is the first one's.
    client.send_with(&b"GET /files HTTP/1.1\r\n\r\n".repeat(2), &files[1..2]);
    client.send(b"GET /files HTTP/1.1\r\nContent-Length: 1\r\n\r\n");
    client.send_with(b"x", &files[2..]);
    client.send(b"GET /files HTTP/1.1\r\n\r\n");
    running.service.gate.open();
    assert_eq!(client.answer().text(), "\"waited\"");
    let answers: Vec<_> = (0..7).map(|_| client.answer().text().to_owned()).collect();
    assert_eq!(answers, ["", "a ", "", "b ", "", "c ", ""]);
}

#[test]
fn as_many_as_the_limit_are_taken() {
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    let files = letters(&"x".repeat(32));
    client.send_with(b"GET /files HTTP/1.1\r\n\r\n", &numbers(&files));
    assert_eq!(client.answer().text(), "x ".repeat(32));
}

#[test]
fn none_is_ever_lost() {
    let running = Running::start(Limits {
        linger: LONG,
        ..Limits::default()
    });
    let many = |witness: &Witness, count| vec![witness.writer.as_raw_fd(); count];
    // Ignored by the service, odd and even, up to the limit.
    for count in [1, 2, 3, 31, 32] {
        let witness = Witness::new();
        let mut client = running.connect();
        client.send_with(b"GET /a HTTP/1.1\r\n\r\n", &many(&witness, count));
        assert_eq!(client.answer().text(), "GET /a ");
        witness.assert_closed();
    }
    // Too many, at once.
    for count in [33, 34, 253] {
        let witness = Witness::new();
        let mut client = running.connect();
        client.send_with(b"GET /files HTTP/1.1\r\n\r\n", &many(&witness, count));
        client.answer().assert_refused(400, "32 descriptors");
        witness.assert_closed();
    }
    // Too many, one after the other, and more that are not looked at any more.
    let witness = Witness::new();
    let mut client = running.connect();
    for byte in b"GET /files HTTP/1.1\r\nX: some more" {
        client.send_with(&[*byte], &many(&witness, 3));
        std::thread::yield_now();
    }
    client.answer().assert_refused(400, "32 descriptors");
    witness.assert_closed();
    // With what is no request, with half of one, and while there is none.
    for bytes in [&b"\x00"[..], b"GET /", b"\r\n"] {
        let witness = Witness::new();
        let mut client = running.connect();
        client.send_with(bytes, &many(&witness, 2));
        client.finish_sending();
        while !client.is_closed() {}
        witness.assert_closed();
    }
    // With a body that is too long.
    let witness = Witness::new();
    let mut client = running.connect();
    client.send(b"PUT /a HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n");
    client.send_with(b"body", &many(&witness, 2));
    client.answer().assert_refused(413, "bytes");
    drop(client);
    witness.assert_closed();
}

#[test]
fn limits_may_be_lower() {
    let running = Running::start(Limits {
        files: 2,
        ..Limits::default()
    });
    let mut client = running.connect();
    let files = letters("abc");
    let files = numbers(&files);
    client.send_with(b"GET /files HTTP/1.1\r\n\r\n", &files[..2]);
    assert_eq!(client.answer().text(), "a b ");
    client.send_with(b"GET /files HTTP/1.1\r\n\r\n", &files);
    client.answer().assert_refused(400, "2 descriptors");
}

/// Whoever made the socket may have asked for the senders' credentials.
#[test]
fn credentials_take_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    pass_credentials(&listener);
    let socket = Socket::from_fd(listener.into()).unwrap();
    let _server = Server::start(socket, Arc::new(Echo::default()), Limits::default()).unwrap();
    let mut client = Client::new(std::os::unix::net::UnixStream::connect(&path).unwrap());
    let files = letters(&"x".repeat(32));
    client.send_with(b"GET /files HTTP/1.1\r\n\r\n", &numbers(&files));
    assert_eq!(client.answer().text(), "x ".repeat(32));
}

#[expect(unsafe_code, reason = "the standard library sets no such option")]
fn pass_credentials(listener: &UnixListener) {
    let on = 1_i32;
    // SAFETY: `on` is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            (&raw const on).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}
