//! Latencies, bandwidths and memory-side caches, and the HMAT structures that tell them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::{Node, PerformanceError, ProximityDomain, TopologyError, TopologySpec};
use crate::hmat::{
    Access, CacheInfo, DataType, Localities, MAX_CELL, MemoryDomain, Metric, Structure, UNREACHABLE,
};

/// Time from a request to its answer, in picoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Latency {
    picoseconds: u32,
}

impl Latency {
    /// A latency in picoseconds, up to 4.29 ms.
    pub const fn from_picoseconds(picoseconds: u32) -> Self {
        Self { picoseconds }
    }

    /// A latency in nanoseconds, if it is at most 4.29 ms.
    pub const fn from_nanoseconds(nanoseconds: u32) -> Option<Self> {
        match nanoseconds.checked_mul(1000) {
            Some(picoseconds) => Some(Self { picoseconds }),
            None => None,
        }
    }

    /// Picoseconds.
    pub const fn picoseconds(self) -> u32 {
        self.picoseconds
    }
}

/// Data per second, in the megabytes of the specification, which does not say whether they are
/// 10^6 or 2^20 bytes. Firmware and guests that show MiB/s take the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bandwidth {
    megabytes_per_second: u32,
}

impl Bandwidth {
    /// A bandwidth in megabytes per second.
    pub const fn from_megabytes_per_second(megabytes_per_second: u32) -> Self {
        Self {
            megabytes_per_second,
        }
    }

    /// Megabytes per second.
    pub const fn megabytes_per_second(self) -> u32 {
        self.megabytes_per_second
    }
}

/// All that the HMAT tells (ACPI 6.5, section 5.2.28). Guests rank memory by it: Linux moves what
/// is seldom used from fast to slow memory, so say only what should have that effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Performance {
    /// The node to whose initiators a node's memory is attached, by the node with the memory.
    pub attachments: BTreeMap<ProximityDomain, ProximityDomain>,
    /// What accesses cost, by the nodes of initiator and memory.
    pub paths: BTreeMap<(ProximityDomain, ProximityDomain), Path>,
    /// Caches between a node's memory and everything else.
    pub caches: Vec<MemorySideCache>,
}

/// What an initiator's accesses to a node's memory cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The initiator cannot access that memory.
    Unreachable,
    /// It can. At least one of the two must be known.
    Reachable {
        /// Latency.
        latency: Option<Figure<Latency>>,
        /// Bandwidth.
        bandwidth: Option<Figure<Bandwidth>>,
    },
}

/// A value for reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure<T> {
    /// Both cost the same.
    Access(T),
    /// They differ.
    ReadWrite {
        /// Reading.
        read: T,
        /// Writing.
        write: T,
    },
}

impl<T: Copy> Figure<T> {
    fn map<U>(self, convert: impl Fn(T) -> U) -> Figure<U> {
        match self {
            Self::Access(value) => Figure::Access(convert(value)),
            Self::ReadWrite { read, write } => Figure::ReadWrite {
                read: convert(read),
                write: convert(write),
            },
        }
    }

    fn of(self, access: Access) -> T {
        match (self, access) {
            (Self::Access(value), _) => value,
            (Self::ReadWrite { write, .. }, Access::Write) => write,
            (Self::ReadWrite { read, .. }, _) => read,
        }
    }
}

/// A level of cache in front of a node's memory (ACPI 6.5, section 5.2.28.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySideCache {
    /// The node with the memory.
    pub memory: ProximityDomain,
    /// Size in bytes.
    pub size: u64,
    /// Levels in front of that memory, 1 to 3.
    pub total_levels: u8,
    /// The level that is described, from 1.
    pub level: u8,
    /// How addresses find their place in it.
    pub associativity: Associativity,
    /// When what is written reaches the memory.
    pub write_policy: WritePolicy,
    /// Bytes of a cache line.
    pub line_size: u16,
    /// SMBIOS handles of the memory's components.
    pub smbios_handles: Vec<u16>,
}

/// How addresses find their place in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Associativity {
    /// Not told.
    None = 0,
    /// Each has one place.
    DirectMapped = 1,
    /// Anything else.
    Complex = 2,
}

/// When what is written reaches the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WritePolicy {
    /// Not told.
    None = 0,
    /// When the line leaves the cache.
    WriteBack = 1,
    /// At once.
    WriteThrough = 2,
}

type Nodes<'a> = BTreeMap<ProximityDomain, &'a Node>;
type Pair = (ProximityDomain, ProximityDomain);

/// The HMAT's structures, and errors for what it cannot tell.
pub(super) fn structures(
    spec: &TopologySpec,
    topology_errors: &mut Vec<TopologyError>,
) -> Vec<Structure> {
    let nodes = spec.nodes.iter().map(|node| (node.pxm, node)).collect();
    let mut errors = Vec::new();
    let mut structures = Vec::new();
    for (&memory, &initiator) in &spec.performance.attachments {
        check_memory(&nodes, memory, &mut errors);
        check_initiator(&nodes, initiator, &mut errors);
        structures.push(Structure::MemoryDomain(MemoryDomain::new(
            memory, initiator,
        )));
    }
    check_paths(&nodes, &spec.performance.paths, &mut errors);
    structures.extend(localities(&spec.performance.paths, &mut errors));
    check_caches(&nodes, &spec.performance.caches, &mut errors);
    let caches = spec.performance.caches.iter();
    structures.extend(caches.map(|cache| Structure::Cache(CacheInfo::new(cache))));
    topology_errors.extend(errors.into_iter().map(TopologyError::from));
    structures
}

/// A memory node in a type 0 structure without a memory entry makes Linux refuse the whole table.
fn check_memory(nodes: &Nodes, pxm: ProximityDomain, errors: &mut Vec<PerformanceError>) {
    match nodes.get(&pxm) {
        None => errors.push(PerformanceError::UnknownNode { pxm }),
        Some(node) if !node.has_memory_entry() => errors.push(PerformanceError::NoMemory { pxm }),
        Some(_) => {}
    }
}

fn check_initiator(nodes: &Nodes, pxm: ProximityDomain, errors: &mut Vec<PerformanceError>) {
    match nodes.get(&pxm) {
        None => errors.push(PerformanceError::UnknownNode { pxm }),
        Some(node) if !node.has_initiator() => errors.push(PerformanceError::NoInitiator { pxm }),
        Some(_) => {}
    }
}

fn check_paths(nodes: &Nodes, paths: &BTreeMap<Pair, Path>, errors: &mut Vec<PerformanceError>) {
    let initiators: BTreeSet<_> = paths.keys().map(|(initiator, _)| *initiator).collect();
    for pxm in initiators {
        check_initiator(nodes, pxm, errors);
    }
    let targets: BTreeSet<_> = paths.keys().map(|(_, target)| *target).collect();
    for pxm in targets {
        // A path may end at a generic port: memory behind it is told by the device that brings it.
        if nodes.get(&pxm).is_none_or(|node| node.ports.is_empty()) {
            check_memory(nodes, pxm, errors);
        }
    }
    for (&(initiator, target), path) in paths {
        if let Path::Reachable {
            latency: None,
            bandwidth: None,
        } = path
        {
            errors.push(PerformanceError::NoFigures { initiator, target });
        }
    }
}

fn check_caches(nodes: &Nodes, caches: &[MemorySideCache], errors: &mut Vec<PerformanceError>) {
    let mut seen = BTreeSet::new();
    for cache in caches {
        let MemorySideCache { memory, level, .. } = *cache;
        check_memory(nodes, memory, errors);
        let total = cache.total_levels;
        if total > 3 || !(1..=total).contains(&level) {
            errors.push(PerformanceError::CacheLevel {
                memory,
                level,
                total,
            });
        }
        if !seen.insert((memory, level)) {
            errors.push(PerformanceError::DuplicateCache { memory, level });
        }
        let count = cache.smbios_handles.len();
        if count > usize::from(u16::MAX) {
            errors.push(PerformanceError::TooManyHandles {
                memory,
                level,
                count,
            });
        }
    }
}

/// A structure for each kind of value that is known.
///
/// Read and write values overwrite those for both in Linux, unknown ones too. So as soon as one
/// path tells them apart, all paths do.
fn localities(paths: &BTreeMap<Pair, Path>, errors: &mut Vec<PerformanceError>) -> Vec<Structure> {
    let unreachable: Vec<Pair> = paths
        .iter()
        .filter(|(_, path)| **path == Path::Unreachable)
        .map(|(pair, _)| *pair)
        .collect();
    let mut structures = Vec::new();
    for metric in [Metric::Latency, Metric::Bandwidth] {
        let figures = figures(paths, metric);
        let split = figures
            .iter()
            .any(|(_, figure)| matches!(figure, Figure::ReadWrite { .. }));
        let accesses: &[Access] = match (figures.is_empty(), split) {
            // That there is no path is worth telling even if nothing else is known.
            (true, _) if metric == Metric::Bandwidth || unreachable.is_empty() => &[],
            (_, false) => &[Access::Any],
            (_, true) => &[Access::Read, Access::Write],
        };
        for &access in accesses {
            let values = figures
                .iter()
                .map(|(pair, figure)| (*pair, figure.of(access)));
            let data_type = DataType { metric, access };
            match matrix(data_type, values.collect(), &unreachable) {
                Ok(localities) => structures.push(Structure::Localities(localities)),
                Err(error) => errors.push(error),
            }
        }
    }
    structures
}

/// The known values of one metric.
fn figures(paths: &BTreeMap<Pair, Path>, metric: Metric) -> Vec<(Pair, Figure<u32>)> {
    let figure = |path: &Path| match (*path, metric) {
        (Path::Unreachable, _) => None,
        (Path::Reachable { latency, .. }, Metric::Latency) => {
            latency.map(|figure| figure.map(Latency::picoseconds))
        }
        (Path::Reachable { bandwidth, .. }, Metric::Bandwidth) => {
            bandwidth.map(|figure| figure.map(Bandwidth::megabytes_per_second))
        }
    };
    let paths = paths.iter();
    paths
        .filter_map(|(pair, path)| Some((*pair, figure(path)?)))
        .collect()
}

/// One matrix, with the values as multiples of their greatest common divisor.
fn matrix(
    data_type: DataType,
    values: Vec<(Pair, u32)>,
    unreachable: &[Pair],
) -> Result<Localities, PerformanceError> {
    let metric = data_type.metric;
    let unit = common_unit(metric, &values)?;
    let cells = values.iter().map(|(pair, value)| (*pair, value / unit));
    let unreachable = unreachable
        .iter()
        .map(|pair| (*pair, u32::from(UNREACHABLE)));
    let known: Vec<(Pair, u32)> = cells.chain(unreachable).collect();

    let initiators: BTreeSet<_> = known.iter().map(|((from, _), _)| *from).collect();
    let targets: BTreeSet<_> = known.iter().map(|((_, to), _)| *to).collect();
    let initiators: Vec<_> = initiators.into_iter().collect();
    let targets: Vec<_> = targets.into_iter().collect();
    let mut cells = vec![0; initiators.len() * targets.len()];
    for ((from, to), value) in known {
        if let (Ok(row), Ok(column)) = (initiators.binary_search(&from), targets.binary_search(&to))
        {
            cells[row * targets.len() + column] = value as u16;
        }
    }
    Ok(Localities::new(data_type, unit, initiators, targets, cells))
}

/// The greatest unit of which all values are multiples, if that makes them fit.
fn common_unit(metric: Metric, values: &[(Pair, u32)]) -> Result<u32, PerformanceError> {
    if let Some(((initiator, target), _)) = values.iter().find(|(_, value)| *value == 0) {
        return Err(PerformanceError::Zero {
            metric,
            initiator: *initiator,
            target: *target,
        });
    }
    let largest = values.iter().map(|(_, value)| *value).max().unwrap_or(1);
    let unit = values.iter().fold(0, |unit, (_, value)| gcd(*value, unit));
    let unit = unit.max(1);
    if largest / unit > u32::from(MAX_CELL) {
        return Err(PerformanceError::NoCommonUnit {
            metric,
            largest,
            unit: round_unit(largest),
        });
    }
    Ok(unit)
}

/// The least power of ten in which the value fits a cell.
fn round_unit(largest: u32) -> u32 {
    let least = largest.div_ceil(MAX_CELL.into());
    let mut powers = (0..10).map(|exponent| 10u32.pow(exponent));
    powers.find(|power| *power >= least).unwrap_or(least)
}

/// Greatest common divisor; that with 0 is the other number.
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
