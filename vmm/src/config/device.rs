//! `--device`: a device of the host that the guest is given.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::device_nodes::{GenericInitiator, GuestNumaIds};
use super::error::Problem;
use super::schema::{self, DeviceName, HostPath};
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};
use super::validate::path_fault;
use super::{passthrough, places};

/// How `--device` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "DeviceConfig",
    about: "A PCI device of the host that the guest is given (VFIO); may be given several times",
    bare: None,
    keys: &[
        Key::new(
            "path",
            "path",
            Value::Typed("<path>"),
            "its folder in sysfs: /sys/bus/pci/devices/0000:01:00.0",
        )
        .or(Fallback::Required),
        Key::new(
            "iommu",
            "iommu",
            Value::Switch,
            "put it behind a virtual IOMMU; there is none yet, so off is all that can be asked for",
        )
        .or(Fallback::Value("off")),
        passthrough::ID.or(Fallback::Absent("_vfio0, _vfio1 and so on")),
        places::PCI_SEGMENT,
        places::PCI_DEVICE_ID,
        Key::new(
            "x_exclude_mmap_bars",
            "x_exclude_mmap_bars",
            Value::Typed("[<bars>]"),
            "BARs, 0 to 5, of which no part is mapped into the guest",
        )
        .or(Fallback::Absent("none")),
        passthrough::GUEST_NUMA_IDS,
        passthrough::GENERIC_INITIATOR,
        Key::new(
            "x_allow_noncacheable",
            "x_allow_noncacheable",
            Value::Switch,
            "take a device whose memory CPUs may cache even where an aarch64 host's KVM cannot map \
             it cacheable",
        )
        .or(Fallback::Value("off")),
    ],
    not_yet: &[NotYet::option("fd"), NotYet::both("x_nv_gpudirect_clique")],
};

/// A device of the host that the guest is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Its folder in sysfs.
    #[schema(value_type = HostPath)]
    pub path: PathBuf,
    /// Whether it is behind a virtual IOMMU. There is none yet, so only `false` passes validation.
    #[serde(default)]
    #[schema(schema_with = schema::no_iommu)]
    pub iommu: bool,
    /// Its name; without it the device is given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DeviceName>)]
    pub id: Option<String>,
    /// The PCI segment that the guest finds it on.
    #[serde(default)]
    #[schema(default = u16::default, maximum = 95)]
    pub pci_segment: u16,
    /// Its device number there, 1 to 31, and 0 on segments other than 0; without it, any that is free
    /// but 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 31)]
    pub pci_device_id: Option<u8>,
    /// BARs of which no part is mapped into the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(maximum = 5, max_items = 6)]
    pub x_exclude_mmap_bars: Vec<u8>,
    /// NUMA nodes of the guest that its memory may use. This and what follows are extensions of
    /// ours, so they are written only where they differ from the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_numa_ids: Option<GuestNumaIds>,
    /// How the guest is told that those nodes are its own.
    #[serde(default, skip_serializing_if = "GenericInitiator::is_auto")]
    #[schema(default = GenericInitiator::default)]
    pub generic_initiator: GenericInitiator,
    /// Whether its memory may be mapped non-cacheable where an aarch64 host's KVM can do no better,
    /// rather than the device refused.
    #[serde(default, skip_serializing_if = "is_off")]
    #[schema(default = bool::default)]
    pub x_allow_noncacheable: bool,
}

/// The highest number of a BAR.
const MAX_BAR: u8 = 5;

impl DeviceConfig {
    /// The option that gave it, for messages.
    pub(super) fn option(&self) -> String {
        format!("--device path={}", self.path.display())
    }

    /// Adds what is wrong with it by itself to `problems`; what it has in common with other kinds
    /// of devices is for [`passthrough::validate`] and [`places::validate`].
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self {
            path,
            iommu,
            id: _,
            pci_segment: _,
            pci_device_id: _,
            x_exclude_mmap_bars,
            guest_numa_ids: _,
            generic_initiator: _,
            x_allow_noncacheable: _,
        } = self;
        let option = self.option();
        let mut invalid = |value: String, reason: &str| {
            problems.push(Problem::invalid(format_args!("{option}{value}"), reason));
        };
        if let Some(reason) = path_fault(path) {
            invalid(String::new(), reason);
        }
        if *iommu {
            let reason = "there is no virtio-iommu yet; use iommu=off";
            invalid(",iommu=on".to_owned(), reason);
        }
        let mut named = BTreeSet::new();
        for bar in x_exclude_mmap_bars {
            let value = format!(",x_exclude_mmap_bars=[{bar}]");
            // One fault says enough of a list that may be long.
            if *bar > MAX_BAR {
                return invalid(value, "BARs are numbered 0 to 5");
            }
            if !named.insert(bar) {
                return invalid(value, "the BAR is given twice");
            }
        }
    }
}

fn is_off(value: &bool) -> bool {
    !*value
}
