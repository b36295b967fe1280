//! vCPUs: how many, what the hardware calls them, where each sits.

use std::collections::BTreeSet;

use arch::{Isa, aarch64, x86_64};

use super::{CpuPlan, CpuTopology, HostFacts, PlanError, PlannedCpu};
use crate::config::{CpusConfig, NumaConfig};

pub(super) fn plan(
    config: &CpusConfig,
    numa: &[NumaConfig],
    host: &HostFacts,
) -> Result<CpuPlan, PlanError> {
    let max = config.max_vcpus;
    if max > host.max_vcpus {
        return Err(PlanError::TooManyCpus {
            max,
            host: host.max_vcpus,
        });
    }
    let topology = topology(config, numa);
    let cpus: Vec<PlannedCpu> = (0..max)
        .map(|index| place(index, &topology, host.isa))
        .collect();
    if host.isa == Isa::X86_64 {
        // KVM numbers x86 vCPUs by their APIC id.
        let highest = cpus.iter().map(|cpu| cpu.hardware_id).max().unwrap_or(0);
        if highest >= u64::from(host.max_vcpu_ids) {
            return Err(PlanError::ApicIdTooHigh {
                id: highest,
                limit: host.max_vcpu_ids,
            });
        }
    }
    let limit = config.phys_bits_limit(host.isa).unwrap_or(host.phys_bits);
    Ok(CpuPlan {
        boot: config.boot_vcpus,
        cpus,
        topology,
        phys_bits: limit.min(host.phys_bits),
        pmu: host.pmu,
    })
}

/// The topology asked for, or else one of single-threaded cores.
fn topology(config: &CpusConfig, numa: &[NumaConfig]) -> CpuTopology {
    if let Some(crate::config::CpuTopology {
        threads_per_core,
        cores_per_die,
        dies_per_package,
        packages,
    }) = config.topology
    {
        return CpuTopology {
            threads_per_core,
            cores_per_die,
            dies_per_package,
            packages,
        };
    }
    let packages = packages(config.max_vcpus, numa);
    CpuTopology {
        threads_per_core: 1,
        cores_per_die: config.max_vcpus / packages,
        dies_per_package: 1,
        packages,
    }
}

/// Packages without a part in two nodes: the CPUs of a package share a cache, and no kernel believes
/// in one that spans nodes. A package for each node if they are equal pieces of the CPUs, and
/// otherwise for each CPU.
fn packages(max: u32, numa: &[NumaConfig]) -> u32 {
    let nodes: Vec<BTreeSet<u32>> = numa
        .iter()
        .filter(|node| !node.cpus.is_empty())
        .map(|node| node.cpus.iter().copied().collect())
        .collect();
    let count = nodes.len() as u32;
    if count < 2 {
        return 1;
    }
    let size = max / count;
    let is_piece = |node: &BTreeSet<u32>| {
        let first = node.first().copied().unwrap_or(0);
        first.is_multiple_of(size) && node.iter().copied().eq(first..first + size)
    };
    if max.is_multiple_of(count) && nodes.iter().all(is_piece) {
        count
    } else {
        max
    }
}

/// CPUs fill a core before the next core, a die before the next die and so on.
fn place(index: u32, topology: &CpuTopology, isa: Isa) -> PlannedCpu {
    let thread = index % topology.threads_per_core;
    let cores = index / topology.threads_per_core;
    let core = cores % topology.cores_per_die;
    let dies = cores / topology.cores_per_die;
    let die = dies % topology.dies_per_package;
    let package = dies / topology.dies_per_package;
    let hardware_id = match isa {
        Isa::X86_64 => x86_64::topology::apic_id(topology, package, die, core, thread).into(),
        Isa::Aarch64 => aarch64::mpidr(index),
    };
    PlannedCpu {
        index,
        hardware_id,
        package,
        die,
        core,
        thread,
    }
}
