//! bzImage kernels, entered through the 32-bit boot protocol (Linux,
//! Documentation/arch/x86/boot.rst and zero-page.rst).
//!
//! linux-loader's `BzImage` is not used: it exists on x86 hosts alone, takes a header that was cut
//! off for a whole one, and takes any length of file for the kernel.

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use thiserror::Error;
use vm_memory::{GuestMemoryError, GuestMemoryMmap};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::e820::e820;
use super::initramfs::Initramfs;
use super::{BootMemory, LoadError, file_size, layout, read_to_guest, write};

/// Offset of the setup header in file and zero page alike.
const HEADER_START: usize = 0x1f1;

/// `struct setup_header` up to protocol 2.15.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SetupHeader {
    setup_sects: u8,
    root_flags: U16,
    syssize: U32,
    ram_size: U16,
    vid_mode: U16,
    root_dev: U16,
    boot_flag: U16,
    jump: [u8; 2],
    header: [u8; 4],
    version: U16,
    realmode_swtch: U32,
    start_sys_seg: U16,
    kernel_version: U16,
    type_of_loader: u8,
    loadflags: u8,
    setup_move_size: U16,
    code32_start: U32,
    ramdisk_image: U32,
    ramdisk_size: U32,
    bootsect_kludge: U32,
    heap_end_ptr: U16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    cmd_line_ptr: U32,
    initrd_addr_max: U32,
    kernel_alignment: U32,
    relocatable_kernel: u8,
    min_alignment: u8,
    xloadflags: U16,
    cmdline_size: U32,
    hardware_subarch: U32,
    hardware_subarch_data: U64,
    payload_offset: U32,
    payload_length: U32,
    setup_data: U64,
    pref_address: U64,
    init_size: U32,
    handover_offset: U32,
    kernel_info_offset: U32,
}
const _: () = assert!(HEADER_START + offset_of!(SetupHeader, header) == 0x202);
const _: () = assert!(HEADER_START + offset_of!(SetupHeader, init_size) == 0x260);
const _: () = assert!(HEADER_START + size_of::<SetupHeader>() == 0x26c);

/// One entry of `boot_params.e820_table`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MapEntry {
    addr: U64,
    size: U64,
    kind: U32,
}
const _: () = assert!(size_of::<MapEntry>() == 20);

/// `E820_MAX_ENTRIES_ZEROPAGE`.
const MAP_LIMIT: usize = 128;

/// `struct boot_params`: the fields that are filled, and room for the rest.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ZeroPage {
    _screen: [u8; 0x70],
    acpi_rsdp_addr: U64,
    _tables: [u8; 0x1e8 - 0x78],
    e820_entries: u8,
    _flags: [u8; HEADER_START - 0x1e9],
    hdr: SetupHeader,
    _edd: [u8; 0x2d0 - 0x26c],
    e820_table: [MapEntry; MAP_LIMIT],
    _end: [u8; 0x1000 - 0xcd0],
}
const _: () = assert!(offset_of!(ZeroPage, hdr) == HEADER_START);
const _: () = assert!(offset_of!(ZeroPage, e820_table) == 0x2d0);
const _: () = assert!(size_of::<ZeroPage>() == 0x1000);

/// Oldest protocol accepted: the first with `pref_address` and `init_size` (Linux 2.6.31).
const PROTOCOL_MIN: u16 = 0x020a;
/// First protocol with `acpi_rsdp_addr`.
const PROTOCOL_RSDP: u16 = 0x020e;
/// `loadflags`: the protected-mode code goes above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `type_of_loader` of a boot loader without a number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vid_mode`: "normal".
const VIDEO_NORMAL: u16 = 0xffff;

/// A bzImage could not be loaded.
#[derive(Debug, Error)]
pub enum BzImageError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// The file ends too early.
    #[error("the file is truncated: {part} ends at {end:#x} and the file at {file_size:#x}")]
    Truncated {
        /// What is missing.
        part: &'static str,
        /// Where it would end.
        end: u64,
        /// Bytes of the file.
        file_size: u64,
    },
    /// The boot protocol is too old.
    #[error("its boot protocol is {}.{:02}, and 2.10 is the oldest supported", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    /// A zImage, which runs below 1 MiB.
    #[error("it is a zImage, which loads below 1 MiB; a bzImage is needed")]
    LoadedLow,
    /// The kernel has no room.
    #[error(
        "it needs {size:#x} bytes at {start:#x}, and memory for kernels is from {:#x} to {top:#x}",
        layout::HIGH_MEMORY_START
    )]
    NoRoom {
        /// Where the kernel would be loaded.
        start: u64,
        /// Bytes that it needs while it decompresses itself.
        size: u64,
        /// End of memory for kernels.
        top: u64,
    },
    /// Guest memory cannot be written, or the file ended early.
    #[error("cannot copy {size:#x} bytes to guest address {gpa:#x}")]
    Copy {
        /// Where.
        gpa: u64,
        /// How many bytes.
        size: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// A loaded bzImage.
#[derive(Clone, Copy, Debug)]
pub struct BzImage {
    header: SetupHeader,
    /// Load address, and entry of the 32-bit boot protocol.
    pub start: u64,
    /// First address past what the kernel needs while it decompresses itself.
    pub end: u64,
}

impl BzImage {
    /// First address at which an initramfs must have ended.
    pub fn initramfs_end(&self) -> u64 {
        u64::from(self.header.initrd_addr_max.get()) + 1
    }

    /// Longest command line, in bytes without its NUL.
    pub fn cmdline_limit(&self) -> usize {
        self.header.cmdline_size.get() as usize
    }
}

/// Loads the protected-mode code of `file` below `top`: to the address that it prefers, or, if it
/// is relocatable and there is no room, to the lowest possible one.
///
/// # Errors
/// Any [`BzImageError`].
pub fn load(memory: &GuestMemoryMmap, file: &File, top: u64) -> Result<BzImage, BzImageError> {
    let file_size = file_size(file).map_err(BzImageError::Read)?;
    let header = read_header(file, file_size)?;

    // A count of 0 means 4, for compatibility; the boot sector comes on top.
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (sectors + 1) * 512;
    // `syssize` counts paragraphs of 16 bytes. Signatures may follow, and are not loaded.
    let size = u64::from(header.syssize.get()) * 16;
    let end = offset + size;
    if end > file_size {
        return Err(BzImageError::Truncated {
            part: "the protected-mode code",
            end,
            file_size,
        });
    }

    let needed = size.max(header.init_size.get().into());
    let start = place(&header, needed, top)?;
    read_to_guest(memory, start, file, offset, size as usize).map_err(|source| {
        BzImageError::Copy {
            gpa: start,
            size,
            source,
        }
    })?;
    Ok(BzImage {
        header,
        start,
        end: start + needed,
    })
}

/// Reads the setup header: as much as it says it has, zeroes behind.
fn read_header(file: &File, file_size: u64) -> Result<SetupHeader, BzImageError> {
    /// Protocol 2.10 ends behind `init_size`.
    const SHORTEST: usize = 0x264 - HEADER_START;

    let mut header = SetupHeader::new_zeroed();
    let end = HEADER_START + size_of::<SetupHeader>();
    if (end as u64) > file_size {
        let end = end as u64;
        return Err(BzImageError::Truncated {
            part: "the setup header",
            end,
            file_size,
        });
    }
    file.read_exact_at(header.as_mut_bytes(), HEADER_START as u64)
        .map_err(BzImageError::Read)?;
    if header.version < U16::new(PROTOCOL_MIN) {
        return Err(BzImageError::Protocol(header.version.get()));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(BzImageError::LoadedLow);
    }
    // The jump over the header tells where it ends.
    let length = (0x202 + usize::from(header.jump[1]) - HEADER_START).max(SHORTEST);
    if let Some(beyond) = header.as_mut_bytes().get_mut(length..) {
        beyond.fill(0);
    }
    Ok(header)
}

/// The load address.
fn place(header: &SetupHeader, size: u64, top: u64) -> Result<u64, BzImageError> {
    let fits = |start: u64| {
        start >= layout::HIGH_MEMORY_START && start.checked_add(size).is_some_and(|end| end <= top)
    };
    let preferred = header.pref_address.get();
    if fits(preferred) {
        return Ok(preferred);
    }
    let alignment = u64::from(header.kernel_alignment.get());
    if header.relocatable_kernel != 0 && alignment != 0 {
        let lowest = layout::HIGH_MEMORY_START.next_multiple_of(alignment);
        if fits(lowest) {
            return Ok(lowest);
        }
    }
    Err(BzImageError::NoRoom {
        start: preferred,
        size,
        top,
    })
}

/// Writes the zero page.
pub(super) fn write_zero_page(
    memory: &GuestMemoryMmap,
    kernel: &BzImage,
    initramfs: Option<Initramfs>,
    boot: &BootMemory<'_>,
) -> Result<(), LoadError> {
    let map = e820(boot.ram, boot.acpi_window);
    if map.len() > MAP_LIMIT {
        return Err(LoadError::MemoryMapTooLong {
            entries: map.len(),
            limit: MAP_LIMIT,
        });
    }
    let mut page = ZeroPage::new_zeroed();
    page.e820_entries = map.len() as u8;
    for (slot, entry) in page.e820_table.iter_mut().zip(&map) {
        slot.addr = entry.start.into();
        slot.size = entry.size.into();
        slot.kind = (entry.kind as u32).into();
    }

    page.hdr = kernel.header;
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.vid_mode = VIDEO_NORMAL.into();
    // Kernels are placed below `ram_top`, and that is below 4 GiB.
    page.hdr.code32_start = (kernel.start as u32).into();
    page.hdr.cmd_line_ptr = (layout::CMDLINE_START as u32).into();
    if let Some(Initramfs { start, size }) = initramfs {
        page.hdr.ramdisk_image = (start as u32).into();
        page.hdr.ramdisk_size = (size as u32).into();
    }
    // Older kernels find the RSDP in the BIOS area.
    if kernel.header.version >= U16::new(PROTOCOL_RSDP) {
        page.acpi_rsdp_addr = boot.rsdp.unwrap_or(0).into();
    }
    write(memory, layout::ZERO_PAGE_START, page.as_bytes())
}
