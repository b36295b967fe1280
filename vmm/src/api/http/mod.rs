//! An HTTP/1.1 server on a Unix socket (RFC 9110, RFC 9112).
//!
//! It knows nothing of what it serves: a [`Service`] answers whole requests. One thread accepts, and
//! each connection has one of its own, whose loop is straight on: read, answer, write. Clients are
//! hostile: every wait has an end, every length a limit ([`Limits`]), and none of them waits for
//! another.
//!
//! | file | what it does |
//! |---|---|
//! | `socket.rs` | where to listen: a path, or a descriptor that was inherited |
//! | `server.rs` | accepts, counts, makes room, stops |
//! | `connection.rs` | the loop of one connection |
//! | `reader.rs` | takes one request off the stream, with its descriptors |
//! | `request.rs`, `response.rs` | what the bytes mean |
//!
//! Headers are parsed by `httparse`. `dbs-uhttp`, the published copy of `micro_http`, would bring
//! connections as well, but its set of status codes is closed (no 408, 409, 411, 429 or 431) and sent
//! without phrases, every answer says `keep-alive`, a chunked body is taken for the next request, two
//! lengths that differ are accepted, headers may go on for ever, and an empty answer other than 204 has
//! no length.

mod connection;
mod reader;
mod request;
mod response;
mod server;
mod socket;
mod sys;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use self::request::{Method, Request};
pub use self::response::Response;
pub use self::server::Server;
pub use self::socket::{InheritError, Socket};
pub use crate::listener::ListenError;

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers a request. It is called on the connection's own thread and may block. A panic becomes
    /// an answer of 500.
    fn answer(&self, request: Request) -> Response;

    /// The answer to a request that the server does not hand on: `status` and, in its body, `reason`.
    fn refuse(&self, status: u16, reason: &str) -> Response;
}

/// What a client may do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request before its body.
    pub header: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Descriptors that come with a request.
    pub files: usize,
    /// Connections at the same time. One without a request gives way to a new one; if there is none,
    /// the new one is refused.
    pub connections: usize,
    /// From the first byte of a request to the last.
    pub request: Duration,
    /// Without a byte of an answer being read.
    pub write: Duration,
    /// From the last answer on a connection to the end of it, for a client that sends on and on.
    pub linger: Duration,
    /// For requests that are being answered when the server stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header: 16 << 10,
            body: 4 << 20,
            files: 32,
            connections: 256,
            request: Duration::from_secs(30),
            write: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            drain: Duration::from_secs(5),
        }
    }
}
