//! Reads one request from a connection, and not a byte of the next.
//!
//! A descriptor comes with a piece of the stream, and the kernel gives it away with the first byte of
//! that piece that is read. So that each goes to the request that it was sent with, bytes are looked
//! at first and only taken if they are this request's.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use httparse::Status;

use super::request::{Framing, Head, Refusal, Request, check_beginning, parse};
use super::sys::{self, For};
use super::{Limits, response};

/// Bytes taken at once, and by which a buffer may be ahead of what has arrived.
const PIECE: usize = 16 << 10;

/// Bytes of the line that begins a chunk: its length, and extensions, which nobody sends.
const MAX_CHUNK_LINE: usize = 256;

/// Why there is no request.
#[derive(Debug)]
pub(super) enum NoRequest {
    /// The client is gone, or has not begun one.
    Gone,
    /// The client is told.
    Refused(Refusal),
}

impl From<Refusal> for NoRequest {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Reads one request.
pub(super) struct Reader<'a> {
    stream: &'a UnixStream,
    /// Readable once the server stops.
    stop: BorrowedFd<'a>,
    limits: &'a Limits,
    deadline: Instant,
    /// Whether there was anything but empty lines.
    begun: bool,
    files: Vec<OwnedFd>,
    piece: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Begins the time in which a request has to be complete.
    pub(super) fn new(stream: &'a UnixStream, stop: BorrowedFd<'a>, limits: &'a Limits) -> Self {
        Self {
            stream,
            stop,
            limits,
            deadline: Instant::now() + limits.request,
            begun: false,
            files: Vec::new(),
            piece: vec![0; PIECE],
        }
    }

    /// The request, and what its header says.
    pub(super) fn read(mut self) -> Result<(Head, Request), NoRequest> {
        let head = parse(&self.header()?)?;
        let body = match head.framing {
            Framing::Length(length) => self.sized(&head, length)?,
            Framing::Chunked => self.chunked(&head)?,
        };
        let request = Request {
            method: head.method.clone(),
            path: head.path.clone(),
            body,
            files: self.files,
        };
        Ok((head, request))
    }

    /// All up to and with the first empty line after the request line.
    fn header(&mut self) -> Result<Vec<u8>, NoRequest> {
        let limit = self.limits.header;
        let mut header = Vec::new();
        let mut line_is_empty = true;
        let mut checked = 0;
        loop {
            let room = limit.saturating_sub(header.len());
            if room == 0 {
                return Err(Refusal::new(
                    431,
                    format!("the header of a request has no more than {limit} bytes"),
                )
                .into());
            }
            let seen = self.look(room)?;
            let bytes = self.piece.get(..seen).unwrap_or_default();
            let mut end = None;
            for (index, byte) in bytes.iter().enumerate() {
                match byte {
                    b'\n' if line_is_empty && self.begun => {
                        end = Some(index + 1);
                        break;
                    }
                    b'\n' => line_is_empty = true,
                    b'\r' => {}
                    _ => {
                        line_is_empty = false;
                        self.begun = true;
                    }
                }
            }
            let has_line = bytes.contains(&b'\n');
            self.take(end.unwrap_or(seen), &mut header)?;
            if end.is_some() {
                return Ok(header);
            }
            // What is no request may never end as one. Not after each byte: that would be quadratic.
            if has_line || header.len() / 2 >= checked {
                check_beginning(&header)?;
                checked = header.len();
            }
        }
    }

    /// A body of `length` bytes.
    fn sized(&mut self, head: &Head, length: u64) -> Result<Vec<u8>, NoRequest> {
        let mut body = Vec::new();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.limits.body {
            return Err(self.too_long());
        }
        if length > 0 {
            self.permit(head)?;
            self.take(length, &mut body)?;
        }
        Ok(body)
    }

    /// A body in chunks: RFC 9112, section 7.1.
    fn chunked(&mut self, head: &Head) -> Result<Vec<u8>, NoRequest> {
        self.permit(head)?;
        let mut body = Vec::new();
        let mut line = Vec::new();
        loop {
            self.line(
                MAX_CHUNK_LINE,
                "the length of a chunk is too long",
                &mut line,
            )?;
            // The parser takes an empty line for the last chunk.
            let length = match httparse::parse_chunk_size(&line) {
                Ok(Status::Complete((_, length)))
                    if line.first().is_some_and(u8::is_ascii_hexdigit) =>
                {
                    usize::try_from(length).unwrap_or(usize::MAX)
                }
                _ => return Err(Refusal::new(400, "the length of a chunk is wrong").into()),
            };
            if length == 0 {
                break;
            }
            if length > self.limits.body.saturating_sub(body.len()) {
                return Err(self.too_long());
            }
            self.take(length, &mut body)?;
            let longer = "a chunk is longer than it says";
            self.line(2, longer, &mut line)?;
            if !line.trim_ascii().is_empty() {
                return Err(Refusal::new(400, longer).into());
            }
        }
        // Trailer fields are of no use here.
        let mut left = self.limits.header;
        loop {
            self.line(left, "the trailer is too long", &mut line)?;
            if line.trim_ascii().is_empty() {
                return Ok(body);
            }
            left = left.saturating_sub(line.len());
        }
    }

    fn too_long(&self) -> NoRequest {
        let limit = self.limits.body;
        Refusal::new(
            413,
            format!("the body of a request has no more than {limit} bytes"),
        )
        .into()
    }

    /// Tells a client that waits for it to send the body: RFC 9110, section 10.1.1.
    fn permit(&self, head: &Head) -> Result<(), NoRequest> {
        if head.expects_continue {
            let permission = b"HTTP/1.1 100 Continue\r\n\r\n";
            response::send(self.stream, permission, self.limits.write)
                .map_err(|_| NoRequest::Gone)?;
        }
        Ok(())
    }

    /// A line of no more than `limit` bytes, with its end; a longer one is refused as `too_long`.
    fn line(&mut self, limit: usize, too_long: &str, line: &mut Vec<u8>) -> Result<(), NoRequest> {
        line.clear();
        loop {
            let room = limit.saturating_sub(line.len());
            if room == 0 {
                return Err(Refusal::new(400, too_long).into());
            }
            let seen = self.look(room)?;
            let bytes = self.piece.get(..seen).unwrap_or_default();
            let end = bytes.iter().position(|byte| *byte == b'\n');
            self.take(end.map_or(seen, |end| end + 1), line)?;
            if end.is_some() {
                return Ok(());
            }
        }
    }

    /// Copies bytes of the stream to `piece`, no more than `room`, and leaves them there.
    fn look(&mut self, room: usize) -> Result<usize, NoRequest> {
        loop {
            self.ready()?;
            let room = room.min(self.piece.len());
            let piece = self.piece.get_mut(..room).unwrap_or_default();
            match sys::peek(self.stream, piece) {
                Ok(0) => return Err(self.ended()),
                Ok(seen) => return Ok(seen),
                Err(error) if passes(error.kind()) => {}
                Err(_) => return Err(NoRequest::Gone),
            }
        }
    }

    /// Adds `length` bytes of the stream to `target`.
    fn take(&mut self, length: usize, target: &mut Vec<u8>) -> Result<(), NoRequest> {
        let mut left = length;
        while left > 0 {
            self.ready()?;
            let room = left.min(self.piece.len());
            let piece = self.piece.get_mut(..room).unwrap_or_default();
            match sys::receive(self.stream, piece, &mut self.files) {
                Ok(received) => {
                    self.check_files(received.lost_descriptors)?;
                    if received.bytes == 0 {
                        return Err(self.ended());
                    }
                    let piece = self.piece.get(..received.bytes).unwrap_or_default();
                    target.extend_from_slice(piece);
                    left = left.saturating_sub(received.bytes);
                }
                Err(error) if passes(error.kind()) => {}
                Err(_) => return Err(NoRequest::Gone),
            }
        }
        Ok(())
    }

    fn check_files(&self, lost: bool) -> Result<(), Refusal> {
        let limit = self.limits.files;
        let count = self.files.len();
        if count > limit || lost && count >= limit {
            return Err(Refusal::new(
                400,
                format!("a request has no more than {limit} descriptors"),
            ));
        }
        if lost {
            return Err(Refusal::new(503, "no more descriptors can be received"));
        }
        Ok(())
    }

    /// Waits for something to read.
    fn ready(&self) -> Result<(), NoRequest> {
        let waited = sys::wait(
            [(self.stream.as_fd(), For::Input), (self.stop, For::Input)],
            Some(self.deadline),
        );
        match waited {
            Err(_) => Err(NoRequest::Gone),
            Ok([_, true]) => Err(self.refused(503, "the server stops")),
            // A client that never ceases to send does not have for ever either.
            Ok([true, _]) if Instant::now() < self.deadline => Ok(()),
            Ok(_) => {
                let seconds = self.limits.request.as_secs_f32();
                let reason = format!("the request was not complete within {seconds} s");
                Err(self.refused(408, &reason))
            }
        }
    }

    fn ended(&self) -> NoRequest {
        self.refused(400, "the request is not complete")
    }

    /// A client that has sent nothing but empty lines is not told anything.
    fn refused(&self, status: u16, reason: &str) -> NoRequest {
        if self.begun {
            Refusal::new(status, reason).into()
        } else {
            NoRequest::Gone
        }
    }
}

/// Whether to try again after an error.
fn passes(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
