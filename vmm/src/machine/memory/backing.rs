//! Where the memory of a zone comes from: anonymous memory, or a file of some kind.
#![expect(
    unsafe_code,
    reason = "the C library makes memory files and describes file systems"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::MemoryError;
use super::zone::Zone;

/// Where the memory of a zone comes from.
#[derive(Debug)]
pub struct Backing {
    /// The file; `None` is anonymous memory.
    pub file: Option<File>,
    /// What the file is called on the host; `None` if it has no name.
    pub named: Option<FileId>,
    /// Bytes in one of its pages.
    pub page: u64,
    /// Whether these are reserved huge pages.
    pub hugetlb: bool,
}

/// Device and inode: what a file is, under whatever name.
pub type FileId = (u64, u64);

impl Backing {
    /// Opens or makes what `zone` asks for; [`Self::grow`] is to follow.
    pub fn open(zone: &Zone) -> Result<Self, MemoryError> {
        let mut named = None;
        let file = match &zone.config.file {
            Some(path) if path.is_dir() => Some(file_in(path, zone)?),
            Some(path) => {
                let (file, id) = file_at(path, zone)?;
                named = Some(id);
                Some(file)
            }
            None if zone.config.shared || zone.config.hugepages => Some(memory_file(zone)?),
            None => None,
        };
        let Some(file) = file else {
            return Ok(Self {
                file,
                named,
                page: base_page(),
                hugetlb: false,
            });
        };
        let system = file_system(&file).map_err(|source| MemoryError::Create {
            option: zone.source(),
            advice: "",
            source,
        })?;
        let hugetlb = system.f_type == libc::HUGETLBFS_MAGIC;
        if !hugetlb && system.f_type != libc::TMPFS_MAGIC {
            warn_of_page_cache(zone);
        }
        Ok(Self {
            file: Some(file),
            named,
            page: if hugetlb {
                system.f_bsize as u64
            } else {
                base_page()
            },
            hugetlb,
        })
    }

    /// Makes the file at least `size` bytes long.
    pub fn grow(&self, zone: &Zone, size: u64) -> Result<(), MemoryError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let grow = || match file.metadata()?.len() {
            length if length < size => file.set_len(size),
            _ => Ok(()),
        };
        grow().map_err(|source| MemoryError::Grow {
            option: zone.source(),
            size,
            source,
        })
    }
}

/// Linux ignores the memory policy of a shared mapping of an ordinary file (mbind(2), Notes).
fn warn_of_page_cache(zone: &Zone) {
    if let Some(node) = zone.config.host_numa_node
        && zone.config.shared
    {
        let option = zone.option(format_args!("host_numa_node={node}"));
        log::warn!(
            "{option}: the host caches a shared file on a disk wherever it likes; use a file on a \
             tmpfs or hugetlbfs, or shared=off"
        );
    }
}

fn file_at(path: &Path, zone: &Zone) -> Result<(File, FileId), MemoryError> {
    let option = || zone.option(format_args!("file={}", path.display()));
    let failed = |source| MemoryError::Open {
        option: option(),
        source,
    };
    // A device may wait, or do things when it is opened.
    let kind = path.metadata().map_err(failed)?;
    if !kind.is_file() {
        return Err(MemoryError::NotAFile { option: option() });
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    Ok((file, (metadata.dev(), metadata.ino())))
}

fn file_in(folder: &Path, zone: &Zone) -> Result<File, MemoryError> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE | libc::O_EXCL);
    options
        .open(folder)
        .map_err(|source| MemoryError::OpenFolder {
            option: zone.option(format_args!("file={}", folder.display())),
            source,
        })
}

fn memory_file(zone: &Zone) -> Result<File, MemoryError> {
    let (huge, advice) = if zone.config.hugepages {
        let size = zone.config.hugepage_size;
        // The logarithm of the page size in bits 31:26; zero is the host's default size.
        let bits = size.map_or(0, |size| size.trailing_zeros() << libc::MAP_HUGE_SHIFT);
        let advice = " of such huge pages (/sys/kernel/mm/hugepages lists those that the host has)";
        (libc::MFD_HUGETLB | bits, advice)
    } else {
        (0, "")
    };
    // SAFETY: the name is a NUL-terminated string and the call takes no other pointer.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC | huge) };
    if fd < 0 {
        return Err(MemoryError::Create {
            option: zone.source(),
            advice,
            source: io::Error::last_os_error(),
        });
    }
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn file_system(file: &File) -> io::Result<libc::statfs> {
    let mut system = MaybeUninit::zeroed();
    // SAFETY: the kernel fills in a structure of this type.
    if unsafe { libc::fstatfs(file.as_raw_fd(), system.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is filled in; besides, it is made of integers, for which zero is a value.
    Ok(unsafe { system.assume_init() })
}

/// Bytes in an ordinary page of the host.
fn base_page() -> u64 {
    // SAFETY: the call takes no pointer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}
