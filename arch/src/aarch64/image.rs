//! The arm64 `Image` header, and what users pass in its place.

use std::fmt;

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Bytes at the start of a file that tell what it is; the PE section table, if any, is within.
pub(super) const HEAD_SIZE: usize = 4096;

const FLAG_BIG_ENDIAN: u64 = 1;
const MAGIC: [u8; 4] = *b"ARM\x64";
const MAGIC_OFFSET: usize = 56;

/// Header of an arm64 `Image` (Linux, Documentation/arch/arm64/booting.rst, section 4).
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    code: [U32; 2],
    text_offset: U64,
    image_size: U64,
    flags: U64,
    reserved: [U64; 3],
    magic: [u8; 4],
    pe_offset: U32,
}
const _: () = assert!(size_of::<Header>() == 64);

/// COFF file header and its signature (Microsoft PE format, "COFF File Header").
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Coff {
    signature: [u8; 4],
    machine: U16,
    sections: U16,
    timestamp: U32,
    symbol_table: U32,
    symbols: U32,
    optional_header_size: U16,
    characteristics: U16,
}
const _: () = assert!(size_of::<Coff>() == 24);

/// One entry of the section table (Microsoft PE format, "Section Table").
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Section {
    name: [u8; 8],
    virtual_size: U32,
    virtual_address: U32,
    raw_size: U32,
    raw_offset: U32,
    relocations: [U32; 2],
    counts: [U16; 2],
    characteristics: U32,
}
const _: () = assert!(size_of::<Section>() == 40);

/// Why a file is not taken for a kernel.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than the header.
    #[error("the file is {length} bytes long, shorter than the 64-byte header of an arm64 Image")]
    TooShort {
        /// Length of the file in bytes.
        length: u64,
    },
    /// Something else.
    #[error("the file is {0}; an aarch64 guest needs an uncompressed arm64 Image")]
    Foreign(Foreign),
    /// The file ends before its last section does.
    #[error("the file is truncated: it has {length} bytes, its sections need {needed}")]
    Truncated {
        /// Length of the file in bytes.
        length: u64,
        /// Length that its section table asks for, in bytes.
        needed: u64,
    },
    /// Built for big-endian CPUs.
    #[error("the kernel is big-endian; only little-endian kernels are supported")]
    BigEndian,
    /// Older than Linux 3.17, which began to tell the image's size.
    #[error("the Image header gives no image size; Linux 3.17 or later is needed")]
    NoSize,
}

/// A file format that is not an arm64 `Image` but is easily taken for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// An x86 bzImage.
    BzImage,
    /// An ELF file, by its machine number.
    Elf(u16),
    /// A RISC-V `Image`.
    RiscvImage,
    /// A compressed file, such as `Image.gz`, by the name of the format.
    Compressed(&'static str),
    /// An EFI zboot image, by the name of the compression within.
    Zboot(String),
    /// Another EFI (PE) executable, such as a unified kernel image.
    Efi,
    /// Nothing known.
    Unknown,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BzImage => write!(f, "an x86 bzImage"),
            Self::Elf(62) => write!(f, "an x86_64 ELF file"),
            Self::Elf(183) => write!(
                f,
                "an aarch64 ELF file (the Image beside it in arch/arm64/boot is meant)"
            ),
            Self::Elf(machine) => write!(f, "an ELF file for machine {machine}"),
            Self::RiscvImage => write!(f, "a RISC-V Image"),
            Self::Compressed(format) => write!(f, "compressed with {format}"),
            Self::Zboot(compression) => {
                write!(f, "an EFI zboot image, compressed with {compression}")
            }
            Self::Efi => write!(f, "an EFI executable"),
            Self::Unknown => write!(f, "of an unknown format"),
        }
    }
}

/// What a loader needs of an arm64 `Image`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Bytes from a 2 MiB boundary to where the image is placed.
    pub text_offset: u64,
    /// Bytes from there on that the kernel uses, its BSS included.
    pub size: u64,
}

/// Reads the header at the start of `head`, which is the first [`HEAD_SIZE`] bytes of a file of
/// `length` bytes, or all of a shorter one.
pub(super) fn parse(head: &[u8], length: u64) -> Result<Image, ImageError> {
    let magic = head.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len());
    let header = match Header::ref_from_prefix(head) {
        Ok((header, _)) if magic == Some(&MAGIC) => header,
        _ => {
            return Err(match recognise(head) {
                Foreign::Unknown if length < size_of::<Header>() as u64 => {
                    ImageError::TooShort { length }
                }
                foreign => ImageError::Foreign(foreign),
            });
        }
    };
    if header.flags.get() & FLAG_BIG_ENDIAN != 0 {
        return Err(ImageError::BigEndian);
    }
    if header.image_size.get() == 0 {
        return Err(ImageError::NoSize);
    }
    // A file shorter than `image_size` is no sign of truncation, the rest being BSS; its sections
    // are, for a kernel that has an EFI stub and thus a section table.
    let needed = end_of_sections(head, header.pe_offset.get()).unwrap_or(0);
    if length < needed {
        return Err(ImageError::Truncated { length, needed });
    }
    Ok(Image {
        text_offset: header.text_offset.get(),
        size: header.image_size.get(),
    })
}

/// Where in the file the last section ends; `None` without a PE header.
fn end_of_sections(head: &[u8], pe_offset: u32) -> Option<u64> {
    let pe = head.get(usize::try_from(pe_offset).ok()?..)?;
    let (coff, rest) = Coff::ref_from_prefix(pe).ok()?;
    if coff.signature != *b"PE\0\0" {
        return None;
    }
    let mut rest = rest.get(usize::from(coff.optional_header_size.get())..)?;
    let mut end = 0;
    for _ in 0..coff.sections.get() {
        let (section, tail) = Section::ref_from_prefix(rest).ok()?;
        end = end.max(u64::from(section.raw_offset.get()) + u64::from(section.raw_size.get()));
        rest = tail;
    }
    Some(end)
}

fn recognise(head: &[u8]) -> Foreign {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|tail| tail.starts_with(magic))
    };
    const COMPRESSED: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x89LZO", "lzo"),
    ];
    if let Some((_, format)) = COMPRESSED.iter().find(|(magic, _)| at(0, magic)) {
        return Foreign::Compressed(format);
    }
    if at(0, b"\x7fELF")
        && let Some(&[low, high]) = head.get(18..20)
    {
        return Foreign::Elf(u16::from_le_bytes([low, high]));
    }
    if at(MAGIC_OFFSET, b"RSC\x05") {
        return Foreign::RiscvImage;
    }
    if at(0x202, b"HdrS") {
        return Foreign::BzImage;
    }
    if at(0, b"MZ") && at(4, b"zimg") {
        // drivers/firmware/efi/libstub/zboot-header.S: a NUL-terminated name.
        let name = head.get(24..MAGIC_OFFSET).unwrap_or_default();
        let name = name.iter().take_while(|byte| byte.is_ascii_alphanumeric());
        return Foreign::Zboot(name.map(|&byte| char::from(byte)).collect());
    }
    if at(0, b"MZ") {
        return Foreign::Efi;
    }
    Foreign::Unknown
}
