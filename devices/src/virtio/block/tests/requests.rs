//! Every request, rightly and wrongly made, with both ways to ask the host.
#![expect(unsafe_code, reason = "replaces a file that is open")]

use std::collections::BTreeMap;

use super::*;
use crate::virtio::testing::RAM;

#[test]
fn what_is_read_is_what_the_image_has() {
    for engine in ENGINES {
        let (mut driver, _file) = ordinary(engine);
        let data = [writable(DATA, 512), writable(DATA + 0x1000, 1024)];
        assert_eq!(ask(&mut driver, IN, 3, &data), (OK, 1537));
        let expected = &pattern(0, SIZE)[3 * 512..];
        assert_eq!(driver.bytes(DATA, 512), expected[..512]);
        assert_eq!(driver.bytes(DATA + 0x1000, 1024), expected[512..1536]);
        driver.wait_interrupt(1);
        // The last sector, and none behind it.
        let last = SIZE as u64 / 512 - 1;
        let one = [writable(DATA, 512)];
        assert_eq!(ask(&mut driver, IN, last, &one), (OK, 513));
        assert_eq!(ask(&mut driver, IN, last + 1, &one), (IO_ERROR, 0));
        let two = [writable(DATA, 1024)];
        assert_eq!(ask(&mut driver, IN, last, &two), (IO_ERROR, 0));
        for sector in [u64::MAX, u64::MAX / 512, 1 << 55] {
            assert_eq!(ask(&mut driver, IN, sector, &one).0, IO_ERROR);
        }
    }
}

#[test]
fn what_is_written_is_in_the_image() {
    for engine in ENGINES {
        let (mut driver, file) = ordinary(engine);
        driver.fill(DATA, &pattern(7, 2048));
        let data = [readable(DATA, 100), readable(DATA + 100, 924)];
        assert_eq!(ask(&mut driver, OUT, 5, &data), (OK, 1));
        let mut expected = pattern(0, SIZE);
        expected[5 * 512..7 * 512].copy_from_slice(&pattern(7, 1024));
        assert_eq!(contents(&file), expected);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]), (OK, 1));
        // Neither half a sector nor what is behind the end is written.
        assert_eq!(ask(&mut driver, OUT, 0, &[readable(DATA, 511)]).0, IO_ERROR);
        let last = SIZE as u64 / 512 - 1;
        let two = [readable(DATA, 1024)];
        assert_eq!(ask(&mut driver, OUT, last, &two).0, IO_ERROR);
        assert_eq!(contents(&file), expected);
    }
}

/// A table that all requests of a queue have in common takes little of a guest, and no more of the host.
#[test]
fn requests_of_more_descriptors_than_there_may_be_get_nothing() {
    /// The most.
    const MOST: u16 = 1024;
    let table = 0x2_0000;
    for engine in ENGINES {
        let (mut driver, _file) = ordinary(engine);
        let entry = |driver: &Driver, at: u16, buffer: Buffer, next: Option<u16>| {
            let mut bytes = buffer.gpa.to_le_bytes().to_vec();
            bytes.extend(buffer.length.to_le_bytes());
            let flags = u16::from(buffer.writable) * 2 + u16::from(next.is_some());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.unwrap_or_default().to_le_bytes());
            driver.fill(table + u64::from(at) * 16, &bytes);
        };
        let ask = |driver: &mut Driver, entries: u32| {
            put_header(driver, HEADER, IN, 0);
            driver.fill(STATUS, &[0xff]);
            driver.describe(0, 0, readable(table, entries * 16), 4, 0);
            driver.offer(0, 0);
            driver.kick(0);
            let (head, written) = driver.wait_used(0);
            assert_eq!(head, 0);
            (driver.bytes(STATUS, 1)[0], written)
        };
        for (count, answer) in [(MOST, (OK, 1025)), (MOST + 1, (0xff, 0))] {
            // Bytes one by one, and the rest of two sectors.
            entry(&driver, 0, readable(HEADER, 16), Some(1));
            let last = count - 2;
            for at in 1..last {
                entry(&driver, at, writable(DATA, 1), Some(at + 1));
            }
            let rest = 1024 - u32::from(last - 1);
            entry(&driver, last, writable(DATA, rest), Some(last + 1));
            entry(&driver, last + 1, writable(STATUS, 1), None);
            assert_eq!(ask(&mut driver, count.into()), answer, "{count}");
        }
        // As many as a table can have, since it goes in a circle.
        entry(&driver, 1, writable(DATA, 512), Some(1));
        assert_eq!(ask(&mut driver, 0xffff), (0xff, 0));
        // Empty ones count.
        entry(&driver, 1, writable(DATA, 0), Some(1));
        assert_eq!(ask(&mut driver, 0xffff), (0xff, 0));
        for (empty, answer) in [(MOST - 3, (OK, 513)), (MOST - 2, (0xff, 0))] {
            for at in 1..=empty {
                entry(&driver, at, writable(DATA, 0), Some(at + 1));
            }
            entry(&driver, empty + 1, writable(DATA, 512), Some(empty + 2));
            entry(&driver, empty + 2, writable(STATUS, 1), None);
            assert_eq!(ask(&mut driver, u32::from(empty) + 3), answer, "{empty}");
        }
    }
}

#[test]
fn ranges_become_zeroes() {
    for engine in ENGINES {
        let (mut driver, file) = ordinary(engine);
        let mut expected = pattern(0, SIZE);
        for (kind, range, flags) in [
            (WRITE_ZEROES, (1, 3), 0),
            (WRITE_ZEROES, (16, 17), 1),
            (DISCARD, (40, 24), 0),
        ] {
            assert_eq!(ask_of_range(&mut driver, kind, range, flags), OK);
            let (first, count) = (range.0 as usize, range.1 as usize);
            expected[first * 512..(first + count) * 512].fill(0);
            assert_eq!(contents(&file), expected);
        }
        let sectors = SIZE as u64 / 512;
        for (kind, range, flags, status) in [
            (DISCARD, (sectors, 1), 0, IO_ERROR),
            (DISCARD, (u64::MAX, 1), 0, IO_ERROR),
            (DISCARD, (0, u32::MAX), 0, IO_ERROR),
            (WRITE_ZEROES, (sectors - 1, 2), 0, IO_ERROR),
            (DISCARD, (0, 1), 1, UNSUPPORTED),
            (WRITE_ZEROES, (0, 1), 2, UNSUPPORTED),
            (WRITE_ZEROES, (0, 0), 0, OK),
        ] {
            let answer = ask_of_range(&mut driver, kind, range, flags);
            assert_eq!(answer, status, "{kind} {range:?} {flags}");
        }
        // One segment is all that there may be.
        let two = [readable(DATA, 32)];
        assert_eq!(ask(&mut driver, DISCARD, 0, &two).0, IO_ERROR);
        assert_eq!(ask(&mut driver, DISCARD, 0, &[]).0, IO_ERROR);
        assert_eq!(contents(&file), expected);
    }
}

/// Its file system knows no ranges of zeroes.
#[test]
fn zeroes_are_written_where_no_range_can_be_made_zero() {
    for engine in ENGINES {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(&[1; 0x3_0000], 0).unwrap();
        let same = file.try_clone().unwrap();
        let mut driver = started(Image::of_file(file, 0x3_0000), engine);
        assert_eq!(ask_of_range(&mut driver, WRITE_ZEROES, (1, 0x170), 0), OK);
        let mut bytes = vec![2; 0x3_0000];
        same.read_exact_at(&mut bytes, 0).unwrap();
        let (first, last) = (512, 0x171 * 512);
        let is_zero = |at: usize| (first..last).contains(&at);
        assert!((0..bytes.len()).all(|at| (bytes[at] == 0) == is_zero(at)));
    }
}

#[test]
fn a_serial_number_is_given_as_far_as_there_is_room() {
    let file = disk_of(&[0; 512]);
    let serial = Some("a serial number, 20!");
    let image = Image::open(&ImageOptions {
        serial,
        ..options(file.path())
    });
    let mut driver = started(image.unwrap(), EngineChoice::Auto);
    let whole = [writable(DATA, 15), writable(DATA + 15, 5)];
    assert_eq!(ask(&mut driver, GET_ID, 0, &whole), (OK, 21));
    assert_eq!(driver.bytes(DATA, 20), b"a serial number, 20!");
    driver.fill(DATA, &[0xff; 30]);
    assert_eq!(ask(&mut driver, GET_ID, 0, &[writable(DATA, 8)]), (OK, 9));
    assert_eq!(driver.bytes(DATA, 9), b"a serial\xff");
    // Nothing is there to be told of behind it.
    assert_eq!(ask(&mut driver, GET_ID, 0, &[writable(DATA, 30)]), (OK, 20));
}

#[test]
fn unknown_requests_are_refused_and_known_ones_go_on() {
    for engine in ENGINES {
        let (mut driver, _file) = ordinary(engine);
        for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
            assert_eq!(ask(&mut driver, kind, 0, &[]), (UNSUPPORTED, 1));
        }
        assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 512)]).0, OK);
    }
}

/// Section 2.7.4.1: the device must not assume how a driver cuts its requests.
#[test]
fn headers_and_status_bytes_may_lie_anywhere() {
    for engine in ENGINES {
        let (mut driver, file) = ordinary(engine);
        driver.fill(DATA, &pattern(9, 512));
        put_header(&driver, HEADER, OUT, 2);
        // The header in three parts, the last of which has data behind it.
        driver.fill(DATA - 6, &driver.bytes(HEADER + 10, 6));
        let buffers = [
            readable(HEADER, 1),
            readable(HEADER + 1, 0),
            readable(HEADER + 1, 9),
            readable(DATA - 6, 518),
            writable(STATUS, 1),
        ];
        driver.make_available(0, 0, &buffers);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (0, 1));
        assert_eq!(driver.bytes(STATUS, 1), [OK]);
        assert_eq!(contents(&file)[1024..1536], pattern(9, 512));
        // The status behind the data.
        put_header(&driver, HEADER, IN, 2);
        driver.fill(DATA, &[0xff; 514]);
        driver.make_available(0, 0, &[readable(HEADER, 16), writable(DATA, 513)]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (0, 513));
        assert_eq!(driver.bytes(DATA, 512), pattern(9, 512));
        assert_eq!(driver.bytes(DATA + 512, 2), [OK, 0xff]);
    }
}

#[test]
fn broken_requests_come_back_without_harm() {
    for engine in ENGINES {
        let (mut driver, file) = ordinary(engine);
        put_header(&driver, HEADER, IN, 0);
        // No room for a status, nothing at all that can be read, half a header, a header outside.
        let outside = RAM as u64;
        for (buffers, status) in [
            (vec![readable(HEADER, 16)], None),
            (vec![readable(HEADER, 16), writable(outside, 1)], None),
            (vec![readable(HEADER, 16), writable(u64::MAX, 1)], None),
            (vec![writable(STATUS, 1)], Some(IO_ERROR)),
            (
                vec![readable(HEADER, 8), writable(STATUS, 1)],
                Some(IO_ERROR),
            ),
            (
                vec![readable(outside - 8, 16), writable(STATUS, 1)],
                Some(IO_ERROR),
            ),
            (
                vec![readable(u64::MAX, 16), writable(STATUS, 1)],
                Some(IO_ERROR),
            ),
        ] {
            driver.fill(STATUS, &[0xff]);
            driver.make_available(0, 0, &buffers);
            driver.kick(0);
            driver.wait_used(0);
            assert_eq!(driver.bytes(STATUS, 1), [status.unwrap_or(0xff)]);
        }
        // Data outside of memory, and more of it than there is.
        for data in [
            writable(outside, 512),
            writable(outside - 256, 512),
            writable(u64::MAX - 100, 512),
            writable(0, 0xffff_fe00),
        ] {
            assert_eq!(ask(&mut driver, IN, 0, &[data]).0, IO_ERROR);
        }
        assert_eq!(
            ask(&mut driver, OUT, 0, &[readable(outside, 512)]).0,
            IO_ERROR
        );
        assert_eq!(ask(&mut driver, IN, 0, &[]), (OK, 1));
        assert_eq!(contents(&file), pattern(0, SIZE));
        assert_eq!(driver.status(), 15);
        // A head that no queue of this size has.
        driver.offer(0, 100);
        driver.kick(0);
        driver.wait_for_fault();
    }
}

#[test]
fn disks_to_be_read_only_are() {
    for engine in ENGINES {
        let file = disk_of(&pattern(0, SIZE));
        let image = Image::open(&ImageOptions {
            readonly: true,
            ..options(file.path())
        });
        let mut driver = started(image.unwrap(), engine);
        assert_eq!(driver.offered() >> 5 & 1, 1);
        // Neither to discard nor to write zeroes.
        assert_eq!(driver.offered() >> 13 & 3, 0);
        assert_eq!(ask(&mut driver, OUT, 0, &[readable(DATA, 512)]).0, IO_ERROR);
        assert_eq!(ask_of_range(&mut driver, WRITE_ZEROES, (0, 1), 0), IO_ERROR);
        assert_eq!(ask_of_range(&mut driver, DISCARD, (0, 1), 0), UNSUPPORTED);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 512)]).0, OK);
        assert_eq!(contents(&file), pattern(0, SIZE));
    }
}

#[test]
fn sector_0_stays_as_it_is_unless_the_image_is_said_to_be_raw() {
    let file = disk_of(&pattern(0, SIZE));
    let image = Image::open(&ImageOptions {
        format: ImageFormat::Detect,
        ..options(file.path())
    });
    let mut driver = started(image.unwrap(), EngineChoice::Auto);
    driver.fill(DATA, &[1; 1024]);
    assert_eq!(
        ask(&mut driver, OUT, 0, &[readable(DATA, 1024)]).0,
        IO_ERROR
    );
    assert_eq!(ask_of_range(&mut driver, DISCARD, (0, 8), 0), IO_ERROR);
    assert_eq!(contents(&file), pattern(0, SIZE));
    driver.fill(DATA, &[1; 1024]);
    assert_eq!(ask(&mut driver, OUT, 1, &[readable(DATA, 1024)]).0, OK);
    assert_eq!(contents(&file)[512..1536], [1; 1024]);
}

/// What the host refuses is an error of the request, and not of the device.
#[test]
fn errors_of_the_host_are_the_guests_to_handle() {
    for engine in ENGINES {
        // The host neither reads nor writes a folder.
        let folder = File::open("/").unwrap();
        let mut driver = started(Image::of_file(folder, SIZE as u64), engine);
        assert_eq!(
            ask(&mut driver, IN, 0, &[writable(DATA, 512)]),
            (IO_ERROR, 0)
        );
        assert_eq!(
            ask(&mut driver, OUT, 0, &[readable(DATA, 512)]),
            (IO_ERROR, 1)
        );
        assert_ne!(ask_of_range(&mut driver, WRITE_ZEROES, (0, 1), 0), OK);
        // A full disk.
        let full = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/full");
        let mut driver = started(Image::of_file(full.unwrap(), SIZE as u64), engine);
        assert_eq!(
            ask(&mut driver, OUT, 0, &[readable(DATA, 512)]),
            (IO_ERROR, 1)
        );
        // Nothing can be flushed there.
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]), (IO_ERROR, 1));
        assert_eq!(driver.status(), 15);
        // An image that was cut off.
        let (mut driver, file) = ordinary(engine);
        file.as_file().set_len(1024).unwrap();
        let data = [writable(DATA, 1024)];
        assert_eq!(ask(&mut driver, IN, 1, &data), (IO_ERROR, 512));
        assert_eq!(ask(&mut driver, IN, 8, &data), (IO_ERROR, 0));
    }
}

#[test]
fn what_was_moved_is_counted() {
    for engine in ENGINES {
        let file = disk_of(&pattern(0, SIZE));
        let image = Arc::new(Image::open(&options(file.path())).unwrap());
        let parts = BlockParts {
            image: Arc::clone(&image),
            ..parts(
                Image::open(&options(disk_of(&[0; 512]).path())).unwrap(),
                engine,
            )
        };
        let mut driver = Driver::new(Box::new(Block::new(parts)));
        driver.start(0, 16);
        let two = [writable(DATA, 512), writable(DATA + 0x1000, 1024)];
        assert_eq!(ask(&mut driver, IN, 3, &two).0, OK);
        assert_eq!(ask(&mut driver, IN, u64::MAX, &two).0, IO_ERROR);
        assert_eq!(ask(&mut driver, OUT, 0, &[readable(DATA, 512)]).0, OK);
        // These move nothing of the guest's.
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        assert_eq!(ask(&mut driver, GET_ID, 0, &[writable(DATA, 20)]).0, OK);
        let values: BTreeMap<_, _> = image.counters().into_iter().collect();
        let expected = [
            ("read_bytes", 1536),
            ("read_ops", 1),
            ("write_bytes", 512),
            ("write_ops", 1),
            ("errors", 1),
        ];
        for (name, value) in expected {
            assert_eq!(values[name], value, "{values:?}");
        }
        assert!(values["read_latency_max"] >= values["read_latency_avg"]);
        assert!(values["read_latency_min"] <= values["read_latency_avg"]);
    }
}

/// The host says once that it could not write, and forgets it, and perhaps the data: no later flush can
/// say that all is well.
#[test]
fn a_flush_that_has_failed_fails_for_good() {
    for engine in ENGINES {
        // Writing to it succeeds; it cannot be synced.
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let image = Arc::new(Image::of_file(null.try_clone().unwrap(), SIZE as u64));
        let start = |image: &Arc<Image>| {
            let parts = BlockParts {
                image: Arc::clone(image),
                queues: 2,
                queue_size: 16,
                host_cpus: Vec::new(),
                engine,
                limits: None,
            };
            let mut driver = Driver::new(Box::new(Block::new(parts)));
            driver.start(0, 16);
            driver
        };
        let mut driver = start(&image);
        assert_eq!(ask(&mut driver, OUT, 0, &[readable(DATA, 512)]).0, OK);
        assert!(!image.is_unflushed());
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, IO_ERROR);
        assert!(image.is_unflushed());
        // It could be synced now.
        let good = tempfile::tempfile().unwrap();
        replace(image.fd(), &good);
        assert_eq!(ask(&mut driver, OUT, 0, &[readable(DATA, 512)]).0, OK);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, IO_ERROR);
        drop(driver);
        // The guest boots again, and has the same image.
        let mut driver = start(&image);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, IO_ERROR);
        assert_eq!(ask(&mut driver, IN, 0, &[writable(DATA, 512)]).0, OK);
        drop(driver);
        // An image that never failed to be flushed is.
        let mut driver = start(&Arc::new(Image::of_file(good, SIZE as u64)));
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
    }
}

/// Lets a descriptor be another file.
fn replace(fd: std::os::fd::RawFd, file: &File) {
    use std::os::fd::AsRawFd as _;
    // SAFETY: takes numbers alone, and whoever has the descriptor goes on having one.
    let done = unsafe { libc::dup2(file.as_raw_fd(), fd) };
    assert_eq!(done, fd);
}
