//! `--user-device`: a device in another process that the guest is given.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::device_nodes::{GenericInitiator, GuestNumaIds};
use super::error::Problem;
use super::schema::{DeviceName, SocketPath};
use super::spelling::{Fallback, Key, Spelling, Value};
use super::validate::socket_fault;
use super::{passthrough, places};

/// How `--user-device` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "UserDeviceConfig",
    about: "A PCI device in another process that the guest is given (vfio-user); may be given \
            several times, with shared memory",
    bare: None,
    keys: &[
        Key::new(
            "socket",
            "socket",
            Value::Typed("<path>"),
            "Unix socket of the process",
        )
        .or(Fallback::Required),
        passthrough::ID.or(Fallback::Absent("_vfio_user0, _vfio_user1 and so on")),
        places::PCI_SEGMENT,
        places::PCI_DEVICE_ID,
        passthrough::GUEST_NUMA_IDS,
        passthrough::GENERIC_INITIATOR,
    ],
    not_yet: &[],
};

/// A device in another process that the guest is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserDeviceConfig {
    /// Unix socket of the process.
    #[schema(value_type = SocketPath)]
    pub socket: PathBuf,
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
    /// NUMA nodes of the guest that its memory may use. This and what follows are extensions of
    /// ours, so they are written only where they differ from the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_numa_ids: Option<GuestNumaIds>,
    /// How the guest is told that those nodes are its own.
    #[serde(default, skip_serializing_if = "GenericInitiator::is_auto")]
    #[schema(default = GenericInitiator::default)]
    pub generic_initiator: GenericInitiator,
}

impl UserDeviceConfig {
    /// The option that gave it, for messages.
    pub(super) fn option(&self) -> String {
        format!("--user-device socket={}", self.socket.display())
    }

    /// Adds what is wrong with it by itself to `problems`; what it has in common with other kinds
    /// of devices is for [`passthrough::validate`] and [`places::validate`].
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        if let Some(reason) = socket_fault(&self.socket) {
            problems.push(Problem::invalid(self.option(), reason));
        }
    }
}
