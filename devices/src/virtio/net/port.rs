//! One queue of the host's interface, and what is waited for there.
#![expect(unsafe_code, reason = "passes buffers on by their addresses")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libc::iovec;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::backend::{NetBackend, is_gone};
use crate::virtio::ConfigChanges;

/// One queue of the host's interface. Its thread reads and writes it; the thread of the control queue
/// attaches and detaches it.
pub struct Port {
    backend: Arc<NetBackend>,
    queue: usize,
    /// Readable when what is wanted is there.
    epoll: Epoll,
    state: Mutex<State>,
    /// How often it was attached, so that a call knows whether it was while it failed.
    attachments: AtomicU32,
    /// Reads that have failed one after the other.
    failures: AtomicU32,
    link: Link,
}

/// Reads that fail one after the other before there is nothing more to hope for.
const MOST_FAILURES: u32 = 1000;

struct State {
    attached: bool,
    wanted: EventSet,
    /// What epoll was told, if it was.
    registered: Option<EventSet>,
}

/// What a driver is told of the link.
#[derive(Clone)]
pub struct Link {
    /// What the registers say.
    pub is_up: Arc<AtomicBool>,
    /// How the driver is told.
    pub changes: ConfigChanges,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It was moved, of so many bytes.
    Yes(usize),
    /// Not now.
    Later,
    /// It was lost; the next one may not be.
    Lost,
    /// None can be moved: the interface is gone, or the queue is not attached.
    Never,
}

impl Port {
    /// A queue that is not attached. Nothing is waited for.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(backend: Arc<NetBackend>, queue: usize, link: Link) -> io::Result<Self> {
        Ok(Self {
            backend,
            queue,
            epoll: Epoll::new()?,
            state: Mutex::new(State {
                attached: false,
                wanted: EventSet::empty(),
                registered: None,
            }),
            attachments: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            link,
        })
    }

    /// The interface.
    pub fn backend(&self) -> &NetBackend {
        &self.backend
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when what is wanted is there.
    pub fn event(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Lets the host give frames to this queue, or no more. Of an interface that is gone there is nothing
    /// to attach, which is none of the driver's business.
    ///
    /// # Errors
    /// The host refuses.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        let mut state = self.lock();
        // One that is not attached says nothing but errors: not to be waited for any more before it is.
        state.attached = false;
        let quiet = self.register(&mut state);
        match self.backend.interface.set_attached(self.queue, attached) {
            Err(error) if is_gone(&error) => {
                self.lose();
                return quiet;
            }
            done => done?,
        }
        state.attached = attached;
        if attached {
            self.attachments.fetch_add(1, Ordering::SeqCst);
            // Its thread finds out by itself whether the driver has buffers.
            state.wanted |= EventSet::IN;
        }
        quiet.and(self.register(&mut state))
    }

    /// Whether the host gives frames to it.
    pub fn is_attached(&self) -> bool {
        self.lock().attached
    }

    /// Waits for something from now on, or no more.
    ///
    /// # Errors
    /// The host cannot.
    pub fn want(&self, event: EventSet, wanted: bool) -> io::Result<()> {
        let mut state = self.lock();
        state.wanted.set(event, wanted);
        self.register(&mut state)
    }

    /// What is waited for.
    pub fn wanted(&self) -> EventSet {
        self.lock().wanted
    }

    fn register(&self, state: &mut State) -> io::Result<()> {
        let is_there = state.attached && !self.backend.is_lost();
        // A descriptor that is waited for without any event still tells of errors, again and again.
        let target = (is_there && !state.wanted.is_empty()).then_some(state.wanted);
        if target == state.registered {
            return Ok(());
        }
        let operation = match (state.registered, target) {
            (None, _) => ControlOperation::Add,
            (Some(_), Some(_)) => ControlOperation::Modify,
            (Some(_), None) => ControlOperation::Delete,
        };
        let event = EpollEvent::new(target.unwrap_or(EventSet::empty()), 0);
        let descriptor = self.backend.interface.descriptor(self.queue);
        self.epoll.ctl(operation, descriptor, event)?;
        state.registered = target;
        Ok(())
    }

    /// Reads a frame.
    ///
    /// # Safety
    /// The buffers can be written to.
    pub unsafe fn read(&self, buffers: &[iovec]) -> Moved {
        let attachment = self.attachments.load(Ordering::SeqCst);
        // SAFETY: as the caller says.
        let read = unsafe { self.backend.interface.read(self.queue, buffers) };
        let moved = match read {
            // There are no frames of nothing.
            Ok(0) => self.never(attachment),
            read => self.moved(read, attachment),
        };
        match moved {
            Moved::Lost => {
                let before = self.failures.fetch_add(1, Ordering::Relaxed);
                if before >= MOST_FAILURES {
                    return self.never(attachment);
                }
            }
            _ => self.failures.store(0, Ordering::Relaxed),
        }
        moved
    }

    /// Writes a frame.
    ///
    /// # Safety
    /// The buffers can be read.
    pub unsafe fn write(&self, buffers: &[iovec]) -> Moved {
        let attachment = self.attachments.load(Ordering::SeqCst);
        // SAFETY: as the caller says.
        let written = unsafe { self.backend.interface.write(self.queue, buffers) };
        self.moved(written, attachment)
    }

    fn moved(&self, moved: io::Result<usize>, attachment: u32) -> Moved {
        match moved {
            Ok(count) => Moved::Yes(count),
            Err(error) => self.judge(&error, attachment),
        }
    }

    fn judge(&self, error: &io::Error, attachment: u32) -> Moved {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Moved::Later,
            _ if is_gone(error) => self.never(attachment),
            _ => Moved::Lost,
        }
    }

    /// Finds out why nothing can be moved by a call, before which the queue had been attached so often.
    fn never(&self, attachment: u32) -> Moved {
        let mut state = self.lock();
        // A queue that is not attached, or was not when the call began, fails as one of an interface that is
        // gone does.
        let is_same = self.attachments.load(Ordering::SeqCst) == attachment;
        if state.attached && is_same {
            self.lose();
            // What fails now is nothing to wait for either.
            let _ = self.register(&mut state);
        }
        Moved::Never
    }

    /// Tells operator and driver that the interface is gone.
    fn lose(&self) {
        self.backend.lose();
        let Link { is_up, changes } = &self.link;
        if is_up.load(Ordering::SeqCst) {
            changes.make(|| is_up.store(false, Ordering::SeqCst));
        }
    }
}
