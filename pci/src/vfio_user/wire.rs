//! Messages as they are on the wire, in the host's byte order.
//!
//! Source: the vfio-user protocol specification, version 0.1, "Protocol Specification".

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version that is spoken.
pub const MAJOR: u16 = 0;
/// The newest minor version that is understood.
pub const MINOR: u16 = 1;

/// What a message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    DeviceReset = 13,
}

impl Command {
    /// Its name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "VFIO_USER_VERSION",
            Self::DmaMap => "VFIO_USER_DMA_MAP",
            Self::DmaUnmap => "VFIO_USER_DMA_UNMAP",
            Self::DeviceGetInfo => "VFIO_USER_DEVICE_GET_INFO",
            Self::DeviceGetRegionInfo => "VFIO_USER_DEVICE_GET_REGION_INFO",
            Self::DeviceGetIrqInfo => "VFIO_USER_DEVICE_GET_IRQ_INFO",
            Self::DeviceSetIrqs => "VFIO_USER_DEVICE_SET_IRQS",
            Self::RegionRead => "VFIO_USER_REGION_READ",
            Self::RegionWrite => "VFIO_USER_REGION_WRITE",
            Self::DmaRead => "VFIO_USER_DMA_READ",
            Self::DmaWrite => "VFIO_USER_DMA_WRITE",
            Self::DeviceReset => "VFIO_USER_DEVICE_RESET",
        }
    }

    /// Its number.
    pub fn number(self) -> u16 {
        self as u16
    }
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// The bits that say what kind of message it is.
    pub const TYPE: u32 = 0xf;
    /// A message that asks for something.
    pub const COMMAND: u32 = 0;
    /// A message that answers.
    pub const REPLY: u32 = 1;
    /// No answer is wanted.
    pub const NO_REPLY: u32 = 1 << 4;
    /// What was asked for failed, as the header's `error` says.
    pub const ERROR: u32 = 1 << 5;
}

/// Bits of [`DmaMap::flags`].
pub mod dma {
    pub const READABLE: u32 = 1 << 0;
    pub const WRITABLE: u32 = 1 << 1;
}

/// The beginning of every message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    pub id: u16,
    pub command: u16,
    /// Bytes of the whole message.
    pub size: u32,
    pub flags: u32,
    /// An errno.
    pub error: u32,
}

/// What `VFIO_USER_VERSION` begins with, both ways; JSON and a NUL follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    pub argsz: u32,
    pub flags: u32,
    /// Where the area begins in the file.
    pub offset: u64,
    pub address: u64,
    pub size: u64,
}

/// `VFIO_USER_DMA_UNMAP`, both ways.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    pub argsz: u32,
    pub flags: u32,
    pub address: u64,
    pub size: u64,
}

/// `VFIO_USER_DEVICE_GET_INFO`, both ways.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    pub argsz: u32,
    pub flags: u32,
    pub regions: u32,
    pub irqs: u32,
}

/// `VFIO_USER_DEVICE_GET_REGION_INFO`, both ways; capabilities may follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    /// Where the first capability is, from the beginning of this structure.
    pub cap_offset: u32,
    pub size: u64,
    /// Where the region begins in its file.
    pub offset: u64,
}

/// The beginning of every capability of a region.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CapabilityHeader {
    pub id: u16,
    pub version: u16,
    /// Where the next one is, from the beginning of the region's information; 0 is nowhere.
    pub next: u32,
}

/// What follows the header of the capability that lists mappable areas; the areas follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseAreas {
    pub count: u32,
    pub reserved: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseArea {
    pub offset: u64,
    pub size: u64,
}

/// `VFIO_USER_DEVICE_GET_IRQ_INFO`, both ways.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub count: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIrqs {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub start: u32,
    pub count: u32,
}

/// `VFIO_USER_REGION_READ` and `VFIO_USER_REGION_WRITE`, both ways; data may follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionAccess {
    pub offset: u64,
    pub region: u32,
    pub count: u32,
}

/// The size of a structure as `argsz` states it.
pub const fn argsz<T>() -> u32 {
    assert!(size_of::<T>() <= 64);
    size_of::<T>() as u32
}

const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(size_of::<Version>() == 4);
const _: () = assert!(size_of::<DmaMap>() == 32);
const _: () = assert!(size_of::<DmaUnmap>() == 24);
const _: () = assert!(size_of::<DeviceInfo>() == 16);
const _: () = assert!(size_of::<RegionInfo>() == 32);
const _: () = assert!(size_of::<CapabilityHeader>() == 8);
const _: () = assert!(size_of::<SparseAreas>() == 8);
const _: () = assert!(size_of::<SparseArea>() == 16);
const _: () = assert!(size_of::<IrqInfo>() == 16);
const _: () = assert!(size_of::<SetIrqs>() == 20);
const _: () = assert!(size_of::<RegionAccess>() == 16);
