//! What is checked before a description of nodes and distances becomes a topology.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::{AddressRange, DeviceHandle, DeviceRole, Node, ProximityDomain};
use super::{TopologyError, TopologySpec};

/// Entries that an SRAT may have: far more than a machine needs, far less than the 4 GiB that a
/// table's length can tell.
const MAX_ENTRIES: usize = 1 << 16;

/// What is wrong with nodes and what belongs to them.
pub(super) fn nodes(nodes: &[Node]) -> Vec<TopologyError> {
    let mut errors = Vec::new();
    if nodes.is_empty() {
        errors.push(TopologyError::NoNodes);
    }
    let mut seen = BTreeSet::new();
    for node in nodes {
        let pxm = node.pxm;
        if pxm > ProximityDomain::MAX {
            errors.push(TopologyError::NodeTooHigh { pxm });
        }
        if !seen.insert(pxm) {
            errors.push(TopologyError::DuplicateNode { pxm });
        }
        if node.entries() == 0 {
            errors.push(TopologyError::Invisible { pxm });
        }
        devices(pxm, DeviceRole::Initiator, &node.initiators, &mut errors);
        devices(pxm, DeviceRole::Port, &node.ports, &mut errors);
    }
    let count = nodes.iter().map(Node::entries).sum();
    if count > MAX_ENTRIES {
        errors.push(TopologyError::TooManyEntries {
            count,
            max: MAX_ENTRIES,
        });
    }
    processors(nodes, &mut errors);
    ranges(nodes, &mut errors);
    errors
}

/// A device may be in several nodes, because memory of one device may be several nodes, but only
/// once in each.
fn devices(
    pxm: ProximityDomain,
    role: DeviceRole,
    devices: &[DeviceHandle],
    errors: &mut Vec<TopologyError>,
) {
    let mut seen = BTreeSet::new();
    for &handle in devices {
        if !seen.insert(handle) {
            let device = handle;
            errors.push(TopologyError::DuplicateDevice { pxm, role, device });
        }
        if let DeviceHandle::Pci {
            device, function, ..
        } = handle
            && (device > 31 || function > 7)
        {
            let device = handle;
            errors.push(TopologyError::PciAddress { pxm, role, device });
        }
    }
}

fn processors(nodes: &[Node], errors: &mut Vec<TopologyError>) {
    let mut seen = BTreeMap::new();
    for node in nodes {
        for processor in &node.processors {
            if let Some(first) = seen.insert(processor.name(), node.pxm) {
                errors.push(TopologyError::DuplicateProcessor {
                    processor: *processor,
                    first,
                    second: node.pxm,
                });
            }
        }
    }
}

fn ranges(nodes: &[Node], errors: &mut Vec<TopologyError>) {
    let mut sorted = Vec::new();
    for node in nodes {
        for range in node.ranges() {
            let pxm = node.pxm;
            let range = AddressRange::from(range);
            let end = range.base.checked_add(range.length);
            match end {
                _ if range.length == 0 => errors.push(TopologyError::EmptyRange {
                    pxm,
                    base: range.base,
                }),
                None => errors.push(TopologyError::RangeTooLong { pxm, range }),
                Some(end) => sorted.push((range, end, pxm)),
            }
        }
    }
    sorted.sort_by_key(|(range, ..)| range.base);
    // The range that reaches furthest so far, of those that start lower.
    let mut furthest: Option<(AddressRange, u64, ProximityDomain)> = None;
    for next in sorted {
        let (second_range, next_end, second) = next;
        if let Some((first_range, end, first)) = furthest
            && second_range.base < end
        {
            errors.push(TopologyError::Overlap {
                first,
                first_range,
                second,
                second_range,
            });
        }
        if furthest.is_none_or(|(_, end, _)| next_end > end) {
            furthest = Some(next);
        }
    }
}

/// What is wrong with distances.
pub(super) fn distances(spec: &TopologySpec) -> Vec<TopologyError> {
    let mut errors = Vec::new();
    let defaults = [
        (false, spec.distances.default),
        (true, spec.distances.default_empty),
    ];
    for (empty, distance) in defaults {
        if !distance.is_remote() {
            errors.push(TopologyError::DefaultDistance { empty, distance });
        }
    }
    let declared: BTreeSet<_> = spec.nodes.iter().map(|node| node.pxm).collect();
    for (&(from, to), &distance) in &spec.distances.given {
        if let Some(&missing) = [from, to].iter().find(|pxm| !declared.contains(pxm)) {
            errors.push(TopologyError::DistanceWithoutNode { from, to, missing });
        }
        if from != to {
            if !distance.is_remote() {
                errors.push(TopologyError::Distance { from, to, distance });
            }
        } else if distance != super::Distance::LOCAL {
            let pxm = from;
            errors.push(TopologyError::LocalDistance { pxm, distance });
        }
    }
    errors
}
