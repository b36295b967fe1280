//! `/memory@…`, and `/distance-map` where memory and CPUs are in NUMA nodes.
//!
//! Sources: Devicetree Specification 0.4, section 3.4; Linux,
//! Documentation/devicetree/bindings/numa.txt.

use vm_fdt::{Error, FdtWriter};

use super::machine::node_name;
use crate::GpaRange;

/// A range of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// Where it is.
    pub range: GpaRange,
    /// NUMA node that it is in.
    pub numa_node: Option<u32>,
}

/// How far one NUMA node is from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distance {
    /// Node of the CPU.
    pub from: u32,
    /// Node of the memory.
    pub to: u32,
    /// 10 within a node, more between nodes.
    pub distance: u8,
}

/// Writes one node for each range.
pub(super) fn write(fdt: &mut FdtWriter, ram: &[Ram]) -> Result<(), Error> {
    for Ram { range, numa_node } in ram {
        let node = fdt.begin_node(&node_name("memory", *range))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[range.start, range.size])?;
        write_numa_node(fdt, *numa_node)?;
        fdt.end_node(node)?;
    }
    Ok(())
}

/// Writes which NUMA node a CPU or memory is in.
pub(super) fn write_numa_node(fdt: &mut FdtWriter, node: Option<u32>) -> Result<(), Error> {
    node.map_or(Ok(()), |node| fdt.property_u32("numa-node-id", node))
}

/// Writes `distance-map`, unless there are no distances.
pub(super) fn write_distances(fdt: &mut FdtWriter, distances: &[Distance]) -> Result<(), Error> {
    if distances.is_empty() {
        return Ok(());
    }
    let triple = |&Distance { from, to, distance }: &Distance| [from, to, distance.into()];
    let matrix: Vec<[u32; 3]> = distances.iter().map(triple).collect();
    let node = fdt.begin_node("distance-map")?;
    fdt.property_string("compatible", "numa-distance-map-v1")?;
    fdt.property_array_u32("distance-matrix", matrix.as_flattened())?;
    fdt.end_node(node)
}
