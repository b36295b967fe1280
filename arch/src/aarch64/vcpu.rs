//! vCPUs on KVM: features and state at entry.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE,
    KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_device_attr, kvm_regs,
    kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::errno;

use super::layout::INTID_PMU;

/// PSTATE at entry: EL1 with its own stack pointer (EL1h), debug exceptions, SErrors, IRQs and FIQs
/// masked (Arm ARM, SPSR_EL1; Documentation/arch/arm64/booting.rst, "CPU mode").
const PSTATE_AT_ENTRY: u64 = 0b0101 | 0b1111 << 6;

const X0: u64 = core_register(offset_of!(user_pt_regs, regs));
const PC: u64 = core_register(offset_of!(user_pt_regs, pc));
const PSTATE: u64 = core_register(offset_of!(user_pt_regs, pstate));

// The numbers of Documentation/virt/kvm/api.rst, section 4.68, KVM_SET_ONE_REG.
const _: () = assert!(X0 == 0x6030_0000_0010_0000);
const _: () = assert!(PC == 0x6030_0000_0010_0040);
const _: () = assert!(PSTATE == 0x6030_0000_0010_0042);

/// KVM's id of the virtual counter, by op0, op1, CRn, CRm and op2. The last three are those of CNTV_CVAL_EL0: KVM
/// has the two the wrong way round, for ever (Linux, arch/arm64/include/uapi/asm/kvm.h,
/// KVM_REG_ARM_TIMER_CNT).
const VIRTUAL_COUNTER: u64 = KVM_REG_ARM64
    | KVM_REG_SIZE_U64
    | KVM_REG_ARM64_SYSREG as u64
    | 3 << 14
    | 3 << 11
    | 14 << 7
    | 3 << 3
    | 2;

const _: () = assert!(VIRTUAL_COUNTER == 0x6030_0000_0013_df1a);

/// KVM's id of the 64-bit core register at this byte offset in `user_pt_regs`.
const fn core_register(offset: usize) -> u64 {
    let word = (offset_of!(kvm_regs, regs) + offset) / size_of::<u32>();
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | word as u64
}

/// A request to KVM that failed.
#[derive(Debug, Error)]
#[error("cannot {action}")]
pub struct VcpuError {
    action: &'static str,
    source: errno::Error,
}

fn failed(action: &'static str) -> impl FnOnce(errno::Error) -> VcpuError {
    move |source| VcpuError { action, source }
}

/// What every vCPU of a virtual machine is: the host's CPU with PSCI, and with vector extension,
/// pointer authentication and performance monitors where KVM offers them.
///
/// For each vCPU: [`init`](Self::init), [`finalize`](Self::finalize), then, once the vGIC is
/// initialised, [`init_pmu`](Self::init_pmu). To reset one, `init` alone.
#[derive(Clone, Copy, Debug)]
pub struct VcpuModel {
    init: kvm_vcpu_init,
}

impl VcpuModel {
    /// The model that the host's KVM prefers.
    ///
    /// # Errors
    ///
    /// KVM knows no CPU model for this host.
    pub fn new(vm: &VmFd) -> Result<Self, VcpuError> {
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)
            .map_err(failed("find the host's CPU model"))?;
        let mut model = Self { init };
        model.enable(KVM_ARM_VCPU_PSCI_0_2);
        if vm.check_extension(Cap::ArmSve) {
            model.enable(KVM_ARM_VCPU_SVE);
        }
        // KVM takes both kinds of keys or neither.
        if vm.check_extension(Cap::ArmPtrAuthAddress) && vm.check_extension(Cap::ArmPtrAuthGeneric)
        {
            model.enable(KVM_ARM_VCPU_PTRAUTH_ADDRESS);
            model.enable(KVM_ARM_VCPU_PTRAUTH_GENERIC);
        }
        if vm.check_extension(Cap::ArmPmuV3) {
            model.enable(KVM_ARM_VCPU_PMU_V3);
        }
        Ok(model)
    }

    fn enable(&mut self, feature: u32) {
        self.init.features[0] |= 1 << feature;
    }

    fn has(&self, feature: u32) -> bool {
        self.init.features[0] & 1 << feature != 0
    }

    /// Whether the vCPUs have performance monitors.
    pub fn has_pmu(&self) -> bool {
        self.has(KVM_ARM_VCPU_PMU_V3)
    }

    /// Brings a vCPU to its reset state; a `powered_off` one waits for PSCI CPU_ON.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn init(&self, vcpu: &VcpuFd, powered_off: bool) -> Result<(), VcpuError> {
        let mut model = *self;
        if powered_off {
            model.enable(KVM_ARM_VCPU_POWER_OFF);
        }
        vcpu.vcpu_init(&model.init)
            .map_err(failed("initialise the vCPU"))
    }

    /// Fixes the vector lengths of a newly initialised vCPU; once in its life.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn finalize(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        if !self.has(KVM_ARM_VCPU_SVE) {
            return Ok(());
        }
        vcpu.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32))
            .map_err(failed("finalize the vector extension"))
    }

    /// Starts the performance monitors of a vCPU; once in its life, with the vGIC initialised.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn init_pmu(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        if !self.has_pmu() {
            return Ok(());
        }
        // KVM reads the number through the attribute's address.
        let intid = INTID_PMU;
        let attribute = |attr: u32, addr: u64| kvm_device_attr {
            group: KVM_ARM_VCPU_PMU_V3_CTRL,
            attr: attr.into(),
            addr,
            flags: 0,
        };
        vcpu.set_device_attr(&attribute(KVM_ARM_VCPU_PMU_V3_IRQ, &raw const intid as u64))
            .map_err(failed("set the performance monitors' interrupt"))?;
        vcpu.set_device_attr(&attribute(KVM_ARM_VCPU_PMU_V3_INIT, 0))
            .map_err(failed("initialise the performance monitors"))
    }
}

/// Sets an initialised boot vCPU to enter a kernel at `entry`, with its device tree at `fdt`.
///
/// # Errors
///
/// KVM refuses.
pub fn set_boot_registers(vcpu: &VcpuFd, entry: u64, fdt: u64) -> Result<(), VcpuError> {
    // X1 to X3 must be 0: they are, after initialisation.
    for (register, value) in [(PC, entry), (X0, fdt), (PSTATE, PSTATE_AT_ENTRY)] {
        vcpu.set_one_reg(register, &value.to_le_bytes())
            .map_err(failed("set the boot vCPU's registers"))?;
    }
    Ok(())
}

/// The guest's virtual counter.
///
/// # Errors
///
/// KVM refuses.
pub fn virtual_counter(vcpu: &VcpuFd) -> Result<u64, VcpuError> {
    let mut value = [0; 8];
    vcpu.get_one_reg(VIRTUAL_COUNTER, &mut value)
        .map_err(failed("read the virtual counter"))?;
    Ok(u64::from_le_bytes(value))
}

/// Makes the guest's virtual counter go on from `value`, on all of its vCPUs: what KVM keeps is one
/// offset for the virtual machine (Linux, arch/arm64/kvm/arch_timer.c).
///
/// # Errors
///
/// KVM refuses.
pub fn set_virtual_counter(vcpu: &VcpuFd, value: u64) -> Result<(), VcpuError> {
    vcpu.set_one_reg(VIRTUAL_COUNTER, &value.to_le_bytes())
        .map_err(failed("set the virtual counter"))?;
    Ok(())
}
