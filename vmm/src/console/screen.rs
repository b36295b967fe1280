//! The size of the host's terminal, and its changes.
//!
//! The terminal that the process was started from announces them with `SIGWINCH`, which `block_signals`
//! has blocked. A pseudo-terminal of ours does not: the signal goes to the foreground processes of the
//! session on its other end, and the kernel has no other message for its master. A process of our own in
//! such a session would be the terminal's controlling one, and take it from the user who opens it. So
//! the size is looked at now and then, which is one system call.
#![expect(unsafe_code, reason = "signalfd, and an ioctl of terminals")]

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use devices::virtio::console::Size;
use vmm_sys_util::signal::create_sigset;
use vmm_sys_util::timerfd::TimerFd;

use super::{ConsoleError, terminal};

/// How often the size of a pseudo-terminal is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A terminal whose size is watched.
pub(super) struct Screen {
    terminal: Arc<File>,
    changes: Changes,
    size: Size,
}

/// What tells of changes.
enum Changes {
    Signal(File),
    Timer(TimerFd),
}

impl Screen {
    /// The terminal that is on standard output or else on standard input, if there is one.
    pub(super) fn of_process() -> Result<Option<Self>, ConsoleError> {
        let terminal = if io::stdout().is_terminal() {
            terminal::duplicate(io::stdout())?
        } else if io::stdin().is_terminal() {
            terminal::duplicate(io::stdin())?
        } else {
            return Ok(None);
        };
        let signal = watch_signal().map_err(ConsoleError::Event)?;
        Ok(Some(Self::new(Arc::new(terminal), Changes::Signal(signal))))
    }

    /// A pseudo-terminal, by its master.
    pub(super) fn of_pty(master: Arc<File>) -> Result<Self, ConsoleError> {
        let timer = || {
            let mut timer = TimerFd::new()?;
            timer.reset(LOOK, Some(LOOK))?;
            Ok(timer)
        };
        let timer = timer().map_err(ConsoleError::Event)?;
        Ok(Self::new(master, Changes::Timer(timer)))
    }

    fn new(terminal: Arc<File>, changes: Changes) -> Self {
        Self {
            // One that has just gone has none.
            size: size(&terminal).unwrap_or_default(),
            terminal,
            changes,
        }
    }

    /// The size as it was seen last.
    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// What is readable when it is time to look.
    pub(super) fn descriptor(&self) -> RawFd {
        match &self.changes {
            Changes::Signal(file) => file.as_raw_fd(),
            Changes::Timer(timer) => timer.as_raw_fd(),
        }
    }

    /// Takes what made the descriptor readable.
    pub(super) fn take_event(&mut self) {
        match &mut self.changes {
            Changes::Signal(file) => {
                let mut info = [0; size_of::<libc::signalfd_siginfo>()];
                while matches!(file.read(&mut info), Ok(length) if length > 0) {}
            }
            // It has expired, so this does not wait.
            Changes::Timer(timer) => {
                let _ = timer.wait();
            }
        }
    }

    /// Looks, and returns the size if it is another one.
    pub(super) fn look(&mut self) -> Option<Size> {
        // A terminal that is gone keeps its size.
        let now = size(&self.terminal).ok()?;
        (std::mem::replace(&mut self.size, now) != now).then_some(now)
    }
}

fn size(terminal: &File) -> io::Result<Size> {
    let mut window = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize, which `window` is.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut window) };
    match result {
        0 => Ok(Size {
            columns: window.ws_col,
            rows: window.ws_row,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn watch_signal() -> io::Result<File> {
    let set = create_sigset(&[libc::SIGWINCH])?;
    // SAFETY: the set is initialised; a new descriptor is made.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { File::from_raw_fd(fd) })
}
