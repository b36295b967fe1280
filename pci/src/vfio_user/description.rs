//! What a client and a server agree on, and what the server says of its device.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD,
};
use zerocopy::{FromBytes, IntoBytes};

use super::connection::{MAX_TRANSFER, Turn};
use super::error::{Failure, Violation};
use super::region;
use super::sys;
use super::wire::{Command, DeviceInfo, IrqInfo, MAJOR, MINOR, Version, argsz};
use crate::device::{DeviceRegion, IrqKind, region as number};

/// Bytes of JSON, which is a few numbers.
const MAX_CAPABILITIES: usize = 4096;
/// Descriptors that go into one message, at most: servers that say more have been seen to mean less.
const MAX_SENT: u64 = 16;
/// Bytes of the widest access of a guest, which is one access to the device too.
const LEAST_TRANSFER: u64 = 8;
/// Regions and kinds of interrupts that a device may have, most of which nobody asks for.
const MAX_INDICES: u32 = 1024;

/// How much a server takes in one message.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Descriptors.
    pub descriptors: usize,
    /// Bytes that are read or written.
    pub transfer: usize,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct VersionData {
    #[serde(default)]
    capabilities: Capabilities,
}

/// "VFIO_USER_VERSION", the table of capabilities, which also has the defaults.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Capabilities {
    max_msg_fds: u64,
    max_data_xfer_size: u64,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
        }
    }
}

/// Agrees on a version and on how much a message carries.
pub fn negotiate(turn: &mut Turn<'_>) -> Result<Limits, Failure> {
    let version = Version {
        major: MAJOR,
        minor: MINOR,
    };
    let ours = VersionData {
        capabilities: Capabilities {
            max_msg_fds: sys::MAX_RECEIVED as u64,
            max_data_xfer_size: u64::from(MAX_TRANSFER),
        },
    };
    let mut json = serde_json::to_vec(&ours).map_err(Violation::Capabilities)?;
    json.push(0);
    let least = size_of::<Version>();
    let answer = turn.ask(
        Command::Version,
        [version.as_bytes(), &json],
        &[],
        least..=least + MAX_CAPABILITIES,
    )?;
    let (Version { major, minor }, json) =
        Version::read_from_prefix(&answer).unwrap_or((Version::default(), &[]));
    if major != MAJOR || minor > MINOR {
        return Err(Violation::Version { major, minor }.into());
    }
    limits(json).map_err(Failure::from)
}

fn limits(json: &[u8]) -> Result<Limits, Violation> {
    let data = match json.split_last() {
        None => VersionData::default(),
        Some((0, json)) => serde_json::from_slice(json).map_err(Violation::Capabilities)?,
        Some(_) => return Err(Violation::Unterminated),
    };
    let Capabilities {
        max_msg_fds,
        max_data_xfer_size,
    } = data.capabilities;
    Ok(Limits {
        descriptors: limit("file descriptors", max_msg_fds, 1..=MAX_SENT)?,
        transfer: limit(
            "bytes of data",
            max_data_xfer_size,
            LEAST_TRANSFER..=MAX_TRANSFER.into(),
        )?,
    })
}

/// How much is sent to a server that takes `value`. Less than the range is too little; more is not made
/// use of.
fn limit(what: &'static str, value: u64, range: RangeInclusive<u64>) -> Result<usize, Violation> {
    let least = *range.start();
    usize::try_from(value.min(*range.end()))
        .ok()
        .filter(|_| value >= least)
        .ok_or(Violation::Limit { what, value, least })
}

/// A device, as its server describes it.
#[derive(Debug)]
pub struct Description {
    /// Regions by their numbers, [`number::COUNT`] of them.
    pub regions: Vec<DeviceRegion>,
    /// How many interrupts there are, by the numbers of their kinds.
    pub irqs: [u32; 3],
    /// Whether it can be reset.
    pub can_reset: bool,
}

/// Asks for everything that is to be known.
pub fn describe(turn: &mut Turn<'_>) -> Result<Description, Failure> {
    let request = DeviceInfo {
        argsz: argsz::<DeviceInfo>(),
        ..Default::default()
    };
    let length = size_of::<DeviceInfo>();
    let answer = turn.ask(
        Command::DeviceGetInfo,
        [request.as_bytes(), &[]],
        &[],
        length..=length,
    )?;
    let DeviceInfo {
        argsz: _,
        flags,
        regions: region_count,
        irqs: kind_count,
    } = DeviceInfo::read_from_bytes(&answer).unwrap_or_default();
    if flags & VFIO_DEVICE_FLAGS_PCI == 0 {
        return Err(Violation::NotPci { flags }.into());
    }
    check_count("regions", region_count, MAX_INDICES)?;
    check_count("kinds of interrupts", kind_count, MAX_INDICES)?;
    if region_count <= number::CONFIG {
        return Err(Violation::NoConfig {
            count: region_count,
        }
        .into());
    }

    let mut regions = vec![DeviceRegion::default(); number::COUNT as usize];
    for (region, index) in regions.iter_mut().zip(0..region_count) {
        *region = region::ask(turn, index)?;
    }
    let mut irqs = [0; 3];
    for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix] {
        if let Some(count) = irqs.get_mut(kind.index() as usize)
            && kind.index() < kind_count
        {
            *count = ask_for_irqs(turn, kind)?;
        }
    }
    Ok(Description {
        regions,
        irqs,
        can_reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
    })
}

fn ask_for_irqs(turn: &mut Turn<'_>, kind: IrqKind) -> Result<u32, Failure> {
    // One function has one pin (PCI 3.0, section 6.2.4), 32 MSIs and 2048 MSI-Xs (section 6.8).
    let (what, most) = match kind {
        IrqKind::Intx => ("wired interrupts", 1),
        IrqKind::Msi => ("MSI vectors", 32),
        IrqKind::Msix => ("MSI-X vectors", 2048),
    };
    let request = IrqInfo {
        argsz: argsz::<IrqInfo>(),
        index: kind.index(),
        ..Default::default()
    };
    let length = size_of::<IrqInfo>();
    let answer = turn.ask(
        Command::DeviceGetIrqInfo,
        [request.as_bytes(), &[]],
        &[],
        length..=length,
    )?;
    let IrqInfo {
        argsz: _,
        flags,
        index,
        count,
    } = IrqInfo::read_from_bytes(&answer).unwrap_or_default();
    if index != kind.index() {
        return Err(Violation::Index {
            what: "interrupts of kind",
            asked: kind.index(),
            told: index,
        }
        .into());
    }
    check_count(what, count, most)?;
    if flags & VFIO_IRQ_INFO_EVENTFD == 0 && count != 0 {
        log::warn!("a vfio-user device has {count} {what} that cannot be sent by eventfd: ignored");
        return Ok(0);
    }
    Ok(count)
}

fn check_count(what: &'static str, count: u32, most: u32) -> Result<(), Violation> {
    if count > most {
        return Err(Violation::Count { what, count, most });
    }
    Ok(())
}
