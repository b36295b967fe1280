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

/// The HMAT's structures; none if the topology has errors, to which those found here are added.
pub(super) fn structures(
    spec: &TopologySpec,
    topology_errors: &mut Vec<TopologyError>,
) -> Vec<Structure> {
    let performance = &spec.performance;
    let mut errors = Vec::new();
    check_nodes(&spec.nodes, performance, &mut errors);
    check_caches(&performance.caches, &mut errors);
    let matrices = matrices(&performance.paths, &mut errors);
    topology_errors.extend(errors.into_iter().map(TopologyError::from));
    // Only the nodes of a valid topology are few enough to fill matrices.
    if !topology_errors.is_empty() {
        return Vec::new();
    }

    let unreachable = unreachable(&performance.paths);
    let attachments = performance.attachments.iter();
    let domains = attachments
        .map(|(memory, initiator)| Structure::MemoryDomain(MemoryDomain::new(*memory, *initiator)));
    let matrices = matrices
        .into_iter()
        .map(|matrix| Structure::Localities(matrix.fill(&unreachable)));
    let caches = performance.caches.iter();
    let caches = caches.map(|cache| Structure::Cache(CacheInfo::new(cache)));
    domains.chain(matrices).chain(caches).collect()
}

/// Nodes that the HMAT must not speak of, each once. Linux refuses the whole table for memory
/// without a memory entry and for initiators in nodes that it does not know.
fn check_nodes(nodes: &[Node], performance: &Performance, errors: &mut Vec<PerformanceError>) {
    let nodes: Nodes = nodes.iter().map(|node| (node.pxm, node)).collect();
    let Performance {
        attachments,
        paths,
        caches,
    } = performance;
    let initiators: BTreeSet<_> = attachments
        .values()
        .chain(paths.keys().map(|(initiator, _)| initiator))
        .copied()
        .collect();
    let memory: BTreeSet<_> = attachments
        .keys()
        .chain(caches.iter().map(|cache| &cache.memory))
        .copied()
        .collect();
    let targets: BTreeSet<_> = paths.keys().map(|(_, target)| *target).collect();
    let all: BTreeSet<_> = initiators.iter().chain(&memory).chain(&targets).collect();
    for &pxm in all {
        let Some(node) = nodes.get(&pxm) else {
            errors.push(PerformanceError::UnknownNode { pxm });
            continue;
        };
        if initiators.contains(&pxm) && !node.has_initiator() {
            errors.push(PerformanceError::NoInitiator { pxm });
        }
        // A path may end at a generic port: memory behind it is told by the device that brings it.
        let is_memory = memory.contains(&pxm) || targets.contains(&pxm) && node.ports.is_empty();
        if is_memory && !node.has_memory_entry() {
            errors.push(PerformanceError::NoMemory { pxm });
        }
    }
}

fn check_caches(caches: &[MemorySideCache], errors: &mut Vec<PerformanceError>) {
    let mut seen = BTreeSet::new();
    for cache in caches {
        let MemorySideCache { memory, level, .. } = *cache;
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

/// A matrix whose values are known to fit.
struct Matrix {
    data_type: DataType,
    /// What the cells are multiples of.
    unit: u32,
    values: Vec<(Pair, u32)>,
}

/// A matrix for each kind of value that is known.
///
/// Read and write values overwrite those for both in Linux, unknown ones too. So as soon as one
/// path tells them apart, all paths do.
fn matrices(paths: &BTreeMap<Pair, Path>, errors: &mut Vec<PerformanceError>) -> Vec<Matrix> {
    let nothing = Path::Reachable {
        latency: None,
        bandwidth: None,
    };
    for (&(initiator, target), path) in paths {
        if *path == nothing {
            errors.push(PerformanceError::NoFigures { initiator, target });
        }
    }
    let none_unreachable = unreachable(paths).is_empty();
    let mut matrices = Vec::new();
    for metric in [Metric::Latency, Metric::Bandwidth] {
        let figures = figures(paths, metric);
        for ((initiator, target), figure) in &figures {
            if figure.of(Access::Read) == 0 || figure.of(Access::Write) == 0 {
                errors.push(PerformanceError::Zero {
                    metric,
                    initiator: *initiator,
                    target: *target,
                });
            }
        }
        let split = figures
            .iter()
            .any(|(_, figure)| matches!(figure, Figure::ReadWrite { .. }));
        let accesses: &[Access] = match (figures.is_empty(), split) {
            // That there is no path is worth telling even if nothing else is known.
            (true, _) if metric == Metric::Bandwidth || none_unreachable => &[],
            (_, false) => &[Access::Any],
            (_, true) => &[Access::Read, Access::Write],
        };
        for &access in accesses {
            let values = figures.iter();
            let values: Vec<_> = values
                .map(|(pair, figure)| (*pair, figure.of(access)))
                .collect();
            match common_unit(metric, &values) {
                Ok(unit) => matrices.push(Matrix {
                    data_type: DataType { metric, access },
                    unit,
                    values,
                }),
                Err(error) => errors.push(error),
            }
        }
    }
    matrices
}

fn unreachable(paths: &BTreeMap<Pair, Path>) -> Vec<Pair> {
    let paths = paths.iter();
    paths
        .filter(|(_, path)| **path == Path::Unreachable)
        .map(|(pair, _)| *pair)
        .collect()
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

impl Matrix {
    /// Rows for all initiators and columns for all targets, with what is known in the cells.
    fn fill(self, unreachable: &[Pair]) -> Localities {
        let unit = self.unit;
        let values = self.values.iter();
        let values = values.map(|(pair, value)| (*pair, (value / unit) as u16));
        let unreachable = unreachable.iter().map(|pair| (*pair, UNREACHABLE));
        let known: Vec<(Pair, u16)> = values.chain(unreachable).collect();

        let initiators: BTreeSet<_> = known.iter().map(|((from, _), _)| *from).collect();
        let targets: BTreeSet<_> = known.iter().map(|((_, to), _)| *to).collect();
        let columns: BTreeMap<_, _> = targets.iter().zip(0..).collect();
        let rows: BTreeMap<_, _> = initiators.iter().zip(0..).collect();
        let mut cells = vec![0; rows.len() * columns.len()];
        for ((from, to), value) in &known {
            cells[rows[from] * columns.len() + columns[to]] = *value;
        }
        Localities::new(
            self.data_type,
            unit,
            initiators.into_iter().collect(),
            targets.into_iter().collect(),
            cells,
        )
    }
}

/// The greatest unit of which all values are multiples, if that makes them fit.
fn common_unit(metric: Metric, values: &[(Pair, u32)]) -> Result<u32, PerformanceError> {
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
