//! `--vsock`: sockets between guest and host.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ConfigErrors, Problem};
use super::schema::{DeviceName, SocketPath};
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};
use super::validate::socket_fault;
use super::{VmConfig, places};

/// The lowest context of a guest: lower ones are the hypervisor, the machine itself and the host
/// (Virtio 1.2, section 5.10.4).
const FIRST_CID: u32 = 3;
/// The highest one; what follows stands for any.
const LAST_CID: u32 = u32::MAX - 1;

/// How `--vsock` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "VsockConfig",
    about: "Sockets between guest and host (virtio-vsock), which are Unix sockets on the host",
    bare: None,
    keys: &[
        Key::new(
            "cid",
            "cid",
            Value::Typed("<context>"),
            "the guest's context, 3 to 4294967294: its address",
        )
        .or(Fallback::Required),
        Key::new(
            "socket",
            "socket",
            Value::Typed("<path>"),
            "Unix socket for connections to the guest; port P of the host is the socket <path>_P",
        )
        .or(Fallback::Required),
        places::ID.or(Fallback::Absent("_vsock0")),
        places::PCI_SEGMENT,
        places::PCI_DEVICE_ID,
    ],
    not_yet: &[NotYet::both("iommu")
        .unless_text("off")
        .unless_json("false")],
};

/// Sockets between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context: its address.
    #[schema(minimum = 3, maximum = 4_294_967_294_u64)]
    pub cid: u32,
    /// Unix socket on which the VMM listens for connections to the guest. What the guest connects to is
    /// the socket of the same path with `_` and the port behind it.
    #[schema(value_type = SocketPath)]
    pub socket: PathBuf,
    /// Its name; without it, it is `_vsock0`.
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

impl VmConfig {
    /// Adds sockets between guest and host.
    ///
    /// # Errors
    /// There are some already.
    pub fn add_vsock(&mut self, vsock: VsockConfig) -> Result<(), ConfigErrors> {
        if let Some(there) = &self.vsock {
            let reason = format!(
                "a guest has one such device at most; take the other away first ({})",
                there.option()
            );
            return Err(Problem::invalid(vsock.option(), reason).into());
        }
        self.vsock = Some(vsock);
        Ok(())
    }
}

impl VsockConfig {
    /// The option that gave it, for messages.
    pub(crate) fn option(&self) -> String {
        format!("--vsock cid={},socket={}", self.cid, self.socket.display())
    }

    /// Adds what is wrong with it by itself to `problems`; its name and its place are for
    /// [`places::validate`].
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self {
            cid,
            socket,
            id: _,
            pci_segment: _,
            pci_device_id: _,
        } = self;
        if !(FIRST_CID..=LAST_CID).contains(cid) {
            let reason = format!("a guest's context is {FIRST_CID} to {LAST_CID}");
            problems.push(Problem::invalid(format_args!("--vsock cid={cid}"), reason));
        }
        if let Some(reason) = socket_fault(socket) {
            problems.push(Problem::invalid(self.option(), reason));
        }
    }
}
