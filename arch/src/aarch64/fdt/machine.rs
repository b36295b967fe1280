//! The device tree of a guest without ACPI.
//!
//! Bindings: arm/psci.yaml, interrupt-controller/arm,gic-v3.yaml, timer/arm,arch_timer.yaml,
//! arm/pmu.yaml, clock/fixed-clock.yaml, serial/pl011.yaml, rtc/arm,pl031.yaml.

use vm_fdt::{Error, FdtWriter};

use super::{Chosen, Cpu, Distance, FdtError, Ram, cpus, finish, memory, write_chosen};
use crate::GpaRange;
use crate::aarch64::layout::{
    INTID_MAINTENANCE, INTID_PMU, INTID_TIMER_HYPERVISOR, INTID_TIMER_PHYSICAL, INTID_TIMER_SECURE,
    INTID_TIMER_VIRTUAL,
};

const PHANDLE_GIC: u32 = 1;
const PHANDLE_ITS: u32 = 2;
const PHANDLE_CLOCK: u32 = 3;
const PHANDLE_CPUS: u32 = 16;

const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const LEVEL: u32 = 4;

/// Of the clock that PL011 and PL031 want to see; neither model depends on it.
const CLOCK_HZ: u32 = 24_000_000;

/// What the device tree says.
#[derive(Clone, Copy, Debug)]
pub struct MachineTree<'a> {
    /// What the kernel is told of its start.
    pub chosen: Chosen<'a>,
    /// CPUs that run at boot; the first is the boot CPU.
    pub cpus: &'a [Cpu],
    /// Whether the CPUs have performance monitors.
    pub pmu: bool,
    /// RAM.
    pub ram: &'a [Ram],
    /// How far NUMA nodes are apart, for every ordered pair of nodes, ascending by `from` and then
    /// by `to`; empty without NUMA.
    pub distances: &'a [Distance],
    /// Interrupt controller.
    pub gic: Gic,
    /// PL011 serial port.
    pub serial: Option<Peripheral>,
    /// PL031 real-time clock.
    pub rtc: Peripheral,
}

/// GICv3 with one ITS.
#[derive(Clone, Copy, Debug)]
pub struct Gic {
    /// Distributor.
    pub distributor: GpaRange,
    /// Redistributors of all CPUs.
    pub redistributors: GpaRange,
    /// Interrupt translation service.
    pub its: GpaRange,
}

/// A device with registers and one level-triggered interrupt.
#[derive(Clone, Copy, Debug)]
pub struct Peripheral {
    /// Its registers.
    pub registers: GpaRange,
    /// INTID of its interrupt, 32 to 1019.
    pub intid: u32,
}

/// Builds the device tree of a guest without ACPI.
///
/// # Errors
///
/// The command line is too long or holds a NUL, an INTID is not a device's, or there are so many
/// CPUs that the blob exceeds what Linux takes.
pub fn machine_tree(tree: &MachineTree<'_>) -> Result<Vec<u8>, FdtError> {
    let MachineTree {
        chosen,
        cpus,
        pmu,
        ram,
        distances,
        gic,
        serial,
        rtc,
    } = tree;
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "linux,dummy-virt")?;

    let node = fdt.begin_node("chosen")?;
    write_chosen(&mut fdt, chosen)?;
    if let Some(serial) = serial {
        let path = format!("/{}", node_name("serial", serial.registers));
        fdt.property_string("stdout-path", &path)?;
    }
    fdt.end_node(node)?;

    memory::write(&mut fdt, ram)?;
    memory::write_distances(&mut fdt, distances)?;
    cpus::write(&mut fdt, cpus, PHANDLE_CPUS)?;
    write_psci(&mut fdt)?;
    write_timer(&mut fdt)?;
    if *pmu {
        write_pmu(&mut fdt)?;
    }
    write_gic(&mut fdt, gic)?;
    write_clock(&mut fdt)?;
    if let Some(serial) = serial {
        write_serial(&mut fdt, serial)?;
    }
    write_rtc(&mut fdt, rtc)?;
    fdt.end_node(root)?;
    finish(fdt)
}

pub(super) fn node_name(kind: &str, registers: GpaRange) -> String {
    format!("{kind}@{:x}", registers.start)
}

fn write_psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    strings(fdt, "compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn write_timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    // KVM runs the timers whatever the guest's CPU does.
    fdt.property_null("always-on")?;
    let order = [
        INTID_TIMER_SECURE,
        INTID_TIMER_PHYSICAL,
        INTID_TIMER_VIRTUAL,
        INTID_TIMER_HYPERVISOR,
    ];
    fdt.property_array_u32("interrupts", order.map(private).as_flattened())?;
    fdt.end_node(node)
}

fn write_pmu(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("pmu")?;
    fdt.property_string("compatible", "arm,armv8-pmuv3")?;
    fdt.property_array_u32("interrupts", &private(INTID_PMU))?;
    fdt.end_node(node)
}

fn write_gic(fdt: &mut FdtWriter, gic: &Gic) -> Result<(), Error> {
    let Gic {
        distributor,
        redistributors,
        its,
    } = *gic;
    let node = fdt.begin_node(&node_name("interrupt-controller", distributor))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let registers = [distributor, redistributors].map(|range| [range.start, range.size]);
    fdt.property_array_u64("reg", registers.as_flattened())?;
    fdt.property_array_u32("interrupts", &private(INTID_MAINTENANCE))?;
    fdt.property_phandle(PHANDLE_GIC)?;

    let child = fdt.begin_node(&node_name("msi-controller", its))?;
    fdt.property_string("compatible", "arm,gic-v3-its")?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 1)?;
    fdt.property_array_u64("reg", &[its.start, its.size])?;
    fdt.property_phandle(PHANDLE_ITS)?;
    fdt.end_node(child)?;
    fdt.end_node(node)
}

fn write_clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(node)
}

fn write_serial(fdt: &mut FdtWriter, serial: &Peripheral) -> Result<(), FdtError> {
    let node = fdt.begin_node(&node_name("serial", serial.registers))?;
    write_primecell(fdt, "arm,pl011", serial)?;
    fdt.property_array_u32("clocks", &[PHANDLE_CLOCK, PHANDLE_CLOCK])?;
    strings(fdt, "clock-names", &["uartclk", "apb_pclk"])?;
    Ok(fdt.end_node(node)?)
}

fn write_rtc(fdt: &mut FdtWriter, rtc: &Peripheral) -> Result<(), FdtError> {
    let node = fdt.begin_node(&node_name("rtc", rtc.registers))?;
    write_primecell(fdt, "arm,pl031", rtc)?;
    fdt.property_u32("clocks", PHANDLE_CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    Ok(fdt.end_node(node)?)
}

/// Writes what the two PrimeCell devices have in common.
fn write_primecell(fdt: &mut FdtWriter, name: &str, device: &Peripheral) -> Result<(), FdtError> {
    let GpaRange { start, size } = device.registers;
    strings(fdt, "compatible", &[name, "arm,primecell"])?;
    fdt.property_array_u64("reg", &[start, size])?;
    fdt.property_array_u32("interrupts", &shared(device.intid)?)?;
    Ok(())
}

fn strings(fdt: &mut FdtWriter, name: &str, values: &[&str]) -> Result<(), Error> {
    let values = values.iter().map(|&value| value.to_owned()).collect();
    fdt.property_string_list(name, values)
}

/// Interrupt specifier of a level-triggered private interrupt, INTID 16 to 31.
const fn private(intid: u32) -> [u32; 3] {
    [PRIVATE, intid - 16, LEVEL]
}

/// Interrupt specifier of a level-triggered shared interrupt.
fn shared(intid: u32) -> Result<[u32; 3], FdtError> {
    match intid {
        32..=1019 => Ok([SHARED, intid - 32, LEVEL]),
        _ => Err(FdtError::NotShared(intid)),
    }
}
