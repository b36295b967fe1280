//! Differentiated System Description Table (ACPI 6.5, section 5.2.11.1): the namespace.

use std::collections::BTreeMap;

use acpi_tables::Aml;
use acpi_tables::aml::{Name, Package, Scope, ZERO};
use devices::acpi::sleep::S5_SLEEP_TYPE;
use pci::{AcpiNode, AcpiScope};

use super::nodes::{CmosClock, CpuNode, CpuStatus, PackageNode, PowerButton};
use super::table::{Table, TableBuilder};
use super::{EncodeError, host_bridge};
use crate::plan::{CpuPlan, Isa, PciPlan, PlatformDevices, Registers};

/// Revision 2: integers of 64 bits.
const REVISION: u8 = 2;

/// The namespace: what processors, the plan's devices and PCI announce.
///
/// # Errors
///
/// What cannot be said of PCI.
pub(super) fn encode(
    isa: Isa,
    cpus: &CpuPlan,
    devices: &PlatformDevices,
    pci: Option<&PciPlan>,
) -> Result<Table, EncodeError> {
    let processors = processors(isa, cpus);
    let platform = platform(devices);
    let pci = match pci {
        Some(pci) => host_bridge::nodes(isa, pci)?,
        None => Vec::new(),
    };
    let mut system_bus = Vec::new();
    for node in processors.iter().chain(&platform).chain(&pci) {
        // No wildcard: a scope that nobody places must not compile.
        match node.scope() {
            AcpiScope::SystemBus => system_bus.push(node.aml()),
        }
    }

    let mut aml = Vec::new();
    let children = system_bus.iter().map(|term| &**term as &dyn Aml).collect();
    Scope::new("\\_SB_".into(), children).to_aml_bytes(&mut aml);
    if devices.sleep.is_some() {
        soft_off(&mut aml);
    }
    let mut table = TableBuilder::new(*b"DSDT", REVISION);
    table.extend(&aml);
    Ok(table.finish())
}

/// `\_S5`. Absent where PSCI powers the machine off: there are no registers to write it to.
fn soft_off(aml: &mut Vec<u8>) {
    let values = Package::new(vec![&S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &values).to_aml_bytes(aml);
}

fn processors(isa: Isa, cpus: &CpuPlan) -> Vec<Box<dyn AcpiNode>> {
    let nodes = cpus.cpus.iter().enumerate().map(|(place, cpu)| {
        let status = if place < cpus.boot as usize {
            CpuStatus::Enabled
        } else {
            CpuStatus::Absent
        };
        let index = cpu.index;
        (cpu.package, CpuNode { index, status })
    });
    match isa {
        // CPUID shows the topology.
        Isa::X86_64 => nodes
            .map(|(_, node)| Box::new(node) as Box<dyn AcpiNode>)
            .collect(),
        Isa::Aarch64 => {
            let mut packages = BTreeMap::<u32, Vec<CpuNode>>::new();
            for (package, node) in nodes {
                packages.entry(package).or_default().push(node);
            }
            packages
                .into_iter()
                .map(|(package, cpus)| Box::new(PackageNode { package, cpus }) as _)
                .collect()
        }
    }
}

fn platform(devices: &PlatformDevices) -> Vec<Box<dyn AcpiNode>> {
    // The FADT has the sleep registers; nothing in ACPI describes a debug console.
    let PlatformDevices {
        serial,
        rtc,
        events,
        sleep: _,
        debug_console: _,
    } = devices;
    let mut nodes: Vec<Box<dyn AcpiNode>> = Vec::new();
    if let Some(serial) = *serial {
        nodes.push(Box::new(serial));
    }
    if let registers @ Registers::Pio { .. } = *rtc {
        nodes.push(Box::new(CmosClock { registers }));
    }
    if let Some(events) = *events {
        nodes.push(Box::new(PowerButton));
        nodes.push(Box::new(events));
    }
    nodes
}
