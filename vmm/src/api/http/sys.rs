//! What the standard library lacks: descriptors that come with bytes, looking at bytes without
//! taking them, and waiting for several descriptors.
#![expect(
    unsafe_code,
    reason = "the standard library neither receives descriptors nor polls"
)]

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Descriptors that one `recvmsg` has room for.
const MAX_DESCRIPTORS: usize = 32;

/// Control messages are padded to 8 bytes, and the kernel makes use of the padding: an even number of
/// descriptors leaves none.
const _: () = assert!(MAX_DESCRIPTORS.is_multiple_of(2));

const DESCRIPTORS_LENGTH: usize = MAX_DESCRIPTORS * size_of::<RawFd>();

// SAFETY: it computes from its argument alone.
const CONTROL_LENGTH: usize = unsafe { libc::CMSG_SPACE(DESCRIPTORS_LENGTH as u32) } as usize;

/// Room for control messages, aligned as they have to be.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LENGTH]);

/// What came in.
pub(super) struct Received {
    /// Bytes; 0 at the end of the stream.
    pub(super) bytes: usize,
    /// Descriptors were lost: there were more than there is room for, here or in this process.
    pub(super) lost_descriptors: bool,
}

/// Takes bytes that are there and adds the descriptors that came with them, all close-on-exec, to
/// `descriptors`; `WouldBlock` if there is nothing.
pub(super) fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut control = Control([0; CONTROL_LENGTH]);
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast::<c_void>(),
        iov_len: buffer.len(),
    };
    // SAFETY: zeroes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_LENGTH;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message names `buffer` and `control`, both whole and writable until this returns.
    let bytes = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) };
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::last_os_error())?;

    // SAFETY: the kernel filled in `message`, whose control buffer is still there.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: `header` is one that the kernel wrote, inside of `control` and aligned.
        let head = unsafe { header.read() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: it computes from its argument alone.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = head.cmsg_len.saturating_sub(empty) / size_of::<RawFd>();
            // SAFETY: `header` is inside of `control`, and so is what follows it.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptors there.
                let at = unsafe { data.add(index) };
                // SAFETY: as above; nothing is said of alignment.
                let descriptor = unsafe { at.read_unaligned() };
                // SAFETY: the kernel has just made it for us, and each is taken once.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        // SAFETY: `header` is of this message.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received {
        bytes,
        lost_descriptors: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Copies bytes that are there and leaves them, with their descriptors, to [`receive`]; 0 at the end
/// of the stream, `WouldBlock` if there is nothing.
pub(super) fn peek(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: `buffer` is writable for its length.
    let bytes = unsafe {
        libc::recv(
            stream.as_raw_fd(),
            buffer.as_mut_ptr().cast::<c_void>(),
            buffer.len(),
            flags,
        )
    };
    usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
}

/// Sends as many of `bytes` as there is room for; `WouldBlock` if there is none. A peer that is gone
/// raises no signal.
pub(super) fn send(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is readable for its length.
    let sent = unsafe {
        libc::send(
            stream.as_raw_fd(),
            bytes.as_ptr().cast::<c_void>(),
            bytes.len(),
            flags,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A measure of what the peer has still to read, which falls when it reads: unix(7), `SIOCOUTQ`.
pub(super) fn unread(stream: &UnixStream) -> io::Result<i32> {
    let mut unread = 0;
    // SAFETY: this request writes one `int`.
    if unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(unread)
}

/// Something that happens: readable from the first signal until it is cleared.
pub(super) struct Event(File);

impl Event {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: there are no pointers.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(event) })))
    }

    pub(super) fn signal(&self) {
        // It fails only if the counter is at its end, 2^64 - 2, and the event readable anyway.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        // It fails if there was no signal.
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What to wait for.
#[derive(Clone, Copy)]
pub(super) enum For {
    /// Something to read, or the end of it.
    Input,
    /// Room to write.
    Room,
}

/// Waits until one of `descriptors` is ready or at fault and says of each whether it is. If none is,
/// the deadline has passed.
pub(super) fn wait<const N: usize>(
    descriptors: [(BorrowedFd<'_>, For); N],
    deadline: Option<Instant>,
) -> io::Result<[bool; N]> {
    let mut entries = descriptors.map(|(descriptor, wanted)| libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events: match wanted {
            For::Input => libc::POLLIN,
            For::Room => libc::POLLOUT,
        },
        revents: 0,
    });
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = match left {
            None => -1,
            Some(Duration::ZERO) => 0,
            // Rounded up: to wait 0 ms for what is left would be a busy loop.
            Some(left) => i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX),
        };
        // SAFETY: `entries` are N entries, which outlive the call.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, timeout) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        } else if ready > 0 || left == Some(Duration::ZERO) {
            return Ok(entries.map(|entry| entry.revents != 0));
        }
    }
}

/// An option of a socket that is an `int`: socket(7).
pub(super) fn socket_option(socket: impl AsFd, option: i32) -> io::Result<i32> {
    let mut value = 0;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` has room for `length` bytes, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// Asks for no control messages but descriptors that are sent.
///
/// A connection takes from the listening socket, which whoever made it may have set up so, that the
/// sender's credentials, as a descriptor too (`SO_PASSPIDFD`, Linux 6.5), come with each message.
pub(super) fn receive_only_sent_descriptors(stream: &UnixStream) {
    const SO_PASSPIDFD: i32 = 76;
    for option in [libc::SO_PASSCRED, libc::SO_PASSSEC, SO_PASSPIDFD] {
        let off = 0_i32;
        // SAFETY: `off` is as long as is said. An option that the kernel does not know is not set
        // either, which is all that is wanted.
        let _ = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const off).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
    }
}
