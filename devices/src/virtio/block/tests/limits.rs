//! Disks that may not do all that they could.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::running::make_eight;
use super::*;
use crate::virtio::rate_limiter::{Bucket, Limits, RateLimiter};
use crate::virtio::testing::PATIENCE;

const MILLISECOND: Duration = Duration::from_millis(1);
/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3600);

/// So many tokens at first, of which each comes again in `each`.
fn bucket(size: u64, each: Duration) -> Option<Bucket> {
    let refill = each * u32::try_from(size).unwrap();
    Some(Bucket {
        size,
        one_time_burst: 0,
        refill,
    })
}

fn operations(size: u64, each: Duration) -> Arc<Limits> {
    Arc::new(Limits::new(None, bucket(size, each)))
}

fn bytes(size: u64, each: Duration) -> Arc<Limits> {
    Arc::new(Limits::new(bucket(size, each), None))
}

fn limited(limits: &Arc<Limits>, queues: u16, engine: EngineChoice) -> (Driver, NamedTempFile) {
    let file = disk_of(&pattern(0, SIZE));
    let image = Image::open(&options(file.path())).unwrap();
    let block = Block::new(BlockParts {
        queues,
        queue_size: 32,
        limits: Some(Arc::clone(limits)),
        ..parts(image, engine)
    });
    let mut driver = Driver::new(Box::new(block));
    driver.start(0, 32);
    (driver, file)
}

/// Waits for eight requests of a queue, in the order that limits leave them in.
fn wait_for_eight(driver: &mut Driver, queue: usize) {
    for number in 0..8 {
        assert_eq!(driver.wait_used(queue).0, number * 3);
    }
}

/// Makes a request of a queue whose answer is not waited for.
fn begin(driver: &mut Driver, queue: usize, kind: u32, data: &[Buffer]) {
    put_header(driver, HEADER, kind, 0);
    driver.fill(STATUS, &[0xff]);
    let mut buffers = vec![readable(HEADER, 16)];
    buffers.extend(data);
    buffers.push(writable(STATUS, 1));
    driver.make_available(queue, 0, &buffers);
    driver.kick(queue);
}

/// A disk of which one request was answered, and the next waits for an hour.
fn waiting(limits: &Arc<Limits>, engine: EngineChoice) -> (Driver, NamedTempFile) {
    let (mut driver, file) = limited(limits, 1, engine);
    assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 512)]).0, OK);
    begin(&mut driver, 0, IN, &[writable(DATA, 512)]);
    thread::sleep(10 * MILLISECOND);
    assert_eq!(driver.take_used(0), None);
    (driver, file)
}

#[test]
fn requests_and_bytes_take_their_time() {
    for engine in ENGINES {
        // Of eight requests of 1 KiB two come at once, and another one each 10 ms.
        let tenth = bytes(2048, 10 * MILLISECOND / 1024);
        for limits in [operations(2, 10 * MILLISECOND), tenth] {
            let (mut driver, file) = limited(&limits, 1, engine);
            for kind in [IN, OUT] {
                let start = Instant::now();
                make_eight(&mut driver, 0, kind);
                driver.kick(0);
                wait_for_eight(&mut driver, 0);
                let took = start.elapsed();
                assert!(took >= 59 * MILLISECOND, "{engine:?}, {kind}: {took:?}");
                assert_eq!(driver.bytes(STATUS, 8), [OK; 8]);
                assert_eq!(driver.bytes(DATA, 8 << 10), pattern(0, 8 << 10));
                thread::sleep(20 * MILLISECOND);
            }
            assert_eq!(contents(&file), pattern(0, SIZE));
        }
    }
}

#[test]
fn all_queues_of_all_disks_share_their_limits() {
    for engine in ENGINES {
        let limits = operations(1, 5 * MILLISECOND);
        let mut disks = [limited(&limits, 2, engine), limited(&limits, 2, engine)];
        let start = Instant::now();
        for (driver, _) in &mut disks {
            for queue in [0, 1] {
                make_eight(driver, queue, IN);
                driver.kick(queue);
            }
        }
        for (driver, _) in &mut disks {
            for queue in [0, 1] {
                wait_for_eight(driver, queue);
            }
        }
        assert!(start.elapsed() >= 31 * 5 * MILLISECOND);
    }
}

/// Whatever it is: a flush, a request that is not known, one that the disk has no room for.
#[test]
fn every_request_is_an_operation() {
    for engine in ENGINES {
        let limits = operations(1, 20 * MILLISECOND);
        let (mut driver, _file) = limited(&limits, 1, engine);
        let start = Instant::now();
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        assert_eq!(ask_of_range(&mut driver, DISCARD, (0, 8), 0), OK);
        assert_eq!(ask_of_range(&mut driver, WRITE_ZEROES, (0, 8), 0), OK);
        assert_eq!(ask(&mut driver, GET_ID, 0, &[writable(DATA, 20)]).0, OK);
        let beyond = ask(&mut driver, IN, 1 << 40, &[writable(DATA, 512)]);
        assert_eq!(beyond.0, IO_ERROR);
        assert_eq!(ask(&mut driver, 99, 0, &[]).0, UNSUPPORTED);
        assert!(start.elapsed() >= 100 * MILLISECOND);
    }
}

/// Bytes that nothing moves are none, however many a driver names.
#[test]
fn bytes_are_those_of_reads_and_writes() {
    for engine in ENGINES {
        let limits = bytes(512, HOUR);
        let (mut driver, _file) = limited(&limits, 1, engine);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        let beyond = ask(&mut driver, OUT, 120, &[readable(DATA, 0x8000)]);
        assert_eq!(beyond.0, IO_ERROR);
        assert_eq!(ask_of_range(&mut driver, DISCARD, (0, 64), 0), OK);
        assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 511)]).0, IO_ERROR);
        // More than the bucket holds, which is full.
        assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 4096)]).0, OK);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        begin(&mut driver, 0, OUT, &[readable(DATA, 512)]);
        thread::sleep(10 * MILLISECOND);
        assert_eq!(driver.take_used(0), None);
    }
}

/// And nobody keeps guest memory, which may have to go.
#[test]
fn a_disk_that_waits_is_paused_and_reset_at_once() {
    for engine in ENGINES {
        let (mut driver, _file) = waiting(&operations(1, HOUR), engine);
        let memory = Arc::downgrade(&driver.ram.memory.get());
        assert_eq!(memory.strong_count(), 1);
        let start = Instant::now();
        driver.function.pause();
        driver.function.resume();
        driver.set_status(0);
        assert_eq!(driver.status(), 0);
        driver.start(0, 32);
        begin(&mut driver, 0, IN, &[writable(DATA, 512)]);
        drop(driver);
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn the_time_of_a_paused_disk_comes_all_the_same() {
    for engine in ENGINES {
        let (mut driver, _file) = limited(&operations(1, 50 * MILLISECOND), 1, engine);
        make_eight(&mut driver, 0, IN);
        driver.kick(0);
        let mut answered = 0;
        while answered < 8 {
            driver.function.pause();
            while driver.take_used(0).is_some() {
                answered += 1;
            }
            thread::sleep(60 * MILLISECOND);
            assert_eq!(driver.take_used(0), None);
            driver.function.resume();
            if answered < 8 {
                driver.wait_used(0);
                answered += 1;
            }
        }
    }
}

/// Another member of the limits, behind what waits of a disk.
fn behind(limits: &Arc<Limits>) -> RateLimiter {
    let mut other = RateLimiter::new(Arc::clone(limits)).unwrap();
    let start = Instant::now();
    while other.take(0) {
        assert!(start.elapsed() < PATIENCE, "nothing waits");
        thread::sleep(MILLISECOND);
    }
    other
}

/// A reset gives up what waits, so that it holds up no other disk of its group.
#[test]
fn a_reset_gives_up_what_waits() {
    for engine in ENGINES {
        let limits = bytes(1024, HOUR);
        let (mut driver, _file) = limited(&limits, 1, engine);
        assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 512)]).0, OK);
        begin(&mut driver, 0, IN, &[writable(DATA, 1024)]);
        let mut other = behind(&limits);
        driver.set_status(0);
        assert!(other.take(0));
    }
}

/// A driver that takes back what waits, which none may, has nothing of it and goes on.
#[test]
fn what_is_taken_back_does_not_wait() {
    for engine in ENGINES {
        let limits = bytes(1024, HOUR);
        let (mut driver, _file) = limited(&limits, 1, engine);
        assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 512)]).0, OK);
        let available = driver.queues[0].available;
        let before = driver.bytes(available, 4);
        begin(&mut driver, 0, IN, &[writable(DATA, 1024)]);
        let mut other = behind(&limits);
        let after = driver.bytes(available, 4);
        driver.fill(available, &before);
        driver.kick(0);
        let start = Instant::now();
        while !other.take(0) {
            assert!(start.elapsed() < PATIENCE, "it waits for nothing");
            thread::sleep(MILLISECOND);
        }
        put_header(&driver, HEADER, FLUSH, 0);
        driver.fill(available, &after);
        driver.kick(0);
        driver.wait_used(0);
    }
}

/// Nanoseconds that the thread of a name has had a CPU.
fn time_of(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.filter_map(|task| Some(task.ok()?.path()));
    // Other threads come and go.
    let is = |path: &std::path::PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let mut tasks = tasks.filter(is);
    let stat = fs::read_to_string(tasks.next().unwrap().join("schedstat")).unwrap();
    assert!(tasks.next().is_none(), "another test has such a thread");
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_disk_that_waits_does_not_spin() {
    for engine in ENGINES {
        let (mut driver, _file) = limited(&operations(1, HOUR), 10, engine);
        for _ in 0..2 {
            begin(&mut driver, 9, IN, &[writable(DATA, 512)]);
        }
        driver.wait_used(9);
        let before = time_of("virtio-blk q9");
        thread::sleep(200 * MILLISECOND);
        let spent = time_of("virtio-blk q9") - before;
        assert!(spent < 10_000_000, "{spent} ns of CPU time");
    }
}
