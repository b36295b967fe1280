//! Disks: their images.

use std::sync::Arc;

use devices::virtio::block::{
    Block, BlockParts, EngineChoice, Image, ImageFormat, ImageOptions, Lock,
};

use super::BackendError;
use crate::config::{DiskConfig, ImageType, LockGranularity};

/// A disk, for all boots. Its image stays locked.
pub struct Disk {
    image: Arc<Image>,
    queues: u16,
    queue_size: u16,
    host_cpus: Vec<Vec<u32>>,
}

impl Disk {
    /// Opens and locks its image.
    ///
    /// # Errors
    /// It is not there, or cannot be used.
    pub fn open(config: &DiskConfig) -> Result<Self, BackendError> {
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
        Ok(Self {
            image: Arc::new(image),
            queues: *num_queues,
            queue_size: *queue_size,
            host_cpus,
        })
    }

    /// A device for one boot.
    pub fn device(&self) -> Block {
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

    /// What it has counted since it was opened.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.image.counters()
    }
}
