//! What the kernel says of IOMMUs, regions and resets, read from bytes.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::ops::{Range, RangeInclusive};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_PCI_HOT_RESET_FLAG_DEV_ID, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
    vfio_info_cap_header, vfio_iommu_type1_info, vfio_iommu_type1_info_cap_iova_range,
    vfio_iova_range, vfio_pci_dependent_device, vfio_pci_hot_reset_info, vfio_region_info,
    vfio_region_info_cap_sparse_mmap, vfio_region_sparse_mmap_area,
};

use crate::device::DeviceRegion;
use crate::machine::MappableArea;

/// What the kernel said makes no sense.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InfoError {
    /// A structure is not all there.
    #[error("something at offset {offset:#x} goes beyond the end of {length:#x} bytes")]
    Truncated {
        /// Where it begins, in bytes.
        offset: usize,
        /// Bytes that there are.
        length: usize,
    },
    /// Capabilities point to each other in a circle.
    #[error("the list of capabilities never ends")]
    Endless,
    /// A mappable area that is not in its region.
    #[error("the mappable area {offset:#x}-{end:#x} is not inside the region of {size:#x} bytes")]
    Outside {
        /// Where the area begins, in bytes.
        offset: u64,
        /// Where it ends, in bytes.
        end: u64,
        /// Bytes of the region.
        size: u64,
    },
    /// Mappable areas that overlap.
    #[error("two mappable areas overlap at {offset:#x}")]
    Overlapping {
        /// Where the second one begins, in bytes.
        offset: u64,
    },
}

/// Bytes from the kernel, in the byte order of this machine.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn array<const N: usize>(self, offset: usize) -> Result<[u8; N], InfoError> {
        let bytes = self.0.get(offset..).and_then(|bytes| bytes.first_chunk());
        bytes.copied().ok_or(InfoError::Truncated {
            offset,
            length: self.0.len(),
        })
    }

    fn u16(self, offset: usize) -> Result<u16, InfoError> {
        self.array(offset).map(u16::from_ne_bytes)
    }

    fn u32(self, offset: usize) -> Result<u32, InfoError> {
        self.array(offset).map(u32::from_ne_bytes)
    }

    fn u64(self, offset: usize) -> Result<u64, InfoError> {
        self.array(offset).map(u64::from_ne_bytes)
    }

    /// `count` elements of `size` bytes from `offset` on; they are all there.
    fn elements(
        self,
        offset: usize,
        count: u32,
        size: usize,
    ) -> Result<impl Iterator<Item = Bytes<'a>>, InfoError> {
        let length = (count as usize).saturating_mul(size);
        let bytes = self.0.get(offset..);
        let bytes = bytes.and_then(|bytes| bytes.get(..length));
        let bytes = bytes.ok_or(InfoError::Truncated {
            offset,
            length: self.0.len(),
        })?;
        Ok(bytes.chunks_exact(size).map(Bytes))
    }

    /// The capability `wanted` of the list that begins at offset `next`; 0 is no list. What is
    /// returned begins with the capability's header and ends where all ends.
    fn capability(self, mut next: usize, wanted: u32) -> Result<Option<Bytes<'a>>, InfoError> {
        const HEADER: usize = size_of::<vfio_info_cap_header>();
        // There are no more of them than headers have room.
        for _ in 0..=self.0.len() / HEADER {
            if next == 0 {
                return Ok(None);
            }
            let id = self.u16(next.saturating_add(offset_of!(vfio_info_cap_header, id)))?;
            let link = self.u32(next.saturating_add(offset_of!(vfio_info_cap_header, next)))?;
            if u32::from(id) == wanted {
                return Ok(self.0.get(next..).map(Bytes));
            }
            next = link as usize;
        }
        Err(InfoError::Endless)
    }
}

/// What an IOMMU can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IommuInfo {
    /// Bytes of its smallest page.
    pub page: u64,
    /// The addresses that devices can be given, if it says.
    pub ranges: Option<Vec<RangeInclusive<u64>>>,
}

impl IommuInfo {
    /// Reads `vfio_iommu_type1_info`.
    pub fn parse(bytes: &[u8]) -> Result<Self, InfoError> {
        let bytes = Bytes(bytes);
        let flags = bytes.u32(offset_of!(vfio_iommu_type1_info, flags))?;
        let mut info = Self {
            page: 1,
            ranges: None,
        };
        if flags & VFIO_IOMMU_INFO_PGSIZES != 0 {
            let sizes = bytes.u64(offset_of!(vfio_iommu_type1_info, iova_pgsizes))?;
            info.page = 1_u64.checked_shl(sizes.trailing_zeros()).unwrap_or(1);
        }
        if flags & VFIO_IOMMU_INFO_CAPS == 0 {
            return Ok(info);
        }
        let first = bytes.u32(offset_of!(vfio_iommu_type1_info, cap_offset))? as usize;
        let ranges = bytes.capability(first, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)?;
        info.ranges = ranges.map(Self::parse_ranges).transpose()?;
        Ok(info)
    }

    fn parse_ranges(capability: Bytes<'_>) -> Result<Vec<RangeInclusive<u64>>, InfoError> {
        type Capability = vfio_iommu_type1_info_cap_iova_range;
        let count = capability.u32(offset_of!(Capability, nr_iovas))?;
        let ranges = offset_of!(Capability, iova_ranges);
        capability
            .elements(ranges, count, size_of::<vfio_iova_range>())?
            .map(|range| {
                let start = range.u64(offset_of!(vfio_iova_range, start))?;
                Ok(start..=range.u64(offset_of!(vfio_iova_range, end))?)
            })
            .collect()
    }
}

/// What the kernel says of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    flags: u32,
    /// Bytes; 0 is a region that is not there.
    pub size: u64,
    /// Where it begins in the device's file, in bytes.
    pub offset: u64,
    /// What it says can be mapped, if it has a list.
    sparse: Option<Vec<Range<u64>>>,
}

impl RegionInfo {
    /// Reads `vfio_region_info`.
    pub fn parse(bytes: &[u8]) -> Result<Self, InfoError> {
        let bytes = Bytes(bytes);
        let mut info = Self {
            flags: bytes.u32(offset_of!(vfio_region_info, flags))?,
            size: bytes.u64(offset_of!(vfio_region_info, size))?,
            offset: bytes.u64(offset_of!(vfio_region_info, offset))?,
            sparse: None,
        };
        if info.flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
            return Ok(info);
        }
        let first = bytes.u32(offset_of!(vfio_region_info, cap_offset))? as usize;
        let sparse = bytes.capability(first, VFIO_REGION_INFO_CAP_SPARSE_MMAP)?;
        info.sparse = match sparse {
            Some(sparse) => Some(Self::parse_areas(sparse, info.size)?),
            None => None,
        };
        Ok(info)
    }

    fn parse_areas(capability: Bytes<'_>, size: u64) -> Result<Vec<Range<u64>>, InfoError> {
        type Area = vfio_region_sparse_mmap_area;
        let count = capability.u32(offset_of!(vfio_region_info_cap_sparse_mmap, nr_areas))?;
        let areas = offset_of!(vfio_region_info_cap_sparse_mmap, areas);
        let mut areas = capability
            .elements(areas, count, size_of::<Area>())?
            .map(|area| {
                let offset = area.u64(offset_of!(Area, offset))?;
                let end = offset.checked_add(area.u64(offset_of!(Area, size))?);
                match end.filter(|end| *end <= size) {
                    Some(end) => Ok(offset..end),
                    None => Err(InfoError::Outside {
                        offset,
                        end: end.unwrap_or(u64::MAX),
                        size,
                    }),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        areas.retain(|area| !area.is_empty());
        areas.sort_by_key(|area| area.start);
        let mut free = 0;
        for area in &areas {
            if area.start < free {
                return Err(InfoError::Overlapping { offset: area.start });
            }
            free = area.end;
        }
        Ok(areas)
    }

    /// The region of a device whose file is `file`, on a machine with pages of `page` bytes.
    pub fn into_region(self, file: &Arc<OwnedFd>, page: u64) -> DeviceRegion {
        let Self {
            flags,
            size,
            offset,
            sparse,
        } = self;
        let has = |flag| flags & flag != 0;
        let readable = has(VFIO_REGION_INFO_FLAG_READ);
        let writable = has(VFIO_REGION_INFO_FLAG_WRITE);
        let is_sparse = sparse.is_some();
        let areas = match has(VFIO_REGION_INFO_FLAG_MMAP) {
            true => sparse.unwrap_or_else(|| std::iter::once(0..size).collect()),
            false => Vec::new(),
        };
        let mappable = areas.into_iter().filter_map(|area| {
            let start = area.start.checked_next_multiple_of(page)?;
            let end = area.end - area.end % page;
            (start < end).then(|| MappableArea {
                offset: start,
                size: end - start,
                file: Arc::clone(file),
                file_offset: offset.saturating_add(start),
                readable,
                writable,
            })
        });
        DeviceRegion {
            size,
            readable,
            writable,
            mappable: mappable.collect(),
            sparse: is_sparse,
        }
    }
}

/// The devices that are reset together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResetSet {
    /// Their IOMMU groups.
    pub groups: BTreeSet<u32>,
    /// What the kernel calls them, such as `0000:01:00.0`.
    pub names: Vec<String>,
}

impl ResetSet {
    /// Reads `vfio_pci_hot_reset_info`; `None` if the kernel speaks of devices in other terms.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, InfoError> {
        type Device = vfio_pci_dependent_device;
        let bytes = Bytes(bytes);
        let flags = bytes.u32(offset_of!(vfio_pci_hot_reset_info, flags))?;
        if flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0 {
            return Ok(None);
        }
        let count = bytes.u32(offset_of!(vfio_pci_hot_reset_info, count))?;
        let devices = offset_of!(vfio_pci_hot_reset_info, devices);
        let mut set = Self::default();
        for device in bytes.elements(devices, count, size_of::<Device>())? {
            // The union with the group's number is first.
            set.groups.insert(device.u32(0)?);
            let segment = device.u16(offset_of!(Device, segment))?;
            let [bus] = device.array(offset_of!(Device, bus))?;
            let [devfn] = device.array(offset_of!(Device, devfn))?;
            let (number, function) = (devfn >> 3, devfn & 7);
            set.names
                .push(format!("{segment:04x}:{bus:02x}:{number:02x}.{function}"));
        }
        Ok(Some(set))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    /// A structure with a capability offset, and capabilities behind it.
    fn chain(fixed: &[u8], capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = fixed.to_vec();
        for (index, (id, body)) in capabilities.iter().enumerate() {
            let next = match index + 1 == capabilities.len() {
                true => 0,
                false => (bytes.len() + 8 + body.len()) as u32,
            };
            bytes.extend(id.to_ne_bytes());
            bytes.extend(1_u16.to_ne_bytes());
            bytes.extend(next.to_ne_bytes());
            bytes.extend(body);
        }
        bytes
    }

    fn list(pairs: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = (pairs.len() as u32).to_ne_bytes().to_vec();
        bytes.extend([0; 4]);
        for (first, second) in pairs {
            bytes.extend(first.to_ne_bytes());
            bytes.extend(second.to_ne_bytes());
        }
        bytes
    }

    fn region(flags: u32, size: u64, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut fixed = [0, flags, 4, 32].map(u32::to_ne_bytes).concat();
        fixed.extend(size.to_ne_bytes());
        fixed.extend((4_u64 << 40).to_ne_bytes());
        chain(&fixed, capabilities)
    }

    fn iommu(capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut fixed = [0, 3].map(u32::to_ne_bytes).concat();
        fixed.extend(0x4020_1000_u64.to_ne_bytes());
        fixed.extend([24, 0].map(u32::to_ne_bytes).concat());
        chain(&fixed, capabilities)
    }

    fn areas(info: RegionInfo) -> Vec<(u64, u64, u64)> {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let region = info.into_region(&file, PAGE);
        let areas = region.mappable.iter();
        areas
            .map(|area| (area.offset, area.size, area.file_offset))
            .collect()
    }

    #[test]
    fn a_region_that_can_be_mapped() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let info = RegionInfo::parse(&region(7, 0x4000, &[])).unwrap();
        let region = info.clone().into_region(&file, PAGE);
        assert!(region.readable && region.writable && !region.sparse);
        assert_eq!(region.size, 0x4000);
        assert_eq!(areas(info), [(0, 0x4000, 4 << 40)]);
    }

    #[test]
    fn only_whole_pages_are_mapped() {
        let parse = |size| RegionInfo::parse(&region(7, size, &[])).unwrap();
        assert_eq!(areas(parse(0x100)), []);
        assert_eq!(areas(parse(0x2800)), [(0, 0x2000, 4 << 40)]);
        assert_eq!(areas(parse(0)), []);
        let sparse = list(&[(0x800, 0x1000), (0x1800, 0x1900)]);
        let info = RegionInfo::parse(&region(15, 0x4000, &[(1, sparse)])).unwrap();
        assert_eq!(areas(info), [(0x2000, 0x1000, (4 << 40) + 0x2000)]);
    }

    #[test]
    fn a_list_of_areas_is_found_behind_other_capabilities_and_sorted() {
        let sparse = list(&[(0x3000, 0x1000), (0, 0x2000), (0x2000, 0)]);
        let bytes = region(15, 0x10000, &[(3, vec![]), (1, sparse)]);
        let info = RegionInfo::parse(&bytes).unwrap();
        let expected = [(0, 0x2000, 4 << 40), (0x3000, 0x1000, (4 << 40) + 0x3000)];
        assert_eq!(areas(info), expected);
    }

    #[test]
    fn an_empty_list_leaves_nothing_to_map() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let bytes = region(15, 0x10000, &[(1, list(&[]))]);
        let region = RegionInfo::parse(&bytes).unwrap().into_region(&file, PAGE);
        assert!(region.sparse && region.mappable.is_empty());
    }

    #[test]
    fn lies_about_areas_are_found() {
        let parse = |pairs: &[_]| RegionInfo::parse(&region(15, 0x4000, &[(1, list(pairs))]));
        assert_eq!(
            parse(&[(0x3000, 0x2000)]).unwrap_err().to_string(),
            "the mappable area 0x3000-0x5000 is not inside the region of 0x4000 bytes"
        );
        assert!(matches!(
            parse(&[(u64::MAX, 2)]),
            Err(InfoError::Outside { .. })
        ));
        assert_eq!(
            parse(&[(0, 0x2000), (0x1000, 0x1000)]),
            Err(InfoError::Overlapping { offset: 0x1000 })
        );
        let mut bytes = region(15, 0x4000, &[(1, list(&[(0, 0x1000)]))]);
        bytes[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(
            RegionInfo::parse(&bytes),
            Err(InfoError::Truncated { .. })
        ));
    }

    #[test]
    fn lists_without_an_end_are_found() {
        let mut bytes = region(15, 0x4000, &[(3, vec![]), (4, vec![])]);
        // The second capability points back to the first.
        bytes[44..48].copy_from_slice(&32_u32.to_ne_bytes());
        assert_eq!(RegionInfo::parse(&bytes), Err(InfoError::Endless));
        // Beyond the end, and nearly so.
        for next in [48_u32, 47, 41, u32::MAX] {
            bytes[44..48].copy_from_slice(&next.to_ne_bytes());
            let result = RegionInfo::parse(&bytes);
            assert!(matches!(result, Err(InfoError::Truncated { .. })));
        }
        bytes[44..48].copy_from_slice(&0_u32.to_ne_bytes());
        assert!(RegionInfo::parse(&bytes).is_ok());
    }

    #[test]
    fn an_iommu_says_what_it_translates() {
        let ranges = list(&[(0, 0x7ff_ffff), (0x810_0000, u64::MAX)]);
        let bytes = iommu(&[(3, vec![0; 4]), (1, ranges)]);
        let expected = IommuInfo {
            page: 0x1000,
            ranges: Some(vec![0..=0x7ff_ffff, 0x810_0000..=u64::MAX]),
        };
        assert_eq!(IommuInfo::parse(&bytes), Ok(expected));
        let silent = IommuInfo::parse(&iommu(&[(2, vec![0; 24])])).unwrap();
        assert_eq!(silent.ranges, None);
        assert!(IommuInfo::parse(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn devices_of_a_reset_are_told_with_their_groups() {
        let mut bytes = [0, 0, 3].map(u32::to_ne_bytes).concat();
        for (group, bus, devfn) in [(7_u32, 0, 0), (5, 0x3a, 0xff), (7, 0, 1)] {
            bytes.extend(group.to_ne_bytes());
            bytes.extend(0x1234_u16.to_ne_bytes());
            bytes.extend([bus, devfn]);
        }
        let set = ResetSet::parse(&bytes).unwrap().unwrap();
        assert_eq!(set.groups, BTreeSet::from([5, 7]));
        assert_eq!(set.names, ["1234:00:00.0", "1234:3a:1f.7", "1234:00:00.1"]);
        assert!(ResetSet::parse(&bytes[..bytes.len() - 1]).is_err());
        bytes[4] = 1;
        assert_eq!(ResetSet::parse(&bytes), Ok(None));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..256), caps in any::<bool>(), id in 0..4_u16) {
            if let Some(flags) = bytes.get_mut(4) {
                *flags = if caps { 15 } else { *flags };
            }
            if let Some(capability) = bytes.get_mut(12..14) {
                capability.copy_from_slice(&32_u16.to_ne_bytes());
            }
            if let Some(header) = bytes.get_mut(32..34) {
                header.copy_from_slice(&id.to_ne_bytes());
            }
            let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
            if let Ok(info) = RegionInfo::parse(&bytes) {
                let region = info.into_region(&file, PAGE);
                let mut free = 0;
                for area in &region.mappable {
                    prop_assert!(area.offset >= free && area.size > 0);
                    free = area.offset + area.size;
                }
                prop_assert!(free <= region.size);
            }
            let _ = IommuInfo::parse(&bytes);
            let _ = ResetSet::parse(&bytes);
        }
    }
}
