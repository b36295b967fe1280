//! Relative distances: a few given ones, and the whole matrix.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::{Node, ProximityDomain};

/// A relative distance (ACPI 6.5, section 5.2.17): 10 within a node, and 20 means twice as long
/// to access.
///
/// 255 would mean that there is no path. Nodes that cannot reach each other have no place in one
/// machine's SLIT, and Linux does not treat that value specially, so topologies do not accept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance(pub u8);

impl Distance {
    /// From a node to itself.
    pub const LOCAL: Self = Self(10);
    /// The shortest from a node to another.
    pub const MIN_REMOTE: Self = Self(11);
    /// The longest from a node to another.
    pub const MAX_REMOTE: Self = Self(254);

    /// Whether a node may be so far from another.
    pub fn is_remote(self) -> bool {
        (Self::MIN_REMOTE..=Self::MAX_REMOTE).contains(&self)
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The distances that are known, and what holds for all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistanceSpec {
    /// Distances by the nodes they lead from and to. One that is given in one direction only
    /// holds in both.
    pub given: BTreeMap<(ProximityDomain, ProximityDomain), Distance>,
    /// Between two nodes with processors or memory.
    pub default: Distance,
    /// To and from nodes with neither ([`Node::is_empty`]). It will count once there is memory.
    pub default_empty: Distance,
}

impl Default for DistanceSpec {
    /// Nothing given, 20 between nodes with processors or memory, 40 to and from empty ones.
    fn default() -> Self {
        Self {
            given: BTreeMap::new(),
            default: Distance(20),
            default_empty: Distance(40),
        }
    }
}

/// A distance for every pair of numbers up to the highest one in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    localities: usize,
    /// Row by row; a row holds the distances from one node.
    cells: Vec<u8>,
}

impl Matrix {
    /// The matrix of nodes and distances that have been found valid. Numbers that no node has are
    /// treated as empty nodes.
    pub(super) fn new(nodes: &[Node], spec: &DistanceSpec) -> Self {
        let highest = nodes.iter().map(|node| index(node.pxm)).max();
        let localities = highest.map_or(0, |highest| highest + 1);
        let mut to_populated = vec![spec.default_empty.0; localities];
        for node in nodes.iter().filter(|node| !node.is_empty()) {
            to_populated[index(node.pxm)] = spec.default.0;
        }

        let mut cells = vec![spec.default_empty.0; localities * localities];
        for node in nodes.iter().filter(|node| !node.is_empty()) {
            let row = index(node.pxm) * localities;
            cells[row..row + localities].copy_from_slice(&to_populated);
        }
        for at in 0..localities {
            cells[at * localities + at] = Distance::LOCAL.0;
        }
        // Each first backwards, then forwards: what is given both ways keeps both values.
        for ((from, to), distance) in &spec.given {
            cells[index(*to) * localities + index(*from)] = distance.0;
        }
        for ((from, to), distance) in &spec.given {
            cells[index(*from) * localities + index(*to)] = distance.0;
        }
        Self { localities, cells }
    }

    pub(crate) fn localities(&self) -> usize {
        self.localities
    }

    pub(crate) fn cells(&self) -> &[u8] {
        &self.cells
    }

    pub(super) fn get(&self, from: ProximityDomain, to: ProximityDomain) -> Option<Distance> {
        let [from, to] = [index(from), index(to)];
        if from >= self.localities || to >= self.localities {
            return None;
        }
        self.cells
            .get(from * self.localities + to)
            .copied()
            .map(Distance)
    }
}

/// A proximity domain as a row or column.
fn index(pxm: ProximityDomain) -> usize {
    pxm.0 as usize
}
