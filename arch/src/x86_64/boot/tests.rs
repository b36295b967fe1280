//! Kernels made here, field by field from the specifications, and what becomes of them in memory.

mod bzimage;
mod elf;

use std::error::Error;
use std::io::Write;
use std::ops::Range;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// RAM from 0, filled with what must not be taken for zeroes.
fn guest(size: u64) -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
    for page in (0..size).step_by(0x1000) {
        memory
            .write_slice(&[0xa5; 0x1000], GuestAddress(page))
            .unwrap();
    }
    memory
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn bytes(memory: &GuestMemoryMmap, gpa: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

/// A little-endian number of `size` bytes.
fn number(memory: &GuestMemoryMmap, gpa: u64, size: usize) -> u64 {
    bytes(memory, gpa, size)
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// 16 MiB of RAM, of which the last one holds ACPI tables.
const BOOT: BootMemory<'_> = BootMemory {
    ram: &[(0, 16 * MIB)],
    acpi_window: Some((15 * MIB, MIB)),
    rsdp: Some(0xe_0000),
    ram_top: 15 * MIB,
};

/// Loads a kernel alone into 16 MiB.
fn load_alone(kernel: &[u8]) -> Result<Entry, LoadError> {
    load_with(kernel, None, b"")
}

fn load_with(kernel: &[u8], initramfs: Option<&[u8]>, cmdline: &[u8]) -> Result<Entry, LoadError> {
    let (kernel, initramfs) = (file(kernel), initramfs.map(file));
    let payload = Payload {
        kernel: &kernel,
        initramfs: initramfs.as_ref(),
        cmdline,
    };
    load_kernel(&guest(16 * MIB), payload, &BOOT)
}

/// The whole chain of messages.
fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

#[track_caller]
fn assert_fails(kernel: &[u8], expected: &str) {
    let error = load_alone(kernel).unwrap_err();
    assert_eq!(message(&error), expected);
}

/// An image with `magic` at `offset`.
fn magic(offset: usize, magic: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    image[offset..offset + magic.len()].copy_from_slice(magic);
    image
}

#[test]
fn kernels_of_other_architectures_are_named() {
    assert_fails(
        &magic(56, b"ARM\x64"),
        "the kernel is an arm64 Image, and the guest is x86_64",
    );
    assert_fails(
        &magic(56, b"RSC\x05"),
        "the kernel is a RISC-V Image, and the guest is x86_64",
    );
    let zboot = magic(0, b"MZ\0\0zimg");
    assert_fails(
        &zboot,
        "the kernel is an EFI zboot image, and the guest is x86_64",
    );
}

#[test]
fn compressed_kernels_are_named() {
    for (start, name) in [
        (&b"\x1f\x8b\x08"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ] {
        let expected =
            format!("the kernel is compressed with {name}: decompress it, or use the bzImage");
        assert_fails(&magic(0, start), &expected);
    }
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    assert_fails(
        b"",
        "the kernel is neither an ELF image nor a bzImage (file of 0 bytes, begins with [])",
    );
    assert_fails(
        b"#!/bin/sh\n",
        "the kernel is neither an ELF image nor a bzImage (file of 10 bytes, begins with [23, 21, \
         2f, 62, 69, 6e, 2f, 73])",
    );
}

#[test]
fn directories_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = File::open(directory.path()).unwrap();
    let payload = Payload {
        kernel: &kernel,
        initramfs: None,
        cmdline: b"",
    };
    let error = load_kernel(&guest(16 * MIB), payload, &BOOT).unwrap_err();
    assert_eq!(message(&error), "cannot read the kernel: is a directory");
}

/// What to write over a file, and where within it: any byte, or a number at the edge of something.
fn damage(within: Range<usize>) -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
    const EDGES: [u64; 10] = [
        0,
        1,
        0xfff,
        0x10_0000,
        0xf0_0000,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 63,
        u64::MAX - 0xfff,
        u64::MAX,
    ];
    let number = (prop::sample::select(&EDGES[..]), 1usize..=8)
        .prop_map(|(number, size)| number.to_le_bytes()[..size].to_vec());
    let bytes = prop_oneof![any::<u8>().prop_map(|byte| vec![byte]), number];
    prop::collection::vec((within, bytes), 0..12)
}

/// `file` with `damage` done to it, cut to `length`.
fn damaged(mut file: Vec<u8>, damage: &[(usize, Vec<u8>)], length: usize) -> Vec<u8> {
    for (at, bytes) in damage {
        for (old, new) in file.iter_mut().skip(*at).zip(bytes) {
            *old = *new;
        }
    }
    file.truncate(length);
    file
}

prop_compose! {
    /// Size of an initramfs and a command line, within what may matter.
    fn company()(
        initramfs in prop::option::of(prop_oneof![9 => 0u64..0x2000, 1 => 0u64..0x100_0000]),
        cmdline in prop::collection::vec(any::<u8>(), 0..64),
        repeat in 1usize..64,
    ) -> (Option<u64>, Vec<u8>) {
        (initramfs, cmdline.repeat(repeat))
    }
}

/// Loading comes to an end, and if it succeeds the entry lies where kernels do.
fn assert_harmless(
    kernel: &[u8],
    (initramfs, cmdline): &(Option<u64>, Vec<u8>),
) -> Result<(), TestCaseError> {
    let kernel = file(kernel);
    let initramfs = initramfs.map(|size| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    });
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let payload = Payload {
        kernel: &kernel,
        initramfs: initramfs.as_ref(),
        cmdline,
    };
    if let Ok(entry) = load_kernel(&memory, payload, &BOOT) {
        prop_assert!((0x10_0000..0xf0_0000).contains(&entry.rip));
    }
    Ok(())
}

proptest! {
    /// No file that begins as something known brings the loaders down.
    #[test]
    fn any_bytes_are_loaded_or_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..0x800),
        (at, magic) in prop::sample::select(vec![
            (0, &b"\x7fELF\x02\x01\x01"[..]),
            (0x202, b"HdrS"),
            (56, b"ARM\x64"),
            (0, b"MZ\0\0zimg"),
            (0, b"\x1f\x8b"),
            (0, b""),
        ]),
        company in company(),
    ) {
        for (old, new) in bytes.iter_mut().skip(at).zip(magic) {
            *old = *new;
        }
        assert_harmless(&bytes, &company)?;
    }
}
