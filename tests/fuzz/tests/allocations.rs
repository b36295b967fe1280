//! Devices allocate nothing for the requests that they serve.
//!
//! A binary of its own, since it has the allocator count.
#![expect(unsafe_code, reason = "puts a counter before the allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::virtio::block::{
    Block, BlockParts, EngineChoice, Image, ImageFormat, ImageOptions, Lock,
};
use devices::virtio::rng::Rng;
use devices::virtio::testing::{Buffer, Driver};

/// Allocations of all threads that are not a test's own.
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The thread is a test's: what it allocates is its own business.
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    if !IS_DRIVER.try_with(Cell::get).unwrap_or(true) {
        ALLOCATED.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller says.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller says.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Requests that may allocate: room that is kept for later ones.
const FIRST: u32 = 64;
/// Requests that may not.
const STEADY: u32 = 256;

/// What devices' threads allocate while the driver makes requests, after the first ones.
fn allocations(driver: &mut Driver, mut request: impl FnMut(&mut Driver, u32)) -> u64 {
    for number in 0..FIRST {
        request(driver, number);
    }
    let before = ALLOCATED.load(Ordering::SeqCst);
    for number in 0..STEADY {
        request(driver, number);
    }
    ALLOCATED.load(Ordering::SeqCst) - before
}

fn buffer(gpa: u64, length: u32, writable: bool) -> Buffer {
    Buffer {
        gpa,
        length,
        writable,
    }
}

const HEADER: u64 = 0x7_0000;
const STATUS: u64 = 0x7_1000;
const DATA: u64 = 0x8_0000;

/// Reads, writes and flushes in turn, in one to eight pieces.
fn block_request(driver: &mut Driver, number: u32) {
    let kind = [0_u32, 1, 4][number as usize % 3];
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(u64::from(number % 16).to_le_bytes());
    driver.fill(HEADER, &header);
    driver.fill(STATUS, &[0xff]);
    let mut buffers = vec![buffer(HEADER, 16, false)];
    if kind != 4 {
        for piece in 0..1 + u64::from(number % 8) {
            buffers.push(buffer(DATA + piece * 0x1000, 512, kind == 0));
        }
    }
    buffers.push(buffer(STATUS, 1, true));
    driver.make_available(0, 0, &buffers);
    driver.kick(0);
    driver.wait_used(0);
    assert_eq!(driver.bytes(STATUS, 1), [0]);
}

fn disk(file: &tempfile::NamedTempFile, engine: EngineChoice) -> Driver {
    let image = Image::open(&ImageOptions {
        path: file.path(),
        readonly: false,
        direct: false,
        sparse: true,
        backing_files: false,
        format: ImageFormat::Raw,
        lock: Lock::ByteRange,
        serial: None,
    });
    let block = Block::new(BlockParts {
        image: Arc::new(image.unwrap()),
        queues: 1,
        queue_size: 16,
        host_cpus: Vec::new(),
        engine,
        limits: None,
    });
    let mut driver = Driver::new(Box::new(block));
    driver.start(0, 16);
    driver
}

/// One test: threads of two would count for both.
#[test]
fn requests_allocate_nothing() {
    IS_DRIVER.set(true);
    // The counter counts.
    let before = ALLOCATED.load(Ordering::SeqCst);
    let other = std::thread::spawn(|| vec![1_u8; 100]);
    assert_eq!(other.join().unwrap().len(), 100);
    assert!(ALLOCATED.load(Ordering::SeqCst) > before);

    for engine in [EngineChoice::Auto, EngineChoice::Calls] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 64 << 10]).unwrap();
        let mut driver = disk(&file, engine);
        let allocated = allocations(&mut driver, block_request);
        assert_eq!(allocated, 0, "{engine:?}");
    }

    let source = File::open("/dev/zero").unwrap();
    let mut driver = Driver::new(Box::new(Rng::new(source)));
    driver.start(0, 16);
    let allocated = allocations(&mut driver, |driver, number| {
        driver.make_available(0, 0, &[buffer(DATA, 1 + number % 4096, true)]);
        driver.kick(0);
        driver.wait_used(0);
    });
    assert_eq!(allocated, 0, "randomness");
}
