//! A pseudo-terminal as a console.
#![expect(unsafe_code, reason = "pseudo-terminals are set up with ioctls")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ConsoleError, terminal};

/// A pseudo-terminal pair.
pub(super) struct Pty {
    /// Our end, non-blocking.
    pub(super) master: Arc<File>,
    /// The other end, kept open so that the terminal outlives its users: the master never sees a
    /// hang-up, and the settings stay raw from one user to the next.
    _slave: File,
    path: PathBuf,
}

impl Pty {
    pub(super) fn open() -> Result<Self, ConsoleError> {
        Self::create().map_err(ConsoleError::Pty)
    }

    fn create() -> io::Result<Self> {
        let master = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open("/dev/ptmx")?;

        let unlock: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int, which `unlock` is.
        let result =
            unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut number: libc::c_uint = 0;
        // SAFETY: TIOCGPTN writes one unsigned int, which `number` is.
        let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }

        let path = PathBuf::from(format!("/dev/pts/{number}"));
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(&path)?;
        let settings = terminal::settings(&slave)?;
        terminal::apply(&slave, &terminal::raw(settings))?;
        Ok(Self {
            master: Arc::new(master),
            _slave: slave,
            path,
        })
    }

    /// What a user opens.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
