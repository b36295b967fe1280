//! What is said about a vCPU that cannot run further: the reason and its registers.
#![expect(unsafe_code, reason = "reads kvm_run's exit union")]

use std::fmt;
use std::io;

#[cfg(target_arch = "aarch64")]
use arch::aarch64::vcpu::VcpuError;
#[cfg(target_arch = "x86_64")]
use arch::x86_64::vcpu::VcpuError;
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;

/// Why a vCPU cannot run further.
#[derive(Debug, Error)]
pub enum FailureReason {
    /// `KVM_RUN` itself failed.
    #[error("KVM_RUN failed")]
    Run(#[source] io::Error),
    /// The thread could not be bound to its host CPUs.
    #[error("--cpus affinity: cannot bind the vCPU's thread")]
    Affinity(#[source] io::Error),
    /// The host's kernel can keep other threads from the vCPU's core, and did not.
    #[error("--cpus core_scheduling: cannot keep other threads from the vCPU's core")]
    CoreScheduling(#[source] io::Error),
    /// The vCPU could not be given its initial state.
    #[error("cannot set up the vCPU")]
    Setup(#[from] VcpuError),
    /// KVM could not enter the guest.
    #[error("KVM could not enter the guest: hardware reason {reason:#x} on host CPU {cpu}")]
    FailEntry {
        /// The hardware's reason; its meaning depends on the host CPU.
        reason: u64,
        /// Host CPU.
        cpu: u32,
    },
    /// KVM gave up, most often at an instruction it cannot emulate.
    #[error("KVM internal error")]
    InternalError,
    /// A fault while delivering a double fault, on x86.
    #[error("triple fault")]
    TripleFault,
    /// The guest reports that it crashed, or an event that we do not know.
    #[error("system event {kind} with data {data:#x?}")]
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*`.
        kind: u32,
        /// Values that came with it.
        data: Vec<u64>,
    },
    /// The guest accessed memory in a way that KVM cannot resolve.
    #[error("memory fault at guest address {gpa:#x}, {size:#x} bytes, flags {flags:#x}")]
    MemoryFault {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
    },
    /// An exit that this VMM never asks for.
    #[error("unexpected exit {0}")]
    Unexpected(String),
    /// A fault in the VMM.
    #[error("the vCPU's thread panicked")]
    Panicked,
}

impl FailureReason {
    /// The reason that an exit which cannot be handled stands for.
    pub fn of_exit(exit: &VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::Shutdown => Self::TripleFault,
            VcpuExit::InternalError => Self::InternalError,
            VcpuExit::FailEntry(reason, cpu) => Self::FailEntry {
                reason: *reason,
                cpu: *cpu,
            },
            VcpuExit::MemoryFault { flags, gpa, size } => Self::MemoryFault {
                gpa: *gpa,
                size: *size,
                flags: *flags,
            },
            other => Self::Unexpected(format!("{other:?}")),
        }
    }
}

/// A vCPU that cannot run further.
#[derive(Debug, Error)]
pub struct VcpuFailure {
    /// The vCPU's index.
    pub index: u32,
    /// Why.
    #[source]
    pub reason: FailureReason,
    /// What KVM adds to an internal error, or why the registers are of no use.
    pub detail: Option<String>,
    /// Registers by name, as far as KVM gives them.
    pub registers: Vec<(String, u64)>,
}

impl fmt::Display for VcpuFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {} cannot run further", self.index)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        for (position, (name, value)) in self.registers.iter().enumerate() {
            let separator = if position % 4 == 0 { "\n  " } else { "  " };
            write!(f, "{separator}{name:>6} {value:#018x}")?;
        }
        Ok(())
    }
}

impl VcpuFailure {
    /// Which vCPU and why, without registers: what may be told to anybody.
    pub fn summary(&self) -> String {
        format!("vCPU {}: {}", self.index, self.reason)
    }

    /// Adds what KVM can still tell of the vCPU to the reason.
    pub fn collect(index: u32, reason: FailureReason, vcpu: &mut VcpuFd) -> Self {
        let registers = registers(vcpu);
        let detail = match reason {
            FailureReason::InternalError => Some(internal_error_detail(vcpu)),
            FailureReason::TripleFault if at_reset_vector(&registers) => {
                Some("KVM has reset it: its registers are lost".to_owned())
            }
            _ => None,
        };
        Self {
            index,
            reason,
            detail,
            registers,
        }
    }
}

/// The suberror and the values that KVM attaches to an internal error
/// (Linux, Documentation/virt/kvm/api.rst, section 5, "KVM_EXIT_INTERNAL_ERROR").
fn internal_error_detail(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, so the kernel filled in this member.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let meaning = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions while delivering an exception",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while delivering an event",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an unexpected exit reason",
        _ => "unknown",
    };
    let count = (internal.ndata as usize).min(internal.data.len());
    let data = internal.data.iter().take(count);
    let data: Vec<String> = data.map(|value| format!("{value:#x}")).collect();
    format!(
        "suberror {}: {meaning}; data [{}]",
        internal.suberror,
        data.join(", ")
    )
}

/// Whether these are the registers of an x86 processor after INIT. On AMD hosts a triple fault leaves
/// the vCPU's state undefined, and KVM resets it before anybody can look.
fn at_reset_vector(registers: &[(String, u64)]) -> bool {
    let is = |wanted: &str, value| {
        registers
            .iter()
            .any(|(name, v)| name == wanted && *v == value)
    };
    is("rip", 0xfff0) && is("cs", 0xffff_0000)
}

#[cfg(target_arch = "x86_64")]
fn registers(vcpu: &VcpuFd) -> Vec<(String, u64)> {
    let mut list = Vec::new();
    if let Ok(r) = vcpu.get_regs() {
        list.extend([
            ("rip", r.rip),
            ("rflags", r.rflags),
            ("rsp", r.rsp),
            ("rbp", r.rbp),
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
        ]);
    }
    if let Ok(s) = vcpu.get_sregs() {
        list.extend([
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("efer", s.efer),
            ("cs", s.cs.base),
            ("ss", s.ss.base),
            ("gdt", s.gdt.base),
            ("idt", s.idt.base),
        ]);
    }
    let named = list.into_iter();
    named
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(target_arch = "aarch64")]
fn registers(vcpu: &VcpuFd) -> Vec<(String, u64)> {
    use kvm_bindings::{KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64};

    let id = |kind: u32, number: u64| KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(kind) | number;
    // Core registers are numbered by their offset in struct kvm_regs, in words of 32 bits: x0 to
    // x30, sp, pc, pstate, sp_el1, elr_el1.
    let core = |name: String, index: u64| (name, id(KVM_REG_ARM_CORE, index * 2));
    let general = (0..31).map(|number| core(format!("x{number}"), number));
    let special = ["sp", "pc", "pstate", "sp_el1", "elr_el1"];
    let special = (31..).zip(special);
    let special = special.map(|(index, name)| core(name.to_owned(), index));
    // System registers are numbered by op0, op1, CRn, CRm and op2 (Arm ARM, D19.2).
    let system = |name: &str, crn: u64, crm: u64, op2: u64| {
        let number = 3 << 14 | crn << 7 | crm << 3 | op2;
        (name.to_owned(), id(KVM_REG_ARM64_SYSREG, number))
    };
    let system = [
        system("sctlr", 1, 0, 0),
        system("ttbr0", 2, 0, 0),
        system("ttbr1", 2, 0, 1),
        system("tcr", 2, 0, 2),
        system("esr", 5, 2, 0),
        system("far", 6, 0, 0),
        system("vbar", 12, 0, 0),
    ];
    let read = |(name, id): (String, u64)| {
        let mut bytes = [0; 8];
        let length = vcpu.get_one_reg(id, &mut bytes).ok()?;
        (length == bytes.len()).then(|| (name, u64::from_le_bytes(bytes)))
    };
    special
        .chain(general)
        .chain(system)
        .filter_map(read)
        .collect()
}
