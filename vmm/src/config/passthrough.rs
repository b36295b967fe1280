//! What is the same for passed-through devices of every kind: names and places.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::device_nodes::{GenericInitiator, GuestNumaIds};
use super::error::Problem;
use super::spelling::{Fallback, Key, Value};
use super::tree::MAX_PROBLEMS;
use super::{DeviceConfig, UserDeviceConfig, VmConfig};

// These keys are the same for every kind of device; what an absent id means is not.
pub(super) const ID: Key = Key::new(
    "id",
    "id",
    Value::Typed("<name>"),
    "name of the device, for --numa and the API",
);
pub(super) const PCI_SEGMENT: Key = Key::new(
    "pci_segment",
    "pci_segment",
    Value::Typed("<segment>"),
    "PCI segment that the guest finds it on",
)
.or(Fallback::Value("0"));
pub(super) const PCI_DEVICE_ID: Key = Key::new(
    "pci_device_id",
    "pci_device_id",
    Value::Typed("<number>"),
    "its device number there, 1 to 31; on segments other than 0 also 0, which is the host bridge's \
     otherwise",
)
.or(Fallback::Absent("a free one"));
pub(super) const GUEST_NUMA_IDS: Key = Key::new(
    "guest_numa_ids",
    "guest_numa_ids",
    Value::Typed("[<nodes>]|auto[:<count>]"),
    "NUMA nodes of the guest that its memory may use, as in [2-9]; auto makes new ones behind those of \
     --numa, 8 or as many as it says",
)
.or(Fallback::Absent("none"));
pub(super) const GENERIC_INITIATOR: Key = Key::new(
    "generic_initiator",
    "generic_initiator",
    Value::Typed("auto|on|off|only"),
    "ACPI generic initiators that tell the guest which nodes are the device's own: on is beside the \
     _DSD, only is without it, off is the _DSD alone",
)
.or(Fallback::Value("auto"));

/// The highest number of a device on a segment; device 0 is the host bridge.
pub const MAX_PCI_DEVICE_ID: u8 = 31;

/// The longest name of a device, in characters.
const MAX_ID: usize = 256;

/// What generated names begin with: no other name may.
const GENERATED: &str = "_vfio";

impl VmConfig {
    /// Names of all passed-through devices: those of `devices`, then those of `user_devices`, each
    /// in the order of its list.
    ///
    /// A device without an id is `_vfio<n>` or `_vfio_user<n>`, where `n` is its position in its
    /// list, from 0, or the next number that is free. Others cannot be called so: an id may begin
    /// with `_vfio` only if it has the form of a generated name of its own list, as it does in a
    /// configuration that names were filled into.
    pub fn device_ids(&self) -> Vec<String> {
        let devices = devices(self).into_iter();
        devices.map(|device| device.name).collect()
    }
}

impl VmConfig {
    /// Gives every passed-through device the name that it has in any case, see
    /// [`VmConfig::device_ids`]: so it keeps it when others come and go.
    pub fn name_devices(&mut self) {
        let names = self.device_ids();
        for (id, name) in self.ids_mut().zip(names) {
            id.get_or_insert(name);
        }
    }

    /// Takes the passed-through device of that name out.
    ///
    /// # Returns
    /// Whether there was one.
    pub fn remove_device(&mut self, name: &str) -> bool {
        self.name_devices();
        let before = self.devices.len() + self.user_devices.len();
        let is_other = |id: &Option<String>| id.as_deref() != Some(name);
        self.devices.retain(|device| is_other(&device.id));
        self.user_devices.retain(|device| is_other(&device.id));
        self.devices.len() + self.user_devices.len() < before
    }

    /// In the order of [`VmConfig::device_ids`].
    fn ids_mut(&mut self) -> impl Iterator<Item = &mut Option<String>> {
        let devices = self.devices.iter_mut().map(|device| &mut device.id);
        let user_devices = self.user_devices.iter_mut();
        devices.chain(user_devices.map(|device| &mut device.id))
    }
}

/// A passed-through device of any kind.
pub(super) struct Passthrough<'a> {
    /// The option that gave it, for messages.
    pub(super) option: String,
    /// The name that it was given.
    pub(super) id: Option<&'a str>,
    /// The name that it has in any case.
    pub(super) name: String,
    pub(super) pci_segment: u16,
    pub(super) pci_device_id: Option<u8>,
    pub(super) guest_numa_ids: Option<&'a GuestNumaIds>,
    pub(super) generic_initiator: GenericInitiator,
    /// What generated names of its list begin with, before the number.
    prefix: &'static str,
    /// What it is behind, which cannot be had twice.
    source: &'a Path,
}

/// All passed-through devices, in the order of [`VmConfig::device_ids`].
pub(super) fn devices(config: &VmConfig) -> Vec<Passthrough<'_>> {
    let devices = config.devices.iter().map(of_the_host);
    let mut devices: Vec<Passthrough<'_>> = devices.collect();
    devices.extend(config.user_devices.iter().map(of_a_process));
    let taken: BTreeSet<&str> = devices.iter().filter_map(|device| device.id).collect();
    let (hosts, others) = devices.split_at_mut(config.devices.len());
    for list in [hosts, others] {
        let mut free = 0;
        for (position, device) in list.iter_mut().enumerate() {
            if let Some(id) = device.id {
                device.name = id.to_owned();
                continue;
            }
            free = free.max(position);
            device.name = loop {
                let name = format!("{}{free}", device.prefix);
                free += 1;
                if !taken.contains(name.as_str()) {
                    break name;
                }
            };
        }
    }
    devices
}

fn of_the_host(device: &DeviceConfig) -> Passthrough<'_> {
    let DeviceConfig {
        path,
        iommu: _,
        id,
        pci_segment,
        pci_device_id,
        x_exclude_mmap_bars: _,
        guest_numa_ids,
        generic_initiator,
        x_allow_noncacheable: _,
    } = device;
    Passthrough {
        option: device.option(),
        id: id.as_deref(),
        name: String::new(),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
        guest_numa_ids: guest_numa_ids.as_ref(),
        generic_initiator: *generic_initiator,
        prefix: "_vfio",
        source: path,
    }
}

fn of_a_process(device: &UserDeviceConfig) -> Passthrough<'_> {
    let UserDeviceConfig {
        socket,
        id,
        pci_segment,
        pci_device_id,
        guest_numa_ids,
        generic_initiator,
    } = device;
    Passthrough {
        option: device.option(),
        id: id.as_deref(),
        name: String::new(),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
        guest_numa_ids: guest_numa_ids.as_ref(),
        generic_initiator: *generic_initiator,
        prefix: "_vfio_user",
        source: socket,
    }
}

/// Adds what is wrong with the passed-through devices of a configuration to `problems`, except for
/// their NUMA nodes. A flood of problems is cut off: each may repeat a long path.
pub(super) fn validate(config: &VmConfig, problems: &mut Vec<Problem>) {
    for device in &config.devices {
        device.validate(problems);
    }
    for device in &config.user_devices {
        device.validate(problems);
    }
    let devices = devices(config);
    let mut sources = BTreeSet::new();
    let mut names = BTreeSet::new();
    for device in &devices {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        let Passthrough { option, id, .. } = device;
        if !sources.insert(device.source) {
            let reason = "is given twice; a device can be passed through once";
            problems.push(Problem::invalid(option, reason));
        }
        let Some(id) = id else {
            continue;
        };
        let reason = match id_fault(id, device.prefix) {
            None if !names.insert(*id) => "another device has this id".to_owned(),
            None => continue,
            Some(reason) => reason,
        };
        problems.push(Problem::invalid(format_args!("{option},id={id}"), reason));
    }
    if !config.platform.acpi {
        validate_without_acpi(config, &devices, problems);
    }
    validate_places(config, &devices, problems);
    validate_memory(config, problems);
}

/// What is wrong with the id of a device whose list generates names with `prefix`, if anything is.
fn id_fault(id: &str, prefix: &str) -> Option<String> {
    let length = id.chars().count();
    let number = id.strip_prefix(prefix);
    // Without leading zeros and signs, which no generated name has.
    let generated = number.is_some_and(|number| {
        let parsed: Option<u32> = number.parse().ok();
        parsed.is_some_and(|parsed| parsed.to_string() == number)
    });
    if id.is_empty() {
        Some("must not be empty; without id= the device is given a name".to_owned())
    } else if length > MAX_ID {
        Some(format!(
            "has {length} characters; at most {MAX_ID} are allowed"
        ))
    } else if id.contains(char::is_control) {
        Some("must not contain control characters".to_owned())
    } else if id.starts_with(GENERATED) && !generated {
        Some(format!(
            "names that begin with {GENERATED} are generated; only {prefix}<number> is allowed here"
        ))
    } else {
        None
    }
}

/// Our device trees have no PCI.
fn validate_without_acpi(
    config: &VmConfig,
    devices: &[Passthrough<'_>],
    problems: &mut Vec<Problem>,
) {
    let segments = config.platform.num_pci_segments;
    let segments = (segments > 1).then(|| format!("--platform num_pci_segments={segments}"));
    let weights = config.pci_segments.iter();
    let weights = weights.map(|config| format!("--pci-segment pci_segment={}", config.pci_segment));
    let devices = devices.iter().map(|device| device.option.clone());
    let options = devices.chain(segments).chain(weights);
    problems.extend(options.take(MAX_PROBLEMS).map(|option| {
        Problem::invalid(
            option,
            "a guest with --platform acpi=off has no PCI yet; drop one of the two",
        )
    }));
}

/// Checks that every device has a place of its own.
fn validate_places(config: &VmConfig, devices: &[Passthrough<'_>], problems: &mut Vec<Problem>) {
    let mut places: BTreeMap<(u16, u8), &str> = BTreeMap::new();
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for device in devices {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        let Passthrough {
            option,
            name,
            pci_segment: segment,
            ..
        } = device;
        let mut invalid = |value: String, reason: String| {
            problems.push(Problem::invalid(format_args!("{option}{value}"), reason));
        };
        if let Some(reason) = config.platform.segment_fault(*segment) {
            invalid(format!(",pci_segment={segment}"), reason);
        }
        if let Some(number) = device.pci_device_id {
            let value = format!(",pci_segment={segment},pci_device_id={number}");
            // Systems look for a bridge at the very first place, and drivers for their device at 0.
            let least = u8::from(*segment == 0);
            if !(least..=MAX_PCI_DEVICE_ID).contains(&number) {
                let reason = format!(
                    "must be {least} to {MAX_PCI_DEVICE_ID}; device 0 of segment 0 is the host bridge"
                );
                invalid(value, reason);
            } else if let Some(other) = places.insert((*segment, number), name) {
                invalid(value, format!("device {other} is there already"));
            }
        }
        let count = counts.entry(*segment).or_default();
        *count += usize::from(device.pci_device_id != Some(0));
        if *count == usize::from(MAX_PCI_DEVICE_ID) + 1 {
            let reason = format!(
                "a segment has room for {MAX_PCI_DEVICE_ID} devices; use another, see --platform \
                 num_pci_segments"
            );
            invalid(format!(",pci_segment={segment}"), reason);
        }
    }
}

/// Checks that other processes can be given the guest's memory if they have to.
fn validate_memory(config: &VmConfig, problems: &mut Vec<Problem>) {
    if config.user_devices.is_empty() {
        return;
    }
    for zone in config.memory.as_zones() {
        if !zone.shared {
            let option = match config.memory.zones.is_empty() {
                true => "--memory".to_owned(),
                false => zone.option(),
            };
            let reason = "--user-device needs shared=on: the other process reaches memory through \
                          descriptors";
            problems.push(Problem::invalid(
                format_args!("{option} shared=off"),
                reason,
            ));
        }
    }
}
