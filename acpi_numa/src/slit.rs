//! System Locality Information Table: relative distances (ACPI 6.5, section 5.2.17).

use alloc::vec::Vec;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::table::{self, ReadError, Signature, Table, TableBuilder, TableIds};
use crate::topology::{Distance, ProximityDomain, Topology};

/// The table's signature.
pub const SIGNATURE: Signature = Signature(*b"SLIT");

/// The only revision there has been.
pub const REVISION: u8 = 1;

/// What is between header and matrix.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Fixed {
    localities: U64,
}

const _: () = assert!(size_of::<Fixed>() == 8);

/// The distances of all pairs of proximity domains up to the highest one.
///
/// Rows and columns are numbered as proximity domains are, holes included. Linux refuses the
/// whole table if anything but 10 is on the diagonal or anything up to 10 is elsewhere; neither
/// can be in a [`Topology`].
pub fn encode(topology: &Topology, ids: &TableIds) -> Table {
    let distances = topology.distances();
    let size = size_of::<Fixed>() + distances.cells().len();
    let mut table = TableBuilder::new(SIGNATURE, REVISION, ids, size);
    table.push(&Fixed {
        localities: (distances.localities() as u64).into(),
    });
    table.push(distances.cells());
    table.finish()
}

/// A table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slit {
    /// The table's revision.
    pub revision: u8,
    /// Who made it.
    pub ids: TableIds,
    localities: u64,
    cells: Vec<u8>,
}

impl Slit {
    /// Rows and columns of the matrix.
    pub fn localities(&self) -> u64 {
        self.localities
    }

    /// The distance between two proximity domains, if the table has one.
    pub fn distance(&self, from: ProximityDomain, to: ProximityDomain) -> Option<Distance> {
        let [from, to] = [from, to].map(|pxm| u64::from(pxm.0));
        if from >= self.localities || to >= self.localities {
            return None;
        }
        let at = usize::try_from(from * self.localities + to).ok()?;
        self.cells.get(at).copied().map(Distance)
    }
}

/// Reads a table.
///
/// # Errors
///
/// If it is no intact SLIT, or its matrix is not square. Distances are not judged.
pub fn read(bytes: &[u8]) -> Result<Slit, ReadError> {
    let table = table::check::<Fixed>(SIGNATURE, bytes)?;
    let localities = table.fixed.localities.get();
    let cells = table.entries.rest();
    if localities.checked_mul(localities) != Some(cells.len() as u64) {
        return Err(ReadError::MatrixSize {
            table: SIGNATURE,
            localities,
            cells: cells.len(),
        });
    }
    Ok(Slit {
        revision: table.revision,
        ids: table.ids,
        localities,
        cells: cells.to_vec(),
    })
}
