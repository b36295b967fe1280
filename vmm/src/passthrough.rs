//! The devices that a guest is given: opened once, before the plan, and kept over reboots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pci::device::SharedDevice;
use pci::passthrough::{ProbeError, probe};
use pci::vfio::{Container, OpenError};
use pci::vfio_user::{Client, ConnectError};
use pci::{DeviceFacts, DmaTarget};
use thiserror::Error;

use crate::config::{DeviceConfig, UserDeviceConfig, VmConfig};
use crate::plan::FunctionSource;

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
}

/// All devices of a guest, by their sysfs folders or sockets.
#[derive(Default)]
pub struct Passthrough {
    container: Option<Arc<Container>>,
    devices: BTreeMap<String, OpenDevice>,
}

impl Passthrough {
    /// Opens the devices of a configuration.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn open(config: &VmConfig) -> Result<Self, PassthroughError> {
        let mut passthrough = Self::default();
        for device in &config.devices {
            passthrough.open_vfio(device)?;
        }
        for device in &config.user_devices {
            passthrough.connect(device)?;
        }
        Ok(passthrough)
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
            FunctionSource::Reserved => None,
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
        let driver = device.driver().to_owned();
        let device: SharedDevice = Arc::new(device);
        let facts = probe(&*device, Some(&driver), x_exclude_mmap_bars);
        let facts = facts.map_err(|source| PassthroughError::Probe {
            option: format!("--device path={}", path.display()),
            source,
        })?;
        self.devices.insert(
            path.to_string_lossy().into_owned(),
            OpenDevice {
                device,
                dma: container,
                facts,
                exclude_mmap_bars: x_exclude_mmap_bars.clone(),
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
        let facts = facts.map_err(|source| PassthroughError::Probe {
            option: format!("--user-device socket={}", socket.display()),
            source,
        })?;
        self.devices.insert(
            socket.to_string_lossy().into_owned(),
            OpenDevice {
                device: Arc::clone(&client) as SharedDevice,
                dma: client,
                facts,
                exclude_mmap_bars: Vec::new(),
            },
        );
        Ok(())
    }
}
