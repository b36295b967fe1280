//! What can be wrong with a topology's description.

use thiserror::Error;

use super::{AddressRange, DeviceHandle, DeviceRole, Distance, Processor, ProximityDomain};
use crate::hmat::{MAX_CELL, Metric};

/// A reason why a description is no topology.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// There are no nodes.
    #[error("there are no NUMA nodes: declare at least one")]
    NoNodes,
    /// Two nodes have one number.
    #[error("node {pxm} is declared twice: give every node a number of its own")]
    DuplicateNode {
        /// The number.
        pxm: ProximityDomain,
    },
    /// A node's number makes the tables too large.
    #[error("node {pxm} has too high a number: use 0 to {}", ProximityDomain::MAX)]
    NodeTooHigh {
        /// The number.
        pxm: ProximityDomain,
    },
    /// No table would say that the node exists.
    #[error(
        "node {pxm} has neither processors, memory nor devices, and a placeholder for memory is \
         refused: no guest would see it"
    )]
    Invisible {
        /// The node.
        pxm: ProximityDomain,
    },
    /// The SRAT would be too long.
    #[error("{count} processors, memory ranges and devices are too many: at most {max}")]
    TooManyEntries {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A memory range without memory.
    #[error("node {pxm} has a memory range of no length at {base:#x}: leave it out")]
    EmptyRange {
        /// The node.
        pxm: ProximityDomain,
        /// The range's first address.
        base: u64,
    },
    /// A memory range that goes on after the last address.
    #[error("node {pxm} has a memory range that passes the end of the address space: {range}")]
    RangeTooLong {
        /// The node.
        pxm: ProximityDomain,
        /// The range.
        range: AddressRange,
    },
    /// Two memory ranges share an address.
    #[error("memory ranges overlap: node {first} has {first_range}, node {second} {second_range}")]
    Overlap {
        /// The node with the lower range.
        first: ProximityDomain,
        /// That range.
        first_range: AddressRange,
        /// The node with the other range.
        second: ProximityDomain,
        /// The other range.
        second_range: AddressRange,
    },
    /// A processor is in two nodes, or in one twice.
    #[error("{processor} is in node {first} and again in node {second}: name it once")]
    DuplicateProcessor {
        /// The processor.
        processor: Processor,
        /// The node that had it first.
        first: ProximityDomain,
        /// The node that has it too.
        second: ProximityDomain,
    },
    /// A device is in a node twice, in the same role.
    #[error("node {pxm} names the {role} {device} twice: name it once")]
    DuplicateDevice {
        /// The node.
        pxm: ProximityDomain,
        /// The list in which the device is.
        role: DeviceRole,
        /// The device.
        device: DeviceHandle,
    },
    /// No PCI function has such an address.
    #[error("node {pxm} names the {role} {device}: PCI devices are 0 to 31 and functions 0 to 7")]
    PciAddress {
        /// The node.
        pxm: ProximityDomain,
        /// The list in which the device is.
        role: DeviceRole,
        /// The device.
        device: DeviceHandle,
    },
    /// A distance leads to or from a node that is not there.
    #[error("there is a distance from node {from} to node {to}, but no node {missing}")]
    DistanceWithoutNode {
        /// The node from which it leads.
        from: ProximityDomain,
        /// The node to which it leads.
        to: ProximityDomain,
        /// The first of the two that is not declared.
        missing: ProximityDomain,
    },
    /// A distance between two nodes that the SLIT cannot have.
    #[error(
        "the distance from node {from} to node {to} is {distance}: use {} to {}",
        Distance::MIN_REMOTE,
        Distance::MAX_REMOTE
    )]
    Distance {
        /// The node from which it leads.
        from: ProximityDomain,
        /// The node to which it leads.
        to: ProximityDomain,
        /// The distance.
        distance: Distance,
    },
    /// A distance of a node to itself that the SLIT cannot have.
    #[error(
        "the distance of node {pxm} to itself is {distance}: it is {} by definition, leave it out",
        Distance::LOCAL
    )]
    LocalDistance {
        /// The node.
        pxm: ProximityDomain,
        /// The distance.
        distance: Distance,
    },
    /// A default distance that the SLIT cannot have.
    #[error(
        "the default distance {}is {distance}: use {} to {}",
        if *.empty { "of empty nodes " } else { "" },
        Distance::MIN_REMOTE,
        Distance::MAX_REMOTE
    )]
    DefaultDistance {
        /// Whether it is the one for empty nodes.
        empty: bool,
        /// The distance.
        distance: Distance,
    },
    /// Something that the HMAT cannot say.
    #[error(transparent)]
    Performance(#[from] PerformanceError),
}

/// A reason why latencies, bandwidths or caches cannot be put into an HMAT.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PerformanceError {
    /// A node that is not there.
    #[error("performance is given for node {pxm}, which is not declared")]
    UnknownNode {
        /// The node.
        pxm: ProximityDomain,
    },
    /// A node from which nothing accesses memory.
    #[error(
        "node {pxm} is to be an initiator of memory accesses, but has neither processors nor \
         generic initiators"
    )]
    NoInitiator {
        /// The node.
        pxm: ProximityDomain,
    },
    /// A node that the HMAT must not speak of: guests then ignore all of it.
    #[error(
        "performance is given for the memory of node {pxm}, which has no memory entry: let it \
         have a placeholder or leave it out"
    )]
    NoMemory {
        /// The node.
        pxm: ProximityDomain,
    },
    /// Nothing is said of a path.
    #[error(
        "neither latency nor bandwidth is given from node {initiator} to node {target}: give one \
         or leave the pair out"
    )]
    NoFigures {
        /// The node with the initiator.
        initiator: ProximityDomain,
        /// The node with the memory.
        target: ProximityDomain,
    },
    /// 0 means that the value is not known.
    #[error(
        "the {metric} from node {initiator} to node {target} is 0: leave out what is not known"
    )]
    Zero {
        /// Latency or bandwidth.
        metric: Metric,
        /// The node with the initiator.
        initiator: ProximityDomain,
        /// The node with the memory.
        target: ProximityDomain,
    },
    /// The values of a matrix are 16-bit multiples of a unit, and these are not.
    #[error(
        "{metric} values up to {largest} {} cannot all be told as 1 to {MAX_CELL} times one unit: \
         round them to multiples of {unit} {}",
        .metric.unit(),
        .metric.unit()
    )]
    NoCommonUnit {
        /// Latency or bandwidth.
        metric: Metric,
        /// The largest value.
        largest: u32,
        /// A round unit with which the largest value can be told.
        unit: u32,
    },
    /// A cache level that is not there.
    #[error(
        "the memory-side cache of node {memory} is level {level} of {total}: there are up to 3 \
         levels, counted from 1"
    )]
    CacheLevel {
        /// The node with the memory.
        memory: ProximityDomain,
        /// The level.
        level: u8,
        /// How many levels there are.
        total: u8,
    },
    /// A cache level that is described twice.
    #[error("level {level} of the memory-side cache of node {memory} is described twice")]
    DuplicateCache {
        /// The node with the memory.
        memory: ProximityDomain,
        /// The level.
        level: u8,
    },
    /// More SMBIOS handles than a cache can have.
    #[error(
        "level {level} of the memory-side cache of node {memory} has {count} SMBIOS handles: at \
         most {}",
        u16::MAX
    )]
    TooManyHandles {
        /// The node with the memory.
        memory: ProximityDomain,
        /// The level.
        level: u8,
        /// How many handles there are.
        count: usize,
    },
}
