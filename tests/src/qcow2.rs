//! qcow2 images, made and looked at where there is no `qemu-img` (QEMU's docs/interop/qcow2.rst): version 3,
//! clusters of 64 KiB, refcounts of 16 bits.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

const CLUSTER: u64 = 64 << 10;
/// Bytes of the disk that one L2 table is for.
const PER_L2: u64 = CLUSTER / 8 * CLUSTER;
/// Clusters that one refcount block is for.
const PER_BLOCK: u64 = CLUSTER / 2;
const ADDRESS: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster has one reference, from where this stands.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// Makes an image of a disk of so many bytes, perhaps based on a file of the same folder in a format.
///
/// # Errors
/// It cannot be written, or the disk needs more than one cluster of L1 table.
pub fn create(path: &Path, size: u64, based_on: Option<(&str, &str)>) -> Result<()> {
    let tables = size.div_ceil(PER_L2);
    ensure!(tables <= CLUSTER / 8, "a disk of {size} bytes is too large");
    let (name, format) = based_on.unwrap_or_default();
    let mut header = b"QFI\xfb".to_vec();
    let mut put32 = |value: u32| header.extend(value.to_be_bytes());
    let extension = format.len().next_multiple_of(8) as u32 + 16;
    let at = if name.is_empty() { 0 } else { 104 + extension };
    // Version, name, bits of a cluster, size, no encryption, L1 table.
    for value in [
        3,
        0,
        at,
        name.len() as u32,
        16,
        (size >> 32) as u32,
        size as u32,
        0,
        tables as u32,
    ] {
        put32(value);
    }
    // Where the L1 table is, where the table of refcount blocks, its clusters, and no snapshots.
    for value in [0, 3 * CLUSTER as u32, 0, CLUSTER as u32, 1, 0, 0, 0] {
        put32(value);
    }
    // No features, refcounts of 16 bits, bytes of the header.
    for value in [0, 0, 0, 0, 0, 0, 4, 104] {
        put32(value);
    }
    if !name.is_empty() {
        put32(BACKING_FORMAT);
        put32(format.len() as u32);
        header.extend(format.bytes());
        header.resize(104 + extension as usize, 0);
        header.extend(name.bytes());
    }
    let mut bytes = header;
    bytes.resize(4 * CLUSTER as usize, 0);
    let mut put = |at: u64, what: &[u8]| {
        let at = at as usize;
        if let Some(room) = bytes.get_mut(at..at + what.len()) {
            room.copy_from_slice(what);
        }
    };
    put(CLUSTER, &(2 * CLUSTER).to_be_bytes());
    put(2 * CLUSTER, &[0, 1, 0, 1, 0, 1, 0, 1]);
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Looks whether an image made by [`create`] is in order: every cluster that something names has at least
/// that many references, and one that is said to have one alone has no more.
///
/// # Errors
/// It is not, or cannot be read.
pub fn check(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let image = Image(&bytes);
    ensure!(
        image.number(20, 4)? == 16 && image.number(96, 4)? == 4,
        "it is another kind of image"
    );
    let mut named = BTreeMap::<u64, u64>::new();
    let mut name = |address: u64| *named.entry(address / CLUSTER).or_default() += 1;
    name(0);
    let (l1, entries) = (image.number(40, 8)?, image.number(36, 4)?);
    name(l1);
    let (table, clusters) = (image.number(48, 8)?, image.number(56, 4)?);
    let mut blocks = BTreeMap::new();
    for cluster in 0..clusters {
        name(table + cluster * CLUSTER);
    }
    for index in 0..clusters * CLUSTER / 8 {
        let block = image.number(table + index * 8, 8)? & ADDRESS;
        if block != 0 {
            name(block);
            blocks.insert(index, block);
        }
    }
    let mut alone = Vec::new();
    for index in 0..entries {
        let entry = image.number(l1 + index * 8, 8)?;
        let l2 = entry & ADDRESS;
        if l2 == 0 {
            continue;
        }
        name(l2);
        alone.push((l2, entry & COPIED != 0));
        for index in 0..CLUSTER / 8 {
            let entry = image.number(l2 + index * 8, 8)?;
            ensure!(entry & COMPRESSED == 0, "nothing of ours compresses");
            if entry & ADDRESS != 0 {
                name(entry & ADDRESS);
                alone.push((entry & ADDRESS, entry & COPIED != 0));
            }
        }
    }
    let refcount = |cluster: u64| match blocks.get(&(cluster / PER_BLOCK)) {
        Some(block) => image.number(block + cluster % PER_BLOCK * 2, 2),
        None => Ok(0),
    };
    for (cluster, count) in &named {
        let said = refcount(*cluster)?;
        ensure!(
            said >= *count,
            "cluster {cluster} has {said} of {count} references"
        );
    }
    for (address, is_alone) in alone {
        let said = refcount(address / CLUSTER)?;
        ensure!(
            is_alone == (said == 1),
            "cluster at {address:#x} has {said} references"
        );
    }
    Ok(())
}

struct Image<'a>(&'a [u8]);

impl Image<'_> {
    /// A number; what is behind the end is zero.
    fn number(&self, at: u64, bytes: u64) -> Result<u64> {
        let at = usize::try_from(at)?;
        let found = (at..at + bytes as usize).map(|at| self.0.get(at).copied().unwrap_or(0));
        Ok(found.fold(0, |value, byte| value << 8 | u64::from(byte)))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn qemu_takes_what_is_made_here_and_finds_it_in_order() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let qemu_img = |arguments: &[&str]| -> Result<()> {
            let program = std::env::var_os("QEMU_IMG").unwrap_or_else(|| "qemu-img".into());
            let done = Command::new(program)
                .args(arguments)
                .current_dir(&folder)
                .status();
            ensure!(
                done.context("install qemu-utils or set QEMU_IMG")?
                    .success()
            );
            Ok(())
        };
        std::fs::write(folder.path().join("base"), [0; 4096])?;
        for (name, size, base) in [
            ("one", 1 << 20, None),
            ("two", 3 << 30, Some(("base", "raw"))),
        ] {
            let path = folder.path().join(name);
            create(&path, size, base)?;
            qemu_img(&["check", "-q", name])?;
            check(&path)?;
            qemu_img(&["resize", "-q", name, "+1M"])?;
            check(&path)?;
        }
        // A cluster that is named and has no reference.
        let path = folder.path().join("one");
        let mut bytes = std::fs::read(&path)?;
        bytes[2 * CLUSTER as usize + 6..][..2].fill(0);
        std::fs::write(&path, bytes)?;
        ensure!(check(&path).is_err());
        Ok(())
    }
}
