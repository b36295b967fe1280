//! Memory of a passed-through device as NUMA memory of the guest: the empty nodes that `--numa`
//! declares and a device owns take memory of the device's BAR 4.
//!
//! The device is the simulated one, whose memory is a file that the tests look into. The guest's
//! driver is the module `coherent_memory`.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::coherent_device::Options;
use tests::{CMDLINE, CoherentDevice, Initramfs, Report, SharedReport, Vmm};

const DEVICE_MEMORY: u64 = 512 << 20;
/// What two nodes get, and what is more than the rest.
const FIRST_SIZE: u64 = 128 << 20;
const SECOND_SIZE: u64 = 128 << 20;
const TOO_MUCH: u64 = 384 << 20;
/// The device's proximity domains.
const DOMAINS: std::ops::RangeInclusive<u32> = 2..=9;
const FAR: u32 = 40;

/// The file on the node: so many copies of a MiB that is made of these numbers, a line each. It takes
/// all of the node but what Linux keeps free.
const COPIES: u64 = 120;
const NUMBERS: std::ops::RangeInclusive<u32> = 1_000_000..=1_131_071;
const FILE_SIZE: u64 = COPIES << 20;
const PAGE: usize = 4096;

/// Where in its memory the device copies to; no node gets that.
const DMA_OFFSET: u64 = 500 << 20;
const VECTOR: u32 = 3;

/// Needs what [`constants`] says. `part` is the MiB that the file is copies of.
const SCRIPT: &str = r#"
for folder in /sys/bus/pci/devices/*; do
    [ "$(cat "$folder/vendor"):$(cat "$folder/device")" != 0x10de:0x2342 ] || device=$folder
done
files=$device/coherent_memory
counters() {
    cat /proc/sys/vm/stat_refresh
    grep -E ' (MemTotal|MemFree|Shmem):' "/sys/devices/system/node/node$1/meminfo"
}
# As "numactl -H" has it.
topology() {
    for folder in /sys/devices/system/node/node[0-9]*; do
        number=${folder##*/node}
        echo "node $number cpus: $(cat "$folder/cpulist")"
        echo "node $number size: $(awk '/MemTotal/ { print $4 }' "$folder/meminfo") kB"
        echo "node $number distances: $(cat "$folder/distance")"
    done
}
give() { echo "$1" >"$files/add"; }
take() { echo "$1" >"$files/remove"; }
# The node of a proximity domain.
node_of() { awk -v pxm="$1" '$1 == pxm { print $2 }' "$files/nodes"; }
copies() { i=0; while [ $i -lt "$COPIES" ]; do cat /tmp/part; i=$((i + 1)); done; }
dma() { echo "$1 $2 $3" >"$files/dma"; }

section possible cat /sys/devices/system/node/possible
section before/has_memory cat /sys/devices/system/node/has_memory
section load insmod /lib/coherent_memory.ko
section kernel sh -c "dmesg | grep 'coherent_memory.*proximity domains'"
section source cat "$files/source"
section bar cat "$files/coherent_memory"
section before/nodes cat "$files/nodes"
section before/topology topology

section interrupts/before cat "$files/interrupts"
echo "$VECTOR" >"$files/ring"
sleep 1
section interrupts/after cat "$files/interrupts"

seq "$FIRST" "$LAST" >/tmp/part
bar=$(cut -d ' ' -f 1 "$files/coherent_memory")
buffer=$(cat "$files/buffer_address")
head -c 4096 /tmp/part >"$files/buffer"
section dma/to_device dma "$buffer" $((bar + DMA_OFFSET)) 4096
section dma/from_device dma $((bar + DMA_OFFSET)) $((buffer + 8192)) 4096
section dma/nowhere dma 0xffffffff000 $((bar + DMA_OFFSET)) 4096
section dma/original sh -c "head -c 4096 /tmp/part | md5sum"
section dma/copy sh -c "dd if=$files/buffer bs=4096 skip=2 count=1 2>/dev/null | md5sum"

first=$(node_of 2)
second=$(node_of 3)
section give/first give "$FIRST_SIZE"
section added/nodes cat "$files/nodes"
section added/topology topology
section added/range grep -F '(coherent_memory)' /proc/iomem
section added/zones sh -c "sort -u /sys/devices/system/node/node$first/memory*/valid_zones"
section give/odd give 4096
section give/second give "$SECOND_SIZE"
section give/too_much give "$TOO_MUCH"
section both/nodes cat "$files/nodes"
section both/has_memory cat /sys/devices/system/node/has_memory

mkdir /mnt
mount -t tmpfs -o "mpol=bind:$first" none /mnt
section free counters "$first"
copies >/mnt/file
section used counters "$first"
sum_of_copies() { copies | md5sum; }
section file/original sum_of_copies
section file/copy sh -c "md5sum </mnt/file"
# Until the test has looked into the device's memory.
echo filled
read -r answer </dev/console
umount /mnt

section take/first take "$first"
section take/again take "$first"
section take/second take "$second"
section after/nodes cat "$files/nodes"
section after/has_memory cat /sys/devices/system/node/has_memory
section after/ranges grep 'System RAM' /proc/iomem
# What was taken away can be given again, to the same node.
section again/give give "$FIRST_SIZE"
section again/nodes cat "$files/nodes"
section unload rmmod coherent_memory
section unload/has_memory cat /sys/devices/system/node/has_memory
section warnings sh -c "dmesg | grep -A 2 'cut here' || true"
"#;

/// What the test found in the device's memory while the guest had the file open.
struct Found {
    /// How often each page of the file is there.
    pages: Vec<u64>,
    /// What the device copied there by itself.
    dma: Vec<u8>,
}

static FOUND: OnceLock<Found> = OnceLock::new();

static REPORT: SharedReport = SharedReport::new(|| {
    let device = CoherentDevice::start(Options {
        memory: DEVICE_MEMORY,
        ..Options::default()
    })?;
    let initramfs = Initramfs::new(&(constants() + SCRIPT)).module("coherent_memory");
    // Blocks that came online in another zone might never leave.
    let cmdline = format!("{CMDLINE} memhp_default_state=online_movable");
    let mut nodes = vec![
        "guest_numa_id=0,cpus=[0-1],memory_zones=[mem0]".to_owned(),
        "guest_numa_id=1".to_owned(),
    ];
    nodes.extend(DOMAINS.map(|id| format!("guest_numa_id={id},distances=[0@{FAR}]")));
    let user_device = format!(
        "socket={},guest_numa_ids=[{}-{}]",
        device.socket().display(),
        DOMAINS.start(),
        DOMAINS.end()
    );
    let mut vmm = Vmm::boot(&initramfs, &cmdline)?
        .args(["--cpus", "boot=2", "--memory", "size=1G,shared=on"])
        .arg("--numa")
        .args(nodes)
        .args(["--user-device", &user_device])
        .timeout(Duration::from_secs(30))
        .spawn()?;
    vmm.wait_for_line("filled")?;
    let found = look_into(&device)?;
    vmm.write("seen\n")?;
    let report = vmm.wait()?.report()?;
    // The boot runs once.
    let _ = FOUND.set(found);
    Ok(report)
});

/// Variables that the script starts with.
fn constants() -> String {
    format!(
        "FIRST_SIZE={FIRST_SIZE} SECOND_SIZE={SECOND_SIZE} TOO_MUCH={TOO_MUCH} COPIES={COPIES} VECTOR={VECTOR}\n\
         DMA_OFFSET={DMA_OFFSET} FIRST={} LAST={}\n",
        NUMBERS.start(),
        NUMBERS.end()
    )
}

/// The MiB that the file is copies of.
fn part() -> Vec<u8> {
    let lines: String = NUMBERS.map(|number| format!("{number}\n")).collect();
    lines.into_bytes()
}

fn look_into(device: &CoherentDevice) -> Result<Found> {
    let part = part();
    let mut memory = device.memory()?;
    let mut dma = vec![0; PAGE];
    memory.read_exact_at(&mut dma, DMA_OFFSET)?;

    // Nodes have what is before, where the file is; the copy by DMA would be counted else.
    let numbers = part.chunks(PAGE).zip(0..);
    let numbers: HashMap<_, usize> = numbers.collect();
    let mut pages = vec![0; numbers.len()];
    let mut page = vec![0; PAGE];
    for _ in 0..(FIRST_SIZE / PAGE as u64) {
        memory.read_exact(&mut page)?;
        if let Some(number) = numbers.get(page.as_slice()) {
            pages[*number] += 1;
        }
    }
    Ok(Found { pages, dma })
}

fn found() -> Result<&'static Found> {
    REPORT.get()?;
    FOUND.get().context("nobody looked into the memory")
}

fn text<'a>(report: &'a Report, name: &str) -> Result<&'a str> {
    Ok(report.text(name)?.trim())
}

/// A line of the driver's list: a proximity domain, its node and what the node was given.
#[derive(Debug, PartialEq, Eq)]
struct Domain {
    pxm: u32,
    node: u32,
    start: u64,
    size: u64,
}

/// The driver's list, whose lines are "2 2 0x1554c0000000 268435456".
fn domains(report: &Report, name: &str) -> Result<Vec<Domain>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some(Domain {
            pxm: words.next()?.parse().ok()?,
            node: words.next()?.parse().ok()?,
            start: hexadecimal(words.next()?)?,
            size: words.next()?.parse().ok()?,
        })
    };
    let text = report.text(name)?;
    text.lines()
        .map(|text| line(text).with_context(|| text.to_owned()))
        .collect()
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Address and length of BAR 4.
fn bar(report: &Report) -> Result<(u64, u64)> {
    let text = text(report, "bar")?;
    text.split_once(' ')
        .and_then(|(start, length)| Some((hexadecimal(start)?, length.parse().ok()?)))
        .with_context(|| text.to_owned())
}

/// What a node was given.
fn given(report: &Report, name: &str) -> Result<Vec<(u32, u64, u64)>> {
    let domains = domains(report, name)?.into_iter();
    Ok(domains
        .filter(|domain| domain.size > 0)
        .map(|domain| (domain.pxm, domain.start, domain.size))
        .collect())
}

/// A line of the topology after "node N <what>: "; `None` if the node is not online.
fn topology<'a>(
    report: &'a Report,
    moment: &str,
    node: u32,
    what: &str,
) -> Result<Option<&'a str>> {
    let prefix = format!("node {node} {what}: ");
    let text = report.text(&format!("{moment}/topology"))?;
    Ok(text.lines().find_map(|line| line.strip_prefix(&prefix)))
}

/// A counter of `meminfo` in bytes; its lines are "Node 2 MemTotal:  262144 kB".
fn counter(report: &Report, moment: &str, name: &str) -> Result<u64> {
    let text = report.text(moment)?;
    let line = text.lines().find(|line| line.contains(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(3));
    Ok(kib.with_context(|| text.to_owned())?.parse::<u64>()? << 10)
}

#[test]
fn the_driver_finds_the_nodes_of_its_device() -> Result<()> {
    let report = REPORT.get()?;
    assert_eq!(text(report, "possible")?, "0-9");
    assert_eq!(text(report, "before/has_memory")?, "0");
    report.text("load")?;
    // Device 1 and upwards have their nodes from the _DSD alone.
    assert_eq!(text(report, "source")?, "dsd");
    let kernel = text(report, "kernel")?;
    ensure!(
        kernel.ends_with("proximity domains from device properties: 2 3 4 5 6 7 8 9"),
        "{kernel}"
    );
    let domains = domains(report, "before/nodes")?;
    let pxms: Vec<_> = domains.iter().map(|domain| domain.pxm).collect();
    assert_eq!(pxms, Vec::from_iter(DOMAINS));
    // Each has a node of its own, and none has memory yet.
    let mut nodes: Vec<_> = domains.iter().map(|domain| domain.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    assert_eq!(nodes.len(), domains.len());
    ensure!(!nodes.contains(&0));
    assert_eq!(given(report, "before/nodes")?, []);
    for node in nodes {
        let size = topology(report, "before", node, "size")?;
        ensure!(size.is_none_or(|size| size == "0 kB"), "{size:?}");
    }
    let (start, length) = bar(report)?;
    assert_eq!(length, DEVICE_MEMORY);
    ensure!(start.is_multiple_of(DEVICE_MEMORY), "{start:#x}");
    Ok(())
}

#[test]
fn memory_of_the_device_comes_to_its_lowest_free_nodes() -> Result<()> {
    let report = REPORT.get()?;
    let (start, _) = bar(report)?;
    report.text("give/first")?;
    assert_eq!(given(report, "added/nodes")?, [(2, start, FIRST_SIZE)]);
    assert_eq!(
        text(report, "added/range")?,
        format!(
            "{start:08x}-{:08x} : System RAM (coherent_memory)",
            start + FIRST_SIZE - 1
        )
    );
    assert_eq!(text(report, "added/zones")?, "Movable");
    let first = first_node(report)?;
    assert_eq!(
        topology(report, "added", first, "size")?,
        Some(format!("{} kB", FIRST_SIZE >> 10).as_str())
    );
    assert_eq!(topology(report, "added", first, "cpus")?, Some(""));

    report.text("give/second")?;
    assert_eq!(
        given(report, "both/nodes")?,
        [(2, start, FIRST_SIZE), (3, start + FIRST_SIZE, SECOND_SIZE)]
    );
    Ok(())
}

#[test]
fn memory_that_there_is_not_comes_to_no_node() -> Result<()> {
    let report = REPORT.get()?;
    for (section, why) in [
        ("give/odd", "Invalid argument"),
        ("give/too_much", "No space left"),
        ("take/again", "No such file"),
    ] {
        let error = report.text(section).unwrap_err().to_string();
        ensure!(error.contains(why), "{section}: {error}");
    }
    Ok(())
}

/// The node of proximity domain 2.
fn first_node(report: &Report) -> Result<u32> {
    let domains = domains(report, "before/nodes")?;
    let first = domains.iter().find(|domain| domain.pxm == *DOMAINS.start());
    Ok(first.context("no such domain")?.node)
}

/// Distances are those of `--numa`: each line has one for each node that is online, and the same nodes
/// have lines.
#[test]
fn distances_are_those_of_the_slit() -> Result<()> {
    let report = REPORT.get()?;
    let first = first_node(report)?;
    let text = report.text("added/topology")?;
    let lines: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("node ")?.split_once(" distances: "))
        .collect();
    let position = |node: u32| {
        let node = node.to_string();
        lines
            .iter()
            .position(|(number, _)| *number == node)
            .with_context(|| format!("node {node} is not online: {text}"))
    };
    let distance = |from: u32, to: u32| -> Result<u32> {
        let (_, distances) = lines[position(from)?];
        let distance = distances.split_whitespace().nth(position(to)?);
        Ok(distance.with_context(|| distances.to_owned())?.parse()?)
    };
    assert_eq!(distance(0, first)?, FAR);
    assert_eq!(distance(first, 0)?, FAR);
    assert_eq!(distance(first, first)?, 10);
    assert_eq!(distance(0, 0)?, 10);
    Ok(())
}

#[test]
fn a_file_bound_to_the_node_lies_in_the_memory_of_the_device() -> Result<()> {
    let report = REPORT.get()?;
    assert_eq!(counter(report, "free", "Shmem")?, 0);
    assert_eq!(counter(report, "used", "Shmem")?, FILE_SIZE);
    ensure!(counter(report, "free", "MemFree")? > FILE_SIZE);
    assert_eq!(text(report, "file/copy")?, text(report, "file/original")?);
    // Seen from outside: each page as often as the file has it.
    assert_eq!(found()?.pages, vec![COPIES; (1 << 20) / PAGE]);
    Ok(())
}

#[test]
fn the_memory_goes_again_and_can_come_back() -> Result<()> {
    let report = REPORT.get()?;
    report.text("take/first")?;
    report.text("take/second")?;
    assert_eq!(given(report, "after/nodes")?, []);
    assert_eq!(text(report, "after/has_memory")?, "0");
    let ranges = text(report, "after/ranges")?;
    ensure!(!ranges.contains("coherent_memory"), "{ranges}");

    report.text("again/give")?;
    assert_eq!(given(report, "again/nodes")?, given(report, "added/nodes")?);
    report.text("unload")?;
    assert_eq!(text(report, "unload/has_memory")?, "0");
    Ok(())
}

#[test]
fn the_device_interrupts_by_the_vector_that_rang() -> Result<()> {
    let report = REPORT.get()?;
    let counts = |name| -> Result<Vec<&str>> { Ok(report.text(name)?.lines().collect()) };
    let mut expected = ["0 0", "1 0", "2 0", "3 0", "4 0", "5 0", "6 0", "7 0"];
    assert_eq!(counts("interrupts/before")?, expected);
    expected[VECTOR as usize] = "3 1";
    assert_eq!(counts("interrupts/after")?, expected);
    Ok(())
}

#[test]
fn the_device_reaches_ram_of_the_guest() -> Result<()> {
    let report = REPORT.get()?;
    report.text("dma/to_device")?;
    assert_eq!(found()?.dma, part()[..PAGE]);
    report.text("dma/from_device")?;
    assert_eq!(text(report, "dma/copy")?, text(report, "dma/original")?);
    let error = report.text("dma/nowhere").unwrap_err().to_string();
    ensure!(error.contains("Bad address"), "{error}");
    Ok(())
}

/// Warnings of the kernel's own checks, that is, each of which begins with a line to cut at.
#[test]
fn the_kernel_warns_of_nothing() -> Result<()> {
    assert_eq!(REPORT.get()?.text("warnings")?, "");
    Ok(())
}

/// Copies through the first of two devices: from its memory to that of the second, and back to elsewhere.
const PEERS: &str = r#"
set --
for folder in /sys/bus/pci/devices/*; do
    [ "$(cat "$folder/vendor"):$(cat "$folder/device")" != 0x10de:0x2342 ] || set -- "$@" "$folder"
done
insmod /lib/coherent_memory.ko
mine=$(cut -d ' ' -f 1 "$1/coherent_memory/coherent_memory")
other=$(cut -d ' ' -f 1 "$2/coherent_memory/coherent_memory")
dma() { echo "$1 $2 $3" >"$files/dma"; }
files=$1/coherent_memory
section there dma $((mine + FROM)) $((other + TO)) 4096
section back dma $((other + TO)) $((mine + TO)) 4096
"#;

/// What a guest may use as its memory is memory to every device.
#[test]
fn devices_reach_the_memory_of_each_other() -> Result<()> {
    const FROM: u64 = 3 << 20;
    const TO: u64 = 300 << 20;
    let devices = [
        CoherentDevice::start(Options::default())?,
        CoherentDevice::start(Options::default())?,
    ];
    let memories = [devices[0].memory()?, devices[1].memory()?];
    // Each has something to send, so that it does not matter which of them the guest finds first.
    for (memory, byte) in memories.iter().zip([0x11, 0x22]) {
        memory.write_all_at(&[byte; PAGE], FROM)?;
    }
    let script = format!("FROM={FROM} TO={TO}\n{PEERS}");
    let initramfs = Initramfs::new(&script).module("coherent_memory");
    let report = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--memory", "size=512M,shared=on", "--user-device"])
        .args(
            devices
                .each_ref()
                .map(|device| format!("socket={}", device.socket().display())),
        )
        .run()?
        .report()?;
    report.text("there")?;
    report.text("back")?;
    let mut seen = [0, 0];
    for (memory, seen) in memories.iter().zip(&mut seen) {
        let mut page = vec![0; PAGE];
        memory.read_exact_at(&mut page, TO)?;
        *seen = page[0];
        assert_eq!(page, vec![*seen; PAGE]);
    }
    ensure!(seen == [0x11; 2] || seen == [0x22; 2], "{seen:x?}");
    Ok(())
}
