//! `--event-monitor`: what happens to a machine, told to whoever watches it.
//!
//! `docs/events.md` has the form and all events. A consumer that does not read makes nobody wait:
//! events are queued, and a thread of their own writes them.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::mem;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::config::Target;
use crate::inherited::{self, InheritedError};

/// Events that wait for a consumer at most.
const CAPACITY: usize = 1024;
/// How long the end of the process waits for a consumer to read what is left.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest text in an event, in bytes of JSON. With three of them an event is still shorter
/// than `PIPE_BUF`: a pipe takes it whole (pipe(7)), and a consumer's buffer of that size too.
const LONGEST_TEXT: usize = 1000;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The VMM starts.
    Starting,
    /// The VMM ends.
    VmmShutdown,
    /// A thread of the VMM panicked.
    Panic {
        /// Where, and why.
        message: &'a str,
    },
    /// A machine is about to be built.
    Booting,
    /// Its vCPUs run.
    Booted,
    /// A machine has ended.
    Shutdown,
    /// A machine is about to be built anew.
    Rebooting,
    /// The vCPUs of the new one run.
    Rebooted,
    /// vCPUs and devices are about to stand still.
    Pausing,
    /// They stand still.
    Paused,
    /// They are about to go on.
    Resuming,
    /// They go on.
    Resumed,
    /// The configuration of the machine is gone.
    Deleted,
    /// A vCPU cannot run further.
    VcpuFailed {
        /// Why.
        reason: &'a str,
    },
    /// A passed-through device is gone.
    DeviceLost {
        /// What the plan calls it; none before there was a plan.
        id: Option<&'a str>,
        /// The option that gave it.
        option: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// Events before this one found no room or could not be written.
    EventsLost {
        /// How many.
        count: u64,
    },
}

impl Event<'_> {
    /// Source, name and properties, as consumers know them.
    fn parts(&self) -> (&'static str, &'static str, Vec<(&'static str, String)>) {
        let none = Vec::new;
        match *self {
            Self::Starting => ("vmm", "starting", none()),
            Self::VmmShutdown => ("vmm", "shutdown", none()),
            Self::Panic { message } => ("vmm", "panic", vec![("info", message.to_owned())]),
            Self::EventsLost { count } => {
                ("vmm", "events-lost", vec![("count", count.to_string())])
            }
            Self::Booting => ("vm", "booting", none()),
            Self::Booted => ("vm", "booted", none()),
            Self::Shutdown => ("vm", "shutdown", none()),
            Self::Rebooting => ("vm", "rebooting", none()),
            Self::Rebooted => ("vm", "rebooted", none()),
            Self::Pausing => ("vm", "pausing", none()),
            Self::Paused => ("vm", "paused", none()),
            Self::Resuming => ("vm", "resuming", none()),
            Self::Resumed => ("vm", "resumed", none()),
            Self::Deleted => ("vm", "deleted", none()),
            Self::VcpuFailed { reason } => ("vm", "failed", vec![("reason", reason.to_owned())]),
            Self::DeviceLost { id, option, reason } => {
                let id = id.map(|id| ("id", id.to_owned()));
                let mut properties = Vec::from_iter(id);
                properties.push(("option", option.to_owned()));
                properties.push(("reason", reason.to_owned()));
                ("vm", "device-lost", properties)
            }
        }
    }

    /// The event as it is written, without its time and what stands before that.
    fn text(&self) -> String {
        let (source, name, properties) = self.parts();
        let mut text = format!("  \"source\": \"{source}\",\n  \"event\": \"{name}\",\n");
        let mut separator = "  \"properties\": {\n";
        for (key, value) in &properties {
            let _ = write!(text, "{separator}    \"{key}\": {}", literal(value));
            separator = ",\n";
        }
        text.push_str(match properties[..] {
            [] => "  \"properties\": null\n}\n\n",
            [..] => "\n  }\n}\n\n",
        });
        text
    }
}

/// A text as JSON, shortened if it is too long.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for character in text.chars() {
        if literal.len() >= LONGEST_TEXT {
            literal.push('…');
            break;
        }
        match character {
            '"' | '\\' => literal.extend(['\\', character]),
            '\n' => literal.push_str("\\n"),
            // There are consumers that find the end of an event by counting braces, those of texts
            // included.
            '{' | '}' | '\0'..' ' | '\x7f' => {
                let _ = write!(literal, "\\u{:04x}", u32::from(character));
            }
            _ => literal.push(character),
        }
    }
    literal.push('"');
    literal
}

/// Why events cannot be reported.
#[derive(Debug, Error)]
pub enum EventMonitorError {
    /// The file cannot be opened.
    #[error("--event-monitor path={}: cannot open it for writing", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The descriptor cannot be used.
    #[error("--event-monitor fd={fd}")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// Why not.
        #[source]
        source: InheritedError,
    },
    /// The descriptor is one to read from.
    #[error("--event-monitor fd={fd}: the descriptor is not open for writing")]
    ReadOnly {
        /// Its number.
        fd: RawFd,
    },
    /// The host has no room for a thread.
    #[error("--event-monitor: cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Where events are reported; every clone is the same place.
#[derive(Clone, Debug)]
pub struct Events(Option<Arc<Monitor>>);

impl Events {
    /// A place where nobody looks.
    pub fn none() -> Self {
        Self(None)
    }

    /// Starts to report to `target`, with times since `start`. Threads inherit what signals are
    /// blocked, and this starts one.
    ///
    /// # Errors
    /// The target cannot be written to, or there is no room for a thread.
    pub fn start(target: &Target, start: Instant) -> Result<Self, EventMonitorError> {
        let file = match target {
            Target::Path(path) => open(path).map_err(|source| EventMonitorError::Open {
                path: path.clone(),
                source,
            })?,
            Target::Fd(fd) => take_over(*fd)?,
        };
        Ok(Self(Some(Arc::new(Monitor::start(file, start)?))))
    }

    /// Reports an event, if anybody may look; never waits for who does.
    pub fn report(&self, event: Event<'_>) {
        if let Some(monitor) = &self.0 {
            monitor.shared.report(event);
        }
    }

    /// Writes what is left, if somebody reads it within a second; nothing is reported any more. The
    /// end of the last clone does the same.
    pub fn close(&self) {
        if let Some(monitor) = &self.0 {
            monitor.close();
        }
    }
}

/// Reports panics of any thread from now on, after what was done about them before.
pub fn report_panics(events: &Events) {
    let Some(monitor) = &events.0 else { return };
    // Otherwise what is queued would wait for an end of the hook, which has none.
    let monitor = Arc::downgrade(monitor);
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        previous(info);
        if let Some(monitor) = monitor.upgrade() {
            let message = describe(info);
            monitor.shared.report(Event::Panic { message: &message });
        }
    }));
}

fn describe(info: &panic::PanicHookInfo<'_>) -> String {
    let reason = info.payload_as_str().unwrap_or("no reason");
    match info.location() {
        Some(location) => format!("{location}: {reason}"),
        None => reason.to_owned(),
    }
}

/// Opens a file for events: what was in it is gone, a new one is the operator's alone.
fn open(path: &Path) -> io::Result<File> {
    // Opened for writing alone, a pipe would have to have a reader already, and would be broken once
    // it has none.
    let is_pipe = fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo());
    OpenOptions::new()
        .read(is_pipe)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        // Nothing that the path may lead to makes the start wait; and events stay whole if somebody
        // else truncates the file.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_APPEND)
        .open(path)
}

fn take_over(fd: RawFd) -> Result<File, EventMonitorError> {
    let failed = |source| EventMonitorError::Inherited { fd, source };
    let owned = inherited::claim(fd).map_err(failed)?;
    let writable = inherited::is_writable(&owned);
    match writable.map_err(|source| failed(InheritedError::Fcntl { fd, source }))? {
        true => Ok(File::from(owned)),
        false => Err(EventMonitorError::ReadOnly { fd }),
    }
}

/// The queue's owner: it and its thread end together.
#[derive(Debug)]
struct Monitor {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Monitor {
    fn start(file: File, start: Instant) -> Result<Self, EventMonitorError> {
        let shared = Arc::new(Shared {
            start,
            state: Mutex::new(State {
                waiting: VecDeque::with_capacity(CAPACITY),
                lost: 0,
                has_warned: false,
                phase: Phase::Open,
            }),
            changed: Condvar::new(),
        });
        let writer = thread::Builder::new()
            .name("event-monitor".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.write(&file)
            })
            .map_err(EventMonitorError::Thread)?;
        Ok(Self {
            shared,
            writer: Mutex::new(Some(writer)),
        })
    }

    fn close(&self) {
        if !self.shared.close() {
            return;
        }
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            log::error!("the thread of the event monitor panicked");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    state: Mutex<State>,
    /// Tells of events for the writer, and of phases.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Events that found no room, since the last one that did.
    lost: u64,
    has_warned: bool,
    phase: Phase,
}

/// An event that is to be written.
#[derive(Debug)]
struct Waiting {
    time: Duration,
    /// What follows its time.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Events are taken.
    Open,
    /// What is left is written.
    Closing,
    /// Nobody reads what is left.
    GivenUp,
    /// The writer has nothing left to do.
    Done,
}

impl State {
    /// Queues word of what was lost, whether there is room or not.
    fn tell_of_losses(&mut self, time: Duration) {
        let count = mem::take(&mut self.lost);
        if count > 0 {
            let text = Event::EventsLost { count }.text();
            self.waiting.push_back(Waiting { time, text });
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, event: Event<'_>) {
        let text = event.text();
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return;
        }
        // Taken here, so that they grow from each event to the next.
        let time = self.start.elapsed();
        let needed = 1 + usize::from(state.lost > 0);
        if state.waiting.len() + needed > CAPACITY {
            state.lost += 1;
            let had_warned = mem::replace(&mut state.has_warned, true);
            drop(state);
            if !had_warned {
                log::warn!("--event-monitor: nobody reads the events: further ones are dropped");
            }
            return;
        }
        state.tell_of_losses(time);
        state.waiting.push_back(Waiting { time, text });
        drop(state);
        self.changed.notify_all();
    }

    /// The next event; none at the end.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if state.phase == Phase::GivenUp {
                return None;
            }
            if let Some(waiting) = state.waiting.pop_front() {
                return Some(waiting);
            }
            if state.phase != Phase::Open {
                return None;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes events until the end.
    fn write(&self, file: &File) {
        let mut failed = 0;
        let mut has_warned = false;
        while let Some(Waiting { time, text }) = self.next() {
            let notice = (failed > 0).then(|| Event::EventsLost { count: failed }.text());
            let written = notice
                .map_or(Ok(()), |notice| write(file, &timed(time, &notice)))
                .map(|()| failed = 0)
                .and_then(|()| write(file, &timed(time, &text)));
            if let Err(error) = written {
                failed += 1;
                if !mem::replace(&mut has_warned, true) {
                    log::warn!("--event-monitor: an event cannot be written: {error}");
                }
            }
        }
        self.lock().phase = Phase::Done;
        self.changed.notify_all();
    }

    /// Waits until what is left is written, but not for ever; returns whether it is.
    fn close(&self) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.tell_of_losses(self.start.elapsed());
            state.phase = Phase::Closing;
            self.changed.notify_all();
        }
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.phase == Phase::Closing);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.phase == Phase::Closing {
            state.phase = Phase::GivenUp;
            drop(state);
            log::warn!("--event-monitor: nobody reads the events: the last ones are dropped");
            return false;
        }
        state.phase == Phase::Done
    }
}

/// An event with its time: what serde makes of a duration, in serde_json's pretty form.
fn timed(time: Duration, text: &str) -> String {
    let (secs, nanos) = (time.as_secs(), time.subsec_nanos());
    format!("{{\n  \"timestamp\": {{\n    \"secs\": {secs},\n    \"nanos\": {nanos}\n  }},\n{text}")
}

/// Writes all of a text, however long that takes.
fn write(mut file: &File, text: &str) -> io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_for_room(file)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until a file takes more, or never will.
fn wait_for_room(file: &File) -> io::Result<()> {
    let room = Epoll::new()?;
    let event = EpollEvent::new(EventSet::OUT, 0);
    room.ctl(ControlOperation::Add, file.as_raw_fd(), event)?;
    match room.wait(-1, &mut [EpollEvent::default()]) {
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
