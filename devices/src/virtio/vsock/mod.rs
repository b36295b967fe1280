//! Sockets between guest and host (section 5.10), which are Unix sockets on the host.
//!
//! | | |
//! |---|---|
//! | `backend` | the host's side: a Unix socket that is listened on, and others that are connected to |
//! | `device` | what the device offers |
//! | `worker` | its queues, which one thread serves |
//! | `switch` | all connections: which packet is whose, and whose turn it is |
//! | `table` | where connections are kept |
//! | `connection` | a connection: its stages, credit, and its end |
//! | `greeting` | what a program of the host says before it has a connection |
//! | `ring` | bytes that a Unix socket did not take yet |
//! | `packet` | headers of packets |
//!
//! # On the host
//!
//! A program of the host connects to the socket and says `CONNECT <port>`, with a line feed. Once the
//! guest has accepted, it is answered `OK <host port>`, and bytes flow. What a guest connects to is port `P`
//! of context 2, which is the Unix socket of the same path with `_P` behind it. This is how Firecracker
//! and Cloud Hypervisor do it.
//!
//! # What it costs the host
//!
//! At most [`MOST_CONNECTIONS`] connections, of which [`MOST_HALF_OPEN`] have not been accepted yet, each
//! with one descriptor. Bytes go between guest memory and sockets without a copy of ours; a guest may
//! send [`BUFFER`] bytes that a socket does not take, and no more, for each connection.
//!
//! Headers are taken apart here and not by the crate `virtio-vsock`, which takes a packet's data in one
//! descriptor and one region of memory alone: Linux sends data in several (`MSG_ZEROCOPY`).

mod backend;
mod connection;
mod device;
mod greeting;
#[cfg(any(test, feature = "testing"))]
pub(super) mod hostile;
mod packet;
mod ring;
mod switch;
mod table;
mod worker;

#[cfg(test)]
mod tests;

pub use backend::VsockHost;
pub use connection::BUFFER;
pub use device::Vsock;
pub use switch::MOST_HALF_OPEN;
pub use table::MOST_CONNECTIONS;
