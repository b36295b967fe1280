//! NUMA nodes of passed-through devices: which device has which.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::error::Problem;
use super::passthrough::{self, Passthrough};
use super::tree::MAX_PROBLEMS;
use super::{MAX_NODE_ID, NumaConfig, VmConfig, option_string};
use crate::plan::ranges;

/// NUMA nodes that a device is given.
///
/// In JSON a list of numbers, or a string as the command line writes it: `[2-9]`, `auto`, `auto:4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestNumaIds {
    /// Nodes of `--numa`, by their ids.
    Ids(Vec<u32>),
    /// So many nodes, behind all those of `--numa`, which are not declared there.
    Auto(u32),
}

/// The nodes that `auto` makes: a GPU can be cut into seven instances (MIG) with a node each, and
/// eight nodes for a GPU are customary.
const DEFAULT_NODES: u32 = 8;

/// The most nodes of one device.
pub const MAX_DEVICE_NODES: usize = 64;

/// What a text or a JSON value must be to name nodes.
const FORMS: &str = "nodes, as in [2-9], or auto, or auto:<count>";

impl fmt::Display for GuestNumaIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ids(ids) => write!(f, "[{}]", ranges(ids)),
            Self::Auto(count) => write!(f, "auto:{count}"),
        }
    }
}

impl Serialize for GuestNumaIds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ids(ids) => ids.serialize(serializer),
            Self::Auto(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for GuestNumaIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdsVisitor)
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = GuestNumaIds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FORMS)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GuestNumaIds, E> {
        if text == "auto" {
            return Ok(GuestNumaIds::Auto(DEFAULT_NODES));
        }
        if let Some(count) = text.strip_prefix("auto:") {
            return option_string::number(count)
                .map(GuestNumaIds::Auto)
                .map_err(E::custom);
        }
        if !text.starts_with(|c: char| c == '[' || c.is_ascii_digit()) {
            return Err(E::custom(format_args!("expected {FORMS}")));
        }
        option_string::numbers(text)
            .map(GuestNumaIds::Ids)
            .map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<GuestNumaIds, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = items.next_element()? {
            ids.push(id);
        }
        Ok(GuestNumaIds::Ids(ids))
    }
}

/// How a guest is told which nodes are a device's own: by the range of nodes in the `_DSD` of the
/// device's ACPI node, by generic initiator entries in the SRAT (ACPI 6.5, section 5.2.16.6), or by
/// both.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, ToSchema,
)]
pub enum GenericInitiator {
    /// As suits the device and its place.
    #[default]
    Auto,
    /// By both.
    On,
    /// By the `_DSD` alone.
    Off,
    /// By generic initiators alone; the nodes need not follow each other then.
    Only,
}

impl GenericInitiator {
    /// Whether it is left to us.
    pub(super) fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl fmt::Display for GenericInitiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::spelling::word(&format!("{self:?}")))
    }
}

impl VmConfig {
    /// The NUMA nodes of all passed-through devices, in the order of [`VmConfig::device_ids`]: the
    /// device's name and its nodes, ascending; `None` is a device without nodes.
    ///
    /// A device has the nodes of its `guest_numa_ids` and those whose `device_id` names it. Nodes
    /// for `auto` are not declared by `--numa`: they are counted on from the highest that is, in
    /// the order of the devices.
    pub fn device_nodes(&self) -> Vec<(String, Option<Vec<u32>>)> {
        let devices = passthrough::devices(self);
        let nodes = nodes(self, &devices);
        let names = devices.into_iter().map(|device| device.name);
        let nodes = nodes.into_iter().map(|ids| {
            let ids: Vec<u32> = ids.into_iter().collect();
            (!ids.is_empty()).then_some(ids)
        });
        names.zip(nodes).collect()
    }
}

/// The nodes of each device, even if the configuration is not valid.
fn nodes(config: &VmConfig, devices: &[Passthrough<'_>]) -> Vec<BTreeSet<u32>> {
    let named = nodes_that_name(config);
    let declared = config.numa.iter().map(|node| node.guest_numa_id);
    let mut next = u64::from(declared.max().unwrap_or(0)) + 1;
    let nodes_of = |device: &Passthrough<'_>| {
        let by_name = named.get(device.name.as_str());
        let mut ids: BTreeSet<u32> = by_name.into_iter().flatten().copied().collect();
        match device.guest_numa_ids {
            None => {}
            Some(GuestNumaIds::Ids(given)) => ids.extend(given),
            Some(GuestNumaIds::Auto(count)) => {
                let end = next + u64::from(*count).min(MAX_DEVICE_NODES as u64);
                ids.extend((next..end).filter_map(|id| u32::try_from(id).ok()));
                next = end;
            }
        }
        ids
    };
    devices.iter().map(nodes_of).collect()
}

/// The nodes that name a device, by the name.
fn nodes_that_name(config: &VmConfig) -> BTreeMap<&str, Vec<u32>> {
    let mut named: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for node in &config.numa {
        if let Some(name) = &node.device_id {
            named.entry(name).or_default().push(node.guest_numa_id);
        }
    }
    named
}

/// Adds what is wrong with the nodes of passed-through devices to `problems`. A flood of problems is
/// cut off: each may repeat a long name.
pub(super) fn validate(config: &VmConfig, problems: &mut Vec<Problem>) {
    let devices = passthrough::devices(config);
    let named = nodes_that_name(config);
    let mut claims = Claims::new(config);
    for (device, nodes) in devices.iter().zip(nodes(config, &devices)) {
        let before = problems.len();
        if before >= MAX_PROBLEMS {
            return;
        }
        if let Some(given) = device.guest_numa_ids {
            claims.validate_given(device, given, &nodes, problems);
        }
        let by_name = named.get(device.name.as_str());
        let by_name: &[u32] = by_name.map_or(&[], Vec::as_slice);
        claims.validate_named(device, by_name, problems);
        // What is wrong with single nodes may be what makes the holes.
        if problems.len() == before {
            validate_whole(device, &nodes, problems);
        }
    }
    validate_names(config, &devices, problems);
}

/// Which nodes there are, and whose they are.
struct Claims<'a> {
    declared: BTreeMap<u32, &'a NumaConfig>,
    /// The node that takes in CPUs and RAM although it is given none.
    home: Option<u32>,
    owners: BTreeMap<u32, String>,
}

impl<'a> Claims<'a> {
    fn new(config: &'a VmConfig) -> Self {
        let mut declared: BTreeMap<u32, &NumaConfig> = BTreeMap::new();
        for node in &config.numa {
            declared.entry(node.guest_numa_id).or_insert(node);
        }
        let lowest = declared.keys().next().copied();
        let home = lowest.filter(|_| config.numa.iter().all(NumaConfig::is_bare));
        Self {
            declared,
            home,
            owners: BTreeMap::new(),
        }
    }

    /// Gives a node to a device, or says why it cannot have it.
    fn claim(&mut self, id: u32, device: &Passthrough<'_>) -> Option<String> {
        let Some(node) = self.declared.get(&id) else {
            return Some(format!("there is no node {id}; declare it with --numa"));
        };
        let bare = "nodes of devices are declared without cpus and memory_zones";
        if !node.cpus.is_empty() {
            return Some(format!("node {id} has CPUs; {bare}"));
        }
        if !node.memory_zones.is_empty() {
            return Some(format!("node {id} has RAM; {bare}"));
        }
        if self.home == Some(id) {
            return Some(format!(
                "node {id} takes in the guest's CPUs and RAM, because no node is given any; declare \
                 a node with cpus and memory_zones"
            ));
        }
        if let Some(owner) = self.owners.get(&id) {
            return Some(format!("node {id} belongs to device {owner} already"));
        }
        self.owners.insert(id, device.name.clone());
        None
    }

    /// Checks the nodes of `guest_numa_ids`; `nodes` are all that the device has.
    fn validate_given(
        &mut self,
        device: &Passthrough<'_>,
        given: &GuestNumaIds,
        nodes: &BTreeSet<u32>,
        problems: &mut Vec<Problem>,
    ) {
        let at = format!("{},guest_numa_ids", device.option);
        let mut invalid = |value: String, reason: String| {
            problems.push(Problem::invalid(format_args!("{at}={value}"), reason));
        };
        let count = match given {
            GuestNumaIds::Ids(ids) => ids.len(),
            GuestNumaIds::Auto(count) => *count as usize,
        };
        if !(1..=MAX_DEVICE_NODES).contains(&count) {
            let reason = format!("makes {count} nodes; a device has 1 to {MAX_DEVICE_NODES}");
            invalid(given.to_string(), reason);
            return;
        }
        match given {
            GuestNumaIds::Ids(ids) => {
                let mut listed = BTreeSet::new();
                for id in ids {
                    let reason = match listed.insert(*id) {
                        true => self.claim(*id, device),
                        false => Some(format!("node {id} is given twice")),
                    };
                    if let Some(reason) = reason {
                        invalid(format!("[{id}]"), reason);
                    }
                }
            }
            GuestNumaIds::Auto(_) if self.declared.is_empty() => {
                let reason = "CPUs and RAM need a node too; declare at least one with --numa";
                invalid(given.to_string(), reason.to_owned());
            }
            GuestNumaIds::Auto(_) => {
                let highest = nodes.last().copied().unwrap_or(0);
                if highest > MAX_NODE_ID {
                    let reason = format!(
                        "its nodes would reach {highest}, counted on from the highest of --numa; \
                         the last that can be is {MAX_NODE_ID}"
                    );
                    invalid(given.to_string(), reason);
                }
            }
        }
    }

    /// Checks the nodes whose `device_id` names the device.
    fn validate_named(
        &mut self,
        device: &Passthrough<'_>,
        by_name: &[u32],
        problems: &mut Vec<Problem>,
    ) {
        let mut seen = BTreeSet::new();
        for id in by_name {
            let reason = match device.guest_numa_ids {
                // That it is given twice is reported of the node.
                None if !seen.insert(id) => None,
                None => self.claim(*id, device),
                Some(GuestNumaIds::Ids(ids)) if ids.contains(id) => None,
                Some(_) => Some(format!(
                    "the device's guest_numa_ids are without node {id}; name it there too, or only \
                     here"
                )),
            };
            if let Some(reason) = reason {
                let at = format!("--numa guest_numa_id={id},device_id={}", device.name);
                problems.push(Problem::invalid(at, reason));
            }
        }
    }
}

/// Checks what holds of a device's nodes together.
fn validate_whole(device: &Passthrough<'_>, nodes: &BTreeSet<u32>, problems: &mut Vec<Problem>) {
    let Passthrough {
        option,
        generic_initiator,
        ..
    } = device;
    let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else {
        if !generic_initiator.is_auto() {
            let at = format!("{option},generic_initiator={generic_initiator}");
            let reason = "means nothing without nodes; add guest_numa_ids";
            problems.push(Problem::invalid(at, reason));
        }
        return;
    };
    let holes = (last - first) as usize + 1 != nodes.len();
    if holes && *generic_initiator != GenericInitiator::Only {
        let nodes: Vec<u32> = nodes.iter().copied().collect();
        let at = match device.guest_numa_ids {
            Some(given) => format!("{option},guest_numa_ids={given}"),
            None => format!("--numa device_id={}", device.name),
        };
        let reason = format!(
            "a range with holes cannot be said in a _DSD; instead of {} give nodes that follow each \
             other, or generic_initiator=only",
            ranges(&nodes)
        );
        problems.push(Problem::invalid(at, reason));
    }
}

/// Checks that the devices that nodes name are there.
fn validate_names(config: &VmConfig, devices: &[Passthrough<'_>], problems: &mut Vec<Problem>) {
    let known: BTreeSet<&str> = devices.iter().map(|device| device.name.as_str()).collect();
    for node in &config.numa {
        let Some(name) = &node.device_id else {
            continue;
        };
        if problems.len() >= MAX_PROBLEMS {
            return;
        }
        if !known.contains(name.as_str()) {
            let at = format!(
                "--numa guest_numa_id={},device_id={name}",
                node.guest_numa_id
            );
            let reason = match known.is_empty() {
                true => "there is no such device; give it by --device or --user-device".to_owned(),
                false => {
                    let known: Vec<&str> = known.iter().copied().collect();
                    format!("there is no such device; there are {}", known.join(", "))
                }
            };
            problems.push(Problem::invalid(at, reason));
        }
    }
}
