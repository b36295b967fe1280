//! What keeps parts from becoming a function.

use std::io;

use thiserror::Error;

use crate::config_space::{BarError, CapabilityError};

/// Why a function cannot be made of its parts.
#[derive(Debug, Error)]
pub enum EmulatedError {
    /// The BARs are not possible together.
    #[error("the BARs do not make a function")]
    Bar(#[from] BarError),
    /// A BAR cannot be where firmware is to have put it.
    #[error(
        "BAR {index} cannot be at {address:#x}: that is no multiple of its {size:#x} bytes, or too high for its register"
    )]
    Address {
        /// Its register.
        index: u8,
        /// Where it was to be.
        address: u64,
        /// Its bytes.
        size: u64,
    },
    /// There is no room for a capability.
    #[error("the capabilities do not make a function")]
    Capability(#[from] CapabilityError),
    /// MSI-X has 1 to 2048 vectors.
    #[error("MSI-X cannot have {vectors} vectors; it has 1 to 2048")]
    Vectors {
        /// Vectors asked for.
        vectors: u16,
    },
    /// The table of MSI-X is in memory.
    #[error("MSI-X cannot be in BAR {bar}, which is no BAR of memory")]
    MsixBar {
        /// The BAR's register.
        bar: u8,
    },
    /// Table and pending bits are apart, inside the BAR, at multiples of 8.
    #[error(
        "MSI-X with {vectors} vectors does not fit BAR {bar} of {size:#x} bytes with the table at {table:#x} and \
         pending bits at {pending:#x}; they have to be inside, apart, below 4 GiB, and at multiples of 8"
    )]
    MsixPlaces {
        /// How many vectors.
        vectors: u16,
        /// The BAR's register.
        bar: u8,
        /// Bytes of the BAR.
        size: u64,
        /// Offset of the table.
        table: u64,
        /// Offset of the pending bits.
        pending: u64,
    },
    /// A hook is for registers of a capability.
    #[error("the hook's bytes {start:#x}..{end:#x} are not in capability {capability}")]
    Hook {
        /// Position of the capability.
        capability: usize,
        /// First byte in the capability.
        start: usize,
        /// Byte behind the last.
        end: usize,
    },
    /// The machine does not take a BAR.
    #[error("cannot prepare BAR {index}")]
    Region {
        /// Its register.
        index: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
}
