//! Standard input as a source of console input.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::ConsoleError;
use super::terminal::{self, RawTerminal};

/// How often a process in the background looks whether it was brought to the foreground.
const LOOK: Duration = Duration::from_millis(500);

/// Standard input: a terminal, a pipe, a file.
pub(super) struct Stdin {
    pub(super) file: Arc<File>,
    /// If it is a terminal.
    pub(super) terminal: Option<Terminal>,
}

/// A terminal that standard input is.
///
/// It is read and changed only while the process is in its foreground process group, so that a
/// machine started in the background neither stops nor takes the shell's input. It is taken over
/// once the process is brought to the foreground.
pub(super) struct Terminal {
    file: Arc<File>,
    /// Present in the foreground.
    raw: Option<RawTerminal>,
    /// Runs in the background: when it expires, it is time to [`Terminal::look`].
    pub(super) timer: TimerFd,
}

impl Stdin {
    /// Uses standard input, and puts it into raw mode if it is a terminal.
    pub(super) fn open() -> Result<Self, ConsoleError> {
        let file = Arc::new(terminal::duplicate(io::stdin())?);
        let terminal = match file.is_terminal() {
            true => Some(Terminal::open(file.clone())?),
            false => None,
        };
        Ok(Self { file, terminal })
    }

    /// Whether input may be read.
    pub(super) fn is_available(&self) -> bool {
        self.terminal.as_ref().is_none_or(|t| t.raw.is_some())
    }
}

impl Terminal {
    fn open(file: Arc<File>) -> Result<Self, ConsoleError> {
        let timer = TimerFd::new().map_err(event_error)?;
        let mut terminal = Self {
            file,
            raw: None,
            timer,
        };
        if terminal::is_foreground(&terminal.file) {
            terminal.take()?;
        } else {
            terminal.watch()?;
        }
        Ok(terminal)
    }

    /// The timer has expired: looks whether the process is in the foreground now.
    pub(super) fn look(&mut self) -> Result<(), ConsoleError> {
        self.timer.wait().map_err(event_error)?;
        if self.raw.is_none() && terminal::is_foreground(&self.file) {
            self.timer.clear().map_err(event_error)?;
            self.take()?;
        }
        Ok(())
    }

    /// Before input is read: looks whether the process is in the background now.
    pub(super) fn keep(&mut self) -> Result<(), ConsoleError> {
        if self.raw.is_some() && !terminal::is_foreground(&self.file) {
            self.raw = None;
            self.watch()?;
        }
        Ok(())
    }

    fn take(&mut self) -> Result<(), ConsoleError> {
        self.raw = Some(RawTerminal::enter(terminal::duplicate(&*self.file)?)?);
        Ok(())
    }

    fn watch(&mut self) -> Result<(), ConsoleError> {
        self.timer.reset(LOOK, Some(LOOK)).map_err(event_error)
    }
}

fn event_error(error: vmm_sys_util::errno::Error) -> ConsoleError {
    ConsoleError::Event(io::Error::from(error))
}
