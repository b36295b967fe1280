//! `--memory`: the guest's RAM.

use serde::{Deserialize, Serialize};

use super::error::Problem;
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};

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
        Key::new(
            "mergeable",
            "mergeable",
            Value::Switch,
            "let the host merge equal pages (KSM)",
        )
        .or(Fallback::Value("off")),
        Key::new(
            "shared",
            "shared",
            Value::Switch,
            "map it shared, so that other processes can be given it",
        )
        .or(Fallback::Value("off")),
        Key::new(
            "hugepages",
            "hugepages",
            Value::Switch,
            "take it from the host's reserved huge pages",
        )
        .or(Fallback::Value("off")),
        Key::new(
            "hugepage_size",
            "hugepage_size",
            Value::Size,
            "size of those pages",
        )
        .or(Fallback::Absent("the host's default")),
        Key::new(
            "prefault",
            "prefault",
            Value::Switch,
            "allocate all of it before the guest starts",
        )
        .or(Fallback::Value("off")),
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
        NotYet::field("zones"),
    ],
};

/// The guest's RAM and how the host provides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// Whether the host may merge equal pages (KSM).
    #[serde(default)]
    pub mergeable: bool,
    /// Whether the mapping is shared, so that other processes can be given the memory.
    #[serde(default)]
    pub shared: bool,
    /// Whether the memory comes from the host's reserved huge pages.
    #[serde(default)]
    pub hugepages: bool,
    /// Bytes in one of those; `None` is the host's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Whether all of it is allocated before the guest starts.
    #[serde(default)]
    pub prefault: bool,
    /// Whether the host may back it with transparent huge pages.
    #[serde(default = "enabled")]
    pub thp: bool,
}

/// The least RAM that any kernel could be placed in, in bytes.
const MIN_SIZE: u64 = 1 << 20;

/// Bytes that the widest guest-physical address reaches.
const MAX_SIZE: u64 = 1 << 52;

/// Granularity of guest RAM, in bytes: the smallest page of host and guest.
const PAGE_SIZE: u64 = 4096;

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
        }
    }
}

fn enabled() -> bool {
    true
}

impl MemoryConfig {
    /// Adds what is wrong with it to `problems`.
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self {
            size,
            mergeable,
            shared,
            hugepages,
            hugepage_size,
            prefault: _,
            thp: _,
        } = self;
        let mut invalid = |value: String, reason: &str| {
            problems.push(Problem::invalid(format_args!("--memory {value}"), reason));
        };
        if *size < MIN_SIZE {
            let reason = "must be at least 1 MiB; give for instance size=1G";
            invalid(format!("size={size}"), reason);
        } else if *size > MAX_SIZE {
            let reason = "is more than any guest can address (2^52 bytes)";
            invalid(format!("size={size}"), reason);
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
    }
}
