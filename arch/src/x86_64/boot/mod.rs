//! Loads a kernel, its initramfs and its command line into guest memory, and writes the
//! structures by which the kernel finds them and the memory map.
//!
//! Two kinds of kernel are accepted:
//! - an uncompressed ELF image with a PVH entry ([`elf`], [`pvh`]);
//! - a bzImage, entered through the 32-bit Linux boot protocol ([`bzimage`]).
//!
//! File contents go straight from the file into guest memory.

use std::fs::File;
use std::io;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

pub mod bzimage;
pub mod e820;
pub mod elf;
pub mod gdt;
mod initramfs;
pub mod pvh;
pub mod reset_vector;

pub use e820::{E820Entry, e820};
pub use initramfs::InitramfsError;

#[cfg(test)]
mod tests;

/// What is to be started.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// The kernel image.
    pub kernel: &'a File,
    /// The initial RAM file system.
    pub initramfs: Option<&'a File>,
    /// The kernel's command line, without a terminating NUL.
    pub cmdline: &'a [u8],
}

/// What the kernel is told about memory, and where it may be put.
#[derive(Clone, Copy, Debug)]
pub struct BootMemory<'a> {
    /// RAM: start and size of each range, ascending and disjoint.
    pub ram: &'a [(u64, u64)],
    /// Start and size of the part of RAM that holds ACPI tables.
    pub acpi_window: Option<(u64, u64)>,
    /// Address of the RSDP.
    pub rsdp: Option<u64>,
    /// End of the low RAM that kernel and initramfs may use: it is contiguous from 0 to here, and
    /// the ACPI window lies at or above it.
    pub ram_top: u64,
}

/// Boot protocol by which the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PVH (Xen, "x86/HVM direct boot ABI").
    Pvh,
    /// 32-bit Linux boot protocol (Linux, Documentation/arch/x86/boot.rst).
    Linux32,
}

/// How to enter the loaded kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Boot protocol.
    pub protocol: Protocol,
    /// Address of the first instruction.
    pub rip: u64,
    /// Address of the structure that is handed over: PVH's `hvm_start_info` or Linux's
    /// `boot_params`.
    pub info: u64,
}

/// A kernel could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel file cannot be read.
    #[error("cannot read the kernel")]
    Read(#[source] io::Error),
    /// The kernel is for another architecture.
    #[error("the kernel is {0}, and the guest is x86_64")]
    WrongArchitecture(&'static str),
    /// The kernel is compressed by itself, not as a bzImage.
    #[error("the kernel is compressed with {0}: decompress it, or use the bzImage")]
    Compressed(&'static str),
    /// The file is no kernel image.
    #[error(
        "the kernel is neither an ELF image nor a bzImage (file of {size} bytes, begins with \
         {start:02x?})"
    )]
    Unrecognised {
        /// Size of the file.
        size: u64,
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// The ELF image cannot be loaded.
    #[error("cannot load the ELF kernel")]
    Elf(#[from] elf::ElfError),
    /// The bzImage cannot be loaded.
    #[error("cannot load the bzImage kernel")]
    BzImage(#[from] bzimage::BzImageError),
    /// The initramfs cannot be loaded.
    #[error("cannot load the initramfs")]
    Initramfs(#[from] InitramfsError),
    /// The kernel does not accept a command line of that length.
    #[error("the command line has {length} bytes and this kernel accepts at most {limit}")]
    CmdlineTooLong {
        /// Bytes given.
        length: usize,
        /// Bytes accepted.
        limit: usize,
    },
    /// The command line has a NUL inside.
    #[error("the command line has a NUL at byte {0}")]
    CmdlineNul(usize),
    /// The memory map has more entries than the boot protocol can hand over.
    #[error("the memory map has {entries} entries and the boot protocol carries at most {limit}")]
    MemoryMapTooLong {
        /// Entries needed.
        entries: usize,
        /// Entries possible.
        limit: usize,
    },
    /// A boot structure cannot be written.
    #[error("cannot write {size} bytes of boot data at guest address {gpa:#x}")]
    Write {
        /// Where.
        gpa: u64,
        /// How many bytes.
        size: usize,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads `payload` into `memory`, with all that the boot vCPU needs there.
///
/// `memory` needs RAM from 0 up to at least [`layout::HIGH_MEMORY_START`]. Fields of `boot` are
/// trusted; the files are not.
///
/// # Errors
/// Any [`LoadError`]; part of the payload may have been written then.
pub fn load_kernel(
    memory: &GuestMemoryMmap,
    payload: Payload<'_>,
    boot: &BootMemory<'_>,
) -> Result<Entry, LoadError> {
    // Both protocols hand over 32-bit addresses.
    let top = boot.ram_top.min(layout::LOW_RAM_END);
    let entry = match identify(payload.kernel)? {
        Format::Elf => {
            let kernel = elf::load(memory, payload.kernel, top)?;
            let modules = initramfs::load(memory, payload.initramfs, kernel.end, top)?;
            write_cmdline(memory, payload.cmdline, pvh::CMDLINE_LIMIT)?;
            pvh::write_start_info(memory, modules, boot)?;
            Entry {
                protocol: Protocol::Pvh,
                rip: kernel.entry,
                info: layout::PVH_START_INFO_START,
            }
        }
        Format::BzImage => {
            let kernel = bzimage::load(memory, payload.kernel, top)?;
            let top = top.min(kernel.initramfs_end());
            let initramfs = initramfs::load(memory, payload.initramfs, kernel.end, top)?;
            write_cmdline(memory, payload.cmdline, kernel.cmdline_limit())?;
            bzimage::write_zero_page(memory, &kernel, initramfs, boot)?;
            Entry {
                protocol: Protocol::Linux32,
                rip: kernel.start,
                info: layout::ZERO_PAGE_START,
            }
        }
    };
    write(memory, layout::GDT_START, &gdt::table())?;
    Ok(entry)
}

/// Kernel image formats that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Elf,
    BzImage,
}

/// Tells the format of a kernel by its magic numbers.
fn identify(kernel: &File) -> Result<Format, LoadError> {
    /// Up to the end of `HdrS` in a bzImage.
    const HEAD: usize = 0x206;

    let size = file_size(kernel).map_err(LoadError::Read)?;
    let mut head = vec![0; size.min(HEAD as u64) as usize];
    kernel
        .read_exact_at(&mut head, 0)
        .map_err(LoadError::Read)?;
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };

    if at(0, b"\x7fELF") {
        return Ok(Format::Elf);
    }
    if at(0x202, b"HdrS") {
        return Ok(Format::BzImage);
    }
    // Linux, Documentation/arch/arm64/booting.rst and Documentation/arch/riscv/boot-image-header.rst.
    if at(56, b"ARM\x64") {
        return Err(LoadError::WrongArchitecture("an arm64 Image"));
    }
    if at(56, b"RSC\x05") {
        return Err(LoadError::WrongArchitecture("a RISC-V Image"));
    }
    // Linux, include/linux/pe.h: an EFI application that unpacks an Image; never x86.
    if at(0, b"MZ") && at(4, b"zimg") {
        return Err(LoadError::WrongArchitecture("an EFI zboot image"));
    }
    for (magic, name) in [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ] {
        if at(0, magic) {
            return Err(LoadError::Compressed(name));
        }
    }
    head.truncate(8);
    Err(LoadError::Unrecognised { size, start: head })
}

/// Size of a file or block device.
fn file_size(mut file: &File) -> io::Result<u64> {
    if file.metadata()?.is_dir() {
        // Seeking in a directory succeeds and means nothing.
        return Err(io::ErrorKind::IsADirectory.into());
    }
    file.seek(SeekFrom::End(0))
}

/// Reads `size` bytes at `offset` of `file` straight into guest memory at `gpa`.
fn read_to_guest(
    memory: &GuestMemoryMmap,
    gpa: u64,
    mut file: &File,
    offset: u64,
    size: usize,
) -> Result<(), GuestMemoryError> {
    file.seek(SeekFrom::Start(offset))
        .map_err(GuestMemoryError::IOError)?;
    memory.read_exact_volatile_from(GuestAddress(gpa), &mut file, size)
}

/// Writes a boot structure.
fn write(memory: &GuestMemoryMmap, gpa: u64, bytes: &[u8]) -> Result<(), LoadError> {
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .map_err(|source| LoadError::Write {
            gpa,
            size: bytes.len(),
            source,
        })
}

/// Writes the command line; `limit` counts bytes without the NUL.
fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &[u8], limit: usize) -> Result<(), LoadError> {
    let limit = limit.min(layout::CMDLINE_SIZE as usize - 1);
    if cmdline.len() > limit {
        return Err(LoadError::CmdlineTooLong {
            length: cmdline.len(),
            limit,
        });
    }
    if let Some(at) = cmdline.iter().position(|&byte| byte == 0) {
        return Err(LoadError::CmdlineNul(at));
    }
    write(memory, layout::CMDLINE_START, cmdline)?;
    write(memory, layout::CMDLINE_START + cmdline.len() as u64, &[0])
}
