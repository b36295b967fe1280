//! What the tests of both serial ports share, among them the tests of what both must do alike.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::*;
use crate::testing::{Recorder, TestLine};

/// A port and both ends of its wires.
pub(super) struct Rig<P> {
    pub(super) port: Arc<P>,
    pub(super) line: Arc<TestLine>,
    pub(super) output: Recorder,
    rooms: Arc<AtomicU32>,
}

impl<P: SerialPort> Rig<P> {
    pub(super) fn new(port: impl FnOnce(Wiring) -> P) -> Self {
        let line = Arc::new(TestLine::default());
        let output = Recorder::default();
        let rooms = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&rooms);
        let wiring = Wiring {
            line: line.clone(),
            output: Box::new(output.clone()),
            on_room: Box::new(move || {
                counter.fetch_add(1, Ordering::Relaxed);
            }),
        };
        Self {
            port: Arc::new(port(wiring)),
            line,
            output,
            rooms,
        }
    }

    /// How often the source of input was told of room so far.
    pub(super) fn rooms(&self) -> u32 {
        self.rooms.load(Ordering::Relaxed)
    }
}

/// A port that nobody looks at.
pub(super) fn unobserved() -> Wiring {
    Wiring {
        line: Arc::new(TestLine::default()),
        output: Box::new(std::io::sink()),
        on_room: Box::new(|| ()),
    }
}

/// The source is told of room exactly once after it ran out, when the guest has read everything.
pub(super) fn tells_of_room_once<P: SerialPort>(
    rig: &Rig<P>,
    depth: usize,
    read: impl Fn(&P) -> u8,
) {
    let input: Vec<u8> = (1..).take(depth + 3).collect();
    assert_eq!(rig.port.room(), depth);
    assert_eq!(rig.port.enqueue_input(&input[..2]), 2);
    assert_eq!((read(&rig.port), read(&rig.port)), (1, 2));
    assert_eq!(rig.rooms(), 0);
    assert_eq!(rig.port.enqueue_input(&input), depth);
    assert_eq!(rig.port.enqueue_input(&input), 0);
    assert_eq!(rig.port.room(), 0);
    for expected in &input[..depth] {
        assert_eq!(rig.rooms(), 0);
        assert_eq!(read(&rig.port), *expected);
    }
    assert_eq!(rig.rooms(), 1);
    read(&rig.port);
    assert_eq!(rig.rooms(), 1);
}

/// A source that refills from `on_room` itself gets everything through, in order.
pub(super) fn streams_input<P: SerialPort + 'static>(
    port: impl FnOnce(Wiring) -> P,
    prepare: impl Fn(&P),
    read: impl Fn(&P) -> u8,
) {
    let input: Vec<u8> = (0..1000_u32).map(|number| number as u8).collect();
    let source = Arc::new(std::sync::Mutex::new(input.clone()));
    let slot = Arc::new(OnceLock::<Arc<P>>::new());
    let refill = {
        let slot = Arc::clone(&slot);
        move || {
            let mut source = source.lock().unwrap();
            let taken = slot.get().unwrap().enqueue_input(&source);
            source.drain(..taken);
        }
    };
    let line = Arc::new(TestLine::default());
    let wiring = Wiring {
        line: line.clone(),
        output: Box::new(std::io::sink()),
        on_room: Box::new(refill.clone()),
    };
    let port = slot.get_or_init(|| Arc::new(port(wiring)));
    prepare(port);
    refill();
    for byte in input {
        assert!(line.asserted());
        assert_eq!(read(port), byte);
    }
    assert!(!line.asserted());
}
