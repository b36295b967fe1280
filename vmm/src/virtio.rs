//! The host's side of virtio devices: opened once, for all boots of a virtual machine.

use std::fs::File;
use std::io;

use devices::virtio::Device;
use devices::virtio::rng::Rng;
use thiserror::Error;

use crate::config::{RngConfig, VmConfig};
use crate::plan::VirtioKind;

/// Why something that a device needs cannot be had.
#[derive(Debug, Error)]
#[error("{option}: cannot open it")]
pub struct BackendError {
    /// The option at fault.
    option: String,
    /// Why not.
    source: io::Error,
}

/// What virtio devices need of the host.
pub struct Backends {
    rng: Option<File>,
}

impl Backends {
    /// Opens what the devices of a configuration need.
    ///
    /// # Errors
    /// Something is not there.
    pub fn open(config: &VmConfig) -> Result<Self, BackendError> {
        let rng = config.rng.as_ref().map(open_rng).transpose()?;
        Ok(Self { rng })
    }

    /// A device for one boot; nothing if the configuration has none of that kind.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn device(&self, kind: VirtioKind) -> io::Result<Option<Box<dyn Device>>> {
        match kind {
            VirtioKind::Rng => {
                let source = self.rng.as_ref().map(File::try_clone).transpose()?;
                Ok(source.map(|source| Box::new(Rng::new(source)) as Box<dyn Device>))
            }
        }
    }
}

fn open_rng(config: &RngConfig) -> Result<File, BackendError> {
    let RngConfig {
        src,
        id: _,
        pci_segment: _,
        pci_device_id: _,
    } = config;
    File::open(src).map_err(|source| BackendError {
        option: config.option(),
        source,
    })
}
