//! The guest-physical address space: RAM, the window for tables, room for PCI.

use arch::{Isa, aarch64, x86_64};

use super::{GpaRange, MemoryPlan, PlanError, ZonePlan};
use crate::config::MemoryConfig;

/// Granule of the ACPI window on x86_64, in bytes.
const X86_WINDOW_GRANULE: u64 = 64 << 10;
/// Alignment of the 64-bit PCI window, in bytes.
const MMIO64_ALIGNMENT: u64 = 1 << 30;

/// Lays out RAM, zone by zone, and what follows behind it. [`place_tables`] does the rest.
pub(super) fn ram(isa: Isa, config: &MemoryConfig, phys_bits: u8) -> Result<MemoryPlan, PlanError> {
    use x86_64::layout::{HIGH_RAM_START, LOW_RAM_END, MMIO32_END, MMIO32_START};
    let size = config.total();
    let limit = 1_u64 << phys_bits.min(62);
    if size >= limit {
        return Err(PlanError::TooMuchMemory { size, phys_bits });
    }
    let (mut banks, mmio32) = match isa {
        Isa::X86_64 => {
            let low = GpaRange {
                start: 0,
                size: LOW_RAM_END,
            };
            let high = GpaRange {
                start: HIGH_RAM_START,
                size: u64::MAX - HIGH_RAM_START,
            };
            let mmio32 = GpaRange {
                start: MMIO32_START,
                size: MMIO32_END - MMIO32_START,
            };
            (vec![low, high], mmio32)
        }
        Isa::Aarch64 => {
            use aarch64::layout::{PCI_MMIO32, RAM_START};
            let bank = GpaRange {
                start: RAM_START,
                size: u64::MAX - RAM_START,
            };
            (vec![bank], PCI_MMIO32)
        }
    };
    let ram = fill(&mut banks.clone(), size);
    let zones = config.as_zones().into_iter().map(|zone| ZonePlan {
        ranges: fill(&mut banks, zone.size),
        id: zone.id,
    });
    let zones = zones.collect();
    let ram_end = ram.last().map_or(0, GpaRange::end);
    let mmio64_start = ram_end.max(1 << 32).next_multiple_of(MMIO64_ALIGNMENT);
    if mmio64_start >= limit {
        return Err(PlanError::TooMuchMemory { size, phys_bits });
    }
    Ok(MemoryPlan {
        ram,
        zones,
        acpi_window: None,
        mmio32,
        mmio64: GpaRange {
            start: mmio64_start,
            size: limit - mmio64_start,
        },
    })
}

/// Takes `size` bytes from the front of `banks`, which are ascending.
fn fill(banks: &mut Vec<GpaRange>, mut size: u64) -> Vec<GpaRange> {
    let mut taken = Vec::new();
    while size > 0
        && let Some(bank) = banks.first_mut()
    {
        let part = size.min(bank.size);
        taken.push(GpaRange {
            start: bank.start,
            size: part,
        });
        size -= part;
        bank.start += part;
        bank.size -= part;
        if bank.size == 0 {
            banks.remove(0);
        }
    }
    taken
}

/// Finds room for `tables` bytes of ACPI tables, if there are any.
pub(super) fn place_tables(
    isa: Isa,
    memory: &mut MemoryPlan,
    tables: Option<u64>,
) -> Result<(), PlanError> {
    let size = memory.ram.iter().map(|range| range.size).sum();
    memory.acpi_window = match isa {
        Isa::X86_64 => x86_64_window(&memory.ram, size, tables)?,
        Isa::Aarch64 => aarch64_window(size, tables)?,
    };
    Ok(())
}

/// Tables at the top of the lower part of RAM.
fn x86_64_window(
    ram: &[GpaRange],
    size: u64,
    tables: Option<u64>,
) -> Result<Option<GpaRange>, PlanError> {
    use x86_64::layout::HIGH_MEMORY_START;
    let Some(bytes) = tables else {
        return Ok(None);
    };
    let window = bytes.next_multiple_of(X86_WINDOW_GRANULE);
    let needed = HIGH_MEMORY_START + window;
    let low_end = ram.first().map_or(0, GpaRange::end);
    if low_end < needed {
        return Err(PlanError::TooLittleMemory { size, needed });
    }
    Ok(Some(GpaRange {
        start: (low_end - window) / X86_WINDOW_GRANULE * X86_WINDOW_GRANULE,
        size: window,
    }))
}

/// Tables behind the window of the device tree.
fn aarch64_window(size: u64, tables: Option<u64>) -> Result<Option<GpaRange>, PlanError> {
    use aarch64::layout::{AcpiWindow, FDT};
    let window = tables.map(|bytes| AcpiWindow::holding(bytes).range());
    let needed = FDT.size + window.map_or(0, |window| window.size);
    if size < needed {
        return Err(PlanError::TooLittleMemory { size, needed });
    }
    Ok(window)
}
