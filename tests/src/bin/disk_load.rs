//! A load for disks, in a guest of `lab_bench`: orders ([`tests::load`]) are to `read` or `write`, in `random` or
//! `sequential` order, past the page cache. To `fill` is to write, where nothing is: the disk is discarded before, and
//! no place is written to twice, nor any cluster by two small requests.
#![expect(
    unsafe_code,
    reason = "gives io_uring buffers by their addresses, and discards by an ioctl"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use tests::load::Order;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("@failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let device = std::env::args().nth(1).context("no disk given")?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&device)
        .with_context(|| device.clone())?;
    let disk = Disk {
        size: (&file).seek(SeekFrom::End(0))?,
        file,
    };
    let name = Path::new(&device).file_name().unwrap_or_default();
    let statistics = format!("/sys/block/{}/stat", name.display());
    while let Some(order) = Order::next()? {
        let accesses = ["read", "write", "fill"];
        ensure!(accesses.contains(&&*order.access), "read, write or fill");
        let patterns = ["random", "sequential"];
        ensure!(patterns.contains(&&*order.pattern), "in which order");
        let prepare = |number| {
            if order.access == "fill" && number == 0 {
                disk.discard()?;
            }
            let job = Job::new(&order, &disk, number)?;
            Ok(|| job.run(&order, &disk))
        };
        order.carry_out(prepare, || requests(&statistics), &["-req."])?;
    }
    Ok(())
}

/// What is loaded.
struct Disk {
    file: File,
    size: u64,
}

impl Disk {
    fn discard(&self) -> Result<()> {
        let range = [0, self.size];
        // SAFETY: the ioctl reads two numbers, and changes nothing but the disk (linux/fs.h).
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()).context("cannot discard"),
        }
    }
}

/// `_IO(0x12, 119)` (linux/fs.h).
const BLKDISCARD: libc::Ioctl = 0x1277;
/// Bytes of a cluster of qcow2, as images are made (`lab_bench/image.rs`).
const CLUSTER: usize = 64 << 10;
/// Coprime to the number of clusters, and far from 1.
const STRIDE: u64 = 0x9e37_79b1;

/// Requests that the driver has seen end: reads and writes
/// (Linux, Documentation/block/stat.rst).
fn requests(statistics: &str) -> Result<u64> {
    let text = fs::read_to_string(statistics).with_context(|| statistics.to_owned())?;
    let fields = text.split_whitespace().map(str::parse);
    let fields: Vec<u64> = fields.collect::<Result<_, _>>()?;
    let [reads, _, _, _, writes, ..] = fields[..] else {
        bail!("{statistics} has no numbers");
    };
    Ok(reads + writes)
}

/// Page-aligned memory.
struct Memory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: addresses are the same in all threads, and it has one owner.
unsafe impl Send for Memory {}

impl Memory {
    fn new(bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: memory of our own, anywhere.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast();
        Ok(Self { start, bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody else has it any more.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// One thread's part of an order.
struct Job {
    // First, so that it is dropped before what the kernel may still be using.
    ring: IoUring,
    memory: Memory,
    /// Blocks that this job uses, and bytes of each.
    first: u64,
    blocks: u64,
    block: u64,
    next: u64,
    random: u64,
    requests: u64,
}

impl Job {
    fn new(order: &Order, disk: &Disk, number: usize) -> Result<Self> {
        let jobs = order.jobs as u64;
        // Random requests go anywhere, sequential ones of several jobs do not meet.
        let fills = order.access == "fill";
        let block = if fills {
            order.bytes.max(CLUSTER)
        } else {
            order.bytes
        } as u64;
        let all = disk.size / block;
        let is_random = order.pattern == "random" && !fills;
        let blocks = if is_random { all } else { all / jobs };
        ensure!(blocks > 0, "the disk is too small");
        let requests = order.share(number);
        ensure!(!fills || requests <= blocks, "more than the disk has");
        let first = if is_random { 0 } else { blocks * number as u64 };
        Ok(Self {
            ring: IoUring::new(u32::try_from(order.depth)?.next_power_of_two())?,
            memory: Memory::new(order.bytes * order.depth)?,
            first,
            blocks,
            block,
            next: 0,
            random: 0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1),
            requests,
        })
    }

    fn run(mut self, order: &Order, disk: &Disk) -> Result<()> {
        let mut free: Vec<usize> = (0..order.depth).collect();
        let (mut begun, mut ended) = (0, 0);
        while ended < self.requests {
            while begun < self.requests
                && let Some(slot) = free.pop()
            {
                self.begin(order, disk, slot)?;
                begun += 1;
            }
            self.ring.submit_and_wait(1)?;
            for completion in self.ring.completion() {
                let result = completion.result();
                ensure!(
                    usize::try_from(result).is_ok_and(|bytes| bytes == order.bytes),
                    "a request of {} bytes ended with {result}",
                    order.bytes
                );
                free.push(completion.user_data() as usize);
                ended += 1;
            }
        }
        Ok(())
    }

    fn begin(&mut self, order: &Order, disk: &Disk, slot: usize) -> Result<()> {
        let is_random = order.pattern == "random";
        let block = if is_random && order.access == "fill" {
            let next = self.next;
            self.next += 1;
            next.wrapping_mul(STRIDE) % self.blocks
        } else if is_random {
            // Marsaglia's xorshift64.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random % self.blocks
        } else {
            let next = self.next;
            self.next = (next + 1) % self.blocks;
            next
        };
        let offset = (self.first + block) * self.block;
        let buffer = self.memory.start.wrapping_byte_add(slot * order.bytes);
        let (file, length) = (Fd(disk.file.as_raw_fd()), u32::try_from(order.bytes)?);
        let entry = if order.access == "read" {
            opcode::Read::new(file, buffer, length)
                .offset(offset)
                .build()
        } else {
            opcode::Write::new(file, buffer, length)
                .offset(offset)
                .build()
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: the buffer is this slot's, which is not free until the request has ended, and the
        // memory outlives the ring.
        unsafe { self.ring.submission().push(&entry) }?;
        Ok(())
    }
}
