use super::*;

/// Two sectors of set-up code and four paragraphs of kernel, protocol 2.15.
fn kernel() -> Vec<u8> {
    let mut image = vec![0xcc; 0x600];
    image.extend((0..64).collect::<Vec<u8>>());
    let mut set = |offset: usize, value: &[u8]| {
        image[offset..offset + value.len()].copy_from_slice(value);
    };
    set(0x1f1, &[2]); // setup_sects
    set(0x1f4, &4u32.to_le_bytes()); // syssize
    set(0x1fe, &[0x55, 0xaa]);
    set(0x200, &[0xeb, 0x6a]); // header ends at 0x26c
    set(0x202, b"HdrS");
    set(0x206, &0x20fu16.to_le_bytes());
    set(0x210, &[0]); // type_of_loader
    set(0x211, &[1]); // loadflags
    set(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    set(0x218, &[0; 8]); // ramdisk
    set(0x228, &[0; 4]); // cmd_line_ptr
    set(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    set(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    set(0x234, &[1]); // relocatable_kernel
    set(0x238, &2047u32.to_le_bytes()); // cmdline_size
    set(0x258, &0x60_0000u64.to_le_bytes()); // pref_address
    set(0x260, &0x40_0000u32.to_le_bytes()); // init_size
    image
}

/// [`kernel`] with other bytes at `offset`.
fn changed(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut image = kernel();
    image[offset..offset + value.len()].copy_from_slice(value);
    image
}

#[test]
fn linux_finds_all_it_needs() {
    let memory = guest(16 * MIB);
    let kernel = file(&kernel());
    let initramfs = file(&[7; 0x1801]);
    let payload = Payload {
        kernel: &kernel,
        initramfs: Some(&initramfs),
        cmdline: b"quiet",
    };
    let entry = load_kernel(&memory, payload, &BOOT).unwrap();
    let expected = Entry {
        protocol: Protocol::Linux32,
        rip: 0x60_0000,
        info: 0x2000,
    };
    assert_eq!(entry, expected);
    assert_eq!(bytes(&memory, 0x60_0000, 64), (0..64).collect::<Vec<u8>>());
    assert_eq!(bytes(&memory, 0x60_0040, 1), [0xa5]);

    let field = |offset: u64, size| number(&memory, 0x2000 + offset, size);
    assert_eq!(field(0x070, 8), 0xe_0000); // acpi_rsdp_addr
    assert_eq!(field(0x1e8, 1), 4); // e820_entries
    assert_eq!(field(0x1fa, 2), 0xffff); // vid_mode
    assert_eq!(field(0x1fe, 2), 0xaa55); // boot_flag
    assert_eq!(bytes(&memory, 0x2202, 4), b"HdrS");
    assert_eq!(field(0x210, 1), 0xff); // type_of_loader
    assert_eq!(field(0x211, 1), 1); // loadflags
    assert_eq!(field(0x214, 4), 0x60_0000); // code32_start
    assert_eq!(field(0x218, 4), 0xef_e000); // ramdisk_image
    assert_eq!(field(0x21c, 4), 0x1801); // ramdisk_size
    assert_eq!(bytes(&memory, 0xef_e000, 0x1801), [7; 0x1801]);
    assert_eq!(bytes(&memory, field(0x228, 4), 6), b"quiet\0"); // cmd_line_ptr
    assert_eq!(field(0x260, 4), 0x40_0000); // init_size
    assert_eq!(field(0x000, 8), 0); // screen_info
    assert_eq!(field(0x26c, 8), 0); // past the header

    let entries = [0, 1, 2, 3].map(|index| {
        let at = 0x2d0 + index * 20;
        [field(at, 8), field(at + 8, 8), field(at + 16, 4)]
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
    assert_eq!(field(0x2d0 + 4 * 20, 8), 0);
}

#[test]
fn older_protocols_get_less() {
    // 2.10, whose header ends at 0x264, and no address of the RSDP.
    let mut image = changed(0x206, &0x20au16.to_le_bytes());
    image[0x201] = 0x62;
    let kernel = file(&image);
    let memory = guest(16 * MIB);
    let payload = Payload {
        kernel: &kernel,
        initramfs: None,
        cmdline: b"",
    };
    load_kernel(&memory, payload, &BOOT).unwrap();
    assert_eq!(number(&memory, 0x2070, 8), 0);
    assert_eq!(number(&memory, 0x2260, 4), 0x40_0000);
    assert_eq!(number(&memory, 0x2264, 8), 0);
    // No initramfs.
    assert_eq!(number(&memory, 0x2218, 8), 0);
}

#[test]
fn relocatable_kernels_move_where_there_is_room() {
    let image = changed(0x258, &0xe0_0000u64.to_le_bytes());
    assert_eq!(load_alone(&image).unwrap().rip, 0x20_0000);
    let mut fixed = image;
    fixed[0x234] = 0;
    assert_fails(
        &fixed,
        "cannot load the bzImage kernel: it needs 0x400000 bytes at 0xe00000, and memory for \
         kernels is from 0x100000 to 0xf00000",
    );
    assert_fails(
        &changed(0x260, &0xd0_0001u32.to_le_bytes()),
        "cannot load the bzImage kernel: it needs 0xd00001 bytes at 0x600000, and memory for \
         kernels is from 0x100000 to 0xf00000",
    );
}

#[test]
fn initramfs_stays_below_what_the_kernel_reaches() {
    let memory = guest(16 * MIB);
    let kernel = file(&changed(0x22c, &0xcf_ffffu32.to_le_bytes()));
    let initramfs = file(&[7; 0x1000]);
    let payload = Payload {
        kernel: &kernel,
        initramfs: Some(&initramfs),
        cmdline: b"",
    };
    load_kernel(&memory, payload, &BOOT).unwrap();
    assert_eq!(number(&memory, 0x2218, 4), 0xcf_f000);
}

#[test]
fn initramfs_keeps_clear_of_the_room_for_decompression() {
    // The kernel needs 0x600000 up to 0xa00000.
    load_with(&kernel(), Some(&vec![1; 0x50_0000]), b"").unwrap();
    let error = load_with(&kernel(), Some(&vec![1; 0x50_0001]), b"").unwrap_err();
    assert_eq!(
        message(&error),
        "cannot load the initramfs: it has 0x500001 bytes, and 0x500000 bytes of memory are free \
         between the kernel's end at 0xa00000 and 0xf00000"
    );
}

#[test]
fn the_kernel_limits_its_command_line() {
    let image = changed(0x238, &255u32.to_le_bytes());
    load_with(&image, None, &[b'x'; 255]).unwrap();
    let error = load_with(&image, None, &[b'x'; 256]).unwrap_err();
    assert_eq!(
        message(&error),
        "the command line has 256 bytes and this kernel accepts at most 255"
    );
    // No more than there is room for, whatever the kernel says.
    let image = changed(0x238, &u32::MAX.to_le_bytes());
    assert!(load_with(&image, None, &[b'x'; 0xffff]).is_ok());
    assert!(load_with(&image, None, &[b'x'; 0x1_0000]).is_err());
}

#[test]
fn old_and_low_kernels_are_refused() {
    assert_fails(
        &changed(0x206, &0x209u16.to_le_bytes()),
        "cannot load the bzImage kernel: its boot protocol is 2.09, and 2.10 is the oldest \
         supported",
    );
    assert_fails(
        &changed(0x211, &[0]),
        "cannot load the bzImage kernel: it is a zImage, which loads below 1 MiB; a bzImage is \
         needed",
    );
}

#[test]
fn truncated_files_say_what_is_missing() {
    for (length, part, end) in [
        (0x206, "the setup header", 0x26c),
        (0x63f, "the protected-mode code", 0x640),
    ] {
        assert_fails(
            &kernel()[..length],
            &format!(
                "cannot load the bzImage kernel: the file is truncated: {part} ends at {end:#x} \
                 and the file at {length:#x}"
            ),
        );
    }
}

#[test]
fn memory_maps_must_fit() {
    let ram: Vec<_> = (0..127).map(|index| (index * 2 * MIB, MIB)).collect();
    let kernel = file(&kernel());
    let payload = Payload {
        kernel: &kernel,
        initramfs: None,
        cmdline: b"",
    };
    let boot = BootMemory { ram: &ram, ..BOOT };
    let error = load_kernel(&guest(16 * MIB), payload, &boot).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::MemoryMapTooLong {
                entries: 129,
                limit: 128
            }
        ),
        "{error:?}"
    );
}

proptest! {
    /// Whatever stands in the header, loading returns.
    #[test]
    fn damaged_kernels_do_not_panic(
        damage in damage(0x1f1..0x26c), length in 0x200usize..=0x640, company in company(),
    ) {
        assert_harmless(&damaged(kernel(), &damage, length), &company)?;
    }
}
