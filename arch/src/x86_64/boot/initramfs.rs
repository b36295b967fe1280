//! Places an initramfs at the top of low RAM.

use std::fs::File;
use std::io;

use thiserror::Error;
use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use super::{file_size, read_to_guest};

const PAGE: u64 = 0x1000;

/// A loaded initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// First address, a multiple of 4 KiB.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// An initramfs could not be loaded.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Read(#[source] io::Error),
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// There is too little memory above the kernel.
    #[error(
        "it has {size:#x} bytes, and {room:#x} bytes of memory are free between the kernel's end at \
         {kernel_end:#x} and {top:#x}"
    )]
    NoRoom {
        /// Bytes of the initramfs.
        size: u64,
        /// Bytes that are free.
        room: u64,
        /// First address past the kernel.
        kernel_end: u64,
        /// Address up to which an initramfs may lie.
        top: u64,
    },
    /// Guest memory cannot be written, or the file ended early.
    #[error("cannot copy {size} bytes to guest address {gpa:#x}")]
    Copy {
        /// Where.
        gpa: u64,
        /// How many bytes.
        size: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Copies `file`, if there is one, as high as possible between `kernel_end` and `top`.
pub fn load(
    memory: &GuestMemoryMmap,
    file: Option<&File>,
    kernel_end: u64,
    top: u64,
) -> Result<Option<Initramfs>, InitramfsError> {
    let Some(file) = file else { return Ok(None) };
    let size = file_size(file).map_err(InitramfsError::Read)?;
    let start = place(size, kernel_end, top)?;
    read_to_guest(memory, start, file, 0, size as usize).map_err(|source| {
        InitramfsError::Copy {
            gpa: start,
            size,
            source,
        }
    })?;
    Ok(Some(Initramfs { start, size }))
}

/// The highest page-aligned address from which `size` bytes end at or below `top`.
fn place(size: u64, kernel_end: u64, top: u64) -> Result<u64, InitramfsError> {
    if size == 0 {
        return Err(InitramfsError::Empty);
    }
    top.checked_sub(size)
        .map(|start| start & !(PAGE - 1))
        .filter(|&start| start >= kernel_end)
        .ok_or_else(|| InitramfsError::NoRoom {
            size,
            room: top.saturating_sub(kernel_end.next_multiple_of(PAGE)),
            kernel_end,
            top,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_at_the_top() {
        assert_eq!(place(0x1000, 0x10_0000, 0x2000_0000).unwrap(), 0x1fff_f000);
        assert_eq!(place(0x1001, 0x10_0000, 0x2000_0000).unwrap(), 0x1fff_e000);
        assert_eq!(place(1, 0, 0x1800).unwrap(), 0x1000);
    }

    #[test]
    fn fills_the_room_and_no_more() {
        assert_eq!(place(0x3000, 0x1000, 0x4000).unwrap(), 0x1000);
        let error = place(0x3001, 0x1000, 0x4000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it has 0x3001 bytes, and 0x3000 bytes of memory are free between the kernel's end at \
             0x1000 and 0x4000"
        );
        assert!(matches!(
            place(u64::MAX, 0, 0x4000),
            Err(InitramfsError::NoRoom { .. })
        ));
        assert!(matches!(place(0, 0, 0x4000), Err(InitramfsError::Empty)));
    }

    proptest! {
        #[test]
        fn lies_within_its_room_or_nowhere(
            size in prop_oneof![any::<u64>(), 0u64..1 << 33],
            kernel_end in 0u64..=1 << 32,
            top in 0u64..=1 << 32,
        ) {
            match place(size, kernel_end, top) {
                Ok(start) => {
                    prop_assert_eq!(start % PAGE, 0);
                    prop_assert!(start >= kernel_end && start + size <= top);
                    prop_assert!(top - (start + size) < PAGE, "not as high as possible");
                }
                Err(InitramfsError::NoRoom { room, .. }) => prop_assert!(size > room || top % PAGE != 0),
                Err(_) => prop_assert_eq!(size, 0),
            }
        }
    }
}
