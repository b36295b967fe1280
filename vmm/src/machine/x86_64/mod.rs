//! x86_64 on KVM: split interrupt controllers, vCPUs numbered by APIC id.

pub mod boot;
mod intx;
mod time;

use std::io;
use std::sync::Arc;

use arch::x86_64::boot::Entry;
use arch::x86_64::cpuid::{CpuidOptions, CpuidPlan};
use arch::x86_64::vcpu::ApicMode;
use arch::x86_64::{layout, vcpu};
use devices::bus::BusDevice;
use devices::ioapic::{IoApic, MsiPort};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_RUNNABLE, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    kvm_enable_cap, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use pci::{Bdf, InterruptLine, MsiMessage, ResampledLine};

use self::intx::IntxLines;
pub use self::time::{GuestTime, after_pause};
use super::gate::Gate;
use super::host::Host;
use super::report::FailureReason;
use super::routes::Routes;
use super::vcpu::Buses;
use super::{MachineError, kvm_error};
use crate::config::VmConfig;
use crate::plan::{Gsi, Plan, PlannedCpu};

/// Interrupt controllers of one machine: local APICs in KVM, the I/O APIC here.
pub struct Interrupts {
    ioapic: Arc<IoApic>,
    routes: Arc<Routes>,
    intx: IntxLines,
}

impl Interrupts {
    /// The line of one global system interrupt.
    pub fn line(&self, gsi: Gsi) -> Result<Arc<dyn InterruptLine>, MachineError> {
        let pin = u8::try_from(gsi).ok();
        pin.and_then(|pin| self.ioapic.line(pin))
            .ok_or(MachineError::ForeignPlan)
    }

    /// The line of one global system interrupt, for a device whose interrupts come from elsewhere.
    pub fn resampled_line(&self, gsi: Gsi) -> io::Result<Arc<dyn ResampledLine>> {
        self.intx.line(gsi)
    }

    /// The routes of all interrupts.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Makes the thread of wired interrupts look at what is asked of it.
    pub fn kick(&self) {
        self.intx.kick();
    }

    /// Makes the I/O APIC reachable from vCPUs.
    pub fn place(&self, buses: &mut Buses) -> Result<(), MachineError> {
        let registers = Arc::clone(&self.ioapic) as Arc<dyn BusDevice>;
        let placed = buses
            .mmio
            .insert(layout::IO_APIC_BASE, layout::IO_APIC_SIZE, registers);
        placed.map_err(|source| MachineError::Place {
            device: "I/O APIC",
            source,
        })?;
        buses.ioapic = Some(Arc::clone(&self.ioapic));
        Ok(())
    }
}

/// Creates the VM with split interrupt controllers and 32-bit APIC ids.
pub fn create_vm(host: &Host, _plan: &Plan) -> Result<Arc<VmFd>, MachineError> {
    let vm = host.kvm.create_vm().map_err(kvm_error("create the VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP_START)
        .map_err(kvm_error("set the identity map address"))?;
    vm.set_tss_address(layout::KVM_TSS_START as usize)
        .map_err(kvm_error("set the TSS address"))?;
    let pins = layout::IO_APIC_PINS.into();
    enable(
        &vm,
        KVM_CAP_SPLIT_IRQCHIP,
        pins,
        "split the interrupt controllers",
    )?;
    let wide = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    enable(&vm, KVM_CAP_X2APIC_API, wide.into(), "use 32-bit APIC ids")?;
    Ok(Arc::new(vm))
}

fn enable(vm: &VmFd, cap: u32, value: u64, what: &'static str) -> Result<(), MachineError> {
    let request = kvm_enable_cap {
        cap,
        args: [value, 0, 0, 0],
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&request).map_err(kvm_error(what))
}

/// Creates the vCPUs that run at boot.
pub fn create_vcpus(vm: &VmFd, plan: &Plan) -> Result<Vec<VcpuFd>, MachineError> {
    let boot = plan.cpus.cpus.iter().take(plan.cpus.boot as usize);
    let create = |planned: &PlannedCpu| {
        vm.create_vcpu(planned.hardware_id)
            .map_err(kvm_error("create a vCPU"))
    };
    boot.map(create).collect()
}

/// Creates the I/O APIC.
pub fn create_interrupts(
    vm: &Arc<VmFd>,
    _plan: &Plan,
    _vcpus: &[VcpuFd],
    gate: &Arc<Gate>,
) -> Result<Interrupts, MachineError> {
    let routes = Arc::new(Routes::new(vm, layout::IO_APIC_PINS));
    let port = KvmMsiPort {
        vm: Arc::clone(vm),
        routes: Arc::clone(&routes),
    };
    let ioapic = Arc::new(IoApic::new(Arc::new(port)));
    let intx = IntxLines::new(&ioapic, gate).map_err(|source| MachineError::Kvm {
        what: "wait for wired interrupts",
        source,
    })?;
    Ok(Interrupts {
        ioapic,
        routes,
        intx,
    })
}

/// What vCPU threads do before their vCPU first runs, made ready for all of them.
pub struct Preparation {
    cpuid: CpuidPlan,
    apic_mode: ApicMode,
    entry: Entry,
}

impl Preparation {
    /// Derives the guest's CPUID from what KVM supports.
    pub fn new(
        host: &Host,
        plan: &Plan,
        config: &VmConfig,
        entry: Entry,
    ) -> Result<Self, MachineError> {
        let options = CpuidOptions {
            topology: plan.cpus.topology,
            phys_bits: plan.cpus.phys_bits,
            nested: config.cpus.nested,
            tsc_deadline: host.kvm.check_extension(Cap::TscDeadlineTimer),
        };
        let cpuid = CpuidPlan::new(&host.cpuid, &options)?;
        let ids = plan.cpus.cpus.iter().map(|cpu| cpu.hardware_id);
        Ok(Self {
            cpuid,
            apic_mode: ApicMode::for_ids(ids),
            entry,
        })
    }

    /// What the thread of one vCPU does.
    pub fn for_vcpu(
        &self,
        planned: &PlannedCpu,
    ) -> impl FnOnce(&mut VcpuFd) -> Result<(), FailureReason> + Send + 'static {
        let cpuid = self.cpuid.for_cpu(planned.hardware_id as u32);
        let mode = self.apic_mode;
        let entry = (planned.index == 0).then_some(self.entry);
        move |vcpu| {
            vcpu::setup_vcpu(vcpu, &cpuid, mode)?;
            if let Some(entry) = entry {
                vcpu::setup_boot_vcpu(vcpu, &entry)?;
            }
            Ok(())
        }
    }
}

/// Whether guests can be given an NMI.
pub const HAS_NMI: bool = true;

/// Gives a vCPU an NMI.
///
/// One that waits for its start-up IPI gets none: it would not hear it (Intel SDM, volume 3, "Local APIC State After It
/// Receives an INIT Reset"), and KVM would not let it wait any longer, again and again.
pub fn inject_nmi(vcpu: &VcpuFd) -> io::Result<()> {
    let state = vcpu.get_mp_state()?.mp_state;
    if matches!(state, KVM_MP_STATE_RUNNABLE | KVM_MP_STATE_HALTED) {
        vcpu.nmi()?;
    }
    Ok(())
}

/// Delivers what the I/O APIC sends, and tells KVM which vectors it wants to hear the end of.
struct KvmMsiPort {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
}

/// Bits 14:8 of a destination id travel in address bits 11:5 where the guest knows
/// KVM_FEATURE_MSI_EXT_DEST_ID; KVM takes bits 31:8 of the id in bits 63:40 of the address
/// (Linux, Documentation/virt/kvm/x86/cpuid.rst and api.rst, section 4.52).
fn kvm_address(message: MsiMessage) -> (u32, u32) {
    const EXTENDED_DESTINATION: u64 = 0x7f << 5;
    let low = (message.address & !EXTENDED_DESTINATION) as u32;
    let high = ((message.address & EXTENDED_DESTINATION) >> 5 << 8) as u32;
    (low, high)
}

impl MsiPort for KvmMsiPort {
    fn send(&self, message: MsiMessage) {
        let (address_lo, address_hi) = kvm_address(message);
        let msi = kvm_msi {
            address_lo,
            address_hi,
            data: message.data,
            ..kvm_msi::default()
        };
        // KVM answers 0 when the guest has blocked the interrupt; that is the guest's business.
        if let Err(error) = self.vm.signal_msi(msi) {
            log::debug!("an interrupt message was refused ({message:x?}): {error}");
        }
    }

    fn set_route(&self, pin: u8, message: Option<MsiMessage>, _level: bool) {
        let gsi = pin.into();
        let outcome = match message {
            Some(message) => self.routes.set(routing_entry(gsi, message)),
            None => self.routes.clear(gsi),
        };
        if let Err(error) = outcome {
            log::error!("cannot route interrupt {pin}: {error}");
        }
    }
}

/// What KVM is told of a function's interrupt. It does not matter here whose it is.
pub fn msi_route(gsi: Gsi, message: MsiMessage, _bdf: Bdf) -> kvm_irq_routing_entry {
    routing_entry(gsi, message)
}

fn routing_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let (address_lo, address_hi) = kvm_address(message);
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi.address_lo = address_lo;
    entry.u.msi.address_hi = address_hi;
    entry.u.msi.__bindgen_anon_1 = Default::default();
    entry.u.msi.data = message.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_destinations_move_to_where_kvm_takes_them() {
        // Destination id 0x17f: bits 7:0 in address bits 19:12, bit 8 in address bit 5.
        let message = MsiMessage {
            address: 0xfee0_0000 | 0x7f << 12 | 1 << 5,
            data: 0x31,
        };
        assert_eq!(kvm_address(message), (0xfee7_f000, 0x100));
    }

    #[test]
    fn plain_destinations_stay_as_they_are() {
        let message = MsiMessage {
            address: 0xfee0_300c,
            data: 0x31,
        };
        assert_eq!(kvm_address(message), (0xfee0_300c, 0));
    }
}
