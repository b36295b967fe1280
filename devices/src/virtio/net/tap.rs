//! An interface of the host that is a tap: what is sent there is read here, and the other way round
//! (Linux, Documentation/networking/tuntap.rst).
#![expect(
    unsafe_code,
    reason = "makes and uses taps, which libraries do not know"
)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_int, c_short, c_uint, ifreq, iovec};
use thiserror::Error;

use super::HEADER;
use super::address::{
    HardwareAddress, HostInterface, InterfaceAddress, empty_request, kernel_name,
};
use super::backend::{Interface, Offloads};

/// Where taps come from.
const DEVICE: &str = "/dev/net/tun";
/// What a tap is called that nobody has named; the kernel puts a number in.
const ANY_NAME: &str = "vmtap%d";

/// What of a tap's flags matters here.
const KIND: c_int = libc::IFF_TUN | libc::IFF_TAP;
/// What every tap here must have.
const NEEDED: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Which tap is opened, and how it is to be.
#[derive(Clone, Copy, Debug)]
pub struct TapOptions<'a> {
    /// Its name; without one it is new, and the host names it.
    pub name: Option<&'a str>,
    /// Pairs of queues.
    pub pairs: u16,
    /// The address that it is given in any case.
    pub address: Option<InterfaceAddress>,
    /// The address that it is given if it is new and there is none in any case.
    pub address_if_new: InterfaceAddress,
    /// Its own hardware address, that of the host's end.
    pub hardware_address: Option<HardwareAddress>,
    /// Bytes of the largest packet.
    pub mtu: Option<u16>,
}

/// Why a tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// There are no taps on this host, or not for us.
    #[error("cannot open {DEVICE}, where taps come from (is the kernel's module tun there?)")]
    Device(#[source] io::Error),
    /// The name cannot be that of an interface.
    #[error("{0:?} cannot be the name of an interface: at most 15 bytes are allowed")]
    Name(String),
    /// It may not be opened or made.
    #[error(
        "not allowed: whoever makes taps or opens those of others needs the capability CAP_NET_ADMIN; one \
         can be made for a user with `ip tuntap add NAME mode tap user USER`"
    )]
    NotAllowed(#[source] io::Error),
    /// Others have it.
    #[error("another program has it, or another interface here")]
    Busy(#[source] io::Error),
    /// It is something else.
    #[error(
        "there is an interface of that name that cannot be opened so: it is no tap, or was made with \
         multi_queue and is asked for with num_queues=2, or the other way round"
    )]
    Other(#[source] io::Error),
    /// It cannot be opened.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// It has no queue of its own for each pair.
    #[error("cannot give it {pairs} pairs of queues")]
    Queues {
        /// How many were asked for.
        pairs: u16,
        /// Why not.
        source: io::Error,
    },
    /// A descriptor is something else.
    #[error("descriptor {number} of {count} is no tap")]
    NoTap {
        /// Which of them, from 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// What the host says.
        source: io::Error,
    },
    /// A descriptor is of a tap of another kind.
    #[error(
        "descriptor {number} of {count} is of an interface without what is needed: it must be opened with \
         IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, and IFF_MULTI_QUEUE if there are several; its flags are \
         {flags:#x}"
    )]
    Kind {
        /// Which of them, from 1.
        number: usize,
        /// How many there are.
        count: usize,
        /// Its flags (TUNGETIFF).
        flags: c_int,
    },
    /// Descriptors are of several taps.
    #[error("descriptors are of interfaces {first} and {other}: all must be of one")]
    Several {
        /// One.
        first: String,
        /// Another one.
        other: String,
    },
    /// There are no descriptors.
    #[error("no descriptors of a tap are there")]
    None,
    /// It has no headers as they are needed.
    #[error("cannot set the form of its headers")]
    Header(#[source] io::Error),
    /// It does not do as it is told.
    #[error("cannot set its {what}")]
    Set {
        /// What of it.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A tap that is open.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<TapQueue>,
    multi_queue: bool,
    knows_ufo: bool,
    /// Others have it too, and find it again as it was.
    is_lent: bool,
}

#[derive(Debug)]
struct TapQueue {
    file: OwnedFd,
    attached: AtomicBool,
}

impl Tap {
    /// Opens a tap, or makes it if there is none of that name: then it is there as long as this is.
    ///
    /// # Errors
    /// It cannot be had, or cannot be as it is to be.
    pub fn open(options: &TapOptions<'_>) -> Result<Self, TapError> {
        let TapOptions {
            name,
            pairs,
            address,
            address_if_new,
            hardware_address,
            mtu,
        } = *options;
        let asked = name.unwrap_or(ANY_NAME);
        let too_long = || TapError::Name(asked.to_owned());
        kernel_name(asked).ok_or_else(too_long)?;
        let is_new = match name {
            None => true,
            Some(name) => host(name)?.index().is_none(),
        };
        let several = if pairs > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let (first, flags, name) = match open_queue(asked, NEEDED | several) {
            // One that was made with several queues can be used with one of them, if it is said.
            Err(TapError::Other(_)) if several == 0 => {
                open_queue(asked, NEEDED | libc::IFF_MULTI_QUEUE)?
            }
            opened => opened?,
        };
        let mut files = vec![first];
        for _ in 1..pairs {
            let opened = open_queue(&name, flags);
            let (file, ..) = opened.map_err(|error| match error {
                TapError::Busy(source) | TapError::Open(source) => {
                    TapError::Queues { pairs, source }
                }
                error => error,
            })?;
            files.push(file);
        }
        let tap = Self::of(name, files, flags & libc::IFF_MULTI_QUEUE != 0, false)?;
        let host = host(&tap.name)?;
        let set =
            |what, done: io::Result<()>| done.map_err(|source| TapError::Set { what, source });
        if let Some(mtu) = mtu {
            set("MTU", host.set_mtu(mtu))?;
        }
        if let Some(address) = hardware_address {
            set("hardware address", host.set_hardware_address(address))?;
        }
        if let Some(address) = address.or(is_new.then_some(address_if_new)) {
            set("IP address", host.set_address(address))?;
        }
        let up = match host.is_up() {
            Ok(true) => Ok(()),
            _ => host.set_up(),
        };
        match up {
            Err(error) if !is_new => {
                let name = &tap.name;
                log::warn!("network interface {name} of the host is down, and stays so: {error}");
            }
            up => set("state to up", up)?,
        }
        Ok(tap)
    }

    /// A tap that somebody else has opened, with a descriptor for each pair of queues.
    ///
    /// # Errors
    /// They are none, or cannot be used.
    pub fn from_descriptors(files: Vec<OwnedFd>, mtu: Option<u16>) -> Result<Self, TapError> {
        let count = files.len();
        let several = if count > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let mut found: Option<(String, c_int)> = None;
        for (file, number) in files.iter().zip(1..) {
            let mut request = empty_request();
            let asked = tap_ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request);
            asked.map_err(|source| TapError::NoTap {
                number,
                count,
                source,
            })?;
            let flags = flags_of(&request);
            let needed = NEEDED | several;
            if flags & needed != needed || flags & KIND != libc::IFF_TAP {
                return Err(TapError::Kind {
                    number,
                    count,
                    flags,
                });
            }
            let name = name_of(&request);
            match &found {
                Some((first, _)) if *first != name => {
                    return Err(TapError::Several {
                        first: first.clone(),
                        other: name,
                    });
                }
                Some(_) => {}
                None => found = Some((name, flags)),
            }
            do_not_wait(file).map_err(TapError::Open)?;
        }
        let (name, flags) = found.ok_or(TapError::None)?;
        let tap = Self::of(name, files, flags & libc::IFF_MULTI_QUEUE != 0, true)?;
        if let Some(mtu) = mtu {
            let set = host(&tap.name)?.set_mtu(mtu);
            set.map_err(|source| TapError::Set {
                what: "MTU",
                source,
            })?;
        }
        Ok(tap)
    }

    /// Prepares queues that are open, and lets the host give them nothing yet.
    fn of(
        name: String,
        files: Vec<OwnedFd>,
        multi_queue: bool,
        is_lent: bool,
    ) -> Result<Self, TapError> {
        let mut knows_ufo = true;
        for (index, file) in files.iter().enumerate() {
            let fd = file.as_raw_fd();
            let mut size = HEADER as c_int;
            let mut little_endian: c_int = 1;
            let sized = tap_ioctl(fd, libc::TUNSETVNETHDRSZ, &raw mut size);
            sized.map_err(TapError::Header)?;
            let ordered = tap_ioctl(fd, libc::TUNSETVNETLE, &raw mut little_endian);
            ordered.map_err(TapError::Header)?;
            if index == 0 {
                let all = libc::TUN_F_CSUM | libc::TUN_F_UFO;
                knows_ufo = set_offloads(fd, all).is_ok();
                set_offloads(fd, 0).map_err(|source| TapError::Set {
                    what: "offloads",
                    source,
                })?;
            }
        }
        let queues = files.into_iter().map(|file| TapQueue {
            file,
            attached: AtomicBool::new(true),
        });
        let tap = Self {
            name,
            queues: queues.collect(),
            multi_queue,
            knows_ufo,
            is_lent,
        };
        for queue in 0..tap.queues.len() {
            let detached = tap.set_attached(queue, false);
            detached.map_err(|source| TapError::Set {
                what: "queues aside",
                source,
            })?;
        }
        Ok(tap)
    }

    fn queue(&self, queue: usize) -> io::Result<&TapQueue> {
        let found = self.queues.get(queue);
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // A queue that is not attached does not even say whose it is.
        let queues = if self.is_lent { self.queues.len() } else { 0 };
        for queue in 0..queues {
            if let Err(error) = self.set_attached(queue, true) {
                log::debug!("{}: queue {queue} stays detached: {error}", self.name);
            }
        }
    }
}

impl Interface for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn descriptor(&self, queue: usize) -> RawFd {
        let queue = self.queues.get(queue);
        queue.map_or(-1, |queue| queue.file.as_raw_fd())
    }

    unsafe fn read(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize> {
        let fd = self.descriptor(queue);
        // At most 1024.
        let count = buffers.len() as c_int;
        // SAFETY: the caller says that the buffers can be written to.
        let read = unsafe { libc::readv(fd, buffers.as_ptr(), count) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    unsafe fn write(&self, queue: usize, buffers: &[iovec]) -> io::Result<usize> {
        let fd = self.descriptor(queue);
        // At most 1024.
        let count = buffers.len() as c_int;
        // SAFETY: the caller says that the buffers can be read.
        let written = unsafe { libc::writev(fd, buffers.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn set_attached(&self, queue: usize, attached: bool) -> io::Result<()> {
        // The only queue of a tap cannot be detached: it is emptied before it is used.
        if !self.multi_queue {
            return Ok(());
        }
        let queue = self.queue(queue)?;
        if queue.attached.load(Ordering::SeqCst) == attached {
            return Ok(());
        }
        let mut request = empty_request();
        let wanted = match attached {
            true => libc::IFF_ATTACH_QUEUE,
            false => libc::IFF_DETACH_QUEUE,
        };
        request.ifr_ifru.ifru_flags = wanted as c_short;
        tap_ioctl(queue.file.as_raw_fd(), libc::TUNSETQUEUE, &raw mut request)?;
        queue.attached.store(attached, Ordering::SeqCst);
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let Offloads {
            checksums,
            tso4,
            tso6,
            ecn,
            ufo,
        } = offloads;
        let choices = [
            (checksums, libc::TUN_F_CSUM),
            (tso4, libc::TUN_F_TSO4),
            (tso6, libc::TUN_F_TSO6),
            (ecn, libc::TUN_F_TSO_ECN),
            (ufo, libc::TUN_F_UFO),
        ];
        let chosen = choices.iter().filter(|(is_chosen, _)| *is_chosen);
        let flags = chosen.fold(0, |flags, (_, flag)| flags | flag);
        let is_attached = |queue: &&TapQueue| queue.attached.load(Ordering::SeqCst);
        let queue = self.queues.iter().find(is_attached);
        let queue = queue.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        set_offloads(queue.file.as_raw_fd(), flags)
    }

    fn knows_ufo(&self) -> bool {
        self.knows_ufo
    }

    fn mtu(&self) -> io::Result<usize> {
        HostInterface::new(&self.name)?.mtu()
    }
}

fn host(name: &str) -> Result<HostInterface, TapError> {
    HostInterface::new(name).map_err(TapError::Open)
}

/// Opens one queue of a tap.
///
/// # Returns
/// The queue, the flags of the tap, and its name.
fn open_queue(name: &str, flags: c_int) -> Result<(OwnedFd, c_int, String), TapError> {
    let mut options = OpenOptions::new();
    let opened = options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE);
    let file = opened.map_err(TapError::Device)?;
    let mut request = empty_request();
    let kernel = kernel_name(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
    request.ifr_name = kernel;
    request.ifr_ifru.ifru_flags = flags as c_short;
    let made = tap_ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request);
    made.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::NotAllowed(error),
        Some(libc::EBUSY) => TapError::Busy(error),
        Some(libc::EINVAL) => TapError::Other(error),
        _ => TapError::Open(error),
    })?;
    Ok((file.into(), flags, name_of(&request)))
}

fn tap_ioctl<T>(fd: RawFd, number: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: what is passed is as large as the kernel expects it for the requests in this file: an
    // `ifreq` or an integer.
    match unsafe { libc::ioctl(fd, number, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_offloads(fd: RawFd, flags: c_uint) -> io::Result<()> {
    // SAFETY: the request takes a number.
    match unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn do_not_wait(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes numbers alone.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn flags_of(request: &ifreq) -> c_int {
    // SAFETY: this is what the kernel has answered with.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    c_int::from(flags) & 0xffff
}

fn name_of(request: &ifreq) -> String {
    let bytes = request.ifr_name.iter();
    // Signed on one architecture, and not on the other.
    let bytes = bytes.flat_map(|byte| byte.to_ne_bytes());
    let bytes = bytes.take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}
