//! Several vCPUs at once.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

/// Runs `work` elsewhere and fails if it does not end.
fn with_deadline(work: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel();
    let thread = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    // Ends at once when the work panics, too.
    match end.recv_timeout(Duration::from_secs(120)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("deadlock"),
        _ => thread.join().unwrap(),
    }
}

#[test]
fn decoders_end_as_they_were_left() {
    with_deadline(|| {
        let guest = Rig::new();
        for round in 0..20 {
            thread::scope(|scope| {
                for thread in 0..2_u32 {
                    let guest = &guest;
                    scope.spawn(move || {
                        for step in 0..20 {
                            let is_on = (step + thread) % 2 == 0;
                            guest.set_u16(COMMAND, if is_on { MEMORY } else { 0 });
                            guest.set_u32(0x1c, 0x40 + (step + thread) % 4);
                        }
                    });
                }
                // vCPUs that use the device meanwhile, its table too, find it or nothing.
                for _ in 0..2 {
                    let guest = &guest;
                    scope.spawn(move || {
                        for at in 0..200 {
                            let read = guest.memory_u32(0xc000_0000);
                            assert!([0x0302_0100, u32::MAX].contains(&read), "{read:#x}");
                            guest.set_memory_u32(0xc0b9_000c, at & 1);
                            guest.memory_u32(0xc0b9_000c);
                            guest.set_u16(MSIX + 2, if at % 8 < 4 { 0x8000 } else { 0 });
                        }
                    });
                }
            });
            assert_eq!(guest.space.places(), guest.decoded(), "round {round}");
            let decoders = guest.u16(COMMAND) & MEMORY;
            let device: [u8; 2] = guest.device.peek(4);
            assert_eq!(u16::from(device[0]) & MEMORY, decoders);
        }
    });
}

#[test]
fn regions_answer_while_one_is_being_placed() {
    with_deadline(|| {
        let guest = Rig::new();
        guest.set_u16(COMMAND, MEMORY);
        thread::scope(|scope| {
            let placing = guest.space.placing.lock().unwrap();
            let mover = scope.spawn(|| guest.set_u32(0x1c, 0x50));
            while guest.u32(0x1c) != 0x50 {
                thread::yield_now();
            }
            // The mover waits; nobody else does, for registers, the table, or configuration space.
            assert_eq!(guest.memory_u32(0xc000_0000), 0x0302_0100);
            guest.set_memory_u32(0xc0b9_000c, 0);
            assert_eq!(guest.memory_u32(0xc0b9_000c), 0);
            guest.set_u16(MSIX + 2, 0x8000);
            assert_eq!(guest.u16(MSIX + 2), 0x8005);
            assert_eq!(guest.messages()[0], Some(MsiMessage::default()));
            assert!(!mover.is_finished());
            drop(placing);
        });
        assert_eq!(guest.space.slot(2).at(), Some(0x50_0000_0000));
    });
}

#[test]
fn resets_and_writes_end_well() {
    with_deadline(|| {
        let guest = Rig::new();
        thread::scope(|scope| {
            for thread in 0..3_u16 {
                let guest = &guest;
                scope.spawn(move || {
                    for step in 0..100 {
                        match (step + thread) % 4 {
                            0 => guest.set_u16(COMMAND, MEMORY | BUS_MASTER),
                            1 => guest.set_u16(MSIX + 2, 0x8000),
                            2 => guest.function.reset().unwrap(),
                            _ => guest.set_u8(AF + 4, 1),
                        }
                    }
                });
            }
        });
        assert_eq!(guest.space.places(), guest.decoded());
        let is_msix = guest.u16(MSIX + 2) & 0x8000 != 0;
        let kind = if is_msix {
            IrqKind::Msix
        } else {
            IrqKind::Intx
        };
        assert_eq!(guest.device.events().unwrap().0, kind);
    });
}
