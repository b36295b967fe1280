//! What goes wrong with a server.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::device::DeviceError;

/// Why there is no device behind a socket.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody answers at the socket.
    #[error("cannot connect to the vfio-user socket {}", .path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The server answered a question about the device with an error.
    #[error("the vfio-user server at {} refused {request}", .path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it was asked, as the specification names it.
        request: &'static str,
        /// What it answered.
        source: io::Error,
    },
    /// The server does not keep to the protocol, or what it describes cannot be.
    #[error("the vfio-user server at {} cannot be used", .path.display())]
    Unusable {
        /// The socket.
        path: PathBuf,
        /// What it did.
        source: io::Error,
    },
}

/// Why a call failed.
#[derive(Debug)]
pub enum Failure {
    /// The server answered with an error, and goes on.
    Refused {
        request: &'static str,
        source: io::Error,
    },
    /// The server did something that ends the connection.
    Broken(Violation),
    /// The connection has ended, for this reason.
    Lost(Arc<Violation>),
}

impl From<Failure> for DeviceError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { request: _, source } => Self::Refused(source),
            Failure::Broken(violation) => Self::Lost(io::Error::new(violation.kind(), violation)),
            Failure::Lost(violation) => Self::Lost(io::Error::new(violation.kind(), violation)),
        }
    }
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Self::Broken(violation)
    }
}

/// Why a server is done with.
#[derive(Debug, Error)]
pub enum Violation {
    #[error("the vfio-user server hung up")]
    HungUp,
    #[error("the vfio-user server did not take {request} and answer it in full within {limit:?}")]
    Late {
        request: &'static str,
        limit: Duration,
    },
    #[error("the vfio-user server kept other requests waiting for more than {limit:?}")]
    Busy { limit: Duration },
    #[error("the socket of the vfio-user server failed")]
    Socket(#[source] io::Error),
    #[error(
        "the vfio-user server sent message {id:#06x} of command {command} in answer to message \
         {expected_id:#06x}, {request}"
    )]
    WrongMessage {
        request: &'static str,
        expected_id: u16,
        id: u16,
        command: u16,
    },
    #[error("the vfio-user server answered {request} with flags {flags:#x}, which no answer has")]
    Flags { request: &'static str, flags: u32 },
    #[error(
        "the vfio-user server answered {request} with a message of {size} bytes; it has {least} to \
         {most}"
    )]
    Size {
        request: &'static str,
        size: u32,
        least: usize,
        most: usize,
    },
    #[error(
        "the vfio-user server sent more file descriptors than it may, or this process can have no \
         more: raise the limit of open files (ulimit -n) if the server is to be trusted"
    )]
    TooManyDescriptors,
    #[error("the vfio-user server sent a file descriptor along with {message}, which has none")]
    UnexpectedDescriptor { message: &'static str },
    #[error("the vfio-user server sent command {command}, which only clients send")]
    NotItsCommand { command: u16 },
    #[error(
        "the vfio-user server sent a command of {size} bytes with flags {flags:#x}, which no command \
         of a server has"
    )]
    BadCommand { size: u32, flags: u32 },
    #[error("the vfio-user server sent {count} commands of its own instead of answering {request}")]
    TooManyCommands { request: &'static str, count: u32 },
    #[error(
        "the vfio-user server speaks version {major}.{minor} of the protocol; known are 0.0 and 0.1"
    )]
    Version { major: u16, minor: u16 },
    #[error("the vfio-user server's capabilities do not end in a NUL")]
    Unterminated,
    #[error("the vfio-user server's capabilities are not the JSON that the protocol asks for")]
    Capabilities(#[source] serde_json::Error),
    #[error(
        "the vfio-user server says that it takes at most {value} {what} in a message; it must take \
         {least}"
    )]
    Limit {
        what: &'static str,
        value: u64,
        least: u64,
    },
    #[error("the vfio-user server has no PCI device: its flags are {flags:#x}")]
    NotPci { flags: u32 },
    #[error("the vfio-user server says that its device has {count} {what}; there can be {most}")]
    Count {
        what: &'static str,
        count: u32,
        most: u32,
    },
    #[error("the vfio-user server's device has {count} regions; configuration space is region 7")]
    NoConfig { count: u32 },
    #[error("the vfio-user server was asked for {what} {asked} and told of {told}")]
    Index {
        what: &'static str,
        asked: u32,
        told: u32,
    },
    #[error("the vfio-user server describes a region {index} that cannot be used")]
    Region {
        index: u32,
        #[source]
        fault: RegionFault,
    },
    #[error(
        "the vfio-user server was asked for {asked_count:#x} bytes at {asked_offset:#x} of region \
         {asked_region} and answered for {count:#x} bytes at {offset:#x} of region {region}"
    )]
    OtherAccess {
        asked_region: u32,
        asked_offset: u64,
        asked_count: u32,
        region: u32,
        offset: u64,
        count: u32,
    },
    #[error(
        "the vfio-user server was told to let go of {asked_size:#x} bytes at {asked_address:#x} and \
         says that it let go of {size:#x} at {address:#x}"
    )]
    OtherUnmap {
        asked_address: u64,
        asked_size: u64,
        address: u64,
        size: u64,
    },
}

impl Violation {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::HungUp => io::ErrorKind::UnexpectedEof,
            Self::Late { .. } | Self::Busy { .. } => io::ErrorKind::TimedOut,
            Self::Socket(source) => source.kind(),
            _ => io::ErrorKind::InvalidData,
        }
    }
}

/// What is wrong with a server's description of a region.
#[derive(Debug, Error)]
pub enum RegionFault {
    #[error("it claims {size:#x} bytes; no region has more than {most:#x}")]
    Size { size: u64, most: u64 },
    #[error("configuration space has 256 to 4096 bytes; it claims {size}")]
    ConfigSize { size: u64 },
    #[error("configuration space must be readable and writable; its flags are {flags:#x}")]
    ConfigFlags { flags: u32 },
    #[error(
        "it claims to be described by {argsz:#x} bytes; with capabilities it takes more than \
         {least:#x} and at most {most:#x}"
    )]
    Description { argsz: u32, least: u32, most: u32 },
    #[error("it claims a capability at {offset:#x} of {length:#x} bytes of description")]
    CapabilityOutside { offset: u32, length: usize },
    #[error("its capability at {offset:#x} claims that the next is at {next:#x}")]
    CapabilityLoop { offset: u32, next: u32 },
    #[error("its list of mappable areas is of version {version}; known is 1")]
    SparseVersion { version: u16 },
    #[error("it has two lists of mappable areas, the second one at {offset:#x}")]
    SparseTwice { offset: u32 },
    #[error("its list claims {count} mappable areas and has room for {room}")]
    AreaCount { count: u32, room: usize },
    #[error(
        "it claims {size:#x} mappable bytes at {offset:#x}, {file_offset:#x} in the file; they must \
         be whole pages of {page:#x} bytes"
    )]
    AreaUnaligned {
        offset: u64,
        size: u64,
        file_offset: u64,
        page: u64,
    },
    #[error("it claims {size:#x} mappable bytes at {offset:#x} and has {region_size:#x} bytes")]
    AreaOutside {
        offset: u64,
        size: u64,
        region_size: u64,
    },
    #[error(
        "it claims {size:#x} mappable bytes at {offset:#x} behind an area that ends at {end:#x}: \
         areas must ascend and not overlap"
    )]
    AreaOrder { offset: u64, size: u64, end: u64 },
    #[error("it claims mappable areas and came without a file descriptor")]
    NoDescriptor,
    #[error("it came with a file descriptor although it claims that nothing can be mapped")]
    UnexpectedDescriptor,
    #[error("what it came with cannot be looked at")]
    File(#[source] io::Error),
    #[error("what can be mapped must be a regular file or a memfd; it came with something else")]
    FileKind,
    #[error(
        "its file is open with flags {flags:#o}; to be mapped as the region's flags say, it must be \
         open for {needed}"
    )]
    FileMode { flags: i32, needed: &'static str },
    #[error(
        "it claims {size:#x} mappable bytes at {file_offset:#x} of a file of {length:#x} bytes: the \
         file must be as long before it is offered"
    )]
    FileShort {
        size: u64,
        file_offset: u64,
        length: u64,
    },
}
