//! A Unix stream socket as a console.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use super::ConsoleError;
use super::file::identity;

/// A listening socket whose file goes with it.
pub(super) struct Listener {
    /// Non-blocking.
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file, so that nobody else's is removed.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`; the socket of a process that is gone is replaced.
    pub(super) fn open(path: &Path) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError::Socket {
            path: path.to_owned(),
            source,
        };
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            result => result,
        }
        .map_err(failed)?;
        let listener = Self {
            listener,
            path: path.to_owned(),
            file: fs::symlink_metadata(path).ok().as_ref().map(identity),
        };
        listener.listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// The next client, non-blocking, if one waits.
    pub(super) fn accept(&self) -> io::Result<Option<File>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(File::from(OwnedFd::from(stream))))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let file = fs::symlink_metadata(&self.path).ok();
        if self.file.is_some() && file.as_ref().map(identity) == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket file at `path` if no process listens there.
fn remove_stale(path: &Path) -> Result<(), ConsoleError> {
    let failed = |source| ConsoleError::Socket {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        return Err(ConsoleError::NotASocket {
            path: path.to_owned(),
        });
    }
    // A datagram socket cannot connect to a stream listener, and the error tells whether there is
    // one (unix(7): ECONNREFUSED without, EPROTOTYPE with), without disturbing its clients.
    let probe = UnixDatagram::unbound().map_err(failed)?;
    match probe.connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        _ => Err(ConsoleError::SocketInUse {
            path: path.to_owned(),
        }),
    }
}
