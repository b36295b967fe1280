//! Heterogeneous Memory Attribute Table: latencies, bandwidths and memory-side caches
//! (ACPI 6.5, section 5.2.28).

use alloc::vec::Vec;
use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::table::{self, Raw, ReadError, Signature, Table, TableBuilder, TableIds};
use crate::topology::{MemorySideCache, ProximityDomain, Topology};

/// The table's signature.
pub const SIGNATURE: Signature = Signature(*b"HMAT");

/// The revision since ACPI 6.3. In revision 1 latencies count nanoseconds by another scale, and
/// a type 0 structure describes an address range.
pub const REVISION: u8 = 2;

/// A path that does not exist.
pub const UNREACHABLE: u16 = 0xffff;
/// The largest number that a cell can have. 0 means that nothing is known.
pub const MAX_CELL: u16 = 0xfffe;

const MEMORY_DOMAIN: u16 = 0;
const LOCALITIES: u16 = 1;
const CACHE: u16 = 2;

/// Flag of a type 0 structure: the initiator's proximity domain is valid.
const INITIATOR_VALID: u16 = 1 << 0;

/// What is between header and structures.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Fixed {
    reserved: U32,
}

/// How every structure starts.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Start {
    structure_type: U16,
    reserved: U16,
    length: U32,
}

impl Start {
    fn new(structure_type: u16, length: usize) -> Self {
        Self {
            structure_type: structure_type.into(),
            reserved: U16::ZERO,
            length: (length as u32).into(),
        }
    }
}

/// Memory Proximity Domain Attributes (section 5.2.28.3).
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RawMemoryDomain {
    start: Start,
    flags: U16,
    reserved1: U16,
    initiator: U32,
    memory: U32,
    reserved2: U32,
    reserved3: [U64; 2],
}

/// Fixed part of System Locality Latency and Bandwidth Information (section 5.2.28.4). Initiators
/// and targets, 32 bits each, and the matrix, 16 bits a cell, follow.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RawLocalities {
    start: Start,
    flags: u8,
    data_type: u8,
    min_transfer_size: u8,
    reserved1: u8,
    initiators: U32,
    targets: U32,
    reserved2: U32,
    base_unit: U64,
}

/// Fixed part of Memory Side Cache Information (section 5.2.28.5). SMBIOS handles, 16 bits each,
/// follow.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct RawCache {
    start: Start,
    memory: U32,
    reserved1: U32,
    size: U64,
    attributes: U32,
    reserved2: U16,
    smbios_handles: U16,
}

const _: () = {
    assert!(size_of::<Fixed>() == 4);
    assert!(size_of::<Start>() == 8);
    assert!(size_of::<RawMemoryDomain>() == 40);
    assert!(size_of::<RawLocalities>() == 32);
    assert!(size_of::<RawCache>() == 32);
};

/// What a matrix is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Latency, in picoseconds.
    Latency,
    /// Bandwidth, in megabytes per second.
    Bandwidth,
}

impl Metric {
    /// The unit's name.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Latency => "ps",
            Self::Bandwidth => "MB/s",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
        })
    }
}

/// Which accesses a matrix is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing alike.
    Any,
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// Metric and accesses of a matrix (section 5.2.28.4, field Data Type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataType {
    /// What is measured.
    pub metric: Metric,
    /// Of which accesses.
    pub access: Access,
}

impl DataType {
    /// All of them, each at the index that is its number in the table.
    const ALL: [Self; 6] = {
        let (latency, bandwidth) = (Metric::Latency, Metric::Bandwidth);
        [
            Self::new(latency, Access::Any),
            Self::new(latency, Access::Read),
            Self::new(latency, Access::Write),
            Self::new(bandwidth, Access::Any),
            Self::new(bandwidth, Access::Read),
            Self::new(bandwidth, Access::Write),
        ]
    };

    const fn new(metric: Metric, access: Access) -> Self {
        Self { metric, access }
    }

    fn number(self) -> u8 {
        let metric = match self.metric {
            Metric::Latency => 0,
            Metric::Bandwidth => 3,
        };
        metric
            + match self.access {
                Access::Any => 0,
                Access::Read => 1,
                Access::Write => 2,
            }
    }
}

/// Where a node's memory is attached (type 0).
///
/// Linux refuses the whole table if the memory's node has no memory entry in the SRAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDomain {
    memory: ProximityDomain,
    initiator: Option<ProximityDomain>,
}

impl MemoryDomain {
    pub(crate) fn new(memory: ProximityDomain, initiator: ProximityDomain) -> Self {
        Self {
            memory,
            initiator: Some(initiator),
        }
    }

    /// The node with the memory.
    pub fn memory(&self) -> ProximityDomain {
        self.memory
    }

    /// The node with the initiators to which it is attached.
    pub fn initiator(&self) -> Option<ProximityDomain> {
        self.initiator
    }

    fn read(raw: &Raw) -> Result<Self, ReadError> {
        let (domain, _) = raw.read::<RawMemoryDomain>()?;
        let valid = domain.flags.get() & INITIATOR_VALID != 0;
        Ok(Self {
            memory: ProximityDomain(domain.memory.get()),
            initiator: valid.then(|| ProximityDomain(domain.initiator.get())),
        })
    }

    fn write(&self, table: &mut TableBuilder) {
        let flags = if self.initiator.is_some() {
            INITIATOR_VALID
        } else {
            0
        };
        table.push(&RawMemoryDomain {
            start: Start::new(MEMORY_DOMAIN, size_of::<RawMemoryDomain>()),
            flags: flags.into(),
            reserved1: U16::ZERO,
            initiator: self.initiator.unwrap_or_default().0.into(),
            memory: self.memory.0.into(),
            reserved2: U32::ZERO,
            reserved3: [U64::ZERO; 2],
        });
    }
}

/// A value of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing is known.
    Unknown,
    /// There is no path.
    Unreachable,
    /// Picoseconds or megabytes per second; `u64::MAX` stands for all that is more.
    Known(u64),
}

/// Latency or bandwidth between initiators and memory (type 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Localities {
    flags: u8,
    data_type: u8,
    min_transfer_size: u8,
    base_unit: u64,
    initiators: Vec<ProximityDomain>,
    targets: Vec<ProximityDomain>,
    /// Row by row; a row holds the values of one initiator.
    cells: Vec<u16>,
}

impl Localities {
    /// A matrix of `initiators` rows and `targets` columns about the memory itself, whatever the
    /// size of an access.
    pub(crate) fn new(
        data_type: DataType,
        base_unit: u32,
        initiators: Vec<ProximityDomain>,
        targets: Vec<ProximityDomain>,
        cells: Vec<u16>,
    ) -> Self {
        Self {
            flags: 0,
            data_type: data_type.number(),
            min_transfer_size: 0,
            base_unit: base_unit.into(),
            initiators,
            targets,
            cells,
        }
    }

    /// Flags: bits 3 to 0 are 0 for memory and 1 to 3 for the levels of its cache, bit 4 says
    /// that the values need the least transfer size, bit 5 that they need non-sequential accesses.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// What the values are, if that is known.
    pub fn data_type(&self) -> Option<DataType> {
        DataType::ALL.get(usize::from(self.data_type)).copied()
    }

    /// The least size of an access for which the values hold, in bytes.
    pub fn min_transfer_size(&self) -> u8 {
        self.min_transfer_size
    }

    /// Picoseconds or megabytes per second of which the cells are multiples.
    pub fn base_unit(&self) -> u64 {
        self.base_unit
    }

    /// The nodes of the rows.
    pub fn initiators(&self) -> &[ProximityDomain] {
        &self.initiators
    }

    /// The nodes of the columns.
    pub fn targets(&self) -> &[ProximityDomain] {
        &self.targets
    }

    /// The value from an initiator to a target, `None` if it is not in the matrix.
    pub fn value(&self, initiator: ProximityDomain, target: ProximityDomain) -> Option<Value> {
        let row = self.initiators.iter().position(|pxm| *pxm == initiator)?;
        let column = self.targets.iter().position(|pxm| *pxm == target)?;
        let cell = self.cells.get(row * self.targets.len() + column)?;
        Some(match *cell {
            0 => Value::Unknown,
            UNREACHABLE => Value::Unreachable,
            cell => Value::Known(self.base_unit.saturating_mul(cell.into())),
        })
    }

    fn read(raw: &Raw) -> Result<Self, ReadError> {
        let (fixed, rest) = raw.read::<RawLocalities>()?;
        let [initiators, targets] =
            [fixed.initiators, fixed.targets].map(|count| u64::from(count.get()));
        let cells = initiators.checked_mul(targets);
        let size = cells.and_then(|cells| {
            let domains = (initiators + targets) * 4;
            cells.checked_mul(2)?.checked_add(domains)
        });
        let size = size.and_then(|size| usize::try_from(size).ok());
        let Some(rest) = size.and_then(|size| rest.get(..size)) else {
            let least = size.unwrap_or(usize::MAX);
            return Err(raw.too_short(least.saturating_add(size_of::<RawLocalities>())));
        };
        let (initiators, rest) = rest.split_at(initiators as usize * 4);
        let (targets, cells) = rest.split_at(targets as usize * 4);
        let domains = |bytes: &[u8]| {
            let domains = bytes.chunks_exact(4);
            domains
                .map(|pxm| ProximityDomain(u32::from_le_bytes([pxm[0], pxm[1], pxm[2], pxm[3]])))
                .collect()
        };
        Ok(Self {
            flags: fixed.flags,
            data_type: fixed.data_type,
            min_transfer_size: fixed.min_transfer_size,
            base_unit: fixed.base_unit.get(),
            initiators: domains(initiators),
            targets: domains(targets),
            cells: words(cells),
        })
    }

    fn write(&self, table: &mut TableBuilder) {
        let size = size_of::<RawLocalities>()
            + (self.initiators.len() + self.targets.len()) * 4
            + self.cells.len() * 2;
        table.push(&RawLocalities {
            start: Start::new(LOCALITIES, size),
            flags: self.flags,
            data_type: self.data_type,
            min_transfer_size: self.min_transfer_size,
            reserved1: 0,
            initiators: (self.initiators.len() as u32).into(),
            targets: (self.targets.len() as u32).into(),
            reserved2: U32::ZERO,
            base_unit: self.base_unit.into(),
        });
        for pxm in self.initiators.iter().chain(&self.targets) {
            table.push(&U32::new(pxm.0));
        }
        for cell in &self.cells {
            table.push(&U16::new(*cell));
        }
    }
}

/// A level of cache in front of a node's memory (type 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    memory: ProximityDomain,
    size: u64,
    attributes: u32,
    smbios_handles: Vec<u16>,
}

impl CacheInfo {
    pub(crate) fn new(cache: &MemorySideCache) -> Self {
        let attributes = u32::from(cache.total_levels)
            | u32::from(cache.level) << 4
            | (cache.associativity as u32) << 8
            | (cache.write_policy as u32) << 12
            | u32::from(cache.line_size) << 16;
        Self {
            memory: cache.memory,
            size: cache.size,
            attributes,
            smbios_handles: cache.smbios_handles.clone(),
        }
    }

    /// The node with the memory.
    pub fn memory(&self) -> ProximityDomain {
        self.memory
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bits 3 to 0: levels that there are. 7 to 4: the level that is described. 11 to 8:
    /// associativity. 15 to 12: write policy. 31 to 16: bytes of a cache line.
    pub fn attributes(&self) -> u32 {
        self.attributes
    }

    /// SMBIOS handles of the memory's components.
    pub fn smbios_handles(&self) -> &[u16] {
        &self.smbios_handles
    }

    fn read(raw: &Raw) -> Result<Self, ReadError> {
        let (fixed, rest) = raw.read::<RawCache>()?;
        let size = usize::from(fixed.smbios_handles.get()) * 2;
        let handles = rest
            .get(..size)
            .ok_or_else(|| raw.too_short(size_of::<RawCache>() + size))?;
        Ok(Self {
            memory: ProximityDomain(fixed.memory.get()),
            size: fixed.size.get(),
            attributes: fixed.attributes.get(),
            smbios_handles: words(handles),
        })
    }

    fn write(&self, table: &mut TableBuilder) {
        let size = size_of::<RawCache>() + self.smbios_handles.len() * 2;
        table.push(&RawCache {
            start: Start::new(CACHE, size),
            memory: self.memory.0.into(),
            reserved1: U32::ZERO,
            size: self.size.into(),
            attributes: self.attributes.into(),
            reserved2: U16::ZERO,
            smbios_handles: (self.smbios_handles.len() as u16).into(),
        });
        for handle in &self.smbios_handles {
            table.push(&U16::new(*handle));
        }
    }
}

fn words(bytes: &[u8]) -> Vec<u16> {
    let words = bytes.chunks_exact(2);
    words
        .map(|word| u16::from_le_bytes([word[0], word[1]]))
        .collect()
}

/// A structure of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Structure {
    /// Where a node's memory is attached.
    MemoryDomain(MemoryDomain),
    /// Latency or bandwidth.
    Localities(Localities),
    /// A level of cache.
    Cache(CacheInfo),
    /// A structure of another type.
    Unknown {
        /// The type.
        structure_type: u16,
        /// The whole structure, type and length included.
        bytes: Vec<u8>,
    },
}

impl Structure {
    fn read(start: &Start, raw: &Raw) -> Result<Self, ReadError> {
        Ok(match start.structure_type.get() {
            MEMORY_DOMAIN => Self::MemoryDomain(MemoryDomain::read(raw)?),
            LOCALITIES => Self::Localities(Localities::read(raw)?),
            CACHE => Self::Cache(CacheInfo::read(raw)?),
            structure_type => Self::Unknown {
                structure_type,
                bytes: raw.bytes.to_vec(),
            },
        })
    }

    fn write(&self, table: &mut TableBuilder) {
        match self {
            Self::MemoryDomain(domain) => domain.write(table),
            Self::Localities(localities) => localities.write(table),
            Self::Cache(cache) => cache.write(table),
            Self::Unknown { bytes, .. } => table.push(bytes.as_slice()),
        }
    }
}

/// Writes the table, if the topology has anything for it: where memory is attached first, then
/// latencies, bandwidths and caches.
pub fn encode(topology: &Topology, ids: &TableIds) -> Option<Table> {
    let structures = topology.structures();
    if structures.is_empty() {
        return None;
    }
    let mut table = TableBuilder::new(SIGNATURE, REVISION, ids, size_of::<Fixed>());
    table.push(&Fixed {
        reserved: U32::ZERO,
    });
    for structure in structures {
        structure.write(&mut table);
    }
    Some(table.finish())
}

/// A table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hmat {
    /// The table's revision.
    pub revision: u8,
    /// Who made it.
    pub ids: TableIds,
    /// The structures, in the table's order.
    pub structures: Vec<Structure>,
}

/// Reads a table.
///
/// # Errors
///
/// If it is no intact HMAT of revision 2 or later, or a structure is shorter than its type and
/// contents demand. What the structures say is not judged, and those of unknown types are kept.
pub fn read(bytes: &[u8]) -> Result<Hmat, ReadError> {
    let mut table = table::check::<Fixed>(SIGNATURE, bytes)?;
    if table.revision < REVISION {
        return Err(ReadError::Revision {
            table: SIGNATURE,
            found: table.revision,
            oldest: REVISION,
        });
    }
    let mut structures = Vec::new();
    let length = |start: &Start| usize::try_from(start.length.get()).unwrap_or(usize::MAX);
    while let Some(raw) = table.entries.next(length)? {
        structures.push(Structure::read(&raw.read()?.0, &raw)?);
    }
    Ok(Hmat {
        revision: table.revision,
        ids: table.ids,
        structures,
    })
}
