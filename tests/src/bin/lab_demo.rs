//! Boots two guests and shows what they see: the program behind `scripts/demo`. The second has a
//! device whose memory becomes one of its NUMA nodes.

use anyhow::{Context as _, Result};
use tests::coherent_device::Options;
use tests::{CMDLINE, CoherentDevice, Initramfs, Report, Vmm};

/// Guest's memory and CPUs, as they are asked for.
const CPUS: &str = "boot=2,topology=1:2:1:1";
const MEMORY: &str = "size=1G";
const PLATFORM: &str = "serial_number=demo-1,oem_strings=[one,two]";

/// A guest whose device owns the nodes 1 to 8.
const DEVICE_MEMORY: &str = "size=1G,shared=on";
const NODE: &str = "guest_numa_id=0,cpus=[0-1],memory_zones=[mem0]";
const OWN_NODES: &str = "guest_numa_ids=auto:8";
/// What of the device's memory the driver gives to a node, in bytes.
const GIVEN: u64 = 256 << 20;

/// What the guest does with its device, and shows of it.
const SCRIPT: &str = r#"
nodes() {
    for folder in /sys/devices/system/node/node[0-9]*; do
        number=${folder##*/node}
        size=$(awk '/MemTotal/ { print int($4 / 1024) }' "$folder/meminfo")
        echo "node $number cpus: $(cat "$folder/cpulist")"
        echo "node $number size: $size MB"
    done
    echo "node distances:"
    for folder in /sys/devices/system/node/node[0-9]*; do
        echo "${folder##*/node}: $(cat "$folder/distance")"
    done
}
section before nodes
insmod /lib/coherent_memory.ko
for files in /sys/bus/pci/devices/*/coherent_memory; do :; done
section device basename "${files%/*}"
section memory cat "$files/coherent_memory"
section domains cut -d ' ' -f 1 "$files/nodes"
give() { echo "$GIVEN" >"$files/add"; }
section give give
section after nodes
mkdir /mnt
mount -t tmpfs -o "mpol=bind:1" none /mnt
fill() { head -c 67108864 /dev/urandom >/mnt/file && md5sum </mnt/file; }
section fill fill
section used grep -E ' (MemTotal|MemFree|Shmem):' /sys/devices/system/node/node1/meminfo
umount /mnt
take() { echo 1 >"$files/remove"; }
section take take
"#;

fn main() -> Result<()> {
    machine()?;
    device()
}

/// A guest that owns what a guest usually does.
fn machine() -> Result<()> {
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

/// A guest with a device of which the memory becomes a NUMA node. The device is simulated by
/// another process: a GPU's registers, as far as a driver looks at them first, and memory.
fn device() -> Result<()> {
    println!("\n\nA passed-through device that owns NUMA nodes (simulated; vfio-user)\n");
    let device = CoherentDevice::start(Options::default())?;
    let user_device = format!("socket={},{OWN_NODES}", device.socket().display());
    println!("cloud-hypervisor --memory {DEVICE_MEMORY} --cpus boot=2 --numa {NODE}");
    println!("    --user-device socket=…,{OWN_NODES} …\n");
    let cmdline = format!("{CMDLINE} memhp_default_state=online_movable");
    let script = format!("GIVEN={GIVEN}\n{SCRIPT}");
    let initramfs = Initramfs::new(&script).module("coherent_memory");
    let outcome = Vmm::boot(&initramfs, &cmdline)?
        .args(["--memory", DEVICE_MEMORY, "--cpus", "boot=2"])
        .args(["--numa", NODE, "--user-device", &user_device])
        .run()?;
    let report = outcome.report()?;
    indent("The guest's nodes at boot", report.text("before")?);
    println!(
        "\nIts device {} has memory at {} (address, bytes)\nand says that it may use the proximity \
         domains {}.",
        report.text("device")?.trim(),
        report.text("memory")?.trim(),
        one_line(report.text("domains")?),
    );
    report.text("give")?;
    indent(
        &format!(
            "\nAfter its driver has given {} MB to the first of them",
            GIVEN >> 20
        ),
        report.text("after")?,
    );
    report.text("fill")?;
    indent(
        "\nWith a file of 64 MB in memory of node 1 alone (mpol=bind:1)",
        report.text("used")?,
    );
    report.text("take")?;
    println!("\nThen the memory was taken out again, and the guest powered off.");
    Ok(())
}

fn indent(title: &str, text: &str) {
    println!("{title}");
    for line in text.lines() {
        println!("  {}", line.trim());
    }
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
