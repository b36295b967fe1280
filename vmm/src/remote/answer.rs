//! What is said of an answer.

use std::fmt;

use serde::Deserialize;

use super::RemoteError;
use super::response::Response;
use crate::api::{NumaDevice, NumaInfo, NumaNode};
use crate::show::describe_numa;

/// The most reasons that are printed, and the most characters of one. A server of ours gives fewer.
const MAX_REASONS: usize = 64;
const MAX_REASON: usize = 4096;

/// The most characters that are printed of an answer that is not a list of reasons.
const MAX_TEXT: usize = 1024;

/// The longest that reasons may be together on one line, in characters.
const MAX_LINE: usize = 240;

/// Why a server refused: its status and its own reasons, the outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    reasons: Reasons,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reasons {
    /// What the interface says that there is: a list, ready to be printed.
    List(Vec<String>),
    /// Something else, ready to be printed.
    Text(String),
    None,
}

impl Refusal {
    /// Reads the reasons from a response.
    pub(super) fn of(response: &Response) -> Self {
        let Response { status, body } = response;
        let list: Result<Vec<String>, _> = serde_json::from_slice(body);
        let reasons = match list {
            Ok(list) if !list.is_empty() => {
                let list = list.iter().take(MAX_REASONS);
                Reasons::List(list.map(|reason| printable(reason, MAX_REASON)).collect())
            }
            Ok(_) => Reasons::None,
            Err(_) if body.is_empty() => Reasons::None,
            Err(_) => Reasons::Text(printable(&String::from_utf8_lossy(body), MAX_TEXT)),
        };
        Self {
            status: *status,
            reasons,
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status;
        let reasons = match &self.reasons {
            Reasons::List(reasons) => reasons,
            Reasons::Text(text) => {
                return write!(f, "the server answered with status {status}: {text}");
            }
            Reasons::None => {
                return write!(f, "the server answered with status {status} and no reason");
            }
        };
        let length: usize = reasons.iter().map(|reason| reason.chars().count()).sum();
        // What is wrong with a configuration is no chain: each stands for itself.
        let each_for_itself = status == 400 && reasons.len() > 2;
        match each_for_itself || length > MAX_LINE {
            true => f.write_str(&reasons.join("\n  ")),
            false => f.write_str(&reasons.join(": ")),
        }
    }
}

/// A text of which every character is printed as itself or as an escape, cut where it is too long:
/// what comes from a server must not play with a terminal.
pub(super) fn printable(text: &str, most: usize) -> String {
    let mut plain = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == most {
            plain.push_str("...");
            break;
        }
        match character {
            // Marks and overrides of the direction of writing.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                plain.extend(character.escape_unicode());
            }
            _ if character.is_control() => plain.extend(character.escape_default()),
            _ => plain.push(character),
        }
    }
    plain
}

/// What is looked at of the answer to `vm.info`; the rest may be that of a newer server.
#[derive(Deserialize)]
struct Info {
    state: String,
    #[serde(default)]
    numa: Option<NumaInfo>,
}

/// The NUMA nodes and devices of a virtual machine, from the body of the answer to `vm.info`.
///
/// # Errors
/// The body is not what it has to be.
pub(super) fn numa(body: &[u8]) -> Result<String, RemoteError> {
    let Info { state, numa } = serde_json::from_slice(body).map_err(RemoteError::Info)?;
    Ok(match numa {
        Some(numa) => describe_numa(&printable_numa(numa)),
        None if matches!(state.as_str(), "Created" | "Shutdown") => {
            "The virtual machine is not booted; its NUMA nodes are known once it is.\n".to_owned()
        }
        None => "The guest is told of no NUMA nodes.\n".to_owned(),
    })
}

/// The same with its texts ready to be printed.
fn printable_numa(numa: NumaInfo) -> NumaInfo {
    let plain = |text: String| printable(&text, MAX_TEXT);
    let NumaInfo {
        nodes,
        distances,
        devices,
    } = numa;
    let nodes = nodes.into_iter().map(|node| {
        let NumaNode {
            guest_numa_id,
            proximity_domain,
            linux_node,
            cpus,
            memory_zones,
            memory,
            device,
        } = node;
        NumaNode {
            guest_numa_id,
            proximity_domain,
            linux_node,
            cpus,
            memory_zones: memory_zones.into_iter().map(plain).collect(),
            memory,
            device: device.map(plain),
        }
    });
    let devices = devices.into_iter().map(|device| {
        let NumaDevice {
            id,
            pci_bdf,
            guest_numa_ids,
            dsd,
            generic_initiators,
            coherent_memory,
        } = device;
        NumaDevice {
            id: plain(id),
            pci_bdf: plain(pci_bdf),
            guest_numa_ids,
            dsd,
            generic_initiators,
            coherent_memory,
        }
    });
    NumaInfo {
        nodes: nodes.collect(),
        distances,
        devices: devices.collect(),
    }
}
