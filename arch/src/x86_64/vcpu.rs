//! State that a vCPU starts with, beyond what KVM's reset gives it: there is no firmware that
//! would set it up.

use kvm_bindings::{
    CpuId, Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use zerocopy::IntoBytes;

use super::boot::gdt::{self, Descriptor};
use super::boot::{Entry, Protocol};
use super::topology::LAST_XAPIC_ID;

/// KVM refused a part of a vCPU's state.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// CPUID.
    #[error("cannot set CPUID")]
    Cpuid(#[source] kvm_ioctls::Error),
    /// Model-specific registers.
    #[error("cannot read or write model-specific registers")]
    Msrs(#[source] kvm_ioctls::Error),
    /// One model-specific register.
    #[error("KVM refuses model-specific register {0:#x}")]
    Msr(u32),
    /// The floating-point unit.
    #[error("cannot set the state of the floating-point unit")]
    Fpu(#[source] kvm_ioctls::Error),
    /// The local APIC.
    #[error("cannot read or write the local APIC")]
    LocalApic(#[source] kvm_ioctls::Error),
    /// General registers.
    #[error("cannot set the general registers")]
    Registers(#[source] kvm_ioctls::Error),
    /// Segment and control registers.
    #[error("cannot read or write the segment and control registers")]
    SystemRegisters(#[source] kvm_ioctls::Error),
}

/// Sets up what every vCPU needs, the boot vCPU as well as those that wait for it to start them:
/// CPUID, the MSRs that an INIT leaves alone, and the local APIC's mode, which is one of them.
///
/// # Errors
/// Any [`VcpuError`].
pub fn setup_vcpu(vcpu: &VcpuFd, cpuid: &CpuId, mode: ApicMode) -> Result<(), VcpuError> {
    vcpu.set_cpuid2(cpuid).map_err(VcpuError::Cpuid)?;
    setup_msrs(vcpu)?;
    match mode {
        ApicMode::Xapic => Ok(()),
        ApicMode::X2apic => enable_x2apic(vcpu),
    }
}

/// Mode in which local APICs are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Registers in memory, 8-bit ids: the mode after a reset.
    Xapic,
    /// Registers are MSRs, 32-bit ids. Operating systems disregard CPUs with ids above
    /// [`LAST_XAPIC_ID`] unless firmware hands over in this mode (Intel SDM, volume 3,
    /// section 11.12.8.1).
    X2apic,
}

impl ApicMode {
    /// The mode that a machine with these APIC ids needs.
    pub fn for_ids(mut ids: impl Iterator<Item = u64>) -> Self {
        if ids.any(|id| id > LAST_XAPIC_ID.into()) {
            Self::X2apic
        } else {
            Self::Xapic
        }
    }
}

/// IA32_APIC_BASE.EXTD (Intel SDM, volume 3, section 11.12.1).
const APIC_BASE_X2APIC: u64 = 1 << 10;

fn enable_x2apic(vcpu: &VcpuFd) -> Result<(), VcpuError> {
    let mut sregs = vcpu.get_sregs().map_err(VcpuError::SystemRegisters)?;
    sregs.apic_base |= APIC_BASE_X2APIC;
    vcpu.set_sregs(&sregs).map_err(VcpuError::SystemRegisters)
}

/// Sets what the boot vCPU enters the kernel with: registers, FPU and local interrupts.
///
/// # Errors
/// Any [`VcpuError`].
pub fn setup_boot_vcpu(vcpu: &VcpuFd, entry: &Entry) -> Result<(), VcpuError> {
    let mut sregs = vcpu.get_sregs().map_err(VcpuError::SystemRegisters)?;
    set_protected_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(VcpuError::SystemRegisters)?;
    vcpu.set_regs(&entry_regs(entry))
        .map_err(VcpuError::Registers)?;
    vcpu.set_fpu(&fpu()).map_err(VcpuError::Fpu)?;
    let mut lapic = vcpu.get_lapic().map_err(VcpuError::LocalApic)?;
    set_local_interrupts(&mut lapic);
    vcpu.set_lapic(&lapic).map_err(VcpuError::LocalApic)
}

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, fixed ranges off, and all memory write-back: page tables and PAT do the rest.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the MSRs that firmware would set on every processor (Intel SDM, volume 4, table 2-2).
fn setup_msrs(vcpu: &VcpuFd) -> Result<(), VcpuError> {
    const INDEXES: [u32; 2] = [MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE];
    // A count short of all means that KVM refused the next one.
    let check = |count: usize| {
        INDEXES
            .get(count)
            .map_or(Ok(()), |&msr| Err(VcpuError::Msr(msr)))
    };

    let mut msrs = Msrs::from_entries(&INDEXES.map(|index| kvm_msr_entry {
        index,
        ..Default::default()
    }))
    .map_err(|_| VcpuError::Msr(MSR_MISC_ENABLE))?;
    check(vcpu.get_msrs(&mut msrs).map_err(VcpuError::Msrs)?)?;
    msrs.as_mut_slice().iter_mut().for_each(set_msr);
    check(vcpu.set_msrs(&msrs).map_err(VcpuError::Msrs)?)
}

/// Changes what KVM's reset has put into an MSR.
fn set_msr(msr: &mut kvm_msr_entry) {
    match msr.index {
        // KVM keeps bits there that tell what its performance counters lack.
        MSR_MISC_ENABLE => msr.data |= MISC_ENABLE_FAST_STRINGS,
        MSR_MTRR_DEF_TYPE => msr.data = MTRR_ENABLED_WRITE_BACK,
        _ => {}
    }
}

/// The state of `FNINIT`, and SSE with all exceptions masked (Intel SDM, volume 1, sections 8.1.5
/// and 10.2.3).
fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// Offsets of local vector table entries, and values (Intel SDM, volume 3, "Local Vector Table").
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 4 << 8;

/// LINT0, where a PIC would be wired, is masked: there is none. LINT1 is the NMI. The other vCPUs
/// need neither: what starts them is an INIT, which masks both.
fn set_local_interrupts(lapic: &mut kvm_lapic_state) {
    let registers = lapic.regs.as_mut_bytes();
    for (offset, value) in [(LVT_LINT0, LVT_MASKED), (LVT_LINT1, LVT_NMI)] {
        registers[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// CR0: protected mode, and the bit that is always one.
const CR0_PE_ET: u64 = 1 | 1 << 4;

/// 32-bit protected mode with flat segments and paging off, as both boot protocols want it.
fn set_protected_mode(sregs: &mut kvm_sregs) {
    let data = segment(gdt::DATA_SELECTOR, gdt::DATA);
    sregs.cs = segment(gdt::CODE_SELECTOR, gdt::CODE);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(gdt::TSS_SELECTOR, gdt::TSS);
    sregs.gdt.base = gdt::BASE;
    sregs.gdt.limit = gdt::LIMIT;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE_ET;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// The hidden part of a segment register, as loading `selector` would fill it.
fn segment(selector: u16, descriptor: Descriptor) -> kvm_segment {
    kvm_segment {
        base: descriptor.base().into(),
        limit: descriptor.limit(),
        selector,
        type_: descriptor.kind(),
        present: descriptor.present(),
        dpl: descriptor.dpl(),
        db: descriptor.db(),
        s: descriptor.s(),
        l: 0,
        g: descriptor.granularity(),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// General registers: the handed-over structure in EBX (PVH) or ESI (Linux), interrupts off, and
/// zero otherwise, which the Linux protocol demands of EBX, EBP and EDI.
fn entry_regs(entry: &Entry) -> kvm_regs {
    // Bit 1 of RFLAGS is always one.
    let regs = kvm_regs {
        rip: entry.rip,
        rflags: 2,
        ..Default::default()
    };
    match entry.protocol {
        Protocol::Pvh => kvm_regs {
            rbx: entry.info,
            ..regs
        },
        Protocol::Linux32 => kvm_regs {
            rsi: entry.info,
            ..regs
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_hands_over_in_its_register() {
        let entry = Entry {
            protocol: Protocol::Pvh,
            rip: 0x100_0000,
            info: 0x3000,
        };
        let regs = entry_regs(&entry);
        assert_eq!((regs.rip, regs.rflags), (0x100_0000, 2));
        assert_eq!((regs.rbx, regs.rsi), (0x3000, 0));
        let regs = entry_regs(&Entry {
            protocol: Protocol::Linux32,
            ..entry
        });
        assert_eq!((regs.rbx, regs.rsi, regs.rbp, regs.rdi), (0, 0x3000, 0, 0));
    }

    #[test]
    fn long_mode_and_paging_are_left() {
        let apic_base = 0xfee0_0900;
        let mut sregs = kvm_sregs {
            cr0: 0x8005_0033,
            cr3: 0x1000,
            cr4: 0x20,
            efer: 0x500,
            apic_base,
            ..Default::default()
        };
        set_protected_mode(&mut sregs);
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
            (0x11, 0, 0, 0)
        );
        assert_eq!(sregs.apic_base, apic_base);
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x1000, 0x27));
        assert_eq!(
            (sregs.cs.selector, sregs.cs.type_, sregs.cs.s),
            (0x10, 0xb, 1)
        );
        assert_eq!(
            (sregs.tr.limit, sregs.tr.type_, sregs.tr.s, sregs.tr.present),
            (0x67, 0xb, 0, 1)
        );
        for data in [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] {
            assert_eq!((data.base, data.limit, data.selector), (0, u32::MAX, 0x18));
            assert_eq!(
                (data.type_, data.present, data.db, data.g, data.l),
                (3, 1, 1, 1, 0)
            );
        }
    }

    #[test]
    fn msrs_get_the_values_of_firmware() {
        let after = |index, data| {
            let mut msr = kvm_msr_entry {
                index,
                data,
                ..Default::default()
            };
            set_msr(&mut msr);
            msr.data
        };
        assert_eq!(after(0x1a0, 0x1800), 0x1801);
        assert_eq!(after(0x2ff, 0), 0x806);
    }

    #[test]
    fn local_interrupts_are_masked_pic_and_nmi() {
        let mut lapic = kvm_lapic_state { regs: [-1; 1024] };
        set_local_interrupts(&mut lapic);
        let bytes = lapic.regs.as_bytes();
        assert_eq!(bytes[0x350..0x354], [0, 0, 1, 0]);
        assert_eq!(bytes[0x360..0x364], [0, 4, 0, 0]);
        assert_eq!(bytes.iter().filter(|&&byte| byte != 0xff).count(), 8);
    }
}
