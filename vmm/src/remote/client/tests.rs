#![expect(unsafe_code, reason = "receives descriptors")]

use std::io::Read;
use std::os::fd::FromRawFd as _;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// A server that does as a test says with its first connection.
struct Server<T> {
    socket: PathBuf,
    thread: JoinHandle<T>,
    _folder: TempDir,
}

impl<T: Send + 'static> Server<T> {
    fn start(script: impl FnOnce(UnixStream) -> T + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = thread::spawn(move || script(listener.accept().unwrap().0));
        Self {
            socket,
            thread,
            _folder: folder,
        }
    }

    /// Asks it, and gives the answer and what the script came to.
    fn ask(
        self,
        method: Method,
        route: &str,
        body: Option<&[u8]>,
    ) -> (Result<Response, ClientError>, T) {
        let answer = ask(&self.socket, method, route, body, &[]);
        (answer, self.thread.join().unwrap())
    }
}

/// Reads a request, its body included.
fn request(mut stream: &UnixStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.extend(byte);
    }
    let mut text = String::from_utf8(text).unwrap();
    let mut lines = text.lines();
    let length = lines.find_map(|line| line.strip_prefix("Content-Length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    stream.take(length).read_to_string(&mut text).unwrap();
    text
}

fn fault<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    let error: &dyn std::error::Error = &result.unwrap_err();
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn requests_are_http() {
    let done = |mut stream: UnixStream| {
        let text = request(&stream);
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .unwrap();
        text
    };
    let common = "HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n";
    let (answer, sent) = Server::start(done).ask(Method::Get, "vm.info", None);
    assert_eq!(answer.unwrap().status, 204);
    assert_eq!(sent, format!("GET /api/v1/vm.info {common}\r\n"));
    let (_, sent) = Server::start(done).ask(Method::Put, "vm.boot", None);
    assert_eq!(
        sent,
        format!("PUT /api/v1/vm.boot {common}Content-Length: 0\r\n\r\n")
    );
    let (_, sent) = Server::start(done).ask(Method::Put, "vm.create", Some(b"{\"a\":1}"));
    assert_eq!(
        sent,
        format!(
            "PUT /api/v1/vm.create {common}Content-Type: application/json\r\nContent-Length: 7\r\n\
             \r\n{{\"a\":1}}"
        )
    );
}

/// Descriptors come with the first bytes, and are those that were meant.
#[test]
fn descriptors_go_with_the_request() {
    let server = Server::start(|mut stream| {
        let (mut text, mut numbers) = ([0; 8], [0; 4]);
        let mut parts = [libc::iovec {
            iov_base: text.as_mut_ptr().cast(),
            iov_len: text.len(),
        }];
        // SAFETY: the vector names the text, which is writable and lives on.
        let received = unsafe { stream.recv_with_fds(&mut parts, &mut numbers) };
        let (bytes, files) = received.unwrap();
        let mut rest = String::from_utf8(text[..bytes].to_vec()).unwrap();
        rest.push_str(&request(&stream));
        // SAFETY: the kernel has just made it for us, and nobody else has it.
        let mut file = unsafe { std::fs::File::from_raw_fd(numbers[0]) };
        file.write_all(b"x").unwrap();
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .unwrap();
        (files, rest)
    });
    let (mut reader, writer) = io::pipe().unwrap();
    let files = [OwnedFd::from(writer)];
    let body = Some(&b"{\"a\":1}"[..]);
    let answer = ask(&server.socket, Method::Put, "vm.add-net", body, &files);
    assert_eq!(answer.unwrap().status, 204);
    let (count, text) = server.thread.join().unwrap();
    assert_eq!(count, 1);
    assert!(text.starts_with("PUT /api/v1/vm.add-net"), "{text}");
    assert!(text.ends_with("\r\n\r\n{\"a\":1}"), "{text}");
    drop(files);
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert_eq!(written, "x");
}

#[test]
fn an_answer_may_come_in_pieces_and_late() {
    let (answer, ()) = Server::start(|mut stream| {
        request(&stream);
        thread::sleep(Duration::from_millis(200));
        for piece in "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{  }"
            .as_bytes()
            .chunks(5)
        {
            stream.write_all(piece).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
    })
    .ask(Method::Get, "vm.info", None);
    let expected = Response {
        status: 200,
        body: b"{  }".to_vec(),
    };
    assert_eq!(answer.unwrap(), expected);
}

#[test]
fn an_answer_may_be_long() {
    let long: Vec<u8> = (0..4_u32 << 20).map(|index| (index % 251) as u8).collect();
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4194304\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let body = long.clone();
        let (answer, ()) = Server::start(move |mut stream| {
            request(&stream);
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
        })
        .ask(Method::Get, "vm.info", None);
        assert!(answer.unwrap().body == long);
    }
}

#[test]
fn the_connection_need_not_be_closed_behind_an_answer() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let server = Server::start(move |mut stream| {
        request(&stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            .unwrap();
        // The connection is open until the answer has been read.
        let _ = stopped.recv_timeout(Duration::from_secs(60));
    });
    let answer = ask(&server.socket, Method::Get, "vm.info", None, &[]).unwrap();
    assert_eq!(answer.body, b"{}");
    drop(stop);
    server.thread.join().unwrap();
}

#[test]
fn a_refusal_counts_even_if_the_request_was_not_read() {
    let long = vec![b' '; 8 << 20];
    let (answer, ()) = Server::start(|mut stream| {
        let mut some = [0; 100];
        stream.read_exact(&mut some).unwrap();
        stream
            .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\n\r\n[\"much\"]")
            .unwrap();
    })
    .ask(Method::Put, "vm.create", Some(&long));
    let answer = answer.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (413, &b"[\"much\"]"[..]));
}

#[test]
fn what_is_wrong_is_said_with_the_socket() {
    let closing = Server::start(|stream| request(&stream));
    let socket = closing.socket.display().to_string();
    assert_eq!(
        fault(closing.ask(Method::Get, "vm.info", None).0),
        format!(
            "--api-socket {socket}: no usable answer: the connection was closed before an answer \
             came; the VMM may have ended"
        )
    );
    let foreign = Server::start(|mut stream| stream.write_all(b"hello\n").unwrap());
    let socket = foreign.socket.display().to_string();
    let long = vec![b' '; 8 << 20];
    let not_taken = fault(foreign.ask(Method::Put, "vm.create", Some(&long)).0);
    let expected =
        format!("--api-socket {socket}: the request was not taken; the VMM may have ended: ");
    assert!(not_taken.starts_with(&expected), "{not_taken}");
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let missing = fault(ask(&socket, Method::Get, "vm.info", None, &[]));
    assert_eq!(
        missing,
        format!(
            "--api-socket {}: there is no such socket; see that the VMM runs, and that it was started \
             with this --api-socket: No such file or directory (os error 2)",
            socket.display()
        )
    );
    drop(UnixListener::bind(&socket).unwrap());
    let left_behind = fault(ask(&socket, Method::Get, "vm.info", None, &[]));
    assert!(
        left_behind.contains(": nobody listens there; "),
        "{left_behind}"
    );
    let refused = cannot_connect("/s".into(), ErrorKind::PermissionDenied.into());
    assert_eq!(
        refused.to_string(),
        "--api-socket /s: not allowed to connect; become the user who runs the VMM"
    );
}
