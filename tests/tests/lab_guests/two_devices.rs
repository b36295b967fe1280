//! Two passed-through devices with memory, each with nodes of its own, and what the HMAT says of
//! both.
//!
//! Sixteen nodes, as many as an arm64 kernel of a distribution has room for.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::coherent_device::Options;
use tests::{CMDLINE, CoherentDevice, Initramfs, Report, SharedReport, Vmm};

/// A device: its own proximity domains, how far they are, and what the HMAT says of the first.
struct Device {
    domains: std::ops::RangeInclusive<u32>,
    distance: u32,
    /// Nanoseconds of reads and writes, MB/s that can be read and written.
    performance: [u32; 4],
    /// What the guest writes there.
    mark: u8,
}

const DEVICES: [Device; 2] = [
    Device {
        domains: 2..=9,
        distance: 40,
        performance: [300, 350, 40_000, 30_000],
        mark: b'a',
    },
    Device {
        domains: 10..=15,
        distance: 80,
        performance: [600, 650, 20_000, 15_000],
        mark: b'b',
    },
];

/// What the first node of each device gets: a memory block.
const NODE_SIZE: u64 = 128 << 20;
/// What is written there.
const FILE_SIZE: u64 = 16 << 20;
const PAGE: usize = 4096;

/// Needs `NODE_SIZE`, `FILE_MIB`, and a mark for each device in the order of their domains.
const SCRIPT: &str = r#"
insmod /lib/coherent_memory.ko
mkdir /mnt
performance() {
    for file in read_latency write_latency read_bandwidth write_bandwidth; do
        cat "/sys/devices/system/node/node$1/access0/initiators/$file"
    done
}
distances() { grep '' /sys/devices/system/node/node*/distance | sed 's/.*\(node[0-9]*\)/\1/'; }
give() { echo "$NODE_SIZE" >"$files/add"; }
take() { echo "$node" >"$files/remove"; }

section possible cat /sys/devices/system/node/possible
for folder in /sys/bus/pci/devices/*; do
    files=$folder/coherent_memory
    [ -e "$files/nodes" ] || continue
    pxm=$(head -n 1 "$files/nodes" | cut -d ' ' -f 1)
    node=$(head -n 1 "$files/nodes" | cut -d ' ' -f 2)
    section "$pxm/source" cat "$files/source"
    section "$pxm/domains" cut -d ' ' -f 1 "$files/nodes"
    section "$pxm/node" echo "$node"
    section "$pxm/give" give
    section "$pxm/performance" performance "$node"
    mkdir "/mnt/$pxm"
    mount -t tmpfs -o "mpol=bind:$node" none "/mnt/$pxm"
    mark=a
    [ "$pxm" = 2 ] || mark=b
    head -c "$((FILE_MIB << 20))" /dev/zero | tr '\0' "$mark" >"/mnt/$pxm/file"
done
section distances distances
section has_memory cat /sys/devices/system/node/has_memory
# Until the test has looked into the devices' memory.
echo filled
read -r answer </dev/console
for folder in /sys/bus/pci/devices/*; do
    files=$folder/coherent_memory
    [ -e "$files/nodes" ] || continue
    pxm=$(head -n 1 "$files/nodes" | cut -d ' ' -f 1)
    node=$(head -n 1 "$files/nodes" | cut -d ' ' -f 2)
    umount "/mnt/$pxm"
    section "$pxm/take" take
done
section after cat /sys/devices/system/node/has_memory
section warnings sh -c "dmesg | grep -A 2 'cut here' || true"
"#;

/// Pages of a device's memory that the guest has filled with a mark.
type Marked = [u64; 2];

struct Found {
    report: Report,
    /// For each device.
    pages: [Marked; 2],
}

static FOUND: std::sync::OnceLock<[Marked; 2]> = std::sync::OnceLock::new();

static REPORT: SharedReport = SharedReport::new(|| {
    let Found { report, pages } = run()?;
    let _ = FOUND.set(pages);
    Ok(report)
});

fn run() -> Result<Found> {
    let simulated = [
        CoherentDevice::start(Options::default())?,
        CoherentDevice::start(Options::default())?,
    ];
    let script = format!(
        "NODE_SIZE={NODE_SIZE} FILE_MIB={}\n{SCRIPT}",
        FILE_SIZE >> 20
    );
    let initramfs = Initramfs::new(&script).module("coherent_memory");
    let cmdline = format!("{CMDLINE} memhp_default_state=online_movable");
    let mut nodes = vec![
        "guest_numa_id=0,cpus=[0-1],memory_zones=[mem0],hmat=[0@100:100:90000:90000]".to_owned(),
        "guest_numa_id=1".to_owned(),
    ];
    for device in &DEVICES {
        let [read, write, reads, writes] = device.performance;
        for id in device.domains.clone() {
            nodes.push(format!(
                "guest_numa_id={id},distances=[0@{}],hmat=[0@{read}:{write}:{reads}:{writes}]",
                device.distance
            ));
        }
    }
    let options = simulated.iter().zip(&DEVICES).map(|(simulated, device)| {
        format!(
            "socket={},guest_numa_ids=[{}-{}]",
            simulated.socket().display(),
            device.domains.start(),
            device.domains.end()
        )
    });
    let mut vmm = Vmm::boot(&initramfs, &cmdline)?
        .args(["--cpus", "boot=2", "--memory", "size=1G,shared=on"])
        .arg("--numa")
        .args(nodes)
        .arg("--user-device")
        .args(options)
        .timeout(Duration::from_secs(30))
        .spawn()?;
    vmm.wait_for_line("filled")?;
    let pages = [marked(&simulated[0])?, marked(&simulated[1])?];
    vmm.write("seen\n")?;
    let report = vmm.wait()?.report()?;
    Ok(Found { report, pages })
}

/// How many pages of what the first node was given have each device's mark.
fn marked(device: &CoherentDevice) -> Result<Marked> {
    let memory = device.memory()?;
    let mut marked = [0; 2];
    let mut page = vec![0; PAGE];
    for at in (0..NODE_SIZE).step_by(PAGE) {
        memory.read_exact_at(&mut page, at)?;
        for (device, count) in DEVICES.iter().zip(&mut marked) {
            *count += u64::from(page.iter().all(|byte| *byte == device.mark));
        }
    }
    Ok(marked)
}

fn section<'a>(report: &'a Report, device: &Device, name: &str) -> Result<&'a str> {
    let name = format!("{}/{name}", device.domains.start());
    Ok(report.text(&name)?.trim())
}

fn node(report: &Report, device: &Device) -> Result<u32> {
    let text = section(report, device, "node")?;
    text.parse().with_context(|| text.to_owned())
}

#[test]
fn each_device_has_its_own_nodes() -> Result<()> {
    let report = REPORT.get()?;
    assert_eq!(report.text("possible")?.trim(), "0-15");
    for device in &DEVICES {
        assert_eq!(section(report, device, "source")?, "dsd");
        let domains: Vec<String> = device.domains.clone().map(|id| id.to_string()).collect();
        assert_eq!(section(report, device, "domains")?, domains.join("\n"));
        // Ids without holes, the CPUs' first: Linux keeps them.
        assert_eq!(node(report, device)?, *device.domains.start());
        section(report, device, "give")?;
    }
    assert_eq!(report.text("has_memory")?.trim(), "0,2,10");
    Ok(())
}

#[test]
fn what_is_written_to_a_node_is_in_the_memory_of_its_device() -> Result<()> {
    REPORT.get()?;
    let pages = FOUND.get().context("nobody looked into the memory")?;
    let file = FILE_SIZE / PAGE as u64;
    assert_eq!(*pages, [[file, 0], [0, file]]);
    Ok(())
}

#[test]
fn distances_and_performance_are_those_of_each_device() -> Result<()> {
    let report = REPORT.get()?;
    let text = report.text("distances")?;
    // Columns are in the order of the numbers, lines in that of the names.
    let numbers = text.lines().filter_map(|line| {
        let (number, _) = line.strip_prefix("node")?.split_once('/')?;
        number.parse::<u32>().ok()
    });
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    let position = |node| numbers.iter().position(|number| *number == node);
    let from_the_cpus = text.lines().find_map(|line| line.strip_prefix("node0/"));
    let (_, distances) = from_the_cpus
        .and_then(|line| line.split_once(':'))
        .with_context(|| text.to_owned())?;
    let distances: Vec<&str> = distances.split_whitespace().collect();
    for device in &DEVICES {
        let node = node(report, device)?;
        let position = position(node).with_context(|| format!("no node {node}: {text}"))?;
        assert_eq!(distances[position], device.distance.to_string(), "{text}");
        let performance = section(report, device, "performance")?;
        let expected = device.performance.map(|value| value.to_string());
        assert_eq!(performance, expected.join("\n"));
    }
    Ok(())
}

#[test]
fn the_memory_of_both_goes_again() -> Result<()> {
    let report = REPORT.get()?;
    for device in &DEVICES {
        section(report, device, "take")?;
    }
    assert_eq!(report.text("after")?.trim(), "0");
    let warnings = report.text("warnings")?;
    ensure!(warnings.is_empty(), "{warnings}");
    Ok(())
}
