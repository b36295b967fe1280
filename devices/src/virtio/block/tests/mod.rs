mod image;
mod limits;
mod property;
pub(super) mod qcow2;
mod requests;
mod running;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use tempfile::NamedTempFile;

use super::{Block, BlockParts, EngineChoice, Image, ImageFormat, ImageOptions, Lock};
use crate::virtio::testing::{Buffer, Driver};

const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Calls];

/// Bytes of the disk under test.
const SIZE: usize = 64 << 10;
/// Where a request's header is, its status, and its data.
const HEADER: u64 = 0x7_0000;
const STATUS: u64 = 0x7_1000;
const DATA: u64 = 0x8_0000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn options(path: &Path) -> ImageOptions<'_> {
    ImageOptions {
        path,
        readonly: false,
        direct: false,
        sparse: true,
        format: ImageFormat::Raw,
        backing_files: false,
        lock: Lock::ByteRange,
        serial: None,
    }
}

/// Bytes that differ from one to the next and from one sector to the next.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ (at / 512) as u8 ^ seed;
    (0..length).map(byte).collect()
}

fn disk_of(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    file
}

fn parts(image: Image, engine: EngineChoice) -> BlockParts {
    BlockParts {
        image: Arc::new(image),
        queues: 1,
        queue_size: 16,
        host_cpus: Vec::new(),
        engine,
        limits: None,
    }
}

fn started(image: Image, engine: EngineChoice) -> Driver {
    let mut driver = Driver::new(Box::new(Block::new(parts(image, engine))));
    driver.start(0, 16);
    driver
}

/// A disk with a pattern, of which the test keeps the file.
fn ordinary(engine: EngineChoice) -> (Driver, NamedTempFile) {
    let file = disk_of(&pattern(0, SIZE));
    let image = Image::open(&options(file.path())).unwrap();
    (started(image, engine), file)
}

fn contents(file: &NamedTempFile) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()
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
        gpa,
        length,
        writable: true,
    }
}

fn put_header(driver: &Driver, at: u64, kind: u32, sector: u64) {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xff; 4]);
    bytes.extend(sector.to_le_bytes());
    driver.fill(at, &bytes);
}

/// Makes a request and waits for its answer: its status, and how many bytes were written into it.
fn ask(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    put_header(driver, HEADER, kind, sector);
    driver.fill(STATUS, &[0xff]);
    let mut buffers = vec![readable(HEADER, 16)];
    buffers.extend(data);
    buffers.push(writable(STATUS, 1));
    driver.make_available(0, 0, &buffers);
    driver.kick(0);
    let (head, written) = driver.wait_used(0);
    assert_eq!(head, 0);
    (driver.bytes(STATUS, 1)[0], written)
}

/// A request to discard or to write zeroes.
fn ask_of_range(driver: &mut Driver, kind: u32, (sector, count): (u64, u32), flags: u32) -> u8 {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    driver.fill(DATA, &bytes);
    ask(driver, kind, 0, &[readable(DATA, 16)]).0
}

/// A number of the registers.
fn register<const N: usize>(driver: &Driver, offset: u64) -> u64 {
    let bytes: [u8; N] = driver.read(0x2000 + offset);
    let bytes = bytes.iter().rev();
    bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
}
