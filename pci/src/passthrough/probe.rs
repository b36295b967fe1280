//! What a device is, found out before a guest is planned with it.

use thiserror::Error;

use super::bars::mappable_areas;
use super::lists;
use super::msix::{self, MsixLayout};
use super::page;
use super::reader::Reader;
use crate::config_space::{BarKind, Identity, offset};
use crate::device::{Device, DeviceError, DeviceRegion, IrqKind, region};
use crate::{BarFacts, CoherentMemory, DeviceFacts};

/// Names of the host driver that gives CPU-coherent devices to guests, as module and as driver.
const COHERENT_DRIVERS: [&str; 2] = ["nvgrace_gpu_vfio_pci", "nvgrace-gpu-vfio-pci"];
/// The BAR that coherent memory is behind.
const COHERENT_BAR: u8 = 4;

/// Why a device cannot be given to a guest.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Functions have 256 or 4096 bytes of configuration space.
    #[error(
        "the device has {size:#x} bytes of configuration space; a PCI function has 0x100 or 0x1000"
    )]
    NoConfig {
        /// Bytes that it has.
        size: u64,
    },
    /// Configuration space cannot be read.
    #[error("cannot read the device's configuration space")]
    Read(#[from] DeviceError),
    /// Its ids are all ones.
    #[error(
        "no device answers: its vendor id is 0xffff; it may be powered down or have fallen off the bus"
    )]
    NotThere,
    /// Bridges are not passed through.
    #[error(
        "the device has a header of type {found:#x}, a bridge; only functions with type 0x0 can be passed through"
    )]
    HeaderType {
        /// What the header says, without the multi-function bit.
        found: u8,
    },
    /// The type of memory that a BAR says it is, is reserved.
    #[error("BAR {index} has the value {value:#x}, whose type is reserved")]
    BarType {
        /// Its register.
        index: u8,
        /// What the register holds.
        value: u32,
    },
    /// The last register has none behind it.
    #[error("BAR {index} has 64 bits and no register behind it for its upper half")]
    NoUpperHalf {
        /// Its register.
        index: u8,
    },
    /// No register can say that size.
    #[error("BAR {index} has a region of {size:#x} bytes; the most that it can have is {most:#x}")]
    BarSize {
        /// Its register.
        index: u8,
        /// Bytes of the device's region.
        size: u64,
        /// The most bytes.
        most: u64,
    },
}

/// Finds out what a device is.
///
/// `driver` is the host driver that passes it through, if one does. The BARs whose registers are in
/// `exclude_mmap_bars` will be trapped throughout.
///
/// # Errors
/// It is not there, a bridge, or not possible as it says it is.
pub fn probe(
    device: &dyn Device,
    driver: Option<&str>,
    exclude_mmap_bars: &[u8],
) -> Result<DeviceFacts, ProbeError> {
    let reader = Reader::new(device).ok_or(ProbeError::NoConfig {
        size: device.region(region::CONFIG).size,
    })?;
    let vendor = reader.u16(offset::VENDOR)?;
    if vendor == u16::MAX {
        return Err(ProbeError::NotThere);
    }
    const MULTI_FUNCTION: u8 = 1 << 7;
    let found = reader.u8(offset::HEADER_TYPE)? & !MULTI_FUNCTION;
    if found != 0 {
        return Err(ProbeError::HeaderType { found });
    }
    let [revision, interface, sub_class, base_class] = reader.u32(offset::REVISION)?.to_le_bytes();
    let identity = Identity {
        vendor,
        device: reader.u16(offset::DEVICE)?,
        revision,
        class: u32::from_le_bytes([interface, sub_class, base_class, 0]),
        subsystem_vendor: reader.u16(offset::SUBSYSTEM_VENDOR)?,
        subsystem: reader.u16(offset::SUBSYSTEM)?,
    };
    let mut bars = bars(device, &reader)?;
    let msix = msix(device, &reader, &bars)?;
    let page = page::size();
    for bar in &mut bars {
        if bar.kind == BarKind::Io || exclude_mmap_bars.contains(&bar.index) {
            continue;
        }
        let holes = msix.iter().flat_map(|msix| msix.places.in_bar(bar.index));
        let areas = mappable_areas(device.region(bar.index.into()), holes, page);
        bar.mappable = areas.iter().map(|area| area.size).sum();
    }
    Ok(DeviceFacts {
        identity,
        coherent: coherent_memory(device, driver, &bars, msix.as_ref()),
        bars,
        intx: reader.u8(offset::INTERRUPT_PIN)? != 0 && device.irqs(IrqKind::Intx) > 0,
        driver: driver.map(str::to_owned),
    })
}

/// The BARs, none of which can be mapped yet.
fn bars(device: &dyn Device, reader: &Reader) -> Result<Vec<BarFacts>, ProbeError> {
    const REGISTERS: u8 = 6;
    let mut bars = Vec::new();
    let mut index = 0;
    while index < REGISTERS {
        let size = device.region(index.into()).size;
        // What such a register says is nothing that answers.
        if size == 0 {
            index += 1;
            continue;
        }
        let kind = bar_kind(index, reader.u32(offset::BARS + 4 * usize::from(index))?)?;
        if kind.is_64_bit() && index + 1 == REGISTERS {
            return Err(ProbeError::NoUpperHalf { index });
        }
        let (least, most) = kind.sizes();
        let size = size
            .checked_next_power_of_two()
            .filter(|size| *size <= most)
            .ok_or(ProbeError::BarSize { index, size, most })?
            .max(least);
        bars.push(BarFacts {
            index,
            kind,
            size,
            mappable: 0,
        });
        index += if kind.is_64_bit() { 2 } else { 1 };
    }
    Ok(bars)
}

/// What a register decodes (PCI 3.0, section 6.2.5.1).
fn bar_kind(index: u8, value: u32) -> Result<BarKind, ProbeError> {
    let prefetchable = value >> 3 & 1 != 0;
    match (value & 1, value >> 1 & 3) {
        (1, _) => Ok(BarKind::Io),
        (_, 0) => Ok(BarKind::Memory32 { prefetchable }),
        (_, 2) => Ok(BarKind::Memory64 { prefetchable }),
        _ => Err(ProbeError::BarType { index, value }),
    }
}

/// Where its MSI-X table is.
fn msix(
    device: &dyn Device,
    reader: &Reader,
    bars: &[BarFacts],
) -> Result<Option<MsixLayout>, DeviceError> {
    for found in lists::conventional(reader)? {
        if found.id == msix::ID
            && let Some(layout) = MsixLayout::read(reader, &found, device, bars)?
        {
            return Ok(Some(layout));
        }
    }
    Ok(None)
}

/// Memory that CPUs may cache. Nothing says outright that a device has some: either the host driver
/// is the one for such devices, or the memory is a 64-bit prefetchable BAR 4 of which the device
/// lists one area to be mapped, from its start and shorter than the BAR.
fn coherent_memory(
    device: &dyn Device,
    driver: Option<&str>,
    bars: &[BarFacts],
    msix: Option<&MsixLayout>,
) -> Option<CoherentMemory> {
    let bar = bars.iter().find(|bar| bar.index == COHERENT_BAR)?;
    let region: &DeviceRegion = device.region(COHERENT_BAR.into());
    let area = match region.mappable.as_slice() {
        [area] if area.offset == 0 => Some(area.size),
        _ => None,
    };
    let usable = match driver {
        Some(driver) if COHERENT_DRIVERS.contains(&driver) => area.unwrap_or(region.size),
        _ => {
            // An area that ends at the table of MSI-X says nothing about memory.
            let has_table =
                msix.is_some_and(|msix| msix.places.in_bar(COHERENT_BAR).next().is_some());
            let is_memory = bar.kind == BarKind::Memory64 { prefetchable: true };
            let is_listed = region.sparse && is_memory && !has_table;
            area.filter(|size| is_listed && *size < bar.size)?
        }
    };
    (usable > 0).then_some(CoherentMemory {
        bar: COHERENT_BAR,
        usable,
    })
}
