//! aarch64 on KVM: GICv3 with an ITS, PSCI vCPUs, kernel and tables in RAM.

pub mod boot;
mod time;

use std::io;
use std::sync::Arc;

use arch::aarch64::vcpu::{VcpuModel, set_boot_registers};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI,
    KVM_MSI_VALID_DEVID, KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_irq_routing_entry,
};
use kvm_ioctls::{DeviceFd, VcpuFd, VmFd};
use pci::{Bdf, InterruptLine, MsiMessage, ResampledLine};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::boot::Entry;
pub use self::time::{GuestTime, after_pause};
use super::gate::Gate;
use super::host::Host;
use super::report::FailureReason;
use super::routes::Routes;
use super::vcpu::Buses;
use super::{MachineError, kvm_error};
use crate::config::VmConfig;
use crate::plan::{Gsi, InterruptPlan, Plan, PlannedCpu};

/// Interrupts 0 to 127: 32 private ones and 96 shared ones.
const INTERRUPTS: u32 = 128;
/// INTID of the first shared one, which is GSI 0 in KVM.
const FIRST_SPI: u32 = 32;

/// Interrupt controllers of one machine; KVM holds their state as long as this lives.
pub struct Interrupts {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    _gic: DeviceFd,
    _its: DeviceFd,
}

struct SpiLine {
    vm: Arc<VmFd>,
    intid: Gsi,
}

impl InterruptLine for SpiLine {
    fn set_level(&self, asserted: bool) {
        let irq = kvm_bindings::KVM_ARM_IRQ_TYPE_SPI << kvm_bindings::KVM_ARM_IRQ_TYPE_SHIFT;
        if let Err(error) = self.vm.set_irq_line(irq | self.intid, asserted) {
            log::error!("cannot drive interrupt {}: {error}", self.intid);
        }
    }
}

/// A line that KVM drives: it asserts it when the first event is written, and releases it and
/// writes the second when the guest ends the interrupt.
struct ResampledSpi {
    vm: Arc<VmFd>,
    /// GSI in KVM: the number of the shared peripheral interrupt.
    gsi: u32,
    trigger: EventFd,
    resample: EventFd,
}

impl ResampledLine for ResampledSpi {
    fn trigger(&self) -> &EventFd {
        &self.trigger
    }

    fn resample(&self) -> &EventFd {
        &self.resample
    }
}

impl Drop for ResampledSpi {
    fn drop(&mut self) {
        if let Err(error) = self.vm.unregister_irqfd(&self.trigger, self.gsi) {
            log::warn!("KVM does not let go of SPI {}: {error}", self.gsi);
        }
    }
}

/// What KVM is told of a function's interrupt. The ITS finds the interrupt by the id of the device,
/// which is the one that the IORT makes of the requester id.
pub fn msi_route(gsi: Gsi, message: MsiMessage, bdf: Bdf) -> kvm_irq_routing_entry {
    let MsiMessage { address, data } = message;
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        flags: KVM_MSI_VALID_DEVID,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    entry.u.msi.__bindgen_anon_1.devid = bdf.its_device_id();
    entry
}

impl Interrupts {
    /// The line of one shared peripheral interrupt, for a device whose interrupts come from
    /// elsewhere.
    pub fn resampled_line(&self, intid: Gsi) -> io::Result<Arc<dyn ResampledLine>> {
        let no_spi = || io::Error::other(format!("{intid} is no shared peripheral interrupt"));
        let gsi = intid.checked_sub(FIRST_SPI).ok_or_else(no_spi)?;
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..kvm_irq_routing_entry::default()
        };
        entry.u.irqchip.irqchip = 0;
        entry.u.irqchip.pin = gsi;
        self.routes.set(entry)?;
        let line = ResampledSpi {
            vm: Arc::clone(&self.vm),
            gsi,
            trigger: EventFd::new(EFD_NONBLOCK)?,
            resample: EventFd::new(EFD_NONBLOCK)?,
        };
        let ResampledSpi {
            trigger, resample, ..
        } = &line;
        self.vm
            .register_irqfd_with_resample(trigger, resample, gsi)?;
        Ok(Arc::new(line))
    }

    /// The routes of all interrupts.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Nothing to wake: KVM carries wired interrupts.
    pub fn kick(&self) {}

    /// Nothing to place: KVM emulates all of the GIC.
    pub fn place(&self, _buses: &mut Buses) -> Result<(), MachineError> {
        Ok(())
    }

    /// The line of one shared peripheral interrupt.
    pub fn line(&self, intid: Gsi) -> Result<Arc<dyn InterruptLine>, MachineError> {
        Ok(Arc::new(SpiLine {
            vm: Arc::clone(&self.vm),
            intid,
        }))
    }
}

/// Creates the VM with the plan's address width.
pub fn create_vm(host: &Host, plan: &Plan) -> Result<Arc<VmFd>, MachineError> {
    let vm = match host.kvm.get_host_ipa_limit() {
        ..=0 => host.kvm.create_vm(),
        // KVM takes widths from 32 bits up.
        _ => host
            .kvm
            .create_vm_with_ipa_size(u32::from(plan.cpus.phys_bits).max(32)),
    };
    vm.map(Arc::new).map_err(kvm_error("create the VM"))
}

/// Creates all vCPUs of the plan; those that do not run at boot are never given a thread.
///
/// KVM's GIC is initialised for the vCPUs that exist, so all that the guest can ever have must.
pub fn create_vcpus(vm: &VmFd, plan: &Plan) -> Result<Vec<VcpuFd>, MachineError> {
    let model = VcpuModel::new(vm)?;
    let create = |planned: &PlannedCpu| {
        let vcpu = vm
            .create_vcpu(planned.index.into())
            .map_err(kvm_error("create a vCPU"))?;
        model.init(&vcpu, planned.index != 0)?;
        model.finalize(&vcpu)?;
        Ok(vcpu)
    };
    plan.cpus.cpus.iter().map(create).collect()
}

/// Creates the GIC and the ITS; all vCPUs exist by now.
pub fn create_interrupts(
    vm: &Arc<VmFd>,
    plan: &Plan,
    vcpus: &[VcpuFd],
    _gate: &Arc<Gate>,
) -> Result<Interrupts, MachineError> {
    let InterruptPlan::GicV3 {
        distributor,
        redistributors,
        its,
    } = plan.interrupts
    else {
        return Err(MachineError::ForeignPlan);
    };
    let gic = device(
        vm,
        kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        "create the GICv3",
    )?;
    let address = KVM_DEV_ARM_VGIC_GRP_ADDR;
    let control = KVM_DEV_ARM_VGIC_GRP_CTRL;
    let distributor_kind = KVM_VGIC_V3_ADDR_TYPE_DIST.into();
    set(
        &gic,
        address,
        distributor_kind,
        Some(distributor.start),
        "place the GIC distributor",
    )?;
    // Bits 63:52 are the number of redistributors, 51:16 the base, 11:0 the index of the region
    // (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst).
    let region = (plan.cpus.cpus.len() as u64) << 52 | redistributors.start;
    let region_kind = KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION.into();
    set(
        &gic,
        address,
        region_kind,
        Some(region),
        "place the GIC redistributors",
    )?;
    let count = u64::from(INTERRUPTS);
    set(
        &gic,
        KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
        0,
        Some(count),
        "size the GIC",
    )?;
    let init = KVM_DEV_ARM_VGIC_CTRL_INIT.into();
    set(&gic, control, init, None, "initialise the GIC")?;
    let its_device = device(
        vm,
        kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
        "create the ITS",
    )?;
    let its_kind = KVM_VGIC_ITS_ADDR_TYPE.into();
    set(
        &its_device,
        address,
        its_kind,
        Some(its.start),
        "place the ITS",
    )?;
    set(&its_device, control, init, None, "initialise the ITS")?;
    let model = VcpuModel::new(vm)?;
    for vcpu in vcpus {
        // The performance monitors' interrupt needs the GIC.
        model.init_pmu(vcpu)?;
    }
    Ok(Interrupts {
        vm: Arc::clone(vm),
        routes: Arc::new(Routes::new(vm, INTERRUPTS - FIRST_SPI)),
        _gic: gic,
        _its: its_device,
    })
}

/// Whether guests can be given an NMI.
pub const HAS_NMI: bool = false;

/// KVM has none to give.
pub fn inject_nmi(_vcpu: &VcpuFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn device(vm: &VmFd, kind: u32, what: &'static str) -> Result<DeviceFd, MachineError> {
    let mut request = kvm_create_device {
        type_: kind,
        fd: 0,
        flags: 0,
    };
    vm.create_device(&mut request).map_err(kvm_error(what))
}

/// Sets an attribute; values of fewer than 64 bits are read from the low bytes by KVM, which is
/// little-endian here.
fn set(
    device: &DeviceFd,
    group: u32,
    attr: u64,
    value: Option<u64>,
    what: &'static str,
) -> Result<(), MachineError> {
    let attribute = kvm_device_attr {
        group,
        attr,
        addr: value
            .as_ref()
            .map_or(0, |value| std::ptr::from_ref(value) as u64),
        flags: 0,
    };
    device.set_device_attr(&attribute).map_err(kvm_error(what))
}

/// What vCPU threads do before their vCPU first runs.
pub struct Preparation {
    entry: Entry,
}

impl Preparation {
    /// Only the boot vCPU needs any: PSCI sets up the others.
    pub fn new(
        _host: &Host,
        _plan: &Plan,
        _config: &VmConfig,
        entry: Entry,
    ) -> Result<Self, MachineError> {
        Ok(Self { entry })
    }

    /// What the thread of one vCPU does.
    pub fn for_vcpu(
        &self,
        planned: &PlannedCpu,
    ) -> impl FnOnce(&mut VcpuFd) -> Result<(), FailureReason> + Send + 'static {
        let entry = (planned.index == 0).then_some(self.entry);
        move |vcpu| match entry {
            Some(entry) => Ok(set_boot_registers(vcpu, entry.kernel, entry.fdt)?),
            None => Ok(()),
        }
    }
}
