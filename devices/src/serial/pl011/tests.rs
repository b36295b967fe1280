use proptest::prelude::*;

use super::super::testing::{Rig, streams_input, tells_of_room_once, unobserved};
use super::*;
use crate::testing::{accesses, never_panics, readl, writel};

fn rig() -> Rig<Pl011> {
    Rig::new(Pl011::new)
}

/// RXIS and RTIS, the two interrupts that Linux's handler takes for input.
const RX: u32 = 0x10;
const RT: u32 = 0x40;
const TX: u32 = 0x20;

#[test]
fn output_comes_out_of_an_untouched_port() {
    let rig = rig();
    // The early console: 8, 16 or 32 bits wide, between polls of FR.
    assert_eq!(readl(&*rig.port, 0x18) & 0x28, 0);
    rig.port.write(0, b"o");
    rig.port.write(0, &[b'k', 0]);
    writel(&*rig.port, 0, u32::from(b'\n'));
    assert_eq!(rig.output.bytes(), b"ok\n");
    assert_eq!(readl(&*rig.port, 0x18), 0x97);
}

/// The AMBA bus's identification and `pl011_probe`.
#[test]
fn linux_identifies_revision_3_with_32_bytes() {
    let rig = rig();
    let id = |base: u64| {
        (0..4).fold(0, |id, index| {
            id | readl(&*rig.port, base + 4 * index) << (8 * index)
        })
    };
    assert_eq!(id(0xfe0), 0x0034_1011);
    assert_eq!(id(0xfe0) & 0x000f_ffff, 0x0004_1011);
    assert_eq!(id(0xfe0) >> 20 & 0xf, 3);
    assert_eq!(id(0xff0), 0xb105_f00d);
}

/// `pl011_console_get_options` on a port that was enabled before Linux came.
#[test]
fn the_divisors_at_start_are_115200_baud() {
    let rig = rig();
    assert_eq!(readl(&*rig.port, 0x30), 0x0301);
    assert_eq!(readl(&*rig.port, 0x2c), 0x70);
    let divisor = 64 * readl(&*rig.port, 0x24) + readl(&*rig.port, 0x28);
    let baud = CLOCK_HZ * 4 / divisor;
    assert!(baud.abs_diff(115_200) < 115_200 / 100, "{baud}");
}

/// `pl011_startup` and `pl011_set_termios`, then input and output as `pl011_int` does them.
#[test]
fn linux_drives_the_full_port() {
    let rig = rig();
    let port = &*rig.port;
    writel(port, 0x44, 0x07d0);
    assert_eq!(readl(port, 0x38), 0);
    writel(port, 0x38, RT | RX);
    writel(port, 0x34, 0x12);
    writel(port, 0x30, 0x0301);
    let control = readl(port, 0x30);
    writel(port, 0x30, 0);
    writel(port, 0x28, 1);
    writel(port, 0x24, 13);
    writel(port, 0x2c, 0x70);
    writel(port, 0x30, control);
    writel(port, 0x44, RT | RX);
    assert_eq!(readl(port, 0x18) & 0x10, 0x10);
    writel(port, 0x38, RT | RX);
    assert!(!rig.line.asserted());
    // One byte, below every trigger level, must interrupt.
    assert_eq!(rig.port.enqueue_input(b"y"), 1);
    assert!(rig.line.asserted());
    assert_eq!((readl(port, 0x3c), readl(port, 0x40)), (RT, RT));
    assert_eq!(readl(port, 0x18) & 0x10, 0);
    assert_eq!(readl(port, 0x00), u32::from(b'y'));
    assert_eq!(readl(port, 0x18) & 0x10, 0x10);
    assert!(!rig.line.asserted());
    assert_eq!(readl(port, 0x40), 0);
    // More to send than half a FIFO: the interrupt is enabled and asks at once.
    for _ in 0..16 {
        writel(port, 0x00, u32::from(b'.'));
    }
    writel(port, 0x38, RT | RX | TX);
    assert!(rig.line.asserted());
    assert_eq!(readl(port, 0x40), TX);
    writel(port, 0x00, u32::from(b'!'));
    assert!(rig.line.asserted());
    writel(port, 0x38, RT | RX);
    assert!(!rig.line.asserted());
    assert_eq!(rig.output.bytes(), b"................!");
}

/// `sbsa_uart_startup`: only DR, FR, IMSC, RIS, MIS and ICR, on the port as it was found.
#[test]
fn linux_drives_the_sbsa_subset() {
    let rig = rig();
    let port = &*rig.port;
    // Typed before the driver came.
    rig.port.enqueue_input(b"early");
    writel(port, 0x44, 0x07d0);
    writel(port, 0x38, RT | RX);
    writel(port, 0x44, RT | RX);
    for _ in 0..64 {
        if readl(port, 0x18) & 0x10 != 0 {
            break;
        }
        readl(port, 0x00);
    }
    writel(port, 0x38, RT | RX);
    assert!(!rig.line.asserted());
    rig.port.enqueue_input(b"late");
    assert!(rig.line.asserted());
    for byte in *b"late" {
        assert_ne!(readl(port, 0x3c) & (RT | RX), 0);
        assert_eq!(readl(port, 0x00), u32::from(byte));
    }
    assert!(!rig.line.asserted());
}

#[test]
fn the_receive_interrupt_is_about_crossing_the_trigger_level() {
    for (ifls, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28)] {
        let rig = rig();
        let port = &*rig.port;
        writel(port, 0x34, ifls << 3);
        rig.port.enqueue_input(&vec![0; level - 1]);
        assert_eq!(readl(port, 0x3c) & RX, 0, "level {level}");
        rig.port.enqueue_input(&[0]);
        assert_eq!(readl(port, 0x3c) & RX, RX, "level {level}");
        // Acknowledged above the level, it stays away until the level is crossed again.
        writel(port, 0x44, RX);
        rig.port.enqueue_input(&[0]);
        assert_eq!(readl(port, 0x3c) & RX, 0, "level {level}");
        readl(port, 0x00);
        readl(port, 0x00);
        rig.port.enqueue_input(&[0]);
        assert_eq!(readl(port, 0x3c) & RX, RX, "level {level}");
        readl(port, 0x00);
        assert_eq!(readl(port, 0x3c) & (RX | RT), RT, "level {level}");
    }
}

#[test]
fn an_acknowledged_timeout_comes_back_with_the_next_byte() {
    let rig = rig();
    let port = &*rig.port;
    rig.port.enqueue_input(b"abc");
    writel(port, 0x44, RT);
    assert_eq!(readl(port, 0x3c), 0);
    rig.port.enqueue_input(b"d");
    assert_eq!(readl(port, 0x3c), RT);
    writel(port, 0x44, RT);
    readl(port, 0x00);
    assert_eq!(readl(port, 0x3c), RT);
}

#[test]
fn without_fifos_there_is_one_byte() {
    let rig = rig();
    let port = &*rig.port;
    rig.port.enqueue_input(b"lost");
    writel(port, 0x2c, 0x60);
    assert_eq!(readl(port, 0x18) & 0x50, 0x10);
    assert_eq!(rig.port.enqueue_input(b"ab"), 1);
    assert_eq!(readl(port, 0x18) & 0x50, 0x40);
    assert_eq!(readl(port, 0x3c), RX | RT);
    assert_eq!(readl(port, 0x00), u32::from(b'a'));
    assert_eq!((readl(port, 0x3c), rig.rooms()), (0, 1));
}

#[test]
fn input_waits_for_the_receiver() {
    for disabled in [0x0000, 0x0300, 0x0101, 0x0381] {
        let rig = rig();
        writel(&*rig.port, 0x30, disabled);
        assert_eq!(rig.port.enqueue_input(b"x"), 0, "CR {disabled:#x}");
        assert_eq!(rig.rooms(), 0);
        writel(&*rig.port, 0x30, 0x0301);
        assert_eq!(rig.rooms(), 1, "CR {disabled:#x}");
        assert_eq!(rig.port.enqueue_input(b"x"), 1);
    }
}

#[test]
fn loopback_returns_bytes_and_modem_lines() {
    let rig = rig();
    let port = &*rig.port;
    // All three lines that were there go away.
    writel(port, 0x30, 0x0381);
    assert_eq!((readl(port, 0x18), readl(port, 0x3c)), (0x90, 0x0e));
    writel(port, 0x44, 0x7ff);
    for (output, line, interrupt) in [
        (1 << 10, 0x002, 0x8),
        (1 << 11, 0x001, 0x2),
        (1 << 12, 0x004, 0x4),
        (1 << 13, 0x100, 0x1),
    ] {
        writel(port, 0x30, 0x0381 | output);
        assert_eq!(readl(port, 0x18) & 0x107, line);
        assert_eq!(readl(port, 0x3c), interrupt);
        writel(port, 0x30, 0x0381);
        writel(port, 0x44, 0x7ff);
    }
    for byte in 0..33 {
        writel(port, 0x00, byte);
    }
    assert_eq!(readl(port, 0x18) & 0x50, 0x40);
    assert_eq!(readl(port, 0x04), 0x8);
    assert_eq!(readl(port, 0x3c), 0x400 | RT | TX | RX);
    writel(port, 0x04, 0);
    assert_eq!(readl(port, 0x04), 0);
    for byte in 0..32 {
        assert_eq!(readl(port, 0x00), byte);
    }
    assert!(rig.output.bytes().is_empty());
}

#[test]
fn registers_keep_the_bits_that_exist() {
    let rig = rig();
    for (register, kept) in [
        (0x20, 0xff),
        (0x24, 0xffff),
        (0x28, 0x3f),
        (0x2c, 0xff),
        (0x30, 0xff87),
        (0x34, 0x3f),
        (0x38, 0x7ff),
        (0x48, 0x7),
    ] {
        writel(&*rig.port, register, 0xffff_ffff);
        assert_eq!(readl(&*rig.port, register), kept, "register {register:#x}");
        writel(&*rig.port, register, 0);
        assert_eq!(readl(&*rig.port, register), 0, "register {register:#x}");
    }
    // Read-only: FR, RIS, MIS and the ids.
    for register in [0x18, 0x3c, 0x40, 0xfe0, 0xffc] {
        let before = readl(&*rig.port, register);
        writel(&*rig.port, register, !before);
        assert_eq!(readl(&*rig.port, register), before);
    }
}

#[test]
fn the_source_is_told_of_room() {
    tells_of_room_once(&rig(), 32, |port| readl(port, 0) as u8);
    streams_input(
        Pl011::new,
        |port| writel(port, 0x38, RT),
        |port| readl(port, 0) as u8,
    );
    streams_input(
        Pl011::new,
        |port| writel(port, 0x38, RT | RX),
        |port| readl(port, 0) as u8,
    );
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
        let copy = Rig::new(|wiring| Pl011::restore(&state, wiring));
        prop_assert_eq!(copy.port.save(), rig.port.save());
        prop_assert_eq!(copy.line.asserted(), rig.line.asserted());
        for register in [0x18, 0x40, 0x00, 0x3c, 0x30] {
            prop_assert_eq!(readl(&*copy.port, register), readl(&*rig.port, register));
        }
    }

    /// However input and reads alternate, a guest that reads while it is interrupted is never
    /// left with a byte.
    #[test]
    fn no_byte_is_left_behind(steps in proptest::collection::vec((0..40_usize, 0..40_usize), 1..20)) {
        let rig = rig();
        writel(&*rig.port, 0x38, RT | RX);
        for (enqueue, read) in steps {
            rig.port.enqueue_input(&vec![b'x'; enqueue]);
            for _ in 0..read {
                let waiting = readl(&*rig.port, 0x18) & 0x10 == 0;
                prop_assert_eq!(rig.line.asserted(), waiting);
                readl(&*rig.port, 0x00);
            }
        }
    }
}

#[test]
fn a_state_that_cannot_be_is_cut_to_size() {
    let state = Pl011State {
        receive_status: 0xff,
        fbrd: 0xff,
        cr: 0xffff,
        ifls: 0xff,
        imsc: 0xffff,
        ris: 0xffff,
        dmacr: 0xff,
        received: vec![1; 1000].into(),
        ..Pl011State::default()
    };
    let saved = Pl011::restore(&state, unobserved()).save();
    assert_eq!((saved.receive_status, saved.fbrd), (0x0f, 0x3f));
    assert_eq!((saved.cr, saved.ifls, saved.dmacr), (0xff87, 0x3f, 7));
    assert_eq!((saved.imsc, saved.ris), (0x7ff, 0x7ff));
    assert_eq!(saved.received.len(), 32);
}

#[test]
fn no_access_panics() {
    never_panics(|| Pl011::new(unobserved()));
}
