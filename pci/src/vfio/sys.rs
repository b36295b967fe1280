//! What the kernel can be asked for, as functions.
//!
//! Source: Linux, include/uapi/linux/vfio.h.
#![expect(
    unsafe_code,
    reason = "ioctls, and reads and writes at an offset of a file"
)]

use std::ffi::{CStr, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_irq_info,
};
use vmm_sys_util::ioctl::{
    _IOC_NONE, ioctl, ioctl_expr, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr,
    ioctl_with_ref, ioctl_with_val,
};

const GET_API_VERSION: c_ulong = request(0);
const CHECK_EXTENSION: c_ulong = request(1);
const SET_IOMMU: c_ulong = request(2);
const GROUP_GET_STATUS: c_ulong = request(3);
const GROUP_SET_CONTAINER: c_ulong = request(4);
const GROUP_GET_DEVICE_FD: c_ulong = request(6);
const DEVICE_GET_INFO: c_ulong = request(7);
const DEVICE_GET_REGION_INFO: c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: c_ulong = request(9);
const DEVICE_SET_IRQS: c_ulong = request(10);
const DEVICE_RESET: c_ulong = request(11);
// Devices and IOMMUs count on from here, each for themselves.
const DEVICE_GET_PCI_HOT_RESET_INFO: c_ulong = request(12);
const DEVICE_PCI_HOT_RESET: c_ulong = request(13);
const IOMMU_GET_INFO: c_ulong = request(12);
const IOMMU_MAP_DMA: c_ulong = request(13);
const IOMMU_UNMAP_DMA: c_ulong = request(14);

/// Bytes for a structure and its capabilities at first, and at most if the kernel asks for more.
const FIRST_SIZE: usize = 1 << 10;
const MOST_SIZE: usize = 1 << 20;

const fn request(number: u32) -> c_ulong {
    ioctl_expr(_IOC_NONE, VFIO_TYPE as u32, VFIO_BASE + number, 0)
}

/// What an ioctl returned, unless it failed.
fn check(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a structure says of its size at its beginning. Ours are much smaller than 4 GiB.
fn argsz(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Bytes of a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: the call has no precondition.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Makes the descriptor of `file` one of `other`: what it was of is closed, and whoever has the
/// descriptor keeps one that is open (dup(2)).
pub fn replace(file: &OwnedFd, other: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: both descriptors are open, and `file` stays the owner of its own.
    check(unsafe { libc::dup3(other.as_raw_fd(), file.as_raw_fd(), libc::O_CLOEXEC) })?;
    Ok(())
}

/// The version of the interface (`VFIO_GET_API_VERSION`).
pub fn api_version(container: &File) -> io::Result<c_int> {
    // SAFETY: the request has no argument.
    check(unsafe { ioctl(container, GET_API_VERSION) })
}

/// Whether there are IOMMUs of a kind (`VFIO_CHECK_EXTENSION`).
pub fn has_extension(container: &File, extension: u32) -> io::Result<bool> {
    // SAFETY: the argument is a number.
    let result = unsafe { ioctl_with_val(container, CHECK_EXTENSION, extension.into()) };
    Ok(check(result)? > 0)
}

/// Chooses the kind of IOMMU (`VFIO_SET_IOMMU`).
pub fn set_iommu(container: &File, kind: u32) -> io::Result<()> {
    // SAFETY: the argument is a number.
    check(unsafe { ioctl_with_val(container, SET_IOMMU, kind.into()) })?;
    Ok(())
}

/// `vfio_iommu_type1_info` and its capabilities.
pub fn iommu_info(container: &File) -> io::Result<Vec<u8>> {
    query(container, IOMMU_GET_INFO, &[])
}

/// Lets devices reach memory of this process (`VFIO_IOMMU_MAP_DMA`); flags are
/// `VFIO_DMA_MAP_FLAG_*`.
pub fn map(container: &File, flags: u32, iova: u64, address: u64, size: u64) -> io::Result<()> {
    let argument = vfio_iommu_type1_dma_map {
        argsz: argsz(size_of::<vfio_iommu_type1_dma_map>()),
        flags,
        vaddr: address,
        iova,
        size,
    };
    // SAFETY: the kernel reads the structure, whose size it is told. That devices change memory there
    // is what whoever mapped it wants: nothing in this process has references into it.
    check(unsafe { ioctl_with_ref(container, IOMMU_MAP_DMA, &argument) })?;
    Ok(())
}

/// Takes memory away from devices (`VFIO_IOMMU_UNMAP_DMA`). Returns how many bytes it was.
pub fn unmap(container: &File, iova: u64, size: u64) -> io::Result<u64> {
    let mut argument = vfio_iommu_type1_dma_unmap {
        argsz: argsz(size_of::<vfio_iommu_type1_dma_unmap>()),
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure, whose size it is told.
    check(unsafe { ioctl_with_mut_ref(container, IOMMU_UNMAP_DMA, &mut argument) })?;
    Ok(argument.size)
}

/// `VFIO_GROUP_FLAGS_*` of a group.
pub fn group_flags(group: &OwnedFd) -> io::Result<u32> {
    let mut argument = vfio_group_status {
        argsz: argsz(size_of::<vfio_group_status>()),
        flags: 0,
    };
    // SAFETY: the kernel reads and writes the structure, whose size it is told.
    check(unsafe { ioctl_with_mut_ref(group, GROUP_GET_STATUS, &mut argument) })?;
    Ok(argument.flags)
}

/// Puts a group into a container (`VFIO_GROUP_SET_CONTAINER`).
pub fn set_container(group: &OwnedFd, container: &File) -> io::Result<()> {
    let container = container.as_raw_fd();
    // SAFETY: the kernel reads a descriptor's number.
    check(unsafe { ioctl_with_ref(group, GROUP_SET_CONTAINER, &container) })?;
    Ok(())
}

/// Opens a device of a group by its name in sysfs (`VFIO_GROUP_GET_DEVICE_FD`).
pub fn open_device(group: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends with a zero.
    let fd = check(unsafe { ioctl_with_ptr(group, GROUP_GET_DEVICE_FD, name.as_ptr()) })?;
    // SAFETY: the kernel made the descriptor for us just now, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a device is (`VFIO_DEVICE_GET_INFO`), without its capabilities.
pub fn device_info(device: &OwnedFd) -> io::Result<vfio_device_info> {
    let mut argument = vfio_device_info {
        argsz: argsz(size_of::<vfio_device_info>()),
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure, whose size it is told.
    check(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_INFO, &mut argument) })?;
    Ok(argument)
}

/// `vfio_region_info` of a region, and its capabilities.
pub fn region_info(device: &OwnedFd, index: u32) -> io::Result<Vec<u8>> {
    let no_flags = 0_u32.to_ne_bytes();
    let argument = [no_flags, index.to_ne_bytes()].concat();
    query(device, DEVICE_GET_REGION_INFO, &argument)
}

/// Interrupts of a kind (`VFIO_DEVICE_GET_IRQ_INFO`).
pub fn irq_info(device: &OwnedFd, index: u32) -> io::Result<vfio_irq_info> {
    let mut argument = vfio_irq_info {
        argsz: argsz(size_of::<vfio_irq_info>()),
        index,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure, whose size it is told.
    check(unsafe { ioctl_with_mut_ref(device, DEVICE_GET_IRQ_INFO, &mut argument) })?;
    Ok(argument)
}

/// Does something with interrupts 0 to `count` of a kind (`VFIO_DEVICE_SET_IRQS`); flags are
/// `VFIO_IRQ_SET_*`. `events` are `count` descriptors, or none. Returns 0, or for how many interrupts
/// the host would have had room.
pub fn set_irqs(
    device: &OwnedFd,
    flags: u32,
    index: u32,
    count: u32,
    events: &[RawFd],
) -> io::Result<c_int> {
    // argsz, flags, index, start, count, data
    let mut argument = vec![0, flags, index, 0, count];
    argument.extend(events.iter().map(|fd| fd.cast_unsigned()));
    set_size(&mut argument);
    // SAFETY: the kernel reads as much as it is told of.
    check(unsafe { ioctl_with_ptr(device, DEVICE_SET_IRQS, argument.as_ptr()) })
}

/// Writes its own size to the beginning of a structure.
fn set_size(argument: &mut [u32]) {
    let size = argsz(size_of_val(argument));
    if let Some(first) = argument.first_mut() {
        *first = size;
    }
}

/// Resets a device by itself (`VFIO_DEVICE_RESET`).
pub fn reset(device: &OwnedFd) -> io::Result<()> {
    // SAFETY: the request has no argument.
    check(unsafe { ioctl(device, DEVICE_RESET) })?;
    Ok(())
}

/// `vfio_pci_hot_reset_info`: the devices that are reset together with this one.
pub fn hot_reset_info(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut size = FIRST_SIZE;
    loop {
        let mut buffer = vec![0; size];
        let result = fill(device, DEVICE_GET_PCI_HOT_RESET_INFO, &mut buffer);
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < MOST_SIZE => {
                size *= 2;
            }
            _ => return result.map(|()| buffer),
        }
    }
}

/// Resets the devices of `groups`, as far as they share a bus or slot with this one
/// (`VFIO_DEVICE_PCI_HOT_RESET`).
pub fn hot_reset(device: &OwnedFd, groups: &[RawFd]) -> io::Result<()> {
    // argsz, flags, count, descriptors
    let mut argument = vec![0, 0, argsz(groups.len())];
    argument.extend(groups.iter().map(|fd| fd.cast_unsigned()));
    set_size(&mut argument);
    // SAFETY: the kernel reads as much as it is told of.
    check(unsafe { ioctl_with_ptr(device, DEVICE_PCI_HOT_RESET, argument.as_ptr()) })?;
    Ok(())
}

/// Asks for a structure that begins with its size and then `argument`, and for the capabilities
/// behind it.
fn query(fd: &impl AsRawFd, request: c_ulong, argument: &[u8]) -> io::Result<Vec<u8>> {
    let mut size = FIRST_SIZE;
    loop {
        let mut buffer = [&[0; 4], argument].concat();
        buffer.resize(size, 0);
        fill(fd, request, &mut buffer)?;
        let needed = buffer
            .first_chunk()
            .map_or(0, |size| u32::from_ne_bytes(*size));
        let needed = needed as usize;
        if needed <= size {
            return Ok(buffer);
        }
        if needed > MOST_SIZE {
            return Err(io::Error::other(format!(
                "the kernel wants {needed:#x} bytes to describe something"
            )));
        }
        size = needed;
    }
}

/// Has the kernel fill in a structure that begins with its own size.
fn fill(fd: &impl AsRawFd, request: c_ulong, buffer: &mut [u8]) -> io::Result<()> {
    let size = argsz(buffer.len());
    if let Some(first) = buffer.first_chunk_mut() {
        *first = size.to_ne_bytes();
    }
    // SAFETY: the kernel reads and writes as much as it is told of.
    check(unsafe { ioctl_with_mut_ptr(fd, request, buffer.as_mut_ptr()) })?;
    Ok(())
}

/// Reads all of `data` from `offset` in a file, in one go.
pub fn read_at(file: &OwnedFd, offset: u64, data: &mut [u8]) -> io::Result<()> {
    let at = position(offset)?;
    transfer(data.len(), || {
        // SAFETY: the kernel writes no more than the length of `data`.
        unsafe { libc::pread(file.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), at) }
    })
}

/// Writes all of `data` to `offset` in a file, in one go.
pub fn write_at(file: &OwnedFd, offset: u64, data: &[u8]) -> io::Result<()> {
    let at = position(offset)?;
    transfer(data.len(), || {
        // SAFETY: the kernel reads no more than the length of `data`.
        unsafe { libc::pwrite(file.as_raw_fd(), data.as_ptr().cast(), data.len(), at) }
    })
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn transfer(length: usize, mut attempt: impl FnMut() -> isize) -> io::Result<()> {
    loop {
        let Ok(done) = usize::try_from(attempt()) else {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => continue,
                _ => return Err(error),
            }
        };
        return match done == length {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{done} of {length} bytes were transferred"),
            )),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_header() {
        // _IO(';', 100 + n)
        assert_eq!(GET_API_VERSION, 0x3b64);
        assert_eq!(IOMMU_MAP_DMA, 0x3b71);
        assert_eq!(DEVICE_PCI_HOT_RESET, 0x3b71);
    }

    #[test]
    fn a_short_transfer_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(6).unwrap();
        let file = OwnedFd::from(file);
        write_at(&file, 1, &[1, 2, 3, 4]).unwrap();
        let mut data = [0; 4];
        read_at(&file, 2, &mut data).unwrap();
        assert_eq!(data, [2, 3, 4, 0]);
        let error = read_at(&file, 4, &mut data).unwrap_err();
        assert_eq!(error.to_string(), "2 of 4 bytes were transferred");
        assert!(read_at(&file, u64::MAX, &mut data).is_err());
    }

    #[test]
    fn what_is_no_device_says_so() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let expected = Some(libc::ENOTTY);
        assert_eq!(region_info(&file, 0).unwrap_err().raw_os_error(), expected);
        assert_eq!(hot_reset_info(&file).unwrap_err().raw_os_error(), expected);
        assert_eq!(reset(&file).unwrap_err().raw_os_error(), expected);
    }

    #[test]
    fn pages_have_a_size() {
        assert!(page_size().is_power_of_two() && page_size() >= 4096);
    }
}
