//! PCI: segments on the buses, functions on the segments, devices behind the functions.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use devices::bus::Bus;
use devices::pci_config::{ConfigPorts, Ecam, PORT, PORTS};
use devices::virtio::{GuestMemory, VirtioError, VirtioFunction, VirtioParts};
use kvm_bindings::{
    KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, KVM_DEV_VFIO_GROUP_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use pci::passthrough::{FunctionError, IntxWiring, PassthroughFunction, Wiring};
use pci::{DmaTarget, HostBridge, MsiSource, Segment};
use thiserror::Error;

use super::areas::{DeviceAreas, Owner};
use super::isa::Interrupts;
use super::memory::GuestRam;
use super::msi::KvmMsiSource;
use super::space::{FunctionSpace, GuestSpace, SpaceParts};
use super::view::{MemoryView, Reach};
use super::{MachineError, kvm_error};
use crate::passthrough::{OpenDevice, Passthrough, find_loss};
use crate::plan::{
    FunctionPlan, FunctionSource, Isa, MemoryPlan, PciPlan, Plan, SegmentPlan, VirtioKind,
};
use crate::virtio::Backends;

/// Why a device cannot be put into the machine.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// It cannot reach guest memory.
    #[error("device {id}: it cannot be given access to guest memory")]
    Dma {
        /// Its name.
        id: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It was lost by then.
    #[error("device {id}: it cannot be reset")]
    Reset {
        /// Its name.
        id: String,
        /// Why not.
        #[source]
        source: pci::device::DeviceError,
    },
    /// It has no interrupts.
    #[error("device {id}: it cannot be connected to interrupt {gsi}")]
    Line {
        /// Its name.
        id: String,
        /// The interrupt.
        gsi: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The function cannot be made.
    #[error("device {id}")]
    Function {
        /// Its name.
        id: String,
        /// Why not.
        #[source]
        source: FunctionError,
    },
    /// A device that this process emulates has no room.
    #[error("device {id}")]
    Virtio {
        /// Its name.
        id: String,
        /// Why not.
        #[source]
        source: VirtioError,
    },
    /// The host has no descriptors left for it.
    #[error("device {id}: the host has no room for it")]
    NoRoom {
        /// Its name.
        id: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The plan is not for these devices.
    #[error("device {id}: the plan does not say where it is, or it has changed since")]
    Foreign {
        /// Its name.
        id: String,
    },
}

/// The functions of one machine. Dropping it takes them out of the guest, stops them, and takes
/// their access to guest memory away.
pub struct PciFunctions {
    functions: Vec<MachineFunction>,
    virtio: Vec<Arc<VirtioFunction>>,
    areas: Arc<DeviceAreas>,
    view: Arc<MemoryView>,
    /// KVM's knowledge of VFIO groups, for drivers that ask for it.
    kvm_vfio: Option<DeviceFd>,
}

/// A function, and what of the machine belongs to it.
struct MachineFunction {
    function: Arc<PassthroughFunction>,
    source: FunctionSource,
    space: Arc<FunctionSpace>,
}

/// What functions are connected to.
pub struct Connections<'a> {
    /// The VM.
    pub vm: &'a Arc<VmFd>,
    /// Its memory bus.
    pub mmio: &'a Arc<Bus>,
    /// Its I/O ports.
    pub pio: &'a Arc<Bus>,
    /// Its RAM, and how many memory slots that takes.
    pub ram: (&'a GuestRam, u32),
    /// Its interrupt controllers.
    pub interrupts: &'a Interrupts,
    /// What is mapped of devices.
    pub areas: &'a Arc<DeviceAreas>,
}

impl PciFunctions {
    /// Builds every segment and function of the plan, but those whose devices are lost: there the
    /// guest finds nothing. `peer_to_peer` is whether those that are passed through reach
    /// each other's memory.
    pub fn build(
        plan: &Plan,
        passthrough: &Passthrough,
        backends: &Backends,
        connections: &Connections<'_>,
        peer_to_peer: bool,
    ) -> Result<Self, MachineError> {
        let (ram, ram_slots) = connections.ram;
        let areas = ram.dma_areas().map_err(|source| MachineError::Kvm {
            what: "share guest memory with devices",
            source,
        })?;
        let view = Arc::new(MemoryView::new(areas));
        let mut pci = Self {
            functions: Vec::new(),
            virtio: Vec::new(),
            areas: Arc::clone(connections.areas),
            view: Arc::clone(&view),
            kvm_vfio: tell_kvm(connections.vm, passthrough)?,
        };
        let Some(PciPlan { segments }) = &plan.pci else {
            return Ok(pci);
        };
        let MemoryPlan { mmio32, mmio64, .. } = &plan.memory;
        let builder = Builder {
            space: GuestSpace::new(SpaceParts {
                vm: Arc::clone(connections.vm),
                mmio: Arc::downgrade(connections.mmio),
                pio: Arc::downgrade(connections.pio),
                view: Arc::clone(&view),
                areas: Arc::clone(connections.areas),
                windows: vec![*mmio32, *mmio64],
                ram_slots,
            }),
            msi: Arc::new(KvmMsiSource::new(
                connections.vm,
                connections.interrupts.routes(),
            )),
            passthrough,
            backends,
            memory: memory_for_virtio(&view, plan)?,
            connections,
        };
        let reach = match peer_to_peer {
            true => Reach::All,
            false => Reach::Ram,
        };
        let mut targets: Vec<*const ()> = Vec::new();
        for segment in segments {
            for function in &segment.functions {
                let device = passthrough.find(&function.source);
                if let Some(device) = device.filter(|device| !device.presence.is_lost()) {
                    // One container serves all devices of the host.
                    let target = Arc::as_ptr(&device.dma).cast::<()>();
                    if !targets.contains(&target) {
                        unless_lost(device, add_target(&view, &function.id, &device.dma, reach))?;
                        targets.push(target);
                    }
                }
            }
            builder.segment(plan.isa, segment, &mut pci)?;
        }
        Ok(pci)
    }

    /// Looks for memory of devices that has gone, takes lost devices out of the guest, and gives
    /// those of the host back to it. To be called whenever one may have been lost.
    pub fn let_go_of_lost(&self, passthrough: &Passthrough) {
        self.areas.look();
        for MachineFunction {
            function,
            source,
            space,
        } in &self.functions
        {
            let device = passthrough.find(source);
            let Some(device) = device.filter(|device| device.presence.is_lost()) else {
                continue;
            };
            // Whoever noticed may not have known the function.
            function.mark_lost(io::ErrorKind::NotConnected.into());
            function.abandon_interrupts();
            space.let_go(device.takes_its_memory_along());
            if !passthrough.needs_target(&device.dma) {
                self.view.remove_target(&device.dma);
            }
        }
        for group in passthrough.close_lost() {
            if let Some(kvm_vfio) = &self.kvm_vfio
                && let Err(error) = set_group(kvm_vfio, KVM_DEV_VFIO_GROUP_DEL, &group)
            {
                log::warn!("KVM keeps a VFIO group: {error}");
            }
        }
    }
}

/// What was made for a device, or nothing if the device got lost.
fn unless_lost<T>(
    device: &OpenDevice,
    made: Result<T, DeviceError>,
) -> Result<Option<T>, DeviceError> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) => match find_loss(&error) {
            Some(loss) => {
                device.presence.lose(loss);
                Ok(None)
            }
            None => Err(error),
        },
    }
}

impl PciFunctions {
    /// Lets devices of this process stand still.
    pub fn pause(&self) {
        self.virtio.iter().for_each(|function| function.pause());
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.virtio.iter().for_each(|function| function.resume());
    }
}

impl Drop for PciFunctions {
    fn drop(&mut self) {
        self.virtio.iter().for_each(|function| function.stop());
        for MachineFunction { function, .. } in &self.functions {
            // What the device did for this guest must not go on.
            if let Err(error) = function.reset() {
                log::debug!("a device was not reset: {error}");
            }
        }
    }
}

fn foreign(function: &FunctionPlan) -> DeviceError {
    DeviceError::Foreign {
        id: function.id.clone(),
    }
}

/// Guest memory for the devices of this process, which is told of all that comes and goes, if there are
/// such devices.
fn memory_for_virtio(view: &MemoryView, plan: &Plan) -> Result<Arc<GuestMemory>, DeviceError> {
    let memory = Arc::new(GuestMemory::default());
    let segments = plan.pci.iter().flat_map(|pci| &pci.segments);
    let mut functions = segments.flat_map(|segment| &segment.functions);
    let first = functions.find(|function| matches!(function.source, FunctionSource::Virtio { .. }));
    if let Some(FunctionPlan { id, .. }) = first {
        let target: Arc<dyn DmaTarget> = Arc::clone(&memory) as _;
        // Whether devices are kept from each other is about DMA, which these do not need.
        add_target(view, id, &target, Reach::All)?;
    }
    Ok(memory)
}

fn add_target(
    view: &MemoryView,
    id: &str,
    device: &Arc<dyn DmaTarget>,
    reach: Reach,
) -> Result<(), DeviceError> {
    let added = view.add_target(Arc::clone(device), reach);
    added.map_err(|source| DeviceError::Dma {
        id: id.to_owned(),
        source,
    })
}

struct Builder<'a> {
    space: GuestSpace,
    msi: Arc<dyn MsiSource>,
    passthrough: &'a Passthrough,
    backends: &'a Backends,
    memory: Arc<GuestMemory>,
    connections: &'a Connections<'a>,
}

impl Builder<'_> {
    fn segment(
        &self,
        isa: Isa,
        plan: &SegmentPlan,
        pci: &mut PciFunctions,
    ) -> Result<(), MachineError> {
        let mut segment = Segment::new();
        let mut has_bridge = true;
        for function in &plan.functions {
            let device = match &function.source {
                FunctionSource::Vfio { .. } | FunctionSource::VfioUser { .. } => {
                    self.passthrough.find(&function.source)
                }
                FunctionSource::Virtio { kind } => {
                    has_bridge &= function.bdf.device != 0;
                    let made = self.virtio(function, *kind)?;
                    let inserted = segment.insert(function.bdf.device, Arc::clone(&made) as _);
                    pci.virtio.push(made);
                    inserted.map_err(|_| foreign(function))?;
                    continue;
                }
                FunctionSource::Reserved => None,
            };
            let Some(device) = device else {
                continue;
            };
            has_bridge &= function.bdf.device != 0;
            if device.presence.is_lost() {
                continue;
            }
            let made = self.function(plan, function, device);
            let Some(made) = unless_lost(device, made)? else {
                continue;
            };
            let inserted = segment.insert(function.bdf.device, Arc::clone(&made.function) as _);
            pci.functions.push(made);
            inserted.map_err(|_| foreign(function))?;
        }
        // The bridge is where a guest looks for one, unless a device was put there.
        if has_bridge {
            let _ = segment.insert(0, Arc::new(HostBridge::new()));
        }
        let segment = Arc::new(segment);
        let place = |placed: Result<(), devices::bus::InsertError>| {
            placed.map_err(|source| MachineError::Place {
                device: "PCI configuration space",
                source,
            })
        };
        let ecam = Arc::new(Ecam(Arc::clone(&segment)));
        let Connections { mmio, pio, .. } = self.connections;
        place(mmio.insert(plan.ecam.start, plan.ecam.size, ecam))?;
        if isa == Isa::X86_64 && plan.number == 0 {
            let ports = Arc::new(ConfigPorts::new(segment));
            place(pio.insert(PORT.into(), PORTS.into(), ports))?;
        }
        Ok(())
    }

    /// A device that this process emulates.
    fn virtio(
        &self,
        plan: &FunctionPlan,
        kind: VirtioKind,
    ) -> Result<Arc<VirtioFunction>, DeviceError> {
        let FunctionPlan {
            id,
            bdf,
            facts,
            bars,
            source: _,
            nodes: _,
        } = plan;
        let device = self.backends.device(kind, id);
        let device = device.map_err(|source| DeviceError::NoRoom {
            id: id.clone(),
            source,
        })?;
        let (Some(device), [Some(address)]) = (device, &bars[..]) else {
            return Err(foreign(plan));
        };
        let function = VirtioFunction::new(VirtioParts {
            id: id.clone(),
            device,
            identity: facts.identity,
            bdf: *bdf,
            address: *address,
            space: &self.space.of_machine(),
            msi: Arc::clone(&self.msi),
            memory: Arc::clone(&self.memory),
        });
        let function = function.map_err(|source| DeviceError::Virtio {
            id: id.clone(),
            source,
        })?;
        Ok(Arc::new(function))
    }

    fn function(
        &self,
        segment: &SegmentPlan,
        plan: &FunctionPlan,
        device: &OpenDevice,
    ) -> Result<MachineFunction, DeviceError> {
        let FunctionPlan {
            id,
            bdf,
            facts,
            bars,
            source,
            nodes,
        } = plan;
        if *facts != device.facts {
            return Err(DeviceError::Foreign { id: id.clone() });
        }
        if device.device.can_reset() {
            match device.device.reset() {
                Ok(()) => {}
                // As for devices that have no reset: its neighbours may be the host's again, without which
                // it cannot be reset.
                Err(pci::device::DeviceError::Refused(error)) => {
                    log::warn!("device {id} is not reset, and as the last guest left it: {error}");
                }
                Err(source @ pci::device::DeviceError::Lost(_)) => {
                    let id = id.clone();
                    return Err(DeviceError::Reset { id, source });
                }
            }
        } else {
            log::warn!(
                "device {id} cannot be reset, so the guest finds in it what was there before: where it \
                 has no reset of its own, all devices that are reset with it have to be bound to \
                 vfio-pci, and none of them may be in use elsewhere"
            );
        }
        let intx = match segment.gsi(bdf.device, 0).filter(|_| facts.intx) {
            None => None,
            Some(gsi) => {
                let line = self.connections.interrupts.resampled_line(gsi);
                let line = line.map_err(|source| DeviceError::Line {
                    id: id.clone(),
                    gsi,
                    source,
                })?;
                Some(IntxWiring {
                    line,
                    pin: 1,
                    // Of 8 bits, and heeded by nobody who knows ACPI.
                    number: gsi as u8,
                })
            }
        };
        let owner = Owner {
            device: Arc::clone(&device.device),
            presence: Arc::clone(&device.presence),
        };
        let space = Arc::new(self.space.of(owner, nodes.is_some()));
        let presence = Arc::clone(&device.presence);
        let wiring = Wiring {
            device: Arc::clone(&device.device),
            facts,
            bars,
            bdf: *bdf,
            space: Arc::clone(&space) as _,
            msi: Arc::clone(&self.msi),
            intx,
            exclude_mmap_bars: &device.exclude_mmap_bars,
            on_lost: Box::new(move |error| presence.lose(error)),
        };
        let function = PassthroughFunction::new(wiring);
        let function = function.map_err(|source| DeviceError::Function {
            id: id.clone(),
            source,
        })?;
        Ok(MachineFunction {
            function,
            source: source.clone(),
            space,
        })
    }
}

/// Tells KVM which VFIO groups belong to this VM (Linux, Documentation/virt/kvm/devices/vfio.rst):
/// it then knows of devices whose DMA does not snoop caches, and drivers can ask for the VM.
fn tell_kvm(vm: &VmFd, passthrough: &Passthrough) -> Result<Option<DeviceFd>, MachineError> {
    let Some(container) = passthrough.container() else {
        return Ok(None);
    };
    let mut request = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        fd: 0,
        flags: 0,
    };
    let device = vm
        .create_device(&mut request)
        .map_err(kvm_error("create its VFIO device"))?;
    for group in container.groups() {
        set_group(&device, KVM_DEV_VFIO_GROUP_ADD, &group)
            .map_err(kvm_error("add a VFIO group"))?;
    }
    Ok(Some(device))
}

/// Makes KVM know of a group, or not.
fn set_group(
    device: &DeviceFd,
    attribute: u32,
    group: &OwnedFd,
) -> Result<(), vmm_sys_util::errno::Error> {
    let descriptor = group.as_raw_fd();
    device.set_device_attr(&kvm_device_attr {
        group: KVM_DEV_VFIO_GROUP,
        attr: attribute.into(),
        addr: std::ptr::from_ref(&descriptor) as u64,
        flags: 0,
    })
}
