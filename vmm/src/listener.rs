//! Unix stream sockets that are listened on, and their files.
#![expect(
    unsafe_code,
    reason = "the standard library does not let go between the making of a socket and its binding"
)]

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::mem::{offset_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Connections that wait to be accepted; the host's own limit (`net.core.somaxconn`) is 4096.
const BACKLOG: i32 = 4096;

/// Why a path cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The socket cannot be created.
    #[error("cannot listen on socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process listens on the socket.
    #[error("socket {} is in use by another process: end it, or name another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something that must not be removed.
    #[error("{} exists already and is not a socket: name another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
}

/// Device and inode of a file, so that nobody else's is removed.
pub(crate) fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A listening socket whose file goes with it.
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// The socket's file.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`, non-blocking; the socket of a process that is gone is replaced.
    ///
    /// The file has the permissions `mode` less what the umask takes away, 0777 if it is `None`, from
    /// the moment it exists.
    pub(crate) fn bind(path: &Path, mode: Option<u32>) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Socket {
            path: path.to_owned(),
            source,
        };
        let socket = match listen(path, mode) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen(path, mode)
            }
            result => result,
        }
        .map_err(failed)?;
        let listener = Self {
            socket,
            path: path.to_owned(),
            file: fs::symlink_metadata(path).ok().as_ref().map(identity),
        };
        listener.socket.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &UnixListener {
        &self.socket
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

/// Makes a socket, binds it to `path` and listens.
fn listen(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    let (address, length) = address_of(path)?;
    // SAFETY: there are no pointers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = File::from(unsafe { OwnedFd::from_raw_fd(socket) });
    if let Some(mode) = mode {
        // unix(7): the file takes its permissions from the socket's own, less the umask. Changed
        // afterwards, they would come too late for whoever has connected already; and the umask is
        // that of all threads.
        socket.set_permissions(Permissions::from_mode(mode))?;
    }
    // SAFETY: `address` is a whole `sockaddr_un`, of which `length` bytes are meant.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: there are no pointers, and the descriptor is open.
    if unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) } < 0 {
        let error = io::Error::last_os_error();
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// unix(7), "Address format".
fn address_of(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: zeroes are a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!(
                "a socket's path has 1 to {} bytes and no NUL; this one has {} bytes",
                address.sun_path.len() - 1,
                bytes.len()
            ),
        ));
    }
    for (target, byte) in address.sun_path.iter_mut().zip(bytes) {
        *target = *byte as libc::c_char;
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, length as libc::socklen_t))
}

/// Removes the socket file at `path` if no process listens there.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket {
            path: path.to_owned(),
        });
    }
    // A datagram socket cannot connect to a stream listener, and the error tells whether there is
    // one (unix(7): ECONNREFUSED without, EPROTOTYPE with), without disturbing its clients.
    let probe = UnixDatagram::unbound().map_err(failed)?;
    match probe.connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(e) if e.raw_os_error() != Some(libc::EPROTOTYPE) => Err(failed(e)),
        _ => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
    }
}
