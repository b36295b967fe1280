//! What Linux makes of an SRAT: the node numbers that its users see.
//!
//! Linux does not use proximity domains as node numbers. It counts nodes as it meets them: first
//! in one pass over processors and generic initiators, in the table's order, then in another over
//! memory. Only enabled entries count, and generic ports do not. So 0, 1, 2 with a generic
//! initiator in 2 and memory alone in 1 become 0, 2, 1. This is what 6.1 to 6.12 do.
//!
//! The prediction is made from a table's bytes as a guest would read them, not from the topology
//! that they were made of.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use thiserror::Error;

use crate::srat::{Entry, Srat};
use crate::topology::ProximityDomain;

/// What a guest's kernel was built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `MAX_NUMNODES`: two to the power of `CONFIG_NODES_SHIFT`.
    pub max_nodes: u32,
}

impl Kernel {
    /// The default on arm64, which distributions keep.
    pub const ARM64: Self = Self { max_nodes: 16 };
    /// What distributions choose on x86_64; the default is 64.
    pub const X86_64: Self = Self { max_nodes: 1024 };

    /// Proximity domains from this one on have no place in the kernel's map. It never has fewer
    /// places than 256, the number of domains in an SRAT of revision 1.
    fn end_of_domains(self) -> u32 {
        self.max_nodes.max(256)
    }
}

/// A node as Linux sees it. Its number is its index in [`Numbering::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinuxNode {
    /// The proximity domain, cut to 8 bits if the table's revision demands it.
    pub pxm: ProximityDomain,
    /// Whether it has processors.
    pub processors: bool,
    /// Whether it has generic initiators.
    pub initiators: bool,
    /// Whether it has a memory entry.
    pub memory_entry: bool,
    /// Whether one of its memory entries has a length. What is in a hotpluggable one may be
    /// missing at boot.
    pub memory: bool,
}

/// Why Linux does without a table, or without a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Linux gives up NUMA altogether.
    #[error(
        "there are {nodes} NUMA nodes, but the guest's kernel is built for {max}: it will see \
         one node with everything in it"
    )]
    TooManyNodes {
        /// Nodes that there are.
        nodes: usize,
        /// Nodes that there may be.
        max: u32,
    },
    /// Linux gives up NUMA altogether, or what follows the entry.
    #[error(
        "NUMA node {pxm} has too high a number for the guest's kernel: use 0 to {}",
        .end - 1
    )]
    DomainTooHigh {
        /// The node.
        pxm: ProximityDomain,
        /// The lowest number that is too high.
        end: u32,
    },
    /// Linux stops reading processors and generic initiators here.
    #[error(
        "the SRAT's generic initiator of NUMA node {pxm} is disabled: the guest's kernel will \
         not read processors and generic initiators behind it"
    )]
    DisabledInitiator {
        /// The node.
        pxm: ProximityDomain,
    },
    /// Linux gives up NUMA altogether.
    #[error("no NUMA node has a memory entry: the guest's kernel will see one node")]
    NoMemory,
}

/// The nodes that Linux sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbering {
    nodes: Vec<LinuxNode>,
    problems: Vec<Problem>,
    /// Index into `nodes`.
    numbers: BTreeMap<ProximityDomain, usize>,
}

impl Numbering {
    /// The nodes by their number in Linux.
    ///
    /// They are numbered as if the kernel had no limit; whether it has is said by
    /// [`problems`](Self::problems).
    pub fn nodes(&self) -> &[LinuxNode] {
        &self.nodes
    }

    /// What keeps Linux from using the table as it is meant. With any of these, the numbers
    /// cannot be relied on.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// A proximity domain's number in Linux, `None` if the table has no enabled entry of it that
    /// Linux counts.
    pub fn number(&self, pxm: ProximityDomain) -> Option<usize> {
        self.numbers.get(&pxm).copied()
    }

    /// Proximity domains with another number than their own, in ascending order of numbers.
    pub fn renumbered(&self) -> impl Iterator<Item = (ProximityDomain, usize)> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(number, node)| node.pxm.0 as usize != *number)
            .map(|(number, node)| (node.pxm, number))
    }

    /// Nodes that have no memory, in ascending order of numbers.
    pub fn memoryless(&self) -> impl Iterator<Item = (ProximityDomain, usize)> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(_, node)| !node.memory)
            .map(|(number, node)| (node.pxm, number))
    }

    /// The node of a proximity domain, with the next number if Linux meets it for the first time.
    fn meet(&mut self, pxm: ProximityDomain) -> &mut LinuxNode {
        let next = self.nodes.len();
        let number = *self.numbers.entry(pxm).or_insert(next);
        if number == next {
            self.nodes.push(LinuxNode {
                pxm,
                processors: false,
                initiators: false,
                memory_entry: false,
                memory: false,
            });
        }
        &mut self.nodes[number]
    }
}

/// The numbers that Linux gives to a table's proximity domains, and what it cannot cope with.
pub fn numbering(srat: &Srat, kernel: Kernel) -> Numbering {
    let mut numbering = Numbering::default();
    for entry in &srat.entries {
        match entry {
            Entry::LocalApic(_) | Entry::X2apic(_) | Entry::Gicc(_) if entry.is_enabled() => {
                numbering.meet(domain(srat, entry)).processors = true;
            }
            Entry::GenericInitiator(initiator) if entry.is_enabled() => {
                numbering.meet(initiator.pxm()).initiators = true;
            }
            Entry::GenericInitiator(initiator) => {
                let pxm = initiator.pxm();
                numbering.problems.push(Problem::DisabledInitiator { pxm });
                break;
            }
            _ => {}
        }
    }
    for entry in &srat.entries {
        if let Entry::Memory(memory) = entry
            && entry.is_enabled()
        {
            let node = numbering.meet(domain(srat, entry));
            node.memory_entry = true;
            node.memory |= memory.range().length != 0;
        }
    }
    judge(&mut numbering, kernel);
    numbering
}

/// The proximity domain that Linux reads in an entry for a processor or for memory.
fn domain(srat: &Srat, entry: &Entry) -> ProximityDomain {
    let pxm = entry.pxm().unwrap_or_default();
    // x2APIC and GICC entries are younger than revision 1.
    match entry {
        Entry::LocalApic(_) | Entry::Memory(_) if srat.revision <= 1 => {
            ProximityDomain(pxm.0 & 0xff)
        }
        _ => pxm,
    }
}

fn judge(numbering: &mut Numbering, kernel: Kernel) {
    let problems = &mut numbering.problems;
    let end = kernel.end_of_domains();
    let domains = numbering.nodes.iter().map(|node| node.pxm);
    problems.extend(
        domains
            .filter(|pxm| pxm.0 >= end)
            .map(|pxm| Problem::DomainTooHigh { pxm, end }),
    );
    let nodes = numbering.nodes.len();
    if nodes as u64 > u64::from(kernel.max_nodes) {
        let max = kernel.max_nodes;
        problems.push(Problem::TooManyNodes { nodes, max });
    }
    if !numbering.nodes.iter().any(|node| node.memory_entry) {
        problems.push(Problem::NoMemory);
    }
}
