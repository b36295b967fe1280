//! A disk (section 5.2).
//!
//! | | |
//! |---|---|
//! | `backend` | its image: opened, locked, and what it can do |
//! | `device` | what the device offers |
//! | `request` | what a driver asks for |
//! | `worker` | a queue, whose requests are carried out |
//! | `buffers` | parts of guest memory, as the host is given them |
//! | `engine` | how the host is asked: io_uring, or one call after the other |
//!
//! What a driver was told is flushed is on the host's storage: a flush is answered once `fdatasync` has
//! returned, and every write of a driver that knows no flushes is synchronous.

mod backend;
mod buffers;
mod device;
mod engine;
#[cfg(any(test, feature = "testing"))]
pub(super) mod hostile;
mod request;
mod worker;

#[cfg(test)]
mod tests;

pub use backend::{Image, ImageError, ImageFormat, ImageOptions, Lock};
pub use device::{Block, BlockParts, EngineChoice};
