use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::aarch64::Foreign;

const MIB: u64 = 1 << 20;
const RAM_START: u64 = 0x4000_0000;
const AREA: GpaRange = GpaRange {
    start: 0x4040_0000,
    size: 12 * MIB,
};

/// 16 MiB in two regions that touch, as RAM of two NUMA nodes does.
fn memory() -> GuestMemoryMmap {
    let half = 8 * MIB as usize;
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(RAM_START), half),
        (GuestAddress(RAM_START + 8 * MIB), half),
    ])
    .unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An `Image` of `length` bytes; byte i past the header is i modulo 251.
fn image(text_offset: u64, image_size: u64, flags: u64, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
    bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[24..32].copy_from_slice(&flags.to_le_bytes());
    bytes[56..60].copy_from_slice(&0x644d_5241u32.to_le_bytes());
    bytes[60..64].fill(0);
    bytes
}

/// An `Image` with the PE header of an EFI stub at 64, whose one section spans 4096..8192.
fn image_with_stub() -> Vec<u8> {
    let mut bytes = image(0, 0x1_0000, 0xa, 8192);
    bytes[60..64].copy_from_slice(&64u32.to_le_bytes());
    bytes[64..68].copy_from_slice(b"PE\0\0");
    bytes[70..72].copy_from_slice(&1u16.to_le_bytes());
    bytes[84..86].copy_from_slice(&160u16.to_le_bytes());
    let section = 64 + 24 + 160;
    bytes[section + 16..section + 20].copy_from_slice(&4096u32.to_le_bytes());
    bytes[section + 20..section + 24].copy_from_slice(&4096u32.to_le_bytes());
    bytes
}

fn load(bytes: &[u8]) -> Result<Kernel, KernelError> {
    load_kernel(&memory(), &mut file(bytes), AREA)
}

fn refused(bytes: &[u8]) -> ImageError {
    match load(bytes) {
        Err(KernelError::Image(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn foreign(bytes: &[u8]) -> Foreign {
    match refused(bytes) {
        ImageError::Foreign(foreign) => foreign,
        other => panic!("{other:?}"),
    }
}

#[test]
fn kernel_lies_at_its_text_offset_from_a_2_mib_boundary() {
    let memory = memory();
    // 5 MiB of file straddle the two regions; 1 MiB of BSS follows.
    let bytes = image(0x8_0000, 6 * MIB, 0xa, 5 * MIB as usize);
    let kernel = load_kernel(&memory, &mut file(&bytes), AREA).unwrap();
    assert_eq!(
        kernel,
        Kernel {
            entry: 0x4048_0000,
            range: GpaRange {
                start: 0x4048_0000,
                size: 6 * MIB
            },
        }
    );
    let mut loaded = vec![0; bytes.len()];
    memory
        .read_slice(&mut loaded, GuestAddress(kernel.entry))
        .unwrap();
    assert!(loaded == bytes);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0x4047_FFFF)).unwrap(), 0);
}

#[test]
fn kernel_starts_at_the_next_boundary() {
    let bytes = image(0, MIB, 0xa, 4096);
    let area = GpaRange {
        start: AREA.start + 1,
        size: AREA.size - 1,
    };
    let kernel = load_kernel(&memory(), &mut file(&bytes), area).unwrap();
    assert_eq!(kernel.entry, 0x4060_0000);
}

#[test]
fn what_follows_the_image_is_left_out() {
    let memory = memory();
    let bytes = image(0, 4096, 0xa, 8192);
    load_kernel(&memory, &mut file(&bytes), AREA).unwrap();
    let at = |gpa| memory.read_obj::<u64>(GuestAddress(gpa)).unwrap();
    assert_ne!(at(AREA.start + 4096 - 8), 0);
    assert_eq!(at(AREA.start + 4096), 0);
}

#[test]
fn kernel_needs_room_for_its_bss() {
    let fits = image(MIB, 11 * MIB, 0xa, 4096);
    assert_eq!(load(&fits).unwrap().range.end(), AREA.end());
    match load(&image(MIB, 11 * MIB + 1, 0xa, 4096)) {
        Err(KernelError::DoesNotFit {
            needed,
            available,
            start,
        }) => assert_eq!(
            (needed, available, start),
            (12 * MIB + 1, 12 * MIB, 0x4040_0000)
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn truncated_kernels_are_told_by_their_sections() {
    let bytes = image_with_stub();
    assert!(load(&bytes).is_ok());
    assert_eq!(
        refused(&bytes[..8191]),
        ImageError::Truncated {
            length: 8191,
            needed: 8192
        }
    );
}

#[test]
fn headers_that_cannot_be_honoured_are_refused() {
    assert_eq!(refused(&image(0, MIB, 0xb, 4096)), ImageError::BigEndian);
    assert_eq!(refused(&image(0, 0, 0, 4096)), ImageError::NoSize);
    assert_eq!(refused(&[]), ImageError::TooShort { length: 0 });
    assert_eq!(
        refused(&image(0, MIB, 0xa, 64)[..63]),
        ImageError::TooShort { length: 63 }
    );
}

#[test]
fn other_formats_are_named() {
    let mut bytes = vec![0; 4096];
    assert_eq!(foreign(&bytes), Foreign::Unknown);
    bytes[..2].copy_from_slice(b"MZ");
    assert_eq!(foreign(&bytes), Foreign::Efi);
    bytes[4..8].copy_from_slice(b"zimg");
    bytes[24..29].copy_from_slice(b"zstd\0");
    assert_eq!(foreign(&bytes), Foreign::Zboot("zstd".into()));
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    assert_eq!(foreign(&bytes), Foreign::BzImage);
    assert_eq!(
        foreign(b"\x1f\x8b\x08\0\0\0\0\0"),
        Foreign::Compressed("gzip")
    );
    let mut elf = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0";
    assert_eq!(foreign(&elf), Foreign::Elf(62));
    elf[18] = 183;
    assert_eq!(
        refused(&elf).to_string(),
        "the file is an aarch64 ELF file (the Image beside it in arch/arm64/boot is meant); \
         an aarch64 guest needs an uncompressed arm64 Image"
    );
}

#[test]
fn a_directory_is_an_error_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::open(folder.path()).unwrap();
    assert!(matches!(
        load_kernel(&memory(), &mut file, AREA),
        Err(KernelError::Read(_))
    ));
}

const KERNEL: GpaRange = GpaRange {
    start: AREA.start,
    size: 2 * MIB + 1,
};

#[test]
fn initramfs_follows_the_kernel_on_a_page_of_its_own() {
    let memory = memory();
    let bytes: Vec<u8> = (0..MIB).map(|i| (i % 241) as u8).collect();
    let range = load_initramfs(&memory, &mut file(&bytes), AREA, KERNEL).unwrap();
    assert_eq!(
        range,
        GpaRange {
            start: 0x4061_0000,
            size: MIB
        }
    );
    let mut loaded = vec![0; bytes.len()];
    memory
        .read_slice(&mut loaded, GuestAddress(range.start))
        .unwrap();
    assert!(loaded == bytes);
}

#[test]
fn initramfs_ends_where_ram_does() {
    let room = (AREA.end() - 0x4061_0000) as usize;
    let range = load_initramfs(&memory(), &mut file(&vec![1; room]), AREA, KERNEL).unwrap();
    assert_eq!(range.end(), AREA.end());
    match load_initramfs(&memory(), &mut file(&vec![1; room + 1]), AREA, KERNEL) {
        Err(InitramfsError::DoesNotFit {
            length,
            available,
            start,
        }) => assert_eq!(
            (length, available, start),
            (room as u64 + 1, room as u64, 0x4061_0000)
        ),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        load_initramfs(&memory(), &mut file(&[]), AREA, KERNEL),
        Err(InitramfsError::Empty)
    ));
}

#[test]
fn initramfs_stays_within_32_gib_of_the_kernels_gibibyte() {
    let area = GpaRange {
        start: AREA.start,
        size: 64 << 30,
    };
    let kernel = GpaRange {
        start: AREA.start,
        size: (32 << 30) - (0x4040_0000 - RAM_START) - 0x1_0000,
    };
    match load_initramfs(&memory(), &mut file(&[1; 0x1_0001]), area, kernel) {
        Err(InitramfsError::DoesNotFit { available, .. }) => assert_eq!(available, 0x1_0000),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn any_header_is_loaded_within_its_area_or_refused(
        text_offset in prop_oneof![any::<u64>(), 0..16 * MIB],
        image_size in prop_oneof![any::<u64>(), 0..16 * MIB],
        start in prop_oneof![any::<u64>(), RAM_START..RAM_START + 16 * MIB],
        size in prop_oneof![any::<u64>(), 0..16 * MIB],
        pe_offset in any::<u32>(),
        initramfs in prop_oneof![9 => 0u64..0x2000, 1 => 0..16 * MIB],
    ) {
        let mut bytes = image(text_offset, image_size, 0xa, 4096);
        bytes[60..64].copy_from_slice(&pe_offset.to_le_bytes());
        let area = GpaRange { start, size };
        let memory = memory();
        if let Ok(kernel) = load_kernel(&memory, &mut file(&bytes), area) {
            prop_assert!(kernel.range.start >= area.start && kernel.range.end() <= area.end());
            prop_assert_eq!(kernel.entry.wrapping_sub(text_offset) % (2 * MIB), 0);
            let mut file = tempfile::tempfile().unwrap();
            file.set_len(initramfs).unwrap();
            if let Ok(range) = load_initramfs(&memory, &mut file, area, kernel.range) {
                prop_assert!(range.start >= kernel.range.end() && range.end() <= area.end());
                prop_assert_eq!(range.size, initramfs);
            }
        }
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 64..1024),
        pe_offset in 0u32..1024,
    ) {
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes[60..64].copy_from_slice(&pe_offset.to_le_bytes());
        if let Some(signature) = bytes.get_mut(pe_offset as usize..pe_offset as usize + 4) {
            signature.copy_from_slice(b"PE\0\0");
        }
        let length = bytes.len() as u64;
        if let Ok(image) = image::parse(&bytes, length) {
            prop_assert!(image.size > 0);
        }
    }
}
