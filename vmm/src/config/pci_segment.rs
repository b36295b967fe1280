//! `--pci-segment`: how address space is shared out among PCI segments.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::VmConfig;
use super::error::Problem;
use super::spelling::{Fallback, Key, Spelling, Value};

/// How `--pci-segment` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "PciSegmentConfig",
    about: "A PCI segment's share of the address space for BARs; may be given several times. How \
            many segments there are is said by --platform",
    bare: None,
    keys: &[
        Key::new(
            "pci_segment",
            "pci_segment",
            Value::Typed("<segment>"),
            "the segment, from 0",
        )
        .or(Fallback::Required),
        Key::new(
            "mmio32_aperture_weight",
            "mmio32_aperture_weight",
            Value::Typed("<weight>"),
            "its share for 32-bit BARs, in proportion to the weights of other segments",
        )
        .or(Fallback::Value("1")),
        Key::new(
            "mmio64_aperture_weight",
            "mmio64_aperture_weight",
            Value::Typed("<weight>"),
            "its share for 64-bit BARs",
        )
        .or(Fallback::Value("1")),
    ],
    not_yet: &[],
};

/// A PCI segment's share of the address space for BARs. A segment that is not named has weights of
/// 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PciSegmentConfig {
    /// The segment.
    #[schema(maximum = 95)]
    pub pci_segment: u16,
    /// Its share for 32-bit BARs, in proportion to the weights of other segments.
    #[serde(default = "one")]
    #[schema(default = one, minimum = 1)]
    pub mmio32_aperture_weight: u32,
    /// Its share for 64-bit BARs.
    #[serde(default = "one")]
    #[schema(default = one, minimum = 1)]
    pub mmio64_aperture_weight: u32,
}

fn one() -> u32 {
    1
}

/// Adds what is wrong with the segments of a configuration to `problems`.
pub(super) fn validate(config: &VmConfig, problems: &mut Vec<Problem>) {
    let mut named = BTreeSet::new();
    for segment in &config.pci_segments {
        let PciSegmentConfig {
            pci_segment,
            mmio32_aperture_weight,
            mmio64_aperture_weight,
        } = segment;
        let mut invalid = |value: &str, reason: &str| {
            let at = format!("--pci-segment pci_segment={pci_segment}{value}");
            problems.push(Problem::invalid(at, reason));
        };
        if let Some(reason) = config.platform.segment_fault(*pci_segment) {
            invalid("", &reason);
        }
        if !named.insert(pci_segment) {
            invalid("", "is given twice");
        }
        for (key, weight) in [
            ("mmio32_aperture_weight", mmio32_aperture_weight),
            ("mmio64_aperture_weight", mmio64_aperture_weight),
        ] {
            if *weight == 0 {
                invalid(&format!(",{key}=0"), "must be at least 1");
            }
        }
    }
}
