//! The host's side of virtio devices: opened once, for all boots of a virtual machine.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use devices::virtio::Device;
use devices::virtio::block::{
    Block, BlockParts, EngineChoice, Image, ImageError, ImageFormat, ImageOptions, Lock,
};
use devices::virtio::rng::Rng;
use thiserror::Error;

use crate::config::{DiskConfig, ImageType, LockGranularity, RngConfig, VmConfig};
use crate::plan::VirtioKind;

/// Why something that a device needs cannot be had.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A file cannot be opened.
    #[error("{option}: cannot open it")]
    Open {
        /// The option at fault.
        option: String,
        /// Why not.
        source: io::Error,
    },
    /// An image cannot be used.
    #[error("{option}")]
    Image {
        /// The option at fault.
        option: String,
        /// Why not.
        source: ImageError,
    },
}

/// What virtio devices need of the host.
pub struct Backends {
    rng: Option<File>,
    /// By the disks' names.
    disks: BTreeMap<String, Disk>,
}

/// A disk, for all boots. Its image stays locked.
struct Disk {
    image: Arc<Image>,
    queues: u16,
    queue_size: u16,
    host_cpus: Vec<Vec<u32>>,
}

impl Backends {
    /// Opens what the devices of a configuration need.
    ///
    /// # Errors
    /// Something is not there.
    pub fn open(config: &VmConfig) -> Result<Self, BackendError> {
        let rng = config.rng.as_ref().map(open_rng).transpose()?;
        let before = config.devices.len() + config.user_devices.len();
        let names = config.device_ids().into_iter().skip(before);
        let disks = names.zip(&config.disks);
        let disks = disks.map(|(name, disk)| Ok((name, open_disk(disk)?)));
        Ok(Self {
            rng,
            disks: disks.collect::<Result<_, _>>()?,
        })
    }

    /// A device of that name for one boot; nothing if the configuration has none of that kind.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn device(&self, kind: VirtioKind, name: &str) -> io::Result<Option<Box<dyn Device>>> {
        match kind {
            VirtioKind::Rng => {
                let source = self.rng.as_ref().map(File::try_clone).transpose()?;
                Ok(source.map(|source| Box::new(Rng::new(source)) as Box<dyn Device>))
            }
            VirtioKind::Block => {
                let disk = self.disks.get(name);
                Ok(disk.map(|disk| Box::new(disk.device()) as Box<dyn Device>))
            }
        }
    }
}

impl Disk {
    fn device(&self) -> Block {
        let Self {
            image,
            queues,
            queue_size,
            host_cpus,
        } = self;
        Block::new(BlockParts {
            image: Arc::clone(image),
            queues: *queues,
            queue_size: *queue_size,
            host_cpus: host_cpus.clone(),
            engine: EngineChoice::Auto,
        })
    }
}

fn open_disk(config: &DiskConfig) -> Result<Disk, BackendError> {
    let DiskConfig {
        path,
        readonly,
        direct,
        num_queues,
        queue_size,
        // Validation refuses limits and other formats.
        rate_limiter_config: _,
        rate_limit_group: _,
        id: _,
        serial,
        pci_segment: _,
        pci_device_id: _,
        queue_affinity,
        backing_files,
        sparse,
        image_type,
        lock_granularity,
    } = config;
    let image = Image::open(&ImageOptions {
        path,
        readonly: *readonly,
        direct: *direct,
        sparse: *sparse,
        format: match image_type {
            ImageType::Raw => ImageFormat::Raw,
            ImageType::Qcow2 => ImageFormat::Qcow2,
            ImageType::Unknown | ImageType::FixedVhd | ImageType::Vhdx => ImageFormat::Detect,
        },
        backing_files: *backing_files,
        lock: match lock_granularity {
            LockGranularity::ByteRange => Lock::ByteRange,
            LockGranularity::Full => Lock::Full,
        },
        serial: serial.as_deref(),
    });
    let image = image.map_err(|source| BackendError::Image {
        option: config.option(),
        source,
    })?;
    let mut host_cpus = vec![Vec::new(); usize::from(*num_queues)];
    for affinity in queue_affinity {
        if let Some(cpus) = host_cpus.get_mut(usize::from(affinity.queue_index)) {
            cpus.clone_from(&affinity.host_cpus);
        }
    }
    Ok(Disk {
        image: Arc::new(image),
        queues: *num_queues,
        queue_size: *queue_size,
        host_cpus,
    })
}

fn open_rng(config: &RngConfig) -> Result<File, BackendError> {
    let RngConfig {
        src,
        id: _,
        pci_segment: _,
        pci_device_id: _,
    } = config;
    open_source(src).map_err(|source| BackendError::Open {
        option: config.option(),
        source,
    })
}

/// Opens a file to be read without ever waiting for it: a FIFO without a writer, say.
fn open_source(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    match file.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_source_is_opened_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        open_source(&fifo).unwrap();
        open_source(Path::new("/dev/urandom")).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_source_is_said_with_its_option() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        for (path, reason) in [
            (missing.as_path(), "No such file"),
            (folder.path(), "directory"),
        ] {
            let config = RngConfig {
                src: path.to_owned(),
                id: None,
                pci_segment: 0,
                pci_device_id: None,
            };
            let error = open_rng(&config).unwrap_err();
            let expected = format!("--rng src={}: cannot open it", path.display());
            assert_eq!(error.to_string(), expected);
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(reason), "{source}");
        }
    }
}
