//! What loads have in common, which guests of `lab_bench` carry out: orders, one a line of standard input,
//!
//! ```text
//! <name> <access> <pattern> <bytes> <depth> <jobs> <requests>
//! ```
//!
//! are answered with `@<name> ready`; told to go on by an empty line, the guest carries out that many
//! requests of so many bytes, `depth` at once for each of `jobs` threads, and says `@<name> done`; told to go on
//! again, it says what that has taken: nanoseconds, requests that its driver has seen, interrupts.
#![expect(unsafe_code, reason = "binds threads to CPUs")]

use std::fs;
use std::io::{self, BufRead as _, Write as _};
use std::mem::zeroed;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Order {
    name: String,
    /// Such as `read`.
    pub access: String,
    /// Such as `random`.
    pub pattern: String,
    /// Bytes of a request.
    pub bytes: usize,
    /// Requests of a job at once.
    pub depth: usize,
    /// Threads, each on a CPU of its own.
    pub jobs: usize,
    /// Of all jobs together.
    pub requests: u64,
}

impl Order {
    /// The next one of standard input; nothing at its end.
    ///
    /// # Errors
    /// It is none.
    pub fn next() -> Result<Option<Self>> {
        let Some(line) = next_line()? else {
            return Ok(None);
        };
        Self::parse(&line).map(Some).context(line)
    }

    fn parse(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [name, access, pattern, bytes, depth, jobs, requests] = words[..] else {
            bail!("an order has seven words");
        };
        let order = Self {
            name: name.to_owned(),
            access: access.to_owned(),
            pattern: pattern.to_owned(),
            bytes: bytes.parse()?,
            depth: depth.parse()?,
            jobs: jobs.parse()?,
            requests: requests.parse()?,
        };
        ensure!(order.bytes.is_multiple_of(4096) && order.bytes > 0);
        ensure!((1..=1024).contains(&order.depth) && (1..=64).contains(&order.jobs));
        Ok(order)
    }

    /// The requests of one job.
    pub fn share(&self, job: usize) -> u64 {
        let (job, jobs) = (job as u64, self.jobs as u64);
        self.requests / jobs + u64::from(job < self.requests % jobs)
    }

    /// Carries it out: `prepare` makes ready a job of that number in a thread bound to the CPU of that number,
    /// and all have come as far before any goes on. `count` says how many requests the driver has
    /// seen; interrupts are those whose names contain one of `interrupts`.
    ///
    /// # Errors
    /// A job fails.
    pub fn carry_out<J: FnOnce() -> Result<()>>(
        &self,
        prepare: impl Fn(usize) -> Result<J> + Sync,
        count: impl Fn() -> Result<u64>,
        interrupts: &[&str],
    ) -> Result<()> {
        let counts = || anyhow::Ok((count()?, count_interrupts(interrupts)?));
        let start = Barrier::new(self.jobs + 1);
        let (start, prepare) = (&start, &prepare);
        let (nanoseconds, before, after) = thread::scope(|scope| {
            let jobs = (0..self.jobs).map(|number| {
                scope.spawn(move || {
                    let bound = bind(number).context("cannot bind a thread to its CPU");
                    let job = bound.and_then(|()| prepare(number));
                    start.wait();
                    start.wait();
                    job?()
                })
            });
            let jobs: Vec<_> = jobs.collect();
            start.wait();
            let ready = say(&format!("@{} ready", self.name));
            let told = ready.map_err(anyhow::Error::from).and(next_line());
            let before = counts();
            let clock = Instant::now();
            start.wait();
            for job in jobs {
                job.join().ok().context("a job panicked")??;
            }
            let nanoseconds = clock.elapsed().as_nanos();
            told?;
            anyhow::Ok((nanoseconds, before?, counts()?))
        })?;
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

fn count_interrupts(names: &[&str]) -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let wanted = |line: &&str| names.iter().any(|name| line.contains(name));
    // A number, a colon, a count for each CPU, and names.
    let of_line = |line: &str| -> u64 {
        let counts = line.split_whitespace().skip(1);
        counts.map_while(|word| word.parse::<u64>().ok()).sum()
    };
    Ok(text.lines().filter(wanted).map(of_line).sum())
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
