//! The PVH boot protocol's structures (Xen, "x86/HVM direct boot ABI", docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h). All fields are little-endian.

use vm_memory::GuestMemoryMmap;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout};

use super::e820::e820;
use super::initramfs::Initramfs;
use super::{BootMemory, LoadError, layout, write};

/// Longest command line, in bytes without its NUL: the protocol has no limit, but Linux on x86
/// cuts what is beyond `COMMAND_LINE_SIZE`, 2048 with the NUL.
pub const CMDLINE_LIMIT: usize = 2047;

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the top bit of its "E" set.
const MAGIC: u32 = 0x336e_c578;
/// First version with a memory map.
const VERSION: u32 = 1;

/// `struct hvm_start_info`, version 1. An address of 0 means that there is none.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct StartInfo {
    magic: U32,
    version: U32,
    flags: U32,
    nr_modules: U32,
    modlist_paddr: U64,
    cmdline_paddr: U64,
    rsdp_paddr: U64,
    memmap_paddr: U64,
    memmap_entries: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<StartInfo>() == 56);

/// `struct hvm_modlist_entry`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ModuleEntry {
    paddr: U64,
    size: U64,
    cmdline_paddr: U64,
    reserved: U64,
}
const _: () = assert!(size_of::<ModuleEntry>() == 32);

/// `struct hvm_memmap_table_entry`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MemoryMapEntry {
    addr: U64,
    size: U64,
    kind: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<MemoryMapEntry>() == 24);

/// Most entries that fit the memory map's place.
const MEMORY_MAP_LIMIT: usize = layout::PVH_MEMORY_MAP_SIZE as usize / size_of::<MemoryMapEntry>();

/// Writes `hvm_start_info` and what it points to, save the command line.
pub(super) fn write_start_info(
    memory: &GuestMemoryMmap,
    initramfs: Option<Initramfs>,
    boot: &BootMemory<'_>,
) -> Result<(), LoadError> {
    let map: Vec<_> = e820(boot.ram, boot.acpi_window)
        .iter()
        .map(|entry| MemoryMapEntry {
            addr: entry.start.into(),
            size: entry.size.into(),
            kind: (entry.kind as u32).into(),
            reserved: 0.into(),
        })
        .collect();
    if map.len() > MEMORY_MAP_LIMIT {
        return Err(LoadError::MemoryMapTooLong {
            entries: map.len(),
            limit: MEMORY_MAP_LIMIT,
        });
    }
    write(memory, layout::PVH_MEMORY_MAP_START, map.as_bytes())?;

    if let Some(Initramfs { start, size }) = initramfs {
        let module = ModuleEntry {
            paddr: start.into(),
            size: size.into(),
            cmdline_paddr: 0.into(),
            reserved: 0.into(),
        };
        write(memory, layout::PVH_MODULES_START, module.as_bytes())?;
    }

    let info = StartInfo {
        magic: MAGIC.into(),
        version: VERSION.into(),
        flags: 0.into(),
        nr_modules: u32::from(initramfs.is_some()).into(),
        modlist_paddr: initramfs.map_or(0, |_| layout::PVH_MODULES_START).into(),
        cmdline_paddr: layout::CMDLINE_START.into(),
        rsdp_paddr: boot.rsdp.unwrap_or(0).into(),
        memmap_paddr: layout::PVH_MEMORY_MAP_START.into(),
        memmap_entries: (map.len() as u32).into(),
        reserved: 0.into(),
    };
    write(memory, layout::PVH_START_INFO_START, info.as_bytes())
}
