//! What is asked of one zone of RAM, and what its options are called.

use std::fmt::{Display, Write as _};

use crate::config::{MemoryConfig, MemoryZoneConfig};

/// What is asked of one zone of RAM.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The zone.
    pub config: MemoryZoneConfig,
    /// Whether the host may back it with transparent huge pages.
    pub thp: bool,
    /// Whether it is what `--memory` alone asks for.
    bare: bool,
}

impl Zone {
    /// All zones of a configuration.
    pub fn all(config: &MemoryConfig) -> Vec<Self> {
        let zones = config.as_zones().into_iter();
        let zone = |zone| Self {
            config: zone,
            thp: config.thp,
            bare: config.zones.is_empty(),
        };
        zones.map(zone).collect()
    }

    /// The option that says `keys` of this zone, as on the command line.
    pub fn option(&self, keys: impl Display) -> String {
        if self.bare {
            format!("--memory {keys}")
        } else {
            format!("--memory-zone id={},{keys}", self.config.id)
        }
    }

    /// The option with the keys that decide where the memory comes from.
    pub fn source(&self) -> String {
        let MemoryZoneConfig {
            id: _,
            size,
            file,
            mergeable: _,
            shared,
            hugepages,
            hugepage_size,
            host_numa_node: _,
            prefault: _,
        } = &self.config;
        let mut keys = format!("size={size:#x}");
        if let Some(path) = file {
            let _ = write!(keys, ",file={}", path.display());
        }
        if *shared {
            keys.push_str(",shared=on");
        }
        if *hugepages {
            keys.push_str(",hugepages=on");
        }
        if let Some(page) = hugepage_size {
            let _ = write!(keys, ",hugepage_size={page:#x}");
        }
        self.option(keys)
    }
}
