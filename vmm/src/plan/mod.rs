//! The plan: everything the guest will see, decided before anything is created.
//!
//! A plan is a pure function of the configuration and of what the host can do. It holds no
//! descriptor and knows no KVM, and the instruction set is a value in it, so a plan for either
//! architecture can be made and tested on any machine. What it says is ABI towards the guest:
//! reboot replays a plan and never recomputes it.

mod cpus;
mod devices;
mod firmware;
mod memory;
mod numa;
mod pci;
#[cfg(test)]
mod tests;
mod warnings;

use std::collections::BTreeMap;

use ::pci::DeviceFacts;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use arch::{CpuTopology, GpaRange, Isa};

pub use self::pci::{
    DeviceNodes, FunctionPlan, FunctionSource, IoWindow, PciPlan, SegmentPlan, VirtioKind,
};
pub use firmware::VENDOR;

use crate::acpi;
use crate::config::VmConfig;

/// Version of the serialised form of [`Plan`]; goes up with every incompatible change.
pub const PLAN_VERSION: u32 = 2;

/// What the plan needs to know of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Instruction set of host and guest.
    pub isa: Isa,
    /// Guest-physical address width that the host can provide, in bits.
    pub phys_bits: u8,
    /// Most vCPUs that the host gives one guest.
    pub max_vcpus: u32,
    /// Highest vCPU id (x86: APIC id) that the host gives one guest, plus one.
    pub max_vcpu_ids: u32,
    /// aarch64: whether vCPUs have performance monitors.
    pub pmu: bool,
    /// What memory it has.
    pub memory: HostMemory,
    /// Whether KVM maps memory of devices of the host cacheable: x86_64 always does, aarch64 from Linux
    /// 6.17 on, on CPUs that can (KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED).
    #[serde(default = "yes")]
    pub cacheable_device_memory: bool,
    /// Devices to pass through, by their sysfs folders or vfio-user sockets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, DeviceFacts>,
}

impl HostFacts {
    /// What most hosts of an instruction set offer, for plans that are made where no KVM is.
    pub fn assumed(isa: Isa, memory: HostMemory) -> Self {
        Self {
            isa,
            phys_bits: match isa {
                Isa::X86_64 => 46,
                Isa::Aarch64 => 48,
            },
            max_vcpus: 512,
            max_vcpu_ids: 4096,
            pmu: isa == Isa::Aarch64,
            memory,
            cacheable_device_memory: true,
            devices: BTreeMap::new(),
        }
    }
}

fn yes() -> bool {
    true
}

/// What the plan needs to know of the host's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// NUMA nodes that have memory, ascending.
    pub numa_nodes: Vec<u32>,
    /// Sizes that reserved huge pages may have, in bytes, ascending.
    pub hugepage_sizes: Vec<u64>,
}

/// Why a configuration cannot be turned into a plan on this host.
#[derive(Debug, Error)]
pub enum PlanError {
    /// More vCPUs than KVM allows.
    #[error("--cpus max={max}: this host allows at most {host} vCPUs for one guest")]
    TooManyCpus {
        /// vCPUs asked for.
        max: u32,
        /// vCPUs allowed.
        host: u32,
    },
    /// The topology has holes that lead to ids KVM does not allow.
    #[error(
        "--cpus topology: the highest APIC id would be {id}, and this host allows ids below \
         {limit}; levels that are powers of two leave no holes"
    )]
    ApicIdTooHigh {
        /// Highest APIC id.
        id: u64,
        /// First id that KVM refuses.
        limit: u32,
    },
    /// RAM and the PCI window behind it do not fit.
    #[error(
        "--memory size={size:#x}: does not fit, with room for devices, into the {phys_bits}-bit \
         physical address space of the guest; choose a smaller size or, where the host has more \
         bits, a larger --cpus max_phys_bits"
    )]
    TooMuchMemory {
        /// Bytes asked for.
        size: u64,
        /// Physical address width of the guest.
        phys_bits: u8,
    },
    /// RAM is too small even for the tables.
    #[error(
        "--memory size={size:#x}: the tables that every guest is handed need {needed:#x} bytes"
    )]
    TooLittleMemory {
        /// Bytes asked for.
        size: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The debug console's port belongs to another device.
    #[error("--debug-console iobase={port:#x}: that port belongs to {owner}; choose another")]
    PortTaken {
        /// The port asked for.
        port: u16,
        /// The device that has it.
        owner: &'static str,
    },
    /// Nobody knows what the device is.
    #[error(
        "{option}: nothing is known of this device; --plan-facts must have what was found out about \
         it, under this path or socket as it is written here"
    )]
    UnknownDevice {
        /// The option.
        option: String,
    },
    /// The device's memory would not be cached.
    #[error(
        "{option}: CPUs may cache this device's memory, but KVM on this host cannot map it so, and the \
         guest would find it unusable as NUMA memory; this takes Linux 6.17 or later and CPUs with FWB \
         and CACHE_DIC, or say x_allow_noncacheable=on to have it as it is"
    )]
    NotCacheable {
        /// The option.
        option: String,
    },
    /// There is no such segment.
    #[error("{option},pci_segment={segment}: there is no such segment")]
    NoSegment {
        /// The option.
        option: String,
        /// The segment.
        segment: u16,
    },
    /// A segment is full.
    #[error("{option}: PCI segment {segment} is full; use another (--platform num_pci_segments)")]
    NoSlot {
        /// The option.
        option: String,
        /// The segment.
        segment: u16,
    },
    /// What is said of a device cannot be.
    #[error("{option}: {fault}; --plan-facts must have what --plan-format json printed of it")]
    ImpossibleDevice {
        /// The option.
        option: String,
        /// What is wrong.
        fault: String,
    },
    /// The 64-bit BARs do not fit.
    #[error(
        "--device, --user-device: 64-bit BARs need {needed:#x} bytes, gaps for alignment included, and \
         with {phys_bits}-bit addresses there are {available:#x} behind RAM; give fewer devices or less \
         RAM or, where the host has more bits, a larger --cpus max_phys_bits"
    )]
    PciWindow64 {
        /// Bytes that the BARs need.
        needed: u64,
        /// Bytes that there are.
        available: u64,
        /// Width of addresses.
        phys_bits: u8,
    },
    /// The 32-bit BARs do not fit.
    #[error(
        "--device, --user-device: 32-bit BARs need {needed:#x} bytes, gaps for alignment included, and \
         below 4 GiB there are {available:#x}; give fewer devices that have such BARs"
    )]
    PciWindow32 {
        /// Bytes that the BARs need.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// The I/O BARs do not fit.
    #[error(
        "--device, --user-device: I/O BARs on PCI segment 0 need {needed:#x} ports, and there are \
         {available:#x}; give fewer devices that have such BARs, or move some to another segment, \
         where guests do without them"
    )]
    PciPorts {
        /// Ports that the BARs need.
        needed: u64,
        /// Ports that there are.
        available: u64,
    },
    /// The strings do not fit into SMBIOS tables.
    #[error("--platform")]
    Smbios(#[source] arch::smbios::SmbiosError),
    /// The nodes make no topology that tables can tell.
    #[error("--numa")]
    Topology(#[source] acpi::TopologyErrors),
    /// The ACPI tables cannot be made.
    #[error("cannot make the ACPI tables")]
    AcpiEncode(#[source] acpi::EncodeError),
    /// The ACPI tables cannot be placed.
    #[error("cannot place the ACPI tables")]
    AcpiPlace(#[source] acpi::PlaceError),
}

/// Everything the guest will see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the build that made it.
    pub version: u32,
    /// Instruction set of the guest.
    pub isa: Isa,
    /// The virtual CPUs.
    pub cpus: CpuPlan,
    /// The guest-physical address space.
    pub memory: MemoryPlan,
    /// NUMA nodes; absent where the guest is not told of any.
    pub numa: Option<NumaPlan>,
    /// Interrupt controllers.
    pub interrupts: InterruptPlan,
    /// PCI; absent where the guest has a device tree alone.
    pub pci: Option<PciPlan>,
    /// Devices at fixed addresses.
    pub devices: PlatformDevices,
    /// How the guest learns of its hardware.
    pub firmware: FirmwarePlan,
}

impl Plan {
    /// Decides everything the guest will see. The configuration must have been validated.
    pub fn new(config: &VmConfig, host: &HostFacts) -> Result<Self, PlanError> {
        let isa = host.isa;
        let cpus = cpus::plan(&config.cpus, &config.numa, host)?;
        let interrupts = devices::interrupts(isa, &cpus);
        let devices = devices::plan(config, isa)?;
        let mut memory = memory::ram(isa, &config.memory, cpus.phys_bits)?;
        let mut pci = match config.platform.acpi {
            true => Some(pci::plan(config, host, &memory, cpus.phys_bits)?),
            false => None,
        };
        let numa = numa::plan(&config.numa, isa, &cpus, &memory, pci.as_mut())?;
        let (numa, topology) = numa.map(|numa| (numa.plan, numa.topology)).unzip();
        let acpi = pci
            .as_ref()
            .map(|pci| firmware::encode(isa, &cpus, &interrupts, &devices, pci, topology.as_ref()))
            .transpose()?;
        let size = acpi.as_ref().map(firmware::Encoded::size);
        memory::place_tables(isa, &mut memory, size)?;
        let firmware = firmware::place(isa, acpi, &memory, devices.sleep, &config.platform)?;
        Ok(Self {
            version: PLAN_VERSION,
            isa,
            cpus,
            memory,
            numa,
            interrupts,
            pci,
            devices,
            firmware,
        })
    }
}

/// The virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuPlan {
    /// CPUs that run at boot: the first `boot` of `cpus`.
    pub boot: u32,
    /// Every CPU that the guest can ever have, in order of their index.
    pub cpus: Vec<PlannedCpu>,
    /// Topology that the guest is shown.
    pub topology: CpuTopology,
    /// Guest-physical address width that the guest is shown, in bits.
    pub phys_bits: u8,
    /// aarch64: the CPUs have performance monitors, with a private interrupt that tables announce.
    pub pmu: bool,
}

/// One virtual CPU and its place in the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCpu {
    /// Index, from 0; also the ACPI processor UID.
    pub index: u32,
    /// What the hardware calls it: the x2APIC id on x86_64, the affinity fields of MPIDR_EL1 on
    /// aarch64 (Aff3 in bits 39:32, Aff2..Aff0 in bits 23:0).
    pub hardware_id: u64,
    /// Package, from 0.
    pub package: u32,
    /// Die within the package, from 0.
    pub die: u32,
    /// Core within the die, from 0.
    pub core: u32,
    /// Thread within the core, from 0.
    pub thread: u32,
}

/// The guest-physical address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// RAM, ascending and disjoint.
    pub ram: Vec<GpaRange>,
    /// The same RAM by the zones that it was asked for in.
    pub zones: Vec<ZonePlan>,
    /// Part of RAM, that holds ACPI tables and, on aarch64, the EFI hand-over and SMBIOS; reported
    /// to the guest as ACPI-reclaimable. Absent without ACPI.
    pub acpi_window: Option<GpaRange>,
    /// Where 32-bit PCI BARs go.
    pub mmio32: GpaRange,
    /// Where 64-bit PCI BARs go.
    pub mmio64: GpaRange,
}

/// A memory zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZonePlan {
    /// Its name.
    pub id: String,
    /// Where it is: one range, or two around the 32-bit hole.
    pub ranges: Vec<GpaRange>,
}

/// The NUMA nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaPlan {
    /// The nodes, by ascending ids.
    pub nodes: Vec<NodePlan>,
    /// Distances, by the positions in `nodes` of the node they lead from and the one they lead to.
    pub distances: Vec<Vec<u8>>,
    /// Id of the node that took in what follows.
    pub home: u32,
    /// CPUs that no node was given.
    pub adopted_cpus: Vec<u32>,
    /// Memory zones that no node was given.
    pub adopted_zones: Vec<String>,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    /// Its id: the ACPI proximity domain, or the node's id in a device tree.
    pub id: u32,
    /// Indexes of the CPUs in it, ascending.
    pub cpus: Vec<u32>,
    /// Memory zones in it.
    pub zones: Vec<String>,
    /// Where its RAM is, ascending; nowhere in an empty node.
    pub ram: Vec<GpaRange>,
    /// The number that Linux will give it, as far as that can be told.
    pub linux_node: Option<u32>,
    /// The passed-through device that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl NodePlan {
    /// Whether it has neither CPUs nor RAM, so that a device may own it.
    pub fn is_empty(&self) -> bool {
        self.cpus.is_empty() && self.ram.is_empty()
    }
}

/// Interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptPlan {
    /// x86_64: local APICs in KVM and one I/O APIC.
    Apic {
        /// Base of the local APICs.
        local_apic: u64,
        /// Base of the I/O APIC's register page.
        io_apic: u64,
        /// Id of the I/O APIC.
        io_apic_id: u8,
    },
    /// aarch64: GICv3 with one ITS.
    GicV3 {
        /// Distributor.
        distributor: GpaRange,
        /// Redistributors, 128 KiB for each CPU of the plan.
        redistributors: GpaRange,
        /// Interrupt translation service.
        its: GpaRange,
    },
}

/// Where a device's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Registers {
    /// x86 I/O ports.
    Pio {
        /// First port.
        base: u16,
        /// Number of ports.
        size: u16,
    },
    /// Memory-mapped.
    Mmio(GpaRange),
}

/// A wired interrupt as ACPI and the guest count it: the global system interrupt, which on aarch64
/// is the GIC's INTID (32 and up for shared peripheral interrupts).
pub type Gsi = u32;

/// Devices at fixed addresses; `None` where the configuration or the architecture has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformDevices {
    /// The serial port: a 16550 on x86_64, a PL011 on aarch64.
    pub serial: Option<SerialPlan>,
    /// The real-time clock: CMOS on x86_64, PL031 on aarch64.
    pub rtc: Registers,
    /// The Generic Event Device; absent without ACPI.
    pub events: Option<EventDevicePlan>,
    /// ACPI sleep and reset registers; absent where PSCI does their work.
    pub sleep: Option<SleepPlan>,
    /// x86 debug console: one I/O port.
    pub debug_console: Option<u16>,
}

/// The serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPlan {
    /// Registers; `Pio` means a 16550, `Mmio` a PL011.
    pub registers: Registers,
    /// Its interrupt: edge-triggered for a 16550, level-triggered for a PL011.
    pub gsi: Gsi,
}

/// The ACPI Generic Event Device (ACPI 6.5, section 5.6.9) and its event register, a byte in
/// which each set bit is a pending event; reading it clears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDevicePlan {
    /// The event register.
    pub registers: Registers,
    /// Its interrupt, edge-triggered.
    pub gsi: Gsi,
}

/// ACPI sleep control, sleep status and reset registers, one byte each, in this order
/// (ACPI 6.5, section 4.8.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SleepPlan {
    /// I/O port of the first.
    pub base: u16,
}

/// How the guest learns of its hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FirmwarePlan {
    /// ACPI tables and SMBIOS.
    Acpi {
        /// Address of the RSDP.
        rsdp: u64,
        /// All tables, the RSDP included, with their addresses.
        tables: Vec<PlannedTable>,
        /// SMBIOS 3 entry point and structure table.
        smbios: Vec<PlannedTable>,
        /// x86_64: code for guests that restart by jumping to the processor's reset vector.
        reset_vector: Option<PlannedTable>,
    },
    /// A device tree alone; nothing from ACPI is promised.
    DeviceTree,
}

/// Bytes that are placed into guest memory before the guest starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTable {
    /// Its name: the ACPI signature, `_SM3_` and `SMBIOS` for the two parts of SMBIOS, or `RESET`.
    pub name: String,
    /// Where it is placed.
    pub gpa: u64,
    /// What is placed there.
    pub bytes: Vec<u8>,
}

/// Numbers in ascending order, as people write them: `0-3,7`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = numbers.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while let Some(next) = rest.next_if(|next| last.checked_add(1) == Some(*next)) {
            last = next;
        }
        let separator = if text.is_empty() { "" } else { "," };
        text.push_str(&match first == last {
            true => format!("{separator}{first}"),
            false => format!("{separator}{first}-{last}"),
        });
    }
    text
}
