//! ACPI tables and SMBIOS, finished, at their addresses.

use acpi_numa::topology::Topology;
use arch::smbios::{self, BaseboardInfo, BiosInfo, ChassisInfo, SmbiosInfo, SystemInfo};
use arch::{Isa, aarch64, x86_64};
use devices::acpi::sleep;

use super::{
    CpuPlan, FirmwarePlan, GpaRange, InterruptPlan, MemoryPlan, PciPlan, PlanError, PlannedTable,
    PlatformDevices, SleepPlan,
};
use crate::acpi::{AcpiTables, RsdpAt};
use crate::config::PlatformConfig;

/// Who guests see as maker of their firmware and, unless the operator says otherwise, of their
/// hardware.
pub const VENDOR: &str = "Cloud Hypervisor compatible";

/// Tables that have no addresses yet.
pub(super) struct Encoded {
    tables: AcpiTables,
    rsdp: RsdpAt,
}

impl Encoded {
    /// Bytes that the tables need in their window.
    pub(super) fn size(&self) -> u64 {
        self.tables.size(self.rsdp)
    }
}

pub(super) fn encode(
    isa: Isa,
    cpus: &CpuPlan,
    interrupts: &InterruptPlan,
    devices: &PlatformDevices,
    pci: &PciPlan,
    numa: Option<&Topology>,
) -> Result<Encoded, PlanError> {
    let tables = AcpiTables::encode(isa, cpus, interrupts, devices, numa, Some(pci));
    let tables = tables.map_err(PlanError::AcpiEncode)?;
    let rsdp = match isa {
        Isa::X86_64 => RsdpAt::Fixed(x86_64::layout::RSDP_START),
        Isa::Aarch64 => RsdpAt::WindowStart,
    };
    Ok(Encoded { tables, rsdp })
}

pub(super) fn place(
    isa: Isa,
    acpi: Option<Encoded>,
    memory: &MemoryPlan,
    sleep: Option<SleepPlan>,
    platform: &PlatformConfig,
) -> Result<FirmwarePlan, PlanError> {
    let (Some(Encoded { tables, rsdp }), Some(window)) = (acpi, memory.acpi_window) else {
        return Ok(FirmwarePlan::DeviceTree);
    };
    let placed = tables.place(window, rsdp).map_err(PlanError::AcpiPlace)?;
    let smbios = place_smbios(smbios_room(isa, window), platform)?;
    Ok(FirmwarePlan::Acpi {
        rsdp: placed.rsdp,
        tables: placed.tables,
        smbios,
        reset_vector: sleep.map(reset_vector),
    })
}

fn reset_vector(registers: SleepPlan) -> PlannedTable {
    let port = registers.base + sleep::RESET as u16;
    PlannedTable {
        name: "RESET".to_owned(),
        gpa: x86_64::layout::RESET_VECTOR,
        bytes: x86_64::boot::reset_vector::code(port, sleep::RESET_VALUE).to_vec(),
    }
}

/// Where SMBIOS goes: on x86_64 where guests without UEFI search for it, on aarch64 wherever the
/// EFI configuration table says.
fn smbios_room(isa: Isa, acpi_window: GpaRange) -> GpaRange {
    match isa {
        Isa::X86_64 => {
            let start = x86_64::layout::SMBIOS_ENTRY_START;
            let size = x86_64::layout::SMBIOS_TABLE_END - start;
            GpaRange { start, size }
        }
        Isa::Aarch64 => aarch64::layout::AcpiWindow::from_range(acpi_window)
            .map_or(GpaRange { start: 0, size: 0 }, |window| window.smbios()),
    }
}

/// The entry point first, the structures behind it.
fn place_smbios(room: GpaRange, platform: &PlatformConfig) -> Result<Vec<PlannedTable>, PlanError> {
    /// Bytes from the entry point to the structures: its 24, rounded up to 16.
    const ENTRY_ROOM: u64 = 32;

    let table_gpa = room.start + ENTRY_ROOM;
    let limit = u16::try_from(room.size.saturating_sub(ENTRY_ROOM)).unwrap_or(u16::MAX);
    let smbios::Smbios { entry, table } =
        smbios::build(&smbios_info(platform), table_gpa, limit).map_err(PlanError::Smbios)?;
    let part = |name: &str, gpa, bytes| PlannedTable {
        name: name.to_owned(),
        gpa,
        bytes,
    };
    Ok(vec![
        part("_SM3_", room.start, entry.to_vec()),
        part("SMBIOS", table_gpa, table),
    ])
}

fn smbios_info(platform: &PlatformConfig) -> SmbiosInfo {
    let PlatformConfig {
        num_pci_segments: _,
        vfio_p2p_dma: _,
        system_manufacturer,
        system_product_name,
        system_version,
        system_serial_number: _,
        system_uuid: _,
        system_sku_number,
        system_family,
        oem_strings,
        chassis_asset_tag,
        serial_number: _,
        uuid: _,
        acpi: _,
    } = platform;
    let manufacturer = system_manufacturer.clone().or(Some(VENDOR.to_owned()));
    let product_name = system_product_name
        .clone()
        .or(Some("cloud-hypervisor".to_owned()));
    SmbiosInfo {
        bios: BiosInfo {
            vendor: Some(VENDOR.to_owned()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            release_date: Some("01/01/2026".to_owned()),
        },
        system: SystemInfo {
            manufacturer: manufacturer.clone(),
            product_name: product_name.clone(),
            version: system_version.clone(),
            // Each has an older spelling; validation refuses both at once.
            serial_number: platform.serial().map(str::to_owned),
            uuid: platform.uuid(),
            sku_number: system_sku_number.clone(),
            family: system_family.clone(),
        },
        baseboard: BaseboardInfo {
            manufacturer: manufacturer.clone(),
            product_name,
            ..BaseboardInfo::default()
        },
        chassis: ChassisInfo {
            manufacturer,
            asset_tag: chassis_asset_tag.clone(),
            ..ChassisInfo::default()
        },
        oem_strings: oem_strings.clone(),
    }
}
