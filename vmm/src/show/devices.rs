//! PCI segments and passed-through devices, for people to read.

use std::fmt::{self, Write};

use pci::config_space::BarKind;
use pci::{BarFacts, CoherentMemory, DeviceFacts};

use super::text::size;
use crate::plan::{
    DeviceNodes, FunctionPlan, FunctionSource, GpaRange, IoWindow, PciPlan, SegmentPlan, ranges,
};

/// All segments, and all devices with their addresses.
pub(super) fn describe(out: &mut String, pci: &PciPlan) -> fmt::Result {
    let PciPlan { segments } = pci;
    writeln!(out, "\nPCI segments")?;
    segments
        .iter()
        .try_for_each(|segment| describe_segment(out, segment))?;
    let functions: Vec<&FunctionPlan> = segments
        .iter()
        .flat_map(|segment| &segment.functions)
        .collect();
    if !functions.is_empty() {
        writeln!(out, "\nDevices")?;
    }
    functions
        .into_iter()
        .try_for_each(|function| describe_function(out, function))
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
        write!(out, "  I/O {base:#x}-{:#x}", base + (size - 1))?;
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

fn describe_function(out: &mut String, function: &FunctionPlan) -> fmt::Result {
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
        intx: _,
        driver,
        coherent,
    } = facts;
    write!(
        out,
        "  {bdf}  {id}  {:04x}:{:04x}  class {:06x}  ",
        identity.vendor, identity.device, identity.class
    )?;
    match source {
        FunctionSource::Vfio { path } => write!(out, "{path}")?,
        FunctionSource::VfioUser { socket } => write!(out, "vfio-user {socket}")?,
        FunctionSource::Reserved => write!(out, "reserved")?,
    }
    match driver {
        Some(driver) => writeln!(out, " ({driver})")?,
        None => writeln!(out)?,
    }
    for (facts, address) in bar_facts.iter().zip(bars) {
        describe_bar(out, facts, *address)?;
    }
    if let Some(CoherentMemory { bar, usable }) = coherent {
        writeln!(
            out,
            "      {} of memory that CPUs may cache, in BAR {bar}",
            size(*usable)
        )?;
    }
    nodes
        .iter()
        .try_for_each(|nodes| describe_nodes(out, nodes))
}

fn describe_bar(out: &mut String, facts: &BarFacts, address: Option<u64>) -> fmt::Result {
    let BarFacts {
        index,
        kind,
        size: bytes,
        mappable,
    } = facts;
    let kind = match kind {
        BarKind::Io => "I/O",
        BarKind::Memory32 {
            prefetchable: false,
        } => "32-bit",
        BarKind::Memory32 { prefetchable: true } => "32-bit, prefetchable",
        BarKind::Memory64 {
            prefetchable: false,
        } => "64-bit",
        BarKind::Memory64 { prefetchable: true } => "64-bit, prefetchable",
    };
    let place = match address {
        Some(address) => format!("{address:#x}-{:#x}", address + (bytes - 1)),
        None => "not shown to the guest".to_owned(),
    };
    let trapped = match mappable {
        0 => "trapped".to_owned(),
        mappable if mappable == bytes => "mapped".to_owned(),
        mappable => format!("{} mapped", size(*mappable)),
    };
    writeln!(
        out,
        "      BAR {index}  {place}  {}  {kind}, {trapped}",
        size(*bytes)
    )
}

fn describe_nodes(out: &mut String, nodes: &DeviceNodes) -> fmt::Result {
    let DeviceNodes {
        ids,
        dsd,
        generic_initiators,
        auto,
    } = nodes;
    let told = match (dsd, generic_initiators) {
        (true, true) => "told by _DSD and generic initiators",
        (true, false) if *auto => {
            "told by _DSD alone: generic initiators would change the numbers that Linux gives nodes"
        }
        (true, false) => "told by _DSD",
        (false, true) => "told by generic initiators",
        (false, false) => "not told",
    };
    writeln!(out, "      nodes {}, {told}", ranges(ids))
}
