//! The guest-physical address space: RAM, the window for tables, room for PCI.

use arch::{Isa, aarch64, x86_64};

use super::{GpaRange, MemoryPlan, PlanError};

/// Granule of the ACPI window on x86_64, in bytes.
const X86_WINDOW_GRANULE: u64 = 64 << 10;
/// Alignment of the 64-bit PCI window, in bytes.
const MMIO64_ALIGNMENT: u64 = 1 << 30;

/// Lays out `size` bytes of RAM with a window for `tables` bytes of ACPI tables, if there are any.
pub(super) fn plan(
    isa: Isa,
    size: u64,
    phys_bits: u8,
    tables: Option<u64>,
) -> Result<MemoryPlan, PlanError> {
    let limit = 1_u64 << phys_bits.min(62);
    if size >= limit {
        return Err(PlanError::TooMuchMemory { size, phys_bits });
    }
    let (ram, acpi_window, mmio32) = match isa {
        Isa::X86_64 => x86_64_ram(size, tables)?,
        Isa::Aarch64 => aarch64_ram(size, tables)?,
    };
    let ram_end = ram.last().map_or(0, GpaRange::end);
    let mmio64_start = ram_end.max(1 << 32).next_multiple_of(MMIO64_ALIGNMENT);
    if mmio64_start >= limit {
        return Err(PlanError::TooMuchMemory { size, phys_bits });
    }
    Ok(MemoryPlan {
        ram,
        acpi_window,
        mmio32,
        mmio64: GpaRange {
            start: mmio64_start,
            size: limit - mmio64_start,
        },
    })
}

type Layout = (Vec<GpaRange>, Option<GpaRange>, GpaRange);

/// RAM around the 32-bit hole, tables at the top of its lower part.
fn x86_64_ram(size: u64, tables: Option<u64>) -> Result<Layout, PlanError> {
    use x86_64::layout::{
        HIGH_MEMORY_START, HIGH_RAM_START, LOW_RAM_END, MMIO32_END, MMIO32_START,
    };
    let low = GpaRange {
        start: 0,
        size: size.min(LOW_RAM_END),
    };
    let mut ram = vec![low];
    if size > LOW_RAM_END {
        ram.push(GpaRange {
            start: HIGH_RAM_START,
            size: size - LOW_RAM_END,
        });
    }
    let window = match tables {
        Some(bytes) => {
            let window = bytes.next_multiple_of(X86_WINDOW_GRANULE);
            let needed = HIGH_MEMORY_START + window;
            if low.size < needed {
                return Err(PlanError::TooLittleMemory { size, needed });
            }
            Some(GpaRange {
                start: (low.end() - window) / X86_WINDOW_GRANULE * X86_WINDOW_GRANULE,
                size: window,
            })
        }
        None => None,
    };
    let mmio32 = GpaRange {
        start: MMIO32_START,
        size: MMIO32_END - MMIO32_START,
    };
    Ok((ram, window, mmio32))
}

/// RAM in one piece; tables behind the window of the device tree.
fn aarch64_ram(size: u64, tables: Option<u64>) -> Result<Layout, PlanError> {
    use aarch64::layout::{AcpiWindow, FDT, PCI_MMIO32, RAM_START};
    let ram = GpaRange {
        start: RAM_START,
        size,
    };
    let window = tables.map(|bytes| AcpiWindow::holding(bytes).range());
    let needed = FDT.size + window.map_or(0, |window| window.size);
    if size < needed {
        return Err(PlanError::TooLittleMemory { size, needed });
    }
    Ok((vec![ram], window, PCI_MMIO32))
}
