//! What only passed-through devices have, of either kind: a source that cannot be had twice, and NUMA
//! nodes.

use std::collections::BTreeSet;
use std::path::Path;

use super::device_nodes::{GenericInitiator, GuestNumaIds};
use super::error::Problem;
use super::places::{self, PciDevice};
use super::spelling::{Fallback, Key, Value};
use super::tree::MAX_PROBLEMS;
use super::{DeviceConfig, UserDeviceConfig, VmConfig};

// These keys are the same for both kinds of devices; what an absent id means is not.
pub(super) const ID: Key = Key {
    help: "name of the device, for --numa and the API",
    ..places::ID
};
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

/// A passed-through device of either kind.
pub(super) struct Passthrough<'a> {
    /// The option that gave it, for messages.
    pub(super) option: String,
    /// The name that it has in any case.
    pub(super) name: String,
    pub(super) guest_numa_ids: Option<&'a GuestNumaIds>,
    pub(super) generic_initiator: GenericInitiator,
    /// What it is behind, which cannot be had twice.
    source: &'a Path,
}

/// What a passed-through device has beside a name and a place.
struct Behind<'a> {
    guest_numa_ids: Option<&'a GuestNumaIds>,
    generic_initiator: GenericInitiator,
    source: &'a Path,
}

/// All passed-through devices, in the order of [`VmConfig::device_ids`], where they come first.
pub(super) fn devices(config: &VmConfig) -> Vec<Passthrough<'_>> {
    let hosts = config.devices.iter().map(of_the_host);
    let behind = hosts.chain(config.user_devices.iter().map(of_a_process));
    let devices = places::devices(config).into_iter().zip(behind);
    devices
        .map(|(PciDevice { option, name, .. }, behind)| {
            let Behind {
                guest_numa_ids,
                generic_initiator,
                source,
            } = behind;
            Passthrough {
                option,
                name,
                guest_numa_ids,
                generic_initiator,
                source,
            }
        })
        .collect()
}

fn of_the_host(device: &DeviceConfig) -> Behind<'_> {
    let DeviceConfig {
        path,
        iommu: _,
        id: _,
        pci_segment: _,
        pci_device_id: _,
        x_exclude_mmap_bars: _,
        guest_numa_ids,
        generic_initiator,
        x_allow_noncacheable: _,
    } = device;
    Behind {
        guest_numa_ids: guest_numa_ids.as_ref(),
        generic_initiator: *generic_initiator,
        source: path,
    }
}

fn of_a_process(device: &UserDeviceConfig) -> Behind<'_> {
    let UserDeviceConfig {
        socket,
        id: _,
        pci_segment: _,
        pci_device_id: _,
        guest_numa_ids,
        generic_initiator,
    } = device;
    Behind {
        guest_numa_ids: guest_numa_ids.as_ref(),
        generic_initiator: *generic_initiator,
        source: socket,
    }
}

/// Adds what is wrong with the passed-through devices of a configuration to `problems`, except for
/// their names, places and NUMA nodes. A flood of problems is cut off: each may repeat a long path.
pub(super) fn validate(config: &VmConfig, problems: &mut Vec<Problem>) {
    for device in &config.devices {
        device.validate(problems);
    }
    for device in &config.user_devices {
        device.validate(problems);
    }
    let mut sources = BTreeSet::new();
    for device in devices(config) {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        if !sources.insert(device.source) {
            let reason = "is given twice; a device can be passed through once";
            problems.push(Problem::invalid(device.option, reason));
        }
    }
    validate_memory(config, problems);
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
