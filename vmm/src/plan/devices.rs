//! Interrupt controllers and devices at fixed addresses.

use arch::{Isa, aarch64, x86_64};

use super::{
    CpuPlan, EventDevicePlan, InterruptPlan, PlanError, PlatformDevices, Registers, SerialPlan,
    SleepPlan,
};
use crate::config::{ConsoleMode, VmConfig};

pub(super) fn interrupts(isa: Isa, cpus: &CpuPlan) -> InterruptPlan {
    match isa {
        Isa::X86_64 => InterruptPlan::Apic {
            local_apic: x86_64::layout::LOCAL_APIC_BASE,
            io_apic: x86_64::layout::IO_APIC_BASE,
            io_apic_id: 0,
        },
        Isa::Aarch64 => {
            use aarch64::layout::{GIC_DISTRIBUTOR, GIC_ITS, gic_redistributors};
            InterruptPlan::GicV3 {
                distributor: GIC_DISTRIBUTOR,
                redistributors: gic_redistributors(cpus.cpus.len() as u32),
                its: GIC_ITS,
            }
        }
    }
}

pub(super) fn plan(config: &VmConfig, isa: Isa) -> Result<PlatformDevices, PlanError> {
    let serial = config.serial.mode != ConsoleMode::Off;
    let acpi = config.platform.acpi;
    match isa {
        Isa::X86_64 => x86_64_devices(config, serial),
        Isa::Aarch64 => Ok(aarch64_devices(serial, acpi)),
    }
}

fn x86_64_devices(config: &VmConfig, serial: bool) -> Result<PlatformDevices, PlanError> {
    use x86_64::layout::*;
    let ports = |base, size| Registers::Pio { base, size };
    let debug_console = match config.debug_console.mode {
        ConsoleMode::Off => None,
        _ => Some(free_port(config.debug_console.iobase)?),
    };
    Ok(PlatformDevices {
        serial: serial.then_some(SerialPlan {
            registers: ports(SERIAL_PORT, SERIAL_PORTS),
            gsi: SERIAL_GSI,
        }),
        rtc: ports(CMOS_PORT, CMOS_PORTS),
        events: Some(EventDevicePlan {
            registers: ports(GED_PORT, 1),
            gsi: GED_GSI,
        }),
        sleep: Some(SleepPlan { base: SLEEP_PORT }),
        debug_console,
    })
}

/// `port`, unless a device of the machine has it already.
fn free_port(port: u16) -> Result<u16, PlanError> {
    use x86_64::layout::*;
    let taken = [
        (NMI_STATUS_PORT, 1, "the NMI status register"),
        (I8042_COMMAND_PORT, 1, "the keyboard controller"),
        (CMOS_PORT, CMOS_PORTS, "the real-time clock"),
        (SERIAL_PORT, SERIAL_PORTS, "the serial port"),
        (SLEEP_PORT, SLEEP_PORTS, "the ACPI sleep registers"),
        (GED_PORT, 1, "the ACPI event device"),
        (0xcf8, 8, "PCI configuration space"),
        (
            PCI_PORTS_START,
            PCI_PORTS_SIZE,
            "the I/O BARs of PCI devices",
        ),
    ];
    // The last range ends with the last port, so its end is no port.
    let holds = |base: u16, size| port.checked_sub(base).is_some_and(|offset| offset < size);
    let owner = taken
        .into_iter()
        .find(|(base, size, _)| holds(*base, *size));
    match owner {
        Some((_, _, owner)) => Err(PlanError::PortTaken { port, owner }),
        None => Ok(port),
    }
}

fn aarch64_devices(serial: bool, acpi: bool) -> PlatformDevices {
    use aarch64::layout::{EVENTS, INTID_EVENTS, INTID_SERIAL, RTC, SERIAL};
    PlatformDevices {
        serial: serial.then_some(SerialPlan {
            registers: Registers::Mmio(SERIAL),
            gsi: INTID_SERIAL,
        }),
        rtc: Registers::Mmio(RTC),
        events: acpi.then_some(EventDevicePlan {
            registers: Registers::Mmio(EVENTS),
            gsi: INTID_EVENTS,
        }),
        sleep: None,
        debug_console: None,
    }
}
