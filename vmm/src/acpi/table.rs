//! The header that every table but the RSDP starts with, and the bytes behind it.

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

/// OEM id of every table. It names no product: the guest sees a virtual machine, not a vendor.
pub(super) const OEM_ID: [u8; 6] = *b"VIRTMM";
/// OEM table id of every table.
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"VMACHINE";
/// OEM revision of every table; goes up when what a table says changes its meaning.
const OEM_REVISION: u32 = 1;
/// Id of the tool that made the tables.
const CREATOR_ID: [u8; 4] = *b"VMMT";
/// Revision of that tool.
const CREATOR_REVISION: u32 = 1;

/// The same for tables that are made elsewhere.
pub(crate) const IDS: acpi_numa::TableIds = acpi_numa::TableIds {
    oem_id: OEM_ID,
    oem_table_id: OEM_TABLE_ID,
    oem_revision: OEM_REVISION,
    creator_id: CREATOR_ID,
    creator_revision: CREATOR_REVISION,
};

/// Bytes of a table's header.
pub(super) const HEADER_SIZE: usize = size_of::<Header>();

/// System description table header (ACPI 6.5, section 5.2.6).
#[repr(C)]
#[derive(IntoBytes, Immutable)]
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

const _: () = assert!(HEADER_SIZE == 36);

const LENGTH_AT: usize = 4;
const CHECKSUM_AT: usize = 9;

/// A table under construction: header and body, length and checksum still missing.
pub(super) struct TableBuilder {
    signature: [u8; 4],
    bytes: Vec<u8>,
}

impl TableBuilder {
    /// An empty table of this signature and revision.
    pub(super) fn new(signature: [u8; 4], revision: u8) -> Self {
        let header = Header {
            signature,
            length: U32::ZERO,
            revision,
            checksum: 0,
            oem_id: OEM_ID,
            oem_table_id: OEM_TABLE_ID,
            oem_revision: OEM_REVISION.into(),
            creator_id: CREATOR_ID,
            creator_revision: CREATOR_REVISION.into(),
        };
        Self {
            signature,
            bytes: header.as_bytes().to_vec(),
        }
    }

    /// Bytes so far, the header included: the offset at which the next entry goes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a fixed structure.
    pub(super) fn push<T: IntoBytes + Immutable>(&mut self, entry: &T) {
        self.bytes.extend_from_slice(entry.as_bytes());
    }

    /// Appends bytes that are encoded already.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The finished table. Length and checksum are written here, once, which keeps encoding linear.
    pub(super) fn finish(mut self) -> Table {
        let length = self.bytes.len() as u32;
        self.bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_le_bytes());
        self.bytes[CHECKSUM_AT] = checksum(&self.bytes);
        Table {
            signature: self.signature,
            bytes: self.bytes,
        }
    }
}

/// A finished table that holds no address of another table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    signature: [u8; 4],
    bytes: Vec<u8>,
}

impl Table {
    /// The signature as text.
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.signature).into_owned()
    }

    /// The whole table, header included.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The whole table, header included.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl From<acpi_numa::Table> for Table {
    fn from(table: acpi_numa::Table) -> Self {
        Self {
            signature: table.signature().0,
            bytes: table.into_bytes(),
        }
    }
}

/// The byte that makes `bytes`, whose checksum byte is still 0, add up to 0 modulo 256.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// Generic address structure (ACPI 6.5, section 5.2.3.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
pub(super) struct GenericAddress {
    space: u8,
    bit_width: u8,
    bit_offset: u8,
    access_size: u8,
    address: zerocopy::little_endian::U64,
}

const _: () = assert!(size_of::<GenericAddress>() == 12);

impl GenericAddress {
    /// Nothing there.
    pub(super) const NONE: Self = Self {
        space: 0,
        bit_width: 0,
        bit_offset: 0,
        access_size: 0,
        address: zerocopy::little_endian::U64::ZERO,
    };

    /// A byte in system I/O space (space 1, byte access 1).
    pub(super) fn port_u8(port: u16) -> Self {
        Self {
            space: 1,
            bit_width: 8,
            bit_offset: 0,
            access_size: 1,
            address: u64::from(port).into(),
        }
    }

    /// A 32-bit register in system memory (space 0, dword access 3).
    pub(super) fn mmio_u32(address: u64) -> Self {
        Self {
            space: 0,
            bit_width: 32,
            bit_offset: 0,
            access_size: 3,
            address: address.into(),
        }
    }
}
