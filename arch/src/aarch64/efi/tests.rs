use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const AREA: GpaRange = GpaRange {
    start: 0x403F_0000,
    size: 0x1_0000,
};
const FDT_WINDOW: GpaRange = GpaRange {
    start: 0x4000_0000,
    size: 2 * MIB,
};
const ACPI_WINDOW: GpaRange = GpaRange {
    start: 0x4020_0000,
    size: 2 * MIB,
};
const RAM: [GpaRange; 1] = [GpaRange {
    start: 0x4000_0000,
    size: 512 * MIB,
}];

fn inputs(ram: &[GpaRange]) -> EfiInputs<'_> {
    EfiInputs {
        area: AREA,
        vendor: "Vendör",
        rsdp: 0x4020_0000,
        smbios: Some(0x403E_0000),
        fdt_window: FDT_WINDOW,
        acpi_window: ACPI_WINDOW,
        ram,
    }
}

impl EfiImage {
    /// `size` bytes at this guest address.
    fn at(&self, gpa: u64, size: usize) -> &[u8] {
        let offset = usize::try_from(gpa - AREA.start).unwrap();
        &self.bytes[offset..offset + size]
    }

    fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.at(gpa, 8).try_into().unwrap())
    }

    fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.at(gpa, 4).try_into().unwrap())
    }

    /// Type, first address, pages and attributes of every entry of the memory map.
    fn memory_map(&self) -> Vec<(u32, u64, u64, u64)> {
        let EfiPointers {
            memory_map,
            memory_map_size,
            ..
        } = self.pointers;
        assert_eq!(memory_map_size % 40, 0);
        (0..u64::from(memory_map_size / 40))
            .map(|number| memory_map + number * 40)
            .map(|entry| {
                assert_eq!(self.u64(entry + 16), 0, "virtual address");
                (
                    self.u32(entry),
                    self.u64(entry + 8),
                    self.u64(entry + 24),
                    self.u64(entry + 32),
                )
            })
            .collect()
    }
}

#[test]
fn crc32_of_the_check_string() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    assert_eq!(crc32(b""), 0);
}

#[test]
fn system_table_has_the_bytes_of_section_4_3() {
    let image = build(&inputs(&RAM)).unwrap();
    let table = image.pointers.system_table;
    assert_eq!(table % 8, 0);
    assert_eq!(image.at(table, 8), b"IBI SYST");
    assert_eq!(image.u32(table + 8), 0x0002_0064, "revision 2.10");
    assert_eq!(image.u32(table + 12), 120, "header size");
    assert_eq!(image.u32(table + 20), 0, "reserved");
    assert_eq!(image.u32(table + 32), 0, "firmware revision");
    assert_eq!(
        image.at(table + 40, 64),
        [0; 64],
        "console, runtime and boot services"
    );
    assert_eq!(image.u64(table + 104), 4, "number of tables");

    // The CRC covers the table with its own field as 0.
    let mut bytes = image.at(table, 120).to_vec();
    bytes[16..20].fill(0);
    assert_eq!(image.u32(table + 16), crc32(&bytes));
}

#[test]
fn vendor_is_ucs2_with_a_nul() {
    let image = build(&inputs(&RAM)).unwrap();
    let vendor = image.u64(image.pointers.system_table + 24);
    assert_eq!(image.at(vendor, 14), b"V\0e\0n\0d\0\xf6\0r\0\0\0");
}

#[test]
fn configuration_tables_are_what_linux_looks_for() {
    let image = build(&inputs(&RAM)).unwrap();
    let tables = image.u64(image.pointers.system_table + 112);
    // 8868e871-e4f1-11d3-bc22-0080c73c8881, UEFI 2.10, section 4.6.1.2.
    assert_eq!(
        image.at(tables, 16),
        b"\x71\xe8\x68\x88\xf1\xe4\xd3\x11\xbc\x22\x00\x80\xc7\x3c\x88\x81"
    );
    assert_eq!(image.u64(tables + 16), 0x4020_0000);
    // eb66918a-7eef-402a-842e-931d21c38ae9, section 4.6.2.
    assert_eq!(
        image.at(tables + 24, 16),
        b"\x8a\x91\x66\xeb\xef\x7e\x2a\x40\x84\x2e\x93\x1d\x21\xc3\x8a\xe9"
    );
    let properties = image.u64(tables + 40);
    assert_eq!(image.at(properties, 8), [1, 0, 8, 0, 0, 0, 0, 0]);
    // 888eb0c6-8ede-4ff5-a8f0-9aee5cb977c2, Linux, include/linux/efi.h.
    assert_eq!(
        image.at(tables + 48, 16),
        b"\xc6\xb0\x8e\x88\xde\x8e\xf5\x4f\xa8\xf0\x9a\xee\x5c\xb9\x77\xc2"
    );
    let reserve = image.u64(tables + 64);
    assert_eq!(reserve % 8, 0);
    assert_eq!(image.at(reserve, 16), [0; 16]);
    // f2fd1544-9794-4a2c-992e-e5bbcf20e394, section 4.6.1.2.
    assert_eq!(
        image.at(tables + 72, 16),
        b"\x44\x15\xfd\xf2\x94\x97\x2c\x4a\x99\x2e\xe5\xbb\xcf\x20\xe3\x94"
    );
    assert_eq!(image.u64(tables + 88), 0x403E_0000);
}

#[test]
fn without_smbios_there_is_no_entry_for_it() {
    let inputs = EfiInputs {
        smbios: None,
        ..inputs(&RAM)
    };
    let image = build(&inputs).unwrap();
    assert_eq!(image.u64(image.pointers.system_table + 104), 3);
}

#[test]
fn memory_map_is_loader_data_acpi_and_the_rest() {
    let image = build(&inputs(&RAM)).unwrap();
    assert_eq!(
        image.memory_map(),
        [
            (2, 0x4000_0000, 512, 8),
            (9, 0x4020_0000, 512, 8),
            (7, 0x4040_0000, 508 * 256, 8),
        ]
    );
    assert_eq!((DESCRIPTOR_SIZE, DESCRIPTOR_VERSION), (40, 1));
}

#[test]
fn ram_in_several_ranges_is_conventional_but_for_the_windows() {
    let ram = [
        GpaRange {
            start: 0x3F00_0000,
            size: 32 * MIB,
        },
        GpaRange {
            start: 0x1_0000_0000,
            size: 4096,
        },
    ];
    let image = build(&inputs(&ram)).unwrap();
    assert_eq!(
        image.memory_map(),
        [
            (7, 0x3F00_0000, 4096, 8),
            (2, 0x4000_0000, 512, 8),
            (9, 0x4020_0000, 512, 8),
            (7, 0x4040_0000, 3072, 8),
            (7, 0x1_0000_0000, 1, 8),
        ]
    );
}

#[test]
fn part_of_a_page_is_refused() {
    let ram = [GpaRange {
        start: 0x4000_0000,
        size: 8 * MIB + 512,
    }];
    assert_eq!(
        build(&inputs(&ram)),
        Err(EfiError::Unaligned {
            start: 0x4040_0000,
            size: 4 * MIB + 512
        })
    );
}

#[test]
fn structures_end_where_their_area_does() {
    let needed = build(&inputs(&RAM)).unwrap().bytes.len() as u64;
    let within = |size| EfiInputs {
        area: GpaRange { size, ..AREA },
        ..inputs(&RAM)
    };
    assert!(build(&within(needed)).is_ok());
    assert_eq!(
        build(&within(needed - 1)),
        Err(EfiError::TooLarge {
            needed,
            available: needed - 1
        })
    );
}

proptest! {
    /// However RAM is cut, the map covers every page of RAM once, in order.
    #[test]
    fn memory_map_partitions_ram(
        cuts in proptest::collection::btree_set(0u64..0x20_0000, 0..20),
    ) {
        let base = 0x4000_0000;
        let mut ram = Vec::new();
        let mut start = 0;
        for end in cuts.into_iter().chain([0x20_0000]).filter(|&cut| cut >= 1024) {
            if end > start {
                ram.push(GpaRange {
                    start: base + start * 4096,
                    size: (end - start) * 4096,
                });
            }
            start = end;
        }
        let map = build(&inputs(&ram)).unwrap().memory_map();
        let mut next = base;
        for (kind, start, pages, _) in map {
            prop_assert_eq!(start, next);
            let expected = match start {
                0x4000_0000 => 2,
                0x4020_0000 => 9,
                _ => 7,
            };
            prop_assert_eq!(kind, expected);
            next = start + pages * 4096;
        }
        prop_assert_eq!(next, base + 0x20_0000 * 4096);
    }
}
