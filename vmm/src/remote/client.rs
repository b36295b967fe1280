//! One request and its answer, over a Unix socket.
//!
//! There is no timeout: a virtual machine may take its time to boot or to stop. Who does not want to
//! wait any longer ends this program, and the VMM carries out what it was asked for.

use std::io::{self, BufReader, ErrorKind, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use super::response::{Response, ResponseError, read};
use crate::api::{Method, ROOT};

/// Why a VMM could not be asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no socket.
    #[error(
        "--api-socket {}: there is no such socket; see that the VMM runs, and that it was \
         started with this --api-socket", socket.display()
    )]
    Missing {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens.
    #[error(
        "--api-socket {}: nobody listens there; the VMM that made it has ended, or it is no socket",
        socket.display()
    )]
    NobodyListens {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else's.
    #[error(
        "--api-socket {}: not allowed to connect; become the user who runs the VMM", socket.display()
    )]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything else about connecting.
    #[error("--api-socket {}: cannot connect", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The request was not taken.
    #[error("--api-socket {}: the request was not taken; the VMM may have ended", socket.display())]
    Send {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The request was taken, and no usable answer came.
    #[error("--api-socket {}: no usable answer", socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: ResponseError,
    },
}

/// Sends a request, descriptors with it, and waits for its answer, which may be that it is refused.
///
/// # Errors
/// Any [`ClientError`].
pub fn ask(
    socket: &Path,
    method: Method,
    route: &str,
    body: Option<&[u8]>,
    files: &[OwnedFd],
) -> Result<Response, ClientError> {
    let path = || socket.to_owned();
    let stream = UnixStream::connect(socket).map_err(|source| cannot_connect(path(), source))?;
    let sent = send(&stream, method, route, body, files);
    if let Err(source) = sent {
        // Who refuses what is still coming hangs up, and may have said why.
        let hung_up = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&source.kind());
        let answer = hung_up.then(|| read(BufReader::new(&stream)));
        let socket = path();
        return match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(_)) | None => Err(ClientError::Send { socket, source }),
        };
    }
    read(BufReader::new(&stream)).map_err(|source| ClientError::Answer {
        socket: path(),
        source,
    })
}

fn cannot_connect(socket: PathBuf, source: io::Error) -> ClientError {
    match source.kind() {
        ErrorKind::NotFound => ClientError::Missing { socket, source },
        ErrorKind::ConnectionRefused => ClientError::NobodyListens { socket, source },
        ErrorKind::PermissionDenied => ClientError::NotAllowed { socket, source },
        _ => ClientError::Connect { socket, source },
    }
}

fn send(
    mut stream: &UnixStream,
    method: Method,
    route: &str,
    body: Option<&[u8]>,
    files: &[OwnedFd],
) -> io::Result<()> {
    let mut head = format!(
        "{} {ROOT}{route} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Connection: close\r\n",
        method.as_str()
    );
    match (method, body) {
        (Method::Get, None) => {}
        // RFC 9110, section 8.6: a length even where there is nothing.
        (Method::Put, None) => head.push_str("Content-Length: 0\r\n"),
        (_, Some(body)) => head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        )),
    }
    head.push_str("\r\n");
    let mut head = head.as_bytes();
    if !files.is_empty() {
        let numbers: Vec<i32> = files.iter().map(|file| file.as_raw_fd()).collect();
        // They come with the first bytes.
        let sent = stream.send_with_fds(&[head], &numbers)?;
        head = head.get(sent..).unwrap_or_default();
    }
    stream.write_all(head)?;
    stream.write_all(body.unwrap_or_default())
}

#[cfg(test)]
mod tests;
