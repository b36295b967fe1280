//! NUMA nodes: what is in which, how far they are apart, and how Linux will number them.

use std::collections::{BTreeMap, BTreeSet};

use acpi_numa::linux::{self, Kernel, Numbering};
use acpi_numa::srat;
use acpi_numa::topology::{
    Bandwidth, Distance, DistanceSpec, Figure, Latency, MemoryRange, Node, Path, Performance,
    Processor, ProximityDomain, Topology, TopologySpec,
};
use arch::Isa;

use super::{CpuPlan, MemoryPlan, NodePlan, NumaPlan, PlanError, PlannedCpu};
use crate::acpi;
use crate::config::{AccessPerformance, NumaConfig, NumaDistance, NumaInitiator};

/// The nodes as the plan has them, and as the tables take them.
pub(super) struct Planned {
    pub(super) plan: NumaPlan,
    pub(super) topology: Topology,
}

/// Distributes CPUs and RAM over the nodes; nothing, if there are none. `acpi` is whether the guest
/// learns of them from ACPI rather than from a device tree.
pub(super) fn plan(
    config: &[NumaConfig],
    isa: Isa,
    cpus: &CpuPlan,
    memory: &MemoryPlan,
    acpi: bool,
) -> Result<Option<Planned>, PlanError> {
    let Some(home) = home(config) else {
        return Ok(None);
    };
    let mut sorted: Vec<&NumaConfig> = config.iter().collect();
    sorted.sort_by_key(|node| node.guest_numa_id);
    let mut nodes: Vec<NodePlan> = sorted.iter().map(|node| contents(node, memory)).collect();
    let adopted_cpus = rest(
        cpus.cpus.iter().map(|cpu| cpu.index),
        nodes.iter().flat_map(|node| node.cpus.iter().copied()),
    );
    let adopted_zones = rest(
        memory.zones.iter().map(|zone| zone.id.clone()),
        nodes.iter().flat_map(|node| node.zones.iter().cloned()),
    );
    // Linux on arm64 does without NUMA if it finds RAM outside all nodes, and no guest has any use
    // for CPUs that are nowhere.
    if let Some(node) = nodes.iter_mut().find(|node| node.id == home) {
        node.cpus.extend(&adopted_cpus);
        node.cpus.sort_unstable();
        node.zones.extend(adopted_zones.iter().cloned());
        let zones = adopted_zones.iter();
        node.ram.extend(zones.flat_map(|id| ranges_of(id, memory)));
        node.ram.sort_by_key(|range| range.start);
    }
    let topology = topology(&sorted, &nodes, isa, cpus)?;
    if acpi {
        let numbering = numbering(isa, &topology);
        for node in &mut nodes {
            let number = numbering.number(ProximityDomain(node.id));
            node.linux_node = number.and_then(|number| u32::try_from(number).ok());
        }
    }
    let distance = |from: &NodePlan, to: &NodePlan| {
        let (from, to) = (ProximityDomain(from.id), ProximityDomain(to.id));
        topology.distance(from, to).map_or(0, |distance| distance.0)
    };
    let distances = nodes
        .iter()
        .map(|from| nodes.iter().map(|to| distance(from, to)).collect())
        .collect();
    Ok(Some(Planned {
        plan: NumaPlan {
            nodes,
            distances,
            home,
            adopted_cpus,
            adopted_zones,
        },
        topology,
    }))
}

/// What the guest's Linux will make of the nodes.
pub(super) fn numbering(isa: Isa, topology: &Topology) -> Numbering {
    let srat = srat::Srat {
        revision: srat::REVISION,
        ids: acpi::TABLE_IDS,
        entries: srat::entries(topology).collect(),
    };
    linux::numbering(&srat, kernel(isa))
}

/// The kernels that distributions ship.
fn kernel(isa: Isa) -> Kernel {
    match isa {
        Isa::X86_64 => Kernel::X86_64,
        Isa::Aarch64 => Kernel::ARM64,
    }
}

/// The node that takes in what no node was given: the lowest one with CPUs or else with RAM, or else
/// the lowest.
fn home(config: &[NumaConfig]) -> Option<u32> {
    let lowest = |suits: fn(&NumaConfig) -> bool| {
        let nodes = config.iter().filter(|node| suits(node));
        nodes.map(|node| node.guest_numa_id).min()
    };
    lowest(|node| !node.cpus.is_empty())
        .or(lowest(|node| !node.memory_zones.is_empty()))
        .or(lowest(|_| true))
}

/// A node with what it was given.
fn contents(config: &NumaConfig, memory: &MemoryPlan) -> NodePlan {
    let NumaConfig {
        guest_numa_id,
        cpus,
        distances: _,
        memory_zones,
        hmat: _,
    } = config;
    let mut cpus = cpus.clone();
    cpus.sort_unstable();
    let zones = memory_zones.iter();
    let mut ram: Vec<_> = zones.flat_map(|id| ranges_of(id, memory)).collect();
    ram.sort_by_key(|range| range.start);
    NodePlan {
        id: *guest_numa_id,
        cpus,
        zones: memory_zones.clone(),
        ram,
        // A device tree says the number itself.
        linux_node: Some(*guest_numa_id),
    }
}

fn ranges_of(id: &str, memory: &MemoryPlan) -> Vec<super::GpaRange> {
    let zone = memory.zones.iter().find(|zone| zone.id == id);
    zone.map(|zone| zone.ranges.clone()).unwrap_or_default()
}

/// What of `all` is not `taken`.
fn rest<T: Ord>(all: impl Iterator<Item = T>, taken: impl Iterator<Item = T>) -> Vec<T> {
    let taken: BTreeSet<T> = taken.collect();
    all.filter(|item| !taken.contains(item)).collect()
}

fn topology(
    config: &[&NumaConfig],
    nodes: &[NodePlan],
    isa: Isa,
    cpus: &CpuPlan,
) -> Result<Topology, PlanError> {
    let processors: BTreeMap<u32, Processor> = cpus
        .cpus
        .iter()
        .map(|cpu| (cpu.index, processor(isa, cpu)))
        .collect();
    let node = |node: &NodePlan| {
        let cpus = node.cpus.iter();
        let ram = node.ram.iter();
        Node {
            processors: cpus
                .filter_map(|cpu| processors.get(cpu))
                .copied()
                .collect(),
            memory: ram
                .map(|range| MemoryRange::new(range.start, range.size))
                .collect(),
            ..Node::new(ProximityDomain(node.id))
        }
    };
    let spec = TopologySpec {
        nodes: nodes.iter().map(node).collect(),
        distances: distances(config),
        performance: performance(config),
    };
    Topology::new(spec).map_err(|errors| PlanError::Topology(acpi::TopologyErrors(errors)))
}

fn processor(isa: Isa, cpu: &PlannedCpu) -> Processor {
    match isa {
        Isa::X86_64 => Processor::X2apic {
            id: cpu.hardware_id as u32,
            clock_domain: 0,
        },
        Isa::Aarch64 => Processor::Gicc {
            uid: cpu.index,
            clock_domain: 0,
        },
    }
}

fn distances(config: &[&NumaConfig]) -> DistanceSpec {
    let mut spec = DistanceSpec::default();
    for node in config {
        for NumaDistance {
            destination,
            distance,
        } in &node.distances
        {
            // A node's distance to itself may be given and goes without saying.
            if let Ok(distance) = u8::try_from(*distance)
                && *destination != node.guest_numa_id
            {
                let pair = (
                    ProximityDomain(node.guest_numa_id),
                    ProximityDomain(*destination),
                );
                spec.given.insert(pair, Distance(distance));
            }
        }
    }
    spec
}

fn performance(config: &[&NumaConfig]) -> Performance {
    let mut performance = Performance::default();
    for node in config {
        for NumaInitiator { initiator, access } in &node.hmat {
            let pair = (
                ProximityDomain(*initiator),
                ProximityDomain(node.guest_numa_id),
            );
            performance.paths.insert(pair, path(access));
        }
    }
    performance
}

fn path(access: &AccessPerformance) -> Path {
    let AccessPerformance {
        read_latency,
        write_latency,
        read_bandwidth,
        write_bandwidth,
    } = *access;
    let nanoseconds = |value: u32| Latency::from_picoseconds(value.saturating_mul(1000));
    Path::Reachable {
        latency: Some(Figure::ReadWrite {
            read: nanoseconds(read_latency),
            write: nanoseconds(write_latency),
        }),
        bandwidth: Some(Figure::ReadWrite {
            read: Bandwidth::from_megabytes_per_second(read_bandwidth),
            write: Bandwidth::from_megabytes_per_second(write_bandwidth),
        }),
    }
}
