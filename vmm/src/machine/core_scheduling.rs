//! What the host may run beside a vCPU, on the other hardware threads of its core.
//!
//! Linux lets only threads with the same cookie share a core (admin-guide/hw-vuln/core-scheduling,
//! prctl(2) `PR_SCHED_CORE`). A vCPU's thread takes its cookie itself, so no other thread of this
//! process has one that was not given to the whole process.
#![expect(unsafe_code, reason = "the C library has core scheduling as a prctl")]

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use libc::{c_int, pid_t};
use log::Level;

use crate::config::{CoreScheduling, CpusConfig};

/// One `PR_SCHED_CORE`, by the calling thread.
pub trait Kernel {
    /// Carries out `command` (`PR_SCHED_CORE_*`) on `thread` (0 is the calling one) within `scope`
    /// (`PR_SCHED_CORE_SCOPE_*`).
    fn sched_core(&self, command: c_int, thread: pid_t, scope: c_int) -> io::Result<()>;

    /// The calling thread's id.
    fn this_thread(&self) -> pid_t;

    /// Whether a core of the host may run several threads at once.
    fn has_siblings(&self) -> bool;
}

/// The kernel that this process runs on.
pub struct Linux;

/// Says whether cores run several threads at once: 0 or 1 (ABI/testing/sysfs-devices-system-cpu).
const SMT_ACTIVE: &str = "/sys/devices/system/cpu/smt/active";

impl Kernel for Linux {
    fn sched_core(&self, command: c_int, thread: pid_t, scope: c_int) -> io::Result<()> {
        let none: libc::c_ulong = 0;
        // SAFETY: none of the commands that are used has a pointer; the last argument must be 0.
        match unsafe { libc::prctl(libc::PR_SCHED_CORE, command, thread, scope, none) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn this_thread(&self) -> pid_t {
        // SAFETY: a call without arguments that cannot fail.
        unsafe { libc::gettid() }
    }

    fn has_siblings(&self) -> bool {
        fs::read_to_string(SMT_ACTIVE).map_or(true, |active| active.trim() != "0")
    }
}

/// Where the vCPUs of one machine take their cookies.
pub struct Cookies<K = Linux> {
    kernel: K,
    mode: CoreScheduling,
    /// Whether somebody asked for the mode.
    asked: bool,
    /// Threads that have the machine's cookie and run: only from these can it be had.
    holders: Mutex<Vec<pid_t>>,
    /// Whether it was said that vCPUs go without.
    said: AtomicBool,
}

/// Held by a thread as long as others may have its cookie from it.
#[must_use = "others cannot share the cookie of a thread that has dropped this"]
pub struct Cookie<'a, K = Linux> {
    /// Where it is entered, and as what; none if it is not for others.
    entry: Option<(&'a Cookies<K>, pid_t)>,
}

impl Cookies {
    /// As `config` says.
    pub fn new(config: &CpusConfig) -> Self {
        Self::with(Linux, config.core_scheduling)
    }
}

impl<K: Kernel> Cookies<K> {
    fn with(kernel: K, asked: Option<CoreScheduling>) -> Self {
        Self {
            kernel,
            mode: asked.unwrap_or(CoreScheduling::Vm),
            asked: asked.is_some(),
            holders: Mutex::default(),
            said: AtomicBool::new(false),
        }
    }

    /// Gives the calling thread its cookie.
    ///
    /// Fails if somebody asked for one and the kernel, which has such things, does not give it.
    pub fn take(&self) -> io::Result<Cookie<'_, K>> {
        let taken = match self.mode {
            CoreScheduling::Off => Ok(Cookie { entry: None }),
            CoreScheduling::Vcpu => self.create().map(|()| Cookie { entry: None }),
            CoreScheduling::Vm => self.share(),
        };
        taken.or_else(|error| {
            let (level, text) = self.without(error)?;
            if !self.said.swap(true, Ordering::Relaxed) {
                log::log!(level, "{text}");
            }
            Ok(Cookie { entry: None })
        })
    }

    /// The cookie of those that have one, or a new one.
    ///
    /// All of it under the lock: a holder does not end before another thread has its cookie, so
    /// its id is not yet that of somebody else.
    fn share(&self) -> io::Result<Cookie<'_, K>> {
        let mut holders = lock(&self.holders);
        match holders.first() {
            None => self.create()?,
            Some(holder) => self.kernel.sched_core(
                libc::PR_SCHED_CORE_SHARE_FROM,
                *holder,
                libc::PR_SCHED_CORE_SCOPE_THREAD,
            )?,
        }
        let thread = self.kernel.this_thread();
        holders.push(thread);
        Ok(Cookie {
            entry: Some((self, thread)),
        })
    }

    fn create(&self) -> io::Result<()> {
        self.kernel.sched_core(
            libc::PR_SCHED_CORE_CREATE,
            0,
            libc::PR_SCHED_CORE_SCOPE_THREAD,
        )
    }

    /// What to say of vCPUs that go without a cookie because of `error`; the error if they must not.
    fn without(&self, error: io::Error) -> io::Result<(Level, String)> {
        let (missing, asked, unasked) = match error.raw_os_error() {
            // Without SMT, a kernel that can says ENODEV, one that cannot EINVAL.
            Some(libc::ENODEV) => (NO_SIBLINGS.to_owned(), Level::Info, Level::Debug),
            Some(libc::EINVAL) if !self.kernel.has_siblings() => {
                (NO_SIBLINGS.to_owned(), Level::Info, Level::Debug)
            }
            Some(libc::EINVAL) => (NO_KERNEL.to_owned(), Level::Warn, Level::Debug),
            _ if self.asked => return Err(error),
            _ => {
                let text = format!("the host's kernel gives vCPUs no cookie: {error}{MAY_SHARE}");
                (text, Level::Warn, Level::Warn)
            }
        };
        let level = if self.asked { asked } else { unasked };
        Ok((
            level,
            format!("--cpus core_scheduling={}: {missing}", self.mode),
        ))
    }
}

const NO_SIBLINGS: &str = "the cores of this host run one thread each, which needs no scheduling";
const NO_KERNEL: &str = "the host's kernel has no core scheduling (Linux 5.14 or later with \
                         CONFIG_SCHED_CORE has); other tasks may run beside vCPUs on a core. \
                         Turn SMT off if they must not";
const MAY_SHARE: &str = "; other tasks may run beside them on a core";

impl<K> Drop for Cookie<'_, K> {
    fn drop(&mut self) {
        if let Some((cookies, thread)) = self.entry {
            lock(&cookies.holders).retain(|holder| *holder != thread);
        }
    }
}

fn lock(holders: &Mutex<Vec<pid_t>>) -> MutexGuard<'_, Vec<pid_t>> {
    holders.lock().unwrap_or_else(PoisonError::into_inner)
}
