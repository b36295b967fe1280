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

/// A guest with the disk, a node without memory, and what `options` say; `give` gives the node memory.
fn guest(give: &str, options: &[&str]) -> Result<Outcome> {
    let script = format!(
        "NODE_SIZE={NODE_SIZE} FILE_MIB={}\n{COMMANDS}{give}{SCRIPT}",
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
    guest(SIMULATED, &options)
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

#[test]
fn a_disk_reaches_the_memory_of_a_simulated_device() -> Result<()> {
    check(&simulated(&[])?.report()?)
}

/// The IOMMU maps what vfio-pci lets be mapped, as it does RAM. On aarch64 this memory is not cached: Linux lets
/// guests map it as normal memory all the same, which is enough here.
#[test]
fn a_disk_reaches_the_memory_of_a_device_of_the_host() -> Result<()> {
    // The memory cannot be reset without its neighbour, which is not the guest's.
    let _host =
        PassedThrough::take(&[HostDevice::Nvme, HostDevice::SharedMemory, HostDevice::Edu])?;
    let memory = device(HostDevice::SharedMemory, ",guest_numa_ids=[2]")?;
    check(&guest(REAL, &[&memory])?.report()?)
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
