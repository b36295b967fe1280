//! `--platform`: the machine as a whole, and how it introduces itself to the guest.

use arch::Isa;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::schema::{SmbiosText, Uuid};
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};

/// How `--platform` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "PlatformConfig",
    about: "The machine as a whole: PCI segments, SMBIOS strings, and ACPI or not",
    bare: None,
    keys: &[
        Key::new(
            "num_pci_segments",
            "num_pci_segments",
            Value::Typed("<count>"),
            "PCI segments, at most 96",
        )
        .or(Fallback::Value("1")),
        Key::new(
            "vfio_p2p_dma",
            "vfio_p2p_dma",
            Value::Switch,
            "let passed-through devices reach each other's memory",
        )
        .or(Fallback::Value("on")),
        Key::new(
            "system_manufacturer",
            "system_manufacturer",
            Value::Typed("<text>"),
            "SMBIOS system manufacturer",
        ),
        Key::new(
            "system_product_name",
            "system_product_name",
            Value::Typed("<text>"),
            "SMBIOS system product name",
        ),
        Key::new(
            "system_version",
            "system_version",
            Value::Typed("<text>"),
            "SMBIOS system version",
        ),
        Key::new(
            "system_serial_number",
            "system_serial_number",
            Value::Typed("<text>"),
            "SMBIOS system serial number",
        ),
        Key::new(
            "system_uuid",
            "system_uuid",
            Value::Typed("<uuid>"),
            "SMBIOS system UUID",
        ),
        Key::new(
            "system_sku_number",
            "system_sku_number",
            Value::Typed("<text>"),
            "SMBIOS system SKU number",
        ),
        Key::new(
            "system_family",
            "system_family",
            Value::Typed("<text>"),
            "SMBIOS system family",
        ),
        Key::new(
            "oem_strings",
            "oem_strings",
            Value::Typed("[<text>,...]"),
            "SMBIOS OEM strings",
        ),
        Key::new(
            "chassis_asset_tag",
            "chassis_asset_tag",
            Value::Typed("<text>"),
            "SMBIOS asset tag of the enclosure",
        ),
        Key::new(
            "serial_number",
            "serial_number",
            Value::Typed("<text>"),
            "older name of system_serial_number",
        ),
        Key::new(
            "uuid",
            "uuid",
            Value::Typed("<uuid>"),
            "older name of system_uuid",
        ),
        Key::new(
            "acpi",
            "acpi",
            Value::Switch,
            "give the guest ACPI; off gives an aarch64 guest a device tree alone",
        )
        .or(Fallback::Value("on")),
    ],
    not_yet: &[
        NotYet::both("iommu_segments").unless_text("[]"),
        NotYet::named("iommu_address_width", "iommu_address_width_bits"),
        NotYet::both("iommufd")
            .unless_text("off")
            .unless_json("false"),
        NotYet::option("iommufd_fd"),
        NotYet::both("tdx").unless_text("off").unless_json("false"),
        NotYet::both("sev_snp")
            .unless_text("off")
            .unless_json("false"),
    ],
};

/// The longest SMBIOS string, in bytes. The specification sets no limit (DMTF DSP0134 3.6, section
/// 6.1.3); Linux shows each one in a sysfs attribute, which is at most a page of 4096 bytes with
/// its line end.
const MAX_STRING: usize = 4000;

/// The most OEM strings: their count is one byte (DMTF DSP0134 3.6, section 7.12).
const MAX_OEM_STRINGS: usize = 255;

/// The most PCI segments of a guest.
pub const MAX_PCI_SEGMENTS: u16 = 96;

/// The machine as a whole: PCI segments, SMBIOS strings, and ACPI or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlatformConfig {
    /// PCI segments: they are numbered from 0.
    #[serde(default = "one")]
    #[schema(default = one, minimum = 1, maximum = 96)]
    pub num_pci_segments: u16,
    /// Whether passed-through devices may reach each other's memory, that is, the BARs that are
    /// mapped into the guest.
    #[serde(default = "enabled")]
    #[schema(default = enabled)]
    pub vfio_p2p_dma: bool,
    /// SMBIOS system manufacturer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub system_manufacturer: Option<String>,
    /// SMBIOS system product name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub system_product_name: Option<String>,
    /// SMBIOS system version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub system_version: Option<String>,
    /// SMBIOS system serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub system_serial_number: Option<String>,
    /// SMBIOS system UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub system_uuid: Option<String>,
    /// SMBIOS system SKU number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub system_sku_number: Option<String>,
    /// SMBIOS system family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub system_family: Option<String>,
    /// SMBIOS OEM strings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<SmbiosText>, max_items = 255)]
    pub oem_strings: Vec<String>,
    /// SMBIOS asset tag of the enclosure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub chassis_asset_tag: Option<String>,
    /// Older name of `system_serial_number`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SmbiosText>)]
    pub serial_number: Option<String>,
    /// Older name of `system_uuid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub uuid: Option<String>,
    /// Whether the guest is given ACPI; without it an aarch64 guest gets a device tree alone.
    /// An extension of ours, so it is written only where it differs from the default.
    #[serde(default = "enabled", skip_serializing_if = "is_enabled")]
    #[schema(default = enabled)]
    pub acpi: bool,
}

impl Default for PlatformConfig {
    fn default() -> Self {
        Self {
            num_pci_segments: 1,
            vfio_p2p_dma: true,
            system_manufacturer: None,
            system_product_name: None,
            system_version: None,
            system_serial_number: None,
            system_uuid: None,
            system_sku_number: None,
            system_family: None,
            oem_strings: Vec::new(),
            chassis_asset_tag: None,
            serial_number: None,
            uuid: None,
            acpi: true,
        }
    }
}

impl PlatformConfig {
    /// Adds what is wrong with it to `problems`.
    pub(super) fn validate(&self, isa: Isa, problems: &mut Vec<Problem>) {
        let Self {
            num_pci_segments,
            vfio_p2p_dma: _,
            system_manufacturer,
            system_product_name,
            system_version,
            system_serial_number,
            system_uuid,
            system_sku_number,
            system_family,
            oem_strings,
            chassis_asset_tag,
            serial_number,
            uuid,
            acpi,
        } = self;
        let single = [
            ("system_manufacturer", system_manufacturer),
            ("system_product_name", system_product_name),
            ("system_version", system_version),
            ("system_serial_number", system_serial_number),
            ("system_uuid", system_uuid),
            ("system_sku_number", system_sku_number),
            ("system_family", system_family),
            ("chassis_asset_tag", chassis_asset_tag),
            ("serial_number", serial_number),
            ("uuid", uuid),
        ];
        let single = single
            .into_iter()
            .filter_map(|(key, text)| Some((key, text.as_deref()?)));
        let oem = oem_strings
            .iter()
            .map(|text| ("oem_strings", text.as_str()));
        let strings: Vec<(&str, &str)> = single.chain(oem).collect();
        let mut invalid = |value: String, reason: String| {
            problems.push(Problem::invalid(format_args!("--platform {value}"), reason));
        };

        if !(1..=MAX_PCI_SEGMENTS).contains(num_pci_segments) {
            let reason = format!("must be 1 to {MAX_PCI_SEGMENTS}");
            invalid(format!("num_pci_segments={num_pci_segments}"), reason);
        }
        for (key, text) in &strings {
            if let Some(reason) = string_fault(text) {
                invalid(format!("{key}={text:?}"), reason);
            } else if key.ends_with("uuid") && parse_uuid(text).is_none() {
                let reason = "not a UUID; expected xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hex";
                invalid(format!("{key}={text}"), reason.to_string());
            }
        }
        if oem_strings.len() > MAX_OEM_STRINGS {
            let reason = format!("at most {MAX_OEM_STRINGS} strings can be given");
            invalid(
                format!("oem_strings: {} of them", oem_strings.len()),
                reason,
            );
        }
        for (name, older, both) in [
            (
                "system_serial_number",
                "serial_number",
                system_serial_number.as_ref().zip(serial_number.as_ref()),
            ),
            (
                "system_uuid",
                "uuid",
                system_uuid.as_ref().zip(uuid.as_ref()),
            ),
        ] {
            if let Some((_, value)) = both {
                let reason = format!("is the older name of {name}; give only one of them");
                invalid(format!("{older}={value}"), reason);
            }
        }
        if !acpi && isa == Isa::X86_64 {
            let reason = "an x86_64 guest cannot do without ACPI; only aarch64 has a choice";
            invalid("acpi=off".to_string(), reason.to_string());
        } else if !acpi && let Some((key, _)) = strings.first() {
            let reason = format!("a guest without ACPI is given no SMBIOS; remove {key}");
            invalid("acpi=off".to_string(), reason);
        }
    }

    /// Why there is no such PCI segment, if there is none. A wrong number of segments is reported
    /// by itself.
    pub(super) fn segment_fault(&self, segment: u16) -> Option<String> {
        let count = self.num_pci_segments;
        let wrong = segment >= count.clamp(1, MAX_PCI_SEGMENTS);
        wrong.then(|| format!("must be less than --platform num_pci_segments={count}"))
    }

    /// The system serial number, under whichever of its names it was given.
    pub fn serial(&self) -> Option<&str> {
        self.system_serial_number
            .as_deref()
            .or(self.serial_number.as_deref())
    }

    /// The system UUID, under whichever of its names it was given: 16 bytes in the order of its
    /// text (RFC 9562, section 4). `None` where none was given or it is not a UUID, which
    /// validation reports.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        parse_uuid(self.system_uuid.as_deref().or(self.uuid.as_deref())?)
    }
}

/// What is wrong with an SMBIOS string, if anything is.
///
/// Source: DMTF DSP0134 3.6, section 6.1.3: strings end with a NUL and an empty one ends the
/// structure.
fn string_fault(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("must not be empty".to_string());
    }
    if text.contains(char::is_control) {
        return Some("must not contain control characters".to_string());
    }
    if text.len() > MAX_STRING {
        let length = text.len();
        return Some(format!(
            "has {length} bytes; at most {MAX_STRING} are allowed"
        ));
    }
    None
}

/// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, in either case (RFC 9562, section 4).
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = text.split('-').collect();
    if !groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) {
        return None;
    }
    let digits = groups.concat();
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16)
        .ok()
        .map(u128::to_be_bytes)
}

fn one() -> u16 {
    1
}

fn enabled() -> bool {
    true
}

fn is_enabled(value: &bool) -> bool {
    *value
}
