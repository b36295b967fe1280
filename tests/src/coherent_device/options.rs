//! What the device is like, and how its program is told.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use thiserror::Error;

/// A BAR of less could not be mapped on every machine (64 KiB is the largest page).
const MIN_BAR: u64 = 64 << 10;
/// What guest drivers can address, with room to spare.
const MAX_BAR: u64 = 1 << 44;
const PAGE: u64 = 4 << 10;

/// What the device is like. The default is like a GH200, but smaller.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(
    name = "coherent_device",
    about = "A device whose memory CPUs may cache, as a vfio-user server"
)]
pub struct Options {
    /// Socket to serve at; nothing may be there yet
    #[arg(long)]
    pub socket: PathBuf,
    /// PCI vendor id
    #[arg(long, default_value_t = 0x10de, value_parser = id)]
    pub vendor: u16,
    /// PCI device id
    #[arg(long, default_value_t = 0x2342, value_parser = id)]
    pub device: u16,
    /// Size of BAR 4, a power of two; 0 is none
    #[arg(long, default_value_t = 512 << 20, value_parser = size)]
    pub memory: u64,
    /// Bytes of BAR 4 that are memory; the rest reads as ones. All of it unless given
    #[arg(long, value_parser = size)]
    pub usable: Option<u64>,
    /// File that is the memory, made or truncated; it stays. An unnamed one unless given
    #[arg(long)]
    pub memory_file: Option<PathBuf>,
    /// Size of BAR 2, a power of two; 0 is none
    #[arg(long, default_value_t = 1 << 20, value_parser = size)]
    pub reserved: u64,
    /// MSI-X vectors; 0 is no MSI-X
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(..=2048))]
    pub msix: u16,
    /// Serve the next client when one hangs up
    #[arg(long)]
    pub keep: bool,
    /// When the doorbell rings, take all memory away
    #[arg(long)]
    pub shrink_after_doorbell: bool,
    /// When the doorbell rings, end
    #[arg(long)]
    pub die_after_doorbell: bool,
    /// When the doorbell rings, never answer anything again, not even a hang-up
    #[arg(long)]
    pub silent_after_doorbell: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            socket: PathBuf::new(),
            vendor: 0x10de,
            device: 0x2342,
            memory: 512 << 20,
            usable: None,
            memory_file: None,
            reserved: 1 << 20,
            msix: 8,
            keep: false,
            shrink_after_doorbell: false,
            die_after_doorbell: false,
            silent_after_doorbell: false,
        }
    }
}

/// Options that no device can have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// A BAR's size.
    #[error("{option} {size:#x} is not 0 or a power of two from {MIN_BAR:#x} to {MAX_BAR:#x}")]
    Bar {
        /// The option.
        option: &'static str,
        /// Bytes.
        size: u64,
    },
    /// How much of BAR 4 is memory.
    #[error("--usable {usable:#x} is not whole pages, at least one, of --memory {memory:#x}")]
    Usable {
        /// Bytes that are memory.
        usable: u64,
        /// Bytes of the BAR.
        memory: u64,
    },
}

impl Options {
    /// Bytes of BAR 4 that are memory.
    pub fn usable(&self) -> u64 {
        self.usable.unwrap_or(self.memory)
    }

    /// Whether there can be such a device.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn check(&self) -> Result<(), OptionsError> {
        for (option, size) in [("--memory", self.memory), ("--reserved", self.reserved)] {
            if size != 0 && !(size.is_power_of_two() && (MIN_BAR..=MAX_BAR).contains(&size)) {
                return Err(OptionsError::Bar { option, size });
            }
        }
        if let Some(usable) = self.usable
            && (usable == 0 || usable > self.memory || !usable.is_multiple_of(PAGE))
        {
            return Err(OptionsError::Usable {
                usable,
                memory: self.memory,
            });
        }
        Ok(())
    }

    /// The command line that says the same.
    pub fn arguments(&self) -> Vec<OsString> {
        let Self {
            socket,
            vendor,
            device,
            memory,
            usable,
            memory_file,
            reserved,
            msix,
            keep,
            shrink_after_doorbell,
            die_after_doorbell,
            silent_after_doorbell,
        } = self;
        let mut arguments: Vec<OsString> = vec!["--socket".into(), socket.into()];
        let numbers = [
            ("--vendor", Some(u64::from(*vendor))),
            ("--device", Some(u64::from(*device))),
            ("--memory", Some(*memory)),
            ("--usable", *usable),
            ("--reserved", Some(*reserved)),
            ("--msix", Some(u64::from(*msix))),
        ];
        for (option, number) in numbers {
            if let Some(number) = number {
                arguments.extend([option.into(), number.to_string().into()]);
            }
        }
        if let Some(file) = memory_file {
            arguments.extend(["--memory-file".into(), file.into()]);
        }
        let flags = [
            ("--keep", keep),
            ("--shrink-after-doorbell", shrink_after_doorbell),
            ("--die-after-doorbell", die_after_doorbell),
            ("--silent-after-doorbell", silent_after_doorbell),
        ];
        arguments.extend(
            flags
                .iter()
                .filter(|(_, set)| **set)
                .map(|(option, _)| (*option).into()),
        );
        arguments
    }
}

/// A number, hexadecimal after `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A PCI id.
fn id(text: &str) -> Result<u16, String> {
    number(text)
        .and_then(|number| number.try_into().ok())
        .ok_or_else(|| "not a number of 16 bits, such as 0x10de".to_owned())
}

/// Bytes, with K, M, G or T.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        Some('T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    number(digits)
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "not a size, such as 512M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<Options, String> {
        Options::try_parse_from(options.split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let options = parse("coherent_device --socket s").unwrap();
        let socket = "s".into();
        assert_eq!(
            options,
            Options {
                socket,
                ..Options::default()
            }
        );
        assert_eq!(options.check(), Ok(()));
        assert_eq!(options.usable(), 512 << 20);
    }

    #[test]
    fn a_command_line_says_everything() {
        let options = Options {
            socket: "/tmp/a socket".into(),
            vendor: 0x1af4,
            device: 0xffff,
            memory: 1 << 30,
            usable: Some(3 << 28),
            memory_file: Some("/dev/shm/memory".into()),
            reserved: 0,
            msix: 2048,
            keep: true,
            shrink_after_doorbell: true,
            die_after_doorbell: true,
            silent_after_doorbell: true,
        };
        let arguments = [OsString::from("coherent_device")]
            .into_iter()
            .chain(options.arguments());
        assert_eq!(Options::try_parse_from(arguments).unwrap(), options);
        assert_eq!(options.check(), Ok(()));
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("4096", 4096), ("0x1000", 4096), ("1G", 1 << 30), ("0", 0)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "16777216T", "1g"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(parse("coherent_device --socket s --msix 2049").is_err());
        assert!(parse("coherent_device --socket s --vendor 0x10000").is_err());
    }

    #[test]
    fn impossible_devices_are_refused() {
        let check = |memory: u64, usable: Option<u64>, reserved: u64| {
            let options = Options {
                memory,
                usable,
                reserved,
                ..Options::default()
            };
            options.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(0, None, 0), Ok(()));
        assert_eq!(check(1 << 30, Some(0x2fff_f000), 1 << 20), Ok(()));
        assert_eq!(
            check(3 << 20, None, 0).unwrap_err(),
            "--memory 0x300000 is not 0 or a power of two from 0x10000 to 0x100000000000"
        );
        assert!(check(0, None, 4096).is_err());
        for usable in [0, 1, 4097, (1 << 20) + 4096] {
            assert!(check(1 << 20, Some(usable), 0).is_err(), "{usable:#x}");
        }
    }
}
