use super::*;

/// A loadable segment: address, contents, size in memory.
type Load = (u64, &'static [u8], u64);

const CODE: Load = (0x10_0000, b"\xf4 code", 0x3000);

/// `Elf64_Ehdr`, 64 bytes.
fn header(machine: u16, segments: u16) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend(2u16.to_le_bytes());
    image.extend(machine.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    image.extend(0x10_0000u64.to_le_bytes());
    image.extend(64u64.to_le_bytes());
    image.extend(0u64.to_le_bytes());
    image.extend(0u32.to_le_bytes());
    for half in [64, 56, segments, 64, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    assert_eq!(image.len(), 64);
    image
}

/// An image of loadable segments and note segments, each with its alignment.
fn image(loads: &[Load], notes: &[(Vec<u8>, u64)]) -> Vec<u8> {
    let count = loads.len() + notes.len();
    let mut image = header(62, count as u16);
    let mut offset = 64 + 56 * count as u64;
    let mut contents: Vec<u8> = Vec::new();
    let mut add = |kind: u32, address: u64, data: &[u8], memsz: u64, align: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(7u32.to_le_bytes());
        for value in [offset, address, address, data.len() as u64, memsz, align] {
            image.extend(value.to_le_bytes());
        }
        contents.extend(data);
        offset += data.len() as u64;
    };
    for &(address, data, memsz) in loads {
        add(1, address, data, memsz, 0x1000);
    }
    for (note, align) in notes {
        add(4, 0, note, note.len() as u64, *align);
    }
    image.extend(contents);
    image
}

/// A note, its fields padded to `padding` bytes.
fn note(name: &[u8], kind: u32, value: &[u8], padding: usize) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, value.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for field in [name, value] {
        note.extend(field);
        note.resize(note.len().next_multiple_of(padding), 0);
    }
    note
}

fn entry_note(entry: u32) -> Vec<u8> {
    note(b"Xen\0", 18, &entry.to_le_bytes(), 4)
}

fn kernel() -> Vec<u8> {
    image(&[CODE], &[(entry_note(0x10_0002), 4)])
}

#[test]
fn pvh_finds_all_it_needs() {
    let memory = guest(16 * MIB);
    let kernel = file(&image(
        &[CODE, (0x20_0000, b"data", 4), (0x30_0000, b"", 0x10)],
        &[(entry_note(0x10_0002), 4)],
    ));
    let initramfs = file(&[7; 0x1801]);
    let payload = Payload {
        kernel: &kernel,
        initramfs: Some(&initramfs),
        cmdline: b"console=x",
    };
    let entry = load_kernel(&memory, payload, &BOOT).unwrap();
    let expected = Entry {
        protocol: Protocol::Pvh,
        rip: 0x10_0002,
        info: 0x3000,
    };
    assert_eq!(entry, expected);

    // Contents, and zeroes for what is in memory alone.
    assert_eq!(bytes(&memory, 0x10_0000, 6), b"\xf4 code");
    assert_eq!(bytes(&memory, 0x10_0006, 0x2ffa), [0; 0x2ffa]);
    assert_eq!(bytes(&memory, 0x10_3000, 1), [0xa5]);
    assert_eq!(bytes(&memory, 0x20_0000, 5), b"data\xa5");
    assert_eq!(
        bytes(&memory, 0x30_0000, 17),
        [&[0; 16][..], &[0xa5]].concat()
    );

    // hvm_start_info: magic, version, flags, modules; then where things are.
    let words = [0, 4, 8, 12].map(|offset| number(&memory, entry.info + offset, 4));
    assert_eq!(words, [0x336e_c578, 1, 0, 1]);
    let [modules, cmdline, rsdp, map] =
        [16, 24, 32, 40].map(|offset| number(&memory, entry.info + offset, 8));
    assert_eq!(rsdp, 0xe_0000);
    assert_eq!(bytes(&memory, cmdline, 10), b"console=x\0");

    // hvm_modlist_entry: as high as possible, on a page.
    let module = [0, 8, 16, 24].map(|offset| number(&memory, modules + offset, 8));
    assert_eq!(module, [0xef_e000, 0x1801, 0, 0]);
    assert_eq!(bytes(&memory, 0xef_e000, 0x1801), [7; 0x1801]);

    // hvm_memmap_table_entry: address, size, type.
    assert_eq!(number(&memory, entry.info + 48, 4), 4);
    let entries = [0, 1, 2, 3].map(|index| {
        let at = map + index * 24;
        [
            number(&memory, at, 8),
            number(&memory, at + 8, 8),
            number(&memory, at + 16, 8),
        ]
    });
    assert_eq!(
        entries,
        [
            [0, 0x9_fc00, 1],
            [0x9_fc00, 0x6_0400, 2],
            [0x10_0000, 0xe0_0000, 1],
            [0xf0_0000, 0x10_0000, 3],
        ]
    );

    // Global descriptor table: code at 0x10, data at 0x18.
    assert_eq!(number(&memory, 0x1010, 8), 0x00cf_9b00_0000_ffff);
    assert_eq!(number(&memory, 0x1018, 8), 0x00cf_9300_0000_ffff);
}

#[test]
fn without_initramfs_and_acpi_there_are_no_addresses() {
    let memory = guest(16 * MIB);
    let kernel = file(&kernel());
    let payload = Payload {
        kernel: &kernel,
        initramfs: None,
        cmdline: b"",
    };
    let boot = BootMemory {
        acpi_window: None,
        rsdp: None,
        ..BOOT
    };
    let entry = load_kernel(&memory, payload, &boot).unwrap();
    assert_eq!(number(&memory, entry.info + 12, 4), 0);
    assert_eq!(number(&memory, entry.info + 16, 8), 0);
    assert_eq!(number(&memory, entry.info + 32, 8), 0);
    assert_eq!(number(&memory, entry.info + 48, 4), 3);
}

#[test]
fn the_entry_note_is_found_wherever_it_is() {
    let other = note(b"GNU\0", 18, &[1; 4], 4);
    let wide = note(b"Xen\0", 18, &0x10_0004u64.to_le_bytes(), 4);
    let loose = [
        note(b"GNU\0", 5, &[0; 12], 8),
        note(b"Xen\0", 18, &[4, 0, 0x10, 0], 8),
    ]
    .concat();
    for notes in [
        vec![([other.clone(), entry_note(0x10_0004)].concat(), 4)],
        vec![(entry_note(0x10_0004), 4), (other.clone(), 4)],
        vec![(other, 4), (entry_note(0x10_0004), 8)],
        vec![(wide, 4)],
        vec![(loose, 8)],
    ] {
        assert_eq!(load_alone(&image(&[CODE], &notes)).unwrap().rip, 0x10_0004);
    }
}

#[test]
fn kernels_without_a_pvh_entry_are_refused() {
    let expected = "cannot load the ELF kernel: it has no PVH entry (Xen ELF note 18); Linux has \
                    one if built with CONFIG_PVH, and its bzImage needs none";
    assert_fails(&image(&[CODE], &[]), expected);
    assert_fails(
        &image(&[CODE], &[(note(b"GNU\0", 18, &[0; 4], 4), 4)]),
        expected,
    );
    assert_fails(
        &image(&[CODE], &[(entry_note(0x10_0000)[..15].to_vec(), 4)]),
        expected,
    );
}

#[test]
fn absurd_entry_notes_are_refused() {
    let short = note(b"Xen\0", 18, &[0; 2], 4);
    assert_fails(
        &image(&[CODE], &[(short, 4)]),
        "cannot load the ELF kernel: its PVH entry note is malformed: 2 bytes instead of 4 or 8",
    );
    assert_fails(
        &image(&[CODE], &[(vec![0; 0x1_0001], 4)]),
        "cannot load the ELF kernel: its notes take 65537 bytes",
    );
    assert_fails(
        &image(&[CODE], &[(entry_note(0x10_3000), 4)]),
        "cannot load the ELF kernel: its PVH entry 0x103000 lies in none of its segments",
    );
}

#[test]
fn foreign_elf_files_are_named() {
    let mut arm64 = kernel();
    arm64[18..20].copy_from_slice(&183u16.to_le_bytes());
    assert_fails(
        &arm64,
        "cannot load the ELF kernel: it is built for arm64, and the guest is x86_64",
    );
    for (offset, class, data) in [(4, 1, 1), (5, 2, 2)] {
        let mut foreign = kernel();
        foreign[offset] = if offset == 4 { class } else { data };
        assert_fails(
            &foreign,
            &format!(
                "cannot load the ELF kernel: it is no 64-bit little-endian ELF file (class \
                 {class}, data encoding {data})"
            ),
        );
    }
}

#[test]
fn truncated_files_say_what_is_missing() {
    let whole = kernel();
    // Header, two program headers, 6 bytes of code, a note of 20 bytes.
    assert_eq!(whole.len(), 0xca);
    for (length, part, end) in [
        (0x3f, "the ELF header", 0x40),
        (0x77, "the program headers", 0x78),
        (0xc9, "a note segment", 0xca),
    ] {
        assert_fails(
            &whole[..length],
            &format!(
                "cannot load the ELF kernel: the file is truncated: {part} ends at {end:#x} and \
                 the file at {length:#x}"
            ),
        );
    }
    let mut long = kernel();
    // p_filesz of the first segment.
    long[0x60..0x68].copy_from_slice(&0x1000u64.to_le_bytes());
    assert_fails(
        &long,
        "cannot load the ELF kernel: the file is truncated: a segment ends at 0x10b0 and the file \
         at 0xca",
    );
}

#[test]
fn segments_must_lie_in_memory() {
    for (start, size) in [(0xf_ffff, 0x3000), (0xef_f000, 0x1001), (u64::MAX, 0x3000)] {
        assert_fails(
            &image(&[(start, b"x", size)], &[(entry_note(0x10_0000), 4)]),
            &format!(
                "cannot load the ELF kernel: a segment of {size:#x} bytes is to be loaded at \
                 {start:#x}, and memory for kernels is from 0x100000 to 0xf00000"
            ),
        );
    }
    assert_fails(
        &image(&[(0x10_0000, b"four", 3)], &[(entry_note(0x10_0000), 4)]),
        "cannot load the ELF kernel: a segment has 0x4 bytes in the file and only 0x3 in memory",
    );
}

#[test]
fn initramfs_must_fit_above_the_kernel() {
    // From the kernel's end at 0x103000 to the ACPI window.
    let room = 0xf0_0000 - 0x10_3000;
    load_with(&kernel(), Some(&vec![1; room]), b"").unwrap();
    let error = load_with(&kernel(), Some(&vec![1; room + 1]), b"").unwrap_err();
    assert_eq!(
        message(&error),
        "cannot load the initramfs: it has 0xdfd001 bytes, and 0xdfd000 bytes of memory are free \
         between the kernel's end at 0x103000 and 0xf00000"
    );
    let error = load_with(&kernel(), Some(b""), b"").unwrap_err();
    assert_eq!(
        message(&error),
        "cannot load the initramfs: the file is empty"
    );
}

#[test]
fn command_lines_must_fit() {
    load_with(&kernel(), None, &[b'x'; 2047]).unwrap();
    let error = load_with(&kernel(), None, &[b'x'; 2048]).unwrap_err();
    assert_eq!(
        message(&error),
        "the command line has 2048 bytes and this kernel accepts at most 2047"
    );
    let error = load_with(&kernel(), None, b"a\0b").unwrap_err();
    assert_eq!(message(&error), "the command line has a NUL at byte 1");
}

#[test]
fn memory_maps_must_fit() {
    let ram: Vec<_> = (0..1000).map(|index| (index * 2 * MIB, MIB)).collect();
    let kernel = file(&kernel());
    let payload = Payload {
        kernel: &kernel,
        initramfs: None,
        cmdline: b"",
    };
    let boot = BootMemory { ram: &ram, ..BOOT };
    let error = load_kernel(&guest(16 * MIB), payload, &boot).unwrap_err();
    assert!(
        matches!(error, LoadError::MemoryMapTooLong { limit: 682, .. }),
        "{error:?}"
    );
}

proptest! {
    /// Whatever stands in the headers, loading returns.
    #[test]
    fn damaged_kernels_do_not_panic(
        damage in damage(0..0xca), length in 0x40usize..=0xca, company in company(),
    ) {
        assert_harmless(&damaged(kernel(), &damage, length), &company)?;
    }
}
