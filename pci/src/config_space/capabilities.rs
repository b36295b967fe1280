//! The two lists of capabilities.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.7; PCI Express Base Specification 6.0, section
//! 7.6.3.

use thiserror::Error;

use super::{CONVENTIONAL_SIZE, ConfigSpace, SIZE, STATUS_CAPABILITIES, offset};

/// There is no room for a capability.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no room for capability {id:#x} of {size} bytes in configuration space")]
pub struct CapabilityError {
    /// Its id.
    pub id: u16,
    /// Bytes, its header included.
    pub size: usize,
}

/// Bytes of a capability's header: id and pointer to the next.
const HEADER: usize = 2;
/// Bytes of an extended capability's header: id, version and pointer to the next.
const EXTENDED_HEADER: usize = 4;

impl ConfigSpace {
    /// Appends a capability whose bytes behind the header are `body`, of which a guest may change
    /// the bits of `writable`; bytes that it does not have are read-only.
    ///
    /// # Returns
    /// The capability's offset.
    ///
    /// # Errors
    /// If there is no room left.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, CapabilityError> {
        let at = self.next_capability;
        let size = HEADER + body.len();
        if at + size > CONVENTIONAL_SIZE {
            return Err(CapabilityError {
                id: id.into(),
                size,
            });
        }
        self.set(at, &[id, 0]);
        self.set(at + HEADER, body);
        self.allow(at + HEADER, &writable[..writable.len().min(body.len())]);
        let link = self.link;
        // Offsets in the first 256 bytes fit a byte.
        self.set(link, &[at as u8]);
        let status = self.u16_at(offset::STATUS) | STATUS_CAPABILITIES;
        self.set(offset::STATUS, &status.to_le_bytes());
        self.link = at + 1;
        self.next_capability = (at + size).next_multiple_of(4);
        Ok(at)
    }

    /// Appends an extended capability, as [`ConfigSpace::add_capability`] does one.
    ///
    /// # Returns
    /// The capability's offset.
    ///
    /// # Errors
    /// If there is no room left.
    pub fn add_extended_capability(
        &mut self,
        id: u16,
        version: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, CapabilityError> {
        let at = self.next_extended;
        let size = EXTENDED_HEADER + body.len();
        if at + size > SIZE {
            return Err(CapabilityError { id, size });
        }
        let header = u32::from(id) | u32::from(version & 0xf) << 16;
        self.set(at, &header.to_le_bytes());
        self.set(at + EXTENDED_HEADER, body);
        self.allow(
            at + EXTENDED_HEADER,
            &writable[..writable.len().min(body.len())],
        );
        if let Some(link) = self.extended_link {
            let header = self.u32_at(link) | (at as u32) << 20;
            self.set(link, &header.to_le_bytes());
        }
        self.extended_link = Some(at);
        self.next_extended = (at + size).next_multiple_of(4);
        Ok(at)
    }
}
