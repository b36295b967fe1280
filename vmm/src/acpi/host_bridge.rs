//! The nodes of PCI in the DSDT: a host bridge for each segment with a node for each slot, and the
//! reservation of configuration space.
//!
//! Names: the bridge of segment 0x2a is `PC2A`; its device 0x1f, whether or not anything sits there,
//! is `S01F`, with three hexadecimal digits of the device number. Device 0 is the bridge itself and
//! has no node.

use std::collections::{BTreeMap, BTreeSet};

use acpi_numa::aml::{DeviceProperties, NodeRange, NodeRangeKeys, Pxm};
use acpi_numa::topology::ProximityDomain;
use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, Name, ONE, PackageBuilder,
    ResourceTemplate, ZERO,
};
use acpi_tables::{Aml, AmlSink};
use pci::{AcpiNode, DEVICES};

use super::EncodeError;
use super::nodes::{BRIDGE_NAMES, name, numbered};
use super::pci_methods::{BootConfiguration, OsCapabilities};
use super::resources::{Encoded, RegisterResource, narrow};
use crate::plan::{FunctionPlan, GpaRange, Gsi, IoWindow, Isa, PciPlan, Registers, SegmentPlan};

/// The last segment that has a name, and ids that a KVM ITS takes.
pub(super) const LAST_SEGMENT: u16 = 0xff;

/// NVIDIA, whose driver has property names of its own.
const VENDOR_NVIDIA: u16 = 0x10de;

/// `CONFIG_ADDRESS` and `CONFIG_DATA` (PCI Local Bus Specification 3.0, section 3.2.2.3.2).
const CONFIG_PORTS: (u16, u8) = (0xcf8, 8);

/// Pins of a device, INTA# to INTD#.
const PINS: u8 = 4;

/// The nodes of everything in `pci`, in the order in which the DSDT has them: a guest that looks for
/// who reserves configuration space finds the answer before it has walked all slots.
pub(super) fn nodes(isa: Isa, pci: &PciPlan) -> Result<Vec<Box<dyn AcpiNode + '_>>, EncodeError> {
    let mut nodes: Vec<Box<dyn AcpiNode>> = vec![Box::new(ConfigurationSpace {
        segments: &pci.segments,
    })];
    let mut numbers = BTreeSet::new();
    for segment in &pci.segments {
        if !numbers.insert(segment.number) {
            return Err(EncodeError::SegmentTwice {
                segment: segment.number,
            });
        }
        nodes.push(Box::new(HostBridge::new(isa, segment)?));
    }
    Ok(nodes)
}

/// Motherboard resources, `PNP0C02`, that hold the configuration space of all segments (PCI Firmware
/// Specification 3.3, section 4.1.2: the MCFG alone reserves nothing). Linux on x86 does not use
/// configuration space that is reserved nowhere, and on arm64 it calls that a firmware bug.
struct ConfigurationSpace<'a> {
    segments: &'a [SegmentPlan],
}

impl AcpiNode for ConfigurationSpace<'_> {
    fn aml(&self) -> Box<dyn Aml + '_> {
        let segments = self.segments.iter();
        let ranges: Vec<_> = segments
            .map(|segment| RegisterResource(Registers::Mmio(segment.ecam)))
            .collect();
        let ranges = ranges.iter().map(|range| range as &dyn Aml).collect();
        Encoded::boxed(&Device::new(
            "ECAM".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(ranges)),
            ],
        ))
    }
}

/// A host bridge, `PNP0A08`.
#[derive(Debug)]
pub(super) struct HostBridge<'a> {
    segment: &'a SegmentPlan,
    windows: Windows,
    /// The devices in its slots, and the `_DSD` of those that have one.
    devices: BTreeMap<u8, Option<DeviceProperties>>,
}

impl<'a> HostBridge<'a> {
    /// The bridge of a segment.
    ///
    /// # Errors
    ///
    /// What cannot be said of the segment or of a function on it.
    pub(super) fn new(isa: Isa, segment: &'a SegmentPlan) -> Result<Self, EncodeError> {
        if segment.number > LAST_SEGMENT {
            return Err(EncodeError::Segment {
                segment: segment.number,
            });
        }
        let mut devices = BTreeMap::new();
        for function in &segment.functions {
            let bdf = function.bdf;
            if bdf.segment != segment.number || bdf.device >= DEVICES {
                return Err(EncodeError::Slot {
                    id: function.id.clone(),
                    bdf,
                    segment: segment.number,
                });
            }
            let properties = node_properties(function)?;
            if devices.insert(bdf.device, properties).is_some() {
                return Err(EncodeError::SlotTwice {
                    id: function.id.clone(),
                    bdf,
                });
            }
        }
        Ok(Self {
            segment,
            windows: Windows::new(isa, segment)?,
            devices,
        })
    }

    /// Devices 1 to 31, and device 0 if it is not the bridge itself.
    fn slots(&self) -> Encoded {
        let mut slots = Vec::new();
        let first = u8::from(!self.devices.contains_key(&0));
        for device in first..DEVICES {
            match self.devices.get(&device) {
                None | Some(None) => slots.extend_from_slice(&plain_slot(device)),
                Some(Some(properties)) => Device::new(
                    name(numbered(b'S', device.into())),
                    vec![&Name::new("_ADR".into(), &slot_address(device)), properties],
                )
                .to_aml_bytes(&mut slots),
            }
        }
        Encoded(slots)
    }
}

impl AcpiNode for HostBridge<'_> {
    fn aml(&self) -> Box<dyn Aml + '_> {
        let number = self.segment.number;
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
        let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
        let uid = Name::new("_UID".into(), &number);
        let seg = Name::new("_SEG".into(), &number);
        let bbn = Name::new("_BBN".into(), &ZERO);
        let cca = Name::new("_CCA".into(), &ONE);
        let pxm = self
            .segment
            .numa_node
            .map(|node| Pxm(ProximityDomain(node)));
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&self.windows]));
        let prt = (!self.segment.intx.is_empty())
            .then(|| Name::new("_PRT".into(), &interrupt_routes(&self.segment.intx)));
        let slots = self.slots();

        let mut children: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &seg, &bbn, &cca];
        children.extend(pxm.as_ref().map(|pxm| pxm as &dyn Aml));
        children.push(&crs);
        children.extend(prt.as_ref().map(|prt| prt as &dyn Aml));
        children.extend([&OsCapabilities as &dyn Aml, &BootConfiguration, &slots]);
        let path = name(numbered(b'P', BRIDGE_NAMES | u32::from(number)));
        Encoded::boxed(&Device::new(path, children))
    }
}

/// How a function's driver is told its nodes: by everyone's names and, if it is NVIDIA's, by theirs.
fn node_properties(function: &FunctionPlan) -> Result<Option<DeviceProperties>, EncodeError> {
    let Some(nodes) = function.nodes.as_ref().filter(|nodes| nodes.dsd) else {
        return Ok(None);
    };
    let ids: Vec<_> = nodes.ids.iter().copied().map(ProximityDomain).collect();
    let range = NodeRange::new(&ids).map_err(|source| EncodeError::Nodes {
        id: function.id.clone(),
        source,
    })?;
    let mut names = vec![NodeRangeKeys::DEV_MEM];
    if function.facts.identity.vendor == VENDOR_NVIDIA {
        names.push(NodeRangeKeys::NVIDIA_GPU_MEM);
    }
    names
        .into_iter()
        .try_fold(DeviceProperties::new(), |properties, names| {
            properties.with_nodes(names, range)
        })
        .map(Some)
        .map_err(|source| EncodeError::Properties {
            id: function.id.clone(),
            source,
        })
}

/// `_ADR` of function 0 of a device (ACPI 6.5, table 6.2).
fn slot_address(device: u8) -> u32 {
    u32::from(device) << 16
}

/// A slot of which nothing is to be said. Written out, because there are 31 for each segment and the
/// general encoder allocates for each.
fn plain_slot(device: u8) -> [u8; 17] {
    // DeviceOp with its prefix, a PkgLength of 15, a name; NameOp, `_ADR`, DWordPrefix
    // (ACPI 6.5, section 20.2).
    let mut term = *b"\x5b\x82\x0fSxxx\x08_ADR\x0cxxxx";
    term[3..7].copy_from_slice(&numbered(b'S', device.into()));
    term[13..].copy_from_slice(&slot_address(device).to_le_bytes());
    term
}

/// `_PRT` (ACPI 6.5, section 6.2.13): the pins of all devices, hardwired.
fn interrupt_routes(lines: &[Gsi]) -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    let pins = (0..DEVICES).flat_map(|device| (0..PINS).map(move |pin| (device, pin)));
    for (device, pin) in pins {
        let turn = usize::from(device + pin) % lines.len().max(1);
        if let Some(gsi) = lines.get(turn) {
            routes.add_element(&route(device, pin, *gsi));
        }
    }
    routes
}

/// Package of address of all functions of a device, pin, source 0, and GSI.
fn route(device: u8, pin: u8, gsi: Gsi) -> Encoded {
    const PACKAGE: u8 = 0x12;
    const LENGTH_AT: usize = 1;
    const ELEMENTS: u8 = 4;
    const ALL_FUNCTIONS: u32 = 0xffff;

    let mut term = Vec::with_capacity(16);
    term.extend_from_slice(&[PACKAGE, 0, ELEMENTS]);
    (slot_address(device) | ALL_FUNCTIONS).to_aml_bytes(&mut term);
    pin.to_aml_bytes(&mut term);
    ZERO.to_aml_bytes(&mut term);
    gsi.to_aml_bytes(&mut term);
    // At most 15, with five bytes each for address and GSI.
    term[LENGTH_AT] = (term.len() - LENGTH_AT) as u8;
    Encoded(term)
}

/// What a host bridge passes on.
#[derive(Debug)]
struct Windows {
    config_ports: bool,
    /// First and last port.
    io: Option<(u16, u16)>,
    /// First and last address; none if the window is empty.
    mmio32: Option<(u32, u32)>,
    /// See `mmio32`.
    mmio64: Option<(u64, u64)>,
}

impl Windows {
    fn new(isa: Isa, segment: &SegmentPlan) -> Result<Self, EncodeError> {
        let SegmentPlan {
            number,
            ecam: _,
            mmio32,
            mmio64,
            io,
            intx: _,
            numa_node: _,
            functions: _,
        } = segment;
        let beyond = |space, window: &GpaRange| EncodeError::Window {
            segment: *number,
            space,
            window: *window,
        };
        let narrow = |window: &GpaRange| {
            let (base, size) = narrow(*window)?;
            Some((base, base + (size - 1)))
        };
        let wide = |window: &GpaRange| {
            let last = window.start.checked_add(window.size.checked_sub(1)?)?;
            Some((window.start, last))
        };
        let last_port = |window: &IoWindow| window.base.checked_add(window.size.checked_sub(1)?);
        Ok(Self {
            config_ports: isa == Isa::X86_64 && *number == 0,
            io: io
                .filter(|window| window.size > 0)
                .map(|window| {
                    let IoWindow { base, size } = window;
                    let last = last_port(&window).ok_or(EncodeError::IoWindow {
                        segment: *number,
                        base,
                        size,
                    })?;
                    Ok((base, last))
                })
                .transpose()?,
            mmio32: Some(mmio32)
                .filter(|window| window.size > 0)
                .map(|window| narrow(window).ok_or(beyond("32-bit", window)))
                .transpose()?,
            mmio64: Some(mmio64)
                .filter(|window| window.size > 0)
                .map(|window| wide(window).ok_or(beyond("64-bit", window)))
                .transpose()?,
        })
    }
}

impl Aml for Windows {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        AddressSpace::new_bus_number(0u16, 0u16).to_aml_bytes(sink);
        if self.config_ports {
            let (base, size) = CONFIG_PORTS;
            aml::IO::new(base, base, 1, size).to_aml_bytes(sink);
        }
        if let Some((first, last)) = self.io {
            AddressSpace::new_io(first, last, None).to_aml_bytes(sink);
        }
        if let Some((first, last)) = self.mmio32 {
            let cacheable = AddressSpaceCacheable::NotCacheable;
            AddressSpace::new_memory(cacheable, true, first, last, None).to_aml_bytes(sink);
        }
        if let Some((first, last)) = self.mmio64 {
            // Not prefetchable: Linux takes no BAR that is not prefetchable from such a window, and
            // all 64-bit BARs are in this one.
            let cacheable = AddressSpaceCacheable::Cacheable;
            AddressSpace::new_memory(cacheable, true, first, last, None).to_aml_bytes(sink);
        }
    }
}
