//! A device whose memory CPUs may cache, in a process of its own: a vfio-user server that guests
//! see as a GPU of the GH200 kind.
//!
//! The program is `coherent_device`; [`CoherentDevice`] starts it for a test. Its registers are in
//! docs/testing.md. It is built on the server half of the `vfio_user` crate, so that our client
//! is tested against somebody else's idea of the protocol. It believes its client, which is our
//! VMM: it is not meant to withstand a hostile one. What the crate leaves to its clients: at most
//! one descriptor in a message (`max_msg_fds`), descriptors of regions along with their
//! capabilities alone, and errors without a reason.

mod config_space;
mod dma;
mod memory;
mod options;
mod process;
mod registers;
mod server;

pub use dma::Status;
pub use options::{Options, OptionsError};
pub use process::CoherentDevice;
pub use registers::{
    CONTROL, DESTINATION, DOORBELL, GO, LENGTH, LOCAL, MAGIC, MAGIC_VALUE, MSIX_PENDING,
    MSIX_TABLE, SIZE as REGISTERS_SIZE, SOURCE,
};
pub use server::{ServeError, Server};
