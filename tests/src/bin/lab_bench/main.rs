//! What `scripts/bench block` and `scripts/bench net` run in the lab: loads for the disks or network interfaces of
//! two guests, one of ours and one of QEMU's, in turn on the same host.

mod counters;
mod guest;
mod hardware;
mod image;
mod load;
mod stream;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use tests::{Lab, Summary};

use guest::{Guest, Monitor, Started};
use hardware::{Disk, Hardware, Net};
use image::{Format, Store};
use load::{DISK_LOADS, FORMAT_LOADS, Load, Measured, NET_LOADS};

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Benchmark {
    Block,
    Net,
}

/// What the command line asks for.
struct Options {
    benchmark: Benchmark,
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
    device: Device,
    /// Of a disk, or pairs of an interface: as many as there are vCPUs.
    queues: usize,
}

/// Its device.
#[derive(Clone, Copy)]
enum Device {
    Disk(Store, Format),
    /// A tap, and where the host's end of streams listens.
    Net(u16),
}

impl Device {
    /// How many queues it is measured with.
    fn queues(self) -> [usize; 2] {
        match self {
            Self::Disk(..) => [1, 4],
            // With four, the emulated host's one CPU is what is measured.
            Self::Net(_) => [1, 2],
        }
    }
}

impl Case {
    fn name(&self) -> String {
        let Self { device, queues } = self;
        let (device, unit) = match device {
            Device::Disk(store, format) => (format!("{format} {store}"), "queue"),
            Device::Net(_) => ("tap".to_owned(), "pair"),
        };
        let several = if *queues == 1 { "" } else { "s" };
        format!("{device}, {queues} {unit}{several}")
    }

    fn loads(&self) -> &'static [Load] {
        match self.device {
            Device::Disk(_, Format::Raw) => &DISK_LOADS,
            Device::Disk(_, Format::Qcow2) => &FORMAT_LOADS,
            Device::Net(_) => &NET_LOADS,
        }
    }

    /// What ours gets, and the other; nothing if the host does not have it.
    fn hardware(&self, folder: &Path) -> Result<Option<[Hardware; 2]>> {
        match self.device {
            Device::Disk(store, format) => {
                let images = store.images(format, folder)?;
                let images = images.map(|images| [images.ours, images.other]);
                let disk = |image| {
                    Hardware::Disk(Disk {
                        image,
                        format,
                        store,
                    })
                };
                Ok(images.map(|images| images.map(disk)))
            }
            Device::Net(port) => {
                let net = |network| Net::new(network, self.queues, port).map(Hardware::Net);
                Ok(Some([net(77)?, net(78)?]))
            }
        }
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
         other figures are medians, ours / other's, and all but the first for each {}",
        options.rounds,
        match options.benchmark {
            Benchmark::Block => "request of the driver",
            Benchmark::Net => "64 KiB",
        }
    );
    let mut starts = Vec::new();
    let devices = match options.benchmark {
        Benchmark::Block => vec![
            Device::Disk(Store::Tmpfs, Format::Raw),
            Device::Disk(Store::PageCache, Format::Raw),
            Device::Disk(Store::Direct, Format::Raw),
            Device::Disk(Store::Tmpfs, Format::Qcow2),
        ],
        Benchmark::Net => vec![Device::Net(stream::serve()?)],
    };
    for device in devices {
        for queues in device.queues() {
            let case = Case { device, queues };
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
        let benchmark = match arguments.next().as_deref() {
            Some("block") => Benchmark::Block,
            Some("net") => Benchmark::Net,
            other => bail!("no benchmark is called {}", other.unwrap_or_default()),
        };
        let mut options = Self {
            benchmark,
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
    let Some([our_hardware, other_hardware]) = case.hardware(folder.path())? else {
        println!("\n{name}: left out, the host has no disk for it");
        return Ok(None);
    };
    let mut ours = match Guest::start(&Monitor::ours(), our_hardware, case.queues)? {
        Started::Up(guest) => guest,
        Started::Refused(reason) => {
            println!("\n{name}: left out, since ours refuses it: {reason}");
            return Ok(None);
        }
    };
    let mut other = match Guest::start(&options.other, other_hardware, case.queues)? {
        Started::Up(guest) => guest,
        Started::Refused(reason) => bail!("{name}: the other VMM refuses it: {reason}"),
    };
    println!("\n{name}");
    print_header();
    for load in case.loads() {
        let of = |guest: &mut Guest, requests| {
            load.run(guest, case.queues, requests)
                .with_context(|| format!("{name}: {load}"))
        };
        let requests = calibrate(options, load, case.queues, |requests| {
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
        print_row(load, &pairs);
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
    if let Some(all) = load.all {
        run(all as u64)?;
        return Ok(all as u64);
    }
    let mut requests = (load.first * jobs) as u64;
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
const COLUMNS: [Column; 9] = [
    ("MiB/s", |run| run.rate),
    ("work, µs", |run| run.work),
    ("CPU, µs", |run| run.cpu),
    ("device's", |run| run.device_cpu),
    ("exits", |run| run.exits),
    ("MMIO", |run| run.mmio),
    ("interrupts", |run| run.interrupts),
    ("waits", |run| run.waits),
    ("driver's", |run| run.driver),
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
