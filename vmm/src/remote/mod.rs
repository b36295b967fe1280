//! `ch-remote`: asks a VMM for something, over the socket that its REST API listens on.
//!
//! [`cli`] reads the command line by the table in [`commands`], [`client`] carries a request and its
//! answer over the socket, [`answer`] says what came of it.

mod answer;
pub mod cli;
mod client;
mod commands;
mod response;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::answer::Refusal;
pub use self::client::ClientError;
pub use self::commands::{Body, Call, Print};
pub use self::response::ResponseError;
use crate::inherited::{self, InheritedError};

/// The longest configuration that `create` sends, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Why a VMM did not do what it was asked for.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// The configuration for `create` cannot be read.
    #[error("create {}: cannot read it", path.display())]
    Read {
        /// The file, or `-`.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The configuration for `create` never seems to end.
    #[error("create {}: longer than {MAX_CONFIG} bytes, which no configuration is", path.display())]
    TooLong {
        /// The file, or `-`.
        path: PathBuf,
    },
    /// A descriptor cannot be sent.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// It cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It says something else than what it was asked for.
    #[error("the answer does not describe a virtual machine")]
    Info(#[source] serde_json::Error),
    /// The answer cannot be printed.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

/// Asks the VMM that listens on `socket`, waits for its answer and prints it to `out`.
///
/// # Errors
/// It cannot be asked, does not answer as HTTP says, or refuses.
pub fn run(socket: &Path, call: &Call, out: &mut impl Write) -> Result<(), RemoteError> {
    let Call {
        method,
        route,
        body,
        files,
        print,
    } = call;
    let files = files
        .iter()
        .map(|fd| inherited::claim(i32::try_from(*fd).unwrap_or(i32::MAX)));
    let files: Vec<OwnedFd> = files.collect::<Result<_, _>>()?;
    let body = match body {
        Body::None => None,
        Body::Json(text) => Some(text.clone().into_bytes()),
        Body::File(path) => Some(config(path)?),
    };
    let response = client::ask(socket, *method, route, body.as_deref(), &files)?;
    if !(200..300).contains(&response.status) {
        return Err(Refusal::of(&response).into());
    }
    let text = match print {
        Print::Body if response.body.is_empty() => Vec::new(),
        Print::Body => [&response.body[..], b"\n"].concat(),
        Print::Numa => answer::numa(&response.body)?.into_bytes(),
    };
    out.write_all(&text)
        .and_then(|()| out.flush())
        .map_err(RemoteError::Write)
}

/// Reads a configuration from a file; `-` is standard input.
fn config(path: &Path) -> Result<Vec<u8>, RemoteError> {
    let failed = |source| RemoteError::Read {
        path: path.to_owned(),
        source,
    };
    let reader: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(failed)?),
    };
    let mut text = Vec::new();
    let read = reader.take(MAX_CONFIG + 1).read_to_end(&mut text);
    match read.map_err(failed)? as u64 > MAX_CONFIG {
        true => Err(RemoteError::TooLong {
            path: path.to_owned(),
        }),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests;
