//! NUMA as the guest finds it, for people to read: of a plan, or of a machine that runs.

use std::fmt::{self, Write};

use super::devices::{addresses, amount};
use super::text::size;
use crate::api::{CoherentMemory, NumaDevice, NumaInfo, NumaNode};
use crate::plan::ranges;

/// The most nodes whose distances are printed; nobody would read more.
const MOST: usize = 40;

/// Nodes and distances; `in_full` names what has the distances where there are too many to print.
pub(super) fn nodes_and_distances(out: &mut String, numa: &NumaInfo, in_full: &str) -> fmt::Result {
    nodes(out, &numa.nodes)?;
    writeln!(out)?;
    distances(out, numa, in_full)
}

/// Nodes, distances, and the devices with nodes or with memory that CPUs may cache, of a machine
/// that runs. No number in it is too large, and texts are printed as they are.
pub fn describe(numa: &NumaInfo) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, numa);
    text
}

fn write(out: &mut String, numa: &NumaInfo) -> fmt::Result {
    nodes_and_distances(out, numa, "ch-remote info")?;
    if numa.devices.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nDevices")?;
    numa.devices.iter().try_for_each(|each| device(out, each))
}

fn nodes(out: &mut String, nodes: &[NumaNode]) -> fmt::Result {
    writeln!(out, "NUMA nodes")?;
    writeln!(
        out,
        "    id  Linux  CPUs        RAM         zones or device"
    )?;
    for node in nodes {
        let NumaNode {
            guest_numa_id,
            proximity_domain: _,
            linux_node,
            cpus,
            memory_zones,
            memory,
            device,
        } = node;
        let linux = linux_node.map_or("-".to_owned(), |number| number.to_string());
        let is_empty = cpus.is_empty() && memory.is_empty();
        let cpus = match cpus[..] {
            [] => "-".to_owned(),
            _ => ranges(cpus),
        };
        let sizes = memory.iter().map(|range| range.size);
        let ram = match sizes.fold(0, u64::saturating_add) {
            0 if is_empty => "empty".to_owned(),
            0 => "-".to_owned(),
            bytes => size(bytes),
        };
        let owner = device.clone().unwrap_or_else(|| memory_zones.join(", "));
        let line = format!("  {guest_numa_id:>4}  {linux:>5}  {cpus:<10}  {ram:<10}  {owner}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The matrix, or no more than a word about it where nobody would read it.
fn distances(out: &mut String, numa: &NumaInfo, in_full: &str) -> fmt::Result {
    let count = numa.nodes.len();
    if count > MOST {
        return writeln!(out, "Distances: {count} by {count}; {in_full} has them");
    }
    writeln!(out, "Distances, from a row's node to a column's")?;
    let ids = numa.nodes.iter().map(|node| node.guest_numa_id);
    let head: Vec<String> = ids.clone().map(|id| format!("{id:>4}")).collect();
    writeln!(out, "        {}", head.join(""))?;
    for (id, row) in ids.zip(&numa.distances) {
        let row: Vec<String> = row
            .iter()
            .map(|distance| format!("{distance:>4}"))
            .collect();
        writeln!(out, "  {id:>4}  {}", row.join(""))?;
    }
    Ok(())
}

fn device(out: &mut String, device: &NumaDevice) -> fmt::Result {
    let NumaDevice {
        id,
        pci_bdf,
        guest_numa_ids,
        dsd,
        generic_initiators,
        coherent_memory,
    } = device;
    writeln!(out, "  {pci_bdf}  {id}")?;
    if let Some(memory) = coherent_memory {
        writeln!(out, "      {}", cacheable(memory))?;
    }
    match guest_numa_ids[..] {
        [] => writeln!(out, "      no nodes of its own"),
        _ => writeln!(
            out,
            "      nodes {}, {}",
            ranges(guest_numa_ids),
            told(*dsd, *generic_initiators)
        ),
    }
}

/// What a driver will make RAM of, and where in the guest it is.
pub(super) fn cacheable(memory: &CoherentMemory) -> String {
    let CoherentMemory {
        bar,
        size: bytes,
        address,
    } = memory;
    let place = match address {
        Some(address) => addresses(*address, *bytes),
        None => "not shown to the guest".to_owned(),
    };
    let amount = amount(*bytes);
    format!("memory that CPUs may cache: {amount} in BAR {bar}, {place}")
}

/// How the guest is told which nodes are a device's own.
pub(super) fn told(dsd: bool, generic_initiators: bool) -> &'static str {
    match (dsd, generic_initiators) {
        (true, true) => "told by _DSD and generic initiators",
        (true, false) => "told by _DSD",
        (false, true) => "told by generic initiators",
        (false, false) => "not told",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::GpaRange;

    fn node(id: u32) -> NumaNode {
        NumaNode {
            guest_numa_id: id,
            proximity_domain: id,
            linux_node: Some(id),
            cpus: Vec::new(),
            memory_zones: Vec::new(),
            memory: Vec::new(),
            device: None,
        }
    }

    fn gpu() -> NumaDevice {
        NumaDevice {
            id: "gpu0".to_owned(),
            pci_bdf: "0000:00:01.0".to_owned(),
            guest_numa_ids: vec![1],
            dsd: true,
            generic_initiators: false,
            coherent_memory: Some(CoherentMemory {
                bar: 4,
                size: 96 << 30,
                address: Some(0x20_0000_0000),
            }),
        }
    }

    #[test]
    fn a_machine_that_runs_is_described_with_its_devices() {
        let numa = NumaInfo {
            nodes: vec![
                NumaNode {
                    cpus: vec![0, 1, 2, 3],
                    memory_zones: vec!["a".to_owned(), "b".to_owned()],
                    memory: vec![
                        GpaRange {
                            start: 0,
                            size: 3 << 30,
                        },
                        GpaRange {
                            start: 1 << 32,
                            size: 1 << 30,
                        },
                    ],
                    ..node(0)
                },
                NumaNode {
                    linux_node: None,
                    device: Some("gpu0".to_owned()),
                    ..node(1)
                },
            ],
            distances: vec![vec![10, 40], vec![40, 10]],
            devices: vec![
                gpu(),
                NumaDevice {
                    id: "gpu1".to_owned(),
                    pci_bdf: "0000:00:02.0".to_owned(),
                    guest_numa_ids: Vec::new(),
                    dsd: false,
                    coherent_memory: Some(CoherentMemory {
                        bar: 4,
                        size: (1 << 30) + (1 << 29),
                        address: None,
                    }),
                    ..gpu()
                },
            ],
        };
        assert_eq!(
            describe(&numa),
            "\
NUMA nodes
    id  Linux  CPUs        RAM         zones or device
     0      0  0-3         4 GiB       a, b
     1      -  -           empty       gpu0

Distances, from a row's node to a column's
           0   1
     0    10  40
     1    40  10

Devices
  0000:00:01.0  gpu0
      memory that CPUs may cache: 96 GiB in BAR 4, 0x002000000000-0x0037ffffffff
      nodes 1, told by _DSD
  0000:00:02.0  gpu1
      memory that CPUs may cache: 1536 MiB (1.5 GiB) in BAR 4, not shown to the guest
      no nodes of its own
"
        );
    }

    #[test]
    fn any_numbers_and_any_lengths_are_printed() {
        let range = GpaRange {
            start: u64::MAX,
            size: u64::MAX,
        };
        let mut numa = NumaInfo {
            nodes: vec![NumaNode {
                cpus: vec![u32::MAX, u32::MAX, 0],
                memory: vec![range, range],
                ..node(u32::MAX)
            }],
            distances: vec![vec![255; 3], Vec::new()],
            devices: vec![NumaDevice {
                coherent_memory: Some(CoherentMemory {
                    bar: 255,
                    size: u64::MAX,
                    address: Some(u64::MAX),
                }),
                ..gpu()
            }],
        };
        assert!(describe(&numa).contains("4294967295,4294967295,0"));
        numa.nodes = (0..=40).map(node).collect();
        assert!(describe(&numa).contains("\nDistances: 41 by 41; ch-remote info has them\n"));
    }
}
