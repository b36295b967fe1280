//! Descriptors that this process was started with, and that the operator names by their numbers.
#![expect(
    unsafe_code,
    reason = "looks at descriptors by number and takes those over that nobody here has"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use thiserror::Error;

/// The lowest descriptor that is not one of the standard streams.
pub const FIRST: RawFd = 3;

/// Why a descriptor cannot be used.
#[derive(Debug, Error)]
pub enum InheritedError {
    /// A standard stream, or no descriptor at all.
    #[error("descriptor {fd} cannot be used: it has to be {FIRST} or above")]
    Standard {
        /// Its number.
        fd: RawFd,
    },
    /// Nothing is open there.
    #[error("descriptor {fd} is not open: whoever starts this process has to leave it open for it")]
    NotOpen {
        /// Its number.
        fd: RawFd,
    },
    /// It belongs to something else.
    #[error("descriptor {fd} was not inherited, or has another use already")]
    InUse {
        /// Its number.
        fd: RawFd,
    },
    /// The host does not let it be looked at or changed.
    #[error("descriptor {fd} cannot be used")]
    Fcntl {
        /// Its number.
        fd: RawFd,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Takes over a descriptor that this process has inherited. Programs that it starts do not inherit
/// it any further.
///
/// What was inherited is known by that it would be inherited further (`FD_CLOEXEC`, execve(2)):
/// whatever is opened here would not. So nothing is taken over that belongs to something else, and
/// nothing twice.
///
/// # Errors
/// It is not open, a standard stream, or was not inherited.
pub fn claim(fd: RawFd) -> Result<OwnedFd, InheritedError> {
    if fd < FIRST {
        return Err(InheritedError::Standard { fd });
    }
    // SAFETY: F_GETFD takes any number.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        let source = io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            Some(libc::EBADF) => InheritedError::NotOpen { fd },
            _ => InheritedError::Fcntl { fd, source },
        });
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(InheritedError::InUse { fd });
    }
    // SAFETY: the descriptor is open, and the flag changes nothing for this process.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        let source = io::Error::last_os_error();
        return Err(InheritedError::Fcntl { fd, source });
    }
    // SAFETY: it is open, it is no standard stream, and nobody here has it: all that is opened here
    // has the flag that was not set before, and so has all that was taken over.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a descriptor was opened for writing.
///
/// # Errors
/// The host does not tell.
pub fn is_writable(fd: impl AsFd) -> io::Result<bool> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open as long as it is borrowed.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(matches!(
        flags & libc::O_ACCMODE,
        libc::O_WRONLY | libc::O_RDWR
    ))
}

/// For tests: a descriptor as if it was inherited.
#[cfg(test)]
pub(crate) fn as_inherited(fd: impl AsFd) -> RawFd {
    // SAFETY: the descriptor is open as long as it is borrowed.
    let copy = unsafe { libc::dup(fd.as_fd().as_raw_fd()) };
    assert!(copy >= FIRST, "{}", io::Error::last_os_error());
    copy
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use super::*;

    fn flags(fd: &OwnedFd) -> i32 {
        // SAFETY: F_GETFD takes any number.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }
    }

    #[test]
    fn an_inherited_descriptor_is_taken_over_once_and_not_inherited_further() {
        let (mut reader, writer) = io::pipe().unwrap();
        let fd = as_inherited(&writer);
        drop(writer);
        let claimed = claim(fd).unwrap();
        assert_eq!(flags(&claimed), libc::FD_CLOEXEC);
        let again = claim(fd).unwrap_err();
        assert!(matches!(again, InheritedError::InUse { .. }), "{again}");

        let mut file = File::from(claimed);
        file.write_all(b"x").unwrap();
        // It is ours alone: nobody else keeps the pipe open.
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn what_is_not_inherited_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let error = claim(file.as_raw_fd()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "descriptor {} was not inherited, or has another use already",
                file.as_raw_fd()
            )
        );
        for fd in [-1, 0, 1, 2] {
            let error = claim(fd).unwrap_err();
            assert!(matches!(error, InheritedError::Standard { .. }), "{error}");
        }
        let error = claim(1_000_000_000).unwrap_err();
        assert!(matches!(error, InheritedError::NotOpen { .. }), "{error}");
    }

    #[test]
    fn what_can_be_written_is_known() {
        let (reader, writer) = io::pipe().unwrap();
        assert!(!is_writable(&reader).unwrap());
        assert!(is_writable(&writer).unwrap());
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(is_writable(&one).unwrap());
    }
}
