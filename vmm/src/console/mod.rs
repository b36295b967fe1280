//! The host side of serial ports, the debug console and the virtio console.
//!
//! A console has two ends. The [`Backend`] is the host's: it owns the terminal, pseudo-terminal,
//! socket or file, and lives in the main event loop for as long as the process. The [`Port`] is
//! the machine's: a cheap handle that devices write to from vCPU threads and through which they
//! are given input. A guest reboot attaches a new device to the same port, so the path of a
//! pseudo-terminal stays, the client of a socket stays connected and typed-ahead input is kept.
//!
//! | mode   | output                                        | input                     |
//! |--------|-----------------------------------------------|---------------------------|
//! | null   | discarded                                     | none                      |
//! | tty    | standard output, the vCPU waits for it        | standard input            |
//! | pty    | never waits; the newest [`BACKLOG`] bytes kept | from whoever opens it    |
//! | file   | emptied at start, the vCPU waits for it       | none                      |
//! | socket | never waits; the newest [`BACKLOG`] bytes kept | from the newest client   |
//!
//! Output that a pseudo-terminal's reader or a socket's client does not take, or that is written
//! while there is none, goes to a backlog and is delivered once it is; beyond [`BACKLOG`] bytes the
//! oldest are dropped.
//!
//! The virtio console has a queue, in which output waits while nobody reads standard output or a file,
//! and a thread of its own writes to them ([`Backend::open_for_queue`]): its device is never kept
//! waiting, and neither is who stops it.

mod backend;
mod file;
mod input;
mod output;
mod paced;
mod pty;
mod screen;
mod socket;
pub mod terminal;
mod tty;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::virtio::console::Size;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

pub use self::backend::Backend;
use self::output::Output;

/// Most bytes of output kept for a reader that is slow or not there yet.
pub const BACKLOG: usize = 1 << 20;

/// Where a console's output goes and its input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Output is discarded, there is no input.
    Null,
    /// Standard input and output.
    Tty,
    /// A new pseudo-terminal.
    Pty,
    /// A file that is created, or emptied once a machine runs; no input.
    File(PathBuf),
    /// A Unix stream socket that is listened on.
    Socket(PathBuf),
}

/// Why a console cannot be opened.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// Standard input or output cannot be used.
    #[error("cannot use standard input and output as a console")]
    Stdio(#[source] io::Error),
    /// The terminal's settings cannot be changed.
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
    /// A second console wants the terminal.
    #[error("the terminal is in use by another console of this machine")]
    TerminalInUse,
    /// There is no pseudo-terminal to be had.
    #[error("cannot create a pseudo-terminal")]
    Pty(#[source] io::Error),
    /// The output file cannot be created.
    #[error("cannot create console file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket cannot be created.
    #[error("cannot listen on console socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process listens on the socket.
    #[error("console socket {} is in use by another process", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's path is taken by something that must not be removed.
    #[error("console socket {} exists already and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// No event descriptor.
    #[error("cannot create an event for the console")]
    Event(#[source] io::Error),
    /// No thread.
    #[error("cannot start a thread for the console")]
    Thread(#[source] io::Error),
}

/// A device that takes console input, and what else concerns it.
pub trait InputSink: Send + Sync {
    /// Takes as many of `bytes` as there is room for and returns their number. Never waits.
    ///
    /// A sink that takes fewer than it is offered calls [`Port::room_again`] once it has room; it
    /// is offered the rest then, and nothing before that.
    fn accept(&self, bytes: &[u8]) -> usize;

    /// There is room for output again that [`Port::offer`] did not take. Called from any thread.
    fn output_has_room(&self) {}

    /// The terminal has another size.
    fn resized(&self, _size: Size) {}
}

/// What the two ends of a console share.
struct Shared {
    /// Wakes the event loop: a sink was attached or has room, or output needs to be flushed.
    wake: EventFd,
    /// The device that takes input.
    sink: Mutex<Option<Arc<dyn InputSink>>>,
    /// Whether it is given none for now.
    held: AtomicBool,
    /// Where output goes.
    output: Output,
    /// The size of the terminal, where it is watched.
    size: Option<Mutex<Size>>,
}

/// The machine's end of a console.
///
/// A write takes all bytes or fails. Only standard output and files can fail; a pseudo-terminal or
/// socket without a reader is no failure.
#[derive(Clone)]
pub struct Port {
    shared: Arc<Shared>,
}

impl Port {
    fn new(output: Output, size: Option<Size>) -> Result<Self, ConsoleError> {
        let wake =
            EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(ConsoleError::Event)?;
        let shared = Shared {
            wake,
            sink: Mutex::new(None),
            held: AtomicBool::new(false),
            output,
            size: size.map(Mutex::new),
        };
        let shared = Arc::new(shared);
        if let Output::Paced(paced) = &shared.output {
            let port = Arc::downgrade(&shared);
            paced.tell_of_room(Box::new(move || {
                let sink = port.upgrade().and_then(|shared| lock(&shared.sink).clone());
                if let Some(sink) = sink {
                    sink.output_has_room();
                }
            }));
        }
        Ok(Self { shared })
    }

    /// Takes as many of `bytes` as there is room for, from the first on, and returns their number; the
    /// sink is told once there is room for more. Never waits, if the console was opened with
    /// [`Backend::open_for_queue`].
    pub fn offer(&self, bytes: &[u8]) -> usize {
        match &self.shared.output {
            Output::Paced(paced) => paced.offer(bytes),
            output => {
                match output.write(bytes) {
                    Ok(true) => self.wake(),
                    Ok(false) => {}
                    Err(error) => log::error!("the console's output is lost: {error}"),
                }
                bytes.len()
            }
        }
    }

    /// The size of the terminal, if the console is one and was opened with
    /// [`Backend::open_for_queue`].
    pub fn size(&self) -> Option<Size> {
        self.shared.size.as_ref().map(|size| *lock(size))
    }

    fn resize(&self, to: Size) {
        if let Some(size) = &self.shared.size {
            *lock(size) = to;
        }
        let sink = lock(&self.shared.sink).clone();
        if let Some(sink) = sink {
            sink.resized(to);
        }
    }

    /// Gives input to `sink` from now on, in place of any earlier one; input that the earlier one
    /// had no room for comes first.
    pub fn attach(&self, sink: Arc<dyn InputSink>) {
        *lock(&self.shared.sink) = Some(sink);
        self.wake();
    }

    /// Stops giving input to anyone; it waits on the host until the next [`Port::attach`].
    pub fn detach(&self) {
        *lock(&self.shared.sink) = None;
    }

    /// Says that the sink has room again. May be called from any thread, and with locks held that
    /// [`InputSink::accept`] takes.
    pub fn room_again(&self) {
        self.wake();
    }

    /// Drops all output to standard output or a file from now on.
    ///
    /// For shutdown, before vCPUs are interrupted: one that waits for a standard output nobody
    /// reads gives up at its next signal. Other outputs make nobody wait; they get what is left.
    pub fn hang_up(&self) {
        self.shared.output.hang_up();
    }

    /// Holds back input, which waits on the host, and makes output wait for nobody.
    ///
    /// For a machine that is to be paused, before vCPUs are interrupted: one that waits for a reader
    /// leaves what is not read yet at its next signal, and [`Port::settle`] waits for that. To be called in the
    /// thread of the event loop: input that another is about to deliver is still delivered.
    pub fn hold(&self) {
        self.shared.held.store(true, Ordering::Relaxed);
        self.shared.output.hold();
    }

    /// Undoes [`Port::hold`].
    pub fn go_on(&self) {
        self.shared.output.go_on();
        self.shared.held.store(false, Ordering::Relaxed);
        self.wake();
    }

    /// Waits for the reader of what the calling thread has left, as it would have done without
    /// [`Port::hold`].
    pub fn settle(&self) {
        if let Err(error) = self.shared.output.settle() {
            log::error!("output from before the pause is lost: {error}");
        }
    }

    /// A machine is about to run: empties the file, if the output goes to one and this is the first
    /// time, and undoes [`Port::hang_up`] and [`Port::hold`].
    pub fn pick_up(&self) {
        self.go_on();
        if let Err(error) = self.shared.output.pick_up() {
            log::warn!("the console's file keeps what was in it: {error}");
        }
    }

    /// Who takes input now.
    fn sink(&self) -> Option<Arc<dyn InputSink>> {
        if self.shared.held.load(Ordering::Relaxed) {
            return None;
        }
        lock(&self.shared.sink).clone()
    }

    fn wake(&self) {
        // The only failure is a counter at its limit, and then the loop is awake anyway.
        let _ = self.shared.wake.write(1);
    }
}

impl Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shared.output.write(bytes)? {
            self.wake();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Locks a mutex whose data stays consistent even if a holder panicked.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
