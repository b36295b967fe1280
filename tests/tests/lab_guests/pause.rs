//! A Linux guest that is paused, which takes a machine in this process: there is no option for it.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{Initramfs, Lab, Report};
use vmm::config::{CpusConfig, PayloadConfig, VmConfig};
use vmm::console::{Backend, Mode};
use vmm::events::Events;
use vmm::machine::{
    Consoles, Control, Ending, Host, Lent, Machine, NmiError, Payload, prepare_kicks,
};
use vmm::passthrough::Passthrough;
use vmm::plan::Plan;
use vmm::virtio::Backends;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::CMDLINE;

/// Longer than Linux waits until it complains of a CPU that does not move, twice 10 s.
const PAUSE: Duration = Duration::from_secs(30);
/// In which a machine is to stop on real hardware.
const LIMIT: Duration = Duration::from_millis(100);

/// Sleeps for two seconds, which a pause of 30 s falls into, and says what time it was before and after.
const SCRIPT: &str = "
section before cat /proc/uptime
echo ready
sleep 2
section after cat /proc/uptime
section complaints sh -c 'dmesg | grep -iE \"lockup|stall|hung\" || true'
section nmis sh -c 'dmesg | grep NMI || true'
";

/// Waits until the console's text satisfies `condition`, and returns it.
fn wait_for(console: &Path, condition: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + Lab::get()?.scaled(Duration::from_secs(15));
    loop {
        let text = std::fs::read(console).context("no console")?;
        let text = String::from_utf8_lossy(&text);
        if condition(&text) {
            return Ok(text.into_owned());
        }
        ensure!(
            Instant::now() < deadline,
            "it does not come to that: {text}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// Pauses, each in the middle of what an idle guest does, and then the long one.
fn pause(machine: &Machine, console: &Path) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..9 {
        let start = Instant::now();
        machine.pause()?;
        times.push(start.elapsed());
        machine.resume();
        thread::sleep(Duration::from_millis(5));
    }
    times.sort();
    println!("times to pause: {times:?}");
    let median = times.get(times.len() / 2).context("nine times")?;
    ensure!(*median < LIMIT, "it takes long to pause: {times:?}");
    machine.pause()?;
    let before = std::fs::read(console)?;
    match machine.nmi() {
        Ok(()) => ensure!(cfg!(target_arch = "x86_64")),
        Err(NmiError::Unsupported) => ensure!(cfg!(target_arch = "aarch64")),
    }
    thread::sleep(PAUSE);
    ensure!(std::fs::read(console)? == before, "a paused guest prints");
    machine.resume();
    Ok(())
}

/// Runs a guest on a machine of this process, does something to it once it is `ready`, and returns its report.
fn run(
    script: &str,
    arguments: &str,
    vcpus: u32,
    act: impl FnOnce(&Machine, &Path) -> Result<()>,
) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let console = folder.path().join("console");
    let initramfs = folder.path().join("initramfs");
    Initramfs::new(script).write_to(&initramfs)?;
    let config = VmConfig {
        payload: PayloadConfig {
            kernel: Some(Lab::get()?.kernel()),
            initramfs: Some(initramfs),
            cmdline: Some(format!("{CMDLINE} {arguments}")),
        },
        cpus: CpusConfig {
            boot_vcpus: vcpus,
            max_vcpus: vcpus,
            ..CpusConfig::default()
        },
        ..VmConfig::default()
    };
    let host = Host::open()?;
    let losses = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let passthrough = Passthrough::open(&config, &losses, &Events::none())?;
    let plan = Plan::new(&config, &host.facts)?;
    let mut payload = Payload::open(&config.payload)?;
    let backend = Backend::open(&Mode::File(console.clone()))?;
    let consoles = Consoles {
        serial: Some(backend.port()),
        debug: None,
    };
    let control = Arc::new(Control::new()?);
    prepare_kicks()?;
    let machine = Machine::start(
        &host,
        &plan,
        &config,
        &mut payload,
        &Lent {
            passthrough: &passthrough,
            backends: &Backends::open(&config)?,
            consoles: &consoles,
        },
        &control,
    )?;
    wait_for(&console, |text| text.contains("ready"))?;
    act(&machine, &console)?;
    wait_for(&console, |_| control.event().read().is_ok())?;
    match control.take() {
        Some(Ending::PowerOff) => Report::parse(&std::fs::read_to_string(&console)?),
        other => bail!("it ends otherwise: {other:?}"),
    }
}

fn uptime(report: &Report, section: &str) -> Result<f64> {
    let text = report.text(section)?;
    let seconds = text.split_whitespace().next().context("no uptime")?;
    Ok(seconds.parse()?)
}

/// Linux goes on as if nothing had happened. On aarch64 its time has stood still; on x86_64 it may
/// take its time from time-stamp counters, which go on.
#[test]
fn linux_goes_on_after_a_pause() -> Result<()> {
    let report = run(SCRIPT, "", 2, pause)?;
    let slept = uptime(&report, "after")? - uptime(&report, "before")?;
    println!("the guest slept for {slept} s");
    ensure!(slept >= 2.0, "{slept}");
    if cfg!(target_arch = "aarch64") {
        ensure!(slept < PAUSE.as_secs_f64() / 2.0, "time went on: {slept} s");
    }
    let complaints = report.text("complaints")?;
    ensure!(complaints.trim().is_empty(), "{complaints}");
    let nmis = report.text("nmis")?;
    // What Linux says of an NMI that nothing has caused.
    let told = nmis.contains("NMI received for unknown reason");
    ensure!(told == cfg!(target_arch = "x86_64"), "{nmis}");
    Ok(())
}

/// The CPU time that the thread of this name has taken, in clock ticks of 10 ms (proc_pid_stat(5), fields
/// 14 and 15).
#[cfg(target_arch = "x86_64")]
fn cpu_ticks(name: &str) -> Result<u64> {
    let tasks = std::fs::read_dir("/proc/self/task")?;
    let stats = tasks.map(|task| Ok(std::fs::read_to_string(task?.path().join("stat"))?));
    let stats: Result<Vec<_>> = stats.collect();
    let stat = stats?
        .into_iter()
        .find(|stat| stat.contains(&format!("({name})")));
    let stat = stat.with_context(|| format!("no thread {name}"))?;
    let (_, fields) = stat.rsplit_once(") ").context("fields")?;
    let times = fields.split(' ').skip(11).take(2);
    times.map(|ticks| Ok(ticks.parse::<u64>()?)).sum()
}

/// A vCPU that waits for its start-up IPI hears of no NMI, and KVM's wait is not ended by one, which it would be
/// again and again.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_cpu_that_linux_does_not_start_stays_idle_after_an_nmi() -> Result<()> {
    let script = "section cpus nproc\necho ready\nsleep 3";
    let report = run(script, "maxcpus=1", 3, |machine, _| {
        machine.nmi()?;
        thread::sleep(Duration::from_millis(200));
        // No other guest of this process has as many vCPUs.
        let before = cpu_ticks("vcpu2")?;
        thread::sleep(Duration::from_secs(1));
        let ticks = cpu_ticks("vcpu2")? - before;
        ensure!(ticks < 10, "its thread is busy: {ticks} ticks");
        Ok(())
    })?;
    ensure!(report.text("cpus")?.trim() == "1");
    Ok(())
}
