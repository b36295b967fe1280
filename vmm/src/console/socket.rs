//! A Unix stream socket as a console.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::ConsoleError;
use crate::listener::{self, ListenError};

/// A listening socket whose file goes with it.
pub(super) struct Listener {
    /// Non-blocking.
    pub(super) listener: listener::Listener,
}

impl Listener {
    /// Listens on `path`; the socket of a process that is gone is replaced.
    pub(super) fn open(path: &Path) -> Result<Self, ConsoleError> {
        let listener = listener::Listener::bind(path, None).map_err(|error| match error {
            ListenError::Socket { path, source } => ConsoleError::Socket { path, source },
            ListenError::InUse { path } => ConsoleError::SocketInUse { path },
            ListenError::NotASocket { path } => ConsoleError::NotASocket { path },
        })?;
        Ok(Self { listener })
    }

    /// The next client, non-blocking, if one waits.
    pub(super) fn accept(&self) -> io::Result<Option<File>> {
        match self.listener.socket().accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(File::from(OwnedFd::from(stream))))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}
