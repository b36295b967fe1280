//! Reads an HTTP/1.1 response (RFC 9112) from a server that is not trusted.

use std::io::{self, BufRead, Read};

use httparse::{EMPTY_HEADER, Header, Status};
use thiserror::Error;

/// The longest status line with its headers, and the longest trailers, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// The most headers.
const MAX_HEADERS: usize = 64;

/// The longest line with the size of a chunk, in bytes.
const MAX_CHUNK_LINE: usize = 256;

/// The longest body, in bytes.
const MAX_BODY: u64 = 64 << 20;

/// The most interim responses (RFC 9110, section 15.2) before the real one.
const MAX_INTERIM: usize = 8;

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// Why a response cannot be read.
#[derive(Debug, Error)]
pub enum ResponseError {
    /// Nothing came.
    #[error("the connection was closed before an answer came; the VMM may have ended")]
    Nothing,
    /// Not all of it came.
    #[error("the connection was closed in the middle of the answer")]
    Cut,
    /// Not all of the body came.
    #[error("the connection was closed after {got} of {announced} bytes of the answer")]
    Short {
        /// Bytes that came.
        got: usize,
        /// Bytes that were to come.
        announced: u64,
    },
    /// The socket failed.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// Somebody else listens there.
    #[error("it is not HTTP, so this is not the socket of a VMM's REST API")]
    NotHttp(#[source] httparse::Error),
    /// It does not say how long its body is, or says so twice.
    #[error("its header {0} cannot be understood")]
    Header(String),
    /// A chunk of the body is not like one.
    #[error("its body is not made of chunks, as it should be")]
    Chunk,
    /// It does not end.
    #[error("its head is longer than {MAX_HEAD} bytes")]
    LongHead,
    /// Its body does not end.
    #[error("its body is longer than {MAX_BODY} bytes")]
    LongBody,
    /// It never gets past interim responses.
    #[error("only interim answers came")]
    Interim,
}

/// How the end of a body is found (RFC 9112, section 6.3).
enum Framing {
    Length(u64),
    Chunked,
    UntilClosed,
}

/// Reads one response.
///
/// # Errors
/// Any [`ResponseError`].
pub fn read(mut reader: impl BufRead) -> Result<Response, ResponseError> {
    for _ in 0..=MAX_INTERIM {
        let (status, framing) = head(&mut reader)?;
        if (100..200).contains(&status) {
            continue;
        }
        let body = match framing {
            _ if status == 204 || status == 304 => Vec::new(),
            Framing::Length(length) => exactly(&mut reader, length)?,
            Framing::Chunked => chunks(&mut reader)?,
            Framing::UntilClosed => until_closed(&mut reader)?,
        };
        return Ok(Response { status, body });
    }
    Err(ResponseError::Interim)
}

/// Reads the status line and the headers. What is not HTTP is noticed at the end of a line, so that
/// nobody waits for more of it.
fn head(reader: &mut impl BufRead) -> Result<(u16, Framing), ResponseError> {
    let mut head = Vec::new();
    loop {
        let started = !head.is_empty();
        if !line(reader, MAX_HEAD - head.len(), &mut head)? {
            return Err(match () {
                () if head.len() == MAX_HEAD => ResponseError::LongHead,
                () if started || !head.is_empty() => ResponseError::Cut,
                () => ResponseError::Nothing,
            });
        }
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&head).map_err(ResponseError::NotHttp)? {
            Status::Partial => {}
            Status::Complete(_) => {
                let framing = framing(response.headers)?;
                return Ok((response.code.unwrap_or(0), framing));
            }
        }
    }
}

/// Reads a line of at most `most` bytes to the end of `text`; `false` if it does not end.
fn line(reader: &mut impl BufRead, most: usize, text: &mut Vec<u8>) -> Result<bool, ResponseError> {
    let mut piece = reader.take(most as u64);
    let read = piece.read_until(b'\n', text).map_err(ResponseError::Read)?;
    Ok(read > 0 && text.ends_with(b"\n"))
}

fn framing(headers: &[Header<'_>]) -> Result<Framing, ResponseError> {
    let not_understood = |header: &Header<'_>| {
        let value = String::from_utf8_lossy(header.value);
        let text = format!("{}: {value}", header.name);
        ResponseError::Header(super::answer::printable(&text, 200))
    };
    let mut framing = None;
    for header in headers {
        let found = if header.name.eq_ignore_ascii_case("content-length") {
            length(header.value).map(Framing::Length)
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            let chunked = header.value.eq_ignore_ascii_case(b"chunked");
            chunked.then_some(Framing::Chunked)
        } else {
            continue;
        };
        // Two of them could be read in two ways, even if they are the same.
        match (found, &framing) {
            (Some(found), None) => framing = Some(found),
            (None, _) | (_, Some(_)) => return Err(not_understood(header)),
        }
    }
    Ok(framing.unwrap_or(Framing::UntilClosed))
}

/// Reads a number; unlike the standard parser takes no sign.
fn length(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok()?;
    let plain = digits.starts_with(|digit: char| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// Reads a body of a known length. Its memory grows with what comes, not with what was announced.
fn exactly(reader: &mut impl BufRead, length: u64) -> Result<Vec<u8>, ResponseError> {
    if length > MAX_BODY {
        return Err(ResponseError::LongBody);
    }
    let mut body = Vec::new();
    append(reader, length, &mut body)?;
    Ok(body)
}

fn append(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<(), ResponseError> {
    let read = reader.take(length).read_to_end(body);
    match read.map_err(ResponseError::Read)? {
        got if (got as u64) < length => Err(ResponseError::Short {
            got,
            announced: length,
        }),
        _ => Ok(()),
    }
}

fn until_closed(reader: &mut impl BufRead) -> Result<Vec<u8>, ResponseError> {
    let mut body = Vec::new();
    let read = reader.take(MAX_BODY + 1).read_to_end(&mut body);
    match read.map_err(ResponseError::Read)? as u64 > MAX_BODY {
        true => Err(ResponseError::LongBody),
        false => Ok(body),
    }
}

/// Reads a body in chunks (RFC 9112, section 7.1).
fn chunks(reader: &mut impl BufRead) -> Result<Vec<u8>, ResponseError> {
    let mut body = Vec::new();
    loop {
        let mut size = Vec::new();
        if !line(reader, MAX_CHUNK_LINE, &mut size)? {
            return Err(match size.len() == MAX_CHUNK_LINE {
                true => ResponseError::Chunk,
                false => ResponseError::Cut,
            });
        }
        // httparse takes no digits at all for zero.
        let is_number = size.first().is_some_and(u8::is_ascii_hexdigit);
        let size = match httparse::parse_chunk_size(&size) {
            Ok(Status::Complete((_, size))) if is_number => size,
            _ => return Err(ResponseError::Chunk),
        };
        if size == 0 {
            trailers(reader)?;
            return Ok(body);
        }
        if size > MAX_BODY.saturating_sub(body.len() as u64) {
            return Err(ResponseError::LongBody);
        }
        append(reader, size, &mut body)?;
        let mut end = Vec::new();
        if !line(reader, 2, &mut end)? || end != b"\r\n" {
            return Err(ResponseError::Chunk);
        }
    }
}

/// Reads what may stand behind the last chunk, and takes no notice of it.
fn trailers(reader: &mut impl BufRead) -> Result<(), ResponseError> {
    let mut text = Vec::new();
    loop {
        let start = text.len();
        if !line(reader, MAX_HEAD - start, &mut text)? {
            return Err(match text.len() == MAX_HEAD {
                true => ResponseError::LongHead,
                false => ResponseError::Cut,
            });
        }
        if matches!(text.get(start..), Some(b"\r\n" | b"\n")) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
