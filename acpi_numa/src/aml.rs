//! What devices in the ACPI namespace say of nodes: `_PXM` and `_DSD`.
//!
//! The types are [`Aml`] objects, to be put among the children of an
//! [`acpi_tables::aml::Device`].

use alloc::string::String;
use alloc::vec::Vec;

pub use acpi_tables;
use acpi_tables::aml::{Name, PackageBuilder, Path, Uuid};
use acpi_tables::{Aml, AmlSink};
use thiserror::Error;

use crate::topology::ProximityDomain;

/// `_PXM`: the node that a device and all below it belong to (ACPI 6.5, section 6.2.15).
///
/// Linux heeds it on a PCI root bus, for all functions below, and ignores it on a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pxm(pub ProximityDomain);

impl Aml for Pxm {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Name::new(Path::new("_PXM"), &self.0.0).to_aml_bytes(sink);
    }
}

/// Nodes without a hole, as drivers are told them: the first and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRange {
    start: ProximityDomain,
    count: u32,
}

/// Why nodes are no range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NodeRangeError {
    /// There are no nodes.
    #[error("a device's nodes are to be told as a range, but there are none")]
    Empty,
    /// A node is there twice.
    #[error("a device's nodes name node {pxm} twice")]
    Duplicate {
        /// The node.
        pxm: ProximityDomain,
    },
    /// A node is missing.
    #[error(
        "a device's nodes go from {first} to {last} without {missing}: a driver can only be told \
         a range without holes"
    )]
    Hole {
        /// The lowest node.
        first: ProximityDomain,
        /// The highest node.
        last: ProximityDomain,
        /// The lowest that is missing.
        missing: ProximityDomain,
    },
}

impl NodeRange {
    /// The range that these nodes are, in whatever order.
    ///
    /// # Errors
    ///
    /// If there are none, or one twice, or some are missing in between.
    pub fn new(nodes: &[ProximityDomain]) -> Result<Self, NodeRangeError> {
        let mut nodes = nodes.to_vec();
        nodes.sort();
        let (Some(&start), Some(&last)) = (nodes.first(), nodes.last()) else {
            return Err(NodeRangeError::Empty);
        };
        for pair in nodes.windows(2) {
            if pair[0] == pair[1] {
                return Err(NodeRangeError::Duplicate { pxm: pair[0] });
            }
            if pair[0].0 + 1 != pair[1].0 {
                return Err(NodeRangeError::Hole {
                    first: start,
                    last,
                    missing: ProximityDomain(pair[0].0 + 1),
                });
            }
        }
        // As many as there are in memory are fewer than 2^32, unless there are all of them.
        let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        Ok(Self { start, count })
    }

    /// The lowest node.
    pub fn start(self) -> ProximityDomain {
        self.start
    }

    /// How many nodes there are, at least one.
    pub fn count(self) -> u32 {
        self.count
    }
}

/// Names of the two properties that tell a driver which nodes are its device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRangeKeys {
    /// The property with the first node.
    pub start: &'static str,
    /// The property with the number of nodes.
    pub count: &'static str,
}

impl NodeRangeKeys {
    /// Names without a vendor.
    pub const DEV_MEM: Self = Self {
        start: "dev-mem-pxm-start",
        count: "dev-mem-pxm-count",
    };
    /// What NVIDIA's driver looks for.
    pub const NVIDIA_GPU_MEM: Self = Self {
        start: "nvidia,gpu-mem-pxm-start",
        count: "nvidia,gpu-mem-pxm-count",
    };
}

/// `_DSD` with device properties (ACPI 6.5, section 6.2.5, and the UUID registered for device
/// properties): names with 64-bit numbers.
///
/// A device that is described already must get it in that description: guests ignore a second
/// device with the same address. Without properties there is no `_DSD`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceProperties {
    properties: Vec<(String, u64)>,
}

/// Device properties.
const DEVICE_PROPERTIES: &str = "daffd814-6eba-4d8c-8a91-bc9bbf4aa301";

/// Why a device cannot have a property.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PropertyError {
    /// The name is no ACPI string.
    #[error("a device property is named {key:?}: use at least one character, all of them ASCII")]
    Key {
        /// The name.
        key: String,
    },
    /// The device has a property of that name.
    #[error("the device property {key} is there twice")]
    Duplicate {
        /// The name.
        key: String,
    },
    /// A package cannot have more elements.
    #[error(
        "the device property {key} is one too many: a device has at most {}",
        u8::MAX
    )]
    TooMany {
        /// The name.
        key: String,
    },
}

impl DeviceProperties {
    /// No properties.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a property.
    ///
    /// # Errors
    ///
    /// If the name is empty or not ASCII or already there, or there are 255 properties.
    pub fn with(mut self, key: &str, value: u64) -> Result<Self, PropertyError> {
        let owned = String::from(key);
        if key.is_empty() || !key.bytes().all(|byte| (1..0x80).contains(&byte)) {
            return Err(PropertyError::Key { key: owned });
        }
        if self.properties.iter().any(|(known, _)| known == key) {
            return Err(PropertyError::Duplicate { key: owned });
        }
        if self.properties.len() == usize::from(u8::MAX) {
            return Err(PropertyError::TooMany { key: owned });
        }
        self.properties.push((owned, value));
        Ok(self)
    }

    /// Adds the two properties that tell which nodes are the device's.
    ///
    /// # Errors
    ///
    /// Those of [`with`](Self::with).
    pub fn with_nodes(self, keys: NodeRangeKeys, nodes: NodeRange) -> Result<Self, PropertyError> {
        self.with(keys.start, nodes.start().0.into())?
            .with(keys.count, nodes.count().into())
    }

    /// The properties.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.properties
            .iter()
            .map(|(key, value)| (key.as_str(), *value))
    }
}

impl Aml for DeviceProperties {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        if self.properties.is_empty() {
            return;
        }
        let mut properties = PackageBuilder::new();
        for (key, value) in &self.properties {
            let mut property = PackageBuilder::new();
            property.add_element(key);
            property.add_element(value);
            properties.add_element(&property);
        }
        let mut package = PackageBuilder::new();
        package.add_element(&Uuid::new(DEVICE_PROPERTIES));
        package.add_element(&properties);
        Name::new(Path::new("_DSD"), &package).to_aml_bytes(sink);
    }
}
