//! Kernel, initramfs, EFI hand-over and device tree in guest RAM.

use std::fs::File;
use std::io::Read;

use arch::aarch64::boot::{self, InitramfsError, KernelError};
use arch::aarch64::efi::{self, EfiError, EfiInputs};
use arch::aarch64::fdt::{
    self, Chosen, Distance, FdtError, Gic, MachineTree, Peripheral, Ram, Seeds,
};
use arch::aarch64::layout::{AcpiWindow, FDT, INTID_RTC, boot_area};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::payload::{Payload, PayloadFile};
use crate::plan::{FirmwarePlan, GpaRange, InterruptPlan, NodePlan, Plan, Registers, VENDOR};

/// Bytes of the seed for the guest's random number generator.
const RNG_SEED: usize = 64;

/// How the boot vCPU enters the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// First instruction.
    pub kernel: u64,
    /// Device tree.
    pub fdt: u64,
}

/// Why a guest's memory could not be prepared.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel cannot be used.
    #[error("--kernel {path}")]
    Kernel {
        /// What the operator gave.
        path: String,
        /// Why not.
        #[source]
        source: KernelError,
    },
    /// The initramfs cannot be used.
    #[error("--initramfs {path}")]
    Initramfs {
        /// What the operator gave.
        path: String,
        /// Why not.
        #[source]
        source: InitramfsError,
    },
    /// The device tree cannot be made; the command line is the part of it that can be at fault.
    #[error("--cmdline: cannot make the device tree")]
    Fdt(#[source] FdtError),
    /// The EFI structures cannot be made.
    #[error("--memory: cannot make the EFI memory map")]
    Efi(#[source] EfiError),
    /// Random numbers cannot be had.
    #[error("cannot read /dev/urandom for the guest's seeds")]
    Random(#[source] std::io::Error),
    /// The plan is for another machine.
    #[error("the plan does not describe an aarch64 machine")]
    ForeignPlan,
    /// Guest memory cannot be written.
    #[error("cannot write {what} to guest memory at {gpa:#x}")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// Where.
        gpa: u64,
        /// Why not.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// Loads everything that the guest starts from.
pub fn load(
    memory: &GuestMemoryMmap,
    plan: &Plan,
    payload: &mut Payload,
) -> Result<Entry, BootError> {
    let window = match plan.memory.acpi_window {
        Some(range) => Some(AcpiWindow::from_range(range).ok_or(BootError::ForeignPlan)?),
        None => None,
    };
    let ram_size = plan.memory.ram.iter().map(|range| range.size).sum();
    let area = boot_area(ram_size, window);
    let PayloadFile { path, file } = &mut payload.kernel;
    let kernel = boot::load_kernel(memory, file, area).map_err(|source| {
        let path = path.display().to_string();
        BootError::Kernel { path, source }
    })?;
    let mut initramfs = None;
    if let Some(PayloadFile { path, file }) = &mut payload.initramfs {
        let range = boot::load_initramfs(memory, file, area, kernel.range);
        initramfs = Some(range.map_err(|source| {
            let path = path.display().to_string();
            BootError::Initramfs { path, source }
        })?);
    }
    let (kaslr, rng) = seeds().map_err(BootError::Random)?;
    let chosen = Chosen {
        bootargs: &payload.cmdline,
        initramfs,
        seeds: Seeds { kaslr, rng: &rng },
    };
    let tree = match (&plan.firmware, window) {
        (FirmwarePlan::Acpi { rsdp, smbios, .. }, Some(window)) => {
            let smbios = smbios.first().map(|entry| entry.gpa);
            acpi_tree(memory, plan, &chosen, window, *rsdp, smbios)?
        }
        _ => machine_tree(plan, &chosen)?,
    };
    write(memory, "the device tree", FDT.start, &tree)?;
    Ok(Entry {
        kernel: kernel.entry,
        fdt: FDT.start,
    })
}

/// The stub tree of an ACPI guest, with the EFI structures that it points to written.
fn acpi_tree(
    memory: &GuestMemoryMmap,
    plan: &Plan,
    chosen: &Chosen<'_>,
    window: AcpiWindow,
    rsdp: u64,
    smbios: Option<u64>,
) -> Result<Vec<u8>, BootError> {
    let image = efi::build(&EfiInputs {
        area: window.efi(),
        vendor: VENDOR,
        rsdp,
        smbios,
        fdt_window: FDT,
        acpi_window: window.range(),
        ram: &plan.memory.ram,
    })
    .map_err(BootError::Efi)?;
    write(
        memory,
        "the EFI structures",
        window.efi().start,
        &image.bytes,
    )?;
    fdt::acpi_stub(chosen, &image.pointers).map_err(BootError::Fdt)
}

fn machine_tree(plan: &Plan, chosen: &Chosen<'_>) -> Result<Vec<u8>, BootError> {
    let InterruptPlan::GicV3 {
        distributor,
        redistributors,
        its,
    } = plan.interrupts
    else {
        return Err(BootError::ForeignPlan);
    };
    let boot_cpus = plan.cpus.cpus.iter().take(plan.cpus.boot as usize);
    let cpus: Vec<fdt::Cpu> = boot_cpus
        .map(|cpu| fdt::Cpu {
            mpidr: cpu.hardware_id,
            package: cpu.package,
            die: cpu.die,
            core: cpu.core,
            thread: cpu.thread,
            numa_node: node_of(plan, |node| node.cpus.contains(&cpu.index)),
        })
        .collect();
    let serial = plan.devices.serial.map(|serial| {
        Ok(Peripheral {
            registers: mmio(serial.registers)?,
            intid: serial.gsi,
        })
    });
    let tree = MachineTree {
        chosen: *chosen,
        cpus: &cpus,
        pmu: plan.cpus.pmu,
        ram: &ram(plan),
        distances: &distances(plan),
        gic: Gic {
            distributor,
            redistributors,
            its,
        },
        serial: serial.transpose()?,
        rtc: Peripheral {
            registers: mmio(plan.devices.rtc)?,
            intid: INTID_RTC,
        },
    };
    fdt::machine_tree(&tree).map_err(BootError::Fdt)
}

/// Id of the NUMA node that `has` something.
fn node_of(plan: &Plan, has: impl Fn(&NodePlan) -> bool) -> Option<u32> {
    let mut nodes = plan.numa.iter().flat_map(|numa| &numa.nodes);
    nodes.find(|node| has(node)).map(|node| node.id)
}

/// RAM by NUMA nodes, ascending; as it lies where there are none.
fn ram(plan: &Plan) -> Vec<Ram> {
    let in_node = |numa_node| {
        move |range: &GpaRange| Ram {
            range: *range,
            numa_node,
        }
    };
    let Some(numa) = &plan.numa else {
        return plan.memory.ram.iter().map(in_node(None)).collect();
    };
    let nodes = numa.nodes.iter();
    let ram = nodes.flat_map(|node| node.ram.iter().map(in_node(Some(node.id))));
    let mut ram: Vec<Ram> = ram.collect();
    ram.sort_by_key(|ram| ram.range.start);
    ram
}

/// Distances between all NUMA nodes, in the order of their ids.
fn distances(plan: &Plan) -> Vec<Distance> {
    let Some(numa) = &plan.numa else {
        return Vec::new();
    };
    let rows = numa.nodes.iter().zip(&numa.distances);
    let row = |(from, row): (&NodePlan, &Vec<u8>)| -> Vec<Distance> {
        let columns = numa.nodes.iter().zip(row);
        let distance = |(to, distance): (&NodePlan, &u8)| Distance {
            from: from.id,
            to: to.id,
            distance: *distance,
        };
        columns.map(distance).collect()
    };
    rows.flat_map(row).collect()
}

fn mmio(registers: Registers) -> Result<GpaRange, BootError> {
    match registers {
        Registers::Mmio(range) => Ok(range),
        Registers::Pio { .. } => Err(BootError::ForeignPlan),
    }
}

/// Random numbers, new ones for every boot.
fn seeds() -> std::io::Result<([u8; 8], [u8; RNG_SEED])> {
    let mut source = File::open("/dev/urandom")?;
    let (mut kaslr, mut rng) = ([0; 8], [0; RNG_SEED]);
    source.read_exact(&mut kaslr)?;
    source.read_exact(&mut rng)?;
    Ok((kaslr, rng))
}

fn write(
    memory: &GuestMemoryMmap,
    what: &'static str,
    gpa: u64,
    bytes: &[u8],
) -> Result<(), BootError> {
    let written = memory.write_slice(bytes, GuestAddress(gpa));
    written.map_err(|source| BootError::Write { what, gpa, source })
}
