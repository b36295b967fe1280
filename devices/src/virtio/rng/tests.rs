#![expect(unsafe_code, reason = "makes a pipe that does not block")]

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::virtio::testing::hostile::never_rest;
use crate::virtio::testing::{Buffer, Driver, RAM};
use crate::virtio::{features, rng::Rng};

/// Where buffers are.
const BUFFERS: u64 = 0x8_0000;

/// A device that gives these bytes, and a driver that has started it.
fn started(bytes: &[u8], without: u64) -> Driver {
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(bytes).unwrap();
    source.rewind().unwrap();
    let mut driver = Driver::new(Box::new(Rng::new(source)));
    driver.start(without, 8);
    driver
}

fn writable(gpa: u64, length: u32) -> Buffer {
    Buffer {
        gpa,
        length,
        writable: true,
    }
}

#[test]
fn buffers_are_filled_in_their_order() {
    for without in [0, features::EVENT_IDX, features::INDIRECT_DESC] {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut driver = started(&bytes, without);
        let buffers = [writable(BUFFERS, 10), writable(BUFFERS + 0x1000, 20)];
        driver.make_available(0, 0, &buffers);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (0, 30));
        assert_eq!(driver.bytes(BUFFERS, 10), bytes[..10]);
        assert_eq!(driver.bytes(BUFFERS + 0x1000, 20), bytes[10..30]);
        driver.wait_interrupt(1);
        assert_eq!(driver.isr(), 1);
        assert_eq!(driver.isr(), 0);
        // And again, told by a write that came to us.
        driver.make_available(0, 2, &[writable(BUFFERS, 5)]);
        driver.kick_by_register(0);
        assert_eq!(driver.wait_used(0), (2, 5));
        assert_eq!(driver.bytes(BUFFERS, 5), bytes[30..35]);
    }
}

#[test]
fn a_source_that_ends_gives_what_it_has() {
    let mut driver = started(b"abc", 0);
    driver.make_available(0, 0, &[writable(BUFFERS, 10)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (0, 3));
    assert_eq!(driver.bytes(BUFFERS, 4), b"abc\0");
}

#[test]
fn buffers_to_be_read_and_buffers_outside_of_memory_get_nothing() {
    let mut driver = started(&[7; 256], 0);
    let readable = Buffer {
        writable: false,
        ..writable(BUFFERS, 16)
    };
    driver.make_available(0, 0, &[readable]);
    driver.make_available(0, 1, &[writable(RAM as u64, 16)]);
    driver.make_available(0, 2, &[writable(u64::MAX - 4, 16)]);
    driver.make_available(0, 3, &[writable(BUFFERS, 16), writable(RAM as u64, 16)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (0, 0));
    assert_eq!(driver.wait_used(0), (1, 0));
    assert_eq!(driver.wait_used(0), (2, 0));
    assert_eq!(driver.wait_used(0), (3, 16));
}

#[test]
fn no_request_is_given_more_than_its_share() {
    let source = File::open("/dev/zero").unwrap();
    let mut driver = Driver::new(Box::new(Rng::new(source)));
    driver.start(0, 8);
    driver.fill(BUFFERS, &[1; 0x2_0000]);
    driver.make_available(0, 0, &[writable(BUFFERS, 0x2_0000)]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0), (0, 0x1_0000));
    assert_eq!(driver.bytes(BUFFERS + 0xffff, 2), [0, 1]);
}

#[test]
fn a_device_is_reset_and_started_again() {
    let bytes: Vec<u8> = (0..=255).collect();
    let mut driver = started(&bytes, 0);
    for round in 0..20_u8 {
        driver.make_available(0, 0, &[writable(BUFFERS, 1)]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (0, 1));
        assert_eq!(driver.bytes(BUFFERS, 1), [round]);
        driver.start(0, 8);
    }
}

#[test]
fn a_source_that_always_gives_does_not_keep_the_device_from_anything_else() {
    let device = Box::new(Rng::new(File::open("/dev/zero").unwrap()));
    never_rest(device, |driver| {
        driver.make_available(0, 0, &[writable(BUFFERS, 1)]);
        driver.kick(0);
    });
}

/// What the device reads is written where it looks how many requests there are: it always has one more.
#[test]
fn a_device_that_makes_its_own_requests_can_be_paused() {
    let bytes: Vec<u8> = (2..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut source = tempfile::tempfile().unwrap();
    source.write_all(&bytes).unwrap();
    source.rewind().unwrap();
    let mut same = source.try_clone().unwrap();
    let mut driver = Driver::new(Box::new(Rng::new(source)));
    driver.start(0, 8);
    let index = driver.queues[0].available + 2;
    driver.make_available(0, 0, &[writable(index, 2)]);
    driver.kick(0);
    let mut read = 0;
    while read == 0 {
        driver.function.pause();
        read = same.stream_position().unwrap();
        driver.function.resume();
    }
    assert!(
        read < bytes.len() as u64,
        "it was not paused before the end"
    );
    driver.set_status(0);
}

/// A source that has nothing makes the request wait, and nobody else: not even who wants memory back.
#[test]
fn a_source_that_has_nothing_yet_is_waited_for() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = OwnedFd::from(reader);
    // SAFETY: the descriptor is open.
    let set = unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    assert_eq!(set, 0);
    let mut driver = Driver::new(Box::new(Rng::new(File::from(reader))));
    driver.start(0, 8);
    driver.make_available(0, 0, &[writable(BUFFERS, 4), writable(BUFFERS + 0x1000, 4)]);
    driver.make_available(0, 2, &[writable(BUFFERS + 0x2000, 4)]);
    driver.kick(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.take_used(0), None);
    assert_eq!(
        Arc::strong_count(&driver.ram.memory.get()),
        2,
        "somebody has memory"
    );
    driver.kick(0);
    writer.write_all(b"abcdef").unwrap();
    assert_eq!(driver.wait_used(0), (0, 6));
    assert_eq!(driver.bytes(BUFFERS + 0x1000, 4), b"ef\0\0");
    driver.function.pause();
    writer.write_all(b"ghi").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.take_used(0), None);
    driver.function.resume();
    assert_eq!(driver.wait_used(0), (2, 3));
    // One that waits can be reset.
    driver.make_available(0, 3, &[writable(BUFFERS, 4)]);
    driver.kick(0);
    driver.start(0, 8);
    driver.make_available(0, 0, &[writable(BUFFERS, 4)]);
    driver.kick(0);
    writer.write_all(b"j").unwrap();
    assert_eq!(driver.wait_used(0), (0, 1));
}

/// A table of empty buffers does not keep the thread.
#[test]
fn buffers_behind_many_empty_ones_get_nothing() {
    let mut driver = started(&[7; 100], 0);
    for (count, written) in [(1023, 4), (1024, 0)] {
        // Those that are to be read count as well.
        let mut buffers = vec![writable(BUFFERS, 0); count];
        buffers[..500]
            .iter_mut()
            .for_each(|buffer| buffer.writable = false);
        buffers.push(writable(BUFFERS, 4));
        driver.make_table_available(0, 0, BUFFERS + 0x1000, &buffers);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (0, written), "{count}");
    }
}
