use proptest::prelude::*;

use super::*;

const TABLE_GPA: u64 = 0x1234_5678_9abc;

/// One structure as section 6.1 has it: type, handle, formatted area and strings.
#[derive(Debug)]
struct Parsed {
    kind: u8,
    handle: u16,
    formatted: Vec<u8>,
    strings: Vec<String>,
}

impl Parsed {
    /// The string whose number is at this offset.
    fn string(&self, offset: usize) -> Option<&str> {
        let number = usize::from(self.formatted[offset]);
        (number > 0).then(|| self.strings[number - 1].as_str())
    }
}

fn parse(mut table: &[u8]) -> Vec<Parsed> {
    let mut structures = Vec::new();
    while !table.is_empty() {
        let (formatted, rest) = table.split_at(usize::from(table[1]));
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let set = std::str::from_utf8(&rest[..end]).unwrap();
        structures.push(Parsed {
            kind: formatted[0],
            handle: u16::from_le_bytes([formatted[2], formatted[3]]),
            formatted: formatted.to_vec(),
            strings: set
                .split('\0')
                .filter(|string| !string.is_empty())
                .map(str::to_owned)
                .collect(),
        });
        table = &rest[end + 2..];
    }
    structures
}

fn some(string: &str) -> Option<String> {
    Some(string.to_owned())
}

fn full() -> SmbiosInfo {
    SmbiosInfo {
        bios: BiosInfo {
            vendor: some("V"),
            version: some("1.2"),
            release_date: some("02/03/2024"),
        },
        system: SystemInfo {
            manufacturer: some("Maker"),
            product_name: some("Product"),
            version: some("v7"),
            serial_number: some("S-1"),
            // The example of section 7.2.1.
            uuid: Some([
                0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD,
                0xEE, 0xFF,
            ]),
            sku_number: some("K"),
            family: some("F"),
        },
        baseboard: BaseboardInfo {
            manufacturer: some("BM"),
            product_name: some("BP"),
            version: some("BV"),
            serial_number: some("BS"),
            asset_tag: some("BA"),
        },
        chassis: ChassisInfo {
            manufacturer: some("CM"),
            version: some("CV"),
            serial_number: some("CS"),
            asset_tag: some("CA"),
            sku_number: some("CK"),
        },
        oem_strings: vec!["one".into(), "two".into()],
    }
}

fn table(info: &SmbiosInfo) -> Vec<u8> {
    build(info, TABLE_GPA, u16::MAX).unwrap().table
}

#[test]
fn entry_point_has_the_bytes_of_section_5_2_2() {
    let Smbios { entry, table } = build(&SmbiosInfo::default(), TABLE_GPA, u16::MAX).unwrap();
    assert_eq!(&entry[..5], b"_SM3_");
    assert_eq!(entry[6], 0x18, "length");
    assert_eq!(entry[7..10], [3, 0, 0], "version and docrev");
    assert_eq!(entry[10], 1, "entry point revision");
    assert_eq!(entry[11], 0, "reserved");
    assert_eq!(entry[12..16], (table.len() as u32).to_le_bytes());
    assert_eq!(
        entry[16..],
        [0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0, 0],
        "address"
    );
    assert_eq!(
        entry.iter().map(|&byte| u32::from(byte)).sum::<u32>() & 0xff,
        0
    );
}

/// Every byte, transcribed from the tables of section 7.
#[test]
fn structures_have_the_bytes_of_section_7() {
    let golden: Vec<u8> = [
        // Type 0: vendor 1, version 2, segment 0, date 3, ROM size 0, characteristics bit 3,
        // extension bytes, releases unused.
        &b"\x00\x18\x00\x00\x01\x02\x00\x00\x03\x00"[..],
        b"\x08\x00\x00\x00\x00\x00\x00\x00\x00\x10\xff\xff\xff\xff",
        b"V\x001.2\x0002/03/2024\0\0",
        // Type 1: strings 1 to 4, UUID, wake-up by power switch, SKU 5, family 6.
        b"\x01\x1b\x00\x01\x01\x02\x03\x04",
        b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
        b"\x06\x05\x06",
        b"Maker\0Product\0v7\0S-1\0K\0F\0\0",
        // Type 2: strings 1 to 5, hosting board, no location, chassis 0x0300, motherboard, no
        // contained objects.
        b"\x02\x0f\x00\x02\x01\x02\x03\x04\x05\x01\x00\x00\x03\x0a\x00",
        b"BM\0BP\0BV\0BS\0BA\0\0",
        // Type 3: manufacturer 1, type other, strings 2 to 4, states safe, security unknown, OEM
        // 0, height, cords and contained elements 0, SKU 5.
        b"\x03\x16\x00\x03\x01\x01\x02\x03\x04\x03\x03\x03\x02\x00\x00\x00\x00",
        b"\x00\x00\x00\x00\x05",
        b"CM\0CV\0CS\0CA\0CK\0\0",
        // Type 11: two strings.
        b"\x0b\x05\x00\x0b\x02one\0two\0\0",
        // Type 32: no errors detected; no strings.
        b"\x20\x0b\x00\x20\x00\x00\x00\x00\x00\x00\x00\0\0",
        // Type 127.
        b"\x7f\x04\x00\x7f\0\0",
    ]
    .concat();
    assert_eq!(table(&full()), golden);
}

#[test]
fn absent_and_empty_strings_have_number_0() {
    let mut info = full();
    info.system.version = None;
    info.system.serial_number = some("");
    info.system.uuid = None;
    let structures = parse(&table(&info));
    let system = &structures[1];
    assert_eq!(system.string(0x04), Some("Maker"));
    assert_eq!(system.string(0x06), None);
    assert_eq!(system.string(0x07), None);
    assert_eq!(system.string(0x19), Some("K"));
    assert_eq!(system.formatted[0x08..0x18], [0; 16]);
    assert_eq!(system.strings, ["Maker", "Product", "K", "F"]);
}

#[test]
fn a_virtual_machine_shows_even_without_strings() {
    let table = table(&SmbiosInfo::default());
    let structures = parse(&table);
    let kinds: Vec<u8> = structures.iter().map(|structure| structure.kind).collect();
    assert_eq!(kinds, [0, 1, 2, 3, 32, 127]);
    assert_eq!(structures[0].formatted[0x13], 1 << 4);
    assert!(structures.iter().all(|parsed| parsed.strings.is_empty()));
    // An empty set of strings is two NULs after the formatted area.
    assert_eq!(table[..0x1b][0x18..], [0, 0, 1]);
}

#[test]
fn many_oem_strings_take_several_structures() {
    let info = SmbiosInfo {
        oem_strings: (0..600).map(|number| format!("oem {number}")).collect(),
        ..SmbiosInfo::default()
    };
    let structures = parse(&table(&info));
    let oem: Vec<&Parsed> = structures
        .iter()
        .filter(|parsed| parsed.kind == 11)
        .collect();
    let counts: Vec<u8> = oem.iter().map(|parsed| parsed.formatted[4]).collect();
    assert_eq!(counts, [255, 255, 90]);
    let strings: Vec<&String> = oem.iter().flat_map(|parsed| &parsed.strings).collect();
    assert!(strings.into_iter().eq(&info.oem_strings));
    let handles: std::collections::BTreeSet<u16> =
        structures.iter().map(|parsed| parsed.handle).collect();
    assert_eq!(handles.len(), structures.len());
}

#[test]
fn strings_that_cannot_be_represented_are_refused() {
    let mut info = full();
    info.chassis.asset_tag = some("a\0b");
    assert_eq!(
        build(&info, 0, u16::MAX),
        Err(SmbiosError::Nul("a\0b".into()))
    );
    info = full();
    info.oem_strings.push(String::new());
    assert_eq!(
        build(&info, 0, u16::MAX),
        Err(SmbiosError::EmptyOemString { number: 3 })
    );
}

#[test]
fn a_table_ends_at_the_limit() {
    let info = full();
    let size = table(&info).len();
    assert!(build(&info, 0, size as u16).is_ok());
    assert_eq!(
        build(&info, 0, size as u16 - 1),
        Err(SmbiosError::TooLarge {
            needed: size,
            limit: size - 1
        })
    );
    let info = SmbiosInfo {
        oem_strings: vec!["x".into(); 40_000],
        ..SmbiosInfo::default()
    };
    assert!(matches!(
        build(&info, 0, u16::MAX),
        Err(SmbiosError::TooLarge { .. })
    ));
}

proptest! {
    #[test]
    fn strings_come_back_as_they_were(
        manufacturer in "[^\0]{0,80}",
        serial in proptest::option::of("[^\0]{1,20}"),
        oem in proptest::collection::vec("[^\0]{1,20}", 0..300),
    ) {
        let mut info = SmbiosInfo {
            oem_strings: oem.clone(),
            ..SmbiosInfo::default()
        };
        info.system.manufacturer = Some(manufacturer.clone());
        info.system.serial_number = serial.clone();
        let structures = parse(&table(&info));
        let system = &structures[1];
        prop_assert_eq!(system.string(4).unwrap_or_default(), manufacturer);
        prop_assert_eq!(system.string(7), serial.as_deref());
        let found: Vec<String> = structures
            .into_iter()
            .filter(|parsed| parsed.kind == 11)
            .flat_map(|parsed| parsed.strings)
            .collect();
        prop_assert_eq!(found, oem);
    }
}
