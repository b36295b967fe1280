//! IO Remapping Table (Arm DEN 0049, revision E.d): how the messages of PCI functions reach the ITS.
//!
//! There is one ITS, and no SMMU: each segment is a root complex whose requester ids become the ITS's
//! device ids, [`Bdf::its_device_id`].

use pci::Bdf;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::table::{HEADER_SIZE, Table, TableBuilder};
use crate::plan::PciPlan;

/// Revision of DEN 0049E.d, the first with the root complex node's PASID fields; E.c, which would be
/// 4, was withdrawn.
const REVISION: u8 = 5;
const ITS_GROUP_REVISION: u8 = 1;
const ROOT_COMPLEX_REVISION: u8 = 4;

/// Node types.
const ITS_GROUP: u8 = 0;
const ROOT_COMPLEX: u8 = 2;

/// The ITS in the MADT, by its id.
const ITS_ID: u32 = 0;

/// Requester ids of a bus, less one, as the table counts them.
const LAST_REQUESTER_ID: u32 = 0xff;

/// Memory access properties: DMA is coherent with the caches.
const COHERENT: u32 = 1;
/// Memory access flags: the path to memory is coherent (bit 0), and so are accesses as devices make
/// them (bit 1), so that nothing has to override their attributes.
const COHERENT_PATH_AND_ATTRIBUTES: u8 = 1 << 0 | 1 << 1;

/// Bits of an address that DMA may have: all.
const ADDRESS_BITS: u8 = 64;

/// What is between header and nodes.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Fixed {
    nodes: U32,
    first_node: U32,
    reserved: U32,
}

/// Start of every node.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct NodeHeader {
    kind: u8,
    length: U16,
    revision: u8,
    /// Unique in the table.
    id: U32,
    mappings: U32,
    /// Offset of the mappings in the node; 0 if there are none.
    first_mapping: U32,
}

/// ITS group node.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct ItsGroup {
    header: NodeHeader,
    count: U32,
    its: [U32; 1],
}

/// Root complex node, with its one mapping.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct RootComplex {
    header: NodeHeader,
    cache_coherent: U32,
    allocation_hints: u8,
    reserved_21: U16,
    memory_access: u8,
    /// No ATS, no PRI.
    ats: U32,
    segment: U32,
    address_bits: u8,
    pasid_width: U16,
    reserved_35: u8,
    /// No PASID.
    flags: U32,
    mapping: IdMapping,
}

/// ID mapping.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct IdMapping {
    input_base: U32,
    /// Number of ids, less one.
    last: U32,
    output_base: U32,
    /// Offset of the node that the output is for, from the start of the table.
    output_node: U32,
    flags: U32,
}

const FIRST_NODE: usize = HEADER_SIZE + size_of::<Fixed>();

const _: () = {
    assert!(FIRST_NODE == 48);
    assert!(size_of::<NodeHeader>() == 16);
    assert!(size_of::<ItsGroup>() == 24);
    assert!(size_of::<IdMapping>() == 20);
    assert!(size_of::<RootComplex>() == 60);
    assert!(std::mem::offset_of!(RootComplex, mapping) == 40);
};

/// The ITS, then a root complex for each segment.
pub(super) fn encode(pci: &PciPlan) -> Table {
    let mut table = TableBuilder::new(*b"IORT", REVISION);
    table.push(&Fixed {
        nodes: U32::new(1 + pci.segments.len() as u32),
        first_node: U32::new(FIRST_NODE as u32),
        reserved: U32::ZERO,
    });
    table.push(&ItsGroup {
        header: NodeHeader {
            kind: ITS_GROUP,
            length: U16::new(size_of::<ItsGroup>() as u16),
            revision: ITS_GROUP_REVISION,
            id: U32::ZERO,
            mappings: U32::ZERO,
            first_mapping: U32::ZERO,
        },
        count: U32::new(1),
        its: [ITS_ID.into()],
    });
    for (id, segment) in (1..).zip(&pci.segments) {
        table.push(&root_complex(id, segment.number));
    }
    table.finish()
}

fn root_complex(id: u32, segment: u16) -> RootComplex {
    let first = Bdf { segment, device: 0 };
    RootComplex {
        header: NodeHeader {
            kind: ROOT_COMPLEX,
            length: U16::new(size_of::<RootComplex>() as u16),
            revision: ROOT_COMPLEX_REVISION,
            id: id.into(),
            mappings: U32::new(1),
            first_mapping: U32::new(std::mem::offset_of!(RootComplex, mapping) as u32),
        },
        cache_coherent: COHERENT.into(),
        allocation_hints: 0,
        reserved_21: U16::ZERO,
        memory_access: COHERENT_PATH_AND_ATTRIBUTES,
        ats: U32::ZERO,
        segment: u32::from(segment).into(),
        address_bits: ADDRESS_BITS,
        pasid_width: U16::ZERO,
        reserved_35: 0,
        flags: U32::ZERO,
        mapping: IdMapping {
            input_base: u32::from(first.requester_id()).into(),
            last: LAST_REQUESTER_ID.into(),
            output_base: first.its_device_id().into(),
            output_node: U32::new(FIRST_NODE as u32),
            flags: U32::ZERO,
        },
    }
}
