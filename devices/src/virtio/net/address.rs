//! Addresses of interfaces of the host, and their state.
#![expect(unsafe_code, reason = "asks the host about its interfaces")]

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::mem::zeroed;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::str::FromStr;

use libc::{c_char, c_short, ifreq, sockaddr, sockaddr_in};

/// An address of an Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HardwareAddress(pub [u8; 6]);

impl HardwareAddress {
    /// A random one, locally administered and for one interface alone.
    ///
    /// # Errors
    /// The host has no randomness.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let [first, ..] = &mut bytes;
        *first = *first & !MULTICAST | LOCAL;
        Ok(Self(bytes))
    }

    /// Whether it is of many interfaces.
    pub fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & MULTICAST != 0
    }
}

/// Bits of the first byte: of many interfaces; given by whoever administers the network.
const MULTICAST: u8 = 1;
const LOCAL: u8 = 2;

/// A text that is no hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no MAC address: six bytes in hexadecimal with colons between them, as 52:54:00:12:34:56"
)]
pub struct NoHardwareAddress;

impl FromStr for HardwareAddress {
    type Err = NoHardwareAddress;

    fn from_str(text: &str) -> Result<Self, NoHardwareAddress> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(NoHardwareAddress)?;
            let is_hexadecimal = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            if !is_hexadecimal || part.len() != 2 {
                return Err(NoHardwareAddress);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NoHardwareAddress)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(NoHardwareAddress),
        }
    }
}

impl fmt::Display for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address of an interface in an IP network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Bits of it that are the network's.
    pub prefix: u8,
}

/// An interface of the host, asked by its name.
pub(super) struct HostInterface {
    name: [c_char; libc::IFNAMSIZ],
    socket: OwnedFd,
}

fn new_socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers alone.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A name as the kernel wants it; nothing if it is too long.
pub(super) fn kernel_name(name: &str) -> Option<[c_char; libc::IFNAMSIZ]> {
    let mut bytes = [0; libc::IFNAMSIZ];
    // The last one stays 0.
    if name.len() >= bytes.len() {
        return None;
    }
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    Some(bytes)
}

/// A request about nothing.
pub(super) fn empty_request() -> ifreq {
    // SAFETY: it is made of numbers and addresses, for which zero is a value.
    unsafe { zeroed() }
}

impl HostInterface {
    /// The interface of that name, whether it is there or not.
    ///
    /// # Errors
    /// The host has no sockets, or the name is too long.
    pub fn new(name: &str) -> io::Result<Self> {
        let name = kernel_name(name).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // The family does not matter for what is asked here.
        let socket = new_socket(libc::AF_INET).or_else(|_| new_socket(libc::AF_UNIX))?;
        Ok(Self { name, socket })
    }

    fn request(&self) -> ifreq {
        let mut request = empty_request();
        request.ifr_name = self.name;
        request
    }

    fn ask(&self, number: libc::c_ulong, request: &mut ifreq) -> io::Result<()> {
        // SAFETY: every request of this kind reads and writes an `ifreq`.
        let done = unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                number as libc::Ioctl,
                &raw mut *request,
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its number; nothing if there is none of that name.
    pub fn index(&self) -> Option<u32> {
        // SAFETY: the name ends with a NUL.
        match unsafe { libc::if_nametoindex(self.name.as_ptr()) } {
            0 => None,
            index => Some(index),
        }
    }

    /// Bytes of the largest packet.
    pub fn mtu(&self) -> io::Result<usize> {
        let mut request = self.request();
        self.ask(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: this is what the kernel has answered with.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        usize::try_from(mtu).map_err(io::Error::other)
    }

    /// Changes that, if it is another.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        if self.mtu()? == usize::from(mtu) {
            return Ok(());
        }
        let mut request = self.request();
        request.ifr_ifru.ifru_mtu = mtu.into();
        self.ask(libc::SIOCSIFMTU, &mut request)
    }

    /// Gives it another hardware address.
    pub fn set_hardware_address(&self, address: HardwareAddress) -> io::Result<()> {
        let mut request = self.request();
        // SAFETY: it is made of numbers, for which zero is a value.
        let mut hardware: sockaddr = unsafe { zeroed() };
        hardware.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in hardware.sa_data.iter_mut().zip(address.0) {
            *to = from as c_char;
        }
        request.ifr_ifru.ifru_hwaddr = hardware;
        self.ask(libc::SIOCSIFHWADDR, &mut request)
    }

    /// Whether it is up.
    pub fn is_up(&self) -> io::Result<bool> {
        Ok(self.flags()? & libc::IFF_UP as c_short != 0)
    }

    fn flags(&self) -> io::Result<c_short> {
        let mut request = self.request();
        self.ask(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: this is what the kernel has answered with.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    /// Sets it up.
    pub fn set_up(&self) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = self.flags()? | libc::IFF_UP as c_short;
        self.ask(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Gives it an address.
    pub fn set_address(&self, address: InterfaceAddress) -> io::Result<()> {
        let InterfaceAddress { ip, prefix } = address;
        match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32)));
                self.set_ipv4(libc::SIOCSIFADDR, ip.into())?;
                self.set_ipv4(libc::SIOCSIFNETMASK, mask.unwrap_or(0))
            }
            IpAddr::V6(ip) => {
                let index = self.index();
                let index = index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
                let request = libc::in6_ifreq {
                    ifr6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ifr6_prefixlen: prefix.into(),
                    ifr6_ifindex: index as libc::c_int,
                };
                let socket = new_socket(libc::AF_INET6)?;
                // SAFETY: of such a socket the request reads an `in6_ifreq`.
                let done = unsafe {
                    libc::ioctl(
                        socket.as_raw_fd(),
                        libc::SIOCSIFADDR as libc::Ioctl,
                        &raw const request,
                    )
                };
                match done {
                    0 => Ok(()),
                    // It has that address.
                    _ if io::Error::last_os_error().raw_os_error() == Some(libc::EEXIST) => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
        }
    }

    fn set_ipv4(&self, number: libc::c_ulong, address: u32) -> io::Result<()> {
        let mut request = self.request();
        let address = sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: address.to_be(),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: both have 16 bytes and are made of numbers; the family says which it is.
        let address: sockaddr = unsafe { std::mem::transmute(address) };
        request.ifr_ifru.ifru_addr = address;
        self.ask(number, &mut request)
    }
}
