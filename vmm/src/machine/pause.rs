//! A machine that stands still for a while, and its NMI button.
//!
//! While a machine is paused no vCPU runs, no input is delivered to devices, and no wired interrupt gets
//! to the x86 I/O APIC: devices do not change. Output that was written before still goes out. A
//! passed-through device cannot be stopped: it may go on with its DMA, and its interrupts wait in KVM.

use std::io;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::gate::{Errand, Member};
use super::{Machine, isa};

/// How long threads may take to stop.
const DEADLINE: Duration = Duration::from_secs(5);
/// Time between kicks of threads that do not stop.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// Why a machine cannot be paused. It runs on then.
#[derive(Debug, Error)]
pub enum PauseError {
    /// Threads wait for something else, such as a device that does not answer.
    #[error(
        "cannot pause: {} did not stop within {} s; the guest runs on",
        names(members), deadline.as_secs_f32()
    )]
    DoesNotStop {
        /// Those that did not stop.
        members: Vec<Member>,
        /// How long was waited.
        deadline: Duration,
    },
    /// KVM does not say what time it is in the guest.
    #[error("cannot pause: KVM does not tell the guest's time; the guest runs on")]
    Time(#[source] io::Error),
}

/// Why a guest cannot be given an NMI.
#[derive(Debug, Error)]
pub enum NmiError {
    /// There is none.
    #[error("guests on this architecture have no NMI: KVM's GIC does not offer any")]
    Unsupported,
}

fn names(members: &[Member]) -> String {
    let names: Vec<String> = members.iter().map(Member::to_string).collect();
    names.join(", ")
}

impl Machine {
    /// Stops every vCPU and every thread of devices, and the guest's time. Returns once all stand
    /// still; does nothing if they already do.
    ///
    /// # Errors
    /// [`PauseError`]; the machine runs on then.
    pub fn pause(&self) -> Result<(), PauseError> {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if *paused {
            return Ok(());
        }
        // The gate before consoles: a vCPU that finds the console held must not enter the guest again.
        self.gate.close();
        self.consoles.hold();
        let stopped = self.stop_threads(DEADLINE);
        let stopped =
            stopped.and_then(|()| self.gate.ask(Errand::StopTime).map_err(PauseError::Time));
        match &stopped {
            Ok(()) => {
                // No vCPU asks them for anything more.
                self.functions.pause();
                *paused = true;
            }
            Err(_) => self.go_on(),
        }
        stopped
    }

    /// Lets a paused machine go on from where it was; does nothing if it runs.
    pub fn resume(&self) {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if !*paused {
            return;
        }
        if let Err(error) = self.gate.ask(Errand::StartTime) {
            log::warn!("the guest's time jumps, by as long as it was paused: {error}");
        }
        self.functions.resume();
        self.go_on();
        *paused = false;
    }

    /// Whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every vCPU that runs a non-maskable interrupt; a paused one gets it when it goes on, one
    /// that waits for its console's reader when that has read. vCPUs that have not been started get none.
    ///
    /// # Errors
    /// [`NmiError`], on aarch64.
    pub fn nmi(&self) -> Result<(), NmiError> {
        if !isa::HAS_NMI {
            return Err(NmiError::Unsupported);
        }
        for thread in &self.threads {
            thread.nmi();
        }
        Ok(())
    }

    fn stop_threads(&self, deadline: Duration) -> Result<(), PauseError> {
        let start = Instant::now();
        // Not yet: they have not been interrupted.
        let mut members = self.gate.wait(Duration::ZERO);
        while !members.is_empty() {
            if start.elapsed() >= deadline {
                return Err(PauseError::DoesNotStop { members, deadline });
            }
            for thread in &self.threads {
                if members.contains(&thread.member()) {
                    thread.kick();
                }
            }
            if members.contains(&Member::WiredInterrupts) {
                self.interrupts.kick();
            }
            // A kick is lost on a vCPU that was just about to wait for the reader of its console.
            members = self.gate.wait(KICK_AGAIN);
        }
        Ok(())
    }

    /// Consoles before the gate: output that vCPUs write from now on is waited for again.
    fn go_on(&self) {
        self.consoles.go_on();
        self.gate.open();
    }
}
