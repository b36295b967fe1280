//! A plan for people to read.

use std::fmt::{self, Write};

use super::{devices, numa, tables};
use crate::api::NumaInfo;
use crate::plan::{
    CpuPlan, CpuTopology, GpaRange, HostFacts, InterruptPlan, Isa, MemoryPlan, Plan,
};

/// The whole plan: machine, memory map, nodes, distances, tables, warnings.
pub(super) fn describe(plan: &Plan, facts: &HostFacts) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, plan, facts);
    text
}

fn write(out: &mut String, plan: &Plan, facts: &HostFacts) -> fmt::Result {
    machine(out, plan, facts)?;
    memory(out, plan)?;
    if let Some(numa) = NumaInfo::of(plan) {
        writeln!(out)?;
        numa::nodes_and_distances(out, &numa, "--plan-format json")?;
    }
    if let Some(pci) = &plan.pci {
        devices::describe(out, pci, facts)?;
    }
    let tables = tables(plan);
    if tables.is_empty() {
        writeln!(out, "\nNo ACPI: a device tree alone")?;
    } else {
        writeln!(out, "\nACPI tables")?;
    }
    for table in tables {
        writeln!(
            out,
            "  {:<4}  {:#014x}  {:>7} bytes",
            table.name,
            table.gpa,
            table.bytes.len()
        )?;
    }
    let warnings = plan.warnings();
    if !warnings.is_empty() {
        writeln!(out, "\nWarnings")?;
    }
    warnings
        .iter()
        .try_for_each(|warning| writeln!(out, "  - {warning}"))
}

fn machine(out: &mut String, plan: &Plan, facts: &HostFacts) -> fmt::Result {
    let isa = match plan.isa {
        Isa::X86_64 => "x86_64",
        Isa::Aarch64 => "aarch64",
    };
    let CpuPlan {
        boot,
        cpus,
        topology,
        phys_bits,
        pmu: _,
    } = &plan.cpus;
    let CpuTopology {
        threads_per_core,
        cores_per_die,
        dies_per_package,
        packages,
    } = topology;
    writeln!(out, "Machine")?;
    writeln!(
        out,
        "  {isa}, {phys_bits}-bit physical addresses (the host has {})",
        facts.phys_bits
    )?;
    writeln!(
        out,
        "  {boot} CPUs at boot, {} at most (the host allows {}): {threads_per_core} threads a core, \
         {cores_per_die} cores a die, {dies_per_package} dies a package, {packages} packages",
        cpus.len(),
        facts.max_vcpus,
    )
}

fn memory(out: &mut String, plan: &Plan) -> fmt::Result {
    let MemoryPlan {
        ram: _,
        zones,
        acpi_window,
        mmio32,
        mmio64,
    } = &plan.memory;
    let mut map: Vec<(GpaRange, String)> = Vec::new();
    for zone in zones {
        let name = format!("RAM, zone {}", zone.id);
        map.extend(zone.ranges.iter().map(|range| (*range, name.clone())));
    }
    let window = acpi_window.map(|window| (window, "ACPI tables (in RAM)".to_owned()));
    map.extend(window);
    map.push((*mmio32, "32-bit PCI window".to_owned()));
    map.push((*mmio64, "64-bit PCI window".to_owned()));
    if let InterruptPlan::GicV3 {
        distributor,
        redistributors,
        its,
    } = plan.interrupts
    {
        map.push((distributor, "GIC distributor".to_owned()));
        map.push((redistributors, "GIC redistributors".to_owned()));
        map.push((its, "GIC ITS".to_owned()));
    }
    map.sort_by_key(|(range, _)| range.start);
    writeln!(out, "\nMemory map")?;
    for (range, what) in map {
        let last = range.end().saturating_sub(1);
        let size = size(range.size);
        writeln!(
            out,
            "  {:#014x}-{last:#014x}  {size:>10}  {what}",
            range.start
        )?;
    }
    Ok(())
}

/// Bytes in the largest unit that divides them.
pub(super) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units
        .iter()
        .find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    match unit {
        Some((shift, name)) => format!("{} {name}", bytes >> shift),
        None => format!("{bytes} B"),
    }
}
