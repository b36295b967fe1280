//! What the API says of a virtual machine.

use std::collections::BTreeMap;

use pci::BarFacts;
use pci::config_space::BarKind;

use super::Lent;
use crate::api::{DeviceNode, NumaInfo, PciBarType, Resource, VmInfo, VmState};
use crate::config::{ConsoleMode, VmConfig};
use crate::plan::{
    EventDevicePlan, FunctionPlan, Plan, PlatformDevices, Registers, SegmentPlan, SerialPlan,
    SleepPlan,
};

/// Describes a virtual machine; `lent` is there while it is booted.
pub(super) fn info(config: &VmConfig, state: VmState, lent: Option<&Lent>) -> VmInfo {
    let mut config = config.clone();
    if let Some(lent) = lent {
        let consoles = &lent.consoles;
        if config.serial.mode == ConsoleMode::Pty {
            config.serial.file.clone_from(&consoles.serial_pty);
        }
        if config.debug_console.mode == ConsoleMode::Pty {
            config.debug_console.file.clone_from(&consoles.debug_pty);
        }
        if let Some(console) = &mut config.console
            && console.mode == ConsoleMode::Pty
        {
            console.file.clone_from(&consoles.virtio_pty);
        }
    }
    let zones = config.memory.as_zones();
    let memory_actual_size = zones.iter().map(|zone| zone.size).sum();
    let plan = lent.map(|lent| &lent.plan);
    VmInfo {
        config,
        state,
        memory_actual_size,
        device_tree: plan.map(device_tree),
        numa: plan.and_then(NumaInfo::of),
    }
}

/// All devices by their names. Names that begin with two underscores are those of the machine's own.
fn device_tree(plan: &Plan) -> BTreeMap<String, DeviceNode> {
    let segments = plan.pci.iter().flat_map(|pci| &pci.segments);
    let functions = segments.flat_map(|segment| {
        let functions = segment.functions.iter();
        functions.map(|function| function_node(segment, function))
    });
    let nodes = platform_nodes(&plan.devices).into_iter().chain(functions);
    nodes.map(|node| (node.id.clone(), node)).collect()
}

fn platform_nodes(devices: &PlatformDevices) -> Vec<DeviceNode> {
    let PlatformDevices {
        serial,
        rtc,
        events,
        sleep,
        debug_console,
    } = devices;
    let node = |id: &str, resources| DeviceNode {
        id: id.to_owned(),
        resources,
        children: Vec::new(),
        pci_bdf: None,
    };
    let mut nodes = vec![node("__rtc", vec![registers(*rtc)])];
    if let Some(SerialPlan { registers: at, gsi }) = serial {
        let resources = vec![registers(*at), Resource::LegacyIrq(*gsi)];
        nodes.push(node("__serial", resources));
    }
    if let Some(EventDevicePlan { registers: at, gsi }) = events {
        let resources = vec![registers(*at), Resource::LegacyIrq(*gsi)];
        nodes.push(node("__ged", resources));
    }
    if let Some(SleepPlan { base }) = sleep {
        let size = devices::acpi::sleep::SIZE as u16;
        let resources = vec![Resource::PioAddressRange { base: *base, size }];
        nodes.push(node("__acpi_sleep", resources));
    }
    if let Some(base) = debug_console {
        let resources = vec![Resource::PioAddressRange {
            base: *base,
            size: 1,
        }];
        nodes.push(node("__debug_console", resources));
    }
    nodes
}

fn registers(registers: Registers) -> Resource {
    match registers {
        Registers::Pio { base, size } => Resource::PioAddressRange { base, size },
        Registers::Mmio(range) => Resource::MmioAddressRange {
            base: range.start,
            size: range.size,
        },
    }
}

fn function_node(segment: &SegmentPlan, function: &FunctionPlan) -> DeviceNode {
    let FunctionPlan {
        id,
        bdf,
        facts,
        bars,
        source: _,
        nodes: _,
    } = function;
    let bars = facts.bars.iter().zip(bars);
    let shown = bars.filter_map(|(facts, address)| Some(bar(facts, (*address)?)));
    let line = segment.gsi(bdf.device, 0).filter(|_| facts.intx);
    DeviceNode {
        id: id.clone(),
        resources: shown.chain(line.map(Resource::LegacyIrq)).collect(),
        children: Vec::new(),
        pci_bdf: Some(bdf.to_string()),
    }
}

fn bar(facts: &BarFacts, base: u64) -> Resource {
    let BarFacts {
        index,
        kind,
        size,
        mappable: _,
    } = facts;
    let (type_, prefetchable) = match *kind {
        BarKind::Io => (PciBarType::Io, false),
        BarKind::Memory32 { prefetchable } => (PciBarType::Mmio32, prefetchable),
        BarKind::Memory64 { prefetchable } => (PciBarType::Mmio64, prefetchable),
    };
    Resource::PciBar {
        index: *index,
        base,
        size: *size,
        type_,
        prefetchable,
    }
}
