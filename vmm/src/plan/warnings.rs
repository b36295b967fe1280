//! What an operator should know of a plan that works, but perhaps not as it was meant.

use std::collections::{BTreeMap, BTreeSet};

use acpi_numa::linux::Kernel;
use arch::Isa;

use super::pci::VENDOR_NVIDIA;
use super::{CpuPlan, FunctionPlan, NodePlan, NumaPlan, Plan, SegmentPlan};

/// Nodes that distributions' arm64 kernels have room for.
const ARM64_NODES: usize = Kernel::ARM64.max_nodes as usize;
/// The highest proximity domain of such a kernel: it has a map of 256 (MAX_PXM_DOMAINS in
/// drivers/acpi/numa/srat.c).
const ARM64_LAST_DOMAIN: u32 = 255;

impl Plan {
    /// What may come as a surprise, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let segments = self.pci.iter().flat_map(|pci| &pci.segments);
        let functions = segments.clone().flat_map(|segment| &segment.functions);
        let functions: Vec<&FunctionPlan> = functions.collect();
        if let Some(numa) = &self.numa {
            warnings.extend(numa_warnings(self.isa, numa, &functions));
            warnings.extend(split_package(&self.cpus, numa));
        }
        for function in functions {
            warnings.extend(unmatched_initiators(function));
            warnings.extend(memory_without_nodes(function, self.numa.is_some()));
        }
        warnings.extend(segments.flat_map(claimed_initiators));
        warnings
    }

    /// What comes of `--platform vfio_p2p_dma=off`.
    pub fn isolation_warnings(&self) -> Vec<String> {
        let segments = self.pci.iter().flat_map(|pci| &pci.segments);
        let functions: Vec<_> = segments.flat_map(|segment| &segment.functions).collect();
        // Alone, a device reaches all that there is.
        let others = functions.len() > 1;
        let functions = functions.into_iter().filter(|_| others);
        functions.filter_map(unreachable_memory).collect()
    }
}

/// A driver may take memory of a device for RAM of its nodes, and buffers are anywhere in RAM. Not every
/// device says so when it reaches nothing: what it writes is lost, and what it reads is anything.
fn unreachable_memory(function: &FunctionPlan) -> Option<String> {
    let FunctionPlan { id, nodes, .. } = function;
    let nodes = super::ranges(&nodes.as_ref()?.ids);
    Some(format!(
        "other devices cannot reach the memory of device {id}, which the guest may use as RAM of \
         nodes {nodes}: buffers there lose their data, and the guest may never hear of it. Drop \
         vfio_p2p_dma=off, or pass no other device through"
    ))
}

/// A package with CPUs in two nodes, if there is one.
fn split_package(cpus: &CpuPlan, numa: &NumaPlan) -> Option<String> {
    let mut homes = BTreeMap::new();
    for node in &numa.nodes {
        for index in &node.cpus {
            let cpu = cpus.cpus.get(*index as usize)?;
            let home = *homes.entry(cpu.package).or_insert(node.id);
            if home != node.id {
                return Some(format!(
                    "CPU package {} has CPUs in nodes {home} and {}: Linux will complain of a cache \
                     that spans nodes; give a --cpus topology with a package or more for each node",
                    cpu.package, node.id
                ));
            }
        }
    }
    None
}

/// NVIDIA's driver heeds generic initiators of function 0 of device 0 only.
fn unmatched_initiators(function: &FunctionPlan) -> Option<String> {
    let nodes = function.nodes.as_ref()?;
    let applies = function.facts.identity.vendor == VENDOR_NVIDIA && nodes.generic_initiators;
    (applies && function.bdf.device != 0).then_some(())?;
    let FunctionPlan { id, bdf, .. } = function;
    let instead = match nodes.dsd {
        true => "the _DSD of its ACPI node tells it",
        false => "so it will find no nodes",
    };
    Some(format!(
        "device {id} is at {bdf}, and NVIDIA's driver learns of nodes from generic initiators at \
         device 0 only; {instead}. For both ways, give it a segment of its own: \
         pci_segment=<n>,pci_device_id=0"
    ))
}

/// Initiators that the driver of another device takes for its own.
fn claimed_initiators(segment: &SegmentPlan) -> impl Iterator<Item = String> {
    let claimant = segment.claimant().into_iter();
    let others = claimant.flat_map(|claimant| {
        let others = segment.functions.iter();
        others
            .filter(|function| function.bdf != claimant.bdf)
            .map(move |function| (claimant, function))
    });
    let has_initiators = |function: &FunctionPlan| {
        let nodes = function.nodes.as_ref();
        nodes.is_some_and(|nodes| nodes.generic_initiators)
    };
    others
        .filter(move |(_, function)| has_initiators(function))
        .map(|(claimant, function)| {
            format!(
                "device {} has generic initiators at {}, and NVIDIA's driver will take them for those of \
                 device {} at {}, with the nodes; put one of the two on another segment",
                function.id, function.bdf, claimant.id, claimant.bdf
            )
        })
}

/// Nodes cannot be added to a guest that runs, so its driver has nowhere to put the memory.
fn memory_without_nodes(function: &FunctionPlan, has_nodes: bool) -> Option<String> {
    function.facts.coherent.as_ref()?;
    function.nodes.is_none().then_some(())?;
    let first = match has_nodes {
        true => "",
        false => ", beside a --numa node for CPUs and RAM",
    };
    Some(format!(
        "device {} has memory that CPUs may cache and no NUMA nodes, so the guest cannot use it as \
         RAM: guest_numa_ids=auto gives it some{first}",
        function.id
    ))
}

fn numa_warnings(isa: Isa, numa: &NumaPlan, functions: &[&FunctionPlan]) -> Vec<String> {
    let NumaPlan {
        nodes,
        distances: _,
        home,
        adopted_cpus,
        adopted_zones,
    } = numa;
    let mut warnings = Vec::new();
    if !adopted_cpus.is_empty() {
        let cpus = super::ranges(adopted_cpus);
        warnings.push(format!(
            "CPUs {cpus} belong to no --numa node; they are put into node {home}"
        ));
    }
    if !adopted_zones.is_empty() {
        let zones = adopted_zones.join(", ");
        warnings.push(format!(
            "the RAM of {zones} belongs to no --numa node; it is put into node {home}"
        ));
    }
    let renumbered: Vec<String> = nodes
        .iter()
        .filter_map(|node| {
            let number = node.linux_node.filter(|number| *number != node.id)?;
            Some(format!("{} is {number}", node.id))
        })
        .collect();
    if !renumbered.is_empty() {
        let mut owned = functions
            .iter()
            .filter_map(|function| function.nodes.as_ref());
        let initiators = match owned.any(|nodes| nodes.generic_initiators) {
            true => ", then those with generic initiators",
            false => "",
        };
        warnings.push(format!(
            "Linux numbers nodes with CPUs first{initiators}, then those with memory or room for it, \
             without holes, so guest_numa_id {} there",
            renumbered.join(", ")
        ));
    }
    if isa == Isa::Aarch64 {
        if nodes.len() > ARM64_NODES {
            warnings.push(format!(
                "{} nodes: kernels with room for {ARM64_NODES}, which is what distributions ship \
                 for arm64 (CONFIG_NODES_SHIFT=4), will see one node with everything in it{}",
                nodes.len(),
                fewer_nodes(nodes).unwrap_or_default()
            ));
        }
        if let Some(node) = nodes.iter().find(|node| node.id > ARM64_LAST_DOMAIN) {
            warnings.push(format!(
                "guest_numa_id={}: kernels with room for few nodes, as distributions ship them for \
                 arm64, know ids up to {ARM64_LAST_DOMAIN} and will see no NUMA at all",
                node.id
            ));
        }
    }
    warnings
}

/// What would do for those kernels, if devices own nodes and could have fewer.
fn fewer_nodes(nodes: &[NodePlan]) -> Option<String> {
    let owners: BTreeSet<&String> = nodes
        .iter()
        .filter_map(|node| node.device.as_ref())
        .collect();
    let others = nodes.iter().filter(|node| node.device.is_none()).count();
    let each = ARM64_NODES.checked_sub(others)?.checked_div(owners.len())?;
    (each > 0).then(|| format!("; with {each} nodes at most for each device there would be room"))
}

#[cfg(test)]
mod tests {
    use pci::config_space::Identity;
    use pci::{Bdf, DeviceFacts};

    use super::*;
    use crate::plan::pci::DeviceNodes;

    #[test]
    fn memory_that_may_become_ram_is_warned_of() {
        let mut function = FunctionPlan {
            id: "gpu".to_owned(),
            bdf: Bdf {
                segment: 0,
                device: 1,
            },
            facts: DeviceFacts {
                identity: Identity {
                    vendor: 0x10de,
                    device: 0x2342,
                    revision: 0,
                    class: 0x03_02_00,
                    subsystem_vendor: 0,
                    subsystem: 0,
                },
                bars: Vec::new(),
                intx: false,
                coherent: None,
                driver: None,
            },
            bars: Vec::new(),
            source: crate::plan::FunctionSource::Reserved,
            nodes: None,
        };
        assert_eq!(unreachable_memory(&function), None);
        function.nodes = Some(DeviceNodes {
            ids: vec![2, 3, 4],
            dsd: true,
            generic_initiators: false,
            auto: true,
        });
        let warning = unreachable_memory(&function).unwrap();
        assert!(warning.contains("device gpu"), "{warning}");
        assert!(warning.contains("nodes 2-4"), "{warning}");
        assert!(warning.contains("vfio_p2p_dma=off"), "{warning}");
    }
}
