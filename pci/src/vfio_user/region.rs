//! What a server says of its regions, checked.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use zerocopy::{FromBytes, IntoBytes};

use super::connection::{Answer, Turn};
use super::error::{Failure, RegionFault, Violation};
use super::sys;
use super::wire::{CapabilityHeader, Command, RegionInfo, SparseArea, SparseAreas, argsz};
use crate::config_space;
use crate::device::{DeviceRegion, region};
use crate::machine::MappableArea;

/// Bytes of the largest region: more than any processor that runs guests can address.
const MAX_SIZE: u64 = 1 << 52;
/// Bytes of a region's description: room for about a thousand mappable areas.
const MAX_DESCRIPTION: u32 = 16 << 10;

/// Asks for the region with this number.
pub fn ask(turn: &mut Turn<'_>, index: u32) -> Result<DeviceRegion, Failure> {
    let fault = |fault| Violation::Region { index, fault };
    let mut answer = ask_in(turn, index, argsz::<RegionInfo>())?;
    let info = info_of(&answer, index)?;
    let has_capabilities = info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0;
    if has_capabilities {
        let (least, most) = (argsz::<RegionInfo>(), MAX_DESCRIPTION);
        if info.argsz <= least || info.argsz > most {
            let argsz = info.argsz;
            return Err(fault(RegionFault::Description { argsz, least, most }).into());
        }
        let full = ask_in(turn, index, info.argsz)?;
        // A server sends the descriptor with the whole description or with every one.
        answer = Answer {
            payload: full.payload,
            descriptor: full.descriptor.or(answer.descriptor),
        };
    }
    let info = info_of(&answer, index)?;
    describe(index, &info, &answer.payload, answer.descriptor).map_err(|error| fault(error).into())
}

/// Asks for a description of exactly so many bytes.
fn ask_in(turn: &mut Turn<'_>, index: u32, size: u32) -> Result<Answer, Failure> {
    let request = RegionInfo {
        argsz: size,
        index,
        ..Default::default()
    };
    let length = size as usize;
    turn.ask_for_descriptor(
        Command::DeviceGetRegionInfo,
        [request.as_bytes(), &[]],
        &[],
        length..=length,
    )
}

fn info_of(answer: &Answer, index: u32) -> Result<RegionInfo, Violation> {
    // Answers are as long as was asked for.
    let (info, _) = RegionInfo::read_from_prefix(&answer.payload).unwrap_or_default();
    if info.index != index {
        return Err(Violation::Index {
            what: "region",
            asked: index,
            told: info.index,
        });
    }
    Ok(info)
}

/// Checks a region. `description` begins with `info`.
fn describe(
    index: u32,
    info: &RegionInfo,
    description: &[u8],
    file: Option<OwnedFd>,
) -> Result<DeviceRegion, RegionFault> {
    let RegionInfo {
        argsz: _,
        flags,
        index: _,
        cap_offset,
        size,
        offset,
    } = *info;
    if size > MAX_SIZE {
        let most = MAX_SIZE;
        return Err(RegionFault::Size { size, most });
    }
    let mut region = DeviceRegion {
        size,
        readable: flags & VFIO_REGION_INFO_FLAG_READ != 0,
        writable: flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
        mappable: Vec::new(),
        sparse: false,
    };
    if index == region::CONFIG {
        check_config(&region, flags)?;
    }
    let mut areas = None;
    if flags & VFIO_REGION_INFO_FLAG_CAPS != 0 {
        areas = sparse_areas(description, cap_offset)?;
    }
    if flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || size == 0 {
        return match file {
            Some(_) => Err(RegionFault::UnexpectedDescriptor),
            None => Ok(region),
        };
    }
    let areas = match areas {
        Some(areas) => {
            region.sparse = true;
            areas
        }
        None if file.is_none() => {
            log::warn!(
                "vfio-user region {index} can be mapped, but its server sent no file descriptor: each \
                 access will be a message"
            );
            Vec::new()
        }
        None if size.is_multiple_of(sys::page_size()) => vec![SparseArea { offset: 0, size }],
        None => Vec::new(),
    };
    check_areas(&areas, size, offset)?;
    if !areas.is_empty() {
        let file = file.ok_or(RegionFault::NoDescriptor)?;
        region.mappable = mappable(&region, &areas, offset, file)?;
    }
    Ok(region)
}

/// Checks what every PCI function has (PCI Express Base Specification 6.0, section 7.2).
fn check_config(config: &DeviceRegion, flags: u32) -> Result<(), RegionFault> {
    let size = config.size;
    if !(256..=config_space::SIZE as u64).contains(&size) {
        return Err(RegionFault::ConfigSize { size });
    }
    if !config.readable || !config.writable {
        return Err(RegionFault::ConfigFlags { flags });
    }
    Ok(())
}

/// Walks the list of capabilities for the one that lists mappable areas.
fn sparse_areas(description: &[u8], first: u32) -> Result<Option<Vec<SparseArea>>, RegionFault> {
    let mut found = None;
    let mut offset = first;
    while offset != 0 {
        let outside = RegionFault::CapabilityOutside {
            offset,
            length: description.len(),
        };
        let capability = (offset >= argsz::<RegionInfo>())
            .then(|| description.get(offset as usize..))
            .flatten()
            .and_then(|rest| CapabilityHeader::read_from_prefix(rest).ok());
        let Some((header, rest)) = capability else {
            return Err(outside);
        };
        if u32::from(header.id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let version = header.version;
            if version != 1 {
                return Err(RegionFault::SparseVersion { version });
            }
            if found.is_some() {
                return Err(RegionFault::SparseTwice { offset });
            }
            let Ok((SparseAreas { count, reserved: _ }, rest)) =
                SparseAreas::read_from_prefix(rest)
            else {
                return Err(outside);
            };
            found = Some(areas_of(rest, count)?);
        }
        let next = header.next;
        // Capabilities follow each other, so a list that goes back is a list without an end.
        if next != 0 && next <= offset {
            return Err(RegionFault::CapabilityLoop { offset, next });
        }
        offset = next;
    }
    Ok(found)
}

fn areas_of(bytes: &[u8], count: u32) -> Result<Vec<SparseArea>, RegionFault> {
    let (areas, _) = bytes.as_chunks::<{ size_of::<SparseArea>() }>();
    let room = areas.len();
    let areas = areas
        .get(..count as usize)
        .ok_or(RegionFault::AreaCount { count, room })?;
    Ok(areas
        .iter()
        .map(|bytes| zerocopy::transmute!(*bytes))
        .collect())
}

/// Checks areas of a region of `region_size` bytes that begins at `file_offset` in its file.
fn check_areas(
    areas: &[SparseArea],
    region_size: u64,
    file_offset: u64,
) -> Result<(), RegionFault> {
    let page = sys::page_size();
    let mut end_before = 0;
    for &SparseArea { offset, size } in areas {
        let whole = [offset, size, file_offset]
            .iter()
            .all(|value| value.is_multiple_of(page));
        if !whole || size == 0 {
            return Err(RegionFault::AreaUnaligned {
                offset,
                size,
                file_offset,
                page,
            });
        }
        let end = offset
            .checked_add(size)
            .filter(|end| *end <= region_size)
            .ok_or(RegionFault::AreaOutside {
                offset,
                size,
                region_size,
            })?;
        if offset < end_before {
            let end = end_before;
            return Err(RegionFault::AreaOrder { offset, size, end });
        }
        end_before = end;
    }
    Ok(())
}

/// The areas as parts of the file, if it has them.
fn mappable(
    region: &DeviceRegion,
    areas: &[SparseArea],
    region_offset: u64,
    file: OwnedFd,
) -> Result<Vec<MappableArea>, RegionFault> {
    let flags = sys::open_flags(file.as_fd()).map_err(RegionFault::File)?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(RegionFault::File)?;
    if !metadata.is_file() || flags & libc::O_PATH != 0 {
        return Err(RegionFault::FileKind);
    }
    // A shared mapping is always of a file that can be read: mmap(2), EACCES.
    let (suits, needed) = match flags & libc::O_ACCMODE {
        libc::O_RDWR => (true, ""),
        libc::O_RDONLY => (!region.writable, "reading and writing"),
        _ => (false, "reading"),
    };
    if !suits {
        return Err(RegionFault::FileMode { flags, needed });
    }
    let length = metadata.len();
    let file = Arc::new(OwnedFd::from(file));
    areas
        .iter()
        .map(|&SparseArea { offset, size }| {
            let file_offset = region_offset
                .checked_add(offset)
                .filter(|begin| begin.checked_add(size).is_some_and(|end| end <= length))
                .ok_or(RegionFault::FileShort {
                    size,
                    file_offset: region_offset.saturating_add(offset),
                    length,
                })?;
            Ok(MappableArea {
                offset,
                size,
                file: Arc::clone(&file),
                file_offset,
                readable: region.readable,
                writable: region.writable,
            })
        })
        .collect()
}
