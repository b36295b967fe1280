//! Where the tables go in guest memory, and the pointers between them.

use super::fadt::{self, Fadt};
use super::table::Table;
use super::{rsdp, xsdt};
use crate::plan::{GpaRange, PlannedTable};

/// Alignment of every table, in bytes: a cache line, and what ACPI asks of any of them at most.
pub const TABLE_ALIGNMENT: u64 = 64;

/// Where the RSDP goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsdpAt {
    /// At an address of its own, outside the window.
    Fixed(u64),
    /// First in the window.
    WindowStart,
}

/// Why tables cannot be placed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// A table would not be aligned.
    #[error("the ACPI tables' address {address:#x} is not a multiple of {TABLE_ALIGNMENT}")]
    Unaligned {
        /// The address.
        address: u64,
    },
    /// The window is smaller than [`AcpiTables::size`].
    #[error(
        "the ACPI tables need {needed:#x} bytes; their window at {:#x} has {:#x}",
        window.start, window.size
    )]
    WindowTooSmall {
        /// Bytes needed.
        needed: u64,
        /// The window.
        window: GpaRange,
    },
    /// The window reaches past the end of the address space.
    #[error("the ACPI tables' window of {:#x} bytes at {:#x} has no end", window.size, window.start)]
    NoEnd {
        /// The window.
        window: GpaRange,
    },
}

/// The tables of one machine, finished but for their addresses. `size` does not depend on those.
#[derive(Clone)]
pub struct AcpiTables {
    pub(super) fadt: Fadt,
    pub(super) dsdt: Table,
    /// What the XSDT lists after the FADT.
    pub(super) listed: Vec<Table>,
}

/// Tables at their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTables {
    /// Address of the RSDP.
    pub rsdp: u64,
    /// All tables, the RSDP included.
    pub tables: Vec<PlannedTable>,
}

impl AcpiTables {
    /// Bytes of the window that [`AcpiTables::place`] needs.
    pub fn size(&self, rsdp: RsdpAt) -> u64 {
        let rsdp = match rsdp {
            RsdpAt::Fixed(_) => 0,
            RsdpAt::WindowStart => rsdp::SIZE,
        };
        let listed = self.listed.iter().map(|table| table.bytes().len());
        let dsdt = self.dsdt.bytes().len();
        [rsdp, xsdt::size(1 + self.listed.len()), fadt::SIZE, dsdt]
            .into_iter()
            .chain(listed)
            .map(|size| (size as u64).next_multiple_of(TABLE_ALIGNMENT))
            .sum()
    }

    /// The tables from the start of `window` on: RSDP unless it has its own address, XSDT, FADT,
    /// DSDT and the others.
    ///
    /// # Errors
    ///
    /// An unaligned address, or a window smaller than [`AcpiTables::size`].
    pub fn place(self, window: GpaRange, rsdp: RsdpAt) -> Result<PlacedTables, PlaceError> {
        let needed = self.size(rsdp);
        check(window, rsdp, needed)?;
        let mut next = window.start;
        let mut take = |size: usize| {
            let gpa = next;
            next += (size as u64).next_multiple_of(TABLE_ALIGNMENT);
            gpa
        };
        let rsdp_gpa = match rsdp {
            RsdpAt::Fixed(gpa) => gpa,
            RsdpAt::WindowStart => take(rsdp::SIZE),
        };
        let xsdt_gpa = take(xsdt::size(1 + self.listed.len()));
        let fadt_gpa = take(fadt::SIZE);
        let dsdt_gpa = take(self.dsdt.bytes().len());
        let listed: Vec<PlannedTable> = self
            .listed
            .into_iter()
            .map(|table| planned(take(table.bytes().len()), table))
            .collect();

        let addresses = std::iter::once(fadt_gpa).chain(listed.iter().map(|table| table.gpa));
        let mut tables = vec![
            PlannedTable {
                name: "RSDP".to_owned(),
                gpa: rsdp_gpa,
                bytes: rsdp::encode(xsdt_gpa),
            },
            planned(xsdt_gpa, xsdt::encode(addresses)),
            planned(fadt_gpa, self.fadt.encode(dsdt_gpa)),
            planned(dsdt_gpa, self.dsdt),
        ];
        tables.extend(listed);
        Ok(PlacedTables {
            rsdp: rsdp_gpa,
            tables,
        })
    }
}

fn check(window: GpaRange, rsdp: RsdpAt, needed: u64) -> Result<(), PlaceError> {
    let aligned = |address: u64| {
        if address.is_multiple_of(TABLE_ALIGNMENT) {
            Ok(())
        } else {
            Err(PlaceError::Unaligned { address })
        }
    };
    aligned(window.start)?;
    if let RsdpAt::Fixed(gpa) = rsdp {
        aligned(gpa)?;
    }
    if needed > window.size {
        return Err(PlaceError::WindowTooSmall { needed, window });
    }
    if window.start.checked_add(window.size).is_none() {
        return Err(PlaceError::NoEnd { window });
    }
    Ok(())
}

fn planned(gpa: u64, table: Table) -> PlannedTable {
    PlannedTable {
        name: table.name(),
        gpa,
        bytes: table.into_bytes(),
    }
}
