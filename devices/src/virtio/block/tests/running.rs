//! Many requests at once: pauses, resets, several queues, buffers that need bouncing.

use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::testing::PATIENCE;

/// Makes eight requests available, of two sectors each, without telling. The header of each is at
/// `HEADER` and 16 bytes further for the next, its data at `DATA` and 1 KiB further.
pub fn make_eight(driver: &mut Driver, queue: usize, kind: u32) {
    // Three descriptors each, 24 of 32.
    for number in 0..8_u16 {
        let at = u64::from(number) + queue as u64 * 8;
        put_header(driver, HEADER + at * 16, kind, at * 2);
        driver.fill(STATUS + at, &[0xff]);
        let data = Buffer {
            gpa: DATA + at * 1024,
            length: 1024,
            writable: kind == IN,
        };
        let buffers = [
            readable(HEADER + at * 16, 16),
            data,
            writable(STATUS + at, 1),
        ];
        driver.make_available(queue, number * 3, &buffers);
    }
}

/// A disk with queues of 32 entries.
fn with_queues(queues: u16, engine: EngineChoice) -> (Driver, NamedTempFile) {
    let file = disk_of(&pattern(0, SIZE));
    let image = Image::open(&options(file.path())).unwrap();
    let block = Block::new(BlockParts {
        queues,
        queue_size: 32,
        host_cpus: vec![vec![0]],
        ..parts(image, engine)
    });
    let mut driver = Driver::new(Box::new(block));
    driver.start(0, 32);
    (driver, file)
}

#[test]
fn all_queues_are_served() {
    for engine in ENGINES {
        let (mut driver, _file) = with_queues(4, engine);
        for round in 0..20 {
            driver.fill(DATA, &[0xff; 4 * 8 * 1024]);
            for queue in 0..4 {
                make_eight(&mut driver, queue, IN);
                driver.kick(queue);
            }
            for queue in 0..4 {
                let mut heads: Vec<u32> = (0..8).map(|_| driver.wait_used(queue).0).collect();
                heads.sort_unstable();
                assert_eq!(heads, [0, 3, 6, 9, 12, 15, 18, 21], "round {round}");
                if round == 0 {
                    // The driver of this test asks for the first alone.
                    driver.wait_interrupt(queue as u16 + 1);
                }
            }
            assert_eq!(driver.bytes(STATUS, 32), [OK; 32]);
            assert_eq!(driver.bytes(DATA, 32 << 10), pattern(0, 32 << 10));
        }
    }
}

/// What was asked for before a pause is done when it is there, and nothing is until it ends.
#[test]
fn nothing_moves_while_a_disk_is_paused() {
    for engine in ENGINES {
        let (mut driver, file) = with_queues(2, engine);
        for round in 0..50_u8 {
            driver.fill(DATA, &pattern(round, 16 << 10));
            make_eight(&mut driver, 0, OUT);
            driver.kick(0);
            driver.function.pause();
            let before = contents(&file);
            make_eight(&mut driver, 1, OUT);
            driver.kick(1);
            thread::sleep(Duration::from_millis(1));
            assert!(driver.take_used(1).is_none());
            assert_eq!(contents(&file), before);
            driver.function.resume();
            for queue in [0, 1] {
                for _ in 0..8 {
                    driver.wait_used(queue);
                }
            }
            assert_eq!(contents(&file)[..16 << 10], pattern(round, 16 << 10));
        }
    }
}

/// Guest memory is not touched once a reset is done.
#[test]
fn resets_wait_for_what_is_under_way() {
    for engine in ENGINES {
        let (mut driver, _file) = with_queues(1, engine);
        for _ in 0..50 {
            make_eight(&mut driver, 0, IN);
            driver.kick(0);
            driver.set_status(0);
            driver.fill(DATA, &[0xee; 8 << 10]);
            driver.fill(STATUS, &[0xee; 8]);
            thread::sleep(Duration::from_micros(300));
            assert_eq!(driver.bytes(DATA, 8 << 10), [0xee; 8 << 10]);
            assert_eq!(driver.bytes(STATUS, 8), [0xee; 8]);
            driver.start(0, 32);
        }
        make_eight(&mut driver, 0, IN);
        driver.kick(0);
        for _ in 0..8 {
            driver.wait_used(0);
        }
        assert_eq!(driver.bytes(DATA, 8 << 10), pattern(0, 8 << 10));
    }
}

/// Heads that are offered again before they came back: more at once than there is room for.
#[test]
fn more_requests_than_entries_all_come_back() {
    for engine in ENGINES {
        let (mut driver, _file) = with_queues(1, engine);
        make_eight(&mut driver, 0, IN);
        for _ in 0..24 {
            driver.offer(0, 0);
        }
        driver.kick(0);
        for _ in 0..32 {
            driver.wait_used(0);
        }
        assert_eq!(driver.bytes(STATUS, 8), [OK; 8]);
    }
}

/// As the machine does it when memory of a device goes: it waits for those who use it, and not for ever.
#[test]
fn memory_can_go_when_requests_are_done() {
    for engine in ENGINES {
        let (mut driver, _file) = with_queues(1, engine);
        make_eight(&mut driver, 0, IN);
        driver.kick(0);
        for _ in 0..8 {
            driver.wait_used(0);
        }
        let start = Instant::now();
        let memory = Arc::downgrade(&driver.ram.memory.get());
        while memory.strong_count() > 1 {
            assert!(start.elapsed() < PATIENCE, "a request keeps guest memory");
            thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn buffers_that_are_not_aligned_are_bounced() {
    for engine in ENGINES {
        let file = disk_of(&pattern(0, SIZE));
        let image = Image::open(&options(file.path())).unwrap();
        let mut driver = started(image.with_alignment(512, 512), engine);
        // In pieces that no direct I/O takes.
        let pieces = |writable| {
            [(DATA + 3, 100), (DATA + 0x801, 1), (DATA + 0x1001, 923)].map(|(gpa, length)| Buffer {
                gpa,
                length,
                writable,
            })
        };
        assert_eq!(ask(&mut driver, IN, 2, &pieces(true)), (OK, 1025));
        let mut read = driver.bytes(DATA + 3, 100);
        read.extend(driver.bytes(DATA + 0x801, 1));
        read.extend(driver.bytes(DATA + 0x1001, 923));
        assert_eq!(read, pattern(0, SIZE)[1024..2048]);
        assert_eq!(ask(&mut driver, OUT, 8, &pieces(false)), (OK, 1));
        assert_eq!(contents(&file)[4096..5120], pattern(0, SIZE)[1024..2048]);
    }
}

/// More than a bounce buffer takes at once, on a file that is opened so.
#[test]
fn direct_disks_keep_what_is_written() {
    const LARGE: usize = 0x6_0000;
    for engine in ENGINES {
        let file = disk_of(&vec![0; LARGE + 8192]);
        let opened = Image::open(&ImageOptions {
            direct: true,
            ..options(file.path())
        });
        let image = match opened {
            Ok(image) => image,
            // The file system of this machine's temporary files.
            Err(crate::virtio::block::ImageError::Direct(_)) => return,
            Err(error) => panic!("{error}"),
        };
        let unit = image.blocks.offset.max(512);
        let mut driver = started(image, engine);
        let bytes = pattern(5, LARGE);
        for shift in [0, 1, 512] {
            driver.fill(DATA + shift, &bytes);
            let length = LARGE as u32;
            let sector = unit / 512;
            let out = [readable(DATA + shift, length)];
            assert_eq!(ask(&mut driver, OUT, sector, &out), (OK, 1));
            let unit = unit as usize;
            assert_eq!(contents(&file)[unit..unit + LARGE], bytes);
            driver.fill(DATA + shift, &vec![0; LARGE]);
            let into = [writable(DATA + shift, length)];
            assert_eq!(ask(&mut driver, IN, sector, &into), (OK, length + 1));
            assert_eq!(driver.bytes(DATA + shift, LARGE), bytes);
        }
    }
}

/// A driver that knows no flushes takes what is written for safe.
#[test]
fn writes_are_synchronous_without_flushes() {
    for engine in ENGINES {
        let file = disk_of(&pattern(0, SIZE));
        let image = Image::open(&options(file.path())).unwrap();
        let mut driver = Driver::new(Box::new(Block::new(parts(image, engine))));
        driver.start(1 << 9, 16);
        driver.fill(DATA, &[3; 512]);
        assert_eq!(ask(&mut driver, OUT, 1, &[readable(DATA, 512)]), (OK, 1));
        assert_eq!(ask_of_range(&mut driver, WRITE_ZEROES, (4, 4), 0), OK);
        let bytes = contents(&file);
        assert_eq!(bytes[512..1024], [3; 512]);
        assert_eq!(bytes[2048..4096], [0; 2048]);
    }
}

/// More entries than any ring has are refused, as all of io_uring is where it is turned off.
#[test]
fn disks_do_without_io_uring_where_it_is_refused() {
    use crate::virtio::block::engine::Engine;
    let engine = Engine::new(u16::MAX);
    assert!(matches!(engine, Engine::Calls));
    assert!(engine.event().is_none() && !engine.is_busy());
}
