//! The capabilities that a device lists. Its word is not trusted: a list that loops or leaves its
//! space ends there, and no capability reaches into the next.
//!
//! Source: PCI Local Bus Specification 3.0, section 6.7; PCI Express Base Specification 6.0, section
//! 7.6.3.

use super::reader::Reader;
use crate::config_space::{CONVENTIONAL_SIZE, SIZE, STATUS_CAPABILITIES, offset};
use crate::device::DeviceError;

/// A capability of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it is.
    pub offset: usize,
    /// Its id.
    pub id: u16,
    /// Version, of an extended one.
    pub version: u8,
    /// Bytes up to the next capability or the end of the space.
    pub room: usize,
}

/// The capabilities in the first 256 bytes, in the order of the list.
pub(super) fn conventional(reader: &Reader) -> Result<Vec<Found>, DeviceError> {
    let mut list: Vec<Found> = Vec::new();
    if reader.u16(offset::STATUS)? & STATUS_CAPABILITIES == 0 {
        return Ok(list);
    }
    let mut next = reader.u8(offset::CAPABILITIES)?;
    loop {
        // The two low bits are reserved.
        let at = usize::from(next & !3);
        if at < offset::FIRST_CAPABILITY || is_listed(&list, at) {
            break;
        }
        let [id, link] = reader.u16(at)?.to_le_bytes();
        if id == 0xff {
            break;
        }
        list.push(Found {
            offset: at,
            id: id.into(),
            version: 0,
            room: 0,
        });
        next = link;
    }
    measure(&mut list, CONVENTIONAL_SIZE);
    Ok(list)
}

/// The extended capabilities, in the order of the list.
pub(super) fn extended(reader: &Reader) -> Result<Vec<Found>, DeviceError> {
    let mut list: Vec<Found> = Vec::new();
    let mut at = CONVENTIONAL_SIZE;
    while reader.is_extended() && at >= CONVENTIONAL_SIZE && !is_listed(&list, at) {
        let header = reader.u32(at)?;
        if matches!(header, 0 | u32::MAX) {
            break;
        }
        list.push(Found {
            offset: at,
            id: header as u16,
            version: (header >> 16 & 0xf) as u8,
            room: 0,
        });
        at = (header >> 20 & 0xffc) as usize;
    }
    measure(&mut list, SIZE);
    Ok(list)
}

fn is_listed(list: &[Found], at: usize) -> bool {
    list.iter().any(|found| found.offset == at)
}

/// Says how much room each has, in a space that ends at `end`.
fn measure(list: &mut [Found], end: usize) {
    let offsets: Vec<usize> = list.iter().map(|found| found.offset).collect();
    for found in list {
        let behind = offsets.iter().filter(|at| **at > found.offset).min();
        found.room = behind.copied().unwrap_or(end) - found.offset;
    }
}
