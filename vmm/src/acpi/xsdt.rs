//! Extended System Description Table (ACPI 6.5, section 5.2.8).

use zerocopy::little_endian::U64;

use super::table::{HEADER_SIZE, Table, TableBuilder};

/// The only revision that ACPI 6.5 knows.
const REVISION: u8 = 1;

/// Bytes of an XSDT that lists `entries` tables.
pub(super) fn size(entries: usize) -> usize {
    HEADER_SIZE + entries * size_of::<U64>()
}

/// The XSDT that lists the tables at `addresses`.
pub(super) fn encode(addresses: impl Iterator<Item = u64>) -> Table {
    let mut table = TableBuilder::new(*b"XSDT", REVISION);
    for address in addresses {
        table.push(&U64::new(address));
    }
    table.finish()
}
