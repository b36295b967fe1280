//! What becomes of an image when the process or the host ends, when its bytes are spoilt, and when many
//! threads use it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU32;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use vm_memory::{Bytes as _, GuestAddress, Permissions};

use super::storage::Written;
use super::*;
use crate::virtio::block::backend::{Lock, open_file};
use crate::virtio::block::tests::qcow2::{bytes_of, check, converted, created};
use crate::virtio::buffers::Part;
use crate::virtio::testing::Ram;

/// Where data is in guest memory.
const DATA: GuestAddress = GuestAddress(0x8_0000);

fn disk_with(path: &Path, data: Option<File>) -> Result<Disk, String> {
    let file = open_file(path, false, false, Lock::ByteRange).unwrap();
    let opened = Opened {
        path,
        file: &file.file,
        data: data.unwrap_or(file.data),
        size: file.size,
        writable: true,
        unit: 1,
    };
    open(opened, true, false, Lock::ByteRange).map_err(|error| error.to_string())
}

fn disk(path: &Path) -> Disk {
    disk_with(path, None).unwrap()
}

/// Buffers in guest memory, for so many bytes.
struct Room {
    ram: Ram,
    length: u64,
}

impl Room {
    fn new(length: u64) -> Self {
        let ram = Ram::new();
        Self { ram, length }
    }

    fn scatter(&self, length: u64) -> Scatter {
        let mut scatter = Scatter::default();
        let part = Part {
            gpa: DATA,
            bytes: length.min(self.length) as u32,
        };
        let memory = self.ram.memory.get();
        assert!(
            scatter
                .buffers
                .set(&memory, &[part], Permissions::ReadWrite)
        );
        scatter
    }

    fn write(&self, disk: &Disk, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.ram.memory.get().write_slice(bytes, DATA).unwrap();
        let length = bytes.len() as u64;
        let mut scatter = self.scatter(length);
        let mut done = 0;
        while done < length {
            let work = Work::Write {
                offset: offset + done,
                length: length - done,
            };
            done += disk.perform(work, &mut scatter, false)?;
        }
        Ok(())
    }

    fn read(&self, disk: &Disk, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut scatter = self.scatter(length);
        let mut done = 0;
        while done < length {
            let work = Work::Read {
                offset: offset + done,
                length: length - done,
            };
            done += disk.perform(work, &mut scatter, false)?;
        }
        let mut bytes = vec![0; length as usize];
        self.ram.memory.get().read_slice(&mut bytes, DATA).unwrap();
        Ok(bytes)
    }
}

fn nothing(disk: &Disk, work: Work) -> io::Result<u64> {
    disk.perform(work, &mut Scatter::default(), false)
}

fn numbers(seed: u8) -> TestRng {
    TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32])
}

/// Does something to a disk that an image of very small clusters has.
fn act(disk: &Disk, room: &Room, random: &mut TestRng) {
    let size = disk.size() / 512;
    let sector = random.random_range(0..size);
    let count = random.random_range(1..=40.min(size - sector));
    let (offset, length) = (sector * 512, count * 512);
    match random.random_range(0..10) {
        0..6 => room
            .write(disk, offset, &vec![random.random(); length as usize])
            .unwrap(),
        6 => {
            let length = (length * 4).min(disk.size() - offset);
            nothing(disk, Work::Discard { offset, length }).unwrap();
        }
        7 => {
            let unmap = random.random();
            nothing(
                disk,
                Work::Zero {
                    offset,
                    length,
                    unmap,
                },
            )
            .unwrap();
        }
        _ => {
            nothing(disk, Work::Flush).unwrap();
        }
    }
}

fn apply(bytes: &mut Vec<u8>, written: &Written) {
    if let Written::Bytes(offset, new) = written {
        let start = *offset as usize;
        if bytes.len() < start + new.len() {
            bytes.resize(start + new.len(), 0);
        }
        bytes[start..start + new.len()].copy_from_slice(new);
    }
}

/// Whatever of the tables has been written when the process ends, the image is in order; and whatever of
/// what was not synced has reached the host's storage when the host ends.
#[test]
fn an_image_is_in_order_whenever_it_is_left() {
    for (seed, kind) in [
        (1, "cluster_size=512,refcount_bits=64"),
        (2, "cluster_size=512,refcount_bits=64,compat=1.1"),
        (3, "cluster_size=1k,refcount_bits=16"),
        (4, "cluster_size=64k"),
    ] {
        let (folder, path) = created(&["-o", kind]);
        crate::virtio::block::tests::qcow2::run(
            &["resize", "-q", "-f", "qcow2", "disk.qcow2", "5M"],
            folder.path(),
        );
        let mut before = std::fs::read(&path).unwrap();
        let left = folder.path().join("left");
        let room = Room::new(64 << 10);
        let mut random = numbers(seed);
        let journal = {
            let disk = disk(&path);
            disk.file().take_journal();
            for _ in 0..100 {
                act(&disk, &room, &mut random);
            }
            disk.file().take_journal()
        };
        let syncs = journal
            .iter()
            .filter(|written| matches!(written, Written::Sync))
            .count();
        assert!(
            syncs > 3 && journal.len() > 30,
            "{syncs} of {}",
            journal.len()
        );
        // The guest's data, which is written before any table names its place, is not in the journal.
        before.resize(std::fs::metadata(&path).unwrap().len() as usize, 0);
        let mut synced = before.clone();
        let mut since = Vec::new();
        for written in &journal {
            apply(&mut before, written);
            match written {
                Written::Sync => {
                    synced.clone_from(&before);
                    since.clear();
                }
                Written::Bytes(..) => since.push(written),
            }
            if random.random_ratio(1, 12) {
                std::fs::write(&left, &before).unwrap();
                check(&left, false);
                // The host has written some of it, in its own order.
                let mut some = synced.clone();
                let chosen = since.iter().filter(|_| random.random());
                chosen.for_each(|written| apply(&mut some, written));
                std::fs::write(&left, &some).unwrap();
                check(&left, false);
            }
        }
        check(&path, true);
    }
}

const CHILD: &str = "QCOW2_TEST_IMAGE";
/// Bytes of a stamp's place on the disk; each is a number that grows.
const PLACE: u64 = 4096;

fn myself(name: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = format!("virtio::block::qcow2::tests::{name}");
    command.args(["--exact", &test, "--nocapture", "--test-threads=1"]);
    command.env(CHILD, value).stdout(Stdio::piped());
    command
}

/// Writes until it is killed, and says what was flushed.
fn write_for_ever(path: &Path) -> ! {
    let disk = disk(path);
    let room = Room::new(PLACE);
    let places = disk.size() / PLACE;
    let mut stamp = u64::from_le_bytes(room.read(&disk, 0, 8).unwrap().try_into().unwrap());
    let mut random = numbers(stamp as u8);
    loop {
        stamp += 1;
        for at in [0, random.random_range(1..places)] {
            room.write(
                &disk,
                at * PLACE,
                &stamp.to_le_bytes().repeat(PLACE as usize / 8),
            )
            .unwrap();
        }
        if random.random_ratio(1, 8) {
            let offset = random.random_range(1..places) * PLACE;
            nothing(
                &disk,
                Work::Discard {
                    offset,
                    length: PLACE.min(disk.size() - offset),
                },
            )
            .unwrap();
        }
        if random.random_ratio(1, 3) {
            nothing(&disk, Work::Flush).unwrap();
            println!("flushed {stamp}");
            io::stdout().flush().unwrap();
        }
    }
}

#[test]
fn what_was_flushed_is_there_after_the_process_is_killed() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_for_ever(Path::new(&path));
    }
    let (_folder, path) = created(&["-o", "cluster_size=512"]);
    let mut last = 0;
    for round in 0..12_u64 {
        let name = "what_was_flushed_is_there_after_the_process_is_killed";
        let mut child = myself(name, path.to_str().unwrap()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let began = Instant::now();
        let least = 5 + round as usize * 3;
        let mut seen = 0;
        let kill = |child: &mut std::process::Child| child.kill().unwrap();
        let mut killed = false;
        for line in &mut lines {
            let line = line.unwrap();
            if let Some(stamp) = line.split("flushed ").nth(1) {
                last = stamp.parse().unwrap();
                seen += 1;
            }
            if seen >= least && !killed {
                kill(&mut child);
                killed = true;
            }
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        child.wait().unwrap();
        assert!(killed, "it has ended of itself");
        check(&path, false);
        let disk = disk(&path);
        let stamp = Room::new(PLACE).read(&disk, 0, PLACE).unwrap();
        let stamp = u64::from_le_bytes(stamp[..8].try_into().unwrap());
        assert!(stamp >= last, "{stamp} is there, {last} was flushed");
    }
}

/// A cluster that was let go is given to others only after all who had looked up its place are done.
#[test]
fn who_lets_a_cluster_go_waits_for_those_who_use_its_place() {
    const CLUSTER: u64 = 4096;
    let kinds = [
        Work::Discard {
            offset: 0,
            length: CLUSTER,
        },
        Work::Zero {
            offset: 0,
            length: CLUSTER,
            unmap: true,
        },
    ];
    for work in kinds {
        let (_folder, path) = created(&["-o", "cluster_size=4k"]);
        let disk = disk(&path);
        let room = Room::new(CLUSTER);
        room.write(&disk, 0, &[1; CLUSTER as usize]).unwrap();
        let (place, _) = disk.place(0, CLUSTER, true).unwrap();
        let Place::File {
            file,
            offset,
            flight,
        } = place
        else {
            panic!("it has no place of its own");
        };
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                nothing(&disk, work).unwrap();
                // The first that is free is the one that was let go.
                let room = Room::new(CLUSTER);
                room.write(&disk, 64 * CLUSTER, &[2; CLUSTER as usize])
                    .unwrap();
                is_done.store(true, Ordering::SeqCst);
            });
            thread::sleep(Duration::from_millis(100));
            assert!(!is_done.load(Ordering::SeqCst), "{work:?} has not waited");
            // Nobody else can look up a place meanwhile.
            assert!(matches!(
                disk.place(0, 512, false).unwrap().0,
                Place::Unknown
            ));
            write_at(file, &[3; CLUSTER as usize], offset).unwrap();
            drop(flight);
        });
        let (place, _) = disk.place(64 * CLUSTER, CLUSTER, true).unwrap();
        assert!(matches!(place, Place::File { offset: now, .. } if now == offset));
        let bytes = room.read(&disk, 64 * CLUSTER, CLUSTER).unwrap();
        assert_eq!(bytes, [2; CLUSTER as usize]);
        assert_eq!(room.read(&disk, 0, CLUSTER).unwrap(), [0; CLUSTER as usize]);
    }
}

#[test]
fn many_threads_find_their_bytes_while_places_change() {
    let (_folder, path) = created(&["-o", "cluster_size=4k"]);
    let disk = disk(&path);
    let until = Instant::now() + Duration::from_secs(1);
    let in_place = AtomicU32::new(0);
    const CLUSTER: u64 = 4096;
    thread::scope(|scope| {
        // Some write into places that they have looked up, slowly.
        for number in 0..2_u64 {
            let (disk, in_place) = (&disk, &in_place);
            scope.spawn(move || {
                let room = Room::new(CLUSTER);
                while Instant::now() < until {
                    let offset = number * CLUSTER;
                    room.write(disk, offset, &[0xaa; CLUSTER as usize]).unwrap();
                    let place = disk.place(offset, CLUSTER, true).unwrap();
                    if let (
                        Place::File {
                            file,
                            offset,
                            flight,
                        },
                        _,
                    ) = place
                    {
                        thread::sleep(Duration::from_micros(300));
                        write_at(file, &[0xaa; CLUSTER as usize], offset).unwrap();
                        drop(flight);
                        in_place.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        // Others let these places go.
        scope.spawn(|| {
            while Instant::now() < until {
                nothing(
                    &disk,
                    Work::Discard {
                        offset: 0,
                        length: 2 * CLUSTER,
                    },
                )
                .unwrap();
            }
        });
        // And others take what is free, and look whether it stays as it is.
        for number in 1..3_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let room = Room::new(16 * CLUSTER);
                let offset = number * 64 * CLUSTER;
                while Instant::now() < until {
                    let bytes = vec![number as u8; 16 * CLUSTER as usize];
                    room.write(disk, offset, &bytes).unwrap();
                    thread::sleep(Duration::from_micros(500));
                    assert!(room.read(disk, offset, 16 * CLUSTER).unwrap() == bytes);
                    let length = 16 * CLUSTER;
                    nothing(
                        disk,
                        Work::Zero {
                            offset,
                            length,
                            unmap: true,
                        },
                    )
                    .unwrap();
                }
            });
        }
    });
    assert!(in_place.into_inner() > 10);
    drop(disk);
    check(&path, true);
}

/// Opens what is left of an image, and uses it as a guest would.
fn use_spoilt(path: &Path, room: &Room) {
    let Ok(disk) = disk_with(path, None) else {
        return;
    };
    let size = disk.size();
    let last = size.saturating_sub(512) / 512 * 512;
    for offset in [0, 64 << 10, 512 << 10, last] {
        let length = 8192.min(size.saturating_sub(offset));
        if length == 0 {
            continue;
        }
        let _ = disk.place(offset, length, false);
        let _ = room.read(&disk, offset, length);
        let _ = room.write(&disk, offset, &vec![1; length as usize]);
        let _ = nothing(
            &disk,
            Work::Zero {
                offset,
                length,
                unmap: true,
            },
        );
        let _ = nothing(&disk, Work::Discard { offset, length });
    }
    let _ = nothing(&disk, Work::Flush);
}

/// Spoils images, in a process that cannot have much memory.
fn spoil(images: &[Vec<u8>]) {
    const MOST: u64 = 1 << 30;
    let limit = libc::rlimit {
        rlim_cur: MOST,
        rlim_max: MOST,
    };
    // SAFETY: the kernel reads a limit.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(limited, 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let room = Room::new(64 << 10);
    let strange = prop_oneof![
        any::<u64>(),
        (0..64_u32).prop_map(|bit| 1 << bit),
        0..64_u64,
        (0..64_u64).prop_map(|cluster| cluster << 16 | 1 << 63),
        Just(u64::MAX),
    ];
    let change = (
        0..images.len(),
        prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, strange), 1..6),
    );
    let mut runner = TestRunner::new(Config {
        cases: 600,
        failure_persistence: None,
        ..Config::default()
    });
    let tried = runner.run(&change, |(image, changes)| {
        let mut bytes = images[image].clone();
        let tables: Vec<usize> = (0..bytes.len() - 8)
            .filter(|at| at % 8 == 0 && bytes[*at..at + 8].iter().any(|byte| *byte != 0))
            .collect();
        for (at, kind, value) in changes {
            let at = match kind {
                // The header, in parts of four bytes.
                0 => at.index(30) * 4,
                // Something that is not zero, or anything.
                1 => *at.get(&tables),
                _ => at.index(bytes.len() / 8 - 1) * 8,
            };
            match kind {
                0 => bytes[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes()),
                _ => bytes[at..at + 8].copy_from_slice(&value.to_be_bytes()),
            }
        }
        std::fs::write(&path, bytes).unwrap();
        use_spoilt(&path, &room);
        Ok(())
    });
    tried.unwrap();
}

/// What anybody may upload takes neither the VMM along nor its memory.
#[test]
fn spoilt_images_are_borne() {
    let name = "spoilt_images_are_borne";
    if std::env::var_os(CHILD).is_some() {
        let kinds: [&[&str]; 4] = [
            &["-o", "cluster_size=4k"],
            &["-o", "cluster_size=64k"],
            &["-c", "-o", "cluster_size=4k"],
            &["-o", "compat=0.10,cluster_size=512"],
        ];
        let images = kinds.map(|kind| {
            let bytes: Vec<u8> = (0..128 << 10).map(|at| (at % 251) as u8).collect();
            let (_folder, path) = converted(&bytes, kind);
            std::fs::read(path).unwrap()
        });
        spoil(&images);
        return;
    }
    let output = myself(name, "yes").stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let from = said.len().saturating_sub(4000);
    let said = said.get(from..).unwrap_or(&said);
    assert!(output.status.success(), "{}: {said}", output.status);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("1 passed"), "{printed}");
}

#[test]
fn a_header_that_asks_for_too_much_is_refused() {
    let (folder, path) = created(&[]);
    let good = std::fs::read(&path).unwrap();
    for (at, value, expected) in [
        (36, &u32::MAX.to_be_bytes()[..], "L1 table"),
        (56, &u32::MAX.to_be_bytes(), "refcount_table_clusters"),
        (40, &(1_u64 << 40).to_be_bytes(), "l1_table_offset"),
        (48, &(1_u64 << 40).to_be_bytes(), "refcount_table_offset"),
        (48, &(3_u64 << 16).to_be_bytes(), "two tables in one place"),
        (24, &(1_u64 << 62).to_be_bytes(), "L1 table"),
        (20, &31_u32.to_be_bytes(), "cluster_bits"),
        (96, &7_u32.to_be_bytes(), "refcount_order"),
        (4, &4_u32.to_be_bytes(), "version 4"),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        let spoilt = folder.path().join("spoilt");
        std::fs::write(&spoilt, bytes).unwrap();
        let said = disk_with(&spoilt, None).err().unwrap();
        assert!(said.contains(expected), "{said}");
    }
    // One refcount block for everything would let a search for free clusters go on for ever.
    let mut bytes = good;
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    let first: [u8; 8] = bytes[table..table + 8].try_into().unwrap();
    bytes[table + 8..table + 16].copy_from_slice(&first);
    std::fs::write(&path, bytes).unwrap();
    let said = disk_with(&path, None).err().unwrap();
    assert!(said.contains("a refcount block at"), "{said}");
}

#[test]
fn a_host_without_room_costs_the_request_alone() {
    let (_folder, path) = created(&[]);
    let full = File::options()
        .write(true)
        .read(true)
        .open("/dev/full")
        .unwrap();
    let disk = disk_with(&path, Some(full)).unwrap();
    let room = Room::new(8192);
    for offset in [0, 512 << 10] {
        let error = room.write(&disk, offset, &[1; 8192]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(room.read(&disk, offset, 512).unwrap(), [0; 512]);
    }
    nothing(&disk, Work::Flush).unwrap();
    drop(disk);
    check(&path, true);
    // There is room again.
    let disk = self::disk(&path);
    room.write(&disk, 512, &[7; 512]).unwrap();
    drop(disk);
    check(&path, true);
    assert_eq!(bytes_of(&path)[512..1024], [7; 512]);
    let file = File::open(&path).unwrap();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(magic, MAGIC);
}
