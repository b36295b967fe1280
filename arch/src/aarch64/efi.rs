//! What Linux's EFI stub would have left in memory, so that a kernel which was booted directly
//! takes its ACPI tables from a configuration table: with a device tree alone it uses no ACPI.
//!
//! Sources: UEFI 2.10, sections 4.2 (table header), 4.3 (system table), 4.6 (configuration table)
//! and 7.2.3 (memory map); Linux, Documentation/arch/arm/uefi.rst, for what the kernel asks for.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::GpaRange;

/// "IBI SYST".
const SYSTEM_TABLE_SIGNATURE: u64 = 0x5453_5953_2049_4249;
/// UEFI 2.10: the major number in the upper half, ten times the minor in the lower.
const SYSTEM_TABLE_REVISION: u32 = 2 << 16 | 100;

const ACPI_20_GUID: [u8; 16] = guid(0x8868_e871, 0xe4f1, 0x11d3, 0xbc22_0080_c73c_8881);
const SMBIOS3_GUID: [u8; 16] = guid(0xf2fd_1544, 0x9794, 0x4a2c, 0x992e_e5bb_cf20_e394);
/// Without this table the kernel calls runtime services, of which there are none.
const RT_PROPERTIES_GUID: [u8; 16] = guid(0xeb66_918a, 0x7eef, 0x402a, 0x842e_931d_21c3_8ae9);
/// Without this table the kernel cannot reserve the memory of its interrupt controller and taints
/// itself.
const LINUX_MEMRESERVE_GUID: [u8; 16] = guid(0x888e_b0c6, 0x8ede, 0x4ff5, 0xa8f0_9aee_5cb9_77c2);

const PAGE_SIZE: u64 = 4096;
/// Every structure starts at a multiple of this many bytes.
const ALIGNMENT: usize = 16;

const LOADER_DATA: u32 = 2;
const CONVENTIONAL_MEMORY: u32 = 7;
const ACPI_RECLAIM_MEMORY: u32 = 9;
/// EFI_MEMORY_WB, and no EFI_MEMORY_RUNTIME: the kernel need not map it for services.
const WRITE_BACK: u64 = 8;

/// Version of the memory map's descriptors.
pub const DESCRIPTOR_VERSION: u32 = 1;
/// Bytes of one of the memory map's descriptors.
pub const DESCRIPTOR_SIZE: u32 = size_of::<MemoryDescriptor>() as u32;

/// EFI_SYSTEM_TABLE (UEFI 2.10, section 4.3.1), the header of section 4.2.1 included.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SystemTable {
    signature: U64,
    revision: U32,
    header_size: U32,
    crc32: U32,
    reserved: U32,
    firmware_vendor: U64,
    firmware_revision: U32,
    padding: U32,
    /// Handle and protocol of each of input, output and standard error.
    console: [U64; 6],
    runtime_services: U64,
    boot_services: U64,
    table_count: U64,
    tables: U64,
}
const _: () = assert!(size_of::<SystemTable>() == 120);

/// EFI_CONFIGURATION_TABLE (UEFI 2.10, section 4.6).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ConfigurationTable {
    guid: [u8; 16],
    table: U64,
}
const _: () = assert!(size_of::<ConfigurationTable>() == 24);

/// EFI_RT_PROPERTIES_TABLE (UEFI 2.10, section 4.6.2).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RtProperties {
    version: U16,
    length: U16,
    supported_services: U32,
}
const _: () = assert!(size_of::<RtProperties>() == 8);

/// EFI_MEMORY_DESCRIPTOR (UEFI 2.10, section 7.2.3).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct MemoryDescriptor {
    kind: U32,
    padding: U32,
    physical_start: U64,
    virtual_start: U64,
    pages: U64,
    attributes: U64,
}
const _: () = assert!(size_of::<MemoryDescriptor>() == 40);

/// What the EFI structures say, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct EfiInputs<'a> {
    /// Where the structures go; within `acpi_window`, at a multiple of 16 bytes.
    pub area: GpaRange,
    /// Who the kernel log says made the firmware.
    pub vendor: &'a str,
    /// Address of the RSDP.
    pub rsdp: u64,
    /// Address of the SMBIOS 3 entry point.
    pub smbios: Option<u64>,
    /// RAM with the device tree, in multiples of 4 KiB.
    pub fdt_window: GpaRange,
    /// RAM with ACPI tables, SMBIOS and `area`, in multiples of 4 KiB; above `fdt_window`.
    pub acpi_window: GpaRange,
    /// All RAM, the two windows included, in multiples of 4 KiB; ascending and disjoint.
    pub ram: &'a [GpaRange],
}

/// The EFI structures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EfiImage {
    /// To be placed at the start of [`EfiInputs::area`].
    pub bytes: Vec<u8>,
    /// What the device tree tells of them.
    pub pointers: EfiPointers,
}

/// Where a device tree says the EFI structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EfiPointers {
    /// The system table.
    pub system_table: u64,
    /// The memory map, whose descriptors have [`DESCRIPTOR_SIZE`] and [`DESCRIPTOR_VERSION`].
    pub memory_map: u64,
    /// Bytes of the memory map.
    pub memory_map_size: u32,
}

/// Why EFI structures were not built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EfiError {
    /// The space is too small.
    #[error("the EFI structures take {needed:#x} bytes, there are {available:#x}")]
    TooLarge {
        /// What they take, in bytes.
        needed: u64,
        /// What there is, in bytes.
        available: u64,
    },
    /// Not made of EFI pages.
    #[error("RAM at {start:#x}, {size:#x} bytes, is not made of whole 4 KiB pages")]
    Unaligned {
        /// First address.
        start: u64,
        /// Bytes.
        size: u64,
    },
}

/// Builds the EFI structures for an ACPI guest.
///
/// # Errors
///
/// A range of RAM is not made of whole pages, or `area` is too small for the memory map.
pub fn build(inputs: &EfiInputs<'_>) -> Result<EfiImage, EfiError> {
    let memory_map = memory_map(inputs)?;
    let mut arena = Arena {
        start: inputs.area.start,
        bytes: Vec::new(),
    };
    let memory_map_size = memory_map.as_bytes().len() as u32;
    let memory_map = arena.place(memory_map.as_bytes());
    let vendor: Vec<U16> = inputs
        .vendor
        .encode_utf16()
        .chain([0])
        .map(U16::new)
        .collect();
    let firmware_vendor = arena.place(vendor.as_bytes());
    let tables = configuration(inputs, &mut arena);

    let mut system_table = SystemTable {
        signature: SYSTEM_TABLE_SIGNATURE.into(),
        revision: SYSTEM_TABLE_REVISION.into(),
        header_size: (size_of::<SystemTable>() as u32).into(),
        crc32: 0.into(),
        reserved: 0.into(),
        firmware_vendor: firmware_vendor.into(),
        firmware_revision: 0.into(),
        padding: 0.into(),
        console: [0.into(); 6],
        runtime_services: 0.into(),
        boot_services: 0.into(),
        table_count: (tables.len() as u64).into(),
        tables: arena.place(tables.as_bytes()).into(),
    };
    system_table.crc32 = crc32(system_table.as_bytes()).into();
    let system_table = arena.place(system_table.as_bytes());

    let needed = arena.bytes.len() as u64;
    if needed > inputs.area.size {
        return Err(EfiError::TooLarge {
            needed,
            available: inputs.area.size,
        });
    }
    Ok(EfiImage {
        bytes: arena.bytes,
        pointers: EfiPointers {
            system_table,
            memory_map,
            memory_map_size,
        },
    })
}

/// Every range of memory that the guest may use, ascending. Kernel and initramfs have no entry of
/// their own: the kernel knows where they are.
fn memory_map(inputs: &EfiInputs<'_>) -> Result<Vec<MemoryDescriptor>, EfiError> {
    let windows = [
        (LOADER_DATA, inputs.fdt_window),
        (ACPI_RECLAIM_MEMORY, inputs.acpi_window),
    ];
    let mut entries = windows.to_vec();
    for ram in inputs.ram {
        let mut start = ram.start;
        for (_, window) in windows {
            let end = window.start.clamp(start, ram.end());
            entries.push((CONVENTIONAL_MEMORY, range(start, end)));
            start = window.end().clamp(end, ram.end());
        }
        entries.push((CONVENTIONAL_MEMORY, range(start, ram.end())));
    }
    entries.retain(|(_, range)| range.size > 0);
    entries.sort_by_key(|(_, range)| range.start);
    entries
        .into_iter()
        .map(|(kind, range)| descriptor(kind, range))
        .collect()
}

fn range(start: u64, end: u64) -> GpaRange {
    GpaRange {
        start,
        size: end - start,
    }
}

fn descriptor(kind: u32, range: GpaRange) -> Result<MemoryDescriptor, EfiError> {
    let GpaRange { start, size } = range;
    if start % PAGE_SIZE != 0 || size % PAGE_SIZE != 0 {
        return Err(EfiError::Unaligned { start, size });
    }
    Ok(MemoryDescriptor {
        kind: kind.into(),
        padding: 0.into(),
        physical_start: start.into(),
        virtual_start: 0.into(),
        pages: (size / PAGE_SIZE).into(),
        attributes: WRITE_BACK.into(),
    })
}

fn configuration(inputs: &EfiInputs<'_>, arena: &mut Arena) -> Vec<ConfigurationTable> {
    let rt_properties = RtProperties {
        version: 1.into(),
        length: (size_of::<RtProperties>() as u16).into(),
        supported_services: 0.into(),
    };
    let entry = |guid, table: u64| ConfigurationTable {
        guid,
        table: table.into(),
    };
    let mut tables = vec![
        entry(ACPI_20_GUID, inputs.rsdp),
        entry(RT_PROPERTIES_GUID, arena.place(rt_properties.as_bytes())),
        // struct linux_efi_memreserve: room for no entry, none used, no successor.
        entry(LINUX_MEMRESERVE_GUID, arena.place(&[0; 16])),
    ];
    tables.extend(inputs.smbios.map(|smbios| entry(SMBIOS3_GUID, smbios)));
    tables
}

/// Bytes that will lie at a known address.
struct Arena {
    start: u64,
    bytes: Vec<u8>,
}

impl Arena {
    /// Appends a structure and returns its address.
    fn place(&mut self, structure: &[u8]) -> u64 {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(structure);
        self.start.saturating_add(offset as u64)
    }
}

/// The bytes of a GUID whose text form is `a-b-c-d`, d without its hyphen (UEFI 2.10, appendix A).
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let low = (c as u64) << 48 | (b as u64) << 32 | a as u64;
    (low as u128 | (d.swap_bytes() as u128) << 64).to_le_bytes()
}

/// CRC-32 with the polynomial of ISO 3309, as UEFI 2.10, section 4.2, asks for.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests;
