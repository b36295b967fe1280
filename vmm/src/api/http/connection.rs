//! One connection: a request is read, answered, and the next one read.

use std::any::Any;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::Service;
use super::reader::{NoRequest, Reader};
use super::request::{Method, Refusal, Request};
use super::response::{self, After, Response, encode};
use super::server::Shared;
use super::sys::{self, For};

/// What to do with the connection after an exchange.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Read another request.
    Read,
    /// Close it, once the client knows.
    Close,
    /// Close it; the client is gone.
    Drop,
}

/// Serves a connection until it ends. `id` is its key in the server's table.
pub(super) fn serve(shared: &Shared, id: u64, stream: &UnixStream) {
    while begins(shared, id, stream) {
        match exchange(shared, stream) {
            Next::Read => {}
            Next::Close => return linger(shared, stream),
            Next::Drop => return,
        }
    }
}

/// Waits, however long, for a request to begin.
fn begins(shared: &Shared, id: u64, stream: &UnixStream) -> bool {
    if !shared.set_idle(id) {
        return false;
    }
    let stop = shared.stop.as_fd();
    let waited = sys::wait([(stream.as_fd(), For::Input), (stop, For::Input)], None);
    if !matches!(waited, Ok([true, false])) {
        return false;
    }
    // Not closed in the meantime to make room for another, and not by the client.
    shared.set_busy(id) && !matches!(sys::peek(stream, &mut [0]), Ok(0))
}

/// Reads and answers one request.
fn exchange(shared: &Shared, stream: &UnixStream) -> Next {
    let service = &*shared.service;
    let reader = Reader::new(stream, shared.stop.as_fd(), &shared.limits);
    let (head, request) = match reader.read() {
        Ok(whole) => whole,
        Err(NoRequest::Gone) => return Next::Drop,
        Err(NoRequest::Refused(refusal)) => {
            log::debug!(
                "request refused with {}: {}",
                refusal.status,
                refusal.reason
            );
            let bytes = encode(&refuse(service, &refusal), false, After::Close);
            return match response::send(stream, &bytes, shared.limits.write) {
                Ok(()) => Next::Close,
                Err(_) => Next::Drop,
            };
        }
    };
    let to_head = head.method == Method::Other("HEAD".to_owned());
    let answer = answer(service, request);
    let after = if !head.keep_alive || answer.is_none() || shared.is_stopping() {
        After::Close
    } else if head.is_1_0 {
        After::StayOn1_0
    } else {
        After::Stay
    };
    let answer = answer.unwrap_or_else(|| {
        let reason = "the request could not be carried out: an internal error, see the log";
        refuse(service, &Refusal::new(500, reason))
    });
    let bytes = encode(&answer, to_head, after);
    drop(answer);
    match response::send(stream, &bytes, shared.limits.write) {
        Ok(()) if after == After::Close => Next::Close,
        Ok(()) => Next::Read,
        Err(error) => {
            if error.kind() == ErrorKind::TimedOut {
                log::warn!("a client does not read its answer: the connection is closed");
            }
            Next::Drop
        }
    }
}

/// The service's answer, if it gives one that can be sent.
fn answer(service: &dyn Service, request: Request) -> Option<Response> {
    let what = format!("{} {}", request.method, request.path);
    match catch_unwind(AssertUnwindSafe(|| service.answer(request))) {
        Ok(answer) if (200..600).contains(&answer.status) => Some(answer),
        Ok(answer) => {
            log::error!("{what} was answered with status {}", answer.status);
            None
        }
        Err(panic) => {
            log::error!("{what} panicked: {}", message(&*panic));
            None
        }
    }
}

/// The body for an error of the server's own.
pub(super) fn refuse(service: &dyn Service, refusal: &Refusal) -> Response {
    let Refusal { status, reason } = refusal;
    let made = catch_unwind(AssertUnwindSafe(|| service.refuse(*status, reason)));
    made.unwrap_or_else(|panic| {
        log::error!("an answer of {status} panicked: {}", message(&*panic));
        Response::new(*status)
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Lets the client read the answer and notice that it was the last one (RFC 9112, section 9.6): a
/// socket that is closed with bytes unread breaks the connection, and the client's next write with it.
fn linger(shared: &Shared, mut stream: &UnixStream) {
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + shared.limits.linger;
    let stop = shared.stop.as_fd();
    let mut discarded = vec![0; 16 << 10];
    while Instant::now() < deadline {
        let waited = sys::wait(
            [(stream.as_fd(), For::Input), (stop, For::Input)],
            Some(deadline),
        );
        if !matches!(waited, Ok([true, false])) {
            return;
        }
        // Descriptors are not received but closed: there is no room for them.
        match stream.read(&mut discarded) {
            Ok(0) => return,
            Err(error) if error.kind() != ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}
