//! Multiple APIC Description Table (ACPI 6.5, section 5.2.12).

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

use super::table::{Table, TableBuilder};
use super::{EncodeError, apic, gic};
use crate::plan::{CpuPlan, InterruptPlan};

/// Revision of ACPI 6.5, whose GICC has 82 bytes and the online-capable flag (the local APIC has
/// had that flag since revision 5).
const REVISION: u8 = 6;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Body {
    local_apic: U32,
    /// Bit 0 is PCAT_COMPAT. There is no pair of 8259s.
    flags: U32,
}

const _: () = assert!(size_of::<Body>() == 8);

/// Processors and interrupt controllers.
pub(super) fn encode(cpus: &CpuPlan, interrupts: &InterruptPlan) -> Result<Table, EncodeError> {
    let mut table = TableBuilder::new(*b"APIC", REVISION);
    let local_apic = match *interrupts {
        InterruptPlan::Apic { local_apic, .. } => apic::below_4g("local APIC", local_apic)?,
        InterruptPlan::GicV3 { .. } => 0,
    };
    table.push(&Body {
        local_apic: local_apic.into(),
        flags: U32::ZERO,
    });
    match *interrupts {
        InterruptPlan::Apic {
            local_apic: _,
            io_apic,
            io_apic_id,
        } => apic::push_entries(&mut table, cpus, io_apic, io_apic_id)?,
        InterruptPlan::GicV3 {
            distributor,
            redistributors,
            its,
        } => gic::push_entries(&mut table, cpus, distributor, redistributors, its)?,
    }
    Ok(table.finish())
}
