//! What guests report about the machine that they are shown.

use anyhow::{Context as _, Result, ensure};
use tests::{CMDLINE, Initramfs, Report, SharedReport, Vmm};

const PLATFORM: &str = "system_manufacturer=Example Works,system_product_name=Machine 7,\
    system_version=v3,system_serial_number=SN-0042,system_sku_number=SKU-9,system_family=Sevens,\
    system_uuid=00112233-4455-6677-8899-aabbccddeeff,oem_strings=[first string,second one],\
    chassis_asset_tag=RACK-12";

/// 1 CPU and 512 MiB, nothing else said.
static SMALL: SharedReport =
    SharedReport::new(|| full_report(&["--cpus", "boot=1", "--memory", "size=512M"]));

/// 2 CPUs, 1 GiB and every SMBIOS string.
static NAMED: SharedReport = SharedReport::new(|| {
    full_report(&[
        "--cpus",
        "boot=2",
        "--memory",
        "size=1G",
        "--platform",
        PLATFORM,
    ])
});

/// 8 CPUs in a topology with every level, and RAM on both sides of 4 GiB.
static LARGE: SharedReport = SharedReport::new(|| {
    full_report(&["--cpus", "boot=8,topology=2:2:1:2", "--memory", "size=5G"])
});

fn full_report(arguments: &[&str]) -> Result<Report> {
    Vmm::boot(&Initramfs::full_report(), CMDLINE)?
        .args(arguments)
        .run()?
        .report()
}

/// MemTotal in MiB.
fn memory(report: &Report) -> Result<u64> {
    let line = report
        .text("meminfo")?
        .lines()
        .next()
        .context("no memory")?;
    let kib = line.split_whitespace().nth(1).context("no number")?;
    Ok(kib.parse::<u64>()? / 1024)
}

/// Most of `mebibytes`: what the kernel keeps for itself is missing.
pub(crate) fn assert_memory(report: &Report, mebibytes: u64) -> Result<()> {
    let total = memory(report)?;
    let least = mebibytes - mebibytes / 16 - 48;
    ensure!(
        (least..=mebibytes).contains(&total),
        "{total} MiB of {mebibytes}"
    );
    Ok(())
}

pub(crate) fn trimmed<'a>(report: &'a Report, name: &str) -> Result<&'a str> {
    Ok(report.text(name)?.trim())
}

#[test]
fn one_cpu_and_512_mebibytes() -> Result<()> {
    let report = SMALL.get()?;
    assert_eq!(trimmed(report, "cpus")?, "1");
    assert_memory(report, 512)
}

#[test]
fn two_cpus_and_one_gibibyte() -> Result<()> {
    let report = NAMED.get()?;
    assert_eq!(trimmed(report, "cpus")?, "2");
    assert_memory(report, 1024)
}

#[test]
fn eight_cpus_and_five_gibibytes() -> Result<()> {
    let report = LARGE.get()?;
    assert_eq!(trimmed(report, "cpus")?, "8");
    assert_memory(report, 5 * 1024)
}

#[test]
fn ram_goes_on_above_the_32_bit_hole() -> Result<()> {
    let iomem = LARGE.get()?.text("iomem")?;
    let ram: Vec<&str> = iomem
        .lines()
        .filter(|line| !line.starts_with(' ') && line.ends_with("System RAM"))
        .collect();
    let (first, last) = if cfg!(target_arch = "x86_64") {
        // 3 GiB below the hole, 2 GiB from 4 GiB on.
        ("100000000-", "17fffffff : System RAM")
    } else {
        // One piece from 1 GiB on; the tables' window splits it.
        ("40", "17fffffff : System RAM")
    };
    ensure!(
        ram.iter()
            .any(|line| line.trim_start_matches('0').starts_with(first)),
        "{ram:?}"
    );
    ensure!(ram.iter().any(|line| line.ends_with(last)), "{ram:?}");
    Ok(())
}

/// Values of one topology file, by CPU.
fn topology(report: &Report, file: &str) -> Result<Vec<String>> {
    (0..8)
        .map(|cpu| {
            let text = report.text(&format!("topology/cpu{cpu}"))?;
            let prefix = format!("{file}:");
            let mut lines = text.lines().map(|line| line.trim_start_matches("./"));
            let value = lines.find_map(|line| line.strip_prefix(&prefix));
            let value = value.with_context(|| format!("CPU {cpu} has no {file} in:\n{text}"))?;
            Ok(value.to_owned())
        })
        .collect()
}

#[test]
fn the_topology_is_the_one_that_was_asked_for() -> Result<()> {
    let report = LARGE.get()?;
    let threads = topology(report, "thread_siblings_list")?;
    assert_eq!(
        threads,
        ["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"]
    );
    let packages = topology(report, "package_cpus_list")?;
    assert_eq!(
        packages,
        ["0-3", "0-3", "0-3", "0-3", "4-7", "4-7", "4-7", "4-7"]
    );
    Ok(())
}

#[test]
fn smbios_strings_arrive() -> Result<()> {
    let report = NAMED.get()?;
    for (name, value) in [
        ("sys_vendor", "Example Works"),
        ("product_name", "Machine 7"),
        ("product_version", "v3"),
        ("product_serial", "SN-0042"),
        ("product_sku", "SKU-9"),
        ("product_family", "Sevens"),
        ("product_uuid", "00112233-4455-6677-8899-aabbccddeeff"),
        ("chassis_asset_tag", "RACK-12"),
    ] {
        assert_eq!(trimmed(report, &format!("dmi/{name}"))?, value, "{name}");
    }
    let table = report.bytes("smbios/DMI")?;
    for text in [&b"\x01first string\0"[..], b"second one\0"] {
        let text = text.strip_prefix(b"\x01").unwrap_or(text);
        let found = table.windows(text.len()).any(|window| window == text);
        ensure!(found, "no {:?}", String::from_utf8_lossy(text));
    }
    Ok(())
}

/// SMBIOS 3.0, section 7.1.2.2: characteristics extension byte 2, bit 4.
#[test]
fn smbios_says_that_this_is_a_virtual_machine() -> Result<()> {
    let table = SMALL.get()?.bytes("smbios/DMI")?;
    assert_eq!(table.first(), Some(&0), "type 0 comes first");
    let byte = table.get(0x13).context("type 0 is too short")?;
    assert_eq!(byte & 0x10, 0x10);
    Ok(())
}

#[test]
fn every_acpi_table_is_there_and_sound() -> Result<()> {
    assert_tables(SMALL.get()?)
}

/// Every ACPI table is there, and arrived unharmed.
pub(crate) fn assert_tables(report: &Report) -> Result<()> {
    let mut names: Vec<&str> = report.names("acpi/").collect();
    names.sort_unstable();
    let expected: &[&str] = if cfg!(target_arch = "x86_64") {
        &["APIC", "DSDT", "FACP", "MCFG", "SPCR"]
    } else {
        &[
            "APIC", "DSDT", "FACP", "GTDT", "IORT", "MCFG", "PPTT", "SPCR",
        ]
    };
    assert_eq!(names, expected);
    for name in names {
        let table = report.bytes(&format!("acpi/{name}"))?;
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {name}");
        assert_eq!(table.get(..4), Some(name.as_bytes()));
    }
    Ok(())
}

#[test]
fn no_kernel_complains_about_its_firmware() -> Result<()> {
    for report in [&SMALL, &NAMED, &LARGE] {
        assert_no_complaints(report.get()?)?;
    }
    Ok(())
}

/// What the kernel holds against what we told it, in the report's section `complaints`: not against
/// the CPU, which is the host's, nor against time that a busy host takes from it.
pub(crate) fn assert_no_complaints(report: &Report) -> Result<()> {
    const ABOUT_US: [&str; 19] = [
        "acpi", "firmware", "dmi", "smbios", "efi", "madt", "pptt", "gtdt", "spcr", "srat", "slit",
        "hmat", "numa", "node", "nodes", "pci", "ecam", "mcfg", "iort",
    ];
    let is_ours = |word: &str| ABOUT_US.contains(&word.to_lowercase().as_str());
    let complaints = report.text("complaints")?;
    let about_us: Vec<&str> = complaints
        .lines()
        .filter(|line| line.split(|c: char| !c.is_alphanumeric()).any(is_ours))
        .collect();
    ensure!(about_us.is_empty(), "{about_us:#?}");
    Ok(())
}

/// The other way into a kernel: through its decompressor on x86_64, with a device tree on aarch64.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_bzimage_boots() -> Result<()> {
    let kernel = tests::Lab::get()?.asset("vmlinuz");
    let script = "section cpus nproc";
    let report = Vmm::boot_kernel(&kernel, &Initramfs::new(script), CMDLINE)?
        .args(["--cpus", "boot=2", "--memory", "size=1G"])
        .run()?
        .report()?;
    assert_eq!(trimmed(&report, "cpus")?, "2");
    Ok(())
}

#[test]
#[cfg(target_arch = "aarch64")]
fn a_device_tree_alone_boots() -> Result<()> {
    let script = "section cpus nproc
        section acpi sh -c 'ls -d /sys/firmware/acpi || echo none'
        section model sh -c 'tr \\\\0 \\\\n </sys/firmware/devicetree/base/model'
        section clock cat /sys/class/rtc/rtc0/since_epoch";
    let report = crate::guest(script)?
        .args([
            "--cpus",
            "boot=2",
            "--memory",
            "size=1G",
            "--platform",
            "acpi=off",
        ])
        .run()?
        .report()?;
    assert_eq!(trimmed(&report, "cpus")?, "2");
    ensure!(report.text("acpi")?.contains("none"));
    assert_eq!(trimmed(&report, "model")?, "linux,dummy-virt");
    assert_clock(&report, "clock")
}

/// The guest's clock shows the host's time, give or take what a slow boot takes.
fn assert_clock(report: &Report, section: &str) -> Result<()> {
    let guest: u64 = trimmed(report, section)?.parse()?;
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    ensure!(
        host.as_secs().abs_diff(guest) < 300,
        "{guest} against {host:?}"
    );
    Ok(())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_clock_shows_the_hosts_time() -> Result<()> {
    let report = crate::guest("section clock cat /sys/class/rtc/rtc0/since_epoch")?
        .args(["--cpus", "boot=1"])
        .run()?
        .report()?;
    assert_clock(&report, "clock")
}
