//! What wakes the main loop, beside consoles and devices: events, time, signals.
#![expect(unsafe_code, reason = "signal masks and signalfd")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::null_mut;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::handle::Handle;

/// Wakes the main loop, which then looks for itself what there is to do.
pub struct Wakeup(EventFd);

impl Wakeup {
    /// Waits for what is written to `event`.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn on(event: &EventFd) -> io::Result<Self> {
        event.try_clone().map(Self)
    }
}

impl MutEventSubscriber for Wakeup {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // Nothing to read means that somebody else has drained it: all the same.
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            log::error!("cannot wait for events: {error:?}");
        }
    }
}

/// Wakes the main loop now and then.
pub struct Clock(TimerFd);

impl Clock {
    /// One that expires again and again.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn every(interval: Duration) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(interval, Some(interval))?;
        Ok(Self(timer))
    }
}

impl MutEventSubscriber for Clock {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // It has expired, so this does not wait.
        if let Err(error) = self.0.wait() {
            log::error!("cannot read a timer: {error}");
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            log::error!("cannot wait for a timer: {error:?}");
        }
    }
}

/// Signals that end the VMM in an orderly way.
const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Blocks the signals that the main loop reads: those that end the VMM, and `SIGWINCH`, which a console
/// reads where it is a terminal; to be called before any thread is started, since
/// threads inherit what is blocked.
pub fn block_signals() -> io::Result<()> {
    let mut set = signal_set();
    // SAFETY: the set is initialised and the signal number valid.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGWINCH) };
    // SAFETY: the set is initialised.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: a signal set is plain data; `sigemptyset` initialises it next.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
        // SAFETY: the set is initialised and the signal number valid.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

/// Whether this process was started with the signal ignored, as `nohup` does; it stays so.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: an action is plain data, for which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and the old action is written to `action`.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Ends the VMM at a signal that asks for that.
pub struct Signals {
    file: File,
    handle: Handle,
}

impl Signals {
    /// Reads the signals that [`block_signals`] has blocked.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn open(handle: Handle) -> io::Result<Self> {
        let set = signal_set();
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised; a new descriptor is made.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let file = unsafe { File::from_raw_fd(fd) };
        Ok(Self { file, handle })
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while matches!(self.file.read(&mut info), Ok(length) if length == info.len()) {
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            log::info!("signal {number}: shutting down");
            self.handle.shutdown();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = Events::new_raw(self.file.as_raw_fd(), EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("cannot wait for signals: {error:?}");
        }
    }
}
