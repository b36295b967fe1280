//! A disk (section 5.2).
//!
//! | | |
//! |---|---|
//! | `backend` | its image: opened, locked, and what it can do |
//! | `device` | what the device offers |
//! | `request` | what a driver asks for |
//! | `worker` | a queue, whose requests are carried out |
//! | `slot` | a request that is under way, step by step |
//! | `counters` | what it counts |
//! | `engine` | how the host is asked: io_uring, or one call after the other |
//! | `qcow2` | images whose bytes are not where they are on the disk |
//! | `pool` | threads that may wait, for what is to be done with these |
//! | `scatter` | buffers that such a thread works on |
//!
//! What a driver was told is flushed is on the host's storage: a flush is answered once `fdatasync` has
//! returned, and every write of a driver that knows no flushes is synchronous.

mod backend;
mod counters;
mod device;
mod engine;
#[cfg(any(test, feature = "testing"))]
pub(super) mod hostile;
mod pool;
mod qcow2;
mod request;
mod scatter;
mod slot;
mod worker;

#[cfg(test)]
mod tests;

pub use backend::{Image, ImageError, ImageFormat, ImageOptions, Lock};
pub use device::{Block, BlockParts, EngineChoice};
pub use qcow2::{ChainError, HeaderError};
