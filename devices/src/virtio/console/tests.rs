use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::virtio::features;
use crate::virtio::testing::{Buffer, Driver, PATIENCE, RAM};

/// Where buffers are.
const BUFFERS: u64 = 0x8_0000;
/// Queues.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// `VIRTIO_CONSOLE_F_SIZE`.
const F_SIZE: u64 = 1;

/// What the host reads, with so much room that is left.
struct Reader {
    bytes: Mutex<Vec<u8>>,
    room: AtomicUsize,
}

impl LineOutput for Arc<Reader> {
    fn take(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room.load(Ordering::SeqCst));
        self.room.fetch_sub(count, Ordering::SeqCst);
        self.bytes.lock().unwrap().extend(&bytes[..count]);
        count
    }
}

/// The host's ends of a line.
struct Host {
    line: Arc<Line>,
    reader: Arc<Reader>,
    /// How often there was room for input again.
    rooms: Arc<AtomicUsize>,
}

impl Host {
    fn new(room: usize, size: Option<Size>) -> Self {
        let reader = Arc::new(Reader {
            bytes: Mutex::default(),
            room: AtomicUsize::new(room),
        });
        let rooms: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&rooms);
        let line = Line::new(LineParts {
            output: Box::new(Arc::clone(&reader)),
            on_room: Box::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
            size,
        });
        Self {
            line: Arc::new(line.unwrap()),
            reader,
            rooms,
        }
    }

    fn driver(&self) -> Driver {
        Driver::new(Box::new(Console::new(Arc::clone(&self.line))))
    }

    /// Reads `count` bytes more.
    fn make_room(&self, count: usize) {
        self.reader.room.fetch_add(count, Ordering::SeqCst);
        self.line.output_has_room();
    }

    fn printed(&self) -> Vec<u8> {
        self.reader.bytes.lock().unwrap().clone()
    }

    fn wait_printed(&self, expected: &[u8]) {
        wait_for("output", || self.printed().len() >= expected.len());
        assert_eq!(self.printed(), expected);
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "no {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Long enough for what must not happen to happen.
fn a_while() {
    std::thread::sleep(Duration::from_millis(30));
}

fn size(columns: u16, rows: u16) -> Size {
    Size { columns, rows }
}

fn readable(gpa: u64, length: u32) -> Buffer {
    Buffer {
        gpa,
        length,
        writable: false,
    }
}

fn writable(gpa: u64, length: u32) -> Buffer {
    Buffer {
        writable: true,
        ..readable(gpa, length)
    }
}

/// Prints `text` from one buffer.
fn print(driver: &mut Driver, head: u16, text: &[u8]) {
    let gpa = BUFFERS + u64::from(head) * 0x1000;
    driver.fill(gpa, text);
    driver.make_available(TRANSMIT, head, &[readable(gpa, text.len() as u32)]);
    driver.kick(TRANSMIT);
}

#[test]
fn output_comes_out_in_its_order() {
    for without in [0, features::EVENT_IDX, features::INDIRECT_DESC] {
        let host = Host::new(usize::MAX, None);
        let mut driver = host.driver();
        driver.start(without, 8);
        driver.fill(BUFFERS, b"one, two, ");
        let buffers = [readable(BUFFERS, 5), readable(BUFFERS + 5, 5)];
        driver.make_available(TRANSMIT, 0, &buffers);
        driver.kick(TRANSMIT);
        assert_eq!(driver.wait_used(TRANSMIT), (0, 0));
        driver.wait_interrupt(2);
        print(&mut driver, 2, b"three");
        assert_eq!(driver.wait_used(TRANSMIT), (2, 0));
        assert_eq!(host.printed(), b"one, two, three");
    }
}

#[test]
fn input_fills_the_buffers_that_the_driver_has_posted() {
    for without in [0, features::EVENT_IDX, features::INDIRECT_DESC] {
        let host = Host::new(0, None);
        let mut driver = host.driver();
        driver.start(without, 8);
        driver.make_available(
            RECEIVE,
            0,
            &[writable(BUFFERS, 4), writable(BUFFERS + 64, 4)],
        );
        driver.make_available(RECEIVE, 2, &[writable(BUFFERS + 128, 64)]);
        driver.kick(RECEIVE);
        a_while();
        assert_eq!(driver.take_used(RECEIVE), None);
        assert_eq!(host.line.accept(b"abcdefghij"), 10);
        assert_eq!(driver.wait_used(RECEIVE), (0, 8));
        assert_eq!(driver.wait_used(RECEIVE), (2, 2));
        assert_eq!(driver.bytes(BUFFERS, 4), b"abcd");
        assert_eq!(driver.bytes(BUFFERS + 64, 4), b"efgh");
        assert_eq!(driver.bytes(BUFFERS + 128, 3), b"ij\0");
        driver.wait_interrupt(1);
    }
}

/// A table of empty buffers does not keep the thread.
#[test]
fn buffers_behind_many_empty_ones_carry_nothing() {
    let host = Host::new(usize::MAX, None);
    let mut driver = host.driver();
    driver.start(0, 8);
    driver.fill(BUFFERS, b"ab");
    let behind = |count: usize, buffer: Buffer| {
        let empty = Buffer {
            length: 0,
            ..buffer
        };
        let mut buffers = vec![empty; count];
        buffers.push(buffer);
        buffers
    };
    host.line.accept(b"cd");
    for (count, carried) in [(1023, 2), (1024, 0)] {
        let output = behind(count, readable(BUFFERS, 2));
        driver.make_table_available(TRANSMIT, 0, BUFFERS + 0x1000, &output);
        driver.kick(TRANSMIT);
        assert_eq!(driver.wait_used(TRANSMIT), (0, 0));
        assert_eq!(host.printed(), b"ab", "{count}");
        let input = behind(count, writable(BUFFERS + 64, 2));
        driver.make_table_available(RECEIVE, 0, BUFFERS + 0x1000, &input);
        driver.kick(RECEIVE);
        host.line.accept(b"e");
        assert_eq!(driver.wait_used(RECEIVE), (0, carried), "{count}");
    }
}

#[test]
fn input_stays_on_the_host_while_there_are_no_buffers() {
    let host = Host::new(0, None);
    let typed: Vec<u8> = (0..6000_u32).map(|number| number as u8).collect();
    // Before there is a driver, too.
    let accepted = host.line.accept(&typed);
    assert_eq!(accepted, 4096);
    assert_eq!(host.line.accept(&typed[accepted..]), 0);
    let mut driver = host.driver();
    driver.start(0, 8);
    a_while();
    assert_eq!(host.rooms.load(Ordering::SeqCst), 0);
    let mut received = Vec::new();
    let mut rest = VecDeque::from(typed[accepted..].to_vec());
    let mut head = 0;
    while received.len() < typed.len() {
        driver.make_available(RECEIVE, head % 8, &[writable(BUFFERS, 1000)]);
        driver.kick(RECEIVE);
        let (_, count) = driver.wait_used(RECEIVE);
        received.extend(driver.bytes(BUFFERS, count as usize));
        head += 1;
        let more = host.line.accept(rest.make_contiguous());
        rest.drain(..more);
    }
    assert_eq!(received, typed);
    assert!(host.rooms.load(Ordering::SeqCst) > 0);
}

#[test]
fn output_that_the_reader_does_not_take_waits_in_the_queue() {
    let host = Host::new(4, None);
    let mut driver = host.driver();
    driver.start(0, 8);
    driver.fill(BUFFERS, b"0123456789");
    let buffers = [readable(BUFFERS, 3), readable(BUFFERS + 3, 7)];
    driver.make_available(TRANSMIT, 0, &buffers);
    driver.kick(TRANSMIT);
    host.wait_printed(b"0123");
    a_while();
    assert_eq!(driver.take_used(TRANSMIT), None);
    let memory = driver.ram.memory.get();
    assert_eq!(Arc::strong_count(&memory), 2, "somebody has memory");
    // Input does not wait for the reader.
    driver.make_available(RECEIVE, 0, &[writable(BUFFERS + 64, 8)]);
    driver.kick(RECEIVE);
    host.line.accept(b"typed");
    assert_eq!(driver.wait_used(RECEIVE), (0, 5));
    for count in 5..=9 {
        host.make_room(1);
        host.wait_printed(&b"0123456789"[..count]);
        assert_eq!(driver.take_used(TRANSMIT), None);
    }
    host.make_room(1);
    assert_eq!(driver.wait_used(TRANSMIT), (0, 0));
    assert_eq!(host.printed(), b"0123456789");
}

#[test]
fn a_device_whose_reader_is_slow_is_paused_and_loses_nothing() {
    let host = Host::new(2, Some(size(80, 25)));
    let mut driver = host.driver();
    driver.start(0, 8);
    print(&mut driver, 0, b"abcdef");
    host.wait_printed(b"ab");
    driver.wait_interrupt(0);
    driver.function.pause();
    host.make_room(2);
    host.line.accept(b"typed");
    host.line.resize(size(100, 30));
    driver.make_available(RECEIVE, 0, &[writable(BUFFERS + 0x8000, 8)]);
    driver.kick(RECEIVE);
    a_while();
    assert_eq!(host.printed(), b"ab");
    assert_eq!(driver.take_used(RECEIVE), None);
    assert_eq!(driver.interrupts(0), 0);
    driver.function.resume();
    host.wait_printed(b"abcd");
    assert_eq!(driver.wait_used(RECEIVE), (0, 5));
    driver.wait_interrupt(0);
    host.make_room(2);
    assert_eq!(driver.wait_used(TRANSMIT), (0, 0));
    assert_eq!(host.printed(), b"abcdef");
}

#[test]
fn a_reset_ends_what_waits_and_keeps_input() {
    let host = Host::new(0, None);
    let mut driver = host.driver();
    for round in 0..20_u8 {
        driver.start(0, 8);
        print(&mut driver, 0, b"never read");
        host.line.accept(&[round]);
        // Some of them before it has looked.
        if round % 2 == 0 {
            a_while();
        }
    }
    driver.start(0, 8);
    host.make_room(100);
    a_while();
    assert!(host.printed().is_empty());
    print(&mut driver, 0, b"read");
    assert_eq!(driver.wait_used(TRANSMIT), (0, 0));
    assert_eq!(host.printed(), b"read");
    driver.make_available(RECEIVE, 0, &[writable(BUFFERS + 0x4000, 64)]);
    driver.kick(RECEIVE);
    assert_eq!(driver.wait_used(RECEIVE), (0, 20));
    let expected: Vec<u8> = (0..20).collect();
    assert_eq!(driver.bytes(BUFFERS + 0x4000, 20), expected);
    // And one that is dropped while a reader is slow.
    host.reader.room.store(0, Ordering::SeqCst);
    print(&mut driver, 1, b"lost");
    drop(driver);
}

#[test]
fn the_size_is_told_at_the_start_and_whenever_it_changes() {
    let shown = |driver: &Driver| driver.read::<4>(0x2000);
    let host = Host::new(0, Some(size(80, 25)));
    let mut driver = host.driver();
    assert_eq!(driver.offered() & F_SIZE, F_SIZE);
    assert_eq!(shown(&driver), [80, 0, 25, 0]);
    driver.start(0, 8);
    driver.wait_interrupt(0);
    let generation = driver.read::<1>(0x15);
    host.line.resize(size(0x1234, 0x5678));
    driver.wait_interrupt(0);
    assert_eq!(driver.isr() & 2, 2);
    assert_eq!(shown(&driver), [0x34, 0x12, 0x78, 0x56]);
    assert_ne!(driver.read::<1>(0x15), generation);
    // The same again is no news.
    host.line.resize(size(0x1234, 0x5678));
    a_while();
    assert_eq!(driver.interrupts(0), 0);
    // While there is no driver, nobody is told; the next one is.
    driver.set_status(0);
    host.line.resize(size(132, 43));
    a_while();
    assert_eq!(driver.isr(), 0);
    driver.start(0, 8);
    driver.wait_interrupt(0);
    assert_eq!(shown(&driver), [132, 0, 43, 0]);
    // One that does not ask is not told.
    driver.start(F_SIZE, 8);
    host.line.resize(size(1, 1));
    a_while();
    assert_eq!(driver.interrupts(0), 0);
}

#[test]
fn without_a_terminal_there_is_no_size() {
    let host = Host::new(0, None);
    let mut driver = host.driver();
    assert_eq!(driver.offered() & F_SIZE, 0);
    driver.start(0, 8);
    host.line.resize(size(80, 25));
    a_while();
    assert_eq!(driver.interrupts(0), 0);
    let mut registers = [0xa5; 16];
    driver.read_into(0x2000, &mut registers);
    assert_eq!(registers, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // A size that is not known yet is none to tell of.
    let host = Host::new(0, Some(Size::default()));
    let mut driver = host.driver();
    driver.start(0, 8);
    a_while();
    assert_eq!(driver.interrupts(0), 0);
}

#[test]
fn buffers_of_the_wrong_kind_or_outside_of_memory_carry_nothing() {
    let host = Host::new(usize::MAX, None);
    let mut driver = host.driver();
    driver.start(0, 8);
    driver.fill(BUFFERS, b"good");
    let outside = RAM as u64;
    driver.make_available(TRANSMIT, 0, &[writable(BUFFERS, 4)]);
    driver.make_available(TRANSMIT, 1, &[readable(outside, 4)]);
    driver.make_available(TRANSMIT, 2, &[readable(u64::MAX - 4, u32::MAX)]);
    driver.make_available(
        TRANSMIT,
        3,
        &[readable(outside, u32::MAX / 2), readable(BUFFERS, 4)],
    );
    driver.make_available(TRANSMIT, 5, &[readable(BUFFERS, 0)]);
    driver.kick(TRANSMIT);
    for head in [0, 1, 2, 3, 5] {
        assert_eq!(driver.wait_used(TRANSMIT), (head, 0));
    }
    assert_eq!(host.printed(), b"good");

    host.line.accept(b"typed");
    driver.make_available(RECEIVE, 0, &[readable(BUFFERS, 4)]);
    driver.make_available(RECEIVE, 1, &[writable(outside, 4)]);
    driver.make_available(
        RECEIVE,
        2,
        &[writable(BUFFERS, 2), writable(u64::MAX - 4, 16)],
    );
    driver.make_available(RECEIVE, 4, &[writable(BUFFERS, u32::MAX)]);
    driver.make_available(RECEIVE, 5, &[writable(BUFFERS, 64)]);
    driver.kick(RECEIVE);
    let used: Vec<_> = (0..4).map(|_| driver.wait_used(RECEIVE)).collect();
    assert_eq!(used, [(0, 0), (1, 0), (2, 2), (4, 3)]);
    assert_eq!(driver.bytes(BUFFERS, 4), b"pedd");
}

/// A guest that asks for more than it can have keeps nobody from stopping the device.
#[test]
fn endless_output_can_be_stopped() {
    struct Nowhere;
    impl LineOutput for Nowhere {
        fn take(&self, bytes: &[u8]) -> usize {
            bytes.len()
        }
    }
    let line = Line::new(LineParts {
        output: Box::new(Nowhere),
        on_room: Box::new(|| {}),
        size: None,
    });
    let mut driver = Driver::new(Box::new(Console::new(Arc::new(line.unwrap()))));
    driver.start(0, 256);
    // 64 GiB, of which there is one mebibyte.
    let buffers = vec![readable(0, RAM as u32); 256];
    driver.make_available(TRANSMIT, 0, &buffers);
    for _ in 0..255 {
        driver.offer(TRANSMIT, 0);
    }
    driver.kick(TRANSMIT);
    let start = Instant::now();
    driver.function.pause();
    driver.function.resume();
    driver.set_status(0);
    assert!(start.elapsed() < PATIENCE / 4, "{:?}", start.elapsed());
}

#[test]
fn a_driver_that_breaks_the_rules_loses_the_device_until_it_resets_it() {
    for queue in [RECEIVE, TRANSMIT] {
        let host = Host::new(usize::MAX, None);
        let mut driver = host.driver();
        driver.start(0, 8);
        host.line.accept(b"typed");
        // More available than there are entries.
        let available = driver.queues[queue].available;
        driver.fill(available + 2, &100_u16.to_le_bytes());
        driver.kick(queue);
        driver.wait_for_fault();
        driver.start(0, 8);
        print(&mut driver, 0, b"again");
        assert_eq!(driver.wait_used(TRANSMIT), (0, 0));
        driver.make_available(RECEIVE, 0, &[writable(BUFFERS, 8)]);
        driver.kick(RECEIVE);
        assert_eq!(driver.wait_used(RECEIVE), (0, 5));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However requests and room are cut, bytes come out whole and in order.
    #[test]
    fn nothing_is_lost_or_reordered(
        lengths in prop::collection::vec(1_u32..3000, 1..6),
        rooms in prop::collection::vec(1_usize..2000, 1..40),
    ) {
        let host = Host::new(0, None);
        let mut driver = host.driver();
        driver.start(0, 8);
        let total = lengths.iter().sum::<u32>() as usize;
        let text: Vec<u8> = (0..total).map(|at| (at ^ at >> 8) as u8).collect();
        driver.fill(BUFFERS, &text);
        let mut at = BUFFERS;
        for (head, length) in (0..).zip(&lengths) {
            driver.make_available(TRANSMIT, head, &[readable(at, *length)]);
            at += u64::from(*length);
        }
        driver.kick(TRANSMIT);
        for room in rooms {
            host.make_room(room);
        }
        host.make_room(total);
        for head in 0..lengths.len() {
            prop_assert_eq!(driver.wait_used(TRANSMIT), (head as u32, 0));
        }
        prop_assert_eq!(host.printed(), text);
    }
}
