//! A thread that serves queues.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Device, Fault, FaultSink, Running};

/// What a descriptor is to its handler.
pub type Token = u32;

/// The token of the worker's own event.
const CONTROL: u64 = u64::MAX;
/// Descriptors that are told of at once.
const EVENTS: usize = 32;

/// What a worker does.
pub trait Handler: Send + 'static {
    /// Called on the thread, before anything else.
    fn begin(&mut self) {}

    /// What it waits for: descriptors that are open for as long as it is there. The worker waits until
    /// they are readable.
    fn descriptors(&self) -> Vec<(RawFd, Token)>;

    /// A descriptor is readable. What an eventfd says is read by the handler.
    ///
    /// # Errors
    /// It cannot go on until the device is reset.
    fn ready(&mut self, token: Token) -> Result<(), Fault>;

    /// Whether it looks once more before the worker waits: [`Handler::look_again`] is called then, after what
    /// descriptors tell of meanwhile. A driver that is not asked to tell of what it makes available does not
    /// have to leave the guest for it.
    fn lingers(&self) -> bool {
        false
    }

    /// Looks once more. It does not linger any more then, or does so for a new reason.
    ///
    /// # Errors
    /// As for [`Handler::ready`].
    fn look_again(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Completes what is under way, and begins nothing. Called before the thread stands still or ends,
    /// and after it has failed: from then on nothing touches guest memory.
    ///
    /// # Errors
    /// As for [`Handler::ready`].
    fn settle(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

/// What is asked of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    Stop,
}

struct State {
    wish: Wish,
    parked: bool,
    /// The thread has ended, whatever was asked of it.
    ended: bool,
}

struct Control {
    state: Mutex<State>,
    changed: Condvar,
    wake: EventFd,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, wish: Wish) {
        self.lock().wish = wish;
        self.changed.notify_all();
        // A full counter wakes it as well.
        let _ = self.wake.write(1);
    }

    /// Whether it is asked to do something else than to go on.
    fn is_wanted(&self) -> bool {
        self.lock().wish != Wish::Run
    }

    /// Waits while the worker is to be paused.
    ///
    /// # Returns
    /// Whether it is to go on.
    fn look(&self) -> bool {
        let mut state = self.lock();
        while state.wish == Wish::Pause {
            state.parked = true;
            self.changed.notify_all();
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        state.wish == Wish::Run
    }
}

/// A thread with its handler. Dropping it stops the thread.
pub struct Worker<H: Handler> {
    control: Arc<Control>,
    thread: Option<JoinHandle<H>>,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread called `name`.
    ///
    /// # Errors
    /// The host has no room for it. The handler is given back.
    pub fn start(
        name: &str,
        handler: H,
        faults: Arc<dyn FaultSink>,
    ) -> Result<Self, (H, io::Error)> {
        let prepared = prepare(&handler);
        let (control, epoll) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err((handler, error)),
        };
        // The thread takes the handler only once there is a thread.
        let slot = Arc::new(Mutex::new(Some(handler)));
        let (theirs, shared) = (Arc::clone(&slot), Arc::clone(&control));
        let builder = thread::Builder::new().name(name.to_owned());
        let started = builder.spawn(move || {
            let taken = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
            // `start` has put it there, and takes it back only where there is no thread.
            let mut handler = taken.unwrap_or_else(|| unreachable!("the handler is there"));
            run(&mut handler, &shared, &epoll, &*faults);
            let mut state = shared.lock();
            state.ended = true;
            shared.changed.notify_all();
            drop(state);
            handler
        });
        match started {
            Ok(thread) => Ok(Self {
                control,
                thread: Some(thread),
            }),
            Err(error) => {
                let taken = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                let handler = taken.unwrap_or_else(|| unreachable!("there is no thread"));
                Err((handler, error))
            }
        }
    }

    /// Lets it stand still; returns once it does.
    pub fn pause(&self) {
        self.control.ask(Wish::Pause);
        let mut state = self.control.lock();
        while !state.parked && !state.ended {
            let waited = self.control.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.control.ask(Wish::Run);
    }

    /// Ends it.
    ///
    /// # Returns
    /// Its handler; nothing if the thread has panicked outside of it.
    pub fn stop(mut self) -> Option<H> {
        self.end()
    }

    fn end(&mut self) -> Option<H> {
        let thread = self.thread.take()?;
        self.control.ask(Wish::Stop);
        thread.join().ok()
    }
}

impl<H: Handler> Drop for Worker<H> {
    fn drop(&mut self) {
        self.end();
    }
}

/// A device that one worker serves.
pub struct OneWorker<D, H: Handler> {
    /// The device, for when it is stopped.
    pub device: Box<D>,
    /// What serves it.
    pub worker: Worker<H>,
}

impl<D: Device + 'static, H: Handler> Running for OneWorker<D, H> {
    fn pause(&mut self) {
        self.worker.pause();
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn stop(self: Box<Self>) -> Box<dyn Device> {
        let Self { device, worker } = *self;
        worker.stop();
        device
    }
}

fn prepare<H: Handler>(handler: &H) -> io::Result<(Arc<Control>, Epoll)> {
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let epoll = Epoll::new()?;
    let add = |fd, data| {
        let event = EpollEvent::new(EventSet::IN, data);
        epoll.ctl(ControlOperation::Add, fd, event)
    };
    add(wake.as_raw_fd(), CONTROL)?;
    for (fd, token) in handler.descriptors() {
        add(fd, token.into())?;
    }
    let control = Control {
        state: Mutex::new(State {
            wish: Wish::Run,
            parked: false,
            ended: false,
        }),
        changed: Condvar::new(),
        wake,
    };
    Ok((Arc::new(control), epoll))
}

fn run<H: Handler>(handler: &mut H, control: &Control, epoll: &Epoll, faults: &dyn FaultSink) {
    let mut events = [EpollEvent::default(); EVENTS];
    // A handler that has failed hears nothing any more, until it is stopped.
    let mut failed = false;
    let mut guarded = |handler: &mut H, step: &mut dyn FnMut(&mut H) -> Result<(), Fault>| {
        if let Err(fault) = caught(|| step(handler)) {
            // The first fault says why; those that come of it say nothing.
            if !failed {
                faults.fault(&fault);
                failed = true;
                let _ = caught(|| handler.settle());
            }
        }
        failed
    };
    guarded(handler, &mut |handler| {
        handler.begin();
        Ok(())
    });
    loop {
        // Asked after this look, it is woken and comes here again before it parks.
        if control.is_wanted() {
            guarded(handler, &mut H::settle);
            if !control.look() {
                return;
            }
        }
        let lingers = handler.lingers();
        let timeout = if lingers { 0 } else { -1 };
        let waited = match epoll.wait(timeout, &mut events) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let mut waited = Some(waited);
        let mut count = 0;
        let mut has_failed = guarded(handler, &mut |_| {
            count = waited.take().unwrap_or(Ok(0))?;
            Ok(())
        });
        let ready = events.get(..count).unwrap_or_default();
        for event in ready {
            if event.data() == CONTROL {
                // What is asked is written down before the event is.
                let _ = control.wake.read();
                continue;
            }
            if has_failed {
                continue;
            }
            // Tokens are what `prepare` has put there.
            let token = event.data() as Token;
            has_failed = guarded(handler, &mut |handler| handler.ready(token));
        }
        if lingers && !has_failed {
            has_failed = guarded(handler, &mut H::look_again);
        }
        if has_failed {
            wait_for_the_end(control);
        }
    }
}

/// Runs what may panic.
fn caught(step: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    let done = catch_unwind(AssertUnwindSafe(step));
    done.unwrap_or(Err(Fault::Panicked))
}

/// Waits until something is asked.
fn wait_for_the_end(control: &Control) {
    let mut state = control.lock();
    while state.wish == Wish::Run {
        let waited = control.changed.wait(state);
        state = waited.unwrap_or_else(PoisonError::into_inner);
    }
}
