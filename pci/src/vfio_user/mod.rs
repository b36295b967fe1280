//! Devices in other processes: the client's side of the vfio-user protocol.
//!
//! A server offers a PCI device on a Unix socket, in the terms of VFIO: regions, interrupts, reset. It
//! may be anybody's, so nothing that it says is believed: every message is checked against what was
//! asked, every description against what can be, and every call ends in time. A server that breaks the
//! protocol is done with; one that answers with an error has refused that request alone.
//!
//! Source: the vfio-user protocol specification, version 0.1; Linux, include/uapi/linux/vfio.h.

mod client;
mod connection;
mod description;
mod error;
mod region;
mod sys;
mod wire;

use std::time::Duration;

pub use client::Client;
pub use error::ConnectError;

/// How long connecting, and every call later, may take, with the wait for calls of other threads.
///
/// A server answers in microseconds; one that is on a busy machine, or that resets its device, in
/// milliseconds. vCPUs wait for it meanwhile.
pub const DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
