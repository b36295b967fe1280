//! Taps that tests open themselves, as whoever launches a VMM with descriptors does.
#![expect(unsafe_code, reason = "libraries do not know taps")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

/// More than any frame has.
const MOST: usize = 1 << 17;

/// Makes a tap of that name with so many queues, each a descriptor that programs which are started from
/// here inherit.
///
/// # Errors
/// The host does not let it be made.
pub fn open_tap(name: &str, queues: usize) -> Result<Vec<OwnedFd>> {
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let open = || inherited(&open_queue(name, several)?);
    (0..queues).map(|_| open()).collect()
}

/// Makes a tap of that name that stays, and that a user may open (`ip tuntap add <name> mode tap user <user>`).
///
/// # Errors
/// The host does not let it be made.
pub fn make_tap_of(user: u32, name: &str) -> Result<()> {
    let file = open_queue(name, 0)?;
    for (request, value) in [(libc::TUNSETOWNER, user), (libc::TUNSETPERSIST, 1)] {
        // SAFETY: both requests take a number.
        let set = unsafe { libc::ioctl(file.as_raw_fd(), request, libc::c_ulong::from(value)) };
        ensure!(set == 0, "{name}: {}", io::Error::last_os_error());
    }
    Ok(())
}

/// A descriptor of the same file that programs which are started from here inherit.
///
/// # Errors
/// There are too many.
pub fn inherited(file: &impl AsFd) -> Result<OwnedFd> {
    // SAFETY: the descriptor is open; the copy is inherited, as the one of a file is not.
    let copy = unsafe { libc::dup(file.as_fd().as_raw_fd()) };
    ensure!(copy >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// A tap that the test itself is the other end of.
pub struct Tap(File);

impl Tap {
    /// Makes one.
    ///
    /// # Errors
    /// The host does not let it be made.
    pub fn open(name: &str) -> Result<Self> {
        open_queue(name, 0).map(Self)
    }

    /// Gives back every frame, for as long as it can.
    pub fn give_back(mut self) {
        let mut frame = vec![0; MOST];
        while let Ok(length) = self.0.read(&mut frame) {
            // While it is down there is nobody to take it.
            let _ = self.0.write(frame.get(..length).unwrap_or_default());
        }
    }
}

fn open_queue(name: &str, flags: libc::c_int) -> Result<File> {
    ensure!(name.len() < libc::IFNAMSIZ, "{name} is too long");
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
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
    Ok(file)
}
