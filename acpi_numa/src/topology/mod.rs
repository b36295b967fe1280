//! What a machine's NUMA nodes are: a plain description, and the checked topology made from it.

mod distance;
mod error;
mod node;
mod performance;
mod validate;

use alloc::vec::Vec;
use core::fmt;

pub use distance::{Distance, DistanceSpec};
pub use error::{PerformanceError, TopologyError};
pub use node::{AddressRange, DeviceHandle, DeviceRole, MemoryRange, Node, Processor};
pub use performance::{
    Associativity, Bandwidth, Figure, Latency, MemorySideCache, Path, Performance, WritePolicy,
};

use crate::hmat::Structure;
use distance::Matrix;

/// A proximity domain (PXM): firmware's number for a NUMA node (ACPI 6.5, section 6.2.15).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProximityDomain(pub u32);

impl ProximityDomain {
    /// The highest number that a topology accepts.
    ///
    /// The SLIT has a cell for every pair of numbers up to the highest one in use, whether they
    /// are in use or not: 1024 numbers make 1 MiB. No Linux distribution's kernel knows more
    /// than 1024 nodes either.
    pub const MAX: Self = Self(1023);
}

impl fmt::Display for ProximityDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A description of a topology. Anybody can write anything into it; [`Topology::new`] checks it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologySpec {
    /// The nodes, in any order.
    pub nodes: Vec<Node>,
    /// How far the nodes are from each other.
    pub distances: DistanceSpec,
    /// Latencies, bandwidths and caches. If nothing is said of them, there is no HMAT.
    pub performance: Performance,
}

/// Nodes, distances and performance that fit together: all that the tables say.
///
/// The encoders cannot fail, because only what they can say becomes a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    nodes: Vec<Node>,
    distances: Matrix,
    structures: Vec<Structure>,
}

impl Topology {
    /// Checks a description and completes it: nodes in ascending order, a distance for each pair.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the description, at once.
    pub fn new(spec: TopologySpec) -> Result<Self, Vec<TopologyError>> {
        let mut errors = validate::nodes(&spec.nodes);
        errors.extend(validate::distances(&spec));
        let structures = performance::structures(&spec, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut nodes = spec.nodes;
        nodes.sort_by_key(|node| node.pxm);
        let distances = Matrix::new(&nodes, &spec.distances);
        Ok(Self {
            nodes,
            distances,
            structures,
        })
    }

    /// The nodes in ascending order of their proximity domains.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this proximity domain.
    pub fn node(&self, pxm: ProximityDomain) -> Option<&Node> {
        let at = self
            .nodes
            .binary_search_by_key(&pxm, |node| node.pxm)
            .ok()?;
        self.nodes.get(at)
    }

    /// The relative distance of two proximity domains, as the SLIT has it.
    ///
    /// There is one for numbers that no node has too, up to the highest that a node has; above
    /// that there is none.
    pub fn distance(&self, from: ProximityDomain, to: ProximityDomain) -> Option<Distance> {
        self.distances.get(from, to)
    }

    pub(crate) fn distances(&self) -> &Matrix {
        &self.distances
    }

    pub(crate) fn structures(&self) -> &[Structure] {
        &self.structures
    }
}
