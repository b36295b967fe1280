//! What all tables have in common: the header, how it is written, and how it is checked.

use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Who made a table, and which one of theirs it is (ACPI 6.5, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableIds {
    /// Who supplies the machine.
    pub oem_id: [u8; 6],
    /// The supplier's name for the table.
    pub oem_table_id: [u8; 8],
    /// The supplier's revision of it.
    pub oem_revision: u32,
    /// The program that made the table.
    pub creator_id: [u8; 4],
    /// That program's revision.
    pub creator_revision: u32,
}

/// A table's four letters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// System description table header (ACPI 6.5, section 5.2.6).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Header {
    signature: [u8; 4],
    length: U32,
    revision: u8,
    checksum: u8,
    oem_id: [u8; 6],
    oem_table_id: [u8; 8],
    oem_revision: U32,
    creator_id: [u8; 4],
    creator_revision: U32,
}

const _: () = assert!(size_of::<Header>() == 36);

const LENGTH_AT: usize = 4;
const CHECKSUM_AT: usize = 9;

/// A finished table, to be placed in the guest's memory as it is: it holds no addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    signature: Signature,
    bytes: Vec<u8>,
}

impl Table {
    /// The table's signature.
    pub fn signature(&self) -> Signature {
        self.signature
    }

    /// The whole table, header included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole table, header included.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A table under construction: length and checksum are still missing.
pub(crate) struct TableBuilder {
    signature: Signature,
    bytes: Vec<u8>,
}

impl TableBuilder {
    /// The header, with room for `body` bytes behind it.
    pub(crate) fn new(signature: Signature, revision: u8, ids: &TableIds, body: usize) -> Self {
        let header = Header {
            signature: signature.0,
            length: U32::ZERO,
            revision,
            checksum: 0,
            oem_id: ids.oem_id,
            oem_table_id: ids.oem_table_id,
            oem_revision: ids.oem_revision.into(),
            creator_id: ids.creator_id,
            creator_revision: ids.creator_revision.into(),
        };
        let mut bytes = Vec::with_capacity(size_of::<Header>() + body);
        bytes.extend_from_slice(header.as_bytes());
        Self { signature, bytes }
    }

    pub(crate) fn push<T: IntoBytes + Immutable + ?Sized>(&mut self, value: &T) {
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// Writes length and checksum. Done once, at the end, it keeps encoding linear.
    pub(crate) fn finish(mut self) -> Table {
        // A topology's limits keep every table far below 4 GiB.
        let length = self.bytes.len() as u32;
        self.bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_le_bytes());
        self.bytes[CHECKSUM_AT] = sum(&self.bytes).wrapping_neg();
        Table {
            signature: self.signature,
            bytes: self.bytes,
        }
    }
}

/// All bytes added up, modulo 256: 0 for a table whose checksum is right.
fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Why bytes are not the table that they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// There is less than the table's fixed part.
    #[error("{found} bytes are too short for table {table}: it has at least {least}")]
    TooShort {
        /// The table that was to be read.
        table: Signature,
        /// Bytes that are there.
        found: usize,
        /// Bytes that there should be at least.
        least: usize,
    },
    /// It is another table.
    #[error("this is table {found}, not {table}")]
    Signature {
        /// The table that was to be read.
        table: Signature,
        /// The table that is there.
        found: Signature,
    },
    /// The table says that it is longer or shorter than what is there.
    #[error("table {table} says that it has {declared} bytes, but {found} are there")]
    Length {
        /// The table.
        table: Signature,
        /// The length in its header.
        declared: u32,
        /// Bytes that are there.
        found: usize,
    },
    /// The bytes do not add up to 0.
    #[error("table {table} is damaged: its bytes add up to {sum:#04x} instead of 0")]
    Checksum {
        /// The table.
        table: Signature,
        /// What they add up to, modulo 256.
        sum: u8,
    },
    /// The table's fields have other meanings than the reader thinks.
    #[error("table {table} has revision {found}: {oldest} is the oldest that can be read")]
    Revision {
        /// The table.
        table: Signature,
        /// Its revision.
        found: u8,
        /// The oldest that can be read.
        oldest: u8,
    },
    /// An entry is shorter than its kind demands, or goes on behind the table's end.
    #[error(
        "the entry at {offset:#x} of table {table} says that it has {length} bytes: it needs \
         {least}, and {left} are left"
    )]
    EntryLength {
        /// The table.
        table: Signature,
        /// Bytes from the table's start to the entry.
        offset: usize,
        /// The length in the entry, 0 if not even that is there.
        length: usize,
        /// The least that such an entry has.
        least: usize,
        /// Bytes from the entry to the table's end.
        left: usize,
    },
    /// The matrix is not of the size that its dimensions say.
    #[error("table {table} has {cells} distances for {localities} localities")]
    MatrixSize {
        /// The table.
        table: Signature,
        /// Rows and columns that there should be.
        localities: u64,
        /// Distances that there are.
        cells: usize,
    },
}

/// A table whose header has been found right.
pub(crate) struct Checked<'a, Fixed> {
    pub(crate) revision: u8,
    pub(crate) ids: TableIds,
    /// What the table has behind its header before the entries begin.
    pub(crate) fixed: Fixed,
    pub(crate) entries: Entries<'a>,
}

/// Checks signature, length and checksum.
pub(crate) fn check<Fixed>(table: Signature, bytes: &[u8]) -> Result<Checked<'_, Fixed>, ReadError>
where
    Fixed: FromBytes + KnownLayout + Immutable,
{
    let found = bytes.len();
    let least = size_of::<Header>() + size_of::<Fixed>();
    let too_short = ReadError::TooShort {
        table,
        found,
        least,
    };
    let Ok((header, body)) = Header::read_from_prefix(bytes) else {
        return Err(too_short);
    };
    if header.signature != table.0 {
        let found = Signature(header.signature);
        return Err(ReadError::Signature { table, found });
    }
    let declared = header.length.get();
    if u64::from(declared) != found as u64 {
        return Err(ReadError::Length {
            table,
            declared,
            found,
        });
    }
    let sum = sum(bytes);
    if sum != 0 {
        return Err(ReadError::Checksum { table, sum });
    }
    let Ok((fixed, rest)) = Fixed::read_from_prefix(body) else {
        return Err(too_short);
    };
    Ok(Checked {
        revision: header.revision,
        ids: TableIds {
            oem_id: header.oem_id,
            oem_table_id: header.oem_table_id,
            oem_revision: header.oem_revision.get(),
            creator_id: header.creator_id,
            creator_revision: header.creator_revision.get(),
        },
        fixed,
        entries: Entries {
            table,
            offset: least,
            rest,
        },
    })
}

/// The entries of a table, each of which tells its own length.
pub(crate) struct Entries<'a> {
    table: Signature,
    offset: usize,
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// All bytes that are left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next entry, whose length `length` finds behind a start of type `Start`.
    pub(crate) fn next<Start>(
        &mut self,
        length: impl Fn(&Start) -> usize,
    ) -> Result<Option<Raw<'a>>, ReadError>
    where
        Start: FromBytes + KnownLayout + Immutable,
    {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let start = Start::read_from_prefix(self.rest).ok();
        let length = start.map_or(0, |(start, _)| length(&start));
        let raw = Raw {
            table: self.table,
            offset: self.offset,
            bytes: self.rest.get(..length).unwrap_or_default(),
        };
        if length < size_of::<Start>() || length > self.rest.len() {
            return Err(ReadError::EntryLength {
                table: self.table,
                offset: self.offset,
                length,
                least: size_of::<Start>(),
                left: self.rest.len(),
            });
        }
        self.rest = &self.rest[length..];
        self.offset += length;
        Ok(Some(raw))
    }
}

/// The bytes of an entry.
pub(crate) struct Raw<'a> {
    table: Signature,
    offset: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Raw<'a> {
    /// The structure at the entry's start and what is behind it. Entries may be longer than
    /// expected, because later specifications may append fields.
    pub(crate) fn read<T: FromBytes + KnownLayout + Immutable>(
        &self,
    ) -> Result<(T, &'a [u8]), ReadError> {
        T::read_from_prefix(self.bytes).map_err(|_| self.too_short(size_of::<T>()))
    }

    /// The error of an entry that should have had `least` bytes.
    pub(crate) fn too_short(&self, least: usize) -> ReadError {
        ReadError::EntryLength {
            table: self.table,
            offset: self.offset,
            length: self.bytes.len(),
            least,
            left: self.bytes.len(),
        }
    }
}
