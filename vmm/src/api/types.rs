//! Bodies of requests and answers that are not configuration.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::VmConfig;
use crate::plan::GpaRange;

/// Answer to `vmm.ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmmPingResponse {
    /// Version of the build.
    pub build_version: String,
    /// Version of the program.
    pub version: String,
    /// Process id of the VMM.
    pub pid: u32,
    /// Optional parts that were built in.
    pub features: Vec<String>,
}

/// What a virtual machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmState {
    /// It has not been booted yet.
    Created,
    /// Its vCPUs run.
    Running,
    /// It has been booted and runs no more.
    Shutdown,
    /// Its vCPUs stand still.
    Paused,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "not booted yet",
            Self::Running => "running",
            Self::Shutdown => "shut down",
            Self::Paused => "paused",
        })
    }
}

/// Answer to `vm.info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// What was asked for, with the names that devices were given. A pseudo-terminal has its path as
    /// `file` while there is one.
    pub config: VmConfig,
    /// What it is doing.
    pub state: VmState,
    /// RAM of the guest, in bytes.
    pub memory_actual_size: u64,
    /// Devices by their names; absent while the machine is not booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub device_tree: Option<BTreeMap<String, DeviceNode>>,
    /// NUMA nodes as the guest finds them: an extension of ours; absent while the machine is not
    /// booted and where the guest is told of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub numa: Option<NumaInfo>,
}

/// A device of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceNode {
    /// Its name.
    pub id: String,
    /// What of the guest's address spaces and interrupts is its own.
    pub resources: Vec<Resource>,
    /// Devices behind it.
    pub children: Vec<String>,
    /// Where it is on PCI: `<segment>:<bus>:<device>.<function>`, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pci_bdf: Option<String>,
}

/// Something of the guest's that belongs to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Resource {
    /// I/O ports.
    PioAddressRange {
        /// The first.
        base: u16,
        /// How many.
        size: u16,
    },
    /// Memory-mapped registers.
    MmioAddressRange {
        /// Guest-physical address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// A PCI BAR, where firmware puts it; the guest may move it.
    PciBar {
        /// Its number.
        index: u8,
        /// Guest-physical address, or I/O port.
        base: u64,
        /// Bytes.
        size: u64,
        /// What it decodes.
        type_: PciBarType,
        /// Whether reads have no side effects.
        prefetchable: bool,
    },
    /// A wired interrupt: the global system interrupt.
    LegacyIrq(u32),
}

/// What a PCI BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum PciBarType {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Mmio32,
    /// Memory anywhere.
    Mmio64,
}

/// NUMA as the guest finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumaInfo {
    /// The nodes, by ascending ids.
    pub nodes: Vec<NumaNode>,
    /// Distances, by the positions in `nodes` of the node they lead from and the one they lead to.
    pub distances: Vec<Vec<u8>>,
    /// Passed-through devices with nodes of their own or with memory that CPUs may cache.
    pub devices: Vec<NumaDevice>,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumaNode {
    /// Its id in the configuration, or the one that `guest_numa_ids=auto` made.
    pub guest_numa_id: u32,
    /// Its ACPI proximity domain.
    pub proximity_domain: u32,
    /// The number that Linux will give it, as far as that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub linux_node: Option<u32>,
    /// vCPUs in it, ascending.
    pub cpus: Vec<u32>,
    /// Memory zones in it.
    pub memory_zones: Vec<String>,
    /// Where its RAM is; nowhere in an empty node.
    #[schema(value_type = Vec<GpaRangeSchema>)]
    pub memory: Vec<GpaRange>,
    /// The passed-through device that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub device: Option<String>,
}

/// A passed-through device and its NUMA nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumaDevice {
    /// Its name.
    pub id: String,
    /// Where it is on PCI.
    pub pci_bdf: String,
    /// Nodes that its memory may use, ascending.
    pub guest_numa_ids: Vec<u32>,
    /// Whether its ACPI node has their range in a `_DSD`.
    pub dsd: bool,
    /// Whether the SRAT has a generic initiator for each.
    pub generic_initiators: bool,
    /// Its memory that CPUs may cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub coherent_memory: Option<CoherentMemory>,
}

/// Memory of a device that CPUs may cache, which its driver can make NUMA memory of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CoherentMemory {
    /// The BAR that it is in.
    pub bar: u8,
    /// Bytes of it that can be used.
    pub size: u64,
    /// Guest-physical address where firmware puts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub address: Option<u64>,
}

/// Answer to `vm.counters`: for each device that counts, what it has counted.
pub type VmCounters = BTreeMap<String, BTreeMap<String, u64>>;

/// How a [`GpaRange`] is written; its crate knows nothing of schemas.
#[derive(ToSchema)]
#[schema(as = GpaRange)]
#[expect(dead_code, reason = "only its schema is used")]
struct GpaRangeSchema {
    /// First guest-physical address.
    start: u64,
    /// Bytes.
    size: u64,
}

/// Body of `vm.remove-device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRemoveDevice {
    /// Name of the device.
    pub id: String,
}
