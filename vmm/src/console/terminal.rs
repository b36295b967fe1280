//! The terminal that the process was started from: raw mode, and restoring it on every way out.
//!
//! The settings found at start are put back when the [`RawTerminal`] is dropped, when a thread
//! panics (before the panic is reported) and when the process dies of SIGSEGV, SIGBUS, SIGILL,
//! SIGFPE, SIGABRT or SIGSYS. Signals that ask the process to end (SIGTERM, SIGINT, SIGHUP,
//! SIGQUIT) are for the event loop to take and to leave by, which drops the guard. Code that calls
//! [`std::process::exit`] calls [`restore`] first.
#![expect(unsafe_code, reason = "termios and signal handlers are C interfaces")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, c_void, siginfo_t, termios};

use super::ConsoleError;

/// The signals that end the process without running a destructor.
const FATAL_SIGNALS: [c_int; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// A terminal and the settings to put back.
struct Saved {
    fd: RawFd,
    settings: termios,
}

/// What [`restore`] puts back; null while no terminal is raw. What it points to is never freed,
/// since a signal handler may be reading it at any time.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

/// A terminal in raw mode, until dropped.
pub(super) struct RawTerminal {
    saved: *mut Saved,
    /// Keeps the descriptor in `saved` open.
    _terminal: File,
}

// SAFETY: the pointer is only compared and stored, and what it points to is immutable and lives
// for ever.
unsafe impl Send for RawTerminal {}

impl RawTerminal {
    /// Puts `terminal` into raw mode: every byte is passed on as it is typed, Ctrl-C included.
    ///
    /// # Errors
    /// [`ConsoleError::TerminalInUse`] if a terminal is raw already, or the kernel's refusal.
    pub(super) fn enter(terminal: File) -> Result<Self, ConsoleError> {
        let settings = settings(&terminal).map_err(ConsoleError::Terminal)?;
        let saved = Box::into_raw(Box::new(Saved {
            fd: terminal.as_raw_fd(),
            settings,
        }));
        install_hooks();
        if SAVED
            .compare_exchange(ptr::null_mut(), saved, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return Err(ConsoleError::TerminalInUse);
        }
        let raw_terminal = Self {
            saved,
            _terminal: terminal,
        };
        apply(&raw_terminal._terminal, &raw(settings)).map_err(ConsoleError::Terminal)?;
        Ok(raw_terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
        let _ = SAVED.compare_exchange(
            self.saved,
            ptr::null_mut(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }
}

/// Puts back the settings of the terminal, if it is in raw mode; for exits that run no destructor.
///
/// Async-signal-safe, and may be called any number of times. A terminal that the process has lost
/// to another process group is left alone.
pub fn restore() {
    let saved = SAVED.load(Ordering::Acquire);
    // SAFETY: a pointer that was ever stored in `SAVED` stays valid and what it points to is never
    // written.
    if let Some(saved) = unsafe { saved.as_ref() }
        && is_foreground_fd(saved.fd)
    {
        // SAFETY: `settings` is a complete termios; a descriptor closed meanwhile is an error that
        // nobody can be told of.
        unsafe { libc::tcsetattr(saved.fd, libc::TCSANOW, &raw const saved.settings) };
    }
}

/// Whether the process may read and change `terminal` without being stopped for it: it is in the
/// foreground process group, or this is not its controlling terminal and has no job control.
pub(super) fn is_foreground(terminal: &File) -> bool {
    is_foreground_fd(terminal.as_raw_fd())
}

/// [`is_foreground`], async-signal-safe.
fn is_foreground_fd(fd: RawFd) -> bool {
    // SAFETY: takes an integer, has no memory effects.
    let foreground = unsafe { libc::tcgetpgrp(fd) };
    // SAFETY: takes nothing and never fails.
    let own = unsafe { libc::getpgrp() };
    foreground < 0 || foreground == own
}

/// The settings of a terminal.
pub(super) fn settings(terminal: &File) -> io::Result<termios> {
    let mut settings = MaybeUninit::<termios>::uninit();
    // SAFETY: tcgetattr writes at most one termios to where it is told.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded, so it filled the structure in.
    Ok(unsafe { settings.assume_init() })
}

/// Changes the settings of a terminal at once.
pub(super) fn apply(terminal: &File, settings: &termios) -> io::Result<()> {
    // SAFETY: tcsetattr reads one termios.
    if unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, settings) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `settings` made raw (termios(3), "Raw mode").
pub(super) fn raw(mut settings: termios) -> termios {
    // SAFETY: cfmakeraw changes flags in the termios it is given.
    unsafe { libc::cfmakeraw(&raw mut settings) };
    settings
}

/// A duplicate of a standard stream.
pub(super) fn duplicate(stream: impl AsFd) -> Result<File, ConsoleError> {
    let stream: BorrowedFd<'_> = stream.as_fd();
    let stream = stream.try_clone_to_owned().map_err(ConsoleError::Stdio)?;
    Ok(File::from(stream))
}

/// Makes panics and fatal signals restore the terminal, once per process.
fn install_hooks() {
    static HOOKS: Once = Once::new();
    HOOKS.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
        for signal in FATAL_SIGNALS {
            install_handler(signal);
        }
    });
}

/// Disposition of SIGSEGV and SIGBUS before ours, leaked; the standard library's, which reports
/// stack overflows. Null for the other signals.
static EARLIER: [AtomicPtr<libc::sigaction>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

fn earlier(signal: c_int) -> Option<&'static AtomicPtr<libc::sigaction>> {
    match signal {
        libc::SIGSEGV => EARLIER.first(),
        libc::SIGBUS => EARLIER.last(),
        _ => None,
    }
}

fn install_handler(signal: c_int) {
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_fatal_signal as *const () as usize;
    // On the alternate stack, since the reason may be that the stack has overflowed.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: all-zero is a valid sigaction.
    let mut old: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: both pointers are to a sigaction, and the handler is async-signal-safe.
    if unsafe { libc::sigaction(signal, &raw const action, &raw mut old) } == 0
        && let Some(earlier) = earlier(signal)
    {
        earlier.store(Box::into_raw(Box::new(old)), Ordering::Release);
    }
}

/// Restores the terminal and lets the signal have the effect that it had before.
extern "C" fn on_fatal_signal(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    restore();
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let from_kernel = unsafe { info.as_ref() }.is_some_and(|info| info.si_code > 0);
    if let Some(earlier) = earlier(signal)
        && from_kernel
    {
        let earlier = earlier.load(Ordering::Acquire);
        // SAFETY: `earlier` is null, which asks for no change, or a leaked sigaction.
        unsafe { libc::sigaction(signal, earlier, ptr::null_mut()) };
        // The faulting instruction runs again and faults again.
        return;
    }
    // SAFETY: sets the default action; async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: delivered when this handler returns, as the signal is blocked until then.
    unsafe { libc::raise(signal) };
}
