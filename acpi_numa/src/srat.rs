//! System Resource Affinity Table: which processors, memory and devices are in which node
//! (ACPI 6.5, section 5.2.16).

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::table::{self, Raw, ReadError, Signature, Table, TableBuilder, TableIds};
use crate::topology::{DeviceHandle, MemoryRange, Node, Processor, ProximityDomain, Topology};

/// The table's signature.
pub const SIGNATURE: Signature = Signature(*b"SRAT");

/// The revision since ACPI 4.0. In revision 1 proximity domains have 8 bits, and guests cut off
/// the others.
pub const REVISION: u8 = 3;

const LOCAL_APIC: u8 = 0;
const MEMORY: u8 = 1;
const X2APIC: u8 = 2;
const GICC: u8 = 3;
const GENERIC_INITIATOR: u8 = 5;
const GENERIC_PORT: u8 = 6;

/// Bit 0 of the flags of every entry.
const ENABLED: u32 = 1 << 0;
/// Bits 1 and 2 of a memory entry's flags.
const HOTPLUGGABLE: u32 = 1 << 1;
const NON_VOLATILE: u32 = 1 << 2;

/// Device handle types of generic initiators and ports.
const ACPI_HANDLE: u8 = 0;
const PCI_HANDLE: u8 = 1;

/// What is between header and entries.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct Fixed {
    /// 1 for the sake of software that knows revision 1 only.
    reserved1: U32,
    reserved2: U64,
}

/// How every entry starts.
#[repr(C)]
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
struct Start {
    entry_type: u8,
    length: u8,
}

/// Processor Local APIC/SAPIC Affinity (section 5.2.16.1).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct LocalApicAffinity {
    entry_type: u8,
    length: u8,
    pxm_low: u8,
    apic_id: u8,
    flags: U32,
    sapic_eid: u8,
    pxm_high: [u8; 3],
    clock_domain: U32,
}

/// Memory Affinity (section 5.2.16.2).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct MemoryAffinity {
    entry_type: u8,
    length: u8,
    pxm: U32,
    reserved1: U16,
    base: U64,
    range_length: U64,
    reserved2: U32,
    flags: U32,
    reserved3: U64,
}

/// Processor Local x2APIC Affinity (section 5.2.16.3).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct X2apicAffinity {
    entry_type: u8,
    length: u8,
    reserved1: U16,
    pxm: U32,
    id: U32,
    flags: U32,
    clock_domain: U32,
    reserved2: U32,
}

/// GICC Affinity (section 5.2.16.4).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct GiccAffinity {
    entry_type: u8,
    length: u8,
    pxm: U32,
    uid: U32,
    flags: U32,
    clock_domain: U32,
}

/// Generic Initiator Affinity (section 5.2.16.6) or Generic Port Affinity (section 5.2.16.7).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct GenericAffinity {
    entry_type: u8,
    length: u8,
    reserved1: u8,
    handle_type: u8,
    pxm: U32,
    handle: [u8; 16],
    flags: U32,
    reserved2: U32,
}

/// Device Handle - ACPI (section 5.2.16.6).
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct AcpiHandle {
    hid: [u8; 8],
    uid: U32,
    reserved: U32,
}

/// Device Handle - PCI (section 5.2.16.6).
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
struct PciHandle {
    segment: U16,
    bus: u8,
    /// Device in bits 7 to 3, function in bits 2 to 0.
    devfn: u8,
    reserved: [u8; 12],
}

const _: () = {
    assert!(size_of::<Fixed>() == 12);
    assert!(size_of::<LocalApicAffinity>() == 16);
    assert!(size_of::<MemoryAffinity>() == 40);
    assert!(size_of::<X2apicAffinity>() == 24);
    assert!(size_of::<GiccAffinity>() == 18);
    assert!(size_of::<GenericAffinity>() == 32);
    assert!(size_of::<AcpiHandle>() == 16);
    assert!(size_of::<PciHandle>() == 16);
};

impl LocalApicAffinity {
    /// The processor's node.
    pub fn pxm(&self) -> ProximityDomain {
        let [b1, b2, b3] = self.pxm_high;
        ProximityDomain(u32::from_le_bytes([self.pxm_low, b1, b2, b3]))
    }

    /// The processor.
    pub fn processor(&self) -> Processor {
        Processor::LocalApic {
            apic_id: self.apic_id,
            sapic_eid: self.sapic_eid,
            clock_domain: self.clock_domain.get(),
        }
    }
}

impl MemoryAffinity {
    /// An enabled entry for this much memory, none included.
    fn new(pxm: ProximityDomain, range: MemoryRange) -> Self {
        let mut flags = ENABLED;
        if range.hotpluggable {
            flags |= HOTPLUGGABLE;
        }
        if range.non_volatile {
            flags |= NON_VOLATILE;
        }
        Self {
            entry_type: MEMORY,
            length: size_of::<Self>() as u8,
            pxm: pxm.0.into(),
            reserved1: U16::ZERO,
            base: range.base.into(),
            range_length: range.length.into(),
            reserved2: U32::ZERO,
            flags: flags.into(),
            reserved3: U64::ZERO,
        }
    }

    /// The memory's node.
    pub fn pxm(&self) -> ProximityDomain {
        ProximityDomain(self.pxm.get())
    }

    /// The memory. It may have no length, and need not be there at boot if it is hotpluggable.
    pub fn range(&self) -> MemoryRange {
        let flags = self.flags.get();
        MemoryRange {
            base: self.base.get(),
            length: self.range_length.get(),
            hotpluggable: flags & HOTPLUGGABLE != 0,
            non_volatile: flags & NON_VOLATILE != 0,
        }
    }
}

impl X2apicAffinity {
    /// The processor's node.
    pub fn pxm(&self) -> ProximityDomain {
        ProximityDomain(self.pxm.get())
    }

    /// The processor.
    pub fn processor(&self) -> Processor {
        Processor::X2apic {
            id: self.id.get(),
            clock_domain: self.clock_domain.get(),
        }
    }
}

impl GiccAffinity {
    /// The processor's node.
    pub fn pxm(&self) -> ProximityDomain {
        ProximityDomain(self.pxm.get())
    }

    /// The processor.
    pub fn processor(&self) -> Processor {
        Processor::Gicc {
            uid: self.uid.get(),
            clock_domain: self.clock_domain.get(),
        }
    }
}

impl GenericAffinity {
    fn new(entry_type: u8, pxm: ProximityDomain, device: DeviceHandle) -> Self {
        let (handle_type, handle) = match device {
            DeviceHandle::Acpi { hid, uid } => {
                let handle = AcpiHandle {
                    hid,
                    uid: uid.into(),
                    reserved: U32::ZERO,
                };
                (ACPI_HANDLE, zerocopy::transmute!(handle))
            }
            DeviceHandle::Pci {
                segment,
                bus,
                device,
                function,
            } => {
                let handle = PciHandle {
                    segment: segment.into(),
                    bus,
                    devfn: device << 3 | function,
                    reserved: [0; 12],
                };
                (PCI_HANDLE, zerocopy::transmute!(handle))
            }
        };
        Self {
            entry_type,
            length: size_of::<Self>() as u8,
            reserved1: 0,
            handle_type,
            pxm: pxm.0.into(),
            handle,
            flags: ENABLED.into(),
            reserved2: U32::ZERO,
        }
    }

    /// The device's node.
    pub fn pxm(&self) -> ProximityDomain {
        ProximityDomain(self.pxm.get())
    }

    /// The device, if the handle is of a type that is known.
    pub fn device(&self) -> Option<DeviceHandle> {
        match self.handle_type {
            ACPI_HANDLE => {
                let AcpiHandle { hid, uid, .. } = zerocopy::transmute!(self.handle);
                let uid = uid.get();
                Some(DeviceHandle::Acpi { hid, uid })
            }
            PCI_HANDLE => {
                let handle: PciHandle = zerocopy::transmute!(self.handle);
                Some(DeviceHandle::Pci {
                    segment: handle.segment.get(),
                    bus: handle.bus,
                    device: handle.devfn >> 3,
                    function: handle.devfn & 7,
                })
            }
            _ => None,
        }
    }
}

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An x86 processor with an 8-bit APIC id.
    LocalApic(LocalApicAffinity),
    /// Memory.
    Memory(MemoryAffinity),
    /// An x86 processor.
    X2apic(X2apicAffinity),
    /// An Arm processor.
    Gicc(GiccAffinity),
    /// A device that accesses memory as processors do.
    GenericInitiator(GenericAffinity),
    /// A bridge behind which initiators and memory may appear.
    GenericPort(GenericAffinity),
    /// An entry of another type.
    Unknown {
        /// The type.
        entry_type: u8,
        /// The whole entry, type and length included.
        bytes: Vec<u8>,
    },
}

impl Entry {
    fn processor(pxm: ProximityDomain, processor: Processor) -> Self {
        let [pxm_low, pxm_high @ ..] = pxm.0.to_le_bytes();
        let pxm = pxm.0.into();
        let flags = ENABLED.into();
        match processor {
            Processor::LocalApic {
                apic_id,
                sapic_eid,
                clock_domain,
            } => Self::LocalApic(LocalApicAffinity {
                entry_type: LOCAL_APIC,
                length: size_of::<LocalApicAffinity>() as u8,
                pxm_low,
                apic_id,
                flags,
                sapic_eid,
                pxm_high,
                clock_domain: clock_domain.into(),
            }),
            Processor::X2apic { id, clock_domain } => Self::X2apic(X2apicAffinity {
                entry_type: X2APIC,
                length: size_of::<X2apicAffinity>() as u8,
                reserved1: U16::ZERO,
                pxm,
                id: id.into(),
                flags,
                clock_domain: clock_domain.into(),
                reserved2: U32::ZERO,
            }),
            Processor::Gicc { uid, clock_domain } => Self::Gicc(GiccAffinity {
                entry_type: GICC,
                length: size_of::<GiccAffinity>() as u8,
                pxm,
                uid: uid.into(),
                flags,
                clock_domain: clock_domain.into(),
            }),
        }
    }

    fn read(start: &Start, raw: &Raw) -> Result<Self, ReadError> {
        Ok(match start.entry_type {
            LOCAL_APIC => Self::LocalApic(raw.read()?.0),
            MEMORY => Self::Memory(raw.read()?.0),
            X2APIC => Self::X2apic(raw.read()?.0),
            GICC => Self::Gicc(raw.read()?.0),
            GENERIC_INITIATOR => Self::GenericInitiator(raw.read()?.0),
            GENERIC_PORT => Self::GenericPort(raw.read()?.0),
            entry_type => Self::Unknown {
                entry_type,
                bytes: raw.bytes.to_vec(),
            },
        })
    }

    /// The entry as it is in the table. Of an entry of a known type that was longer than known
    /// when it was read, this is the known part.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::LocalApic(entry) => entry.as_bytes(),
            Self::Memory(entry) => entry.as_bytes(),
            Self::X2apic(entry) => entry.as_bytes(),
            Self::Gicc(entry) => entry.as_bytes(),
            Self::GenericInitiator(entry) | Self::GenericPort(entry) => entry.as_bytes(),
            Self::Unknown { bytes, .. } => bytes,
        }
    }

    /// The node of which the entry speaks, if its type is known.
    pub fn pxm(&self) -> Option<ProximityDomain> {
        match self {
            Self::LocalApic(entry) => Some(entry.pxm()),
            Self::Memory(entry) => Some(entry.pxm()),
            Self::X2apic(entry) => Some(entry.pxm()),
            Self::Gicc(entry) => Some(entry.pxm()),
            Self::GenericInitiator(entry) | Self::GenericPort(entry) => Some(entry.pxm()),
            Self::Unknown { .. } => None,
        }
    }

    /// Whether guests are to heed the entry. They do not know what an unknown one wants.
    pub fn is_enabled(&self) -> bool {
        let flags = match self {
            Self::LocalApic(entry) => entry.flags,
            Self::Memory(entry) => entry.flags,
            Self::X2apic(entry) => entry.flags,
            Self::Gicc(entry) => entry.flags,
            Self::GenericInitiator(entry) | Self::GenericPort(entry) => entry.flags,
            Self::Unknown { .. } => U32::ZERO,
        };
        flags.get() & ENABLED != 0
    }
}

/// The entries for a topology: processors, generic initiators, generic ports, memory, each in
/// ascending order of nodes.
///
/// Linux numbers nodes in this order ([`crate::linux`]), and drivers of devices that are generic
/// initiators of several nodes take the first one for the first.
pub fn entries(topology: &Topology) -> impl Iterator<Item = Entry> {
    let nodes = topology.nodes();
    let processors = nodes.iter().flat_map(|node| {
        let processors = node.processors.iter();
        processors.map(|processor| Entry::processor(node.pxm, *processor))
    });
    let initiators = nodes.iter().flat_map(|node| {
        let devices = node.initiators.iter();
        devices.map(|device| GenericAffinity::new(GENERIC_INITIATOR, node.pxm, *device))
    });
    let ports = nodes.iter().flat_map(|node| {
        let devices = node.ports.iter();
        devices.map(|device| GenericAffinity::new(GENERIC_PORT, node.pxm, *device))
    });
    let memory = nodes.iter().flat_map(|node| {
        let ranges = memory(node).into_iter();
        ranges.map(|range| Entry::Memory(MemoryAffinity::new(node.pxm, range)))
    });
    processors
        .chain(initiators.map(Entry::GenericInitiator))
        .chain(ports.map(Entry::GenericPort))
        .chain(memory)
}

/// A node's memory in ascending order, or the placeholder for it.
fn memory(node: &Node) -> Vec<MemoryRange> {
    let mut ranges: Vec<_> = node.ranges().collect();
    ranges.sort_by_key(|range| range.base);
    if node.has_placeholder() {
        ranges.push(MemoryRange {
            base: 0,
            length: 0,
            hotpluggable: true,
            non_volatile: false,
        });
    }
    ranges
}

/// Writes the table.
pub fn encode(topology: &Topology, ids: &TableIds) -> Table {
    let mut table = TableBuilder::new(SIGNATURE, REVISION, ids, size_of::<Fixed>());
    table.push(&Fixed {
        reserved1: U32::new(1),
        reserved2: U64::ZERO,
    });
    for entry in entries(topology) {
        table.push(entry.as_bytes());
    }
    table.finish()
}

/// A table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srat {
    /// The table's revision.
    pub revision: u8,
    /// Who made it.
    pub ids: TableIds,
    /// The entries, in the table's order.
    pub entries: Vec<Entry>,
}

/// Reads a table.
///
/// # Errors
///
/// If it is no intact SRAT, or an entry is shorter than its type demands. What the entries say is
/// not judged, and entries of unknown types are kept.
pub fn read(bytes: &[u8]) -> Result<Srat, ReadError> {
    let mut table = table::check::<Fixed>(SIGNATURE, bytes)?;
    let mut entries = Vec::new();
    while let Some(raw) = table.entries.next(|start: &Start| start.length.into())? {
        entries.push(Entry::read(&raw.read()?.0, &raw)?);
    }
    Ok(Srat {
        revision: table.revision,
        ids: table.ids,
        entries,
    })
}
