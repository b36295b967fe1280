//! What hostile drivers find: a disk in memory, parts of which are nobody's business.

mod qcow2;

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::tempfile::TempFile;

use super::{Block, BlockParts, EngineChoice, Image, ImageError, ImageFormat, ImageOptions, Lock};
use crate::virtio::Device;
use crate::virtio::testing::hostile::Subject;
use crate::virtio::testing::{Buffer, Driver};

pub use qcow2::Qcow2Disk;
#[cfg(test)]
pub use qcow2::{Tables, empty_image};

/// Bytes of the disk.
const SIZE: usize = 128 << 10;
const SECTOR: usize = 512;
/// The type of a request that writes.
const OUT: u32 = 1;
/// Bytes behind its end, in a sector that is not whole.
const SECRET: usize = 24;

/// Where a request's header is, its status, and its data.
const HEADER: u64 = 0x8_0000;
const STATUS: u64 = 0x8_1000;
const DATA: u64 = 0x8_2000;
/// What is read by the rules: bytes of the disk, in whole blocks of any host.
const READ: Range<usize> = 0x2000..0x3000;

/// A disk, from the host's side.
pub struct Disk {
    device: Option<Block>,
    image: TempFile,
    readonly: bool,
    secret: Vec<u8>,
}

impl Disk {
    /// One of two queues, whose first sector is nobody's to write.
    pub fn writable() -> Self {
        Self::new(in_memory(), false, false, EngineChoice::Auto)
    }

    /// One that can be read alone.
    pub fn readonly() -> Self {
        Self::new(in_memory(), true, false, EngineChoice::Calls)
    }

    /// One past the host's page cache, where the host can do that: requests take a while.
    pub fn direct() -> Self {
        Self::new(TempFile::new().unwrap(), false, true, EngineChoice::Auto)
    }

    fn new(image: TempFile, readonly: bool, direct: bool, engine: EngineChoice) -> Self {
        let mut bytes = pattern();
        let secret = secret();
        bytes.extend(&secret);
        image.as_file().write_all_at(&bytes, 0).unwrap();
        let open = |direct| {
            Image::open(&ImageOptions {
                path: image.as_path(),
                readonly,
                direct,
                sparse: true,
                format: ImageFormat::Detect,
                backing_files: false,
                lock: Lock::ByteRange,
                serial: Some("hostile"),
            })
        };
        let opened = match open(direct) {
            Err(ImageError::Direct(_)) => open(false),
            opened => opened,
        };
        let device = Block::new(BlockParts {
            image: Arc::new(opened.unwrap()),
            queues: 2,
            queue_size: 64,
            host_cpus: Vec::new(),
            engine,
            limits: None,
        });
        Self {
            device: Some(device),
            image,
            readonly,
            secret,
        }
    }
}

/// A file that takes no time to flush, if the host has such.
fn in_memory() -> TempFile {
    let image = TempFile::new_in(Path::new("/dev/shm")).or_else(|_| TempFile::new());
    image.unwrap()
}

/// Other bytes each time: fuzzers learn what is compared with what.
fn secret() -> Vec<u8> {
    let random = || RandomState::new().build_hasher().finish().to_le_bytes();
    (0..SECRET / 8).flat_map(|_| random()).collect()
}

/// What is on the disk at first. No byte is zero.
fn pattern() -> Vec<u8> {
    let byte = |at: usize| 128 | (at % 127) as u8 ^ (at / SECTOR % 127) as u8;
    (0..SIZE).map(byte).collect()
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Headers and segments of requests, for a disk of so many bytes.
fn requests(size: usize) -> Vec<Vec<u8>> {
    let last = (size / SECTOR) as u64 - 1;
    let mut contents = Vec::new();
    // Reads, writes, flushes, ids, discards, zeroes, and what nobody knows.
    for kind in [0, OUT, 4, 8, 11, 13, 2] {
        contents.push(header(kind, 1));
    }
    for sector in [0, last, last + 1, u64::MAX, u64::MAX / 512] {
        contents.push(header(0, sector));
        contents.push(header(OUT, sector));
    }
    for (sector, count) in [
        (0, 1),
        (2, 4),
        (last, 1),
        (last, 2),
        (u64::MAX, 1),
        (1, u32::MAX),
    ] {
        contents.push(segment(sector, count, 0));
        contents.push(segment(sector, count, 1));
    }
    contents
}

impl Subject for Disk {
    fn device(&mut self) -> Box<dyn Device> {
        Box::new(self.device.take().unwrap())
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        requests(SIZE)
    }

    fn ask(&mut self, driver: &mut Driver) {
        driver.fill(HEADER, &header(0, (READ.start / SECTOR) as u64));
        driver.fill(STATUS, &[0xff]);
        let part = |gpa, length, writable| Buffer {
            gpa,
            length,
            writable,
        };
        for queue in 0..2 {
            let buffers = [
                part(HEADER, 16, false),
                part(DATA, READ.len() as u32, true),
                part(STATUS, 1, true),
            ];
            driver.make_available(queue, 0, &buffers);
            driver.kick(queue);
        }
    }

    fn check_answer(&mut self, driver: &mut Driver) {
        for queue in 0..2 {
            assert_eq!(driver.wait_used(queue), (0, READ.len() as u32 + 1));
        }
        assert_eq!(driver.bytes(STATUS, 1), [0]);
        let bytes = driver.bytes(DATA, READ.len());
        let image = contents(self.image.as_file());
        assert!(bytes == image[READ], "what is read is what the image has");
    }

    fn check_host(&mut self) {
        let image = contents(self.image.as_file());
        assert_eq!(image.len(), SIZE + SECRET, "the image's size");
        assert!(image.ends_with(&self.secret), "what is behind its end");
        let kept = match self.readonly {
            true => SIZE,
            false => SECTOR,
        };
        assert!(image[..kept] == pattern()[..kept], "what may be read alone");
    }

    fn secret(&self) -> &[u8] {
        &self.secret
    }
}

fn contents(image: &File) -> Vec<u8> {
    let length = image.metadata().unwrap().len();
    let mut bytes = vec![0; length as usize];
    image.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
