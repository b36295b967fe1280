//! What takes too long for every change: other kernels, many reboots, many guests.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{CMDLINE, Initramfs, Lab, Report, Usage, Vmm, usage};

use crate::report::{assert_memory, assert_no_complaints, assert_tables, trimmed};

/// The kernel as it boots fastest.
const KERNEL: &str = if cfg!(target_arch = "x86_64") {
    "vmlinux"
} else {
    "vmlinuz"
};

/// File `name` of the further kernel `kernel`.
fn asset(kernel: &str, name: &str) -> Result<PathBuf> {
    let path = Lab::get()?.asset(&format!("kernels/{kernel}/{name}"));
    ensure!(
        path.exists(),
        "{} is missing: run scripts/lab/fetch-kernels",
        path.display()
    );
    Ok(path)
}

/// Boots `file` of the further kernel `kernel` with 2 CPUs and 1 GiB: it is the kernel that was
/// meant, has what it was given and nothing to complain of.
fn boot(kernel: &str, file: &str, arguments: &[&str]) -> Result<Report> {
    let script = format!(
        "{}\nsection page grep -m 1 KernelPageSize /proc/self/smaps",
        Initramfs::full_report().script()
    );
    let report = Vmm::boot_kernel(&asset(kernel, file)?, &Initramfs::new(&script), CMDLINE)?
        .args(["--cpus", "boot=2", "--memory", "size=1G"])
        .args(arguments)
        .run()?
        .report()?;
    // linux-image-6.1.0-50-amd64, and /proc/version says "Linux version 6.1.0-50-amd64 (…".
    let package = std::fs::read_to_string(asset(kernel, "version")?)?;
    let release = package.trim().splitn(3, '-').nth(2);
    let release = release.with_context(|| format!("no release in {package}"))?;
    let version = report.text("kernel")?;
    ensure!(version.contains(&format!(" {release} ")), "{version}");
    assert_eq!(trimmed(&report, "cpus")?, "2");
    assert_memory(&report, 1024)?;
    assert_no_complaints(&report)?;
    Ok(report)
}

/// Through ACPI.
fn boot_with_acpi(kernel: &str, file: &str) -> Result<Report> {
    let report = boot(kernel, file, &[])?;
    assert_tables(&report)?;
    Ok(report)
}

#[test]
#[ignore = "another kernel, run by scripts/test --full"]
fn the_oldest_kernel_boots() -> Result<()> {
    boot_with_acpi("bookworm", KERNEL).map(drop)
}

#[test]
#[ignore = "another kernel, run by scripts/test --full"]
fn the_newest_kernel_boots() -> Result<()> {
    boot_with_acpi("sid", KERNEL).map(drop)
}

#[test]
#[ignore = "another kernel, run by scripts/test --full"]
#[cfg(target_arch = "x86_64")]
fn the_oldest_bzimage_boots() -> Result<()> {
    boot_with_acpi("bookworm", "vmlinuz").map(drop)
}

#[test]
#[ignore = "another kernel, run by scripts/test --full"]
#[cfg(target_arch = "x86_64")]
fn the_newest_bzimage_boots() -> Result<()> {
    boot_with_acpi("sid", "vmlinuz").map(drop)
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use super::*;

    /// Through a device tree alone.
    fn boot_without_acpi(kernel: &str) -> Result<Report> {
        let report = boot(kernel, KERNEL, &["--platform", "acpi=off"])?;
        assert_eq!(report.names("acpi/").count(), 0);
        Ok(report)
    }

    fn assert_large_pages(report: &Report) -> Result<()> {
        let page = report.text("page")?;
        ensure!(page.contains(" 16 kB"), "{page}");
        Ok(())
    }

    #[test]
    #[ignore = "another kernel, run by scripts/test --full"]
    fn the_oldest_kernel_boots_from_a_device_tree() -> Result<()> {
        boot_without_acpi("bookworm").map(drop)
    }

    #[test]
    #[ignore = "another kernel, run by scripts/test --full"]
    fn the_newest_kernel_boots_from_a_device_tree() -> Result<()> {
        boot_without_acpi("sid").map(drop)
    }

    #[test]
    #[ignore = "another kernel, run by scripts/test --full"]
    fn a_kernel_with_16_kib_pages_boots() -> Result<()> {
        assert_large_pages(&boot_with_acpi("trixie-16k", KERNEL)?)
    }

    #[test]
    #[ignore = "another kernel, run by scripts/test --full"]
    fn a_kernel_with_16_kib_pages_boots_from_a_device_tree() -> Result<()> {
        assert_large_pages(&boot_without_acpi("trixie-16k")?)
    }
}

#[test]
#[ignore = "20 reboots, run by scripts/test --full"]
fn reboots_leave_nothing_behind_in_the_vmm() -> Result<()> {
    /// Bytes that an allocator may keep: less than a machine's tables and stacks, 15 times.
    const SLACK: u64 = 512 << 10;
    const REBOOTS: usize = 20;

    let mut vmm = crate::guest(crate::lifecycle::OBEY)?
        .args(["--cpus", "boot=2", "--memory", "size=512M"])
        .timeout(Duration::from_secs(120))
        .spawn()?;
    let mut usages: Vec<Usage> = Vec::new();
    for boot in 0..=REBOOTS {
        vmm.wait_for_lines("ready", boot + 1)?;
        usages.push(usage(vmm.pid())?);
        vmm.write(if boot < REBOOTS { "reboot\n" } else { "off\n" })?;
    }
    vmm.wait()?.success()?;
    let (early, late) = (usages[5], usages[REBOOTS]);
    assert_eq!(late.threads, early.threads, "{usages:#?}");
    assert_eq!(late.descriptors, early.descriptors, "{usages:#?}");
    assert_eq!(late.guest_ram, early.guest_ram, "{usages:#?}");
    assert!(late.own_memory <= early.own_memory + SLACK, "{usages:#?}");
    Ok(())
}

/// Numbers that look random and are the same each time (George Marsaglia, "Xorshift RNGs", 2003).
struct Numbers(u64);

impl Numbers {
    /// One from `low` to `high`.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + self.0 % (high - low + 1)
    }
}

#[test]
#[ignore = "30 guests, run by scripts/test --full"]
fn guests_of_all_sizes_run_one_after_the_other() -> Result<()> {
    /// Bytes: any number of these is a size of RAM.
    const PAGE: u64 = 4096;
    let mut numbers = Numbers(0x5eed);
    for guest in 0..30 {
        let cpus = numbers.between(1, 8);
        let pages = numbers.between((256 << 20) / PAGE, (2048 << 20) / PAGE);
        let options = [format!("boot={cpus}"), format!("size={}", pages * PAGE)];
        let run = || -> Result<()> {
            let script = "section cpus nproc\nsection meminfo head -n 1 /proc/meminfo";
            let report = crate::guest(script)?
                .args(["--cpus", &options[0], "--memory", &options[1]])
                .run()?
                .report()?;
            let seen = trimmed(&report, "cpus")?;
            ensure!(seen == cpus.to_string(), "{seen} CPUs");
            assert_memory(&report, (pages * PAGE) >> 20)
        };
        run().with_context(|| format!("guest {guest}, {options:?}"))?;
    }
    Ok(())
}
