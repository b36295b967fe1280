//! ACPI tables of a hardware-reduced machine: RSDP, XSDT, FADT, MADT, DSDT, SPCR, GTDT and PPTT on
//! aarch64; where there is PCI, MCFG, and IORT on aarch64; and SRAT, SLIT and HMAT, which `acpi_numa`
//! makes, where there are NUMA nodes (ACPI 6.5).
//!
//! [`AcpiTables::encode`] makes everything but the addresses of the tables themselves, so that
//! [`AcpiTables::size`] is known before RAM is laid out; [`AcpiTables::place`] then gives each table
//! its address and links them. Both are pure: same input, same bytes.
//!
//! The fixed structures are typed and little-endian, and each table is summed once, at its end:
//! `Sdt` of the `acpi_tables` crate sums the whole table again at every append, which is quadratic.

mod apic;
mod dsdt;
mod fadt;
mod gic;
mod gtdt;
mod host_bridge;
mod iort;
mod madt;
mod mcfg;
mod nodes;
mod pci_methods;
mod placement;
mod pptt;
mod resources;
mod rsdp;
mod spcr;
mod table;
mod xsdt;

pub(crate) use table::IDS as TABLE_IDS;

pub use placement::{AcpiTables, PlaceError, RsdpAt};

use acpi_numa::aml::{NodeRangeError, PropertyError};
use acpi_numa::topology::{Topology, TopologyError};
use pci::Bdf;
use table::Table;

use crate::plan::{CpuPlan, GpaRange, InterruptPlan, Isa, PciPlan, PlatformDevices, Registers};

/// Everything that keeps nodes from being a topology. Prints as one line for each.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct TopologyErrors(pub Vec<TopologyError>);

/// Why a machine cannot be described.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The interrupt controller belongs to the other instruction set.
    #[error("the interrupt controller is not one of {isa:?}")]
    ForeignInterrupts {
        /// Instruction set of the guest.
        isa: Isa,
    },
    /// The MADT has 32 bits for this address.
    #[error("the {what} is at {address:#x}; ACPI can describe one below 4 GiB only")]
    Above4GiB {
        /// Which controller.
        what: &'static str,
        /// Its address.
        address: u64,
    },
    /// The MADT has 32 bits for an APIC id.
    #[error("CPU {cpu} has APIC id {id:#x}, which exceeds 32 bits")]
    ApicId {
        /// Index of the CPU.
        cpu: u32,
        /// Its APIC id.
        id: u64,
    },
    /// The MADT has 8 bits for the UID of a processor whose APIC id is below 255.
    #[error("CPU {cpu} has APIC id {id}; ACPI can describe such a CPU up to number 254 only")]
    ProcessorUid {
        /// Index of the CPU.
        cpu: u32,
        /// Its APIC id.
        id: u32,
    },
    /// The DSDT has three hexadecimal digits for the name of a processor or package.
    #[error("there is no ACPI name for CPU or package {number}; the last is number 3071")]
    NoName {
        /// Index of the CPU, or number of the package.
        number: u32,
    },
    /// The MADT has 32 bits for the length of the redistributors' range.
    #[error("the GIC redistributors take {size:#x} bytes; ACPI can describe less than 4 GiB")]
    Redistributors {
        /// Bytes.
        size: u64,
    },
    /// A resource descriptor has 8 bits for the number of I/O ports.
    #[error("a device has {size} I/O ports at {base:#x}; ACPI can describe up to 255")]
    Ports {
        /// First port.
        base: u16,
        /// Number of ports.
        size: u16,
    },
    /// The sleep registers do not fit below the end of the I/O space.
    #[error("the ACPI sleep and reset registers at port {base:#x} reach past port 0xffff")]
    SleepRegisters {
        /// First port.
        base: u16,
    },
    /// Names of host bridges have two hexadecimal digits, and a KVM ITS tells 256 segments apart.
    #[error(
        "PCI segment {segment:#x} cannot be described; the last is segment {:#x}",
        host_bridge::LAST_SEGMENT
    )]
    Segment {
        /// Number of the segment.
        segment: u16,
    },
    /// Two segments have the same number.
    #[error("there are two PCI segments {segment:#x}")]
    SegmentTwice {
        /// Number of the segments.
        segment: u16,
    },
    /// Two functions are in the same slot.
    #[error("device {id} is at {bdf}, where another is already")]
    SlotTwice {
        /// The second device.
        id: String,
        /// Its address.
        bdf: Bdf,
    },
    /// The function is not where the slots of its segment are.
    #[error(
        "device {id} is at {bdf}, which is no slot of PCI segment {segment:#x}; the slots are \
         devices 0x0 to 0x1f"
    )]
    Slot {
        /// The device.
        id: String,
        /// Its address.
        bdf: Bdf,
        /// The segment that it is planned on.
        segment: u16,
    },
    /// A memory window is not below 4 GiB, or not below the end of the address space.
    #[error(
        "the {space} window of PCI segment {segment:#x}, {:#x} bytes at {:#x}, reaches past what \
         {space} addresses can say",
        window.size, window.start
    )]
    Window {
        /// Number of the segment.
        segment: u16,
        /// Which window.
        space: &'static str,
        /// The window.
        window: GpaRange,
    },
    /// The I/O window does not fit below the end of the I/O space.
    #[error(
        "the I/O window of PCI segment {segment:#x}, {size:#x} ports at {base:#x}, reaches past \
         port 0xffff"
    )]
    IoWindow {
        /// Number of the segment.
        segment: u16,
        /// First port.
        base: u16,
        /// Number of ports.
        size: u16,
    },
    /// The device's nodes are no range.
    #[error("device {id} cannot be told its NUMA nodes")]
    Nodes {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: NodeRangeError,
    },
    /// The device's properties cannot be told.
    #[error("device {id} cannot have the properties that name its NUMA nodes")]
    Properties {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: PropertyError,
    },
}

impl AcpiTables {
    /// All tables of the machine, without their addresses. A machine without PCI has no `pci`.
    ///
    /// # Errors
    ///
    /// A value that does not fit its field.
    pub fn encode(
        isa: Isa,
        cpus: &CpuPlan,
        interrupts: &InterruptPlan,
        devices: &PlatformDevices,
        numa: Option<&Topology>,
        pci: Option<&PciPlan>,
    ) -> Result<Self, EncodeError> {
        check(isa, cpus, interrupts, devices)?;
        let dsdt = dsdt::encode(isa, cpus, devices, pci)?;
        let mut listed = vec![madt::encode(cpus, interrupts)?];
        if isa == Isa::Aarch64 {
            listed.push(gtdt::encode());
            listed.push(pptt::encode(cpus));
        }
        listed.extend(devices.serial.as_ref().map(spcr::encode));
        if let Some(pci) = pci {
            listed.push(mcfg::encode(pci));
            if isa == Isa::Aarch64 {
                listed.push(iort::encode(pci));
            }
        }
        if let Some(numa) = numa {
            listed.push(acpi_numa::srat::encode(numa, &table::IDS).into());
            listed.push(acpi_numa::slit::encode(numa, &table::IDS).into());
            listed.extend(acpi_numa::hmat::encode(numa, &table::IDS).map(Table::from));
        }
        Ok(Self {
            fadt: fadt::Fadt::new(isa, devices),
            dsdt,
            listed,
        })
    }
}

/// Checks what the encoders take for granted.
fn check(
    isa: Isa,
    cpus: &CpuPlan,
    interrupts: &InterruptPlan,
    devices: &PlatformDevices,
) -> Result<(), EncodeError> {
    match (isa, interrupts) {
        (Isa::X86_64, InterruptPlan::Apic { .. }) | (Isa::Aarch64, InterruptPlan::GicV3 { .. }) => {
        }
        _ => return Err(EncodeError::ForeignInterrupts { isa }),
    }
    let numbers = cpus.cpus.iter().map(|cpu| cpu.index.max(cpu.package));
    if let Some(number) = numbers.max().filter(|n| *n >= nodes::MAX_CPU_NAMES) {
        return Err(EncodeError::NoName { number });
    }
    let serial = devices.serial.map(|serial| serial.registers);
    for registers in serial.into_iter().chain([devices.rtc]) {
        if let Registers::Pio { base, size } = registers
            && size > resources::MAX_PORTS
        {
            return Err(EncodeError::Ports { base, size });
        }
    }
    if let Some(sleep) = devices.sleep
        && sleep.base > u16::MAX - 2
    {
        return Err(EncodeError::SleepRegisters { base: sleep.base });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
