//! The MADT's entries for aarch64 (ACPI 6.5, sections 5.2.12.14 to 5.2.12.18).

use arch::aarch64::layout::{INTID_MAINTENANCE, INTID_PMU};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::EncodeError;
use super::table::TableBuilder;
use crate::plan::{CpuPlan, GpaRange, PlannedCpu};

/// GICC flags (section 5.2.12.14).
const ENABLED: u32 = 1 << 0;
/// What a surplus CPU is. Not online-capable (bit 3): Linux starts every online-capable CPU at boot,
/// whatever its `_STA`, and leaves it off only if PSCI answers CPU_ON with DENIED
/// (`Documentation/arch/arm64/cpu-hotplug.rst`); the PSCI of KVM would start it.
const UNUSABLE: u32 = 0;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Gicc {
    kind: u8,
    length: u8,
    reserved_2: [u8; 2],
    cpu_interface: U32,
    uid: U32,
    flags: U32,
    /// 0: PSCI starts CPUs, not a mailbox.
    parking_protocol: U32,
    /// 0 if the guest has no PMU. Flag 1 would make it edge-triggered.
    performance_gsiv: U32,
    parked_address: U64,
    /// 0: a GICv3 is reached through system registers.
    physical_base: U64,
    gicv: U64,
    gich: U64,
    /// Never raised in a guest without EL2.
    maintenance_gsiv: U32,
    /// 0: a GICR entry has the redistributors.
    gicr_base: U64,
    /// MPIDR_EL1's affinity fields.
    mpidr: U64,
    efficiency_class: u8,
    reserved_77: u8,
    spe_overflow_gsiv: U16,
    trbe_gsiv: U16,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Gicd {
    kind: u8,
    length: u8,
    reserved_2: [u8; 2],
    id: U32,
    base: U64,
    system_vector_base: U32,
    version: u8,
    reserved_21: [u8; 3],
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Gicr {
    kind: u8,
    length: u8,
    /// Flags and a reserved byte. Flag 0 (non-coherent) is not ours.
    reserved_2: [u8; 2],
    discovery_base: U64,
    discovery_length: U32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Its {
    kind: u8,
    length: u8,
    reserved_2: [u8; 2],
    id: U32,
    base: U64,
    reserved_16: U32,
}

const _: () = {
    assert!(size_of::<Gicc>() == 82);
    assert!(std::mem::offset_of!(Gicc, maintenance_gsiv) == 56);
    assert!(std::mem::offset_of!(Gicc, mpidr) == 68);
    assert!(size_of::<Gicd>() == 24);
    assert!(size_of::<Gicr>() == 16);
    assert!(size_of::<Its>() == 20);
};

/// Distributor, processors in the order of the plan, redistributors, ITS.
pub(super) fn push_entries(
    table: &mut TableBuilder,
    cpus: &CpuPlan,
    distributor: GpaRange,
    redistributors: GpaRange,
    its: GpaRange,
) -> Result<(), EncodeError> {
    table.push(&Gicd {
        kind: 0xc,
        length: 24,
        reserved_2: [0; 2],
        id: U32::ZERO,
        base: distributor.start.into(),
        system_vector_base: U32::ZERO,
        version: 3,
        reserved_21: [0; 3],
    });
    let pmu_gsiv = if cpus.pmu { INTID_PMU } else { 0 };
    for (place, cpu) in cpus.cpus.iter().enumerate() {
        let flags = if place < cpus.boot as usize {
            ENABLED
        } else {
            UNUSABLE
        };
        table.push(&gicc(cpu, flags, pmu_gsiv));
    }
    let discovery_length =
        u32::try_from(redistributors.size).map_err(|_| EncodeError::Redistributors {
            size: redistributors.size,
        })?;
    table.push(&Gicr {
        kind: 0xe,
        length: 16,
        reserved_2: [0; 2],
        discovery_base: redistributors.start.into(),
        discovery_length: discovery_length.into(),
    });
    table.push(&Its {
        kind: 0xf,
        length: 20,
        reserved_2: [0; 2],
        id: U32::ZERO,
        base: its.start.into(),
        reserved_16: U32::ZERO,
    });
    Ok(())
}

fn gicc(cpu: &PlannedCpu, flags: u32, pmu_gsiv: u32) -> Gicc {
    Gicc {
        kind: 0xb,
        length: 82,
        reserved_2: [0; 2],
        cpu_interface: cpu.index.into(),
        uid: cpu.index.into(),
        flags: flags.into(),
        parking_protocol: U32::ZERO,
        performance_gsiv: pmu_gsiv.into(),
        parked_address: U64::ZERO,
        physical_base: U64::ZERO,
        gicv: U64::ZERO,
        gich: U64::ZERO,
        maintenance_gsiv: INTID_MAINTENANCE.into(),
        gicr_base: U64::ZERO,
        mpidr: cpu.hardware_id.into(),
        efficiency_class: 0,
        reserved_77: 0,
        spe_overflow_gsiv: U16::ZERO,
        trbe_gsiv: U16::ZERO,
    }
}
