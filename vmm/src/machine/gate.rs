//! Where the threads of a machine stop while it is paused.
//!
//! Each thread has a [`Seat`] with what is asked of it, which it looks at before it enters the guest, and
//! parks in [`Place::park`]. Whoever pauses the machine closes the gate, interrupts the threads and
//! waits until all have parked; a thread that has ended keeps nobody waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// A thread that stops at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// Of the vCPU with this index.
    Vcpu(u32),
    /// Carries wired interrupts to the x86 I/O APIC.
    WiredInterrupts,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(index) => write!(f, "vCPU {index}"),
            Self::WiredInterrupts => f.write_str("the thread of wired interrupts"),
        }
    }
}

/// What one vCPU's thread does for all, while every thread is parked: most of what KVM can be asked about a
/// vCPU is asked by the vCPU's own thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Stop the guest's time.
    StopTime,
    /// Let it go on from there.
    StartTime,
}

/// The thread is to end.
const STOP: u8 = 1;
/// The thread is to park, and to see to what comes after that.
const PAUSE: u8 = 1 << 1;
/// The vCPU is to get an NMI.
const NMI: u8 = 1 << 2;

/// What is asked of one thread, by others.
#[derive(Debug)]
pub struct Seat {
    member: Member,
    requests: AtomicU8,
    wake: Condvar,
}

impl Seat {
    /// Whose it is.
    pub fn member(&self) -> Member {
        self.member
    }

    /// Whether anything is asked. Cheap: this comes before every entry into the guest.
    pub fn is_asked(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    /// Whether the thread is to end.
    pub fn is_stopping(&self) -> bool {
        self.requests.load(Ordering::SeqCst) & STOP != 0
    }

    /// Whether the thread is to call [`Place::park`]. Stays so until it has, even if the gate opens before.
    pub fn is_pausing(&self) -> bool {
        self.requests.load(Ordering::SeqCst) & PAUSE != 0
    }

    /// Asks for an NMI; several that are asked for before the first is delivered are one.
    pub fn ask_for_nmi(&self) {
        self.ask(NMI);
    }

    /// Whether an NMI was asked for since this was last called.
    pub fn take_nmi(&self) -> bool {
        self.requests.fetch_and(!NMI, Ordering::SeqCst) & NMI != 0
    }

    fn ask(&self, request: u8) {
        self.requests.fetch_or(request, Ordering::SeqCst);
    }
}

/// The gate of one machine; open at first.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    /// Somebody has parked, left, or answered.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    stopping: bool,
    members: BTreeMap<Member, Standing>,
    errand: Option<(Member, Errand)>,
    answer: Option<io::Result<()>>,
}

struct Standing {
    seat: Arc<Seat>,
    parked: bool,
}

/// A thread's place at the gate, which it gives up when this is dropped.
pub struct Place {
    gate: Arc<Gate>,
    seat: Arc<Seat>,
}

impl Gate {
    /// Lets a thread in that is about to start; a closed gate makes it park before it does anything.
    pub fn admit(self: &Arc<Self>, member: Member) -> Place {
        let mut state = self.lock();
        let requests = if state.closed { PAUSE } else { 0 } | if state.stopping { STOP } else { 0 };
        let seat = Arc::new(Seat {
            member,
            requests: AtomicU8::new(requests),
            wake: Condvar::new(),
        });
        let standing = Standing {
            seat: Arc::clone(&seat),
            parked: false,
        };
        state.members.insert(member, standing);
        Place {
            gate: Arc::clone(self),
            seat,
        }
    }

    /// Asks all threads to park; who calls this then interrupts those in [`Gate::wait`]'s answer.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for standing in state.members.values() {
            standing.seat.ask(PAUSE);
        }
    }

    /// Lets all threads go on.
    pub fn open(&self) {
        let mut state = self.lock();
        state.closed = false;
        state.wake_all();
    }

    /// Asks all threads to end, and lets them.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for standing in state.members.values() {
            standing.seat.ask(STOP);
        }
        state.wake_all();
    }

    /// Waits until all threads have parked or ended, but not longer than `patience`.
    ///
    /// # Returns
    /// Those that have not.
    pub fn wait(&self, patience: Duration) -> Vec<Member> {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            let running = state.running();
            let left = patience.saturating_sub(start.elapsed());
            if running.is_empty() || left.is_zero() {
                return running;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has the first vCPU's parked thread do something, and waits for it. Nothing happens where there is none.
    ///
    /// # Errors
    /// Those of the errand.
    pub fn ask(&self, errand: Errand) -> io::Result<()> {
        let mut state = self.lock();
        let mut parked = state.members.iter().filter(|(_, standing)| standing.parked);
        let vcpu = parked.find(|(member, _)| matches!(member, Member::Vcpu(_)));
        let Some((&member, standing)) = vcpu else {
            return Ok(());
        };
        let seat = Arc::clone(&standing.seat);
        state.errand = Some((member, errand));
        state.answer = None;
        seat.wake.notify_all();
        loop {
            if let Some(answer) = state.answer.take() {
                return answer;
            }
            if !state.is_parked(member) {
                // It was let go meanwhile, because the machine ends.
                state.errand = None;
                return Ok(());
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn running(&self) -> Vec<Member> {
        let running = self.members.iter().filter(|(_, standing)| !standing.parked);
        running.map(|(member, _)| *member).collect()
    }

    fn is_parked(&self, member: Member) -> bool {
        self.members
            .get(&member)
            .is_some_and(|standing| standing.parked)
    }

    fn set_parked(&mut self, member: Member, parked: bool) {
        if let Some(standing) = self.members.get_mut(&member) {
            standing.parked = parked;
        }
    }

    fn take_errand(&mut self, member: Member) -> Option<Errand> {
        let (_, errand) = self.errand.take_if(|(whose, _)| *whose == member)?;
        Some(errand)
    }

    fn wake_all(&self) {
        for standing in self.members.values() {
            standing.seat.wake.notify_all();
        }
    }
}

impl Place {
    /// What is asked of the thread.
    pub fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    /// Stops until the gate is open or the machine ends, and does errands meanwhile. Returns at once
    /// if the gate has opened again.
    pub fn park(&self, mut run_errand: impl FnMut(Errand) -> io::Result<()>) {
        let member = self.seat.member;
        let mut state = self.gate.lock();
        state.set_parked(member, true);
        self.gate.changed.notify_all();
        while state.closed && !state.stopping {
            if let Some(errand) = state.take_errand(member) {
                drop(state);
                let answer = run_errand(errand);
                state = self.gate.lock();
                state.answer = Some(answer);
                self.gate.changed.notify_all();
            } else {
                let waited = self.seat.wake.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.set_parked(member, false);
        // With the lock held, so that a gate that closes again now asks again.
        self.seat.requests.fetch_and(!PAUSE, Ordering::SeqCst);
        self.gate.changed.notify_all();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.lock().members.remove(&self.seat.member);
        self.gate.changed.notify_all();
    }
}
