//! Where devices and their BARs go, what is refused, and how guests are told of nodes.

mod nodes;
mod places;
mod property;
mod stored;
mod virtio;

use ::pci::config_space::{BarKind, Identity};
use ::pci::{BarFacts, CoherentMemory};

use super::*;
use crate::config::VmConfig;
use crate::config::cli::{self, Command};
use crate::plan::{FirmwarePlan, HostFacts, HostMemory, Isa, Plan, PlanError};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const ISAS: [Isa; 2] = [Isa::X86_64, Isa::Aarch64];
const IO: BarKind = BarKind::Io;
const MEM32: BarKind = BarKind::Memory32 {
    prefetchable: false,
};
const MEM64: BarKind = BarKind::Memory64 { prefetchable: true };

/// Facts of a device that has these BARs.
fn device(bars: &[(u8, BarKind, u64)]) -> DeviceFacts {
    let bar = |&(index, kind, size)| BarFacts {
        index,
        kind,
        size,
        mappable: 0,
    };
    DeviceFacts {
        identity: Identity {
            vendor: 0x1af4,
            device: 0x1110,
            revision: 0,
            class: 0x05_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        },
        bars: bars.iter().map(bar).collect(),
        intx: true,
        driver: Some("vfio-pci".to_owned()),
        coherent: None,
    }
}

/// A device with memory, as a GPU has it.
fn gpu(size: u64) -> DeviceFacts {
    let mut facts = device(&[(0, MEM64, 16 * MIB), (2, MEM64, GIB), (4, MEM64, size)]);
    facts.identity.vendor = 0x10de;
    facts.coherent = Some(CoherentMemory {
        bar: 4,
        usable: size / 4 * 3,
    });
    facts
}

/// A host where every device that is asked for is like `facts`.
fn host(isa: Isa, config: &VmConfig, facts: &DeviceFacts) -> HostFacts {
    let mut host = HostFacts::assumed(isa, HostMemory::default());
    let paths = config.devices.iter().map(|device| &device.path);
    let sockets = config.user_devices.iter().map(|device| &device.socket);
    host.devices = paths
        .chain(sockets)
        .map(|path| (path.to_string_lossy().into_owned(), facts.clone()))
        .collect();
    host
}

/// What the command line asks for, not validated, without what every guest is given unless it asks
/// for it.
fn asked(line: &str) -> VmConfig {
    let words = ["cloud-hypervisor", "--kernel", "k", "--plan"];
    let words = words.into_iter().chain(line.split_whitespace());
    match cli::parse(words.map(Into::into)) {
        Ok(Command::Plan { config, .. }) => VmConfig {
            rng: config.rng.filter(|_| line.contains("--rng")),
            console: config.console.filter(|_| line.contains("--console")),
            ..*config
        },
        other => panic!("{line}: {other:?}"),
    }
}

/// The plan of a machine all whose devices are like `facts`.
#[track_caller]
fn plan(isa: Isa, line: &str, facts: &DeviceFacts) -> Plan {
    let config = asked(line);
    config.validate(isa).unwrap();
    Plan::new(&config, &host(isa, &config, facts)).unwrap()
}

/// Why there is none.
#[track_caller]
fn refusal(isa: Isa, line: &str, facts: &DeviceFacts) -> PlanError {
    let config = asked(line);
    Plan::new(&config, &host(isa, &config, facts)).unwrap_err()
}

fn segments(plan: &Plan) -> &[SegmentPlan] {
    &plan.pci.as_ref().unwrap().segments
}

fn functions(plan: &Plan) -> impl Iterator<Item = &FunctionPlan> {
    segments(plan).iter().flat_map(|segment| &segment.functions)
}

#[track_caller]
fn function<'a>(plan: &'a Plan, id: &str) -> &'a FunctionPlan {
    functions(plan).find(|function| function.id == id).unwrap()
}

fn slots(plan: &Plan) -> Vec<(&str, String)> {
    functions(plan)
        .map(|function| (function.id.as_str(), function.bdf.to_string()))
        .collect()
}

/// As many devices with these options as are asked for.
fn many(count: usize, options: &str) -> String {
    let devices = (0..count).map(|number| format!(" path=/many{number}{options}"));
    format!("--device{}", devices.collect::<String>())
}

fn table(plan: &Plan, name: &str) -> Option<Vec<u8>> {
    let FirmwarePlan::Acpi { tables, .. } = &plan.firmware else {
        panic!("no ACPI");
    };
    let table = tables.iter().find(|table| table.name == name);
    table.map(|table| table.bytes.clone())
}
