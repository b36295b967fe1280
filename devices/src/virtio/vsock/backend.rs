//! The host's side: Unix sockets.
#![expect(
    unsafe_code,
    reason = "the standard library connects Unix sockets by waiting, and gives them no guest memory"
)]

use std::ffi::OsString;
use std::mem::{offset_of, zeroed};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use libc::{c_void, iovec};

use crate::virtio::buffers::Buffers;
use crate::virtio::complaints::Complaints;

/// The host's side of the device, for all boots: a socket that is listened on. Clients that come while no
/// driver has started the device wait.
pub struct VsockHost {
    listener: UnixListener,
    path: PathBuf,
    /// Clients and guests can go on.
    complaints: Complaints,
}

impl VsockHost {
    /// Takes a socket that listens at `path`.
    ///
    /// # Errors
    /// The host does not let it be made non-blocking.
    pub fn new(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path,
            complaints: Complaints::default(),
        })
    }

    /// Tells the operator of what failed.
    pub(super) fn complain(&self, what: fmt::Arguments<'_>, error: &io::Error) {
        let path = self.path.display();
        self.complaints
            .warn(format_args!("vsock {path}: {what} fails: {error}"));
    }

    /// The descriptor that is readable when a client waits.
    pub(super) fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// The next client, if one waits.
    pub(super) fn accept(&self) -> io::Result<Option<Stream>> {
        loop {
            return match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    Ok(Some(Stream(stream)))
                }
                Err(error) => match error.kind() {
                    // It left before it was its turn.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    io::ErrorKind::WouldBlock => Ok(None),
                    _ => Err(error),
                },
            };
        }
    }

    /// Connects to whoever listens for a port.
    pub(super) fn connect(&self, port: u32) -> io::Result<Stream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let (address, length) = address_of(Path::new(&path))?;
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: there are no pointers.
        let socket = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: `address` is a whole `sockaddr_un`, of which `length` bytes are meant.
        match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } {
            0 => Ok(Stream(UnixStream::from(socket))),
            // Where too many wait to be accepted already, this is EAGAIN (unix(7)).
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// unix(7), "Address format".
fn address_of(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: zeroes are a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} has {} bytes, of which a socket's path has at most {}",
                path.display(),
                bytes.len(),
                address.sun_path.len() - 1
            ),
        ));
    }
    for (target, byte) in address.sun_path.iter_mut().zip(bytes) {
        *target = *byte as libc::c_char;
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((address, length as libc::socklen_t))
}

/// A Unix socket that is connected, and never waits.
pub struct Stream(UnixStream);

impl Stream {
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Looks at the next bytes, which stay where they are.
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.take_bytes(bytes, libc::MSG_PEEK)
    }

    /// Reads bytes that are there.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.take_bytes(bytes, 0)
    }

    fn take_bytes(&self, bytes: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        let (address, length) = (bytes.as_mut_ptr().cast::<c_void>(), bytes.len());
        let flags = flags | libc::MSG_DONTWAIT;
        // SAFETY: the bytes are there, and nobody else has them.
        repeated(|| unsafe { libc::recv(self.fd(), address, length, flags) })
    }

    /// Reads into guest memory.
    pub fn receive(&self, buffers: &Buffers) -> io::Result<usize> {
        let (list, count) = buffers.next();
        // At most 1024.
        let count = count as libc::c_int;
        // SAFETY: the list is there until `buffers` is changed, and keeps the guest memory it names, to
        // which there are no references.
        repeated(|| unsafe { libc::readv(self.fd(), list, count) })
    }

    /// Writes from guest memory.
    pub fn send(&self, buffers: &Buffers) -> io::Result<usize> {
        let (list, count) = buffers.next();
        self.send_list(list, count as usize)
    }

    /// Writes bytes of ours.
    pub fn send_bytes(&self, bytes: [&[u8]; 2]) -> io::Result<usize> {
        let list = bytes.map(|bytes| iovec {
            // They are only read.
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        });
        self.send_list(list.as_ptr(), list.len())
    }

    fn send_list(&self, list: *const iovec, count: usize) -> io::Result<usize> {
        // SAFETY: zeroes are a message without name, data and control.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = list.cast_mut();
        // Its type is another one elsewhere.
        message.msg_iovlen = count as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the list is there for as long as this is called, and so is what it names, which is
        // only read and has no references to it that could be written through.
        repeated(|| unsafe { libc::sendmsg(self.fd(), &raw const message, flags) })
    }

    /// Ends a direction.
    pub fn shut_down(&self, how: Shutdown) {
        // It fails where there is nobody any more.
        let _ = self.0.shutdown(how);
    }
}

/// Calls until no signal comes in between.
fn repeated(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
