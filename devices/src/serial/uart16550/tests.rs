use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;

use proptest::prelude::*;

use super::super::testing::{Rig, streams_input, tells_of_room_once, unobserved};
use super::*;
use crate::testing::{accesses, inb, never_panics, outb};

fn rig() -> Rig<Uart16550> {
    Rig::new(Uart16550::new)
}

fn enable_fifos(port: &Uart16550) {
    outb(port, 2, 0x01);
}

#[test]
fn output_comes_out() {
    let rig = rig();
    outb(&*rig.port, 0, b'o');
    rig.port.write(0, b"k");
    assert_eq!(rig.output.bytes(), b"ok");
    assert_eq!(inb(&*rig.port, 5), 0x60);
    assert!(!rig.line.asserted());
}

#[test]
fn the_divisor_hides_data_and_interrupt_enable() {
    let rig = rig();
    outb(&*rig.port, 3, 0x83);
    rig.port.write(0, &[0x0c, 0x01]);
    assert_eq!((inb(&*rig.port, 0), inb(&*rig.port, 1)), (0x0c, 0x01));
    outb(&*rig.port, 3, 0x03);
    assert_eq!(inb(&*rig.port, 1), 0);
    assert!(rig.output.bytes().is_empty());
    assert_eq!(rig.port.save().divisor, 0x010c);
}

/// What Linux's `autoconfig` does to tell a 16550A from everything before and after it.
#[test]
fn linux_detects_a_16550a() {
    let rig = rig();
    let port = &*rig.port;
    // IER's upper half does not exist, its lower half does.
    outb(port, 1, 0x00);
    assert_eq!(inb(port, 1) & 0x0f, 0x00);
    outb(port, 1, 0x0f);
    assert_eq!(inb(port, 1) & 0x0f, 0x0f);
    outb(port, 1, 0x00);
    // Loopback: OUT2 and RTS come back as DCD and CTS.
    outb(port, 4, 0x1a);
    assert_eq!(inb(port, 6) & 0xf0, 0x90);
    outb(port, 4, 0x00);
    // FIFOs enabled: both top bits of IIR mean a working 16550A.
    outb(port, 2, 0x00);
    assert_eq!(inb(port, 2) >> 6, 0);
    outb(port, 2, 0x01);
    assert_eq!(inb(port, 2) >> 6, 3);
    // Not a 16650 or later: no EFR, which would read as zero instead of IIR.
    outb(port, 3, 0x80);
    assert_ne!(inb(port, 2), 0);
    outb(port, 3, 0xbf);
    assert_ne!(inb(port, 2), 0);
    // Not a 16750: no 64-byte mode.
    outb(port, 3, 0x00);
    outb(port, 2, 0x21);
    assert_eq!(inb(port, 2) & 0x20, 0);
    // Not an XScale port: IER has no bit 6.
    outb(port, 1, 0x40);
    assert_eq!(inb(port, 1), 0);
    // The scratch register, by which a 16450 is told from an 8250.
    outb(port, 7, 0xa5);
    assert_eq!(inb(port, 7), 0xa5);
    assert!(rig.output.bytes().is_empty());
}

/// The two tests of `serial8250_do_startup` after which Linux uses timers instead of interrupts.
#[test]
fn linux_trusts_the_transmitter_interrupt() {
    let rig = rig();
    let port = &*rig.port;
    outb(port, 1, 0x02);
    assert_eq!(inb(port, 2), 0x02);
    outb(port, 1, 0x00);
    assert_eq!(inb(port, 2), 0x01);
    outb(port, 1, 0x02);
    assert_eq!(inb(port, 2), 0x02);
    outb(port, 1, 0x00);
    outb(port, 1, 0x02);
    assert_eq!((inb(port, 5) & 0x40, inb(port, 2) & 1), (0x40, 0));
}

#[test]
fn each_transmitted_byte_is_a_new_edge() {
    let rig = rig();
    let port = &*rig.port;
    outb(port, 1, 0x02);
    assert_eq!(rig.line.edges(), 1);
    // A driver that answers an interrupt by the next byte, without ever reading IIR.
    outb(port, 0, b'a');
    outb(port, 0, b'b');
    assert_eq!((rig.line.edges(), rig.line.asserted()), (3, true));
    assert_eq!(inb(port, 2), 0x02);
    assert!(!rig.line.asserted());
}

#[test]
fn received_bytes_interrupt_until_all_are_read() {
    let rig = rig();
    let port = &*rig.port;
    outb(port, 2, 0xc1);
    outb(port, 1, 0x01);
    assert_eq!(rig.port.enqueue_input(b"ab"), 2);
    assert!(rig.line.asserted());
    // Two bytes, a trigger level of 14: a timeout; reading IIR does not end it.
    assert_eq!((inb(port, 2), inb(port, 2)), (0xcc, 0xcc));
    assert_eq!(inb(port, 5), 0x61);
    assert_eq!(inb(port, 0), b'a');
    assert!(rig.line.asserted());
    assert_eq!(rig.port.enqueue_input(&[b'x'; 13]), 13);
    assert_eq!(inb(port, 2), 0xc4);
    for _ in 0..14 {
        assert!(rig.line.asserted());
        inb(port, 0);
    }
    assert!(!rig.line.asserted());
    assert_eq!((inb(port, 2), inb(port, 5)), (0xc1, 0x60));
}

/// Linux's console masks all interrupts while it prints.
#[test]
fn input_that_came_while_masked_interrupts_when_unmasked() {
    let rig = rig();
    let port = &*rig.port;
    enable_fifos(port);
    outb(port, 1, 0x05);
    outb(port, 1, 0x00);
    rig.port.enqueue_input(b"x");
    outb(port, 0, b'p');
    assert_eq!(rig.line.edges(), 0);
    outb(port, 1, 0x05);
    assert_eq!((rig.line.edges(), rig.line.asserted()), (1, true));
}

#[test]
fn causes_are_reported_one_by_one() {
    let rig = rig();
    let port = &*rig.port;
    // One byte of room without FIFOs: the second looped byte overruns.
    outb(port, 4, 0x10);
    outb(port, 0, b'1');
    outb(port, 0, b'2');
    outb(port, 4, 0x11);
    outb(port, 1, 0x0f);
    assert_eq!(inb(port, 2), 0x06);
    assert_eq!(inb(port, 5), 0x63);
    assert_eq!(inb(port, 2), 0x04);
    assert_eq!(inb(port, 0), b'1');
    assert_eq!(inb(port, 2), 0x02);
    assert_eq!(inb(port, 2), 0x00);
    assert!(rig.line.asserted());
    // DSR came (loopback's DTR); CTS, DSR and DCD had gone when the loop was closed.
    assert_eq!(inb(port, 6), 0x2b);
    assert_eq!(inb(port, 2), 0x01);
    assert!(!rig.line.asserted());
    assert!(rig.output.bytes().is_empty());
}

#[test]
fn only_the_end_of_ringing_is_a_change() {
    let rig = rig();
    let port = &*rig.port;
    outb(port, 4, 0x1b);
    inb(port, 6);
    outb(port, 4, 0x1f);
    assert_eq!(inb(port, 6) & 0x4f, 0x40);
    outb(port, 4, 0x1b);
    assert_eq!(inb(port, 6) & 0x4f, 0x04);
}

#[test]
fn fifo_control_clears_and_resizes() {
    let rig = rig();
    let port = &*rig.port;
    assert_eq!(port.enqueue_input(b"abc"), 1);
    // Reset without enable is not programmed.
    outb(port, 2, 0x02);
    assert_eq!(inb(port, 5), 0x61);
    outb(port, 2, 0x01);
    assert_eq!((inb(port, 5), rig.rooms()), (0x60, 1));
    assert_eq!(port.enqueue_input(b"abc"), 3);
    outb(port, 2, 0x03);
    assert_eq!((inb(port, 5), port.room()), (0x60, 16));
}

#[test]
fn input_waits_while_the_port_talks_to_itself() {
    let rig = rig();
    outb(&*rig.port, 4, 0x10);
    assert_eq!(rig.port.room(), 0);
    outb(&*rig.port, 4, 0x00);
    assert_eq!((rig.rooms(), rig.port.room()), (1, 1));
}

#[test]
fn the_source_is_told_of_room() {
    let rig = rig();
    enable_fifos(&rig.port);
    tells_of_room_once(&rig, 16, |port| inb(port, 0));
    let rig = self::rig();
    enable_fifos(&rig.port);
    streams_input(
        Uart16550::new,
        |port| {
            enable_fifos(port);
            outb(port, 1, 0x01);
        },
        |port| inb(port, 0),
    );
}

/// A terminal that nobody reads stops the vCPU that writes to it, and nothing else.
#[test]
fn input_and_state_do_not_wait_for_the_output() {
    struct Stuck(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (entered, at_write) = mpsc::channel();
    let (release, stuck) = mpsc::channel();
    let port = Uart16550::new(Wiring {
        output: Box::new(Stuck(entered, stuck)),
        ..unobserved()
    });
    thread::scope(|scope| {
        scope.spawn(|| outb(&port, 0, b'x'));
        at_write.recv().unwrap();
        assert_eq!(port.enqueue_input(b"i"), 1);
        assert_eq!(port.save().received, [b'i']);
        assert_eq!(inb(&port, 0), b'i');
        release.send(()).unwrap();
    });
}

proptest! {
    #[test]
    fn state_round_trips(accesses in accesses(), input: Vec<u8>) {
        let rig = rig();
        for access in &accesses {
            access.apply(&*rig.port);
        }
        rig.port.enqueue_input(&input);
        let json = serde_json::to_string(&rig.port.save()).unwrap();
        let state = serde_json::from_str(&json).unwrap();
        let copy = Rig::new(|wiring| Uart16550::restore(&state, wiring));
        prop_assert_eq!(copy.port.save(), rig.port.save());
        prop_assert_eq!(copy.line.asserted(), rig.line.asserted());
        for offset in [2, 5, 6, 0, 2, 0, 5] {
            prop_assert_eq!(inb(&*copy.port, offset), inb(&*rig.port, offset));
        }
    }
}

#[test]
fn a_state_that_cannot_be_is_cut_to_size() {
    let state = Uart16550State {
        ier: 0xff,
        fcr: 0xff,
        mcr: 0xff,
        modem_changes: 0xff,
        received: vec![1; 1000].into(),
        ..Uart16550State::default()
    };
    let saved = Uart16550::restore(&state, unobserved()).save();
    assert_eq!(
        (saved.ier, saved.mcr, saved.modem_changes),
        (0x0f, 0x1f, 0x0f)
    );
    assert_eq!((saved.fcr, saved.received.len()), (0xc9, 16));
}

#[test]
fn no_access_panics() {
    never_panics(|| Uart16550::new(unobserved()));
}
