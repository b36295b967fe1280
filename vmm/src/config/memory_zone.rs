//! `--memory-zone`: a part of the guest's RAM, and how the host provides it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::schema::HostPath;
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};
use super::validate::path_fault;
use crate::plan::HostMemory;

// How the host provides memory is said in the same words of a zone and of all RAM.
pub(super) const MERGEABLE: Key = Key::new(
    "mergeable",
    "mergeable",
    Value::Switch,
    "let the host merge equal pages (KSM)",
)
.or(Fallback::Value("off"));
pub(super) const SHARED: Key = Key::new(
    "shared",
    "shared",
    Value::Switch,
    "map it shared, so that other processes can be given it",
)
.or(Fallback::Value("off"));
pub(super) const HUGEPAGES: Key = Key::new(
    "hugepages",
    "hugepages",
    Value::Switch,
    "take it from the host's reserved huge pages",
)
.or(Fallback::Value("off"));
pub(super) const HUGEPAGE_SIZE: Key = Key::new(
    "hugepage_size",
    "hugepage_size",
    Value::Size,
    "size of those pages",
)
.or(Fallback::Absent("the host's default"));
pub(super) const PREFAULT: Key = Key::new(
    "prefault",
    "prefault",
    Value::Switch,
    "allocate all of it before the guest starts",
)
.or(Fallback::Value("off"));

/// How `--memory-zone` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "MemoryZoneConfig",
    about: "A part of the guest's RAM; may be given several times, with --memory size=0",
    bare: None,
    keys: &[
        Key::new("id", "id", Value::Typed("<name>"), "name for --numa").or(Fallback::Required),
        Key::new(
            "size",
            "size",
            Value::Size,
            "bytes, or K, M, G or T of them",
        )
        .or(Fallback::Required),
        Key::new(
            "file",
            "file",
            Value::Typed("<path>"),
            "file to map, or folder (a hugetlbfs, say) for one without a name",
        )
        .or(Fallback::Absent("anonymous memory")),
        MERGEABLE,
        SHARED,
        HUGEPAGES,
        HUGEPAGE_SIZE,
        Key::new(
            "host_numa_node",
            "host_numa_node",
            Value::Typed("<node>"),
            "host node that it is allocated on",
        )
        .or(Fallback::Absent("any")),
        PREFAULT,
    ],
    not_yet: &[
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

/// Name of the zone that RAM without zones is.
pub const BARE_ZONE: &str = "mem0";

/// A part of the guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryZoneConfig {
    /// Its name.
    #[schema(min_length = 1)]
    pub id: String,
    /// Bytes.
    #[schema(multiple_of = 4096, minimum = 4096, maximum = 4503599627370496u64)]
    pub size: u64,
    /// File that is mapped, or folder for one without a name; without it, anonymous memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HostPath>)]
    pub file: Option<PathBuf>,
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
    /// Host node that the memory is allocated on; without it, any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_numa_node: Option<u32>,
    /// Whether all of it is allocated before the guest starts.
    #[serde(default)]
    #[schema(default = bool::default)]
    pub prefault: bool,
}

/// Granularity of guest RAM, in bytes: the smallest page of host and guest.
const PAGE_SIZE: u64 = 4096;

impl MemoryZoneConfig {
    /// How the option that gave it starts, for messages.
    pub(super) fn option(&self) -> String {
        format!("--memory-zone id={}:", self.id)
    }

    /// Adds what the host does not have of it to `problems`; `option` is what it was given by.
    pub(super) fn validate_on(&self, option: &str, host: &HostMemory, problems: &mut Vec<Problem>) {
        let HostMemory {
            numa_nodes,
            hugepage_sizes,
        } = host;
        if let Some(node) = self.host_numa_node
            && !numa_nodes.contains(&node)
        {
            let at = format!("{option} host_numa_node={node}");
            let reason = format!("the host's nodes with memory are {numa_nodes:?}");
            problems.push(Problem::invalid(at, reason));
        }
        if let Some(size) = self.hugepage_size
            && self.hugepages
            && size.is_power_of_two()
            && !hugepage_sizes.contains(&size)
        {
            let at = format!("{option} hugepage_size={size}");
            let reason = format!("the host has huge pages of {hugepage_sizes:?} bytes");
            problems.push(Problem::invalid(at, reason));
        }
    }

    /// Adds what is wrong with it by itself to `problems`; `option` is what it was given by.
    pub(super) fn validate(&self, option: &str, problems: &mut Vec<Problem>) {
        let Self {
            id: _,
            size,
            file,
            mergeable,
            shared,
            hugepages,
            hugepage_size,
            host_numa_node: _,
            prefault: _,
        } = self;
        let mut invalid = |value: String, reason: &str| {
            problems.push(Problem::invalid(format_args!("{option} {value}"), reason));
        };
        if *size == 0 {
            invalid(format!("size={size}"), "must be more than 0");
        } else if !size.is_multiple_of(PAGE_SIZE) {
            let reason = "must be a multiple of the 4096 bytes of a page";
            invalid(format!("size={size}"), reason);
        }
        if let Some(page) = hugepage_size {
            let value = format!("hugepage_size={page}");
            if !hugepages {
                invalid(value, "means nothing without hugepages=on; add it");
            } else if !page.is_power_of_two() || *page < PAGE_SIZE {
                invalid(value, "must be a power of two and not less than 4096 bytes");
            } else if !size.is_multiple_of(*page) {
                let reason = format!("size={size} must be a multiple of it");
                invalid(value, &reason);
            }
        }
        if *mergeable && *shared {
            let reason = "the host merges private memory only; use shared=off";
            invalid("mergeable=on".to_string(), reason);
        }
        if *mergeable && *hugepages {
            let reason = "the host does not merge huge pages; use hugepages=off";
            invalid("mergeable=on".to_string(), reason);
        }
        if let Some(path) = file {
            let value = format!("file={}", path.display());
            if let Some(fault) = path_fault(path) {
                invalid(value, fault);
            } else if *hugepages {
                let reason = "hugepages=on is for memory without a file; a file on a hugetlbfs has \
                              its pages anyway";
                invalid(value, reason);
            } else if *mergeable {
                invalid(
                    value,
                    "the host merges anonymous memory only; use mergeable=off",
                );
            }
        }
    }
}

/// Adds what is wrong with zones, by themselves and among them, to `problems`.
pub(super) fn validate_all(zones: &[MemoryZoneConfig], problems: &mut Vec<Problem>) {
    let mut names = BTreeSet::new();
    for zone in zones {
        zone.validate(&zone.option(), problems);
        let at = format!("--memory-zone id={}", zone.id);
        if zone.id.is_empty() {
            problems.push(Problem::invalid(at, "a zone needs a name"));
        } else if !names.insert(&zone.id) {
            problems.push(Problem::invalid(at, "another zone has this name"));
        }
    }
}
