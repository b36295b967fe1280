//! What a plan says of NUMA, as the API says it.

use pci::DeviceFacts;

use super::types::{CoherentMemory, NumaDevice, NumaInfo, NumaNode};
use crate::plan::{DeviceNodes, FunctionPlan, NodePlan, NumaPlan, Plan};

impl NumaInfo {
    /// What a plan says of NUMA; nothing where the guest is told of no nodes.
    pub fn of(plan: &Plan) -> Option<Self> {
        let NumaPlan {
            nodes,
            distances,
            home: _,
            adopted_cpus: _,
            adopted_zones: _,
        } = plan.numa.as_ref()?;
        let segments = plan.pci.iter().flat_map(|pci| &pci.segments);
        let functions = segments.flat_map(|segment| &segment.functions);
        Some(Self {
            nodes: nodes.iter().map(NumaNode::of).collect(),
            distances: distances.clone(),
            devices: functions.filter_map(NumaDevice::of).collect(),
        })
    }
}

impl NumaNode {
    fn of(node: &NodePlan) -> Self {
        let NodePlan {
            id,
            cpus,
            zones,
            ram,
            linux_node,
            device,
        } = node.clone();
        Self {
            guest_numa_id: id,
            // A node's id is its proximity domain (docs/numa.md).
            proximity_domain: id,
            linux_node,
            cpus,
            memory_zones: zones,
            memory: ram,
            device,
        }
    }
}

impl NumaDevice {
    /// What there is to say of a device; nothing if it has neither nodes nor such memory.
    fn of(function: &FunctionPlan) -> Option<Self> {
        let FunctionPlan {
            id,
            bdf,
            facts,
            bars: _,
            source: _,
            nodes,
        } = function;
        if nodes.is_none() && facts.coherent.is_none() {
            return None;
        }
        let (ids, dsd, generic_initiators) = match nodes {
            None => (Vec::new(), false, false),
            Some(DeviceNodes {
                ids,
                dsd,
                generic_initiators,
                auto: _,
            }) => (ids.clone(), *dsd, *generic_initiators),
        };
        Some(Self {
            id: id.clone(),
            pci_bdf: bdf.to_string(),
            guest_numa_ids: ids,
            dsd,
            generic_initiators,
            coherent_memory: coherent_memory(function, facts),
        })
    }
}

fn coherent_memory(function: &FunctionPlan, facts: &DeviceFacts) -> Option<CoherentMemory> {
    let pci::CoherentMemory { bar, usable } = facts.coherent?;
    let mut bars = facts.bars.iter().zip(&function.bars);
    let address = bars.find(|(facts, _)| facts.index == bar);
    Some(CoherentMemory {
        bar,
        size: usable,
        address: address.and_then(|(_, address)| *address),
    })
}
