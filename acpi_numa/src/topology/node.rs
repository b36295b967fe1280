//! A node and what belongs to it.

use alloc::vec::Vec;
use core::fmt;

use super::ProximityDomain;

/// A node: a proximity domain and all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's number.
    pub pxm: ProximityDomain,
    /// Its processors.
    pub processors: Vec<Processor>,
    /// Memory that is there at boot.
    pub memory: Vec<MemoryRange>,
    /// Address ranges in which memory may appear later.
    pub hotplug: Vec<AddressRange>,
    /// Devices that access memory as processors do, or own memory of this node (generic initiators).
    ///
    /// A device with several nodes is named in each of them.
    pub initiators: Vec<DeviceHandle>,
    /// Bridges behind which initiators and memory may appear later (generic ports).
    pub ports: Vec<DeviceHandle>,
    /// Whether a node without memory and without hot-plug range gets a memory entry of length
    /// zero.
    ///
    /// Linux can add memory after boot only to nodes that it has seen at boot, and such an entry
    /// costs it nothing, while a range costs it page tables for as much memory as it could hold.
    pub memory_placeholder: bool,
}

impl Node {
    /// A node with nothing in it, to which memory may be added later.
    pub fn new(pxm: ProximityDomain) -> Self {
        Self {
            pxm,
            processors: Vec::new(),
            memory: Vec::new(),
            hotplug: Vec::new(),
            initiators: Vec::new(),
            ports: Vec::new(),
            memory_placeholder: true,
        }
    }

    /// Whether the node has neither processors nor memory nor a range for memory.
    ///
    /// Distances to such a node have a default of their own.
    pub fn is_empty(&self) -> bool {
        self.processors.is_empty() && !self.has_range()
    }

    /// Whether the SRAT's memory entry for this node is one of length zero.
    pub fn has_placeholder(&self) -> bool {
        self.memory_placeholder && !self.has_range()
    }

    /// Whether the SRAT has a memory entry for this node, of whatever length.
    pub fn has_memory_entry(&self) -> bool {
        self.memory_placeholder || self.has_range()
    }

    /// Whether something in this node accesses memory: a processor or a generic initiator.
    pub fn has_initiator(&self) -> bool {
        !self.processors.is_empty() || !self.initiators.is_empty()
    }

    fn has_range(&self) -> bool {
        !self.memory.is_empty() || !self.hotplug.is_empty()
    }

    /// Entries that the SRAT has for this node.
    pub(super) fn entries(&self) -> usize {
        self.processors.len()
            + self.memory.len()
            + self.hotplug.len()
            + self.initiators.len()
            + self.ports.len()
            + usize::from(self.has_placeholder())
    }

    /// All ranges, of memory and for memory.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = MemoryRange> {
        let hotplug = self.hotplug.iter().map(|range| MemoryRange {
            base: range.base,
            length: range.length,
            hotpluggable: true,
            non_volatile: false,
        });
        self.memory.iter().copied().chain(hotplug)
    }
}

/// A processor, under the name that the interrupt controller's table (MADT) has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// An x86 processor whose APIC id fits 8 bits (ACPI 6.5, section 5.2.16.1).
    LocalApic {
        /// APIC id.
        apic_id: u8,
        /// Local SAPIC EID: 0 except on IA-64.
        sapic_eid: u8,
        /// The clock domain, a number of the platform's choice.
        clock_domain: u32,
    },
    /// An x86 processor (section 5.2.16.3).
    X2apic {
        /// x2APIC id.
        id: u32,
        /// The clock domain, a number of the platform's choice.
        clock_domain: u32,
    },
    /// An Arm processor (section 5.2.16.4).
    Gicc {
        /// ACPI processor UID.
        uid: u32,
        /// The clock domain, a number of the platform's choice.
        clock_domain: u32,
    },
}

/// What a processor is called, whichever entry names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ProcessorName {
    Apic { id: u32, sapic_eid: u8 },
    Gicc { uid: u32 },
}

impl Processor {
    pub(super) fn name(&self) -> ProcessorName {
        match *self {
            Self::LocalApic {
                apic_id, sapic_eid, ..
            } => ProcessorName::Apic {
                id: apic_id.into(),
                sapic_eid,
            },
            Self::X2apic { id, .. } => ProcessorName::Apic { id, sapic_eid: 0 },
            Self::Gicc { uid, .. } => ProcessorName::Gicc { uid },
        }
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalApic {
                apic_id, sapic_eid, ..
            } if *sapic_eid != 0 => write!(f, "the processor with SAPIC id {apic_id}:{sapic_eid}"),
            Self::LocalApic { apic_id, .. } => write!(f, "the processor with APIC id {apic_id}"),
            Self::X2apic { id, .. } => write!(f, "the processor with APIC id {id}"),
            Self::Gicc { uid, .. } => write!(f, "the processor with UID {uid}"),
        }
    }
}

/// Memory that is there at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Guest physical address of the first byte.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
    /// Whether the memory may be removed.
    pub hotpluggable: bool,
    /// Whether the memory keeps its contents without power.
    pub non_volatile: bool,
}

impl MemoryRange {
    /// Ordinary memory, `length` bytes from address `base`.
    pub const fn new(base: u64, length: u64) -> Self {
        Self {
            base,
            length,
            hotpluggable: false,
            non_volatile: false,
        }
    }
}

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The first address.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes from {:#x}", self.length, self.base)
    }
}

impl From<MemoryRange> for AddressRange {
    fn from(range: MemoryRange) -> Self {
        Self {
            base: range.base,
            length: range.length,
        }
    }
}

/// What the SRAT calls a device (ACPI 6.5, section 5.2.16.6, device handles).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceHandle {
    /// A device in the ACPI namespace.
    Acpi {
        /// `_HID`.
        hid: [u8; 8],
        /// `_UID`.
        uid: u32,
    },
    /// A PCI function.
    Pci {
        /// PCI segment.
        segment: u16,
        /// Bus number as it is at boot.
        bus: u8,
        /// Device number, 0 to 31.
        device: u8,
        /// Function number, 0 to 7.
        function: u8,
    },
}

impl fmt::Display for DeviceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acpi { hid, uid } => write!(f, "{} with _UID {uid}", hid.escape_ascii()),
            Self::Pci {
                segment,
                bus,
                device,
                function,
            } => write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function}"),
        }
    }
}

/// In which of its two lists a node names a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceRole {
    /// Generic initiator.
    Initiator,
    /// Generic port.
    Port,
}

impl fmt::Display for DeviceRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initiator => "generic initiator",
            Self::Port => "generic port",
        })
    }
}
