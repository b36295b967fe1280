//! Sockets with deadlines and descriptors, and what is known of a descriptor.
#![expect(
    unsafe_code,
    reason = "the standard library neither connects Unix sockets in time nor receives descriptors"
)]

use std::ffi::c_void;
use std::io;
use std::mem::{offset_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Descriptors that a peer may send in one message: what it is told that it may.
pub const MAX_RECEIVED: usize = 1;

/// Room for descriptors. It must be even: control messages are padded to 8 bytes, the kernel makes
/// use of the padding, and `recv_with_fds` loses the one more descriptor that it does not expect.
const RECEIVED_AT_ONCE: usize = 2;

const _: () = assert!(RECEIVED_AT_ONCE.is_multiple_of(2) && RECEIVED_AT_ONCE >= MAX_RECEIVED);

/// When something has to be done.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    end: Instant,
    /// How long it was away in the beginning.
    pub limit: Duration,
}

impl Deadline {
    /// So far from now.
    pub fn after(limit: Duration) -> Self {
        Self {
            end: Instant::now() + limit,
            limit,
        }
    }

    /// What is left; `None` if it has passed.
    pub fn left(&self) -> Option<Duration> {
        self.end
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }
}

/// Why bytes did not get through a socket.
#[derive(Debug)]
pub enum SocketError {
    /// The peer is gone.
    HungUp,
    /// The deadline passed.
    Late,
    /// The peer sent more than [`MAX_RECEIVED`], or there is no room for more in this process.
    TooManyDescriptors,
    /// Anything else.
    Other(io::Error),
}

impl SocketError {
    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EPIPE | libc::ECONNRESET => Self::HungUp,
            _ => Self::Other(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Connects to a stream socket. It blocks for no longer than the deadline, even if the server does
/// not accept connections.
pub fn connect(path: &Path, deadline: &Deadline) -> io::Result<UnixStream> {
    // SAFETY: there are no pointers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
    let (address, length) = address_of(path)?;
    loop {
        let left = deadline.left().ok_or(io::ErrorKind::TimedOut)?;
        // Bounds the wait for a place in the server's queue too: socket(7), SO_SNDTIMEO.
        socket.set_write_timeout(Some(left))?;
        // SAFETY: `address` is a whole `sockaddr_un`, of which `length` bytes are meant.
        let result =
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if result == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Err(error),
        }
    }
    Ok(socket)
}

fn address_of(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: zeroes are a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
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

/// Sends all of `parts`, one after the other, and descriptors with the first byte.
pub fn send(
    socket: &UnixStream,
    parts: &[&[u8]],
    descriptors: &[RawFd],
    deadline: &Deadline,
) -> Result<(), SocketError> {
    let mut descriptors = descriptors;
    let mut parts = parts.to_vec();
    parts.retain(|part| !part.is_empty());
    while !parts.is_empty() {
        match socket.send_with_fds(&parts, descriptors) {
            Ok(0) => return Err(SocketError::HungUp),
            Ok(sent) => {
                descriptors = &[];
                advance(&mut parts, sent);
            }
            Err(error) => match error.errno() {
                libc::EAGAIN => wait(socket, libc::POLLOUT, deadline)?,
                libc::EINTR => {}
                errno => return Err(SocketError::from_errno(errno)),
            },
        }
    }
    Ok(())
}

/// Takes `sent` bytes away from the beginning of `parts`.
fn advance(parts: &mut Vec<&[u8]>, mut sent: usize) {
    parts.retain_mut(|part| {
        let taken = sent.min(part.len());
        sent -= taken;
        *part = part.get(taken..).unwrap_or_default();
        !part.is_empty()
    });
}

/// Fills `buffer`. Descriptors that come with these bytes are added to `descriptors`.
pub fn receive(
    socket: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    deadline: &Deadline,
) -> Result<(), SocketError> {
    let mut rest = buffer;
    while !rest.is_empty() {
        if deadline.left().is_none() {
            return Err(SocketError::Late);
        }
        let mut received = [-1; RECEIVED_AT_ONCE];
        let mut vectors = [libc::iovec {
            iov_base: rest.as_mut_ptr().cast::<c_void>(),
            iov_len: rest.len(),
        }];
        // SAFETY: the vector is all of `rest`, which is borrowed for writing until this returns.
        match unsafe { socket.recv_with_fds(&mut vectors, &mut received) } {
            Ok((bytes, count)) => {
                for descriptor in received.into_iter().take(count) {
                    // SAFETY: the kernel has just made this descriptor for us, and we take each once.
                    descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
                }
                for descriptor in descriptors.iter() {
                    close_on_exec(descriptor).map_err(SocketError::Other)?;
                }
                if descriptors.len() > MAX_RECEIVED {
                    return Err(SocketError::TooManyDescriptors);
                }
                if bytes == 0 {
                    return Err(SocketError::HungUp);
                }
                rest = rest.get_mut(bytes..).unwrap_or_default();
            }
            Err(error) => match error.errno() {
                libc::EAGAIN => wait(socket, libc::POLLIN, deadline)?,
                libc::EINTR => {}
                libc::ENOBUFS => return Err(SocketError::TooManyDescriptors),
                errno => return Err(SocketError::from_errno(errno)),
            },
        }
    }
    Ok(())
}

/// Waits until the socket is ready, or its peer gone.
fn wait(socket: &UnixStream, events: i16, deadline: &Deadline) -> Result<(), SocketError> {
    let left = deadline.left().ok_or(SocketError::Late)?;
    // Rounded up: a wait of 0 ms would be a busy loop.
    let timeout = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    match poll(socket, events, timeout) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(SocketError::Other(error)),
    }
}

/// Whether the peer has closed its end.
pub fn hung_up(socket: &UnixStream) -> bool {
    poll(socket, libc::POLLRDHUP, 0)
        .is_ok_and(|events| events & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0)
}

fn poll(socket: &UnixStream, events: i16, timeout: i32) -> io::Result<i16> {
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: `entry` is one entry, which outlives the call.
    if unsafe { libc::poll(&raw mut entry, 1, timeout) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(entry.revents)
}

fn close_on_exec(descriptor: &OwnedFd) -> io::Result<()> {
    // SAFETY: there are no pointers, and the descriptor is open.
    if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The flags that a descriptor was opened with, `O_RDWR` and so on.
pub fn open_flags(descriptor: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: there are no pointers, and the descriptor is open.
    let flags = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(flags)
}

/// Bytes of a page of the host.
pub fn page_size() -> u64 {
    // SAFETY: there are no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}
