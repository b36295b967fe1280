//! Output that is written by a thread of its own, for devices that must not wait for readers.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{ConsoleError, file, lock};

/// Bytes that wait for the reader here at most; a device keeps what is beyond that.
pub(super) const CAPACITY: usize = 64 << 10;
/// Bytes that are written at once: few, so that it shows that a slow reader reads.
const WRITE: usize = 1024;
/// How long a reader that takes nothing is waited for at the end.
const GRACE: Duration = Duration::from_secs(1);
/// Time between two tries to interrupt a write, and to write to what is full and does not wait.
const AGAIN: Duration = Duration::from_millis(1);

/// Output to a descriptor that a thread waits for.
pub(super) struct Paced {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Whether the file still has what was in it before.
    stale: AtomicBool,
}

struct Shared {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
    /// Who is told that there is room again.
    on_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<u8>,
    /// Whether somebody had to keep something.
    starved: bool,
    /// Bytes that have gone, one way or the other.
    gone: u64,
    wish: Wish,
    ended: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    Write,
    /// Write what there is, and end.
    Finish,
    /// End.
    End,
}

impl Paced {
    /// Writes to `file`, whose contents go when a machine is about to run if it is `stale`.
    pub(super) fn start(file: File, stale: bool) -> Result<Self, ConsoleError> {
        prepare_interruptions()?;
        let shared = Arc::new(Shared {
            file,
            state: Mutex::default(),
            changed: Condvar::new(),
            on_room: OnceLock::new(),
        });
        let theirs = Arc::clone(&shared);
        let builder = thread::Builder::new().name("console".to_owned());
        let thread = builder.spawn(move || theirs.write_all());
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread.map_err(ConsoleError::Thread)?)),
            stale: AtomicBool::new(stale),
        })
    }

    /// Calls `on_room` whenever there is room for what [`Paced::offer`] did not take.
    pub(super) fn tell_of_room(&self, on_room: Box<dyn Fn() + Send + Sync>) {
        // There is one who can be told.
        let _ = self.shared.on_room.set(on_room);
    }

    /// Takes as many bytes as there is room for, and returns their number.
    pub(super) fn offer(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.shared.state);
        if state.wish != Wish::Write {
            return bytes.len();
        }
        let count = bytes.len().min(CAPACITY.saturating_sub(state.queue.len()));
        state.queue.extend(bytes.get(..count).unwrap_or_default());
        state.starved |= count < bytes.len();
        drop(state);
        self.shared.changed.notify_all();
        count
    }

    /// Empties a stale file.
    pub(super) fn pick_up(&self) -> io::Result<()> {
        if self.stale.swap(false, Ordering::Relaxed) {
            file::truncate(&self.shared.file)?;
        }
        Ok(())
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Ends, once everything is written or the reader has taken nothing for [`GRACE`].
    pub(super) fn close(&self) {
        let Some(thread) = lock(&self.thread).take() else {
            return;
        };
        let mut state = lock(&self.shared.state);
        state.wish = Wish::Finish;
        self.shared.changed.notify_all();
        // It is waited for as long as it gets on.
        while !state.ended {
            let before = state.gone;
            let waited = self
                .shared
                .changed
                .wait_timeout_while(state, GRACE, |state| !state.ended && state.gone == before);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.gone == before {
                break;
            }
        }
        state.wish = Wish::End;
        while !state.ended {
            // One that comes just before the thread waits is in vain.
            let _ = thread.kill(interruption());
            let waited = self.shared.changed.wait_timeout(state, AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        if thread.join().is_err() {
            log::error!("the thread that writes a console's output has panicked");
        }
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn write_all(&self) {
        let mut chunk = Vec::with_capacity(WRITE);
        let mut has_failed = false;
        while self.take(&mut chunk) {
            match self.write(&chunk) {
                Ok(()) => has_failed = false,
                // Every piece is tried: what was full may have room again.
                Err(error) if !has_failed => {
                    has_failed = true;
                    log::error!("the console's output is lost: {error}");
                }
                Err(_) => {}
            }
        }
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }

    /// Waits for what is to be written next.
    ///
    /// # Returns
    /// Whether there is anything.
    fn take(&self, chunk: &mut Vec<u8>) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_while(state, |state| {
            state.wish == Wish::Write && state.queue.is_empty()
        });
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.wish == Wish::End || state.queue.is_empty() {
            return false;
        }
        let count = state.queue.len().min(WRITE);
        chunk.clear();
        chunk.extend(state.queue.drain(..count));
        // Not for every piece: whoever waits has much to write.
        let has_room = state.queue.len() <= CAPACITY / 2 && std::mem::take(&mut state.starved);
        drop(state);
        if has_room && let Some(on_room) = self.on_room.get() {
            on_room();
        }
        true
    }

    fn write(&self, chunk: &[u8]) -> io::Result<()> {
        let mut rest = chunk;
        while !rest.is_empty() && lock(&self.state).wish != Wish::End {
            let gone = match (&self.file).write(rest) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(AGAIN);
                    continue;
                }
                Err(error) => {
                    self.has_gone(rest.len());
                    return Err(error);
                }
            };
            rest = rest.get(gone..).unwrap_or_default();
            self.has_gone(gone);
        }
        Ok(())
    }

    fn has_gone(&self, count: usize) {
        let mut state = lock(&self.state);
        state.gone += count as u64;
        let is_awaited = state.wish != Wish::Write;
        drop(state);
        if is_awaited {
            self.changed.notify_all();
        }
    }
}

/// The signal that interrupts writes; vCPUs are kicked with the one before.
fn interruption() -> libc::c_int {
    SIGRTMIN() + 1
}

/// Its arrival is what counts.
extern "C" fn on_interruption(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn prepare_interruptions() -> Result<(), ConsoleError> {
    static PREPARED: Once = Once::new();
    let mut result = Ok(());
    PREPARED.call_once(|| result = register_signal_handler(interruption(), on_interruption));
    result.map_err(|error| ConsoleError::Thread(error.into()))
}
