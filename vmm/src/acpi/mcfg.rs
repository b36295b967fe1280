//! Memory-mapped configuration space (PCI Firmware Specification 3.3, section 4.1.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::table::{Table, TableBuilder};
use crate::plan::PciPlan;

/// The only revision.
const REVISION: u8 = 1;

/// Every segment has this bus and no other.
const BUS: u8 = 0;

/// Configuration space base address allocation (table 4-3).
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Allocation {
    /// Where bus 0 is, or would be.
    base: U64,
    segment: U16,
    first_bus: u8,
    last_bus: u8,
    reserved: U32,
}

const _: () = assert!(size_of::<Allocation>() == 16);

/// One allocation for each segment.
pub(super) fn encode(pci: &PciPlan) -> Table {
    let mut table = TableBuilder::new(*b"MCFG", REVISION);
    // Reserved.
    table.push(&U64::ZERO);
    for segment in &pci.segments {
        table.push(&Allocation {
            base: segment.ecam.start.into(),
            segment: segment.number.into(),
            first_bus: BUS,
            last_bus: BUS,
            reserved: U32::ZERO,
        });
    }
    table.finish()
}
