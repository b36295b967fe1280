//! What a request says before its body: RFC 9112, sections 2 to 7.

use std::fmt::{self, Display, Formatter};
use std::os::fd::OwnedFd;

use httparse::{EMPTY_HEADER, Status};

/// Header fields that a request may have.
const MAX_FIELDS: usize = 100;

/// The method of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// PUT.
    Put,
    /// Any other, as it was sent: methods are case-sensitive.
    Other(String),
}

impl Display for Method {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Other(method) => method,
        })
    }
}

/// A request, read whole.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, without a query; percent signs are as they were sent.
    pub path: String,
    /// The body, empty if there is none.
    pub body: Vec<u8>,
    /// Descriptors that came with any part of the request, in order; close-on-exec.
    pub files: Vec<OwnedFd>,
}

/// A request that the server answers itself, before it closes the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(status: u16, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With an empty chunk.
    Chunked,
}

/// A request without its body.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) framing: Framing,
    /// Whether the client is of HTTP/1.0, which closes connections unless it is told otherwise.
    pub(super) is_1_0: bool,
    /// Whether the client wants to send further requests.
    pub(super) keep_alive: bool,
    /// Whether the client waits for permission to send the body.
    pub(super) expects_continue: bool,
}

/// Refuses what cannot become a request whatever follows.
pub(super) fn check_beginning(bytes: &[u8]) -> Result<(), Refusal> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(bytes).map(|_| ()).map_err(refusal)
}

/// Reads all up to and with the empty line. A missing `Host` is no fault here: there is one host.
pub(super) fn parse(bytes: &[u8]) -> Result<Head, Refusal> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = request.parse(bytes).map_err(refusal)?;
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Refusal::new(400, "the request line is incomplete"));
    };
    if length != Status::Complete(bytes.len()) {
        return Err(Refusal::new(400, "the header ends where it should not"));
    }
    let is_1_0 = version == 0;
    let connection = Options::of(request.headers, "connection");
    Ok(Head {
        method: match method {
            "GET" => Method::Get,
            "PUT" => Method::Put,
            other => Method::Other(other.to_owned()),
        },
        path: path_of(target).to_owned(),
        framing: framing(request.headers, is_1_0)?,
        is_1_0,
        keep_alive: !connection.has("close") && (!is_1_0 || connection.has("keep-alive")),
        expects_continue: !is_1_0 && Options::of(request.headers, "expect").has("100-continue"),
    })
}

fn refusal(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::new(
            431,
            format!("a request has no more than {MAX_FIELDS} header fields"),
        ),
        error => Refusal::new(400, format!("not an HTTP/1.1 request: {error}")),
    }
}

/// The path of a target, which may be a whole URI (RFC 9112, section 3.2.2), without its query.
fn path_of(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => {
            let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            rest.get(authority..)
                .filter(|rest| rest.starts_with('/'))
                .unwrap_or("/")
        }
        _ => target,
    };
    path.split(['?', '#']).next().unwrap_or(path)
}

/// RFC 9112, section 6.3. Whatever two readers might understand differently is refused: what one of
/// them takes for the body would be a request to the other.
fn framing(fields: &[httparse::Header<'_>], is_1_0: bool) -> Result<Framing, Refusal> {
    let codings = Options::of(fields, "transfer-encoding");
    let mut lengths = Options::of(fields, "content-length").all();
    let length = lengths.next();
    if codings.all().next().is_some() {
        if length.is_some() || is_1_0 {
            return Err(Refusal::new(
                400,
                "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0",
            ));
        }
        let mut codings = codings.all();
        return match (codings.next(), codings.next()) {
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            _ => Err(Refusal::new(
                501,
                "the only Transfer-Encoding that is understood is chunked",
            )),
        };
    }
    let Some(length) = length else {
        return Ok(Framing::Length(0));
    };
    if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::new(400, "Content-Length is not a number of bytes"));
    }
    if lengths.any(|other| other != length) {
        return Err(Refusal::new(400, "Content-Length is given twice"));
    }
    // More than 64 bits: too long in any case.
    let length = str::from_utf8(length)
        .ok()
        .and_then(|digits| digits.parse().ok());
    Ok(Framing::Length(length.unwrap_or(u64::MAX)))
}

/// The comma-separated members of all fields of one name (RFC 9110, section 5.6.1).
#[derive(Clone, Copy)]
struct Options<'a> {
    fields: &'a [httparse::Header<'a>],
    name: &'static str,
}

impl<'a> Options<'a> {
    fn of(fields: &'a [httparse::Header<'a>], name: &'static str) -> Self {
        Self { fields, name }
    }

    fn all(self) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(self.name))
            .flat_map(|field| field.value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
    }

    fn has(self, option: &str) -> bool {
        self.all()
            .any(|member| member.eq_ignore_ascii_case(option.as_bytes()))
    }
}
