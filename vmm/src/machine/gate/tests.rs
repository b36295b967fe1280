use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};

use super::*;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Threads that count as long as the gate is open.
struct Workers {
    gate: Arc<Gate>,
    counts: Arc<Vec<AtomicUsize>>,
    errands: Arc<Mutex<Vec<(Member, Errand)>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn start(count: u32) -> Self {
        let gate = Arc::new(Gate::default());
        let counts = Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect::<Vec<_>>());
        let errands = Arc::<Mutex<Vec<_>>>::default();
        let threads = (0..count).map(|index| {
            let place = gate.admit(Member::Vcpu(index));
            let (counts, errands) = (Arc::clone(&counts), Arc::clone(&errands));
            thread::spawn(move || work(&place, &counts[index as usize], &errands))
        });
        Self {
            threads: threads.collect(),
            gate,
            counts,
            errands,
        }
    }

    fn progress(&self) -> Vec<usize> {
        let counts = self.counts.iter();
        counts.map(|count| count.load(Ordering::SeqCst)).collect()
    }

    fn wait_for_progress(&self) {
        let before = self.progress();
        let start = Instant::now();
        let moves = |(now, before): (&usize, &usize)| now > before;
        while !self.progress().iter().zip(&before).all(moves) {
            assert!(start.elapsed() < PATIENCE, "{before:?}");
            thread::yield_now();
        }
    }

    fn stop(self) {
        self.gate.stop();
        for thread in self.threads {
            thread.join().unwrap();
        }
        assert_eq!(self.gate.wait(Duration::ZERO), []);
    }
}

fn work(place: &Place, count: &AtomicUsize, errands: &Mutex<Vec<(Member, Errand)>>) {
    let seat = place.seat();
    while !seat.is_stopping() {
        if seat.is_pausing() {
            place.park(|errand| {
                errands.lock().unwrap().push((seat.member(), errand));
                Err(io::Error::other("as asked"))
            });
        }
        count.fetch_add(1, Ordering::SeqCst);
        thread::yield_now();
    }
}

#[test]
fn nobody_moves_while_the_gate_is_closed() {
    let workers = Workers::start(4);
    for _ in 0..2000 {
        workers.gate.close();
        assert_eq!(workers.gate.wait(PATIENCE), []);
        let before = workers.progress();
        thread::yield_now();
        assert_eq!(workers.progress(), before);
        workers.gate.open();
    }
    workers.wait_for_progress();
    workers.stop();
}

/// Closed again before all have woken, the gate is still one that nobody gets through.
#[test]
fn a_gate_that_opens_for_a_moment_lets_nobody_slip_through() {
    let workers = Workers::start(4);
    for _ in 0..500 {
        workers.gate.close();
        assert_eq!(workers.gate.wait(PATIENCE), []);
        workers.gate.open();
        workers.gate.close();
        assert_eq!(workers.gate.wait(PATIENCE), []);
        let before = workers.progress();
        thread::sleep(Duration::from_micros(100));
        assert_eq!(workers.progress(), before);
        workers.gate.open();
    }
    workers.stop();
}

#[test]
fn who_does_not_park_is_named_and_who_ends_is_not() {
    let gate = Arc::new(Gate::default());
    let [first, second] = [Member::Vcpu(0), Member::Vcpu(7)].map(|member| gate.admit(member));
    let wires = gate.admit(Member::WiredInterrupts);
    gate.close();
    drop(first);
    let missing = gate.wait(Duration::from_millis(5));
    assert_eq!(missing, [Member::Vcpu(7), Member::WiredInterrupts]);
    assert_eq!(missing[0].to_string(), "vCPU 7");
    drop((second, wires));
    assert_eq!(gate.wait(Duration::ZERO), []);
    // Nobody is there to do it.
    gate.ask(Errand::StopTime).unwrap();
}

/// A gate that opens before somebody got to it: who was asked still passes by.
#[test]
fn a_request_to_park_stays_until_it_is_seen_to() {
    let gate = Arc::new(Gate::default());
    let place = gate.admit(Member::Vcpu(0));
    assert!(!place.seat().is_asked());
    gate.close();
    gate.open();
    assert!(place.seat().is_pausing());
    place.park(|_| unreachable!());
    assert!(!place.seat().is_asked());
}

#[test]
fn threads_that_start_at_a_closed_gate_park_first() {
    let gate = Arc::new(Gate::default());
    gate.close();
    let place = gate.admit(Member::Vcpu(0));
    assert!(place.seat().is_pausing());
    assert_eq!(gate.wait(Duration::ZERO), [Member::Vcpu(0)]);
    gate.stop();
    // It does not wait, though nobody opens.
    place.park(|_| unreachable!());
    assert!(place.seat().is_stopping());
    assert!(gate.admit(Member::Vcpu(1)).seat().is_stopping());
}

#[test]
fn the_first_vcpu_runs_errands_and_its_answer_is_passed_on() {
    let workers = Workers::start(3);
    let wires = workers.gate.admit(Member::WiredInterrupts);
    workers.gate.close();
    drop(wires);
    assert_eq!(workers.gate.wait(PATIENCE), []);
    for errand in [Errand::StopTime, Errand::StartTime] {
        let error = workers.gate.ask(errand).unwrap_err();
        assert_eq!(error.to_string(), "as asked");
    }
    let expected = [Errand::StopTime, Errand::StartTime].map(|errand| (Member::Vcpu(0), errand));
    assert_eq!(*workers.errands.lock().unwrap(), expected);
    // Stopped while the gate is closed.
    workers.stop();
}

#[test]
fn nmis_are_asked_for_once_and_leave_other_requests_alone() {
    let gate = Arc::new(Gate::default());
    let place = gate.admit(Member::Vcpu(0));
    let seat = place.seat();
    assert!(!seat.take_nmi());
    seat.ask_for_nmi();
    seat.ask_for_nmi();
    gate.close();
    assert!(seat.is_asked());
    assert!(seat.take_nmi());
    assert!(!seat.take_nmi());
    assert!(seat.is_pausing());
}
