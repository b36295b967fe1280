//! NUMA nodes: what is in which, how far they are apart, and how Linux will number them.

use std::collections::{BTreeMap, BTreeSet};

use ::pci::Bdf;
use acpi_numa::linux::{self, Kernel, Numbering};
use acpi_numa::srat;
use acpi_numa::topology::{
    Bandwidth, DeviceHandle, Distance, DistanceSpec, Figure, Latency, MemoryRange, Node, Path,
    Performance, Processor, ProximityDomain, Topology, TopologySpec,
};
use arch::Isa;

use super::{
    CpuPlan, DeviceNodes, FunctionPlan, MemoryPlan, NodePlan, NumaPlan, PciPlan, PlanError,
    PlannedCpu,
};
use crate::acpi;
use crate::config::{AccessPerformance, NumaConfig, NumaDistance, NumaInitiator};

/// The nodes as the plan has them, and as the tables take them.
pub(super) struct Planned {
    pub(super) plan: NumaPlan,
    pub(super) topology: Topology,
}

/// Distributes CPUs and RAM over the nodes; nothing, if there are none. `pci` has the devices that
/// own some; how they are told of them is decided here where it was left open. Without it, the guest
/// learns of its nodes from a device tree rather than from ACPI.
pub(super) fn plan(
    config: &[NumaConfig],
    isa: Isa,
    cpus: &CpuPlan,
    memory: &MemoryPlan,
    mut pci: Option<&mut PciPlan>,
) -> Result<Option<Planned>, PlanError> {
    let Some(home) = home(config) else {
        return Ok(None);
    };
    let mut config = config.to_vec();
    config.extend(undeclared(&config, pci.as_deref()));
    let mut sorted: Vec<&NumaConfig> = config.iter().collect();
    sorted.sort_by_key(|node| node.guest_numa_id);
    let mut nodes: Vec<NodePlan> = sorted.iter().map(|node| contents(node, memory)).collect();
    for (function, owned) in owners(pci.as_deref()) {
        for node in &mut nodes {
            if owned.ids.contains(&node.id) {
                node.device = Some(function.id.clone());
            }
        }
    }
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
    let topology = |initiators: &[Initiator]| topology(&sorted, &nodes, isa, cpus, initiators);
    let topology = match pci.as_deref_mut() {
        None => topology(&[])?,
        Some(pci) => with_initiators(isa, pci, topology)?,
    };
    if pci.is_some() {
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

/// A generic initiator: a device and a node of its own.
type Initiator = (Bdf, u32);

/// The devices that own nodes.
fn owners(pci: Option<&PciPlan>) -> impl Iterator<Item = (&FunctionPlan, &DeviceNodes)> {
    let segments = pci.into_iter().flat_map(|pci| &pci.segments);
    let functions = segments.flat_map(|segment| &segment.functions);
    functions.filter_map(|function| Some((function, function.nodes.as_ref()?)))
}

/// The nodes that devices were given and nobody declared.
fn undeclared(config: &[NumaConfig], pci: Option<&PciPlan>) -> Vec<NumaConfig> {
    let owned = owners(pci).flat_map(|(_, nodes)| nodes.ids.iter().copied());
    let ids = rest(owned, config.iter().map(|node| node.guest_numa_id));
    ids.into_iter().map(NumaConfig::bare).collect()
}

/// The topology with the generic initiators that devices ask for, and for devices that leave it to
/// us with those that leave all nodes their numbers in Linux, which counts initiators before memory,
/// or that mend the numbers that initiators of other devices have changed. None of these is where
/// another device's driver would take them for its own.
///
/// Devices have their turns by ascending nodes: what has been given to one is in order then, and
/// cannot be the reason why another goes without.
fn with_initiators(
    isa: Isa,
    pci: &mut PciPlan,
    topology: impl Fn(&[Initiator]) -> Result<Topology, PlanError>,
) -> Result<Topology, PlanError> {
    let of = |bdf: Bdf, nodes: &DeviceNodes| -> Vec<Initiator> {
        nodes.ids.iter().map(|id| (bdf, *id)).collect()
    };
    let mut initiators: Vec<Initiator> = owners(Some(pci))
        .filter(|(_, nodes)| nodes.generic_initiators)
        .flat_map(|(function, nodes)| of(function.bdf, nodes))
        .collect();
    let mut chosen = topology(&initiators)?;
    let segments = pci.segments.iter_mut();
    let functions = segments.flat_map(|segment| {
        let is_claimed = segment.claimant().is_some();
        let functions = segment.functions.iter_mut();
        functions.filter(move |function| !is_claimed || function.bdf.device == 0)
    });
    let mut undecided: Vec<(Bdf, &mut DeviceNodes)> = functions
        .filter_map(|function| Some((function.bdf, function.nodes.as_mut()?)))
        .filter(|(_, nodes)| nodes.auto && !nodes.generic_initiators)
        .collect();
    undecided.sort_by_key(|(_, nodes)| nodes.ids.first().copied());
    for (bdf, nodes) in undecided {
        let more = [initiators.clone(), of(bdf, nodes)].concat();
        let candidate = topology(&more)?;
        if same_numbers(isa, &chosen, &candidate) || numbers_are_ids(isa, &candidate) {
            nodes.generic_initiators = true;
            (initiators, chosen) = (more, candidate);
        }
    }
    Ok(chosen)
}

/// Whether Linux gives all nodes the same numbers.
fn same_numbers(isa: Isa, one: &Topology, other: &Topology) -> bool {
    let order = |topology| {
        let numbering = numbering(isa, topology);
        let nodes = numbering.nodes().iter().map(|node| node.pxm);
        nodes.collect::<Vec<_>>()
    };
    order(one) == order(other)
}

/// Whether Linux gives every node its id as its number.
fn numbers_are_ids(isa: Isa, topology: &Topology) -> bool {
    numbering(isa, topology).renumbered().next().is_none()
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
pub(super) fn home(config: &[NumaConfig]) -> Option<u32> {
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
        pci_segments: _,
        device_id: _,
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
        device: None,
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
    initiators: &[Initiator],
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
            initiators: initiators
                .iter()
                .filter(|(_, id)| *id == node.id)
                .map(|(bdf, _)| handle(*bdf))
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

fn handle(bdf: Bdf) -> DeviceHandle {
    let Bdf { segment, device } = bdf;
    DeviceHandle::Pci {
        segment,
        bus: 0,
        device,
        function: 0,
    }
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
