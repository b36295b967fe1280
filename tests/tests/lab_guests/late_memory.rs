//! Memory that comes to an empty NUMA node after boot and goes again, as a device's memory does.
//!
//! The memory is RAM that `mem=` makes Linux leave alone; the module `late_memory` adds it.

use anyhow::{Context as _, Result, ensure};
use tests::{CMDLINE, Initramfs, Report, SharedReport, Vmm};

/// RAM begins at 0 on x86_64 and at 1 GiB on aarch64. Linux gets the first GiB of it, and this is
/// what follows; at the end of RAM x86_64 has its ACPI tables.
const START: u64 = if cfg!(target_arch = "x86_64") {
    1 << 30
} else {
    2 << 30
};
const SIZE: u64 = 512 << 20;
/// Of the file that is written to the memory.
const FILE_SIZE: u64 = 100 << 20;

/// Gives the memory to one empty node after the other. Every section is named after its node.
const SCRIPT: &str = r#"
load() { insmod /lib/late_memory.ko "pxm=$1" "start=$START" "size=$SIZE"; }
performance() {
    for file in read_latency write_latency read_bandwidth write_bandwidth; do
        cat "node$1/access0/initiators/$file"
    done
}
tiers() { cat /sys/devices/virtual/memory_tiering/memory_tier*/nodelist; }
# Each CPU counts by itself until it is told to add it up.
counters() {
    cat /proc/sys/vm/stat_refresh
    grep -E ' (MemTotal|Shmem):' "node$1/meminfo"
}

mkdir /mnt
cd /sys/devices/system/node
# Linux's own memory holds the original.
dd if=/dev/urandom of=/tmp/file bs=1M count="$FILE_MIB" 2>/dev/null
section original sh -c 'md5sum </tmp/file'
section undeclared load 3
for node in 1 2; do
    section $node/possible cat possible
    section $node/before cat has_memory
    section $node/load load $node
    section $node/kernel sh -c "dmesg | grep -F 'late_memory: proximity' | tail -n 1"
    section $node/after cat has_memory
    section $node/range grep -F late_memory /proc/iomem
    section $node/zones sh -c "sort -u node$node/memory*/valid_zones"
    section $node/distances grep . node[0-9]*/distance
    section $node/performance performance $node
    section $node/tiers tiers
    mount -t tmpfs -o mpol=bind:$node none /mnt
    section $node/free counters $node
    cp /tmp/file /mnt
    section $node/used counters $node
    section $node/copy sh -c 'md5sum </mnt/file'
    umount /mnt
    section $node/unload rmmod late_memory
    section $node/removed cat has_memory
    section $node/ranges grep 'System RAM' /proc/iomem
done
section warnings sh -c "dmesg | grep -A 2 'cut here' || true"
"#;

static REPORT: SharedReport = SharedReport::new(|| {
    let script = format!(
        "START={START:#x} SIZE={SIZE:#x} FILE_MIB={}\n{SCRIPT}",
        FILE_SIZE >> 20
    );
    let initramfs = Initramfs::new(&script).module("late_memory");
    // Blocks that came online in another zone might never leave.
    let cmdline = format!("{CMDLINE} mem=1G memhp_default_state=online_movable");
    Vmm::boot(&initramfs, &cmdline)?
        .args(["--cpus", "boot=2", "--memory", "size=2G", "--numa"])
        .args([
            "guest_numa_id=0,cpus=[0-1],memory_zones=[mem0],hmat=[0@100:100:90000:90000]",
            "guest_numa_id=1,distances=[0@33]",
            "guest_numa_id=2,distances=[0@55],hmat=[0@300:350:40000:30000]",
        ])
        .run()?
        .report()
});

fn section<'a>(report: &'a Report, node: u32, name: &str) -> Result<&'a str> {
    Ok(report.text(&format!("{node}/{name}"))?.trim())
}

/// A counter of `meminfo` in bytes; its lines are "Node 1 MemTotal:  524288 kB".
fn counter(report: &Report, node: u32, moment: &str, name: &str) -> Result<u64> {
    let text = section(report, node, moment)?;
    let line = text.lines().find(|line| line.contains(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(3));
    Ok(kib.with_context(|| text.to_owned())?.parse::<u64>()? << 10)
}

/// The distance that Linux sees. Each line is "node0/distance:10 33": one number for each node
/// that is online, and the same nodes have lines.
fn distance(report: &Report, node: u32, from: u32, to: u32) -> Result<u32> {
    let text = section(report, node, "distances")?;
    let position = |node: u32| {
        let name = format!("node{node}/");
        text.lines().position(|line| line.starts_with(&name))
    };
    position(from)
        .zip(position(to))
        .and_then(|(from, to)| {
            let (_, distances) = text.lines().nth(from)?.split_once(':')?;
            distances.split_whitespace().nth(to)?.parse().ok()
        })
        .with_context(|| format!("no distance from {from} to {to} in {text}"))
}

#[test]
fn empty_nodes_are_possible_and_have_no_memory() -> Result<()> {
    let report = REPORT.get()?;
    for node in [1, 2] {
        assert_eq!(section(report, node, "possible")?, "0-2");
        assert_eq!(section(report, node, "before")?, "0");
    }
    Ok(())
}

#[test]
fn memory_comes_to_the_node_of_its_proximity_domain() -> Result<()> {
    let report = REPORT.get()?;
    for (node, with_memory) in [(1, "0-1"), (2, "0,2")] {
        section(report, node, "load")?;
        let kernel = section(report, node, "kernel")?;
        ensure!(
            kernel.ends_with(&format!("proximity domain {node} is node {node}")),
            "{kernel}"
        );
        assert_eq!(section(report, node, "after")?, with_memory);
        assert_eq!(
            section(report, node, "range")?,
            format!(
                "{START:08x}-{:08x} : System RAM (late_memory)",
                START + SIZE - 1
            )
        );
        assert_eq!(counter(report, node, "free", "MemTotal")?, SIZE);
        assert_eq!(section(report, node, "zones")?, "Movable");
    }
    Ok(())
}

/// Without a node of its own in the tables, memory of a new proximity domain has nowhere to go.
#[test]
fn an_undeclared_proximity_domain_takes_no_memory() -> Result<()> {
    let error = REPORT.get()?.text("undeclared").unwrap_err().to_string();
    ensure!(error.contains("No such device or address"), "{error}");
    Ok(())
}

#[test]
fn distances_are_those_of_the_slit() -> Result<()> {
    let report = REPORT.get()?;
    for (node, far) in [(1, 33), (2, 55)] {
        assert_eq!(distance(report, node, 0, 0)?, 10);
        assert_eq!(distance(report, node, 0, node)?, far);
        assert_eq!(distance(report, node, node, 0)?, far);
        assert_eq!(distance(report, node, node, node)?, 10);
    }
    Ok(())
}

/// Linux gives latencies in nanoseconds and bandwidths in MB/s, which is what `--numa` takes: they
/// come through unrounded. A node of which the HMAT says nothing shows zeros and counts as
/// ordinary memory.
#[test]
fn performance_is_that_of_the_hmat_and_makes_a_tier() -> Result<()> {
    let report = REPORT.get()?;
    assert_eq!(section(report, 2, "performance")?, "300\n350\n40000\n30000");
    let mut tiers: Vec<_> = section(report, 2, "tiers")?.lines().collect();
    tiers.sort_unstable();
    assert_eq!(tiers, ["0", "2"]);

    assert_eq!(section(report, 1, "performance")?, "0\n0\n0\n0");
    assert_eq!(section(report, 1, "tiers")?, "0-1");
    Ok(())
}

#[test]
fn a_file_bound_to_the_node_lies_in_its_memory() -> Result<()> {
    let report = REPORT.get()?;
    for node in [1, 2] {
        assert_eq!(counter(report, node, "free", "Shmem")?, 0);
        assert_eq!(counter(report, node, "used", "Shmem")?, FILE_SIZE);
        assert_eq!(
            section(report, node, "copy")?,
            report.text("original")?.trim()
        );
    }
    Ok(())
}

#[test]
fn memory_leaves_the_node_again() -> Result<()> {
    let report = REPORT.get()?;
    for node in [1, 2] {
        section(report, node, "unload")?;
        assert_eq!(section(report, node, "removed")?, "0");
        let ranges = section(report, node, "ranges")?;
        ensure!(!ranges.contains("late_memory"), "{ranges}");
    }
    Ok(())
}

/// Warnings of the kernel's own checks, that is, each of which begins with a line to cut at.
#[test]
fn the_kernel_warns_of_nothing() -> Result<()> {
    assert_eq!(REPORT.get()?.text("warnings")?, "");
    Ok(())
}
