#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod aml;
pub mod hmat;
pub mod linux;
pub mod slit;
pub mod srat;
pub mod table;
pub mod topology;

#[cfg(test)]
mod tests;

pub use table::{ReadError, Table, TableIds};
pub use topology::{
    AddressRange, DeviceHandle, Distance, DistanceSpec, MemoryRange, Node, Processor,
    ProximityDomain, Topology, TopologyError, TopologySpec,
};
