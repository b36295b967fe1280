//! Uncompressed ELF kernels with a PVH entry.
//!
//! linux-loader's `Elf` is not used: it exists on x86 hosts alone, looks at neither machine nor
//! class, forgets a PVH note when another note segment follows, leaves a segment's zeroed part
//! as it finds it, and has one error for a truncated file and for memory that is too small.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{file_size, layout, read_to_guest};

/// `Elf64_Ehdr` (System V gABI, "ELF Header").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader {
    magic: [u8; 4],
    class: u8,
    data: u8,
    ident: [u8; 10],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}
const _: () = assert!(size_of::<FileHeader>() == 64);

/// `Elf64_Phdr` (System V gABI, "Program Header").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Segment {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}
const _: () = assert!(size_of::<Segment>() == 56);

const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen, public/elfnote.h).
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Owner of Xen's notes.
const NOTE_OWNER: &[u8] = b"Xen\0";
/// Largest note segment that is read; kernels have some hundred bytes.
const NOTES_LIMIT: u64 = 0x1_0000;

/// An ELF kernel could not be loaded.
#[derive(Debug, Error)]
pub enum ElfError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// The file ends too early.
    #[error("the file is truncated: {part} ends at {end:#x} and the file at {file_size:#x}")]
    Truncated {
        /// What is missing.
        part: &'static str,
        /// Where it would end.
        end: u64,
        /// Bytes of the file.
        file_size: u64,
    },
    /// Not a 64-bit little-endian ELF file.
    #[error("it is no 64-bit little-endian ELF file (class {class}, data encoding {data})")]
    Class {
        /// `EI_CLASS`.
        class: u8,
        /// `EI_DATA`.
        data: u8,
    },
    /// The kernel is for another machine.
    #[error("it is built for {}, and the guest is x86_64", machine_name(*.0))]
    Machine(u16),
    /// Program headers have an unknown size.
    #[error("its program headers have {0} bytes each instead of 56")]
    HeaderSize(u16),
    /// The kernel cannot be started by PVH.
    #[error(
        "it has no PVH entry (Xen ELF note 18); Linux has one if built with CONFIG_PVH, and its \
         bzImage needs none"
    )]
    NoPvhEntry,
    /// The PVH entry is malformed.
    #[error("its PVH entry note is malformed: {0} bytes instead of 4 or 8")]
    BadPvhNote(usize),
    /// A note segment is absurdly large.
    #[error("its notes take {0} bytes")]
    NotesTooLarge(u64),
    /// The PVH entry is not in the kernel.
    #[error("its PVH entry {0:#x} lies in none of its segments")]
    EntryOutside(u64),
    /// A segment's size in the file exceeds its size in memory.
    #[error("a segment has {filesz:#x} bytes in the file and only {memsz:#x} in memory")]
    SegmentSize {
        /// Bytes in the file.
        filesz: u64,
        /// Bytes in memory.
        memsz: u64,
    },
    /// A segment lies where it cannot be loaded.
    #[error(
        "a segment of {size:#x} bytes is to be loaded at {start:#x}, and memory for kernels is \
         from {:#x} to {top:#x}",
        layout::HIGH_MEMORY_START
    )]
    NoRoom {
        /// First address.
        start: u64,
        /// Bytes.
        size: u64,
        /// End of memory for kernels.
        top: u64,
    },
    /// Guest memory cannot be written, or the file ended early.
    #[error("cannot load a segment of {size:#x} bytes at guest address {gpa:#x}")]
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

/// Name of an ELF machine number (System V gABI, "ELF Header", `e_machine`).
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".into(),
        40 => "32-bit Arm".into(),
        183 => "arm64".into(),
        243 => "RISC-V".into(),
        other => format!("ELF machine {other}"),
    }
}

/// A loaded ELF kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfKernel {
    /// PVH entry point.
    pub entry: u64,
    /// First address past the kernel.
    pub end: u64,
}

/// Loads the segments of `file` to their physical addresses, below `top`.
///
/// # Errors
/// Any [`ElfError`]; segments may have been written then.
pub fn load(memory: &GuestMemoryMmap, file: &File, top: u64) -> Result<ElfKernel, ElfError> {
    let image = Image::open(file)?;
    let entry = image.pvh_entry()?;
    let mut end = 0;
    let mut entry_inside = false;
    for segment in image.segments(PT_LOAD) {
        let segment = segment?;
        let (start, size) = (segment.paddr.get(), segment.memsz.get());
        if size == 0 {
            continue;
        }
        image.load_segment(memory, &segment, top)?;
        // Cannot overflow: the segment lies below `top`.
        end = end.max(start + size);
        entry_inside |= (start..start + size).contains(&entry);
    }
    if !entry_inside {
        return Err(ElfError::EntryOutside(entry));
    }
    Ok(ElfKernel { entry, end })
}

/// An ELF file with a sane header.
struct Image<'a> {
    file: &'a File,
    size: u64,
    header: FileHeader,
}

impl<'a> Image<'a> {
    fn open(file: &'a File) -> Result<Self, ElfError> {
        let size = file_size(file).map_err(ElfError::Read)?;
        let mut image = Self {
            file,
            size,
            header: FileHeader::new_zeroed(),
        };
        image.header = image.read("the ELF header", 0)?;
        let header = &image.header;
        if header.class != CLASS_64 || header.data != DATA_LITTLE_ENDIAN {
            return Err(ElfError::Class {
                class: header.class,
                data: header.data,
            });
        }
        if header.machine != MACHINE_X86_64 {
            return Err(ElfError::Machine(header.machine.get()));
        }
        if usize::from(header.phentsize.get()) != size_of::<Segment>() && header.phnum != 0 {
            return Err(ElfError::HeaderSize(header.phentsize.get()));
        }
        Ok(image)
    }

    /// Program headers of one type, in the order of the file.
    fn segments(&self, kind: u32) -> impl Iterator<Item = Result<Segment, ElfError>> {
        let offset = self.header.phoff.get();
        (0..u64::from(self.header.phnum.get()))
            .map(move |index| {
                let offset = offset.saturating_add(index * size_of::<Segment>() as u64);
                self.read::<Segment>("the program headers", offset)
            })
            .filter(move |segment| !matches!(segment, Ok(segment) if segment.kind != kind))
    }

    /// The first PVH entry note of all note segments.
    fn pvh_entry(&self) -> Result<u64, ElfError> {
        for segment in self.segments(PT_NOTE) {
            let segment = segment?;
            let size = segment.filesz.get();
            if size > NOTES_LIMIT {
                return Err(ElfError::NotesTooLarge(size));
            }
            let mut notes = vec![0; size as usize];
            self.read_into("a note segment", segment.offset.get(), &mut notes)?;
            // Notes are padded to 4 bytes, save in some segments that are aligned to 8.
            let paddings: &[usize] = if segment.align.get() == 8 {
                &[4, 8]
            } else {
                &[4]
            };
            for &padding in paddings {
                if let Some(value) = find_note(&notes, padding) {
                    return note_address(value);
                }
            }
        }
        Err(ElfError::NoPvhEntry)
    }

    /// Copies what a segment has in the file and zeroes the rest.
    fn load_segment(
        &self,
        memory: &GuestMemoryMmap,
        segment: &Segment,
        top: u64,
    ) -> Result<(), ElfError> {
        let (start, memsz) = (segment.paddr.get(), segment.memsz.get());
        let (offset, filesz) = (segment.offset.get(), segment.filesz.get());
        if filesz > memsz {
            return Err(ElfError::SegmentSize { filesz, memsz });
        }
        if start < layout::HIGH_MEMORY_START || start.saturating_add(memsz) > top {
            return Err(ElfError::NoRoom {
                start,
                size: memsz,
                top,
            });
        }
        self.check_end("a segment", offset, filesz)?;
        read_to_guest(memory, start, self.file, offset, filesz as usize)
            .and_then(|()| zero(memory, start + filesz, memsz - filesz))
            .map_err(|source| ElfError::Copy {
                gpa: start,
                size: memsz,
                source,
            })
    }

    /// Reads a structure.
    fn read<T: FromBytes + IntoBytes>(
        &self,
        part: &'static str,
        offset: u64,
    ) -> Result<T, ElfError> {
        let mut value = T::new_zeroed();
        self.read_into(part, offset, value.as_mut_bytes())?;
        Ok(value)
    }

    fn read_into(&self, part: &'static str, offset: u64, to: &mut [u8]) -> Result<(), ElfError> {
        self.check_end(part, offset, to.len() as u64)?;
        self.file.read_exact_at(to, offset).map_err(ElfError::Read)
    }

    fn check_end(&self, part: &'static str, offset: u64, size: u64) -> Result<(), ElfError> {
        let end = offset.saturating_add(size);
        if end > self.size {
            return Err(ElfError::Truncated {
                part,
                end,
                file_size: self.size,
            });
        }
        Ok(())
    }
}

/// The value of the PVH entry note in a note segment whose fields are padded to `padding` bytes
/// (System V gABI, "Note Section"). What is malformed ends the search.
fn find_note(mut notes: &[u8], padding: usize) -> Option<&[u8]> {
    loop {
        let (name_size, rest) = U32::read_from_prefix(notes).ok()?;
        let (value_size, rest) = U32::read_from_prefix(rest).ok()?;
        let (kind, _) = U32::read_from_prefix(rest).ok()?;
        let name_end = name_size.get() as usize + 12;
        let value_start = name_end.next_multiple_of(padding);
        let value_end = value_start.checked_add(value_size.get() as usize)?;
        let name = notes.get(12..name_end)?;
        let value = notes.get(value_start..value_end)?;
        if kind == NOTE_PHYS32_ENTRY && name == NOTE_OWNER {
            return Some(value);
        }
        notes = notes.get(value_end.next_multiple_of(padding)..)?;
    }
}

/// A note's value as an address: 32 bits, which 64-bit kernels write as 64.
fn note_address(value: &[u8]) -> Result<u64, ElfError> {
    match value.len() {
        4 => Ok(U32::read_from_bytes(value).map_or(0, |address| address.get().into())),
        8 => Ok(U64::read_from_bytes(value).map_or(0, |address| address.get())),
        other => Err(ElfError::BadPvhNote(other)),
    }
}

/// Zeroes guest memory: it may hold what an earlier boot left there.
fn zero(memory: &GuestMemoryMmap, start: u64, size: u64) -> Result<(), GuestMemoryError> {
    static ZEROES: [u8; 0x1_0000] = [0; 0x1_0000];
    let mut done = 0;
    while done < size {
        let count = (size - done).min(ZEROES.len() as u64);
        memory.write_slice(&ZEROES[..count as usize], GuestAddress(start + done))?;
        done += count;
    }
    Ok(())
}
