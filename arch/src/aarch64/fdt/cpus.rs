//! `/cpus` and the topology below it.
//!
//! Bindings: arm/cpus.yaml, cpu/cpu-topology.txt and numa.txt.

use std::collections::BTreeMap;

use vm_fdt::{Error, FdtWriter};

use super::Cpu;
use super::memory::write_numa_node;

/// Threads by thread number, cores by core number and so on; values are phandles.
type Threads = BTreeMap<u32, u32>;
type Cores = BTreeMap<u32, Threads>;
type Clusters = BTreeMap<u32, Cores>;
type Sockets = BTreeMap<u32, Clusters>;

/// Writes `/cpus`. The CPU at position `i` gets the phandle `first_phandle + i`.
pub(super) fn write(fdt: &mut FdtWriter, cpus: &[Cpu], first_phandle: u32) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for (cpu, phandle) in cpus.iter().zip(first_phandle..) {
        let node = fdt.begin_node(&format!("cpu@{:x}", cpu.mpidr))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u64("reg", cpu.mpidr)?;
        fdt.property_string("enable-method", "psci")?;
        write_numa_node(fdt, cpu.numa_node)?;
        fdt.property_phandle(phandle)?;
        fdt.end_node(node)?;
    }
    // The binding has no use for it with a single CPU.
    if cpus.len() > 1 {
        write_map(fdt, &sockets(cpus, first_phandle))?;
    }
    fdt.end_node(node)
}

fn sockets(cpus: &[Cpu], first_phandle: u32) -> Sockets {
    let mut sockets = Sockets::new();
    for (cpu, phandle) in cpus.iter().zip(first_phandle..) {
        sockets
            .entry(cpu.package)
            .or_default()
            .entry(cpu.die)
            .or_default()
            .entry(cpu.core)
            .or_default()
            .insert(cpu.thread, phandle);
    }
    sockets
}

/// Writes `cpu-map`. Nodes are numbered by rank, since Linux stops at the first number missing.
fn write_map(fdt: &mut FdtWriter, sockets: &Sockets) -> Result<(), Error> {
    let threaded = sockets
        .values()
        .flat_map(BTreeMap::values)
        .flat_map(BTreeMap::values)
        .any(|threads| threads.len() > 1);
    let map = fdt.begin_node("cpu-map")?;
    each(fdt, "socket", sockets, |fdt, clusters| {
        each(fdt, "cluster", clusters, |fdt, cores| {
            each(fdt, "core", cores, |fdt, threads| {
                if threaded {
                    each(fdt, "thread", threads, |fdt, &cpu| {
                        fdt.property_u32("cpu", cpu)
                    })
                } else {
                    threads
                        .values()
                        .try_for_each(|&cpu| fdt.property_u32("cpu", cpu))
                }
            })
        })
    })?;
    fdt.end_node(map)
}

/// Writes one node for each unit of a level, and the unit's content into it.
fn each<T>(
    fdt: &mut FdtWriter,
    level: &str,
    units: &BTreeMap<u32, T>,
    content: impl Fn(&mut FdtWriter, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    for (number, unit) in units.values().enumerate() {
        let node = fdt.begin_node(&format!("{level}{number}"))?;
        content(fdt, unit)?;
        fdt.end_node(node)?;
    }
    Ok(())
}
