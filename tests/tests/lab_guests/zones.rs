//! Memory zones: where the host takes them from, and what guests make of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tests::{
    CMDLINE, Hugepages, Initramfs, Mapping, Placement, RunningVmm, Vmm, mappings, placements,
};
use vmm::machine::host_memory;

use crate::bad_input::{refused, with};

const MIB: u64 = 1 << 20;

/// RAM of the zones `zones`, each as `--memory-zone` takes it.
fn in_zones(vmm: Vmm, zones: &[&str]) -> Vmm {
    let vmm = vmm.args(["--memory", "size=0"]);
    zones
        .iter()
        .fold(vmm, |vmm, zone| vmm.args(["--memory-zone", zone]))
}

/// A guest whose kernel has said its first words.
fn started(zones: &[&str]) -> Result<RunningVmm> {
    let vmm = in_zones(crate::early_guest()?, zones).spawn()?;
    vmm.wait_for_line("Linux version")?;
    Ok(vmm)
}

fn end(vmm: RunningVmm) -> Result<()> {
    vmm.signal("TERM")?;
    vmm.wait()?.success()?;
    Ok(())
}

/// Two nodes of the host: both the same where it has but one.
fn nodes() -> Result<[u32; 2]> {
    let nodes = host_memory().numa_nodes;
    let (first, last) = nodes.first().zip(nodes.last()).context("no NUMA node")?;
    Ok([*first, *last])
}

/// Resident bytes of the memory that is bound to `node`: all of it has to be there.
fn bound_to(placements: &[Placement], node: u32) -> Result<u64> {
    let policy = format!("bind:{node}");
    let bound = placements.iter().filter(|found| found.policy == policy);
    let mut total = 0;
    for Placement { policy, nodes } in bound {
        for (at, bytes) in nodes {
            ensure!(*at == node, "{bytes:#x} bytes of {policy} are on node {at}");
            total += bytes;
        }
    }
    Ok(total)
}

/// A folder in memory, since files on disks have no memory policy.
fn folder() -> Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").context("cannot make a folder in /dev/shm")
}

/// A file system that is unmounted when this is dropped.
struct Mounted(TempDir);

impl Mounted {
    fn new(kind: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        mount(&["-t", kind, kind], folder.path())?;
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn mount(arguments: &[&str], folder: &Path) -> Result<()> {
    let status = Command::new("mount").args(arguments).arg(folder).status();
    let status = status.context("cannot start mount")?;
    ensure!(status.success(), "mount {arguments:?} failed: {status}");
    Ok(())
}

/// The mappings of `path`, by their offsets.
fn mappings_of(vmm: &RunningVmm, path: &Path) -> Result<Vec<Mapping>> {
    let name = path.to_str().context("a path that is no text")?;
    let mut found = mappings(vmm.pid())?;
    found.retain(|mapping| mapping.name.starts_with(name));
    found.sort_by_key(|mapping| mapping.offset);
    Ok(found)
}

#[test]
fn zones_are_bound_to_nodes_of_the_host() -> Result<()> {
    let [first, last] = nodes()?;
    let vmm = started(&[
        &format!("id=near,size=96M,prefault=on,host_numa_node={first}"),
        &format!("id=far,size=160M,prefault=on,shared=on,host_numa_node={last}"),
    ])?;
    let found = placements(vmm.pid())?;
    if first == last {
        assert_eq!(bound_to(&found, first)?, 256 * MIB);
    } else {
        assert_eq!(bound_to(&found, first)?, 96 * MIB);
        assert_eq!(bound_to(&found, last)?, 160 * MIB);
    }
    end(vmm)
}

/// Tables and kernel are written before the guest asks for anything.
#[test]
fn what_is_written_before_the_start_is_bound_too() -> Result<()> {
    let [_, last] = nodes()?;
    let vmm = started(&[&format!("id=far,size=256M,host_numa_node={last}")])?;
    let resident = bound_to(&placements(vmm.pid())?, last)?;
    ensure!(
        (MIB..256 * MIB).contains(&resident),
        "{resident:#x} bytes are there"
    );
    end(vmm)
}

#[test]
fn a_file_that_was_elsewhere_is_moved() -> Result<()> {
    let folder = folder()?;
    let path = folder.path().join("ram");
    fs::write(&path, vec![0xa5; 128 << 20])?;
    let [first, last] = nodes()?;
    for node in [last, first] {
        let vmm = started(&[&format!(
            "id=far,size=256M,shared=on,prefault=on,file={},host_numa_node={node}",
            path.display()
        )])?;
        assert_eq!(bound_to(&placements(vmm.pid())?, node)?, 256 * MIB);
        end(vmm)?;
    }
    Ok(())
}

/// Where the guest says that its kernel is.
fn kernel_range(iomem: &str) -> Result<(u64, u64)> {
    let mut ranges = Vec::new();
    for line in iomem.lines().filter(|line| line.contains("Kernel ")) {
        let (range, _) = line.trim().split_once(' ').context("no range")?;
        let (start, end) = range.split_once('-').context("no end")?;
        ranges.push(u64::from_str_radix(start, 16)?);
        ranges.push(u64::from_str_radix(end, 16)?);
    }
    let (start, end) = ranges
        .iter()
        .min()
        .zip(ranges.iter().max())
        .context(iomem.to_owned())?;
    Ok((*start, *end))
}

/// A kernel that begins in one zone and ends in the next, over the remains of something else.
#[test]
fn a_guest_runs_in_files() -> Result<()> {
    const BOUNDARY: u64 = if cfg!(target_arch = "x86_64") {
        32 << 20
    } else {
        (1 << 30) + (32 << 20)
    };
    const MARK: &str = "mark_of_this_guest";
    let folder = folder()?;
    let path = folder.path().join("ram");
    // Shorter than its zone: it grows.
    fs::write(&path, vec![0xa5; 16 << 20])?;
    let zones = [
        &format!("id=a,size=32M,shared=on,file={}", path.display()),
        &format!("id=b,size=480M,file={}", folder.path().display()),
    ];
    let script = "section iomem cat /proc/iomem\nsection memory head -n 1 /proc/meminfo";
    let vmm = Vmm::boot(&Initramfs::new(script), &format!("{CMDLINE} {MARK}"))?;
    let report = in_zones(vmm, &zones.map(String::as_str)).run()?.report()?;
    let (start, end) = kernel_range(report.text("iomem")?)?;
    ensure!(
        start < BOUNDARY && BOUNDARY < end,
        "the kernel is at {start:#x} to {end:#x}"
    );
    let memory = report.text("memory")?.split_whitespace().nth(1);
    let memory = memory.context("no size")?.parse::<u64>()? / 1024;
    ensure!((400..512).contains(&memory), "{memory} MiB of RAM");

    let contents = fs::read(&path)?;
    assert_eq!(contents.len(), 32 << 20);
    let mut windows = contents.windows(MARK.len());
    ensure!(
        windows.any(|window| window == MARK.as_bytes()),
        "the guest's command line is not in the file"
    );
    let names = fs::read_dir(folder.path())?.map(|entry| Ok(entry?.path()));
    assert_eq!(names.collect::<Result<Vec<PathBuf>>>()?, [path]);
    Ok(())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_zone_goes_on_above_the_32_bit_hole() -> Result<()> {
    const GIB: u64 = 1 << 30;
    let folder = folder()?;
    let path = folder.path().join("ram");
    File::create(&path)?;
    let zone = format!("id=b,size=3G,shared=on,file={}", path.display());
    let script = "section iomem cat /proc/iomem
        section wait sh -c 'echo up; read line'";
    let mut vmm = in_zones(crate::guest(script)?, &["id=a,size=1G", &zone]).spawn()?;
    vmm.wait_for_line("up")?;
    let pieces = mappings_of(&vmm, &path)?;
    let pieces: Vec<(u64, u64)> = pieces
        .iter()
        .map(|piece| (piece.offset, piece.size))
        .collect();
    assert_eq!(pieces, [(0, 2 * GIB), (2 * GIB, GIB)]);
    vmm.write("\n")?;
    let report = vmm.wait()?.report()?;
    let iomem = report.text("iomem")?;
    ensure!(
        iomem.contains("\n100000000-13fffffff : System RAM"),
        "{iomem}"
    );
    Ok(())
}

#[test]
fn huge_pages_come_from_the_zones_that_ask() -> Result<()> {
    let [_, last] = nodes()?;
    // Half of them on each of two nodes.
    let pool = Hugepages::reserve(128)?;
    let vmm = started(&[
        "id=small,size=64M",
        &format!("id=huge,size=96M,hugepages=on,prefault=on,host_numa_node={last}"),
    ])?;
    assert_eq!(pool.free()?, 128 - 48);
    assert_eq!(bound_to(&placements(vmm.pid())?, last)?, 96 * MIB);
    end(vmm)?;

    let mounted = Mounted::new("hugetlbfs")?;
    let zone = format!(
        "id=huge,size=256M,prefault=on,file={}",
        mounted.path().display()
    );
    let vmm = started(&[&zone])?;
    assert_eq!(pool.free()?, 0);
    let pieces = mappings_of(&vmm, mounted.path())?;
    let huge: u64 = pieces.iter().map(|piece| piece.hugetlb).sum();
    assert_eq!(huge, 256 * MIB);
    end(vmm)?;
    assert_eq!(pool.free()?, 128);

    let odd = in_zones(with(&[])?, &["id=odd,size=257M,hugepages=on"]);
    let words = ["--memory-zone id=odd", "hugepages=on", "0x200000 bytes"];
    refused(odd, &words)?;
    let displaced = in_zones(with(&[])?, &["id=odd,size=65M", &zone]);
    let file = format!("file={}", mounted.path().display());
    refused(
        displaced,
        &["--memory-zone id=huge", &file, "0x200000 bytes"],
    )
}

#[test]
fn zones_that_the_host_cannot_give() -> Result<()> {
    let zone =
        |keys: &str| with(&[]).map(|vmm| in_zones(vmm, &[&format!("id=far,size=1G,{keys}")]));
    let option = "--memory-zone id=far";
    refused(
        zone("host_numa_node=1000")?,
        &[option, "host_numa_node=1000"],
    )?;
    refused(
        zone("file=/nonexistent/ram")?,
        &[option, "file=/nonexistent/ram", "No such file"],
    )?;
    refused(
        zone("file=/dev/zero")?,
        &[
            option,
            "file=/dev/zero",
            "neither a regular file nor a folder",
        ],
    )?;
    let mounted = Mounted::new("tmpfs")?;
    let path = mounted.path().join("ram");
    File::create(&path)?;
    mount(&["-o", "remount,size=16M"], mounted.path())?;
    let full = format!("file={},shared=on,prefault=on", path.display());
    refused(zone(&full)?, &[option, "prefault=on", "Bad address"])?;
    mount(&["-o", "remount,ro"], mounted.path())?;
    for path in [&path, mounted.path()] {
        let file = format!("file={}", path.display());
        refused(zone(&file)?, &[option, &file, "Read-only file system"])?;
    }
    Ok(())
}

/// All that a device tree can say of them.
#[test]
#[cfg(target_arch = "aarch64")]
fn a_device_tree_tells_of_nodes() -> Result<()> {
    let script = "for node in 0 1; do
            cd /sys/devices/system/node/node$node
            section cpus$node cat cpulist
            section distance$node cat distance
            section memory$node grep MemTotal meminfo
        done
        section nodes cat /sys/devices/system/node/has_memory";
    let zones = ["id=a,size=256M", "id=b,size=384M", "id=c,size=128M"];
    let report = in_zones(crate::guest(script)?, &zones)
        .args(["--cpus", "boot=3", "--platform", "acpi=off"])
        .args(["--numa", "guest_numa_id=0,cpus=[0,2],memory_zones=[a,c]"])
        .args([
            "--numa",
            "guest_numa_id=1,cpus=[1],memory_zones=[b],distances=[0@31]",
        ])
        .run()?
        .report()?;
    let text = |name: &str| report.text(name).map(str::trim);
    assert_eq!(text("nodes")?, "0-1");
    assert_eq!((text("cpus0")?, text("cpus1")?), ("0,2", "1"));
    let distances = (text("distance0")?, text("distance1")?);
    assert_eq!(distances, ("10 31", "31 10"));
    // Kernel and initramfs are in node 0.
    for (name, sizes) in [("memory0", 256..384), ("memory1", 368..385)] {
        let size = text(name)?.split_whitespace().nth(3).context("no size")?;
        let size = size.parse::<u64>()? / 1024;
        ensure!(sizes.contains(&size), "{name}: {size} MiB");
    }
    Ok(())
}
