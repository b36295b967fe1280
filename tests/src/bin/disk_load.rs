//! A load for disks, in a guest of `lab_bench`. Takes orders on standard input, one a line:
//!
//!     <name> <read|write> <random|sequential> <bytes> <depth> <jobs> <requests>
//!
//! and answers `@<name> ready`; told to go on by an empty line, carries out that many requests of so
//! many bytes past the page cache, `depth` at once for each of `jobs` threads, and says `@<name> done`;
//! told to go on again, says what it has taken.
#![expect(
    unsafe_code,
    reason = "gives io_uring buffers by their addresses, and binds threads to CPUs"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, Seek as _, SeekFrom, Write as _};
use std::mem::zeroed;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

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
    let disk = Arc::new(Disk {
        size: (&file).seek(SeekFrom::End(0))?,
        file,
    });
    let name = Path::new(&device).file_name().unwrap_or_default();
    let statistics = format!("/sys/block/{}/stat", name.display());
    while let Some(order) = next_line()? {
        let order = Order::parse(&order).with_context(|| order.clone())?;
        order.carry_out(&disk, &statistics)?;
    }
    Ok(())
}

/// A line of standard input; nothing at its end.
fn next_line() -> Result<Option<String>> {
    let mut line = String::new();
    let bytes = io::stdin().lock().read_line(&mut line)?;
    Ok((bytes > 0).then(|| line.trim().to_owned()))
}

fn say(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    output.flush()
}

/// What is loaded.
struct Disk {
    file: File,
    size: u64,
}

/// What is to be done.
#[derive(Clone)]
struct Order {
    name: String,
    write: bool,
    random: bool,
    bytes: usize,
    depth: usize,
    jobs: usize,
    requests: u64,
}

impl Order {
    fn parse(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [name, access, order, bytes, depth, jobs, requests] = words[..] else {
            bail!("an order has seven words");
        };
        ensure!(["read", "write"].contains(&access), "read or write");
        ensure!(["random", "sequential"].contains(&order), "in which order");
        let order = Self {
            name: name.to_owned(),
            write: access == "write",
            random: order == "random",
            bytes: bytes.parse()?,
            depth: depth.parse()?,
            jobs: jobs.parse()?,
            requests: requests.parse()?,
        };
        ensure!(order.bytes.is_multiple_of(4096) && order.bytes > 0);
        ensure!((1..=1024).contains(&order.depth) && (1..=64).contains(&order.jobs));
        Ok(order)
    }

    fn carry_out(&self, disk: &Arc<Disk>, statistics: &str) -> Result<()> {
        let start = Arc::new(Barrier::new(self.jobs + 1));
        let jobs = (0..self.jobs).map(|number| {
            let (order, disk, start) = (self.clone(), Arc::clone(disk), Arc::clone(&start));
            thread::spawn(move || {
                let job = Job::new(&order, &disk, number);
                // All have come as far before any begins.
                start.wait();
                start.wait();
                job?.run(&order, &disk)
            })
        });
        let jobs: Vec<_> = jobs.collect();
        start.wait();
        say(&format!("@{} ready", self.name))?;
        next_line()?;
        let before = (requests(statistics)?, interrupts()?);
        let clock = Instant::now();
        start.wait();
        for job in jobs {
            job.join().ok().context("a job panicked")??;
        }
        let nanoseconds = clock.elapsed().as_nanos();
        let after = (requests(statistics)?, interrupts()?);
        say(&format!("@{} done", self.name))?;
        next_line()?;
        let (requests, interrupts) = (after.0 - before.0, after.1 - before.1);
        say(&format!(
            "@{0} took {nanoseconds} {requests} {interrupts} @{0} end",
            self.name
        ))?;
        Ok(())
    }
}

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

/// Interrupts of queues of virtio disks.
fn interrupts() -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let queues = text.lines().filter(|line| line.contains("-req."));
    let counts = queues.flat_map(|line| line.split_whitespace().skip(1));
    Ok(counts.map_while(|word| word.parse::<u64>().ok()).sum())
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
    /// Blocks of a request's size that this job uses.
    first: u64,
    blocks: u64,
    next: u64,
    random: u64,
    requests: u64,
}

impl Job {
    fn new(order: &Order, disk: &Disk, number: usize) -> Result<Self> {
        bind(number)?;
        let jobs = order.jobs as u64;
        // Random requests go anywhere, sequential ones of several jobs do not meet.
        let all = disk.size / order.bytes as u64;
        let blocks = if order.random { all } else { all / jobs };
        ensure!(blocks > 0, "the disk is too small");
        let first = if order.random {
            0
        } else {
            blocks * number as u64
        };
        let share = order.requests / jobs;
        let rest = u64::from((number as u64) < order.requests % jobs);
        Ok(Self {
            ring: IoUring::new(u32::try_from(order.depth)?.next_power_of_two())?,
            memory: Memory::new(order.bytes * order.depth)?,
            first,
            blocks,
            next: 0,
            random: 0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1),
            requests: share + rest,
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
        let block = if order.random {
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
        let offset = (self.first + block) * order.bytes as u64;
        let buffer = self.memory.start.wrapping_byte_add(slot * order.bytes);
        let (file, length) = (Fd(disk.file.as_raw_fd()), u32::try_from(order.bytes)?);
        let entry = if order.write {
            opcode::Write::new(file, buffer, length)
                .offset(offset)
                .build()
        } else {
            opcode::Read::new(file, buffer, length)
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

/// Lets the thread run on the CPU of that number alone, so that it uses that CPU's queue.
fn bind(cpu: usize) -> io::Result<()> {
    // SAFETY: a CPU set is an array of integers, for which zero is a value: the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: jobs are at most 64.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is initialised and its size is given.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
