//! How a running machine is told to end, and says why.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::report::VcpuFailure;

/// Why a machine stopped running.
#[derive(Debug)]
pub enum Ending {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked to be started afresh.
    Reset,
    /// A vCPU cannot run further.
    Failed(Box<VcpuFailure>),
}

/// Takes the first reason to end from whichever thread has one, and wakes the main loop.
#[derive(Debug)]
pub struct Control {
    ending: Mutex<Option<Ending>>,
    event: EventFd,
}

impl Control {
    /// A machine that has no reason to end yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ending: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Asks the machine to end. The first reason counts: a guest that powers off and resets at
    /// once is powered off if that came first.
    pub fn end(&self, ending: Ending) {
        let mut slot = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(ending);
        if let Err(error) = self.event.write(1) {
            log::error!("cannot wake the main loop: {error}");
        }
    }

    /// Takes the reason, if there is one.
    pub fn take(&self) -> Option<Ending> {
        let mut slot = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }

    /// Readable once there is a reason.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(endings: [Ending; 2]) -> Option<Ending> {
        let control = Control::new().unwrap();
        endings.into_iter().for_each(|ending| control.end(ending));
        assert!(control.event().read().is_ok());
        let outcome = control.take();
        assert!(control.take().is_none());
        outcome
    }

    #[test]
    fn the_first_reason_counts() {
        let ending = outcome([Ending::PowerOff, Ending::Reset]);
        assert!(matches!(ending, Some(Ending::PowerOff)), "{ending:?}");
        let ending = outcome([Ending::Reset, Ending::PowerOff]);
        assert!(matches!(ending, Some(Ending::Reset)), "{ending:?}");
    }
}
