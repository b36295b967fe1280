//! Answers, and how they are sent.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Method;
use super::sys::{self, For};

/// Bytes sent at once. What is sent at once is taken off a slow reader's account at once, so this and
/// the time without progress make the slowest reader that is still served: 0.5 KiB/s.
const PIECE: usize = 16 << 10;

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code, 200 to 599.
    pub status: u16,
    /// JSON; with status 204 there is never a body.
    pub body: Option<Vec<u8>>,
    /// The methods that there are instead, with status 405.
    pub allow: Vec<Method>,
}

impl Response {
    /// An answer without a body.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            body: None,
            allow: Vec::new(),
        }
    }

    /// An answer with a body of JSON.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: Some(body.into()),
            allow: Vec::new(),
        }
    }
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It stays, as it does in HTTP/1.1.
    Stay,
    /// It stays, which a client of HTTP/1.0 is told.
    StayOn1_0,
    /// It is closed.
    Close,
}

/// The bytes of an answer (RFC 9112, section 4). An answer to HEAD tells of a body and has none.
pub(super) fn encode(response: &Response, to_head: bool, after: After) -> Vec<u8> {
    let Response {
        status,
        body,
        allow,
    } = response;
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\nServer: Cloud Hypervisor API\r\n",
        reason_phrase(*status)
    );
    let body = body.as_deref().filter(|_| *status != 204);
    // Writing to a string does not fail.
    let _ = match body {
        Some(body) => write!(
            head,
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ),
        None if *status == 204 => Ok(()),
        None => write!(head, "Content-Length: 0\r\n"),
    };
    // RFC 9110, section 15.5.6: an answer of 405 has the field, even if no method is left.
    if *status == 405 || !allow.is_empty() {
        let methods: Vec<_> = allow.iter().map(Method::to_string).collect();
        let _ = write!(head, "Allow: {}\r\n", methods.join(", "));
    }
    head.push_str(match after {
        After::Stay => "\r\n",
        After::StayOn1_0 => "Connection: keep-alive\r\n\r\n",
        After::Close => "Connection: close\r\n\r\n",
    });
    let mut bytes = head.into_bytes();
    if !to_head {
        bytes.extend_from_slice(body.unwrap_or_default());
    }
    bytes
}

/// RFC 9110, section 15; RFC 6585. A phrase may be empty.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "",
    }
}

/// Sends all of `bytes`; gives up once the peer has read nothing for `patience`.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], patience: Duration) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let piece = rest.get(..PIECE).unwrap_or(rest);
        match sys::send(stream, piece) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // There is room only once the peer has read most of what waits for it: a slow
                // reader may well read and make none in time.
                let unread = sys::unread(stream)?;
                let deadline = Some(Instant::now() + patience);
                let [room] = sys::wait([(stream.as_fd(), For::Room)], deadline)?;
                if !room && sys::unread(stream)? >= unread {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
