//! The server on real sockets.

mod files;
mod limits;
mod messages;
mod property;
mod socket;
mod stopping;

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{Limits, Method, Request, Response, Server, Service, Socket};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

const BIG: usize = 4 << 20;

/// Answers depending on the path.
#[derive(Default)]
struct Echo {
    gate: Gate,
}

/// Holds requests up.
#[derive(Default)]
struct Gate {
    /// How many wait, and whether they may go.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        let passed = self
            .changed
            .wait_timeout_while(state, LONG, |state| !state.1);
        assert!(passed.unwrap().0.1, "nobody opened the gate");
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    /// Waits until `count` requests have come.
    fn wait_for(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(state, LONG, |state| state.0 < count);
        assert!(waited.unwrap().0.0 >= count, "requests did not come");
    }
}

impl Service for Echo {
    fn answer(&self, request: Request) -> Response {
        let Request {
            method,
            path,
            body,
            files,
        } = request;
        match path.as_str() {
            "/empty" => Response::new(204),
            "/empty-with-body" => Response::json(204, "no"),
            "/nothing" => Response::new(200),
            "/big" => Response::json(200, vec![b'x'; BIG]),
            "/half-big" => Response::json(200, vec![b'x'; BIG / 8]),
            "/thread" => Response::json(200, std::thread::current().name().unwrap_or_default()),
            "/panic" => panic!("the service was asked to panic"),
            "/nonsense" => Response::new(7),
            "/not-allowed" => Response {
                allow: vec![Method::Get, Method::Other("PATCH".to_owned())],
                ..Response::json(405, "[]")
            },
            "/wait" => {
                self.gate.pass();
                Response::json(200, "\"waited\"")
            }
            "/files" => {
                let mut text = String::new();
                for file in files {
                    assert!(is_close_on_exec(file.as_raw_fd()));
                    File::from(file).read_to_string(&mut text).unwrap();
                    text.push(' ');
                }
                Response::json(200, text)
            }
            path => {
                if let Some(status) = path.strip_prefix("/status/") {
                    return Response::json(status.parse().unwrap(), "[]");
                }
                let mut echo = format!("{method} {path} ").into_bytes();
                echo.extend_from_slice(&body);
                Response::json(200, echo)
            }
        }
    }

    fn refuse(&self, status: u16, reason: &str) -> Response {
        Response::json(status, format!("[{reason:?}]"))
    }
}

/// proc_pid_fdinfo(5)
fn is_close_on_exec(number: RawFd) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    flags & libc::O_CLOEXEC != 0
}

/// A server on a socket of its own.
struct Running {
    server: Option<Server>,
    service: Arc<Echo>,
    path: PathBuf,
    _folder: TempDir,
}

impl Running {
    fn start(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let service = Arc::new(Echo::default());
        let socket = Socket::bind(&path).unwrap();
        Self {
            server: Some(Server::start(socket, service.clone(), limits).unwrap()),
            service,
            path,
            _folder: folder,
        }
    }

    fn connect(&self) -> Client {
        Client::new(UnixStream::connect(&self.path).unwrap())
    }

    /// The answer to one request on a connection of its own.
    fn ask(&self, request: &str) -> Answer {
        let mut client = self.connect();
        client.send(request.as_bytes());
        client.answer()
    }
}

struct Client(UnixStream);

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn send_with(&mut self, bytes: &[u8], descriptors: &[RawFd]) {
        let sent = self.0.send_with_fds(&[bytes], descriptors).unwrap();
        assert_eq!(sent, bytes.len());
    }

    fn finish_sending(&mut self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }

    /// Up to and with an empty line.
    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            let read = self.0.read(&mut byte);
            assert_eq!(read.unwrap(), 1, "{:?}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    fn answer(&mut self) -> Answer {
        let mut answer = self.answer_to_head();
        let length = answer.fields.get("content-length");
        answer.body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut answer.body).unwrap();
        answer
    }

    fn answer_to_head(&mut self) -> Answer {
        let head = self.head();
        let mut lines = head.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
        let status_line = lines.next().unwrap().to_owned();
        assert!(status_line.starts_with("HTTP/1.1 "), "{head}");
        Answer {
            status: status_line[9..12].parse().unwrap(),
            status_line,
            fields: lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
            body: Vec::new(),
        }
    }

    /// Whether the server has closed the connection and there is nothing more to read.
    fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

struct Answer {
    status: u16,
    status_line: String,
    /// Names in lower case.
    fields: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    fn closes(&self) -> bool {
        self.fields
            .get("connection")
            .is_some_and(|value| value == "close")
    }

    /// That the server refused the request, saying why, and says that it closes.
    fn assert_refused(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        assert!(self.text().contains(reason), "{}", self.text());
        let reasons: Vec<String> = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(reasons.len(), 1);
        assert!(self.closes());
    }
}
