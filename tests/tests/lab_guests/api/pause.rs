//! Pausing, non-maskable interrupts and the power button, as Linux sees them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::{CMDLINE, Initramfs, Linux, Report};

/// Longer than Linux waits until it complains of a CPU that does not move, twice 10 s.
const PAUSE: Duration = Duration::from_secs(30);
/// In which a machine is to stop on real hardware.
const LIMIT: Duration = Duration::from_millis(100);

/// How often the power button was pressed: the event device interrupts the guest and, where the
/// kernel's button driver is built in, the driver hears of it and counts a wake-up.
const PRESSES: &str = if cfg!(target_arch = "aarch64") {
    "presses() { cat /sys/bus/acpi/devices/PNP0C0C:00/wakeup/wakeup*/event_count; }"
} else {
    "presses() { sed -n 's/.*: *\\([0-9]*\\).* ACPI:Ged$/\\1/p' /proc/interrupts; }"
};

/// Sleeps for two seconds, which a pause of 30 s falls into, and says what time it was before and
/// after. Then goes on until the power button is pressed.
const SCRIPT: &str = "
section presses/before presses
section before cat /proc/uptime
echo ready
sleep 2
section after cat /proc/uptime
section complaints sh -c 'dmesg | grep -iE \"lockup|stall|hung\" || true'
section nmis sh -c 'dmesg | grep NMI || true'
echo waiting
for second in $(seq 60); do
    [ \"$(presses)\" = 0 ] || break
    sleep 1
done
section presses/after presses
";

/// Pauses, each in the middle of what an idle guest does, and then the long one.
fn pause(linux: &Linux) -> Result<()> {
    let server = &linux.server;
    let mut connection = server.connect();
    let mut times = Vec::new();
    for _ in 0..9 {
        let start = Instant::now();
        connection.request("PUT", "vm.pause", None).expect(204);
        times.push(start.elapsed());
        assert_eq!(server.info()["state"], "Paused");
        connection.request("PUT", "vm.resume", None).expect(204);
        thread::sleep(Duration::from_millis(5));
    }
    times.sort();
    println!("times to pause: {times:?}");
    let median = times.get(times.len() / 2).context("nine times")?;
    ensure!(*median < LIMIT, "it takes long to pause: {times:?}");
    connection.request("PUT", "vm.pause", None).expect(204);
    let before = linux.printed()?;
    nmi(linux);
    thread::sleep(PAUSE);
    ensure!(linux.printed()? == before, "a paused guest prints");
    assert_eq!(server.info()["state"], "Paused");
    connection.request("PUT", "vm.resume", None).expect(204);
    assert_eq!(server.info()["state"], "Running");
    Ok(())
}

fn nmi(linux: &Linux) {
    let answer = linux.server.act("vm.nmi");
    if cfg!(target_arch = "x86_64") {
        answer.expect(204);
    } else {
        let reasons = answer.expect(501).reasons();
        assert_eq!(
            reasons,
            [
                "there is no non-maskable interrupt",
                "guests on this architecture have no NMI: KVM's GIC does not offer any"
            ]
        );
    }
}

fn uptime(report: &Report, section: &str) -> Result<f64> {
    let text = report.text(section)?;
    let seconds = text.split_whitespace().next().context("no uptime")?;
    Ok(seconds.parse()?)
}

/// Linux goes on after a pause as if nothing had happened. On aarch64 its time has stood still; on
/// x86_64 it may take its time from time-stamp counters, which go on.
#[test]
fn linux_goes_on_after_a_pause_and_hears_of_the_power_button() -> Result<()> {
    let mut linux = Linux::start(&[])?;
    let initramfs = Initramfs::new(&format!("{PRESSES}\n{SCRIPT}"));
    let machine = linux.machine(&initramfs, CMDLINE)?;
    linux.server.put("vm.create", &machine).expect(204);
    linux.boot()?;
    linux.wait_for_lines("ready", 1)?;
    pause(&linux)?;
    linux.wait_for_lines("waiting", 1)?;
    linux.server.act("vm.power-button").expect(204);
    let report = linux.report()?;
    // Nobody has told the VMM to stay without its guest.
    assert_eq!(linux.server.wait().code(), Some(0));

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
    assert_eq!(report.text("presses/before")?.trim(), "0");
    assert_eq!(report.text("presses/after")?.trim(), "1");
    Ok(())
}

/// The CPU time that a VMM's thread of this name has taken, in clock ticks of 10 ms
/// (proc_pid_stat(5), fields 14 and 15).
#[cfg(target_arch = "x86_64")]
fn cpu_ticks(linux: &Linux, name: &str) -> Result<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", linux.server.pid()))?;
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

/// A vCPU that waits for its start-up IPI hears of no NMI, and KVM's wait is not ended by one, which
/// it would be again and again.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_cpu_that_linux_does_not_start_stays_idle_after_an_nmi() -> Result<()> {
    let mut linux = Linux::start(&[])?;
    let initramfs = Initramfs::new("section cpus nproc\necho ready\nread -r answer </dev/console");
    let machine = linux.machine(&initramfs, &format!("{CMDLINE} maxcpus=1"))?;
    linux.server.put("vm.create", &machine).expect(204);
    linux.boot()?;
    linux.wait_for_lines("ready", 1)?;
    linux.server.act("vm.nmi").expect(204);
    thread::sleep(Duration::from_millis(200));
    let before = cpu_ticks(&linux, "vcpu1")?;
    thread::sleep(Duration::from_secs(1));
    let ticks = cpu_ticks(&linux, "vcpu1")? - before;
    ensure!(ticks < 10, "its thread is busy: {ticks} ticks");
    linux.write("seen\n")?;
    assert_eq!(linux.report()?.text("cpus")?.trim(), "1");
    assert_eq!(linux.server.wait().code(), Some(0));
    Ok(())
}
