//! SMBIOS: what the guest is told of its manufacturer, model and serial numbers, and that it is a
//! virtual machine.
//!
//! Source: DMTF DSP0134, System Management BIOS Reference Specification, version 3.0: section 5.2.2
//! (64-bit entry point), 6.1 (structures and strings) and 7 (structure definitions).

use thiserror::Error;

/// Bytes of the entry point.
pub const ENTRY_SIZE: usize = 24;

/// Version of the specification that the tables follow: 3.0.0.
const VERSION: [u8; 3] = [3, 0, 0];
/// Most strings of one structure: they are counted with a byte.
const MAX_STRINGS: usize = 255;

const TYPE_BIOS: u8 = 0;
const TYPE_SYSTEM: u8 = 1;
const TYPE_BASEBOARD: u8 = 2;
const TYPE_CHASSIS: u8 = 3;
const TYPE_OEM_STRINGS: u8 = 11;
const TYPE_BOOT: u8 = 32;
const TYPE_END: u8 = 127;

/// What the structures say. A string that is absent or empty is reported as not specified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosInfo {
    /// The firmware, type 0.
    pub bios: BiosInfo,
    /// The machine, type 1.
    pub system: SystemInfo,
    /// The mainboard, type 2.
    pub baseboard: BaseboardInfo,
    /// The housing, type 3.
    pub chassis: ChassisInfo,
    /// Free-form strings, type 11; none of them empty.
    pub oem_strings: Vec<String>,
}

/// The firmware (section 7.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BiosInfo {
    /// Vendor.
    pub vendor: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Release date as mm/dd/yyyy.
    pub release_date: Option<String>,
}

/// The machine (section 7.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemInfo {
    /// Manufacturer.
    pub manufacturer: Option<String>,
    /// Product name.
    pub product_name: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Serial number.
    pub serial_number: Option<String>,
    /// UUID, its bytes in the order in which it is written (RFC 9562, section 4).
    pub uuid: Option<[u8; 16]>,
    /// SKU number.
    pub sku_number: Option<String>,
    /// Product family.
    pub family: Option<String>,
}

/// The mainboard (section 7.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseboardInfo {
    /// Manufacturer.
    pub manufacturer: Option<String>,
    /// Product name.
    pub product_name: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Serial number.
    pub serial_number: Option<String>,
    /// Asset tag.
    pub asset_tag: Option<String>,
}

/// The housing (section 7.4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChassisInfo {
    /// Manufacturer.
    pub manufacturer: Option<String>,
    /// Version.
    pub version: Option<String>,
    /// Serial number.
    pub serial_number: Option<String>,
    /// Asset tag.
    pub asset_tag: Option<String>,
    /// SKU number.
    pub sku_number: Option<String>,
}

/// Finished SMBIOS data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// The entry point; to be placed at a multiple of 16 bytes.
    pub entry: [u8; ENTRY_SIZE],
    /// The structure table.
    pub table: Vec<u8>,
}

/// Why SMBIOS data was not built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SmbiosError {
    /// A NUL would end the string early.
    #[error("the SMBIOS string {0:?} holds a NUL character")]
    Nul(String),
    /// An empty string would end the list of strings early.
    #[error("SMBIOS OEM string number {number} is empty")]
    EmptyOemString {
        /// Which of them, from 1.
        number: usize,
    },
    /// The space is too small.
    #[error("the SMBIOS structures take {needed} bytes, there are {limit}")]
    TooLarge {
        /// What they take, in bytes.
        needed: usize,
        /// What there is, in bytes.
        limit: usize,
    },
}

/// Builds SMBIOS data whose structure table lies at `table_gpa` and has at most `limit` bytes:
/// with the entry point it fits the 64 KiB in which either architecture keeps it.
///
/// # Errors
///
/// A string cannot be represented, or all of them together need more than `limit` bytes.
pub fn build(info: &SmbiosInfo, table_gpa: u64, limit: u16) -> Result<Smbios, SmbiosError> {
    let SmbiosInfo {
        bios: bios_info,
        system: system_info,
        baseboard: baseboard_info,
        chassis: chassis_info,
        oem_strings,
    } = info;
    let mut table = Vec::new();
    table.extend(bios(bios_info).finish()?);
    table.extend(system(system_info).finish()?);
    table.extend(baseboard(baseboard_info).finish()?);
    table.extend(chassis(chassis_info).finish()?);
    for structure in oem(oem_strings)? {
        table.extend(structure.finish()?);
    }
    table.extend(boot().finish()?);
    table.extend(Structure::new(TYPE_END, 0).finish()?);

    let limit = usize::from(limit);
    if table.len() > limit {
        return Err(SmbiosError::TooLarge {
            needed: table.len(),
            limit,
        });
    }
    Ok(Smbios {
        entry: entry(table_gpa, table.len() as u32),
        table,
    })
}

/// The 64-bit entry point (section 5.2.2).
fn entry(table_gpa: u64, table_size: u32) -> [u8; ENTRY_SIZE] {
    let mut entry = [0; ENTRY_SIZE];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = ENTRY_SIZE as u8;
    entry[7..10].copy_from_slice(&VERSION);
    entry[10] = 1;
    entry[12..16].copy_from_slice(&table_size.to_le_bytes());
    entry[16..].copy_from_slice(&table_gpa.to_le_bytes());
    entry[5] = entry
        .iter()
        .fold(0u8, |sum, &byte| sum.wrapping_add(byte))
        .wrapping_neg();
    entry
}

/// Type 0, section 7.1.
fn bios(info: &BiosInfo) -> Structure<'_> {
    /// "BIOS Characteristics are not supported": the extension bytes alone count.
    const CHARACTERISTICS: u64 = 1 << 3;
    /// Extension byte 2: "SMBIOS table describes a virtual machine".
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    /// "The field is not used", in each of the four release numbers.
    const NO_RELEASE: [u8; 4] = [0xff; 4];

    let BiosInfo {
        vendor,
        version,
        release_date,
    } = info;
    Structure::new(TYPE_BIOS, 0)
        .string(vendor)
        .string(version)
        // No BIOS in the first mebibyte: no segment, no ROM.
        .bytes(&[0, 0])
        .string(release_date)
        .bytes(&[0])
        .bytes(&CHARACTERISTICS.to_le_bytes())
        .bytes(&[0, VIRTUAL_MACHINE])
        .bytes(&NO_RELEASE)
}

/// Type 1, section 7.2.
fn system(info: &SystemInfo) -> Structure<'_> {
    /// Wake-up type "Power Switch".
    const POWER_SWITCH: u8 = 6;

    let SystemInfo {
        manufacturer,
        product_name,
        version,
        serial_number,
        uuid,
        sku_number,
        family,
    } = info;
    // Section 7.2.1: the first three fields are little-endian; all zeros mean "not present".
    let mut uuid = uuid.unwrap_or_default();
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Structure::new(TYPE_SYSTEM, 0)
        .string(manufacturer)
        .string(product_name)
        .string(version)
        .string(serial_number)
        .bytes(&uuid)
        .bytes(&[POWER_SWITCH])
        .string(sku_number)
        .string(family)
}

/// Type 2, section 7.3.
fn baseboard(info: &BaseboardInfo) -> Structure<'_> {
    /// Feature flag "the board is a hosting board".
    const HOSTING_BOARD: u8 = 1;
    /// Board type "Motherboard (includes processor, memory, and I/O)".
    const MOTHERBOARD: u8 = 0x0a;

    let BaseboardInfo {
        manufacturer,
        product_name,
        version,
        serial_number,
        asset_tag,
    } = info;
    Structure::new(TYPE_BASEBOARD, 0)
        .string(manufacturer)
        .string(product_name)
        .string(version)
        .string(serial_number)
        .string(asset_tag)
        .bytes(&[HOSTING_BOARD])
        // No location within the chassis.
        .bytes(&[0])
        .bytes(&handle(TYPE_CHASSIS, 0).to_le_bytes())
        .bytes(&[MOTHERBOARD])
        // No contained objects.
        .bytes(&[0])
}

/// Type 3, section 7.4.
fn chassis(info: &ChassisInfo) -> Structure<'_> {
    /// Chassis type "Other".
    const OTHER: u8 = 1;
    /// Boot-up, power supply and thermal state "Safe".
    const SAFE: [u8; 3] = [3; 3];
    /// Security status "Unknown".
    const SECURITY_UNKNOWN: u8 = 2;

    let ChassisInfo {
        manufacturer,
        version,
        serial_number,
        asset_tag,
        sku_number,
    } = info;
    Structure::new(TYPE_CHASSIS, 0)
        .string(manufacturer)
        .bytes(&[OTHER])
        .string(version)
        .string(serial_number)
        .string(asset_tag)
        .bytes(&SAFE)
        .bytes(&[SECURITY_UNKNOWN])
        // OEM-defined; height and number of power cords unspecified; no contained elements, of no
        // length.
        .bytes(&[0; 4])
        .bytes(&[0; 4])
        .string(sku_number)
}

/// Type 11, section 7.12: as many structures as the strings need, none without any.
fn oem(strings: &[String]) -> Result<Vec<Structure<'_>>, SmbiosError> {
    if let Some(index) = strings.iter().position(String::is_empty) {
        return Err(SmbiosError::EmptyOemString { number: index + 1 });
    }
    // Every string takes two bytes or more: as many as this fit in no table, and fewer never
    // exceed the handles of this type.
    if strings.len() > usize::from(u16::MAX) / 2 {
        return Err(SmbiosError::TooLarge {
            needed: strings.len() * 2,
            limit: u16::MAX.into(),
        });
    }
    let structures = strings.chunks(MAX_STRINGS).zip(0..).map(|(chunk, number)| {
        let structure = Structure::new(TYPE_OEM_STRINGS, number);
        Structure {
            strings: chunk.iter().map(String::as_str).collect(),
            ..structure.bytes(&[chunk.len() as u8])
        }
    });
    Ok(structures.collect())
}

/// Type 32, section 7.33: reserved bytes, then the status "No errors detected".
fn boot<'a>() -> Structure<'a> {
    Structure::new(TYPE_BOOT, 0).bytes(&[0; 6]).bytes(&[0])
}

/// Handle of the structure of this type with this number.
fn handle(kind: u8, number: u8) -> u16 {
    u16::from_be_bytes([kind, number])
}

/// One structure (section 6.1): a formatted area, then the strings that it counts from 1.
struct Structure<'a> {
    formatted: Vec<u8>,
    strings: Vec<&'a str>,
}

impl<'a> Structure<'a> {
    fn new(kind: u8, number: u8) -> Self {
        let [low, high] = handle(kind, number).to_le_bytes();
        Self {
            formatted: vec![kind, 0, low, high],
            strings: Vec::new(),
        }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.formatted.extend_from_slice(bytes);
        self
    }

    /// Appends a string's number; 0 if there is none.
    fn string(mut self, string: &'a Option<String>) -> Self {
        let number = match string.as_deref() {
            None | Some("") => 0,
            Some(string) => {
                self.strings.push(string);
                self.strings.len() as u8
            }
        };
        self.bytes(&[number])
    }

    /// The bytes of the structure: its strings each end with a NUL and their list with another; an
    /// empty list is two NULs (section 6.1.3).
    fn finish(mut self) -> Result<Vec<u8>, SmbiosError> {
        self.formatted[1] = self.formatted.len() as u8;
        if self.strings.is_empty() {
            self.formatted.push(0);
        }
        for string in self.strings {
            if string.contains('\0') {
                return Err(SmbiosError::Nul(string.to_owned()));
            }
            self.formatted.extend_from_slice(string.as_bytes());
            self.formatted.push(0);
        }
        self.formatted.push(0);
        Ok(self.formatted)
    }
}

#[cfg(test)]
mod tests;
