//! Taps that tests open themselves, as whoever launches a VMM with descriptors does.
#![expect(unsafe_code, reason = "libraries do not know taps")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

/// Makes a tap of that name with so many queues, each a descriptor that programs which are started from
/// here inherit.
///
/// # Errors
/// The host does not let it be made.
pub fn open_tap(name: &str, queues: usize) -> Result<Vec<OwnedFd>> {
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long");
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .context("/dev/net/tun")?;
        // SAFETY: it is made of numbers and addresses, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the request reads and writes an `ifreq`.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        ensure!(made == 0, "{name}: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is open; the copy is inherited, as the one of the file is not.
        let copy = unsafe { libc::dup(file.as_raw_fd()) };
        ensure!(copy >= 0, "{name}: {}", io::Error::last_os_error());
        // SAFETY: it was just made, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    };
    (0..queues).map(|_| open()).collect()
}
