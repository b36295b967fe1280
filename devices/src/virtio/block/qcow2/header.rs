//! What a qcow2 image says of itself, looked at before anything else reads it (QEMU's
//! docs/interop/qcow2.rst). An image is made by whoever uploads it: nothing of it is taken for granted.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use thiserror::Error;

/// The first bytes of an image.
pub const MAGIC: &[u8] = b"QFI\xfb";
/// Bytes of the header of version 2, and of the least that version 3 has.
const LENGTHS: (usize, usize) = (72, 104);
/// Bytes of a table of addresses at most: no image that QEMU makes has larger ones.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Bytes of the name of a backing file.
const MAX_NAME: u32 = 1023;
/// The header extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Addresses, without flags.
const ADDRESS: u64 = 0x00ff_ffff_ffff_fe00;

/// Why a header is no good.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// It cannot be read.
    #[error("cannot read its header")]
    Read(#[from] io::Error),
    /// It is no qcow2 image.
    #[error("it is no qcow2 image; without image_type= its first bytes say what it is")]
    Magic,
    /// The version.
    #[error("it has version {0} of qcow2; 2 and 3 are known")]
    Version(u32),
    /// Something that is known and cannot be had.
    #[error("{0} not supported; qemu-img convert makes an image without")]
    Unsupported(&'static str),
    /// It says that it is not in order.
    #[error("it is marked as {0}; repair it with qemu-img check -r all")]
    Damaged(&'static str),
    /// Feature bits that must be known.
    #[error("it has features that are not known, bits {0:#x}")]
    Features(u64),
    /// Internal snapshots.
    #[error(
        "it has {0} internal snapshots, which only readonly=on takes; delete them with qemu-img \
         snapshot -d"
    )]
    Snapshots(u32),
    /// A value that cannot be.
    #[error("its header has {what} {value:#x}, which cannot be")]
    Value {
        /// Of what.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// The name of its backing file is not text.
    #[error("the name of its backing file is not valid UTF-8")]
    Name,
}

/// What is needed of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// The file that it is based on, and its format.
    pub backing: Option<(String, Option<String>)>,
    /// Where the L1 table is.
    pub l1: Range<u64>,
    /// Where the table of refcount blocks is.
    pub refcounts: Range<u64>,
}

fn bad(what: &'static str, value: u64) -> HeaderError {
    HeaderError::Value { what, value }
}

/// A number in a header; zero behind its end.
fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let end = at.saturating_add(N);
    let bytes = bytes.get(at..end).unwrap_or_default();
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Reads up to `length` bytes; what is behind the end is not there.
fn read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

impl Header {
    /// Reads a header and all that its tables name. Memory that it takes is bounded, whatever it says.
    ///
    /// # Errors
    /// It is not valid, or not supported.
    pub fn read(file: &File, file_size: u64, writable: bool) -> Result<Self, HeaderError> {
        let bytes = read(file, 0, LENGTHS.1)?;
        if !bytes.starts_with(MAGIC) {
            return Err(HeaderError::Magic);
        }
        let n32 = |at| number::<4>(&bytes, at) as u32;
        let n64 = |at| number::<8>(&bytes, at);
        let version = n32(4);
        let least = match version {
            2 => LENGTHS.0,
            3 => LENGTHS.1,
            _ => return Err(HeaderError::Version(version)),
        };
        if bytes.len() < least {
            return Err(bad("an end at", bytes.len() as u64));
        }
        let cluster_bits = n32(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(bad("cluster_bits", cluster_bits.into()));
        }
        let cluster = 1_u64 << cluster_bits;
        if n32(32) != 0 {
            return Err(HeaderError::Unsupported("encryption is"));
        }
        let mut length = LENGTHS.0 as u64;
        if version == 3 {
            features(n64(72))?;
            let (order, said) = (n32(96), n32(100));
            if order > 6 {
                return Err(bad("refcount_order", order.into()));
            }
            length = said.into();
            if length < least as u64 || length > cluster || !length.is_multiple_of(8) {
                return Err(bad("header_length", length));
            }
        }
        let snapshots = n32(60);
        if snapshots != 0 && writable {
            return Err(HeaderError::Snapshots(snapshots));
        }
        let size = n64(24);
        let l1_bytes = u64::from(n32(36)) * 8;
        // Each entry is for a table of a cluster's bytes, each entry of which is for a cluster.
        let needed = size.div_ceil(cluster * (cluster / 8));
        if l1_bytes > MAX_L1 || l1_bytes / 8 < needed || size > i64::MAX as u64 {
            return Err(bad(
                "an L1 table for a disk of another size; its entries are",
                l1_bytes / 8,
            ));
        }
        let l1 = table("l1_table_offset", (n64(40), l1_bytes), cluster, file_size)?;
        let refcount_bytes = u64::from(n32(56)) * cluster;
        if refcount_bytes == 0 || refcount_bytes > MAX_REFCOUNT_TABLE {
            return Err(bad("refcount_table_clusters", n32(56).into()));
        }
        let at = (n64(48), refcount_bytes);
        let refcounts = table("refcount_table_offset", at, cluster, file_size)?;
        if l1.start < refcounts.end && refcounts.start < l1.end {
            return Err(bad("two tables in one place", l1.start));
        }
        let backing = backing(file, &bytes, version, (length, cluster))?;
        Ok(Self {
            version,
            size,
            cluster,
            backing,
            l1,
            refcounts,
        })
    }

    /// Where the refcount blocks are.
    ///
    /// # Errors
    /// The table cannot be read, or names what cannot be.
    pub fn refcount_blocks(
        &self,
        file: &File,
        file_size: u64,
    ) -> Result<HashSet<u64>, HeaderError> {
        refcount_blocks(file, &self.refcounts, self.cluster, file_size)
    }
}

/// Reads the addresses of refcount blocks. Each has its own place in the file: otherwise a small file
/// could say of any number of clusters that they are taken, and a search for a free one would not end.
pub fn refcount_blocks(
    file: &File,
    table: &Range<u64>,
    cluster: u64,
    file_size: u64,
) -> Result<HashSet<u64>, HeaderError> {
    let length = table.end.saturating_sub(table.start).min(MAX_L1);
    let bytes = read(file, table.start, length as usize)?;
    let mut found = HashSet::new();
    for entry in bytes.chunks_exact(8) {
        let address = number::<8>(entry, 0) & ADDRESS;
        if address == 0 {
            continue;
        }
        let is_good = address.is_multiple_of(cluster) && address < file_size;
        if !is_good || !found.insert(address) {
            return Err(bad("a refcount block at", address));
        }
    }
    Ok(found)
}

fn table(
    what: &'static str,
    (start, length): (u64, u64),
    cluster: u64,
    file_size: u64,
) -> Result<Range<u64>, HeaderError> {
    let end = start.checked_add(length);
    // The last cluster need not be there as a whole: what is not there is zero.
    let most = file_size.div_ceil(cluster).saturating_mul(cluster);
    match end.filter(|end| *end <= most) {
        // The first cluster has the header.
        Some(end) if start.is_multiple_of(cluster) && start != 0 => Ok(start..end),
        // No table at all, of a disk without bytes.
        Some(end) if length == 0 => Ok(end..end),
        _ => Err(bad(what, start)),
    }
}

fn features(incompatible: u64) -> Result<(), HeaderError> {
    let has = |bit: u32| incompatible & 1 << bit != 0;
    if has(0) {
        Err(HeaderError::Damaged("dirty (lazy_refcounts=on)"))
    } else if has(1) {
        Err(HeaderError::Damaged("corrupt"))
    } else if has(2) {
        Err(HeaderError::Unsupported("external data files are"))
    } else if has(3) {
        Err(HeaderError::Unsupported("compression other than zlib is"))
    } else if has(4) {
        Err(HeaderError::Unsupported("extended L2 entries are"))
    } else if incompatible != 0 {
        Err(HeaderError::Features(incompatible))
    } else {
        Ok(())
    }
}

type Backing = Option<(String, Option<String>)>;

fn backing(
    file: &File,
    bytes: &[u8],
    version: u32,
    (header, cluster): (u64, u64),
) -> Result<Backing, HeaderError> {
    let (offset, length) = (number::<8>(bytes, 8), number::<4>(bytes, 16) as u32);
    if offset == 0 {
        return Ok(None);
    }
    let is_inside = offset < cluster && u64::from(length) < cluster - offset;
    if length == 0 || length > MAX_NAME || !is_inside {
        return Err(bad("backing_file_size", length.into()));
    }
    let name = read(file, offset, length as usize)?;
    let name = String::from_utf8(name).map_err(|_| HeaderError::Name)?;
    // Version 2 can have extensions as well, behind the header.
    let start = if version == 2 {
        LENGTHS.0 as u64
    } else {
        header
    };
    let area = read(file, start, cluster.saturating_sub(start) as usize)?;
    let mut rest = area.as_slice();
    while let Some((kind, value, next)) = extension(rest) {
        if kind == BACKING_FORMAT {
            let format = String::from_utf8(value.to_vec()).map_err(|_| HeaderError::Name)?;
            return Ok(Some((name, Some(format))));
        }
        rest = next;
    }
    Ok(Some((name, None)))
}

/// The first of header extensions: its kind, its value, and what follows.
fn extension(area: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (head, rest) = area.split_at_checked(8)?;
    let kind = number::<4>(head, 0) as u32;
    let length = number::<4>(head, 4) as usize;
    let (value, rest) = rest.split_at_checked(length)?;
    let padding = length.next_multiple_of(8) - length;
    let next = rest.get(padding..).unwrap_or_default();
    (kind != 0).then_some((kind, value, next))
}
