//! What `--cpus` does on the host and in the guest beyond the number of CPUs.

use std::fs;

use anyhow::{Context as _, Result, ensure};

/// Host CPUs that each vCPU thread of a process may run on, in order of the vCPUs.
fn affinity(pid: u32) -> Result<Vec<String>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let folder = entry?.path();
        let name = fs::read_to_string(folder.join("comm"))?;
        let Some(index) = name.trim().strip_prefix("vcpu") else {
            continue;
        };
        let status = fs::read_to_string(folder.join("status"))?;
        let key = "Cpus_allowed_list:";
        let allowed = status.lines().find_map(|line| line.strip_prefix(key));
        let allowed = allowed.context("no affinity")?.trim().to_owned();
        threads.push((index.parse::<u32>()?, allowed));
    }
    threads.sort();
    Ok(threads.into_iter().map(|(_, allowed)| allowed).collect())
}

#[test]
fn vcpus_stay_on_the_host_cpus_they_are_given() -> Result<()> {
    let vmm = crate::early_guest()?
        .args(["--cpus", "boot=4,affinity=[0@[1],1@[0],2@[0-1]]"])
        .spawn()?;
    vmm.wait_for_line("Linux version")?;
    let everywhere = affinity(std::process::id()).map(|_| "0-1".to_owned())?;
    assert_eq!(affinity(vmm.pid())?, ["1", "0", "0-1", everywhere.as_str()]);
    vmm.signal("TERM")?;
    vmm.wait()?.success()?;
    Ok(())
}

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
