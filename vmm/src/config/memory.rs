//! `--memory`: the guest's RAM.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::memory_zone::{self, BARE_ZONE, MemoryZoneConfig};
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};
use crate::plan::HostMemory;

/// How `--memory` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "MemoryConfig",
    about: "Guest RAM",
    bare: None,
    keys: &[
        Key::new(
            "size",
            "size",
            Value::Size,
            "bytes, or K, M, G or T of them",
        )
        .or(Fallback::Value("512M")),
        memory_zone::MERGEABLE,
        memory_zone::SHARED,
        memory_zone::HUGEPAGES,
        memory_zone::HUGEPAGE_SIZE,
        memory_zone::PREFAULT,
        Key::new(
            "thp",
            "thp",
            Value::Switch,
            "let the host back it with transparent huge pages",
        )
        .or(Fallback::Value("on")),
    ],
    not_yet: &[
        NotYet::both("hotplug_method")
            .unless_text("acpi")
            .unless_json("\"Acpi\""),
        NotYet::both("hotplug_size")
            .unless_text("0")
            .unless_json("0"),
        NotYet::both("hotplugged_size")
            .unless_text("0")
            .unless_json("0"),
        NotYet::both("reserve")
            .unless_text("off")
            .unless_json("false"),
    ],
};

/// The guest's RAM and how the host provides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bytes; 0 where RAM is in zones, and at least 1 MiB elsewhere.
    #[schema(multiple_of = 4096, maximum = 4503599627370496u64)]
    pub size: u64,
    /// Whether the host may merge equal pages (KSM).
    #[serde(default)]
    #[schema(default = bool::default)]
    pub mergeable: bool,
    /// Whether the mapping is shared, so that other processes can be given the memory.
    #[serde(default)]
    #[schema(default = bool::default)]
    pub shared: bool,
    /// Whether the memory comes from the host's reserved huge pages.
    #[serde(default)]
    #[schema(default = bool::default)]
    pub hugepages: bool,
    /// Bytes in one of those, a power of two; without it, the host's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 4096)]
    pub hugepage_size: Option<u64>,
    /// Whether all of it is allocated before the guest starts.
    #[serde(default)]
    #[schema(default = bool::default)]
    pub prefault: bool,
    /// Whether the host may back it with transparent huge pages.
    #[serde(default = "enabled")]
    #[schema(default = enabled)]
    pub thp: bool,
    /// RAM in zones; `size` is 0 then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<MemoryZoneConfig>,
}

/// The least RAM that any kernel could be placed in, in bytes.
const MIN_SIZE: u64 = 1 << 20;

/// Bytes that the widest guest-physical address reaches.
const MAX_SIZE: u64 = 1 << 52;

/// Guest RAM where nothing else was asked for, in bytes.
pub const DEFAULT_MEMORY_SIZE: u64 = 512 << 20;

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: DEFAULT_MEMORY_SIZE,
            mergeable: false,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            thp: true,
            zones: Vec::new(),
        }
    }
}

fn enabled() -> bool {
    true
}

impl MemoryConfig {
    /// Bytes of RAM in all; saturates.
    pub fn total(&self) -> u64 {
        let zones = self.zones.iter().map(|zone| zone.size);
        zones.fold(self.size, u64::saturating_add)
    }

    /// All RAM as zones, in the order in which guests see them: RAM that is not given in zones is
    /// one, called [`BARE_ZONE`].
    pub fn as_zones(&self) -> Vec<MemoryZoneConfig> {
        let Self {
            size,
            mergeable,
            shared,
            hugepages,
            hugepage_size,
            prefault,
            thp: _,
            zones,
        } = self;
        if !zones.is_empty() {
            return zones.clone();
        }
        vec![MemoryZoneConfig {
            id: BARE_ZONE.to_owned(),
            size: *size,
            file: None,
            mergeable: *mergeable,
            shared: *shared,
            hugepages: *hugepages,
            hugepage_size: *hugepage_size,
            host_numa_node: None,
            prefault: *prefault,
        }]
    }

    /// Adds what is wrong with it to `problems`.
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        if !self.zones.is_empty() {
            self.validate_beside_zones(problems);
        } else if self.size < MIN_SIZE {
            let reason = "must be at least 1 MiB; give for instance size=1G, or size=0 and \
                          --memory-zone";
            let at = format!("--memory size={}", self.size);
            problems.push(Problem::invalid(at, reason));
        } else {
            for zone in self.as_zones() {
                zone.validate("--memory", problems);
            }
        }
        memory_zone::validate_all(&self.zones, problems);
        if self.total() > MAX_SIZE {
            let at = format!("--memory size={}", self.total());
            let reason = "is more than any guest can address (2^52 bytes)";
            problems.push(Problem::invalid(at, reason));
        }
    }

    /// Adds what the host does not have of it to `problems`.
    pub(super) fn validate_on(&self, host: &HostMemory, problems: &mut Vec<Problem>) {
        for zone in self.as_zones() {
            let option = if self.zones.is_empty() {
                "--memory".to_owned()
            } else {
                zone.option()
            };
            zone.validate_on(&option, host, problems);
        }
    }

    /// What cannot be said of all RAM where RAM is given in zones.
    fn validate_beside_zones(&self, problems: &mut Vec<Problem>) {
        let Self {
            size,
            mergeable,
            shared,
            hugepages,
            hugepage_size,
            prefault,
            thp: _,
            zones: _,
        } = self;
        let mut invalid = |value: String, reason: &str| {
            problems.push(Problem::invalid(format_args!("--memory {value}"), reason));
        };
        if *size != 0 {
            let reason = "RAM is given by --memory-zone; say size=0 here";
            invalid(format!("size={size}"), reason);
        }
        let switches = [
            ("mergeable", mergeable),
            ("shared", shared),
            ("hugepages", hugepages),
            ("prefault", prefault),
        ];
        let reason = "RAM is given by --memory-zone; say it of each zone instead";
        for (name, _) in switches.iter().filter(|(_, on)| **on) {
            invalid(format!("{name}=on"), reason);
        }
        if let Some(page) = hugepage_size {
            invalid(format!("hugepage_size={page}"), reason);
        }
    }
}
