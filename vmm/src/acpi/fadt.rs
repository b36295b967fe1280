//! Fixed ACPI Description Table (ACPI 6.5, section 5.2.9) of a hardware-reduced machine.

use devices::acpi::sleep;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::table::{GenericAddress, HEADER_SIZE, Table, TableBuilder};
use crate::plan::{Isa, PlatformDevices, Registers, SleepPlan};

/// Revision 6.5: from 6.3 on Linux takes the MADT's online-capable flag for what it says, and 6.5
/// is the specification that the MADT's GICC layout comes from.
const REVISION: u8 = 6;
/// Minor part of [`REVISION`].
const MINOR_REVISION: u8 = 5;

/// Whose paravirtual interfaces the guest finds: KVM's, as in its CPUID signature.
const HYPERVISOR_VENDOR: [u8; 8] = *b"KVM\0\0\0\0\0";

/// Preferred power management profile 4: enterprise server.
const PROFILE_SERVER: u8 = 4;

/// Fixed feature flags (section 5.2.9).
mod flags {
    /// WBINVD works; required of every x86 machine.
    pub(super) const WBINVD: u32 = 1 << 0;
    /// All processors have the C1 state.
    pub(super) const PROC_C1: u32 = 1 << 2;
    /// No fixed-hardware power button: it is a device of the namespace.
    pub(super) const PWR_BUTTON: u32 = 1 << 4;
    /// No fixed-hardware sleep button.
    pub(super) const SLP_BUTTON: u32 = 1 << 5;
    /// The RTC wakes nothing through fixed hardware.
    pub(super) const FIX_RTC: u32 = 1 << 6;
    /// The reset register exists.
    pub(super) const RESET_REG_SUP: u32 = 1 << 10;
    /// There is no fixed hardware at all.
    pub(super) const HW_REDUCED_ACPI: u32 = 1 << 20;
}

/// IA-PC boot architecture flags (section 5.2.9.3). The bit for an 8042 is not among them: what decodes
/// its ports only knows the reset command, and a guest that probed for a keyboard would wait.
mod iapc {
    /// There are devices on the ISA bus: the serial port.
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    /// Do not look for VGA.
    pub(super) const NO_VGA: u16 = 1 << 2;
    /// Do not look for a CMOS RTC.
    pub(super) const NO_CMOS_RTC: u16 = 1 << 5;
}

/// Arm boot architecture flags (section 5.2.9.4): PSCI is there and is called through HVC.
const ARM_PSCI_HVC: u16 = 1 << 0 | 1 << 1;

#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Body {
    firmware_ctrl: U32,
    dsdt: U32,
    reserved_44: u8,
    preferred_pm_profile: u8,
    sci_interrupt: U16,
    /// SMI_CMD up to CENTURY: fixed hardware, ignored on a hardware-reduced machine.
    fixed_hardware: [u8; 61],
    iapc_boot_arch: U16,
    reserved_111: u8,
    flags: U32,
    reset_register: GenericAddress,
    reset_value: u8,
    arm_boot_arch: U16,
    minor_revision: u8,
    x_firmware_ctrl: U64,
    x_dsdt: U64,
    /// X_PM1a_EVT_BLK up to X_GPE1_BLK: fixed hardware.
    x_fixed_hardware: [GenericAddress; 8],
    sleep_control: GenericAddress,
    sleep_status: GenericAddress,
    hypervisor_vendor: [u8; 8],
}

const _: () = {
    assert!(HEADER_SIZE + size_of::<Body>() == SIZE);
    assert!(HEADER_SIZE + std::mem::offset_of!(Body, iapc_boot_arch) == 109);
    assert!(HEADER_SIZE + std::mem::offset_of!(Body, arm_boot_arch) == 129);
    assert!(HEADER_SIZE + std::mem::offset_of!(Body, x_dsdt) == 140);
    assert!(HEADER_SIZE + std::mem::offset_of!(Body, sleep_control) == 244);
};

/// Bytes of the table.
pub(super) const SIZE: usize = 276;

/// The FADT, complete but for the address of the DSDT.
#[derive(Clone)]
pub(super) struct Fadt(Body);

impl Fadt {
    /// The FADT of a machine with these devices.
    pub(super) fn new(isa: Isa, devices: &PlatformDevices) -> Self {
        let mut flags =
            flags::HW_REDUCED_ACPI | flags::PWR_BUTTON | flags::SLP_BUTTON | flags::FIX_RTC;
        let (iapc_boot_arch, arm_boot_arch) = match isa {
            Isa::X86_64 => {
                flags |= flags::WBINVD | flags::PROC_C1;
                (iapc_boot_arch(devices), 0)
            }
            Isa::Aarch64 => (0, ARM_PSCI_HVC),
        };
        let mut body = Body {
            firmware_ctrl: U32::ZERO,
            dsdt: U32::ZERO,
            reserved_44: 0,
            preferred_pm_profile: PROFILE_SERVER,
            sci_interrupt: U16::ZERO,
            fixed_hardware: [0; 61],
            iapc_boot_arch: iapc_boot_arch.into(),
            reserved_111: 0,
            flags: flags.into(),
            reset_register: GenericAddress::NONE,
            reset_value: 0,
            arm_boot_arch: arm_boot_arch.into(),
            minor_revision: MINOR_REVISION,
            x_firmware_ctrl: U64::ZERO,
            x_dsdt: U64::ZERO,
            x_fixed_hardware: [GenericAddress::NONE; 8],
            sleep_control: GenericAddress::NONE,
            sleep_status: GenericAddress::NONE,
            hypervisor_vendor: HYPERVISOR_VENDOR,
        };
        if let Some(SleepPlan { base }) = devices.sleep {
            let register = |offset: u64| GenericAddress::port_u8(base.wrapping_add(offset as u16));
            body.sleep_control = register(sleep::SLEEP_CONTROL);
            body.sleep_status = register(sleep::SLEEP_STATUS);
            body.reset_register = register(sleep::RESET);
            body.reset_value = sleep::RESET_VALUE;
            body.flags |= U32::new(flags::RESET_REG_SUP);
        }
        Self(body)
    }

    /// The table, pointing to the DSDT at `dsdt`. The 32-bit field stays 0: whoever reads this
    /// revision takes the 64-bit one, and two fields could disagree.
    pub(super) fn encode(&self, dsdt: u64) -> Table {
        let mut table = TableBuilder::new(*b"FACP", REVISION);
        table.push(&Body {
            x_dsdt: dsdt.into(),
            ..self.0
        });
        table.finish()
    }
}

fn iapc_boot_arch(devices: &PlatformDevices) -> u16 {
    let mut flags = iapc::NO_VGA;
    if devices.serial.is_some() {
        flags |= iapc::LEGACY_DEVICES;
    }
    if !matches!(devices.rtc, Registers::Pio { .. }) {
        flags |= iapc::NO_CMOS_RTC;
    }
    flags
}
