//! Flattened device trees: a stub that points an ACPI guest at its EFI structures, and the whole
//! machine for a guest without ACPI.
//!
//! Sources: Devicetree Specification 0.4; Linux, Documentation/devicetree/bindings (named where
//! used) and Documentation/arch/arm/uefi.rst.

mod cpus;
mod machine;
mod memory;

use thiserror::Error;
use vm_fdt::FdtWriter;

use super::efi::{DESCRIPTOR_SIZE, DESCRIPTOR_VERSION, EfiPointers};
use super::layout;
use crate::GpaRange;

pub use machine::{Gic, MachineTree, Peripheral, machine_tree};
pub use memory::{Distance, Ram};

/// Longest kernel command line that Linux does not cut, in bytes: COMMAND_LINE_SIZE less its NUL.
pub const MAX_BOOTARGS: usize = 2047;

/// `linux,uefi-secure-boot`: enum efi_secureboot_mode, "disabled".
const SECURE_BOOT_DISABLED: u32 = 2;

/// What any kernel is told in `/chosen`.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// Kernel command line; at most [`MAX_BOOTARGS`] bytes, no NUL.
    pub bootargs: &'a str,
    /// Where the initramfs is.
    pub initramfs: Option<GpaRange>,
    /// Random numbers, different at every start.
    pub seeds: Seeds<'a>,
}

/// Random numbers for the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Seeds<'a> {
    /// Chooses the kernel's virtual addresses.
    pub kaslr: [u8; 8],
    /// Goes into the kernel's random number generator.
    pub rng: &'a [u8],
}

/// One CPU and its place in the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of its MPIDR_EL1: Aff3 in bits 39:32, Aff2..Aff0 in bits 23:0.
    pub mpidr: u64,
    /// Package.
    pub package: u32,
    /// Die within the package.
    pub die: u32,
    /// Core within the die.
    pub core: u32,
    /// Thread within the core.
    pub thread: u32,
    /// NUMA node that it is in.
    pub numa_node: Option<u32>,
}

/// Why a device tree was not built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FdtError {
    /// Linux would cut the command line.
    #[error("the kernel command line has {length} bytes, Linux takes {MAX_BOOTARGS}")]
    BootargsTooLong {
        /// Length in bytes.
        length: usize,
    },
    /// Not an interrupt that a device can have.
    #[error("INTID {0} is no shared peripheral interrupt (32 to 1019)")]
    NotShared(u32),
    /// Linux would not take the blob.
    #[error("the device tree has {size:#x} bytes, Linux takes {limit:#x}", limit = layout::FDT.size)]
    TooLarge {
        /// Size in bytes.
        size: usize,
    },
    /// The blob cannot be encoded.
    #[error("cannot encode the device tree")]
    Encode(#[from] vm_fdt::Error),
}

/// Builds the device tree of an ACPI guest: `/chosen`, which leads the kernel to the EFI system
/// table, and nothing else. A single device or memory node, and Linux would leave ACPI off.
///
/// # Errors
///
/// The command line is too long or holds a NUL.
pub fn acpi_stub(chosen: &Chosen<'_>, efi: &EfiPointers) -> Result<Vec<u8>, FdtError> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    let node = fdt.begin_node("chosen")?;
    write_chosen(&mut fdt, chosen)?;
    fdt.property_u64("linux,uefi-system-table", efi.system_table)?;
    fdt.property_u64("linux,uefi-mmap-start", efi.memory_map)?;
    fdt.property_u32("linux,uefi-mmap-size", efi.memory_map_size)?;
    fdt.property_u32("linux,uefi-mmap-desc-size", DESCRIPTOR_SIZE)?;
    fdt.property_u32("linux,uefi-mmap-desc-ver", DESCRIPTOR_VERSION)?;
    // Not in mainline Linux; Debian's and Ubuntu's kernels panic without it.
    fdt.property_u32("linux,uefi-secure-boot", SECURE_BOOT_DISABLED)?;
    fdt.end_node(node)?;
    fdt.end_node(root)?;
    finish(fdt)
}

/// Writes the properties of `/chosen` that any kernel gets.
fn write_chosen(fdt: &mut FdtWriter, chosen: &Chosen<'_>) -> Result<(), FdtError> {
    let length = chosen.bootargs.len();
    if length > MAX_BOOTARGS {
        return Err(FdtError::BootargsTooLong { length });
    }
    fdt.property_string("bootargs", chosen.bootargs)?;
    if let Some(initramfs) = chosen.initramfs {
        fdt.property_u64("linux,initrd-start", initramfs.start)?;
        fdt.property_u64("linux,initrd-end", initramfs.end())?;
    }
    fdt.property("kaslr-seed", &chosen.seeds.kaslr)?;
    fdt.property("rng-seed", chosen.seeds.rng)?;
    Ok(())
}

fn finish(fdt: FdtWriter) -> Result<Vec<u8>, FdtError> {
    let blob = fdt.finish()?;
    if blob.len() as u64 > layout::FDT.size {
        return Err(FdtError::TooLarge { size: blob.len() });
    }
    Ok(blob)
}

#[cfg(test)]
mod tests;
