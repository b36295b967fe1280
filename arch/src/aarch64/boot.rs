//! Kernel and initramfs, read straight into guest memory.
//!
//! Source: Linux, Documentation/arch/arm64/booting.rst, section 4, "Call the kernel image".

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::image::{self, HEAD_SIZE, ImageError};
use crate::GpaRange;

/// Boundary from which a kernel is placed at its `text_offset`, in bytes.
const KERNEL_ALIGNMENT: u64 = 2 << 20;
/// The largest page of an arm64 kernel, in bytes: an initramfs shares none with anything else.
const PAGE_SIZE: u64 = 64 << 10;
/// Kernel and initramfs lie within a window of this size, aligned to [`WINDOW_ALIGNMENT`].
const WINDOW_SIZE: u64 = 32 << 30;
const WINDOW_ALIGNMENT: u64 = 1 << 30;

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Where the boot CPU starts.
    pub entry: u64,
    /// What the kernel occupies, its BSS included.
    pub range: GpaRange,
}

/// Why a kernel was not loaded.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("cannot read the kernel")]
    Read(#[source] io::Error),
    /// The file is not a kernel for this machine.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Too little RAM.
    #[error(
        "the kernel needs {needed:#x} bytes, its place in RAM has {available:#x} \
         from {start:#x}"
    )]
    DoesNotFit {
        /// What the kernel needs, its BSS and text offset included, in bytes.
        needed: u64,
        /// What there is, in bytes.
        available: u64,
        /// First address of what there is.
        start: u64,
    },
    /// The file cannot be read into guest memory.
    #[error("cannot read the kernel into guest memory at {gpa:#x}")]
    Copy {
        /// Where it should have gone.
        gpa: u64,
        /// What went wrong.
        #[source]
        source: GuestMemoryError,
    },
}

/// Why an initramfs was not loaded.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// The file cannot be read.
    #[error("cannot read the initramfs")]
    Read(#[source] io::Error),
    /// The file is empty.
    #[error("the initramfs is empty")]
    Empty,
    /// Too little RAM after the kernel.
    #[error(
        "the initramfs has {length:#x} bytes, its place in RAM has {available:#x} \
         from {start:#x}"
    )]
    DoesNotFit {
        /// Length of the initramfs in bytes.
        length: u64,
        /// What there is within the kernel's reach, in bytes.
        available: u64,
        /// First address of what there is.
        start: u64,
    },
    /// The file cannot be read into guest memory.
    #[error("cannot read the initramfs into guest memory at {gpa:#x}")]
    Copy {
        /// Where it should have gone.
        gpa: u64,
        /// What went wrong.
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads an arm64 `Image` as low in `area`, a range of RAM, as its alignment allows.
///
/// # Errors
///
/// The file is unreadable or no uncompressed little-endian arm64 `Image`, or `area` is too small.
pub fn load_kernel(
    memory: &GuestMemoryMmap,
    file: &mut File,
    area: GpaRange,
) -> Result<Kernel, KernelError> {
    let length = length(file).map_err(KernelError::Read)?;
    let mut head = Vec::with_capacity(HEAD_SIZE);
    file.take(HEAD_SIZE as u64)
        .read_to_end(&mut head)
        .and_then(|_| file.rewind())
        .map_err(KernelError::Read)?;
    let image = image::parse(&head, length)?;

    let does_not_fit = || KernelError::DoesNotFit {
        needed: image.text_offset.saturating_add(image.size),
        available: area.size,
        start: area.start,
    };
    let entry = area
        .start
        .checked_next_multiple_of(KERNEL_ALIGNMENT)
        .and_then(|base| base.checked_add(image.text_offset))
        .ok_or_else(does_not_fit)?;
    let end = entry.checked_add(image.size).ok_or_else(does_not_fit)?;
    if end > area.end() {
        return Err(does_not_fit());
    }

    // Anything past `image_size`, such as a signature, is of no use to the kernel.
    let count = usize::try_from(length.min(image.size)).map_err(|_| does_not_fit())?;
    memory
        .read_exact_volatile_from(GuestAddress(entry), file, count)
        .map_err(|source| KernelError::Copy { gpa: entry, source })?;
    Ok(Kernel {
        entry,
        range: GpaRange {
            start: entry,
            size: image.size,
        },
    })
}

/// Loads an initramfs behind `kernel`, which was loaded into the same `area` of RAM.
///
/// # Errors
///
/// The file is unreadable or empty, or too little of `area` is left within the kernel's reach.
pub fn load_initramfs(
    memory: &GuestMemoryMmap,
    file: &mut File,
    area: GpaRange,
    kernel: GpaRange,
) -> Result<GpaRange, InitramfsError> {
    let length = length(file).map_err(InitramfsError::Read)?;
    if length == 0 {
        return Err(InitramfsError::Empty);
    }
    let start = kernel
        .end()
        .checked_next_multiple_of(PAGE_SIZE)
        .unwrap_or(u64::MAX);
    let window = kernel.start - kernel.start % WINDOW_ALIGNMENT;
    let end = area.end().min(window.saturating_add(WINDOW_SIZE));
    let available = end.saturating_sub(start);
    let count = usize::try_from(length)
        .ok()
        .filter(|_| length <= available)
        .ok_or(InitramfsError::DoesNotFit {
            length,
            available,
            start,
        })?;
    memory
        .read_exact_volatile_from(GuestAddress(start), file, count)
        .map_err(|source| InitramfsError::Copy { gpa: start, source })?;
    Ok(GpaRange {
        start,
        size: length,
    })
}

/// Length of a file in bytes, with the file's position back at its start.
fn length(file: &mut File) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok(length)
}

#[cfg(test)]
mod tests;
