//! The machine: a plan carried out on KVM.
//!
//! A machine is built, runs and is taken down whole; a guest reboot builds the next one from the
//! same plan. What outlives it (consoles, the host, the configuration) is lent to it.

mod affinity;
mod areas;
mod control;
mod core_scheduling;
mod devices;
mod gate;
mod host;
mod memory;
mod msi;
mod notifications;
mod pause;
mod payload;
mod pci;
mod report;
mod routes;
mod sigbus;
mod space;
mod vcpu;
mod view;

#[cfg(target_arch = "aarch64")]
#[path = "aarch64/mod.rs"]
mod isa;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64/mod.rs"]
mod isa;

use std::io;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::config::VmConfig;
use crate::passthrough::Passthrough;
use crate::plan::{FirmwarePlan, Plan, PlannedTable};
use crate::virtio::Backends;

pub use self::affinity::AffinityError;
pub use self::control::{Control, Ending};
pub use self::devices::{Consoles, PowerButton};
pub use self::gate::Member;
pub use self::host::{HOST_ISA, Host, HostError, host_memory};
pub use self::isa::boot::BootError;
pub use self::memory::MemoryError;
pub use self::pause::{NmiError, PauseError};
pub use self::payload::{Payload, PayloadError};
pub use self::pci::DeviceError;
pub use self::report::{FailureReason, VcpuFailure};
pub use self::sigbus::prepare as prepare_for_gone_memory;
pub use self::vcpu::prepare_kicks;

use self::areas::DeviceAreas;
use self::core_scheduling::Cookies;
use self::devices::Devices;
use self::gate::Gate;
use self::memory::GuestRam;
use self::pci::{Connections, PciFunctions};
use self::vcpu::{Scheduling, VcpuContext, VcpuThread};

/// Why a machine cannot be built.
#[derive(Debug, Error)]
pub enum MachineError {
    /// Host CPUs.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initramfs, command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM refused something.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A vCPU's model or state.
    #[cfg(target_arch = "aarch64")]
    #[error("--cpus: KVM refuses the vCPU")]
    Vcpu(#[from] arch::aarch64::vcpu::VcpuError),
    /// The guest's CPUID.
    #[cfg(target_arch = "x86_64")]
    #[error("--cpus: cannot derive the guest's CPUID")]
    Cpuid(#[from] arch::x86_64::cpuid::CpuidError),
    /// A passed-through device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The plan is for another instruction set.
    #[error("the plan is not for this host's instruction set")]
    ForeignPlan,
    /// A table cannot be written.
    #[error("cannot write table {name} to guest memory at {gpa:#x}")]
    Table {
        /// The table.
        name: String,
        /// Where.
        gpa: u64,
        /// Why not.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// Two devices share an address.
    #[error("cannot place the {device}")]
    Place {
        /// The device.
        device: &'static str,
        /// Why not.
        #[source]
        source: ::devices::bus::InsertError,
    },
    /// A thread cannot be started.
    #[error("cannot start the thread of vCPU {index}")]
    Thread {
        /// The vCPU.
        index: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Makes a [`MachineError`] of what KVM answers.
fn kvm_error(what: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> MachineError {
    move |error| MachineError::Kvm {
        what,
        source: error.into(),
    }
}

/// What outlives a machine and is lent to it.
#[derive(Clone, Copy)]
pub struct Lent<'a> {
    /// Devices that are passed through.
    pub passthrough: &'a Passthrough,
    /// The host's side of virtio devices.
    pub backends: &'a Backends,
    /// The machine's ends of consoles.
    pub consoles: &'a Consoles,
}

/// A running machine.
///
/// Fields are dropped in order: the VM and all that refers to it before the RAM.
pub struct Machine {
    threads: Vec<VcpuThread>,
    gate: Arc<Gate>,
    /// Held while that changes.
    paused: Mutex<bool>,
    context: Arc<VcpuContext>,
    power_button: Option<PowerButton>,
    consoles: Consoles,
    functions: PciFunctions,
    interrupts: isa::Interrupts,
    _vm: Arc<VmFd>,
    _ram: GuestRam,
}

impl Machine {
    /// Builds the machine that `plan` describes and starts its vCPUs.
    ///
    /// Nothing that the operator can get wrong is left when the first vCPU runs.
    pub fn start(
        host: &Host,
        plan: &Plan,
        config: &VmConfig,
        payload: &mut Payload,
        lent: &Lent<'_>,
        control: &Arc<Control>,
    ) -> Result<Self, MachineError> {
        let Lent {
            passthrough,
            backends,
            consoles,
        } = *lent;
        affinity::check(&config.cpus)?;
        affinity::check_queues(&config.disks)?;
        let ram = GuestRam::map(&plan.memory, &config.memory)?;
        // Tables are small and scattered, kernels are large: huge pages are for these.
        write_tables(&ram, plan)?;
        ram.populate()?;
        let entry = isa::boot::load(ram.memory(), plan, payload)?;
        let vm = isa::create_vm(host, plan)?;
        let ram_slots = ram.attach(&vm)?;
        let vcpus = isa::create_vcpus(&vm, plan)?;
        let gate = Arc::new(Gate::default());
        let interrupts = isa::create_interrupts(&vm, plan, &vcpus, &gate)?;
        let Devices {
            buses,
            power_button,
        } = Devices::build(plan, &interrupts, consoles, control)?;
        let areas = Arc::new(DeviceAreas::default());
        let connections = Connections {
            vm: &vm,
            mmio: &buses.mmio,
            pio: &buses.pio,
            ram: (&ram, ram_slots),
            interrupts: &interrupts,
            areas: &areas,
        };
        let peer_to_peer = config.platform.vfio_p2p_dma;
        let functions =
            PciFunctions::build(plan, passthrough, backends, &connections, peer_to_peer)?;
        let context = Arc::new(VcpuContext {
            buses,
            areas,
            control: Arc::clone(control),
            consoles: consoles.clone(),
            vm: Arc::clone(&vm),
            time: isa::GuestTime::default(),
        });
        let preparation = isa::Preparation::new(host, plan, config, entry)?;
        let mut machine = Self {
            threads: Vec::with_capacity(vcpus.len()),
            gate,
            paused: Mutex::new(false),
            context,
            power_button,
            consoles: consoles.clone(),
            functions,
            interrupts,
            _vm: vm,
            _ram: ram,
        };
        // Only now: a machine that cannot be built leaves the file of its console as it was.
        consoles.take();
        let cookies = Arc::new(Cookies::new(&config.cpus));
        // Where vCPUs beyond the boot ones were created, KVM keeps them without a thread.
        let boot = plan.cpus.boot as usize;
        for (planned, vcpu) in plan.cpus.cpus.iter().zip(vcpus).take(boot) {
            let prepare = preparation.for_vcpu(planned);
            let scheduling = Scheduling {
                host_cpus: affinity::of_vcpu(&config.cpus, planned.index),
                cookies: Arc::clone(&cookies),
            };
            let context = Arc::clone(&machine.context);
            let index = planned.index;
            let place = machine.gate.admit(Member::Vcpu(index));
            let thread = VcpuThread::start(index, vcpu, context, place, scheduling, prepare);
            machine
                .threads
                .push(thread.map_err(|source| MachineError::Thread { index, source })?);
        }
        Ok(machine)
    }

    /// Takes devices out of the guest that were lost, or whose memory has gone, and gives those of
    /// the host back to it. Cheap where there are none.
    pub fn let_go_of_lost(&self, passthrough: &Passthrough) {
        self.functions.let_go_of_lost(passthrough);
    }

    /// What presses the guest's power button, if it has one.
    pub fn power_button(&self) -> Option<&PowerButton> {
        self.power_button.as_ref()
    }
}

impl Drop for Machine {
    /// Stops all vCPUs; none runs when this returns.
    fn drop(&mut self) {
        self.consoles.release();
        self.gate.stop();
        for thread in &self.threads {
            thread.kick();
        }
        for thread in self.threads.drain(..) {
            thread.join();
        }
    }
}

fn write_tables(ram: &GuestRam, plan: &Plan) -> Result<(), MachineError> {
    let FirmwarePlan::Acpi {
        rsdp: _,
        tables,
        smbios,
        reset_vector,
    } = &plan.firmware
    else {
        return Ok(());
    };
    for PlannedTable { name, gpa, bytes } in tables.iter().chain(smbios).chain(reset_vector) {
        let written = ram.memory().write_slice(bytes, GuestAddress(*gpa));
        written.map_err(|source| MachineError::Table {
            name: name.clone(),
            gpa: *gpa,
            source,
        })?;
    }
    Ok(())
}
