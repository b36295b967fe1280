//! Root System Description Pointer (ACPI 6.5, section 5.2.5.3).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::table::{OEM_ID, checksum};

/// Revision 2 is the one with an XSDT; ACPI 2.0 to 6.5 have no later one.
const REVISION: u8 = 2;

/// Bytes that the first checksum covers: the structure of ACPI 1.0.
const ACPI_1_SIZE: usize = 20;

/// Bytes of the structure.
pub(super) const SIZE: usize = size_of::<Rsdp>();

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Rsdp {
    signature: [u8; 8],
    checksum: u8,
    oem_id: [u8; 6],
    revision: u8,
    rsdt: U32,
    length: U32,
    xsdt: U64,
    extended_checksum: u8,
    reserved: [u8; 3],
}

const _: () = assert!(SIZE == 36);

/// The RSDP that points to the XSDT at `xsdt`. There is no RSDT.
pub(super) fn encode(xsdt: u64) -> Vec<u8> {
    let mut rsdp = Rsdp {
        signature: *b"RSD PTR ",
        checksum: 0,
        oem_id: OEM_ID,
        revision: REVISION,
        rsdt: U32::ZERO,
        length: U32::new(SIZE as u32),
        xsdt: xsdt.into(),
        extended_checksum: 0,
        reserved: [0; 3],
    };
    rsdp.checksum = checksum(&rsdp.as_bytes()[..ACPI_1_SIZE]);
    rsdp.extended_checksum = checksum(rsdp.as_bytes());
    rsdp.as_bytes().to_vec()
}
