//! What `--cpus` does on the host and in the guest beyond the number of CPUs.

use anyhow::{Result, ensure};
#[cfg(target_arch = "x86_64")]
use tests::{CMDLINE, Initramfs, Vmm};

#[test]
fn cpus_beyond_the_boot_ones_are_offline() -> Result<()> {
    let script = "section online cat /sys/devices/system/cpu/online
        section possible cat /sys/devices/system/cpu/possible
        section complaints sh -c 'dmesg | grep -iE \"cpu.*(fail|error)|acpi.*error\" || true'";
    let report = crate::guest(script)?
        .args(["--cpus", "boot=2,max=4"])
        .run()?
        .report()?;
    assert_eq!(report.text("online")?.trim(), "0-1");
    // arm64 Linux would start CPUs that may come later at boot, so they are not announced yet.
    let possible = if cfg!(target_arch = "x86_64") {
        "0-3"
    } else {
        "0-1"
    };
    assert_eq!(report.text("possible")?.trim(), possible);
    let complaints = report.text("complaints")?;
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// Five of each kind leave holes that take the 76th CPU past what 8 bits can say.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_cpu_with_an_apic_id_above_255_starts() -> Result<()> {
    let script = "section before nproc
        section start sh -c 'echo 1 >/sys/devices/system/cpu/cpu75/online'
        section apicids sh -c 'grep ^apicid /proc/cpuinfo'
        section where taskset 0x8000000000000000000 sed 's/.*) //' /proc/self/stat";
    let cmdline = format!("{CMDLINE} maxcpus=1");
    let report = Vmm::boot(&Initramfs::new(script), &cmdline)?
        .args(["--cpus", "boot=76,max=150,topology=5:5:3:2"])
        .run()?
        .report()?;
    assert_eq!(report.text("before")?.trim(), "1");
    let lines = report.text("apicids")?.lines();
    let ids: Vec<&str> = lines.filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(ids, ["0", "256"]);
    // proc_pid_stat(5): field 39 is the CPU; two fields are cut off above.
    let cpu = report.text("where")?.split_whitespace().nth(36);
    assert_eq!(cpu, Some("75"));
    Ok(())
}

/// Cores in threes leave a hole after every third APIC id.
#[test]
#[cfg(target_arch = "x86_64")]
fn apic_ids_have_a_field_for_each_level() -> Result<()> {
    let report = crate::guest("section apicids sh -c 'grep ^apicid /proc/cpuinfo'")?
        .args(["--cpus", "boot=6,topology=1:3:1:2"])
        .run()?
        .report()?;
    let lines = report.text("apicids")?.lines();
    let ids: Vec<&str> = lines.filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(ids, ["0", "1", "2", "4", "5", "6"]);
    Ok(())
}
