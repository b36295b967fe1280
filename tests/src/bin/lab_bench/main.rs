//! What `scripts/bench block` runs in the lab: loads for the disks of two guests, one of ours and one
//! of QEMU's, in turn on the same host.

mod counters;
mod guest;
mod image;
mod load;

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use tests::{Lab, Summary};

use guest::{Guest, Monitor, Started};
use image::{Format, Store};
use load::{LOADS, Load, Measured};

/// What the command line asks for.
struct Options {
    /// Runs of each load.
    rounds: usize,
    /// How long a run is to take at least, in seconds of the guest.
    seconds: f64,
    /// Cases whose names contain this.
    filter: String,
    /// Who is compared with ours.
    other: Monitor,
}

/// A machine that is measured.
struct Case {
    store: Store,
    format: Format,
    queues: usize,
}

impl Case {
    fn name(&self) -> String {
        let Self {
            store,
            format,
            queues,
        } = self;
        let queues = match queues {
            1 => "1 queue".to_owned(),
            count => format!("{count} queues"),
        };
        format!("{format} {store}, {queues}")
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab_bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let lab = Lab::get()?;
    let folder = tempfile::tempdir()?;
    prepare_host(&lab, &options.other)?;
    println!(
        "ratios are ours/other: median (minimum to maximum) of {} pairs of runs, and of the best run of each;\n\
         other figures are medians, ours / other's, and all but the first for each request of the driver",
        options.rounds
    );
    let mut starts = Vec::new();
    let stores = [
        (Store::Tmpfs, Format::Raw),
        (Store::PageCache, Format::Raw),
        (Store::Direct, Format::Raw),
        (Store::Tmpfs, Format::Qcow2),
    ];
    for (store, format) in stores {
        for queues in [1, 4] {
            let case = Case {
                store,
                format,
                queues,
            };
            if case.name().contains(&options.filter) {
                starts.extend(compare(&case, &options, &folder)?);
            }
        }
    }
    ensure!(!starts.is_empty(), "no case is called {}", options.filter);
    print_starts(&starts);
    Ok(())
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            rounds: 7,
            seconds: 1.0,
            filter: String::new(),
            other: Monitor::Qemu,
        };
        while let Some(option) = arguments.next() {
            let value = arguments.next();
            let value = value.with_context(|| format!("{option} needs a value"))?;
            let wrong = || format!("{option} {value}");
            match option.as_str() {
                "--rounds" => options.rounds = value.parse().with_context(wrong)?,
                "--seconds" => options.seconds = value.parse().with_context(wrong)?,
                "--only" => options.filter = value,
                "--against" => options.other = Monitor::Ours(value),
                _ => bail!("unknown option {option}"),
            }
        }
        ensure!(options.rounds > 0, "--rounds 0: one is the least");
        ensure!(options.seconds > 0.0, "--seconds must be more than none");
        Ok(options)
    }
}

/// Gives the host its disk, and reads both programs once.
fn prepare_host(lab: &Lab, other: &Monitor) -> Result<()> {
    // Without it, direct I/O is left out.
    let _ = command("modprobe", &["nvme"]);
    for monitor in [&Monitor::ours(), other] {
        let program = monitor.program(lab)?;
        let output = Command::new(&program).arg("--version").output();
        let output = output.with_context(|| format!("cannot start {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{}", text.lines().next().unwrap_or_default());
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("host: Linux {}", release.trim());
    Ok(())
}

/// Runs a command of the host.
fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status();
    let status = status.with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program} {arguments:?} failed");
    Ok(())
}

/// How long both took to start, in seconds.
type Starts = (f64, f64);

/// Starts both guests of a case, and lets them carry out every load in turn.
fn compare(case: &Case, options: &Options, folder: &TempDir) -> Result<Option<Starts>> {
    let name = case.name();
    let Some(images) = case.store.images(case.format, folder.path())? else {
        println!("\n{name}: left out, the host has no disk for it");
        return Ok(None);
    };
    let start = |monitor, image| Guest::start(monitor, image, case.format, case.store, case.queues);
    let ours = Monitor::ours();
    let mut ours = match start(&ours, &images.ours)? {
        Started::Up(guest) => guest,
        Started::Refused(reason) => {
            println!("\n{name}: left out, since ours refuses it: {reason}");
            return Ok(None);
        }
    };
    let mut other = match start(&options.other, &images.other)? {
        Started::Up(guest) => guest,
        Started::Refused(reason) => bail!("{name}: the other VMM refuses it: {reason}"),
    };
    println!("\n{name}");
    print_header();
    for load in LOADS {
        let of = |guest: &mut Guest, requests| {
            load.run(guest, case.queues, requests)
                .with_context(|| format!("{name}: {load}"))
        };
        let requests = calibrate(options, &load, case.queues, |requests| {
            of(&mut ours, requests)
        })?;
        of(&mut other, requests)?;
        let mut pairs = Vec::new();
        for round in 0..options.rounds {
            // Whoever is first now is second in the next round.
            pairs.push(match round % 2 {
                0 => {
                    let first = of(&mut ours, requests)?;
                    (first, of(&mut other, requests)?)
                }
                _ => {
                    let first = of(&mut other, requests)?;
                    (of(&mut ours, requests)?, first)
                }
            });
        }
        print_row(&load, &pairs);
    }
    Ok(Some((ours.started, other.started)))
}

/// How many requests take as long as asked for.
fn calibrate(
    options: &Options,
    load: &Load,
    jobs: usize,
    mut run: impl FnMut(u64) -> Result<Measured>,
) -> Result<u64> {
    let mut requests = (load.depth * jobs * 4) as u64;
    loop {
        let measured = run(requests)?;
        if measured.seconds >= options.seconds / 4.0 {
            let wanted = requests as f64 * options.seconds / measured.seconds;
            return Ok(wanted.ceil() as u64);
        }
        requests *= 4;
    }
}

/// What a row says of both beside the ratios: a title, and the figure of a run.
const COLUMNS: [Column; 8] = [
    ("MiB/s", |run| run.rate),
    ("work, µs", |run| run.work),
    ("CPU, µs", |run| run.cpu),
    ("device's", |run| run.device_cpu),
    ("exits", |run| run.exits),
    ("MMIO", |run| run.mmio),
    ("interrupts", |run| run.interrupts),
    ("waits", |run| run.waits),
];
type Column = (&'static str, fn(&Measured) -> f64);

fn print_header() {
    print!(
        "{:22}{:30}{:30}",
        "", "throughput, best", "work of the host, best"
    );
    for (title, _) in COLUMNS {
        print!("{title:>17}");
    }
    println!();
}

/// A row for a load: ratios of throughput and CPU time, and the figures of both.
fn print_row(load: &Load, pairs: &[(Measured, Measured)]) {
    let ratio = |value: fn(&Measured) -> f64, best: fn(Summary) -> f64| {
        let ratios = pairs.iter().map(|(ours, other)| value(ours) / value(other));
        let ours = Summary::of(pairs.iter().map(|pair| value(&pair.0)));
        let other = Summary::of(pairs.iter().map(|pair| value(&pair.1)));
        format!("{}, {:.2}", Summary::of(ratios), best(ours) / best(other))
    };
    let rate = ratio(|run| run.rate, |runs| runs.most);
    let work = ratio(|run| run.work, |runs| runs.least);
    print!("{load:22}{rate:30}{work:30}");
    for (_, value) in COLUMNS {
        let ours = Summary::of(pairs.iter().map(|pair| value(&pair.0)));
        let other = Summary::of(pairs.iter().map(|pair| value(&pair.1)));
        print!(
            "{:>17}",
            format!("{:.2} / {:.2}", ours.median, other.median)
        );
    }
    println!();
}

fn print_starts(starts: &[Starts]) {
    let ratio = Summary::of(starts.iter().map(|(ours, other)| ours / other));
    let ours = Summary::of(starts.iter().map(|start| start.0));
    let other = Summary::of(starts.iter().map(|start| start.1));
    println!(
        "\nfrom the VMM's process to the guest's init, of {} pairs: ratio {ratio}; {ours} s and {other} s",
        starts.len()
    );
}
