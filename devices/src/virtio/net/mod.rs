//! A network interface (section 5.1).
//!
//! | | |
//! |---|---|
//! | `backend` | the host's side for all boots: an interface of the host, counters, limits |
//! | `tap` | an interface of the host that is a tap |
//! | `address` | addresses of such an interface, and its state |
//! | `device` | what the device offers |
//! | `worker` | a pair of queues, both served by one thread |
//! | `receive` | frames from the host to the guest |
//! | `transmit` | frames from the guest to the host |
//! | `control` | what else a driver asks for |
//! | `port` | one queue of the host's interface, and what is waited for there |
//! | `posted` | buffers of a driver that frames are to go to |
//!
//! A frame is moved by one call of the host, between its interface and the guest's buffers. It is copied
//! once more only where it does not fit into the buffers that it was read into, or has to wait for a
//! limit.

mod address;
mod backend;
mod control;
mod device;
#[cfg(any(test, feature = "testing"))]
pub(super) mod hostile;
mod port;
mod posted;
mod receive;
mod tap;
mod transmit;
mod worker;

#[cfg(test)]
mod tests;

pub use address::{HardwareAddress, InterfaceAddress};
pub use backend::{Interface, NetBackend, Offloads};
pub use device::{Net, NetParts, OffloadChoice};
pub use tap::{Tap, TapError, TapOptions};

/// Bytes in front of every frame (`struct virtio_net_hdr`, section 5.1.6).
const HEADER: usize = 12;
/// Where the header says how many buffers a frame has.
const NUM_BUFFERS: usize = 10;
/// Where the header has flags.
const FLAGS: usize = 0;
/// Bytes of the largest frame with its header: a packet of IPv6 with a payload of 65535 bytes, with its
/// addresses and a VLAN tag.
const LARGEST: usize = HEADER + 18 + 40 + 65535;
/// Frames after which it is looked whether the thread is to do something else.
const ROUND: usize = 256;
