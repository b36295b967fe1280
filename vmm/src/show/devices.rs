//! PCI segments and devices, for people to read.

use std::fmt::{self, Write};

use pci::config_space::BarKind;
use pci::{BarFacts, Bdf, CoherentMemory, DeviceFacts};

use super::numa;
use super::text::size;
use crate::api;
use crate::plan::{
    DeviceNodes, FunctionPlan, FunctionSource, GpaRange, HostFacts, IoWindow, PciPlan, SegmentPlan,
    ranges,
};

/// All segments, and all devices with their addresses.
pub(super) fn describe(out: &mut String, pci: &PciPlan, host: &HostFacts) -> fmt::Result {
    let PciPlan { segments } = pci;
    writeln!(out, "\nPCI segments")?;
    segments
        .iter()
        .try_for_each(|segment| describe_segment(out, segment))?;
    if segments.iter().any(|segment| !segment.functions.is_empty()) {
        writeln!(out, "\nDevices")?;
    }
    for segment in segments {
        let mut functions = segment.functions.iter();
        functions.try_for_each(|function| describe_function(out, segment, function, host))?;
    }
    Ok(())
}

fn describe_segment(out: &mut String, segment: &SegmentPlan) -> fmt::Result {
    let SegmentPlan {
        number,
        ecam,
        mmio32,
        mmio64,
        io,
        intx: _,
        numa_node,
        functions: _,
    } = segment;
    write!(out, "  {number:04x}  ECAM {:#010x}", ecam.start)?;
    if let Some(IoWindow { base, size }) = io {
        write!(
            out,
            "  I/O {base:#x}-{:#x}",
            last((*base).into(), (*size).into())
        )?;
    }
    write!(out, "  32-bit {}", range(mmio32))?;
    write!(out, "  64-bit {}", range(mmio64))?;
    match numa_node {
        Some(node) => writeln!(out, "  node {node}"),
        None => writeln!(out),
    }
}

fn range(range: &GpaRange) -> String {
    let last = range.end().saturating_sub(1);
    format!("{:#x}-{last:#x} ({})", range.start, size(range.size))
}

fn describe_function(
    out: &mut String,
    segment: &SegmentPlan,
    function: &FunctionPlan,
    host: &HostFacts,
) -> fmt::Result {
    let FunctionPlan {
        id,
        bdf,
        facts,
        bars,
        source,
        nodes,
    } = function;
    let DeviceFacts {
        identity,
        bars: bar_facts,
        intx,
        driver,
        coherent,
    } = facts;
    writeln!(
        out,
        "  {bdf}  {id}  {:04x}:{:04x}  class {:06x}",
        identity.vendor, identity.device, identity.class
    )?;
    match source {
        FunctionSource::Vfio { path } => write!(out, "      host device {path}")?,
        FunctionSource::VfioUser { socket } => write!(out, "      vfio-user server {socket}")?,
        FunctionSource::Virtio { kind } => write!(out, "      {kind}")?,
        FunctionSource::Reserved => write!(out, "      kept for a device that comes later")?,
    }
    match driver {
        Some(driver) => writeln!(out, ", driver {driver}")?,
        None => writeln!(out)?,
    }
    for (facts, address) in bar_facts.iter().zip(bars) {
        describe_bar(out, facts, *address)?;
    }
    if *intx && let Some(gsi) = segment.gsi(bdf.device, 0) {
        writeln!(out, "      INTx  GSI {gsi}")?;
    }
    if let Some(memory) = coherent {
        let cached = match source {
            FunctionSource::Vfio { .. } => host.cacheable_device_memory,
            FunctionSource::VfioUser { .. }
            | FunctionSource::Virtio { .. }
            | FunctionSource::Reserved => true,
        };
        describe_memory(out, function, memory, cached)?;
    }
    nodes
        .iter()
        .try_for_each(|nodes| describe_nodes(out, segment, *bdf, nodes))
}

fn describe_bar(out: &mut String, facts: &BarFacts, address: Option<u64>) -> fmt::Result {
    let BarFacts {
        index,
        kind,
        size: bytes,
        mappable,
    } = facts;
    let place = match (kind, address) {
        (BarKind::Io, Some(port)) => format!("ports {port:#06x}-{:#06x}", last(port, *bytes)),
        (_, Some(address)) => addresses(address, *bytes),
        (_, None) => "not shown to the guest".to_owned(),
    };
    let (kind, prefetchable) = match *kind {
        BarKind::Io => ("I/O", false),
        BarKind::Memory32 { prefetchable } => ("32-bit", prefetchable),
        BarKind::Memory64 { prefetchable } => ("64-bit", prefetchable),
    };
    let prefetchable = if prefetchable { " prefetchable" } else { "" };
    let mapped = match mappable {
        _ if address.is_none() => String::new(),
        0 => ", trapped".to_owned(),
        mappable if mappable == bytes => ", mapped".to_owned(),
        mappable => format!(", {} of it mapped", amount(*mappable)),
    };
    writeln!(
        out,
        "      BAR {index}  {place:<29}  {:>8}  {kind}{prefetchable}{mapped}",
        size(*bytes)
    )
}

/// What a driver will make RAM of, and where in the guest it is.
fn describe_memory(
    out: &mut String,
    function: &FunctionPlan,
    memory: &CoherentMemory,
    cached: bool,
) -> fmt::Result {
    let CoherentMemory { bar, usable } = memory;
    let mut bars = function.facts.bars.iter().zip(&function.bars);
    let found = bars.find(|(facts, _)| facts.index == *bar);
    let memory = api::CoherentMemory {
        bar: *bar,
        size: *usable,
        address: found.and_then(|(_, address)| *address),
    };
    write!(out, "      {}", numa::cacheable(&memory))?;
    writeln!(
        out,
        "{}",
        match cached {
            true => "",
            false => "; this host's KVM cannot map it cacheable",
        }
    )
}

/// First and last address, as the memory map has them.
pub(super) fn addresses(start: u64, bytes: u64) -> String {
    format!("{start:#014x}-{:#014x}", last(start, bytes))
}

fn last(start: u64, bytes: u64) -> u64 {
    start.saturating_add(bytes.saturating_sub(1))
}

/// Bytes exactly, and where that is a long number of small units also about how much it is.
pub(super) fn amount(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    match bytes.is_multiple_of(GIB) || bytes < GIB {
        true => size(bytes),
        false => {
            let tenths = u128::from(bytes) * 10 / u128::from(GIB);
            format!("{} ({}.{} GiB)", size(bytes), tenths / 10, tenths % 10)
        }
    }
}

fn describe_nodes(
    out: &mut String,
    segment: &SegmentPlan,
    bdf: Bdf,
    nodes: &DeviceNodes,
) -> fmt::Result {
    let DeviceNodes {
        ids,
        dsd,
        generic_initiators,
        auto,
    } = nodes;
    let claimant = segment.claimant().filter(|claimant| claimant.bdf != bdf);
    let told = match (dsd, generic_initiators) {
        (true, false) if *auto => {
            let why = match claimant {
                Some(FunctionPlan { id, .. }) => {
                    format!("NVIDIA's driver would take generic initiators for those of {id}")
                }
                None => "generic initiators would change the numbers that Linux gives nodes".into(),
            };
            format!("told by _DSD alone: {why}")
        }
        _ => numa::told(*dsd, *generic_initiators).to_owned(),
    };
    writeln!(out, "      nodes {}, {told}", ranges(ids))
}
