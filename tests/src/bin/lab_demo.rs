//! Boots a guest and shows what it sees: the program behind `scripts/demo`.

use anyhow::{Context as _, Result};
use tests::{CMDLINE, Initramfs, Report, Vmm};

/// Guest's memory and CPUs, as they are asked for.
const CPUS: &str = "boot=2,topology=1:2:1:1";
const MEMORY: &str = "size=1G";
const PLATFORM: &str = "serial_number=demo-1,oem_strings=[one,two]";

fn main() -> Result<()> {
    println!("cloud-hypervisor --cpus {CPUS} --memory {MEMORY} --platform {PLATFORM}");
    println!("    --serial tty --console off --cmdline \"{CMDLINE}\" --kernel … --initramfs …\n");
    let outcome = Vmm::boot(&Initramfs::full_report(), CMDLINE)?
        .args(["--cpus", CPUS, "--memory", MEMORY, "--platform", PLATFORM])
        .run()?;
    show(&outcome.report()?)?;
    println!(
        "\nStart to power-off: {:.1} s.",
        outcome.elapsed.as_secs_f32()
    );
    Ok(())
}

fn show(report: &Report) -> Result<()> {
    println!("What the guest sees");
    println!("  kernel    {}", first_line(report, "kernel")?);
    println!("  CPUs      {}", first_line(report, "cpus")?);
    for cpu in report.names("topology/") {
        let topology = report.text(&format!("topology/{cpu}"))?;
        println!("  {cpu:9} {}", one_line(topology));
    }
    println!("  memory    {}", first_line(report, "meminfo")?);
    for range in report.text("iomem")?.lines() {
        if range.ends_with("System RAM") || range.contains("ACPI") {
            println!("            {}", range.trim());
        }
    }
    println!("  SMBIOS");
    for field in report.names("dmi/") {
        let value = one_line(report.text(&format!("dmi/{field}"))?);
        if !value.is_empty() {
            println!("    {field:18} {value}");
        }
    }
    println!("  ACPI tables");
    for name in report.names("acpi/") {
        let table = report.bytes(&format!("acpi/{name}"))?;
        // The revision is the ninth byte of every table's header (ACPI 6.5, section 5.2.6).
        let revision = table.get(8).context("a table shorter than its header")?;
        println!("    {name:5} revision {revision}, {} bytes", table.len());
    }
    Ok(())
}

fn first_line<'a>(report: &'a Report, name: &str) -> Result<&'a str> {
    let text = report.text(name)?;
    text.lines()
        .next()
        .with_context(|| format!("{name} is empty"))
}

/// Several lines as one.
fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}
