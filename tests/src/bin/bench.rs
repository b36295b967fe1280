//! What `scripts/bench` runs: how long a guest takes to start, and how much memory its VMM takes.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::Summary;
use anyhow::{Context as _, Result, bail, ensure};

/// The longest that a guest may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The VMM's memory has settled when it has not grown for so long.
const SETTLING: Duration = Duration::from_millis(50);
/// What the probe guest prints before anything else (`tests/probe/entry.S`).
const FIRST_OUTPUT: &[u8] = b"probe: up";

/// vCPUs and memory of the machines that are measured.
const MACHINES: [Machine; 6] = [
    Machine(1, "512M"),
    Machine(8, "512M"),
    Machine(64, "512M"),
    Machine(254, "512M"),
    Machine(1, "16G"),
    Machine(1, "64G"),
];

#[derive(Clone, Copy)]
struct Machine(u32, &'static str);

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(cpus, memory) = self;
        f.pad(&format!("{cpus} vCPU, {memory}"))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    print_host();
    println!("median (minimum to maximum) of {} runs", options.runs);
    println!("{:18}{:>34}{:>34}", "", "start, ms", "peak memory, MiB");
    for machine in MACHINES {
        compare(&options, machine)?;
    }
    Ok(())
}

/// What the command line asks for.
struct Options {
    vmm: PathBuf,
    probe: PathBuf,
    runs: usize,
    against: Option<PathBuf>,
}

impl Options {
    /// Reads `VMM PROBE start [--runs N] [--against PATH]`.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut next = |what: &str| arguments.next().with_context(|| format!("no {what} given"));
        let mut options = Self {
            vmm: next("VMM")?.into(),
            probe: next("probe guest")?.into(),
            runs: 11,
            against: None,
        };
        ensure!(
            next("benchmark")? == "start",
            "there is one benchmark: start"
        );
        while let Ok(option) = next("option") {
            match option.as_str() {
                "--runs" => {
                    let runs = next("number of runs")?;
                    options.runs = runs.parse().with_context(|| format!("--runs {runs}"))?;
                    ensure!(options.runs > 0, "--runs 0: one run is the least");
                }
                "--against" => options.against = Some(next("other VMM")?.into()),
                other => bail!("unknown option {other}"),
            }
        }
        Ok(options)
    }
}

/// What the figures depend on besides the VMM.
fn print_host() {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    println!(
        "Linux {}, {cpus} CPUs, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").trim()
    );
}

/// Measures one machine and prints its rows.
fn compare(options: &Options, machine: Machine) -> Result<()> {
    let run = |vmm: &Path| {
        measure(vmm, &options.probe, machine)
            .with_context(|| format!("{}: {machine}", vmm.display()))
    };
    let against = options.against.as_deref();
    run(&options.vmm)?;
    against.map(run).transpose()?;
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        ours.push(run(&options.vmm)?);
        others.extend(against.map(run).transpose()?);
    }
    print_row(&machine, &ours);
    if against.is_some() {
        print_row(&"  other", &others);
        let ratios: Vec<Run> = ours.iter().zip(&others).map(Run::ratio).collect();
        print_row(&"  ours/other", &ratios);
    }
    Ok(())
}

fn print_row(name: &dyn fmt::Display, runs: &[Run]) {
    let summary = |value: fn(&Run) -> f64| Summary::of(runs.iter().map(value));
    let (start, memory) = (summary(|run| run.start), summary(|run| run.memory));
    println!("{name:18}{start:>34}{memory:>34}");
}

/// The figures of one run, or ratios of them.
struct Run {
    /// Milliseconds from the process's start to the guest's first output.
    start: f64,
    /// Most resident memory that the VMM had until it settled, in MiB.
    memory: f64,
}

impl Run {
    fn ratio((ours, other): (&Self, &Self)) -> Self {
        Self {
            start: ours.start / other.start,
            memory: ours.memory / other.memory,
        }
    }
}

/// A VMM under way. Dropped, it is killed.
struct Vmm {
    child: Child,
    errors: File,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a VMM, waits for its guest's first output, and ends it.
fn measure(vmm: &Path, probe: &Path, Machine(cpus, memory): Machine) -> Result<Run> {
    let mut command = Command::new(vmm);
    command
        .arg("--kernel")
        .arg(probe)
        // Any word that needs no further input: when it is done, the guest halts.
        .args(["--cmdline", "cpuid=0"])
        .args(["--cpus", &format!("boot={cpus}")])
        .args(["--memory", &format!("size={memory}")])
        .args(["--serial", "tty", "--console", "off"]);
    let errors = tempfile::tempfile().context("no temporary file for its messages")?;
    let (reader, writer) = io::pipe().context("no pipe for its output")?;
    let (sender, first_output) = mpsc::channel();
    // Waits before the clock runs.
    let collector = thread::spawn(move || collect(reader, &sender));
    command
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(errors.try_clone().context("its messages' file")?);

    let start = Instant::now();
    let child = command.spawn().context("cannot start it")?;
    let mut vmm = Vmm { child, errors };
    // With the command goes our end of the pipe for writing: its output ends when it does.
    drop(command);
    let Ok(end) = first_output.recv_timeout(PATIENCE) else {
        return vmm.fail("no guest output");
    };
    let memory = settled_memory(vmm.child.id())?;
    vmm.terminate()?;
    let output = collector.join().unwrap_or_default();
    if !output.starts_with(FIRST_OUTPUT) {
        return vmm.fail("the first output was not the guest's");
    }
    Ok(Run {
        start: (end - start).as_secs_f64() * 1e3,
        memory,
    })
}

/// Reads to the end; says when the first byte came.
fn collect(mut reader: PipeReader, first_output: &mpsc::Sender<Instant>) -> Vec<u8> {
    let mut output = vec![0];
    if reader.read_exact(&mut output).is_err() {
        return Vec::new();
    }
    // Nobody listens any more if this took too long.
    let _ = first_output.send(Instant::now());
    // What cannot be read is missing from what is returned.
    let _ = reader.read_to_end(&mut output);
    output
}

/// The peak of a process's resident memory, in MiB, once it does not grow further: vCPUs may still
/// be set up when the guest's first one is already running.
fn settled_memory(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let peak = || {
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let number = number.with_context(|| format!("no VmHWM in {path}"))?;
        Ok::<f64, anyhow::Error>(number.parse::<f64>()? / 1024.0)
    };
    let (mut before, deadline) = (peak()?, Instant::now() + PATIENCE);
    loop {
        thread::sleep(SETTLING);
        let now = peak()?;
        if now <= before || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

impl Vmm {
    /// Ends it by SIGTERM.
    fn terminate(&mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status();
        ensure!(kill.context("cannot start kill")?.success(), "kill failed");
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return self.fail("it does not end by SIGTERM");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The error that consists of `problem`, how the VMM ended and what it said.
    fn fail<T>(&mut self, problem: &str) -> Result<T> {
        let _ = self.child.kill();
        let status = self.child.wait()?;
        let mut messages = String::new();
        self.errors.rewind()?;
        self.errors.read_to_string(&mut messages)?;
        bail!("{problem} ({status}); it said:\n{}", messages.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let parse = |text: &str| Options::parse(text.split(' ').map(str::to_owned));
        let options = parse("vmm probe start --runs 3 --against other").unwrap();
        assert_eq!((options.runs, options.against), (3, Some("other".into())));
        assert_eq!(parse("vmm probe start").unwrap().runs, 11);
        for wrong in ["--runs 0", "--runs many", "--runs", "--against", "--fast"] {
            assert!(
                parse(&format!("vmm probe start {wrong}")).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_vmm_that_fails_is_quoted() {
        let error = measure(Path::new("ls"), Path::new("probe"), MACHINES[0]);
        let error = error.err().expect("ls knows no --kernel").to_string();
        assert!(error.contains("no guest output"), "{error}");
        assert!(error.contains("--kernel"), "{error}");
    }
}
