//! The MADT's entries for x86_64 (ACPI 6.5, sections 5.2.12.2 to 5.2.12.13).
//!
//! No interrupt source override is among them: every ISA interrupt that a device uses is wired to
//! the I/O APIC pin of the same number, and the DSDT states trigger and polarity.

use arch::x86_64::topology::LAST_XAPIC_ID;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::EncodeError;
use super::table::TableBuilder;
use crate::plan::{CpuPlan, PlannedCpu};

/// The highest processor UID that a local APIC entry can hold; 255 means all processors.
const LAST_XAPIC_UID: u32 = 254;

/// Local APIC flags (section 5.2.12.2).
const ENABLED: u32 = 1 << 0;
/// What a surplus CPU is instead: a possible one that is not there yet.
const ONLINE_CAPABLE: u32 = 1 << 1;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct LocalApic {
    kind: u8,
    length: u8,
    uid: u8,
    apic_id: u8,
    flags: U32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct IoApic {
    kind: u8,
    length: u8,
    id: u8,
    reserved: u8,
    address: U32,
    gsi_base: U32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    uid: u8,
    /// Polarity and trigger mode as the bus has them: 0.
    flags: U16,
    lint: u8,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: [u8; 2],
    x2apic_id: U32,
    flags: U32,
    uid: U32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct LocalX2ApicNmi {
    kind: u8,
    length: u8,
    flags: U16,
    uid: U32,
    lint: u8,
    reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<LocalApic>() == 8);
    assert!(size_of::<IoApic>() == 12);
    assert!(size_of::<LocalApicNmi>() == 6);
    assert!(size_of::<LocalX2Apic>() == 16);
    assert!(size_of::<LocalX2ApicNmi>() == 12);
};

/// `address` as a 32-bit field of the MADT.
pub(super) fn below_4g(what: &'static str, address: u64) -> Result<u32, EncodeError> {
    u32::try_from(address).map_err(|_| EncodeError::Above4GiB { what, address })
}

/// Processors in the order of the plan, then the I/O APIC, then the NMI pins.
pub(super) fn push_entries(
    table: &mut TableBuilder,
    cpus: &CpuPlan,
    io_apic: u64,
    io_apic_id: u8,
) -> Result<(), EncodeError> {
    let mut any_x2apic = false;
    for (place, cpu) in cpus.cpus.iter().enumerate() {
        let flags = if place < cpus.boot as usize {
            ENABLED
        } else {
            ONLINE_CAPABLE
        };
        any_x2apic |= push_processor(table, cpu, flags)?;
    }
    table.push(&IoApic {
        kind: 1,
        length: 12,
        id: io_apic_id,
        reserved: 0,
        address: below_4g("I/O APIC", io_apic)?.into(),
        gsi_base: U32::ZERO,
    });
    table.push(&LocalApicNmi {
        kind: 4,
        length: 6,
        uid: u8::MAX,
        flags: U16::ZERO,
        lint: 1,
    });
    if any_x2apic {
        table.push(&LocalX2ApicNmi {
            kind: 0xa,
            length: 12,
            flags: U16::ZERO,
            uid: u32::MAX.into(),
            lint: 1,
            reserved: [0; 3],
        });
    }
    Ok(())
}

/// Appends one processor; true if it took an x2APIC entry. The specification reserves those for
/// ids from 255 on.
fn push_processor(
    table: &mut TableBuilder,
    cpu: &PlannedCpu,
    flags: u32,
) -> Result<bool, EncodeError> {
    let apic_id = u32::try_from(cpu.hardware_id).map_err(|_| EncodeError::ApicId {
        cpu: cpu.index,
        id: cpu.hardware_id,
    })?;
    if apic_id > LAST_XAPIC_ID {
        table.push(&LocalX2Apic {
            kind: 9,
            length: 16,
            reserved: [0; 2],
            x2apic_id: apic_id.into(),
            flags: flags.into(),
            uid: cpu.index.into(),
        });
        return Ok(true);
    }
    if cpu.index > LAST_XAPIC_UID {
        return Err(EncodeError::ProcessorUid {
            cpu: cpu.index,
            id: apic_id,
        });
    }
    table.push(&LocalApic {
        kind: 0,
        length: 8,
        uid: cpu.index as u8,
        apic_id: apic_id as u8,
        flags: flags.into(),
    });
    Ok(false)
}
