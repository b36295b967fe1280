//! One range of host addresses behind a range of guest addresses.
#![expect(unsafe_code, reason = "maps memory and tells the kernel how to use it")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

use pci::MappableArea;

/// Host and guest addresses agree modulo this, so that the largest page size that either level of
/// translation knows can be used: 1 GiB.
const ALIGNMENT: u64 = 1 << 30;

/// Linux, include/uapi/linux/mempolicy.h: move pages that are elsewhere, and fail where that cannot
/// be.
const MPOL_MF_STRICT: libc::c_uint = 1 << 0;
const MPOL_MF_MOVE: libc::c_uint = 1 << 1;

/// Highest number of a NUMA node, plus one: Linux has no more (NODES_SHIFT is 10 at most).
const MAX_NODES: u32 = 1024;

/// What is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// A file and where the range begins in it, in bytes; `None` is anonymous memory.
    pub file: Option<(&'a File, u64)>,
    /// Whether what is written goes to the file.
    pub shared: bool,
    /// Whether the host sets all of the memory aside at once, or fails.
    pub reserved: bool,
}

/// A mapping that is removed when it is dropped.
#[derive(Debug)]
pub struct Mapping {
    address: *mut libc::c_void,
    size: usize,
}

// SAFETY: the pointer is only an address range to unmap; it is never dereferenced here.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `reserve` and nothing else unmaps it.
        unsafe { libc::munmap(self.address, self.size) };
    }
}

impl Mapping {
    /// Maps `size` bytes of `contents` at an address that is congruent to `gpa`, readable and
    /// writable. `page` is the size of the pages in bytes, a power of two that divides `gpa`, `size`
    /// and the offset in the file.
    pub fn new(gpa: u64, size: u64, page: u64, contents: Contents<'_>) -> io::Result<Self> {
        let mapping = Self::reserve(gpa, size, ALIGNMENT.max(page))?;
        let mut flags = libc::MAP_FIXED;
        flags |= match contents.shared {
            true => libc::MAP_SHARED,
            false => libc::MAP_PRIVATE,
        };
        if !contents.reserved {
            flags |= libc::MAP_NORESERVE;
        }
        let (fd, offset) = match contents.file {
            Some((file, offset)) => (file.as_raw_fd(), offset),
            None => {
                flags |= libc::MAP_ANONYMOUS;
                (-1, 0)
            }
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| too_large())?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is ours and holds nothing yet.
        let raw = unsafe { libc::mmap(mapping.address, mapping.size, prot, flags, fd, offset) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// Maps the areas of a device's region, `size` bytes, a power of two, at an address that is
    /// aligned as the region is in the guest. There is nothing between the areas.
    pub fn of_region(size: u64, areas: &[MappableArea]) -> io::Result<Self> {
        let mapping = Self::reserve(0, size, ALIGNMENT.min(size))?;
        for area in areas {
            let MappableArea {
                offset,
                size: length,
                file,
                file_offset,
                readable,
                writable,
            } = area;
            let end = offset.checked_add(*length).ok_or_else(too_large)?;
            if end > size {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut prot = libc::PROT_NONE;
            if *readable {
                prot |= libc::PROT_READ;
            }
            if *writable {
                prot |= libc::PROT_WRITE;
            }
            let address = mapping.address.wrapping_byte_add(*offset as usize);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            let fd = file.as_raw_fd();
            let file_offset = libc::off_t::try_from(*file_offset).map_err(|_| too_large())?;
            // SAFETY: the range is inside the one that was just reserved.
            let raw =
                unsafe { libc::mmap(address, *length as usize, prot, flags, fd, file_offset) };
            if raw == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(mapping)
    }

    /// Puts zeros, private to this process, in the place of `size` bytes at `offset`, whole pages.
    /// Addresses stay valid, for KVM too.
    pub fn replace(&self, offset: u64, size: u64) -> io::Result<()> {
        let end = offset.checked_add(size).ok_or_else(too_large)?;
        if end > self.size as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let address = self.address.wrapping_byte_add(offset as usize);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range is inside ours, and nobody has references into it.
        let raw = unsafe { libc::mmap(address, size as usize, prot, flags, -1, 0) };
        match raw {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// An address range of `size` bytes that is congruent to `gpa`, with nothing in it.
    fn reserve(gpa: u64, size: u64, alignment: u64) -> io::Result<Self> {
        let alignment = usize::try_from(alignment).map_err(|_| too_large())?;
        let size = usize::try_from(size).map_err(|_| too_large())?;
        let padded = size.checked_add(alignment).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let raw = unsafe { libc::mmap(null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let wanted = gpa as usize % alignment;
        let head = (wanted + alignment - raw as usize % alignment) % alignment;
        let address = raw.wrapping_byte_add(head);
        let tail = padded - head - size;
        if head > 0 {
            // SAFETY: the first `head` bytes belong to the mapping just made.
            unsafe { libc::munmap(raw, head) };
        }
        if tail > 0 {
            // SAFETY: so do the last `tail` bytes.
            unsafe { libc::munmap(address.wrapping_byte_add(size), tail) };
        }
        Ok(Self { address, size })
    }

    /// First address.
    pub fn address(&self) -> *mut u8 {
        self.address.cast()
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Gives the kernel an advice of madvise(2) that leaves the contents alone.
    pub fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is ours, and none of the advices discards its contents.
        let result = unsafe { libc::madvise(self.address, self.size, advice as libc::c_int) };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has pages of this range allocated on `node` and nowhere else (mbind(2), `MPOL_BIND`). Pages
    /// that are there already are moved, which is an error where somebody else maps them too.
    pub fn bind(&self, node: u32) -> io::Result<()> {
        let mut nodes = [0_u64; (MAX_NODES / u64::BITS) as usize];
        let word = nodes.get_mut((node / u64::BITS) as usize);
        *word.ok_or(io::ErrorKind::InvalidInput)? = 1 << (node % u64::BITS);
        // SAFETY: the range is ours. The kernel reads one bit less than it is told of, and so only
        // from the array.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.address,
                self.size,
                libc::MPOL_BIND,
                nodes.as_ptr(),
                MAX_NODES as usize + 1,
                MPOL_MF_MOVE | MPOL_MF_STRICT,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Advices of madvise(2) that leave the contents of memory alone.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Advice {
    /// Leave it out of core dumps.
    NoDump = libc::MADV_DONTDUMP,
    /// Merge equal pages.
    Mergeable = libc::MADV_MERGEABLE,
    /// Use transparent huge pages.
    HugePages = libc::MADV_HUGEPAGE,
    /// Use no transparent huge pages.
    NoHugePages = libc::MADV_NOHUGEPAGE,
    /// Allocate all of it now.
    Populate = libc::MADV_POPULATE_WRITE,
}

fn too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}
