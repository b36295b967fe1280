//! What the device offers: its size and limits, and its queues.

use std::io;
use std::sync::Arc;

use super::backend::{Image, SECTOR};
use super::engine::Engine;
use super::worker::{BlockHandler, MOST_AT_ONCE, MOST_SECTORS};
use crate::virtio::rate_limiter::{Limits, RateLimiter};
use crate::virtio::{
    Device, DeviceConfig, FaultSink, NotStarted, Running, Start, VirtQueue, Worker,
};

/// Feature bits (section 5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// How the host is asked to read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring where the host has it, and calls where it does not.
    Auto,
    /// One call after the other, in each queue's thread.
    Calls,
}

/// What a disk is made of.
pub struct BlockParts {
    /// Its image.
    pub image: Arc<Image>,
    /// How many queues it has.
    pub queues: u16,
    /// Entries of each queue: a power of two, at least 4.
    pub queue_size: u16,
    /// Host CPUs that work for each queue: any where there are none, or no list.
    pub host_cpus: Vec<Vec<u32>>,
    /// How the host is asked.
    pub engine: EngineChoice,
    /// What all of its queues together may move, and other devices that share it: anything without.
    pub limits: Option<Arc<Limits>>,
}

/// A disk.
pub struct Block {
    image: Arc<Image>,
    queues: Vec<u16>,
    host_cpus: Vec<Vec<u32>>,
    engine: EngineChoice,
    limits: Option<Arc<Limits>>,
}

impl Block {
    /// A disk that no driver has started.
    pub fn new(parts: BlockParts) -> Self {
        let BlockParts {
            image,
            queues,
            queue_size,
            host_cpus,
            engine,
            limits,
        } = parts;
        Self {
            image,
            queues: vec![queue_size; queues.into()],
            host_cpus,
            engine,
            limits,
        }
    }

    fn worker(
        &self,
        queue: VirtQueue,
        features: u64,
        faults: Arc<dyn FaultSink>,
    ) -> io::Result<Worker<BlockHandler>> {
        let index = queue.index;
        let size = self.queues.get(usize::from(index)).copied();
        let at_once = size.unwrap_or(1).clamp(1, MOST_AT_ONCE);
        let engine = match self.engine {
            EngineChoice::Auto => Engine::new(at_once),
            EngineChoice::Calls => Engine::Calls,
        };
        let port = self.image.port()?;
        let host_cpus = self.host_cpus.get(usize::from(index)).cloned();
        // Section 5.2.6.2: a driver without flushes takes what is written for safe.
        let synchronous = features & feature::FLUSH == 0;
        let limiter = RateLimiter::of(self.limits.as_ref())?;
        let handler = BlockHandler::new(
            Arc::clone(&self.image),
            queue,
            (engine, port),
            at_once,
            host_cpus.unwrap_or_default(),
            synchronous,
            limiter,
        );
        let name = format!("virtio-blk q{index}");
        Worker::start(&name, handler, faults).map_err(|(_, error)| error)
    }
}

impl Device for Block {
    fn features(&self) -> u64 {
        let Image {
            readonly, discards, ..
        } = *self.image;
        let mut features =
            feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY;
        let conditional = [
            (readonly, feature::RO),
            (self.queues.len() > 1, feature::MQ),
            (discards, feature::DISCARD),
            (!readonly, feature::WRITE_ZEROES),
        ];
        for (is_there, feature) in conditional {
            features |= if is_there { feature } else { 0 };
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        let size = self.queues.first().copied().unwrap_or_default();
        Arc::new(BlockConfig::of(&self.image, size, self.queues.len()))
    }

    fn start(self: Box<Self>, start: Start) -> Result<Box<dyn Running>, NotStarted> {
        let Start {
            features,
            queues,
            faults,
            config_changes: _,
        } = start;
        let workers = queues.into_iter();
        let workers = workers.map(|queue| self.worker(queue, features, Arc::clone(&faults)));
        match workers.collect() {
            Ok(workers) => Ok(Box::new(RunningBlock {
                device: self,
                workers,
            })),
            Err(reason) => {
                let device = self;
                Err(NotStarted { device, reason })
            }
        }
    }
}

struct RunningBlock {
    device: Box<Block>,
    workers: Vec<Worker<BlockHandler>>,
}

impl Running for RunningBlock {
    fn pause(&mut self) {
        self.workers.iter().for_each(Worker::pause);
    }

    fn resume(&mut self) {
        self.workers.iter().for_each(Worker::resume);
    }

    fn stop(self: Box<Self>) -> Box<dyn Device> {
        let Self { device, workers } = *self;
        for worker in workers {
            worker.stop();
        }
        device
    }
}

/// Bytes of the registers, up to the last that is known here.
const REGISTERS: usize = 60;

/// The registers (section 5.2.4).
struct BlockConfig([u8; REGISTERS]);

impl BlockConfig {
    fn of(image: &Image, queue_size: u16, queues: usize) -> Self {
        let blocks = image.blocks;
        let exponent = (blocks.physical / blocks.logical).trailing_zeros() as u8;
        // Blocks are at most 64 KiB.
        let logical = blocks.logical as u32;
        // In logical blocks.
        let least = (blocks.physical / blocks.logical) as u16;
        // The header and the status take two descriptors.
        let segments = u32::from(queue_size.clamp(3, MOST_AT_ONCE) - 2);
        let discards = |value: u32| if image.discards { value } else { 0 };
        let zeroes = |value: u32| if image.readonly { 0 } else { value };
        // Clusters are at most 2 MiB.
        let aligned = (image.granularity / SECTOR) as u32;
        let mut bytes = Vec::with_capacity(REGISTERS);
        bytes.extend((image.capacity / SECTOR).to_le_bytes());
        // The largest segment, which may be any.
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(segments.to_le_bytes());
        // The geometry of old, which there is none of.
        bytes.extend([0; 4]);
        bytes.extend(logical.to_le_bytes());
        bytes.extend([exponent, 0]);
        bytes.extend(least.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        // Whether there is a cache to flush, which only drivers that may turn it off are told.
        bytes.extend([0, 0]);
        bytes.extend((queues as u16).to_le_bytes());
        bytes.extend(discards(MOST_SECTORS).to_le_bytes());
        bytes.extend(discards(1).to_le_bytes());
        bytes.extend(discards(aligned).to_le_bytes());
        bytes.extend(zeroes(MOST_SECTORS).to_le_bytes());
        bytes.extend(zeroes(1).to_le_bytes());
        bytes.extend([image.discards.into(), 0, 0, 0]);
        let mut registers = [0; REGISTERS];
        for (to, from) in registers.iter_mut().zip(bytes) {
            *to = from;
        }
        Self(registers)
    }
}

impl DeviceConfig for BlockConfig {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, byte) in data.iter_mut().enumerate() {
            let at = offset.checked_add(at);
            let found = at.and_then(|at| self.0.get(at));
            *byte = found.copied().unwrap_or(0);
        }
    }
}
