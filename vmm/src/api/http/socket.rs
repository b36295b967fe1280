//! Where the server listens.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use thiserror::Error;

use super::sys;
use crate::inherited::{self, InheritedError};
use crate::listener::{ListenError, Listener};

/// Who may connect: the owner of the process, and root.
const MODE: u32 = 0o600;

/// Why a descriptor cannot be listened on.
#[derive(Debug, Error)]
pub enum InheritError {
    /// There is no such descriptor, or it was not inherited.
    #[error(transparent)]
    Descriptor(#[from] InheritedError),
    /// The descriptor is none of a socket that is listened on.
    #[error("a descriptor of a listening Unix stream socket is needed; {found}")]
    NotListening {
        /// What it is.
        found: &'static str,
    },
    /// The socket cannot be set up.
    #[error("cannot set up the socket")]
    Setup(#[source] io::Error),
}

/// A Unix stream socket that listens.
pub struct Socket(Source);

enum Source {
    Path(Listener),
    Inherited(UnixListener),
}

impl Socket {
    /// Listens on `path`, whose file has mode 0600, less what the umask takes away, from the moment it
    /// exists. The socket of a process that is gone is replaced; the file is removed with the socket.
    ///
    /// # Errors
    ///
    /// Another process listens there, it is not a socket, or it cannot be created.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        Listener::bind(path, Some(MODE)).map(|listener| Self(Source::Path(listener)))
    }

    /// Takes over the descriptor of this number, which this process was started with. It is closed on
    /// exec from now on; no file is removed at the end.
    ///
    /// # Errors
    ///
    /// There is no such descriptor, it is none that was inherited, or see [`Self::from_fd`].
    pub fn inherited(number: RawFd) -> Result<Self, InheritError> {
        Self::from_fd(inherited::claim(number)?)
    }

    /// Uses a socket that somebody else has bound and listens on; close-on-exec is as it is.
    ///
    /// # Errors
    ///
    /// It is not a Unix stream socket that listens.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, InheritError> {
        check(&descriptor)?;
        let listener = UnixListener::from(descriptor);
        listener
            .set_nonblocking(true)
            .map_err(InheritError::Setup)?;
        Ok(Self(Source::Inherited(listener)))
    }

    /// The socket, non-blocking.
    pub(super) fn listener(&self) -> &UnixListener {
        match &self.0 {
            Source::Path(listener) => listener.socket(),
            Source::Inherited(listener) => listener,
        }
    }
}

/// Whether it is a Unix stream socket that listens.
fn check(descriptor: &OwnedFd) -> Result<(), InheritError> {
    let option = |option| sys::socket_option(descriptor, option);
    let found = match option(libc::SO_DOMAIN) {
        Err(_) => "it is no socket",
        Ok(libc::AF_UNIX) => match (option(libc::SO_TYPE), option(libc::SO_ACCEPTCONN)) {
            (Ok(libc::SOCK_STREAM), Ok(1)) => return Ok(()),
            (Ok(libc::SOCK_STREAM), _) => "nobody listens on it",
            _ => "it is a Unix socket of another type",
        },
        Ok(_) => "it is a socket of another address family",
    };
    Err(InheritError::NotListening { found })
}
