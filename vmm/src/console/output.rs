//! The output side of a console, written to by vCPU threads.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::paced::Paced;
use super::{BACKLOG, ConsoleError, file, lock};

/// Pause before a write is tried again on a standard output that someone who shares it has made
/// non-blocking and that is full.
const RETRY: Duration = Duration::from_millis(1);

/// Where output goes.
pub(super) enum Output {
    /// Nowhere.
    Discard,
    /// To a descriptor that the writer waits for.
    Direct(Direct),
    /// To a non-blocking descriptor, by way of a backlog.
    Buffered(Mutex<Buffered>),
    /// To a descriptor that a thread waits for.
    Paced(Paced),
}

impl Output {
    pub(super) fn direct(file: File) -> Self {
        Self::Direct(Direct {
            file,
            closed: AtomicBool::new(false),
            held: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            left: Mutex::default(),
        })
    }

    /// As [`Output::direct`], to a file whose contents go when a machine is about to run.
    pub(super) fn direct_to_stale(file: File) -> Self {
        Self::Direct(Direct {
            file,
            closed: AtomicBool::new(false),
            held: AtomicBool::new(false),
            stale: AtomicBool::new(true),
            left: Mutex::default(),
        })
    }

    /// To a file that a thread writes to; its contents go when a machine is about to run if it is
    /// `stale`.
    pub(super) fn paced(file: File, stale: bool) -> Result<Self, ConsoleError> {
        Paced::start(file, stale).map(Self::Paced)
    }

    pub(super) fn buffered(file: Option<Arc<File>>) -> Self {
        Self::Buffered(Mutex::new(Buffered {
            file,
            backlog: Ring::new(BACKLOG),
            overrun: false,
            closed: false,
        }))
    }

    /// Writes all of `bytes`. Returns true if a backlog has begun that the event loop has to flush.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<bool> {
        match self {
            Self::Discard => Ok(false),
            Self::Direct(direct) => direct.write(bytes).map(|()| false),
            Self::Buffered(buffered) => Ok(lock(buffered).write(bytes)),
            Self::Paced(paced) => {
                let taken = paced.offer(bytes);
                match taken == bytes.len() {
                    true => Ok(false),
                    // Whoever can wait uses `Port::offer`.
                    false => Err(ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Makes writers no longer wait: what would have to is dropped.
    pub(super) fn hang_up(&self) {
        if let Self::Direct(direct) = self {
            direct.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Makes writers no longer wait: they leave what would have to.
    pub(super) fn hold(&self) {
        if let Self::Direct(direct) = self {
            direct.held.store(true, Ordering::Relaxed);
        }
    }

    /// Makes writers wait again, after [`Output::hold`].
    pub(super) fn go_on(&self) {
        if let Self::Direct(direct) = self {
            direct.held.store(false, Ordering::Relaxed);
        }
    }

    /// Writes what the calling thread has left.
    pub(super) fn settle(&self) -> io::Result<()> {
        match self {
            Self::Direct(direct) => direct.settle(),
            Self::Discard | Self::Buffered(_) | Self::Paced(_) => Ok(()),
        }
    }

    /// Makes writers wait again, after [`Output::hang_up`], and empties a stale file. What the last
    /// machine has left is dropped.
    pub(super) fn pick_up(&self) -> io::Result<()> {
        match self {
            Self::Direct(direct) => {
                *lock(&direct.left) = Left::default();
                direct.closed.store(false, Ordering::Relaxed);
                if direct.stale.swap(false, Ordering::Relaxed) {
                    file::truncate(&direct.file)?;
                }
                Ok(())
            }
            Self::Paced(paced) => paced.pick_up(),
            Self::Discard | Self::Buffered(_) => Ok(()),
        }
    }

    /// Whether no machine has run that could have written anything.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Self::Direct(direct) => direct.stale.load(Ordering::Relaxed),
            Self::Paced(paced) => paced.is_stale(),
            Self::Discard | Self::Buffered(_) => false,
        }
    }

    /// Drops all output from now on, the backlog included; what a thread has still to write it writes
    /// first, as long as somebody reads.
    pub(super) fn close(&self) {
        self.hang_up();
        match self {
            Self::Buffered(buffered) => lock(buffered).close(),
            Self::Paced(paced) => paced.close(),
            Self::Discard | Self::Direct(_) => {}
        }
    }

    /// Gives the output a new descriptor, or none; the backlog is kept.
    pub(super) fn connect(&self, file: Option<Arc<File>>) {
        if let Self::Buffered(buffered) = self {
            lock(buffered).file = file;
        }
    }

    /// Writes as much of the backlog as the descriptor takes.
    pub(super) fn flush(&self) {
        if let Self::Buffered(buffered) = self {
            lock(buffered).flush();
        }
    }

    /// Whether there is a backlog.
    pub(super) fn has_backlog(&self) -> bool {
        match self {
            Self::Buffered(buffered) => !lock(buffered).backlog.is_empty(),
            Self::Discard | Self::Direct(_) | Self::Paced(_) => false,
        }
    }
}

/// Output to a descriptor that the writer waits for.
pub(super) struct Direct {
    file: File,
    closed: AtomicBool,
    /// Whether writers leave what nobody reads.
    held: AtomicBool,
    /// Held by whoever writes.
    left: Mutex<Left>,
    /// Whether the file still has what was in it before.
    stale: AtomicBool,
}

/// What was not written when writers were not to wait. A thread leaves no more than what it writes
/// before it stops, so this does not grow.
#[derive(Default)]
struct Left {
    bytes: Vec<u8>,
    /// Who has left something, and has to wait for it later.
    by: Vec<ThreadId>,
}

impl Direct {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut left = lock(&self.left);
        self.write_left(&mut left)?;
        let written = if left.bytes.is_empty() {
            self.write_some(bytes)?
        } else {
            0
        };
        let rest = bytes.get(written..).unwrap_or_default();
        if !rest.is_empty() && !self.is_closed() {
            left.bytes.extend(rest);
            let own = thread::current().id();
            if !left.by.contains(&own) {
                left.by.push(own);
            }
        }
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        let mut left = lock(&self.left);
        if left.by.contains(&thread::current().id()) {
            self.write_left(&mut left)?;
        }
        Ok(())
    }

    /// Writes what was left, in the order in which it came, as far as that is wanted.
    fn write_left(&self, left: &mut Left) -> io::Result<()> {
        if left.bytes.is_empty() {
            return Ok(());
        }
        let written = self.write_some(&left.bytes);
        match &written {
            Ok(count) if !self.is_closed() => drop(left.bytes.drain(..*count)),
            // Never mind what cannot be written, or is not to be.
            _ => left.bytes.clear(),
        }
        if left.bytes.is_empty() {
            left.by.clear();
        }
        written.map(drop)
    }

    /// Writes all, and waits for it, unless that is not wanted any more. Returns how many bytes it was.
    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_closed() && !self.held.load(Ordering::Relaxed) {
            match (&self.file).write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => (),
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
                Err(e) => return Err(e),
            }
        }
        Ok(bytes.len() - rest.len())
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

/// Output to a non-blocking descriptor that may be full or missing.
pub(super) struct Buffered {
    file: Option<Arc<File>>,
    backlog: Ring,
    /// Whether bytes were dropped since the backlog was last empty.
    overrun: bool,
    closed: bool,
}

impl Buffered {
    fn write(&mut self, mut bytes: &[u8]) -> bool {
        if self.closed {
            return false;
        }
        let had_backlog = !self.backlog.is_empty();
        if !had_backlog {
            let written = self.try_write(bytes);
            bytes = bytes.get(written..).unwrap_or_default();
        }
        if self.backlog.push(bytes) > 0 && !self.overrun {
            self.overrun = true;
            log::warn!("nobody reads the console: the oldest output is dropped");
        }
        !had_backlog && !self.backlog.is_empty()
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let written = match &self.file {
                Some(file) => Self::write_some(file, self.backlog.front()),
                None => return,
            };
            match written {
                Ok(0) => return,
                Ok(written) => self.backlog.consume(written),
                Err(_) => {
                    self.file = None;
                    return;
                }
            }
        }
        self.overrun = false;
    }

    fn close(&mut self) {
        self.closed = true;
        self.file = None;
        self.backlog.clear();
    }

    /// Writes what the descriptor takes at once and returns its length.
    fn try_write(&mut self, bytes: &[u8]) -> usize {
        let Some(file) = &self.file else { return 0 };
        Self::write_some(file, bytes).unwrap_or_else(|_| {
            // The reader is gone; the event loop sees the hang-up and cleans up.
            self.file = None;
            0
        })
    }

    /// One write; 0 if the descriptor is full.
    fn write_some(mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match file.write(bytes) {
                Err(e) if e.kind() == ErrorKind::Interrupted => (),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(0),
                result => return result,
            }
        }
    }
}

/// A queue of bytes that drops the oldest when it is full.
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            capacity,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends `bytes` and returns how many older or leading ones were dropped for them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let lost = (self.bytes.len() + bytes.len()).saturating_sub(self.capacity);
        let lost_queued = lost.min(self.bytes.len());
        self.bytes.drain(..lost_queued);
        self.bytes
            .extend(bytes.get(lost - lost_queued..).unwrap_or_default());
        lost
    }

    /// The oldest bytes, as many as lie together; empty only if the ring is.
    pub(super) fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Removes the oldest `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }
}
