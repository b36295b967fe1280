//! `--numa`: a NUMA node of the guest.

use std::collections::{BTreeMap, BTreeSet};

use arch::Isa;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmConfig;
use super::error::Problem;
use super::spelling::{Fallback, Key, Spelling, Value};

/// How `--numa` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "NumaConfig",
    about: "A NUMA node of the guest; may be given several times. Without zones it is empty: memory \
            may come to it later",
    bare: None,
    keys: &[
        Key::new(
            "guest_numa_id",
            "guest_numa_id",
            Value::Typed("<node>"),
            "its ACPI proximity domain, at most 1023",
        )
        .or(Fallback::Required),
        Key::new(
            "cpus",
            "cpus",
            Value::Typed("[<vcpus>]"),
            "vCPUs in it, as in [0-3,7]",
        )
        .or(Fallback::Absent("none")),
        Key::new(
            "distances",
            "distances",
            Value::Typed("[<node>@<distance>,...]"),
            "distances to other nodes, 11 to 254; the way back is as far unless it is given too",
        )
        .or(Fallback::Absent("20, or 40 where one of the two is empty")),
        Key::new(
            "memory_zones",
            "memory_zones",
            Value::Typed("[<id>,...]"),
            "zones of --memory-zone in it; RAM without zones is called mem0",
        )
        .or(Fallback::Absent("none")),
        Key::new(
            "hmat",
            "hmat",
            Value::Typed("[<node>@<read ns>:<write ns>:<read MB/s>:<write MB/s>,...]"),
            "how fast CPUs of other nodes reach its memory; makes an ACPI HMAT",
        )
        .or(Fallback::Absent("not said")),
        Key::new(
            "pci_segments",
            "pci_segments",
            Value::Typed("[<segments>]"),
            "PCI segments whose devices are near it",
        )
        .or(Fallback::Absent("none")),
        Key::new(
            "device_id",
            "device_id",
            Value::Typed("<name>"),
            "passed-through device whose memory it is for; as guest_numa_ids of the device, for one \
             node",
        )
        .or(Fallback::Absent("none")),
    ],
    not_yet: &[],
};

/// A NUMA node of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaConfig {
    /// Its ACPI proximity domain.
    #[schema(maximum = 1023)]
    pub guest_numa_id: u32,
    /// vCPUs in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(maximum = 254)]
    pub cpus: Vec<u32>,
    /// Distances to other nodes, relative to the 10 of its own memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distances: Vec<NumaDistance>,
    /// Memory zones in it, by their names; none makes it an empty node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_zones: Vec<String>,
    /// How fast CPUs of other nodes reach its memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hmat: Vec<NumaInitiator>,
    /// PCI segments whose devices are near it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(maximum = 95)]
    pub pci_segments: Vec<u16>,
    /// Passed-through device whose memory it is for, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
}

/// How far another node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaDistance {
    /// The other node.
    #[schema(maximum = 1023)]
    pub destination: u32,
    /// How far it is; a node's own memory is at 10, and no other is nearer than 11.
    #[schema(minimum = 10, maximum = 254)]
    pub distance: u32,
}

/// How fast the CPUs of one node reach the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaInitiator {
    /// The node whose CPUs are meant.
    #[schema(maximum = 1023)]
    pub initiator: u32,
    /// How fast they reach it.
    pub access: AccessPerformance,
}

/// Latencies and bandwidths of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessPerformance {
    /// Nanoseconds of a read.
    #[schema(minimum = 1, maximum = 4294967)]
    pub read_latency: u32,
    /// Nanoseconds of a write.
    #[schema(minimum = 1, maximum = 4294967)]
    pub write_latency: u32,
    /// MB/s (ACPI 6.5, section 5.2.28.4) that can be read.
    #[schema(minimum = 1)]
    pub read_bandwidth: u32,
    /// MB/s that can be written.
    #[schema(minimum = 1)]
    pub write_bandwidth: u32,
}

/// The highest id of a node: Linux has no more nodes than that (NODES_SHIFT = 10).
pub const MAX_NODE_ID: u32 = 1023;

/// Distance of a node to itself, and what others may have (ACPI 6.5, section 5.2.17).
const LOCAL_DISTANCE: u32 = 10;
const DISTANCES: std::ops::RangeInclusive<u32> = 11..=254;

/// The longest latency in nanoseconds: the HMAT counts picoseconds, of which we take 32 bits.
const MAX_LATENCY: u32 = u32::MAX / 1000;

impl NumaConfig {
    /// A node with nothing in it.
    pub fn bare(id: u32) -> Self {
        Self {
            guest_numa_id: id,
            cpus: Vec::new(),
            distances: Vec::new(),
            memory_zones: Vec::new(),
            hmat: Vec::new(),
            pci_segments: Vec::new(),
            device_id: None,
        }
    }

    /// Whether neither CPUs nor memory are in it.
    pub fn is_bare(&self) -> bool {
        self.cpus.is_empty() && self.memory_zones.is_empty()
    }
}

/// Adds what is wrong with the nodes of a configuration to `problems`.
pub(super) fn validate(config: &VmConfig, isa: Isa, problems: &mut Vec<Problem>) {
    let mut owners = Owners::default();
    // Of two nodes with one id the first counts.
    let mut nodes: BTreeMap<u32, &NumaConfig> = BTreeMap::new();
    for node in &config.numa {
        nodes.entry(node.guest_numa_id).or_insert(node);
    }
    let zones: BTreeSet<String> = config
        .memory
        .as_zones()
        .into_iter()
        .map(|zone| zone.id)
        .collect();
    for node in &config.numa {
        let NumaConfig {
            guest_numa_id: id,
            cpus,
            distances,
            memory_zones,
            hmat,
            pci_segments,
            device_id: _,
        } = node;
        let mut invalid = |value: String, reason: String| {
            let at = format!("--numa guest_numa_id={id}{value}");
            problems.push(Problem::invalid(at, reason));
        };
        if *id > MAX_NODE_ID {
            let reason = format!("must be at most {MAX_NODE_ID}");
            invalid(String::new(), reason);
        }
        if !owners.ids.insert(*id) {
            invalid(String::new(), "is given twice".to_owned());
        }
        for cpu in cpus {
            let value = format!(",cpus=[{cpu}]");
            if *cpu >= config.cpus.max_vcpus {
                let last = config.cpus.max_vcpus.saturating_sub(1);
                invalid(value, format!("there is no vCPU {cpu}; the last is {last}"));
            } else if let Some(owner) = owners.cpus.insert(*cpu, *id) {
                invalid(value, format!("vCPU {cpu} is in node {owner} already"));
            }
        }
        for zone in memory_zones {
            let value = format!(",memory_zones=[{zone}]");
            if !zones.contains(zone) {
                let known: Vec<&str> = zones.iter().map(String::as_str).collect();
                let known = known.join(", ");
                invalid(value, format!("there is no such zone; there are {known}"));
            } else if let Some(owner) = owners.zones.insert(zone, *id) {
                invalid(value, format!("the zone is in node {owner} already"));
            }
        }
        for segment in pci_segments {
            let value = format!(",pci_segments=[{segment}]");
            if let Some(reason) = config.platform.segment_fault(*segment) {
                invalid(value, reason);
            } else if let Some(owner) = owners.segments.insert(*segment, *id) {
                invalid(value, format!("the segment is in node {owner} already"));
            }
        }
        validate_distances(*id, distances, &nodes, &mut invalid);
        validate_performance(hmat, &nodes, &mut invalid);
    }
    validate_firmware(config, isa, problems);
}

/// What belongs to which node.
#[derive(Default)]
struct Owners<'a> {
    ids: BTreeSet<u32>,
    cpus: BTreeMap<u32, u32>,
    zones: BTreeMap<&'a str, u32>,
    segments: BTreeMap<u16, u32>,
}

fn validate_distances(
    id: u32,
    distances: &[NumaDistance],
    nodes: &BTreeMap<u32, &NumaConfig>,
    invalid: &mut impl FnMut(String, String),
) {
    let mut given = BTreeSet::new();
    for NumaDistance {
        destination,
        distance,
    } in distances
    {
        let value = format!(",distances=[{destination}@{distance}]");
        let local = *destination == id;
        if !nodes.contains_key(destination) {
            let reason = format!("there is no node {destination}; declare it with --numa");
            invalid(value.clone(), reason);
        } else if local && *distance != LOCAL_DISTANCE {
            invalid(
                value.clone(),
                "a node is at distance 10 to itself".to_owned(),
            );
        } else if !local && !DISTANCES.contains(distance) {
            let (least, most) = DISTANCES.into_inner();
            invalid(value.clone(), format!("must be {least} to {most}"));
        }
        if !given.insert(destination) {
            let reason = format!("the distance to node {destination} is given twice");
            invalid(value, reason);
        }
    }
}

fn validate_performance(
    hmat: &[NumaInitiator],
    nodes: &BTreeMap<u32, &NumaConfig>,
    invalid: &mut impl FnMut(String, String),
) {
    let mut given = BTreeSet::new();
    for NumaInitiator { initiator, access } in hmat {
        let AccessPerformance {
            read_latency,
            write_latency,
            read_bandwidth,
            write_bandwidth,
        } = access;
        let value = format!(
            ",hmat=[{initiator}@{read_latency}:{write_latency}:{read_bandwidth}:{write_bandwidth}]"
        );
        match nodes.get(initiator) {
            None => invalid(value.clone(), format!("there is no node {initiator}")),
            Some(node) if node.cpus.is_empty() => {
                let reason = format!("node {initiator} is given no CPUs that could use memory");
                invalid(value.clone(), reason);
            }
            Some(_) => {}
        }
        let figures = [read_latency, write_latency, read_bandwidth, write_bandwidth];
        if figures.contains(&&0) {
            let reason = "latencies and bandwidths must be more than 0".to_owned();
            invalid(value.clone(), reason);
        }
        let slowest = (*read_latency).max(*write_latency);
        if slowest > MAX_LATENCY {
            let reason = format!("latencies are at most {MAX_LATENCY} ns");
            invalid(value.clone(), reason);
        }
        if !given.insert(initiator) {
            invalid(value, format!("node {initiator} is given twice"));
        }
    }
}

/// Checks that the guest's firmware can carry the nodes.
fn validate_firmware(config: &VmConfig, isa: Isa, problems: &mut Vec<Problem>) {
    if config.platform.acpi {
        return;
    }
    let mut invalid = |at: String, reason: &str| problems.push(Problem::invalid(at, reason));
    for node in &config.numa {
        let at = format!("--numa guest_numa_id={}", node.guest_numa_id);
        if isa == Isa::X86_64 {
            invalid(
                at,
                "x86_64 guests learn of NUMA from ACPI alone; drop --platform acpi=off",
            );
            return;
        }
        if node.is_bare() {
            let reason = "a device tree cannot carry an empty node; drop --platform acpi=off";
            invalid(at.clone(), reason);
        }
        if !node.hmat.is_empty() {
            let at = format!("{at},hmat=");
            invalid(
                at,
                "a device tree cannot carry it; drop --platform acpi=off",
            );
        }
    }
}
