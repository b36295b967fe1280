//! Images of disks, one for each VMM.

use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::command;

pub const MIB: usize = 1 << 20;
/// Bytes of a disk: those of the host's own (`scripts/lab-run`).
pub const SIZE: usize = 64 * MIB;
/// The host's own disk.
const HOST_DISK: &str = "/dev/nvme0n1";
const HOST_DISK_FACTS: &str = "/sys/block/nvme0n1";

/// Where the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In a file of a file system in memory, which io_uring leaves to its workers.
    Tmpfs,
    /// On the host's disk, through the page cache, where all of it is after the first runs.
    PageCache,
    /// On the host's disk, past the page cache.
    Direct,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tmpfs => "in tmpfs",
            Self::PageCache => "in the page cache of an NVMe disk",
            Self::Direct => "on an NVMe disk (O_DIRECT)",
        })
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's format; all clusters are there.
    Qcow2,
}

impl Format {
    /// Its name in options of both VMMs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An image for each VMM, of the same content.
pub struct Images {
    pub ours: PathBuf,
    pub other: PathBuf,
}

impl Store {
    /// Makes images in `folder`; nothing if the host has no such disk. The host's disk is one for
    /// both, under two names: what is in it is nobody's business.
    pub fn images(self, format: Format, folder: &Path) -> Result<Option<Images>> {
        if self != Self::Tmpfs {
            return host_disk(folder);
        }
        let [ours, other] = ["ours", "other"].map(|name| folder.join(name));
        for path in [&ours, &other] {
            // Of one that is there already, somebody may still have the lock.
            let _ = fs::remove_file(path);
            write(path, format).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Some(Images { ours, other }))
    }
}

fn host_disk(folder: &Path) -> Result<Option<Images>> {
    let says = |file| fs::read_to_string(Path::new(HOST_DISK_FACTS).join(file));
    // Only an emulated host's may be written to.
    if says("device/serial").unwrap_or_default().trim() != "lab" {
        return Ok(None);
    }
    let numbers = says("dev")?;
    let (major, minor) = numbers
        .trim()
        .split_once(':')
        .context("no device numbers")?;
    let other = folder.join("disk");
    if !other.exists() {
        // Each name has locks of its own.
        command("mknod", &[&other.display().to_string(), "b", major, minor])?;
    }
    let ours = PathBuf::from(HOST_DISK);
    Ok(Some(Images { ours, other }))
}

/// Bytes of a cluster of qcow2.
pub const CLUSTER: u64 = 64 << 10;

/// Writes an image without holes.
fn write(path: &Path, format: Format) -> Result<()> {
    let mut file = File::create(path)?;
    if format == Format::Qcow2 {
        file.write_all(&qcow2_metadata())?;
    }
    let block: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
    for _ in 0..SIZE / MIB {
        file.write_all(&block)?;
    }
    Ok(())
}

/// What stands before the data of a qcow2 image whose clusters are all there, in order: five clusters
/// (QEMU, docs/interop/qcow2.rst). Header, table of reference counts, reference counts, table of the
/// first level, table of the second.
fn qcow2_metadata() -> Vec<u8> {
    const METADATA: u64 = 5;
    // Reference counts are in use by exactly one, and this says so of entries of the tables.
    const COPIED: u64 = 1 << 63;
    let size = SIZE as u64;
    let clusters = size / CLUSTER;
    let mut bytes = Vec::new();
    let pad = |bytes: &mut Vec<u8>| {
        let end = (bytes.len() as u64).next_multiple_of(CLUSTER);
        bytes.resize(end as usize, 0);
    };
    bytes.extend(b"QFI\xfb");
    // Version; no backing file.
    bytes.extend(3_u32.to_be_bytes());
    bytes.extend([0; 12]);
    bytes.extend(CLUSTER.trailing_zeros().to_be_bytes());
    bytes.extend(size.to_be_bytes());
    // Not encrypted; one entry in the table of the first level.
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend((3 * CLUSTER).to_be_bytes());
    bytes.extend(CLUSTER.to_be_bytes());
    // One cluster of it; no snapshots, no features.
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend([0; 36]);
    // Counts of 16 bits; bytes of this header.
    bytes.extend(4_u32.to_be_bytes());
    bytes.extend(104_u32.to_be_bytes());
    pad(&mut bytes);
    bytes.extend((2 * CLUSTER).to_be_bytes());
    pad(&mut bytes);
    for _ in 0..METADATA + clusters {
        bytes.extend(1_u16.to_be_bytes());
    }
    pad(&mut bytes);
    bytes.extend(((4 * CLUSTER) | COPIED).to_be_bytes());
    pad(&mut bytes);
    for cluster in 0..clusters {
        bytes.extend((((METADATA + cluster) * CLUSTER) | COPIED).to_be_bytes());
    }
    pad(&mut bytes);
    bytes
}
