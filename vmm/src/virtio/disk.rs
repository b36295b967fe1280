//! Disks: their images.

use std::sync::Arc;

use devices::virtio::block::{
    Block, BlockParts, EngineChoice, Image, ImageFormat, ImageOptions, Lock,
};
use devices::virtio::rate_limiter::Limits;

use super::BackendError;
use super::limits::Groups;
use crate::config::{DiskConfig, ImageType, LockGranularity};

/// A disk, for all boots. Its image stays locked.
pub struct Disk {
    image: Arc<Image>,
    queues: u16,
    queue_size: u16,
    host_cpus: Vec<Vec<u32>>,
    limits: Option<Arc<Limits>>,
}

impl Disk {
    /// Opens and locks its image. Its limits are its own, or those of one of the groups.
    ///
    /// # Errors
    /// It is not there, or cannot be used.
    pub fn open(config: &DiskConfig, groups: &Groups) -> Result<Self, BackendError> {
        let DiskConfig {
            path,
            readonly,
            direct,
            num_queues,
            queue_size,
            // Validation refuses other formats.
            rate_limiter_config,
            rate_limit_group,
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
            limits: groups.limits_of(rate_limit_group.as_deref(), rate_limiter_config.as_ref()),
        })
    }

    /// A device for one boot.
    pub fn device(&self) -> Block {
        let Self {
            image,
            queues,
            queue_size,
            host_cpus,
            limits,
        } = self;
        Block::new(BlockParts {
            image: Arc::clone(image),
            queues: *queues,
            queue_size: *queue_size,
            host_cpus: host_cpus.clone(),
            engine: EngineChoice::Auto,
            limits: limits.clone(),
        })
    }

    /// What it has counted since it was opened.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.image.counters()
    }
}
