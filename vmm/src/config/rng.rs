//! `--rng`: a source of entropy.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::places;
use super::schema::{DeviceName, HostPath};
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};
use super::validate::path_fault;

/// How `--rng` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "RngConfig",
    about: "A source of entropy for the guest (virtio-rng); there is one in any case, but with --platform acpi=off",
    bare: None,
    keys: &[
        Key::new(
            "src",
            "src",
            Value::Typed("<path>"),
            "file of the host that it reads from",
        )
        .or(Fallback::Value("/dev/urandom")),
        places::ID.or(Fallback::Absent("__rng")),
        places::PCI_SEGMENT,
        places::PCI_DEVICE_ID,
    ],
    not_yet: &[NotYet::both("iommu")
        .unless_text("off")
        .unless_json("false")],
};

/// A source of entropy for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {
    /// File of the host that it reads from.
    #[schema(value_type = HostPath)]
    pub src: PathBuf,
    /// Its name; without it, it is `__rng`.
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
}

impl Default for RngConfig {
    fn default() -> Self {
        Self {
            src: "/dev/urandom".into(),
            id: None,
            pci_segment: 0,
            pci_device_id: None,
        }
    }
}

impl RngConfig {
    /// The option that gave it, for messages.
    pub(crate) fn option(&self) -> String {
        format!("--rng src={}", self.src.display())
    }

    /// Adds what is wrong with it by itself to `problems`; its name and its place are for
    /// [`places::validate`].
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self {
            src,
            id: _,
            pci_segment: _,
            pci_device_id: _,
        } = self;
        if let Some(reason) = path_fault(src) {
            problems.push(Problem::invalid(self.option(), reason));
        }
    }
}
