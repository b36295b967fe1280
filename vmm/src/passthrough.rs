//! The devices that a guest is given: opened once, before the plan, and kept over reboots, unless
//! they get lost.

mod presence;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pci::device::SharedDevice;
use pci::passthrough::{ProbeError, probe};
use pci::vfio::{Container, OpenError, VfioDevice};
use pci::vfio_user::{Client, ConnectError};
use pci::{DeviceFacts, DmaTarget};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::{DeviceConfig, UserDeviceConfig, VmConfig};
use crate::events::Events;
use crate::plan::{FunctionSource, PciPlan};

pub use self::presence::{Presence, find_loss};
pub use self::watch::Watch;

/// Why devices cannot be passed through.
#[derive(Debug, Error)]
pub enum PassthroughError {
    /// The host has no VFIO.
    #[error("--device: cannot use VFIO")]
    Vfio(#[source] OpenError),
    /// A device of the host cannot be opened.
    #[error("--device path={}", path.display())]
    Open {
        /// Its folder in sysfs.
        path: PathBuf,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// A server cannot be reached, or does not keep to the protocol.
    #[error("--user-device socket={}", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: ConnectError,
    },
    /// The host has no room for events.
    #[error("cannot wait for the end of devices")]
    Events(#[source] io::Error),
    /// The device is nothing that a guest can be given.
    #[error("{option}")]
    Probe {
        /// The option.
        option: String,
        /// Why not.
        #[source]
        source: ProbeError,
    },
}

/// A device that is open.
pub struct OpenDevice {
    /// The device.
    pub device: SharedDevice,
    /// What reaches guest memory for it; one for all devices of the host.
    pub dma: Arc<dyn DmaTarget>,
    /// What was found out about it.
    pub facts: DeviceFacts,
    /// BARs of which no part is mapped into the guest.
    pub exclude_mmap_bars: Vec<u8>,
    /// Whether it is still there.
    pub presence: Arc<Presence>,
    behind: Behind,
    /// Whether the host has it back.
    closed: AtomicBool,
}

/// What a device is.
enum Behind {
    Driver(Arc<VfioDevice>),
    Server(Arc<Client>),
}

impl OpenDevice {
    /// Whether the host's memory behind it goes back to the host with it, where the memory of a
    /// server is there as long as somebody has it mapped.
    pub fn takes_its_memory_along(&self) -> bool {
        matches!(self.behind, Behind::Driver(_))
    }

    /// Gives a lost device of the host back; returns the file of its group if that goes too.
    fn close(&self) -> Option<Arc<OwnedFd>> {
        let Behind::Driver(device) = &self.behind else {
            return None;
        };
        if !self.presence.is_lost() || self.closed.swap(true, Ordering::Relaxed) {
            return None;
        }
        device.close().unwrap_or_else(|error| {
            log::error!("a lost device is not given back to the host: {error}");
            None
        })
    }
}

/// All devices of a guest, by their sysfs folders or sockets.
pub struct Passthrough {
    container: Option<Arc<Container>>,
    devices: BTreeMap<String, OpenDevice>,
    losses: Arc<EventFd>,
    events: Events,
}

/// Finds out what the devices of a configuration are: opens them, and closes them again.
///
/// # Errors
/// One of them cannot be had.
pub fn look(config: &VmConfig) -> Result<BTreeMap<String, DeviceFacts>, PassthroughError> {
    let losses = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PassthroughError::Events)?;
    Ok(Passthrough::open(config, &Arc::new(losses), &Events::none())?.facts())
}

impl Passthrough {
    /// Opens the devices of a configuration; `losses` is written when one is lost, which `events` are
    /// told of.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn open(
        config: &VmConfig,
        losses: &Arc<EventFd>,
        events: &Events,
    ) -> Result<Self, PassthroughError> {
        let mut passthrough = Self {
            container: None,
            devices: BTreeMap::new(),
            losses: Arc::clone(losses),
            events: events.clone(),
        };
        for device in &config.devices {
            passthrough.open_vfio(device)?;
        }
        for device in &config.user_devices {
            passthrough.connect(device)?;
        }
        Ok(passthrough)
    }

    /// Gives devices the names that they have in a plan.
    pub fn set_names(&self, plan: &PciPlan) {
        for function in plan.segments.iter().flat_map(|segment| &segment.functions) {
            if let Some(device) = self.find(&function.source) {
                device.presence.set_name(&function.id);
            }
        }
    }

    /// What notices that devices go, for the event loop.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn watches(&self) -> Result<Vec<Watch>, PassthroughError> {
        let watch = |device: &OpenDevice| match &device.behind {
            Behind::Server(client) => Ok(Watch::server(client, &device.presence)),
            Behind::Driver(driver) => Watch::driver(driver, &device.presence),
        };
        let watches: io::Result<_> = self.devices.values().map(watch).collect();
        watches.map_err(PassthroughError::Events)
    }

    /// Whether something reaches guest memory for a device that is not lost.
    pub fn needs_target(&self, target: &Arc<dyn DmaTarget>) -> bool {
        let mut devices = self.devices.values();
        devices.any(|device| !device.presence.is_lost() && is_same(&device.dma, target))
    }

    /// Gives lost devices back to the host, once nobody has mapped them.
    ///
    /// # Returns
    /// The files of groups that were closed by that.
    pub fn close_lost(&self) -> Vec<Arc<OwnedFd>> {
        self.devices
            .values()
            .filter_map(OpenDevice::close)
            .collect()
    }

    /// What was found out about them.
    pub fn facts(&self) -> BTreeMap<String, DeviceFacts> {
        let devices = self.devices.iter();
        devices
            .map(|(key, device)| (key.clone(), device.facts.clone()))
            .collect()
    }

    /// The device behind a function.
    pub fn find(&self, source: &FunctionSource) -> Option<&OpenDevice> {
        match source {
            FunctionSource::Vfio { path: key } | FunctionSource::VfioUser { socket: key } => {
                self.devices.get(key)
            }
            FunctionSource::Virtio { .. } | FunctionSource::Reserved => None,
        }
    }

    /// The container of the devices of the host, if there are some.
    pub fn container(&self) -> Option<&Arc<Container>> {
        self.container.as_ref()
    }

    fn open_vfio(&mut self, config: &DeviceConfig) -> Result<(), PassthroughError> {
        let DeviceConfig {
            path,
            iommu: _,
            id: _,
            pci_segment: _,
            pci_device_id: _,
            x_exclude_mmap_bars,
            guest_numa_ids: _,
            generic_initiator: _,
            x_allow_noncacheable: _,
        } = config;
        let container = match &self.container {
            Some(container) => Arc::clone(container),
            None => {
                let container = Container::new().map_err(PassthroughError::Vfio)?;
                Arc::clone(self.container.insert(Arc::new(container)))
            }
        };
        let opened = container.open_device(path);
        let device = opened.map_err(|source| PassthroughError::Open {
            path: path.clone(),
            source,
        })?;
        let device = Arc::new(device);
        let option = format!("--device path={}", path.display());
        let presence = Arc::new(Presence::new(option.clone(), &self.losses, &self.events));
        let facts = probe(&*device, Some(device.driver()), x_exclude_mmap_bars);
        let facts = facts.map_err(|source| PassthroughError::Probe { option, source })?;
        self.devices.insert(
            path.to_string_lossy().into_owned(),
            OpenDevice {
                device: Arc::clone(&device) as SharedDevice,
                dma: container,
                facts,
                exclude_mmap_bars: x_exclude_mmap_bars.clone(),
                presence,
                behind: Behind::Driver(device),
                closed: AtomicBool::new(false),
            },
        );
        Ok(())
    }

    fn connect(&mut self, config: &UserDeviceConfig) -> Result<(), PassthroughError> {
        let UserDeviceConfig {
            socket,
            id: _,
            pci_segment: _,
            pci_device_id: _,
            guest_numa_ids: _,
            generic_initiator: _,
        } = config;
        let connected = Client::connect(socket);
        let client = connected.map_err(|source| PassthroughError::Connect {
            socket: socket.clone(),
            source,
        })?;
        let client = Arc::new(client);
        let facts = probe(&*client, None, &[]);
        let option = format!("--user-device socket={}", socket.display());
        let presence = Arc::new(Presence::new(option.clone(), &self.losses, &self.events));
        let facts = facts.map_err(|source| PassthroughError::Probe { option, source })?;
        self.devices.insert(
            socket.to_string_lossy().into_owned(),
            OpenDevice {
                device: Arc::clone(&client) as SharedDevice,
                dma: Arc::clone(&client) as Arc<dyn DmaTarget>,
                facts,
                exclude_mmap_bars: Vec::new(),
                presence,
                behind: Behind::Server(client),
                closed: AtomicBool::new(false),
            },
        );
        Ok(())
    }
}

/// Whether both are the same: one container serves all devices of the host.
pub fn is_same(one: &Arc<dyn DmaTarget>, other: &Arc<dyn DmaTarget>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}
