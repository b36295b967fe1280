//! Why guest RAM cannot be set up.

use std::io;

use thiserror::Error;
use vm_memory::mmap::MmapRegionError;

/// Why guest RAM could not be set up. `option` is the option with the keys at fault, as it could be
/// given on the command line.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The plan has a zone that the configuration lacks.
    #[error("the plan has a memory zone {id}, and the configuration has none")]
    ForeignZone {
        /// The zone.
        id: String,
    },
    /// The file behind a zone cannot be opened.
    #[error(
        "{option}: cannot open it; the file must exist and this user be able to read and write it \
         (a folder is given a file without a name)"
    )]
    Open {
        /// The key that names the file.
        option: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A folder cannot hold a zone.
    #[error(
        "{option}: cannot make a file in this folder; this user must be able to write it, and its \
         file system to have files without names, as tmpfs, hugetlbfs, ext4, XFS and btrfs do"
    )]
    OpenFolder {
        /// The key that names the folder.
        option: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A device, a FIFO or the like.
    #[error("{option}: neither a regular file nor a folder")]
    NotAFile {
        /// The key that names it.
        option: String,
    },
    /// Two zones would be the same memory.
    #[error("{option}: zone {other} is in this file; give each zone a file of its own")]
    SameFile {
        /// The key that names the file.
        option: String,
        /// The zone that has it.
        other: String,
    },
    /// A memory file could not be made.
    #[error("{option}: cannot create a memory file{advice}")]
    Create {
        /// The keys that asked for a file.
        option: String,
        /// What to do about it.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file is too short and stays so.
    #[error("{option}: cannot make the file {size:#x} bytes long")]
    Grow {
        /// The keys that asked for a file.
        option: String,
        /// Bytes needed.
        size: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A range is no whole number of pages.
    #[error(
        "{option}: the host's pages for it have {page:#x} bytes, and it is to have {size:#x} bytes \
         from guest address {gpa:#x}; both must be multiples of the page size, so choose its size \
         and those of zones before it accordingly"
    )]
    Pages {
        /// The keys that asked for such pages.
        option: String,
        /// Bytes in a page.
        page: u64,
        /// First guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The host refused the mapping.
    #[error("{option}: cannot map {size:#x} bytes of guest RAM: {advice}")]
    Map {
        /// The keys that asked for this kind of mapping.
        option: String,
        /// Bytes.
        size: u64,
        /// What to do about it.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host refused a property of the mapping.
    #[error("{option}: the host refuses it ({advice})")]
    Advise {
        /// The key and value at fault.
        option: String,
        /// What to do about it.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A mapping cannot be used as guest RAM.
    #[error("{option}: a mapping cannot be used as guest RAM")]
    Region {
        /// The keys that asked for this kind of mapping.
        option: String,
        /// What is wrong with it.
        #[source]
        source: MmapRegionError,
    },
    /// A range leaves the address space.
    #[error("{option}: guest RAM at {gpa:#x} ends outside the address space")]
    Range {
        /// The keys that asked for it.
        option: String,
        /// First guest-physical address.
        gpa: u64,
    },
    /// vm-memory does not accept the layout.
    #[error("--memory: the guest's RAM ranges cannot be described")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
    /// KVM does not accept a range.
    #[error("{option}: KVM refuses guest RAM at {gpa:#x}, {size:#x} bytes")]
    Slot {
        /// The keys that asked for it.
        option: String,
        /// First guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// What KVM said.
        #[source]
        source: io::Error,
    },
}
