//! Slots, windows and BAR addresses, frozen before any table is made.

use std::collections::BTreeMap;

use ::pci::config_space::BarKind;
use ::pci::{BarFacts, Bdf, DEVICES, DeviceFacts};
use arch::{Isa, aarch64, x86_64};

use super::facts;
use super::windows::{self, Demand, TooSmall};
use super::{
    DeviceNodes, FunctionPlan, FunctionSource, IoWindow, PciPlan, SegmentPlan, VirtioKind,
};
use crate::config::{
    ConsoleConfig, DeviceConfig, DiskConfig, GenericInitiator, NetConfig, RngConfig,
    UserDeviceConfig, VmConfig, VsockConfig,
};
use crate::plan::numa;
use crate::plan::{GpaRange, Gsi, HostFacts, MemoryPlan, PlanError};

/// Windows below 4 GiB are multiples of this, in bytes.
const GRANULE32: u64 = 1 << 20;
/// Windows above 4 GiB are multiples of this, in bytes.
const GRANULE64: u64 = 1 << 30;
/// Bytes of 64-bit windows where devices do not need more: 8 TiB. Linux can add memory of a device
/// to its own only where its direct map reaches: on x86_64 with KASLR about 10 TiB above RAM
/// (CONFIG_RANDOMIZE_MEMORY_PHYSICAL_PADDING), on arm64 the lower half of 48-bit addresses.
const ENOUGH64: u64 = 8 << 40;

/// A function that is to have a place.
struct Request {
    option: String,
    id: String,
    facts: DeviceFacts,
    segment: u16,
    device: Option<u8>,
    source: FunctionSource,
    nodes: Option<DeviceNodes>,
}

/// The address spaces that BARs are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Below4GiB,
    /// Memory above.
    Above4GiB,
}

/// Places all functions. The configuration must have been validated.
pub(in crate::plan) fn plan(
    config: &VmConfig,
    host: &HostFacts,
    memory: &MemoryPlan,
    phys_bits: u8,
) -> Result<PciPlan, PlanError> {
    let isa = host.isa;
    let mut segments: Vec<SegmentPlan> = (0..config.platform.num_pci_segments)
        .map(|number| empty_segment(isa, number, config))
        .collect();
    let requests = requests(config, host)?;
    for (request, device) in slots(requests)? {
        let number = usize::from(request.segment);
        let segment = segments.get_mut(number).ok_or(PlanError::NoSegment {
            option: request.option,
            segment: request.segment,
        })?;
        segment.functions.push(FunctionPlan {
            id: request.id,
            bdf: Bdf {
                segment: request.segment,
                device,
            },
            bars: vec![None; request.facts.bars.len()],
            facts: request.facts,
            source: request.source,
            nodes: request.nodes,
        });
    }
    for segment in &mut segments {
        segment.functions.sort_by_key(|function| function.bdf);
    }
    let placed = place_memory(&mut segments, Window::Below4GiB, memory.mmio32, config, isa);
    placed.map_err(|TooSmall { needed }| PlanError::PciWindow32 {
        needed,
        available: memory.mmio32.size,
    })?;
    place_above_4_gib(&mut segments, memory.mmio64, config, isa).map_err(
        |TooSmall { needed }| PlanError::PciWindow64 {
            needed,
            available: memory.mmio64.size,
            phys_bits,
        },
    )?;
    place_ports(&mut segments)?;
    Ok(PciPlan { segments })
}

/// Uses no more of the range than is enough or, where devices need more, than they need: what is far
/// up may be out of the reach of a guest that makes RAM of it.
fn place_above_4_gib(
    segments: &mut [SegmentPlan],
    range: GpaRange,
    config: &VmConfig,
    isa: Isa,
) -> Result<(), TooSmall> {
    let mut place = |size| {
        let range = GpaRange { size, ..range };
        place_memory(segments, Window::Above4GiB, range, config, isa)
    };
    match place(range.size.min(ENOUGH64)) {
        Err(TooSmall { needed }) if needed <= range.size => place(needed),
        placed => placed,
    }
}

fn empty_segment(isa: Isa, number: u16, config: &VmConfig) -> SegmentPlan {
    let (ecam, size, intx): (u64, u64, Vec<Gsi>) = match isa {
        Isa::X86_64 => {
            use x86_64::layout::{ECAM_SEGMENT_SIZE, ECAM_START, IO_APIC_PINS, PCI_INTX_GSI};
            let lines = PCI_INTX_GSI..IO_APIC_PINS;
            (ECAM_START, ECAM_SEGMENT_SIZE, lines.collect())
        }
        Isa::Aarch64 => {
            use aarch64::layout::{INTID_PCI_INTX, PCI_ECAM, PCI_ECAM_SIZE, PCI_INTX_LINES};
            let lines = INTID_PCI_INTX..INTID_PCI_INTX + PCI_INTX_LINES;
            (PCI_ECAM.start, PCI_ECAM_SIZE, lines.collect())
        }
    };
    let node = config
        .numa
        .iter()
        .find(|node| node.pci_segments.contains(&number));
    let nowhere = GpaRange { start: 0, size: 0 };
    SegmentPlan {
        number,
        ecam: GpaRange {
            start: ecam + u64::from(number) * size,
            size,
        },
        mmio32: nowhere,
        mmio64: nowhere,
        io: (isa == Isa::X86_64 && number == 0).then_some(IoWindow {
            base: x86_64::layout::PCI_PORTS_START,
            size: x86_64::layout::PCI_PORTS_SIZE,
        }),
        intx,
        // Linux complains of a bus that is nowhere where there are nodes.
        numa_node: node
            .map(|node| node.guest_numa_id)
            .or_else(|| numa::home(&config.numa)),
        functions: Vec::new(),
    }
}

/// Everything that the configuration asks for, in the order of its device ids.
fn requests(config: &VmConfig, host: &HostFacts) -> Result<Vec<Request>, PlanError> {
    let mut nodes: BTreeMap<String, Option<Vec<u32>>> = config.device_nodes().into_iter().collect();
    let mut request = |id: String, place: Place| {
        let Place {
            option,
            segment,
            device,
            source,
            known,
            initiator,
            allow_noncacheable,
        } = place;
        let facts = match known {
            Known::Probed(key) => host.devices.get(&key).cloned(),
            Known::Made(facts) => Some(facts),
        };
        let facts = facts.ok_or_else(|| PlanError::UnknownDevice {
            option: option.clone(),
        })?;
        if let Some(fault) = facts::fault(&facts) {
            return Err(PlanError::ImpossibleDevice { option, fault });
        }
        if facts.coherent.is_some() && !host.cacheable_device_memory && !allow_noncacheable {
            return Err(PlanError::NotCacheable { option });
        }
        let nodes = nodes.remove(&id).flatten();
        Ok(Request {
            option,
            id,
            facts,
            segment,
            device,
            source,
            nodes: nodes.map(|ids| told_by(ids, initiator)),
        })
    };
    let console = config.console.iter();
    let console = console.filter(|console| console.is_there());
    let places = config
        .devices
        .iter()
        .map(Place::of_the_host)
        .chain(config.user_devices.iter().map(Place::of_a_process))
        // Devices that are passed through have the lowest slots, whatever else the machine has.
        .chain(config.disks.iter().map(Place::of_disk))
        .chain(config.net.iter().map(Place::of_net))
        .chain(config.rng.iter().map(Place::of_entropy))
        .chain(console.map(Place::of_console))
        .chain(config.vsock.iter().map(Place::of_sockets));
    config
        .device_ids()
        .into_iter()
        .zip(places)
        .map(|(id, place)| request(id, place))
        .collect()
}

/// How a guest is told of nodes. Where it is left to us, generic initiators are decided on when it
/// is known how they change the numbers of nodes.
fn told_by(ids: Vec<u32>, initiator: GenericInitiator) -> DeviceNodes {
    let (dsd, generic_initiators) = match initiator {
        GenericInitiator::Auto | GenericInitiator::Off => (true, false),
        GenericInitiator::On => (true, true),
        GenericInitiator::Only => (false, true),
    };
    DeviceNodes {
        ids,
        dsd,
        generic_initiators,
        auto: initiator == GenericInitiator::Auto,
    }
}

/// How it is known what a device is.
enum Known {
    /// It was found out: [`HostFacts::devices`] has it under this key.
    Probed(String),
    /// The machine makes it so.
    Made(DeviceFacts),
}

/// What all kinds of devices have in common.
struct Place {
    option: String,
    segment: u16,
    device: Option<u8>,
    source: FunctionSource,
    known: Known,
    initiator: GenericInitiator,
    /// Whether it may have memory that CPUs could cache, where they cannot.
    allow_noncacheable: bool,
}

impl Place {
    fn of_the_host(config: &DeviceConfig) -> Self {
        let DeviceConfig {
            path,
            iommu: _,
            id: _,
            pci_segment,
            pci_device_id,
            x_exclude_mmap_bars: _,
            guest_numa_ids: _,
            generic_initiator,
            x_allow_noncacheable,
        } = config;
        let path = path.to_string_lossy().into_owned();
        Self {
            option: format!("--device path={path}"),
            segment: *pci_segment,
            device: *pci_device_id,
            known: Known::Probed(path.clone()),
            source: FunctionSource::Vfio { path },
            initiator: *generic_initiator,
            allow_noncacheable: *x_allow_noncacheable,
        }
    }

    fn of_a_process(config: &UserDeviceConfig) -> Self {
        let UserDeviceConfig {
            socket,
            id: _,
            pci_segment,
            pci_device_id,
            guest_numa_ids: _,
            generic_initiator,
        } = config;
        let socket = socket.to_string_lossy().into_owned();
        Self {
            option: format!("--user-device socket={socket}"),
            segment: *pci_segment,
            device: *pci_device_id,
            known: Known::Probed(socket.clone()),
            source: FunctionSource::VfioUser { socket },
            initiator: *generic_initiator,
            // A server's memory is that of a process, which every host maps as it is.
            allow_noncacheable: true,
        }
    }

    fn of_disk(config: &DiskConfig) -> Self {
        let DiskConfig {
            path: _,
            readonly: _,
            direct: _,
            num_queues: _,
            queue_size: _,
            rate_limiter_config: _,
            rate_limit_group: _,
            id: _,
            serial: _,
            pci_segment,
            pci_device_id,
            queue_affinity: _,
            backing_files: _,
            sparse: _,
            image_type: _,
            lock_granularity: _,
        } = config;
        let place = (*pci_segment, *pci_device_id);
        Self::of_virtio(VirtioKind::Block, config.option(), place)
    }

    fn of_net(config: &NetConfig) -> Self {
        let NetConfig {
            tap: _,
            ip: _,
            mask: _,
            mac: _,
            host_mac: _,
            mtu: _,
            fds: _,
            num_queues: _,
            queue_size: _,
            offload_csum: _,
            offload_tso: _,
            offload_ufo: _,
            rate_limiter_config: _,
            id: _,
            pci_segment,
            pci_device_id,
        } = config;
        let place = (*pci_segment, *pci_device_id);
        Self::of_virtio(VirtioKind::Net, config.option(), place)
    }

    fn of_entropy(config: &RngConfig) -> Self {
        let RngConfig {
            src: _,
            id: _,
            pci_segment,
            pci_device_id,
        } = config;
        let place = (*pci_segment, *pci_device_id);
        Self::of_virtio(VirtioKind::Rng, config.option(), place)
    }

    fn of_console(config: &ConsoleConfig) -> Self {
        let ConsoleConfig {
            mode: _,
            file: _,
            socket: _,
            id: _,
            pci_segment,
            pci_device_id,
        } = config;
        let place = (*pci_segment, *pci_device_id);
        Self::of_virtio(VirtioKind::Console, config.option(), place)
    }

    fn of_sockets(config: &VsockConfig) -> Self {
        let VsockConfig {
            cid: _,
            socket: _,
            id: _,
            pci_segment,
            pci_device_id,
        } = config;
        let place = (*pci_segment, *pci_device_id);
        Self::of_virtio(VirtioKind::Vsock, config.option(), place)
    }

    fn of_virtio(kind: VirtioKind, option: String, (segment, device): (u16, Option<u8>)) -> Self {
        Self {
            option,
            segment,
            device,
            source: FunctionSource::Virtio { kind },
            known: Known::Made(kind.facts()),
            // It owns no nodes and has no memory.
            initiator: GenericInitiator::Auto,
            allow_noncacheable: false,
        }
    }
}

/// Gives each function a device number: the one that it asks for, or the lowest that nobody does.
/// Device 0 is the host bridge's unless it is asked for.
fn slots(requests: Vec<Request>) -> Result<Vec<(Request, u8)>, PlanError> {
    let mut taken: BTreeMap<u16, u32> = BTreeMap::new();
    for request in &requests {
        let slots = taken.entry(request.segment).or_insert(1);
        *slots |= request.device.map_or(0, |device| 1 << (device % DEVICES));
    }
    let mut place = |request: Request| {
        let slots = taken.entry(request.segment).or_insert(1);
        let device = match request.device {
            Some(device) => device,
            None => {
                let free = slots.trailing_ones() as u8;
                if free >= DEVICES {
                    return Err(PlanError::NoSlot {
                        option: request.option,
                        segment: request.segment,
                    });
                }
                *slots |= 1 << free;
                free
            }
        };
        Ok((request, device))
    };
    requests.into_iter().map(&mut place).collect()
}

impl Window {
    fn of(kind: BarKind) -> Self {
        match kind {
            BarKind::Io => Self::Io,
            BarKind::Memory32 { .. } => Self::Below4GiB,
            BarKind::Memory64 { .. } => Self::Above4GiB,
        }
    }
}

/// BARs of one kind on a segment: function and position of each, and its bytes.
fn bars(segment: &SegmentPlan, window: Window) -> Vec<((usize, usize), u64)> {
    let functions = segment.functions.iter().enumerate();
    functions
        .flat_map(|(function, plan)| {
            let bars = plan.facts.bars.iter().enumerate();
            bars.map(move |(bar, facts)| ((function, bar), facts))
        })
        .filter(|(_, BarFacts { kind, .. })| Window::of(*kind) == window)
        .map(|(at, facts)| (at, facts.size))
        .collect()
}

fn set_addresses(segment: &mut SegmentPlan, bars: &[((usize, usize), u64)], addresses: &[u64]) {
    for (((function, bar), _), address) in bars.iter().zip(addresses) {
        let function = segment.functions.get_mut(*function);
        if let Some(place) = function.and_then(|function| function.bars.get_mut(*bar)) {
            *place = Some(*address);
        }
    }
}

/// Divides a range of memory among the segments and places their BARs in it. A BAR that is smaller
/// than a page has one to itself: what is mapped behind others must not be reached through it.
fn place_memory(
    segments: &mut [SegmentPlan],
    window: Window,
    range: GpaRange,
    config: &VmConfig,
    isa: Isa,
) -> Result<(), TooSmall> {
    let page = match isa {
        Isa::X86_64 => 4 << 10,
        Isa::Aarch64 => 64 << 10,
    };
    let granule = match window {
        Window::Above4GiB => GRANULE64,
        Window::Below4GiB | Window::Io => GRANULE32,
    };
    let demand = |segment: &SegmentPlan| {
        let weights = config
            .pci_segments
            .iter()
            .find(|config| config.pci_segment == segment.number);
        let weight = weights.map_or(1, |config| match window {
            Window::Above4GiB => config.mmio64_aperture_weight,
            Window::Below4GiB | Window::Io => config.mmio32_aperture_weight,
        });
        let bars = bars(segment, window).into_iter();
        Demand {
            sizes: bars.map(|(_, size)| size.max(page)).collect(),
            weight,
        }
    };
    let demands: Vec<Demand> = segments.iter().map(demand).collect();
    let parts = windows::divide(range, granule, &demands)?;
    for ((segment, part), demand) in segments.iter_mut().zip(parts).zip(&demands) {
        match window {
            Window::Above4GiB => segment.mmio64 = part,
            Window::Below4GiB | Window::Io => segment.mmio32 = part,
        }
        let bars = bars(segment, window);
        set_addresses(segment, &bars, &windows::place(part, &demand.sizes));
    }
    Ok(())
}

/// Places I/O BARs where there are I/O ports; elsewhere the guest is shown none.
fn place_ports(segments: &mut [SegmentPlan]) -> Result<(), PlanError> {
    for segment in segments {
        let Some(IoWindow { base, size }) = segment.io else {
            continue;
        };
        let bars = bars(segment, Window::Io);
        let sizes: Vec<u64> = bars.iter().map(|(_, size)| *size).collect();
        let needed: u64 = sizes.iter().sum();
        if needed > u64::from(size) {
            return Err(PlanError::PciPorts {
                needed,
                available: size.into(),
            });
        }
        let part = GpaRange {
            start: base.into(),
            size: size.into(),
        };
        set_addresses(segment, &bars, &windows::place(part, &sizes));
    }
    Ok(())
}
