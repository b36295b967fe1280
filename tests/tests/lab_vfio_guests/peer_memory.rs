//! Memory of one device as the other's buffers: what a guest takes into a NUMA node as RAM is RAM to
//! a device of the host, too.
//!
//! A file lies in the memory. The guest swaps it out to the disk, which fetches the pages from there, and in
//! again, which has the disk put them there; for the file's policy allows no other memory.

use anyhow::{Context as _, Result, ensure};
use tests::coherent_device::Options;
use tests::passthrough::{HostDevice, PassedThrough};
use tests::{CMDLINE, CoherentDevice, Initramfs, Outcome, Report, Vmm};

use crate::{COMMANDS, device, text};

const NODE_SIZE: u64 = 128 << 20;
const FILE_SIZE: u64 = 24 << 20;
const PAGE: u64 = 4096;

/// Makes memory of the simulated device a node's; `node` is that of proximity domain 2.
const SIMULATED: &str = r#"
coherent=$(device 0x10de 0x2342)
insmod /lib/coherent_memory.ko
echo "$NODE_SIZE" >"$coherent/coherent_memory/add"
node=$(awk '$1 == 2 { print $2 }' "$coherent/coherent_memory/nodes")
"#;

/// The same for a memory device of the host.
const REAL: &str = r#"
memory=$(device 0x1af4 0x1110)
echo 1 >"$memory/enable"
insmod /lib/late_memory.ko pxm=2 "start=$(sed -n '3s/ .*//p' "$memory/resource")" "size=$NODE_SIZE"
node=$(dmesg | sed -n 's/.*late_memory: proximity domain 2 is node //p')
"#;

const SCRIPT: &str = r#"
section drivers modprobe nvme
section disk appears $disk
counters() {
    cat /proc/sys/vm/stat_refresh
    grep -E ' Shmem:' "/sys/devices/system/node/node$node/meminfo"
    grep -E '^pswp' /proc/vmstat
}

mkdir /mnt /groups
mount -t cgroup2 none /groups
echo +memory >/groups/cgroup.subtree_control
mkdir /groups/file
mount -t tmpfs -o "mpol=bind:$node" none /mnt
mkswap $disk >/dev/null
section swap swapon $disk
dd if=/dev/urandom of=/tmp/file bs=1M count="$FILE_MIB" 2>/dev/null
section original sh -c 'md5sum </tmp/file'
# What a group reclaims is what it has written.
sh -c 'echo $$ >/groups/file/cgroup.procs; cat /tmp/file >/mnt/file'
section there counters
echo "$((FILE_MIB + 4))M" >/groups/file/memory.reclaim 2>/dev/null
section out counters
section copy sh -c 'md5sum </mnt/file'
section in counters
section complaints sh -c "dmesg -r | grep -E '^<[0-4]>' | grep -iE 'nvme|swap|cut here' || true"
"#;

/// The file in the node goes to the disk and comes back through the page cache, and then by way of
/// programs whose buffers can be nowhere but in the node, without it.
const BUFFERS: &str = r#"
swapoff $disk
section buffered/write sh -c "dd if=/mnt/file of=$disk bs=1M conv=fsync 2>&1"
echo 3 >/proc/sys/vm/drop_caches
section buffered/read sh -c "dd if=$disk of=/mnt/again bs=1M count=$FILE_MIB 2>&1"
section buffered/copy sh -c "md5sum </mnt/again"
section buffered/there counters
dd if=/dev/zero of=$disk bs=1M count="$FILE_MIB" conv=fsync 2>/dev/null
umount /mnt
echo +cpuset >/groups/cgroup.subtree_control
mkdir /groups/buffers
echo "$node" >/groups/buffers/cpuset.mems
hits() { sed -n 's/^numa_hit /hits /p' "/sys/devices/system/node/node$node/numastat"; }
in_node() { sh -c "echo \$\$ >/groups/buffers/cgroup.procs; exec $1"; }
section direct/before hits
section direct/write in_node "dd if=/tmp/file of=$disk bs=8M oflag=direct"
section direct/written hits
section direct/read in_node "dd if=$disk of=/tmp/again bs=8M count=$((FILE_MIB / 8)) iflag=direct"
section direct/there hits
section direct/copy sh -c "md5sum </tmp/again"
"#;

/// A guest with the disk, a node without memory, and what `options` say; `give` gives the node memory,
/// and `more` is what it does in the end.
fn guest(give: &str, more: &str, options: &[&str]) -> Result<Outcome> {
    let script = format!(
        "NODE_SIZE={NODE_SIZE} FILE_MIB={}\n{COMMANDS}{give}{SCRIPT}{more}",
        FILE_SIZE >> 20
    );
    let initramfs = Initramfs::new(&script)
        .module("coherent_memory")
        .module("late_memory")
        .drivers();
    // Blocks that came online in another zone might never leave.
    let cmdline = format!("{CMDLINE} memhp_default_state=online_movable");
    Vmm::boot(&initramfs, &cmdline)?
        .args(["--memory", "size=512M,shared=on", "--numa"])
        .arg("guest_numa_id=0,cpus=[0],memory_zones=[mem0]")
        .arg("guest_numa_id=2")
        .args(["--device", &device(HostDevice::Nvme, "")?])
        .args(options)
        .run()
}

fn simulated(options: &[&str]) -> Result<Outcome> {
    let _host = PassedThrough::take(&[HostDevice::Nvme])?;
    let coherent = CoherentDevice::start(Options::default())?;
    let socket = coherent.socket().display();
    let device = format!("socket={socket},guest_numa_ids=[2]");
    let options = [&["--user-device", &device], options].concat();
    guest(SIMULATED, BUFFERS, &options)
}

/// A counter of a section: "Node 2 Shmem: 24576 kB" or "pswpin 12".
fn counter(report: &Report, section: &str, name: &str) -> Result<u64> {
    let text = report.text(section)?;
    let mut words = text.split_whitespace().skip_while(|word| *word != name);
    let value = words.nth(1).with_context(|| format!("no {name}: {text}"))?;
    Ok(value.parse()?)
}

/// The file went to the disk and came back.
fn check(report: &Report) -> Result<()> {
    report.text("swap")?;
    assert_eq!(counter(report, "there", "Shmem:")?, FILE_SIZE >> 10);
    assert_eq!(counter(report, "there", "pswpout")?, 0);
    let most = FILE_SIZE / PAGE * 3 / 4;
    let out = counter(report, "out", "pswpout")?;
    ensure!(out >= most, "{out}");
    let left = counter(report, "out", "Shmem:")?;
    // In KiB: a quarter.
    ensure!(left <= FILE_SIZE >> 12, "{left} kB");
    assert_eq!(text(report, "copy")?, text(report, "original")?);
    let came = counter(report, "in", "pswpin")?;
    ensure!(came >= most, "{came}");
    assert_eq!(counter(report, "in", "Shmem:")?, FILE_SIZE >> 10);
    assert_eq!(text(report, "complaints")?, "");
    Ok(())
}

/// What went through buffers in the node is what there was, and they were there.
fn check_buffers(report: &Report) -> Result<()> {
    for section in [
        "buffered/write",
        "buffered/read",
        "direct/write",
        "direct/read",
    ] {
        report.text(section)?;
    }
    let original = text(report, "original")?;
    assert_eq!(text(report, "direct/copy")?, original);
    assert_eq!(text(report, "buffered/copy")?, original);
    assert_eq!(counter(report, "buffered/there", "Shmem:")?, FILE_SIZE >> 9);
    // A buffer of 8 MiB.
    let hits = |section| counter(report, section, "hits");
    let buffer = (8 << 20) / PAGE;
    for (before, after) in [
        ("direct/before", "direct/written"),
        ("direct/written", "direct/there"),
    ] {
        let more = hits(after)? - hits(before)?;
        ensure!(more >= buffer, "{more} pages from {before} to {after}");
    }
    Ok(())
}

#[test]
fn a_disk_reaches_the_memory_of_a_simulated_device() -> Result<()> {
    let report = simulated(&[])?.report()?;
    check(&report)?;
    check_buffers(&report)
}

/// The IOMMU maps what vfio-pci lets be mapped, as it does RAM. On aarch64 this memory is not cached: Linux lets
/// guests map it as normal memory all the same, which is enough here.
#[test]
#[ignore = "the same with another device, run by scripts/test --full"]
fn a_disk_reaches_the_memory_of_a_device_of_the_host() -> Result<()> {
    // The memory cannot be reset without its neighbour, which is not the guest's.
    let _host =
        PassedThrough::take(&[HostDevice::Nvme, HostDevice::SharedMemory, HostDevice::Edu])?;
    let memory = device(HostDevice::SharedMemory, ",guest_numa_ids=[2]")?;
    check(&guest(REAL, "", &[&memory])?.report()?)
}

/// The switch does what it says, and the operator is told what that means: the disk cannot say that it did
/// not reach the memory, so that the guest gets something else back.
#[test]
#[ignore = "another guest for one switch, run by scripts/test --full"]
fn a_disk_that_may_not_reach_the_memory_does_not() -> Result<()> {
    let outcome = simulated(&["--platform", "vfio_p2p_dma=off"])?;
    let stderr = &outcome.stderr;
    ensure!(
        stderr.contains("other devices cannot reach the memory of device _vfio_user0"),
        "{stderr}"
    );
    let report = outcome.report()?;
    report.text("swap")?;
    assert_ne!(text(&report, "copy")?, text(&report, "original")?);
    Ok(())
}
