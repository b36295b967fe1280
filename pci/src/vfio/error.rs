//! Why devices cannot be had, and memory not be mapped.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use thiserror::Error;

use super::InfoError;

/// Why a device of the host cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error("there is no {}", path.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else is there.
    #[error(
        "{} is not the folder of a device: /sys/bus/pci/devices/0000:01:00.0 would be one",
        path.display()
    )]
    NotADevice {
        /// What was asked for.
        path: PathBuf,
    },
    /// No driver has it.
    #[error("{} is bound to no driver: {}", path.display(), how_to_bind(name))]
    Unbound {
        /// The device.
        path: PathBuf,
        /// What the kernel calls it.
        name: String,
    },
    /// A driver has it that uses it.
    #[error(
        "{} is bound to the driver {driver}, which does not pass devices through: take it away (echo \
         {name} > /sys/bus/pci/drivers/{driver}/unbind) and {}",
        path.display(), how_to_bind(name)
    )]
    WrongDriver {
        /// The device.
        path: PathBuf,
        /// What the kernel calls it.
        name: String,
        /// The driver.
        driver: String,
    },
    /// No IOMMU is in front of it.
    #[error(
        "{} is in no IOMMU group: switch the IOMMU on in the firmware and in the kernel (intel_iommu=on \
         with Intel's)",
        path.display()
    )]
    NoGroup {
        /// The device.
        path: PathBuf,
    },
    /// It is not a PCI device.
    #[error("{} is not a PCI device", path.display())]
    NotPci {
        /// The device.
        path: PathBuf,
    },
    /// This machine has it already.
    #[error("{} is given to this machine twice: once is enough", path.display())]
    AlreadyOpen {
        /// The device.
        path: PathBuf,
    },
    /// VFIO is not there.
    #[error("{} cannot be opened: load the kernel module vfio-pci", path.display())]
    NoVfio {
        /// The file that all begins with.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// This user may not open a file.
    #[error("{} cannot be opened: give this user read and write access to it", path.display())]
    Permission {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The interface is not the one known here.
    #[error("VFIO has version {version}, and 0 is the one that is known")]
    Version {
        /// What the kernel has.
        version: i32,
    },
    /// The group's file cannot be opened.
    #[error("the IOMMU group's file {} cannot be opened", path.display())]
    Group {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else has the group.
    #[error(
        "the IOMMU group's file {} is in use: end the other process that passes its devices through \
         (fuser {})",
        path.display(), path.display()
    )]
    GroupBusy {
        /// The file.
        path: PathBuf,
    },
    /// Drivers use other devices of the group.
    #[error(
        "IOMMU group {group} is passed through as a whole or not at all, and other drivers have {}: bind \
         these devices to vfio-pci too, or unbind them",
        list(devices)
    )]
    NotViable {
        /// The group.
        group: u32,
        /// Those devices with their drivers.
        devices: Vec<String>,
    },
    /// The kernel does not put the group into the container.
    #[error("IOMMU group {group} cannot share guest memory with this machine's other devices")]
    Attach {
        /// The group.
        group: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no such IOMMU.
    #[error(
        "the host has no IOMMU that VFIO can use for IOMMU group {group}: load the kernel module \
         vfio_iommu_type1"
    )]
    NoIommu {
        /// The group.
        group: u32,
    },
    /// The IOMMU cannot be used.
    #[error(
        "the IOMMU cannot be used for IOMMU group {group}{}",
        iommu_advice(source)
    )]
    Iommu {
        /// The group.
        group: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What the IOMMU says of itself makes no sense.
    #[error("the IOMMU of group {group} describes itself wrongly")]
    IommuInfo {
        /// The group.
        group: u32,
        /// What is wrong.
        #[source]
        source: InfoError,
    },
    /// Guest memory cannot be mapped for the group.
    #[error("IOMMU group {group} cannot be given the guest's memory")]
    Memory {
        /// The group.
        group: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is a function of a card that is passed through, too.
    #[error(
        "{} is a virtual function of {card}, which the driver {driver} has: the kernel wants a token for it \
         that only the user of {card} could know; bind {card} to the driver for cards of its kind instead",
        path.display()
    )]
    NeedsToken {
        /// The device.
        path: PathBuf,
        /// What the kernel calls its card.
        card: String,
        /// The card's driver.
        driver: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The device itself cannot be opened.
    #[error("{} cannot be opened", path.display())]
    Device {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel does not say what the device has.
    #[error("{} does not say what it has: {what}", path.display())]
    Describe {
        /// The device.
        path: PathBuf,
        /// What was asked for.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What the device says of a region makes no sense.
    #[error("{} describes its region {index} wrongly", path.display())]
    Region {
        /// The device.
        path: PathBuf,
        /// The region.
        index: u32,
        /// What is wrong.
        #[source]
        source: InfoError,
    },
}

fn how_to_bind(name: &str) -> String {
    format!(
        "bind it to vfio-pci (echo vfio-pci > /sys/bus/pci/devices/{name}/driver_override; echo {name} > \
         /sys/bus/pci/drivers_probe)"
    )
}

fn list(devices: &[String]) -> String {
    match devices.is_empty() {
        true => "some of them".to_owned(),
        false => devices.join(", "),
    }
}

/// Type 1 attaches no group that could forge the host's interrupts, and says EPERM.
fn iommu_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => {
            ": it must remap interrupts too, or vfio_iommu_type1 be told to do without \
             (allow_unsafe_interrupts=1)"
        }
        _ => "",
    }
}

/// Why an area of guest memory is not mapped for devices, or does not go away.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The IOMMU does not translate such addresses.
    #[error(
        "guest memory {first:#x}-{last:#x} is not where the IOMMU can show it to devices, which is {}: \
         give the guest less memory or fewer devices with large BARs, or a machine that avoids the gap",
        ranges_text(ranges)
    )]
    Outside {
        /// First address, guest-physical.
        first: u64,
        /// Last address, guest-physical.
        last: u64,
        /// The addresses that it translates.
        ranges: Vec<RangeInclusive<u64>>,
    },
    /// The area is not made of the IOMMU's pages.
    #[error(
        "guest memory at {gpa:#x}, {size:#x} bytes at {host_address:#x} in this process, is not made of \
         the IOMMU's pages of {page:#x} bytes"
    )]
    Unaligned {
        /// First address, guest-physical.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// Where it is mapped in this process.
        host_address: usize,
        /// Bytes of a page.
        page: u64,
    },
    /// The kernel refused.
    #[error(
        "guest memory at {gpa:#x}, {size:#x} bytes, cannot be mapped for devices{}",
        map_advice(source)
    )]
    Map {
        /// First address, guest-physical.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No such area was mapped.
    #[error("guest memory at {gpa:#x}, {size:#x} bytes, was not mapped for devices like that")]
    NotMapped {
        /// First address, guest-physical.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The kernel does not take it away.
    #[error("guest memory at {gpa:#x}, {size:#x} bytes, cannot be taken away from devices")]
    Unmap {
        /// First address, guest-physical.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel took only a part away.
    #[error(
        "of guest memory at {gpa:#x} only {done:#x} of {size:#x} bytes were taken away from devices"
    )]
    Partial {
        /// First address, guest-physical.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// Bytes that are gone.
        done: u64,
    },
}

impl From<DmaError> for io::Error {
    fn from(error: DmaError) -> Self {
        let kind = match &error {
            DmaError::Map { source, .. } | DmaError::Unmap { source, .. } => source.kind(),
            DmaError::Outside { .. } | DmaError::Unaligned { .. } => io::ErrorKind::InvalidInput,
            DmaError::NotMapped { .. } => io::ErrorKind::NotFound,
            DmaError::Partial { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// What the kernel's reasons for not mapping mean (drivers/vfio/vfio_iommu_type1.c).
fn map_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EEXIST) => ": something else is mapped there",
        Some(libc::ENOSPC) => {
            ": there are too many mappings already; raise dma_entry_limit of the kernel module \
             vfio_iommu_type1"
        }
        Some(libc::ENOMEM) => {
            ": it has to stay in memory, all of it; raise the limit of locked memory (ulimit -l, \
             RLIMIT_MEMLOCK), or give the guest less"
        }
        Some(libc::EFAULT) => ": the host cannot keep it in memory",
        _ => "",
    }
}

fn ranges_text(ranges: &[RangeInclusive<u64>]) -> String {
    let texts = ranges
        .iter()
        .map(|range| format!("{:#x}-{:#x}", range.start(), range.end()));
    match ranges.is_empty() {
        true => "nowhere".to_owned(),
        false => texts.collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_devices_and_say_what_to_do() {
        let error = OpenError::NotViable {
            group: 7,
            devices: vec![
                "0000:01:00.1 (snd)".to_owned(),
                "0000:01:00.2 (x)".to_owned(),
            ],
        };
        let text = error.to_string();
        assert!(text.contains("group 7"), "{text}");
        assert!(
            text.contains("0000:01:00.1 (snd), 0000:01:00.2 (x)"),
            "{text}"
        );
        assert!(text.contains("unbind"), "{text}");

        let error = OpenError::Iommu {
            group: 7,
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        assert!(error.to_string().contains("allow_unsafe_interrupts"));
    }

    #[test]
    fn memory_that_does_not_fit_is_told_with_both_numbers() {
        let error = DmaError::Outside {
            first: 0xfff_f000,
            last: 0x1_0000_0fff,
            ranges: vec![0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff_ffff],
        };
        let text = error.to_string();
        assert!(text.contains("0xffff000-0x100000fff"), "{text}");
        assert!(
            text.contains("0x0-0xfedfffff, 0xfef00000-0xffffffffffff"),
            "{text}"
        );
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn refusals_of_the_kernel_are_explained() {
        let text = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            let error = DmaError::Map {
                gpa: 0x4000_0000,
                size: 0x20_0000,
                source,
            };
            error.to_string()
        };
        assert!(text(libc::ENOMEM).contains("RLIMIT_MEMLOCK"));
        assert!(text(libc::ENOSPC).contains("dma_entry_limit"));
        assert!(text(libc::EEXIST).contains("something else"));
        assert!(
            text(libc::EINVAL)
                .ends_with("0x40000000, 0x200000 bytes, cannot be mapped for devices")
        );
    }
}
