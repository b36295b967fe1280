//! Devices that have a place on PCI, of every kind: their names and their places.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::error::Problem;
use super::spelling::{Fallback, Key, Value};
use super::tree::MAX_PROBLEMS;
use super::{
    ConsoleConfig, DeviceConfig, DiskConfig, NetConfig, RngConfig, UserDeviceConfig, VmConfig,
    VsockConfig,
};

// These keys are the same for every kind of device; what an absent id means is not.
pub(super) const ID: Key = Key::new(
    "id",
    "id",
    Value::Typed("<name>"),
    "name of the device, for the API",
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

/// The highest number of a device on a segment; device 0 is the host bridge.
pub const MAX_PCI_DEVICE_ID: u8 = 31;

/// The longest name of a device, in characters.
const MAX_ID: usize = 256;

/// What generated names begin with: no other name may. Two underscores are the machine's own.
const GENERATED: [&str; 5] = ["__", "_vfio", "_disk", "_net", "_vsock"];

/// How a device is called that was given no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generated {
    /// This, and a number.
    Numbered(&'static str),
    /// This: there is one device of the kind at most.
    Alone(&'static str),
}

impl VmConfig {
    /// Names of all devices that have a place on PCI: those of `devices`, then those of
    /// `user_devices`, then those of `disks` and of `net`, each in the order of its list, then that of
    /// `rng`, that of `console` unless that is off, and that of `vsock`.
    ///
    /// A device without an id is `_vfio<n>`, `_vfio_user<n>`, `_disk<n>` or `_net<n>`, where `n` is its
    /// position in its list, from 0, or the next number that is free; `rng` is `__rng`, `console` is
    /// `__console`, and `vsock` is `_vsock0`. Others cannot be called so: an
    /// id may begin as generated names do only if it has the form of a generated name of its own
    /// list, as it does in a configuration that names were filled into.
    pub fn device_ids(&self) -> Vec<String> {
        let devices = devices(self).into_iter();
        devices.map(|device| device.name).collect()
    }

    /// Gives every device the name that it has in any case, see [`VmConfig::device_ids`], and every network
    /// interface an address: so they keep them when others come and go, and over all boots.
    pub fn name_devices(&mut self) {
        let names = self.device_ids();
        for (id, name) in self.ids_mut().zip(names) {
            id.get_or_insert(name);
        }
        self.net.iter_mut().for_each(NetConfig::choose_mac);
    }

    /// Takes the device of that name out.
    ///
    /// # Returns
    /// Whether there was one.
    pub fn remove_device(&mut self, name: &str) -> bool {
        self.name_devices();
        let before = self.ids_mut().count();
        let is_other = |id: &Option<String>| id.as_deref() != Some(name);
        self.devices.retain(|device| is_other(&device.id));
        self.user_devices.retain(|device| is_other(&device.id));
        self.disks.retain(|disk| is_other(&disk.id));
        self.net.retain(|net| is_other(&net.id));
        self.rng.take_if(|rng| !is_other(&rng.id));
        self.console.take_if(|console| !is_other(&console.id));
        self.vsock.take_if(|vsock| !is_other(&vsock.id));
        self.ids_mut().count() < before
    }

    /// In the order of [`VmConfig::device_ids`].
    fn ids_mut(&mut self) -> impl Iterator<Item = &mut Option<String>> {
        let devices = self.devices.iter_mut().map(|device| &mut device.id);
        let user_devices = self.user_devices.iter_mut();
        devices
            .chain(user_devices.map(|device| &mut device.id))
            .chain(self.disks.iter_mut().map(|disk| &mut disk.id))
            .chain(self.net.iter_mut().map(|net| &mut net.id))
            .chain(self.rng.iter_mut().map(|rng| &mut rng.id))
            .chain(
                self.console
                    .iter_mut()
                    .filter(|console| console.is_there())
                    .map(|console| &mut console.id),
            )
            .chain(self.vsock.iter_mut().map(|vsock| &mut vsock.id))
    }
}

/// A device that has a place on PCI.
pub(super) struct PciDevice<'a> {
    /// The option that gave it, for messages.
    pub(super) option: String,
    /// The name that it was given.
    id: Option<&'a str>,
    /// The name that it has in any case.
    pub(super) name: String,
    generated: Generated,
    pci_segment: u16,
    pci_device_id: Option<u8>,
}

/// All devices that have a place on PCI, in the order of [`VmConfig::device_ids`].
pub(super) fn devices(config: &VmConfig) -> Vec<PciDevice<'_>> {
    let VmConfig {
        cpus: _,
        memory: _,
        payload: _,
        serial: _,
        // None of these has a place on PCI.
        debug_console: _,
        platform: _,
        numa: _,
        devices,
        user_devices,
        rate_limit_groups: _,
        disks,
        net,
        rng,
        console,
        vsock,
        pci_segments: _,
    } = config;
    let console = console.iter().filter(|console| console.is_there());
    let devices = devices.iter().map(of_the_host);
    let mut devices: Vec<PciDevice<'_>> = devices
        .chain(user_devices.iter().map(of_a_process))
        .chain(disks.iter().map(of_disk))
        .chain(net.iter().map(of_net))
        .chain(rng.iter().map(of_entropy))
        .chain(console.map(of_console))
        .chain(vsock.iter().map(of_sockets))
        .collect();
    give_names(&mut devices);
    devices
}

fn of_the_host(device: &DeviceConfig) -> PciDevice<'_> {
    let DeviceConfig {
        path: _,
        iommu: _,
        id,
        pci_segment,
        pci_device_id,
        x_exclude_mmap_bars: _,
        guest_numa_ids: _,
        generic_initiator: _,
        x_allow_noncacheable: _,
    } = device;
    PciDevice {
        option: device.option(),
        id: id.as_deref(),
        name: String::new(),
        generated: Generated::Numbered("_vfio"),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
    }
}

fn of_a_process(device: &UserDeviceConfig) -> PciDevice<'_> {
    let UserDeviceConfig {
        socket: _,
        id,
        pci_segment,
        pci_device_id,
        guest_numa_ids: _,
        generic_initiator: _,
    } = device;
    PciDevice {
        option: device.option(),
        id: id.as_deref(),
        name: String::new(),
        generated: Generated::Numbered("_vfio_user"),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
    }
}

fn of_disk(disk: &DiskConfig) -> PciDevice<'_> {
    let DiskConfig {
        path: _,
        readonly: _,
        direct: _,
        num_queues: _,
        queue_size: _,
        rate_limiter_config: _,
        rate_limit_group: _,
        id,
        serial: _,
        pci_segment,
        pci_device_id,
        queue_affinity: _,
        backing_files: _,
        sparse: _,
        image_type: _,
        lock_granularity: _,
    } = disk;
    PciDevice {
        option: disk.option(),
        id: id.as_deref(),
        name: String::new(),
        generated: Generated::Numbered("_disk"),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
    }
}

fn of_net(net: &NetConfig) -> PciDevice<'_> {
    let NetConfig {
        tap: _,
        ip: _,
        mask: _,
        mac: _,
        host_mac: _,
        mtu: _,
        fds: _,
        num_queues: _,
        queue_size: _,
        offload_csum: _,
        offload_tso: _,
        offload_ufo: _,
        rate_limiter_config: _,
        id,
        pci_segment,
        pci_device_id,
    } = net;
    PciDevice {
        option: net.option(),
        id: id.as_deref(),
        name: String::new(),
        generated: Generated::Numbered("_net"),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
    }
}

fn of_entropy(rng: &RngConfig) -> PciDevice<'_> {
    let RngConfig {
        src: _,
        id,
        pci_segment,
        pci_device_id,
    } = rng;
    PciDevice {
        option: rng.option(),
        id: id.as_deref(),
        name: String::new(),
        generated: Generated::Alone("__rng"),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
    }
}

fn of_console(console: &ConsoleConfig) -> PciDevice<'_> {
    let ConsoleConfig {
        mode: _,
        file: _,
        socket: _,
        id,
        pci_segment,
        pci_device_id,
    } = console;
    PciDevice {
        option: console.option(),
        id: id.as_deref(),
        name: String::new(),
        generated: Generated::Alone("__console"),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
    }
}

fn of_sockets(vsock: &VsockConfig) -> PciDevice<'_> {
    let VsockConfig {
        cid: _,
        socket: _,
        id,
        pci_segment,
        pci_device_id,
    } = vsock;
    PciDevice {
        option: vsock.option(),
        id: id.as_deref(),
        name: String::new(),
        generated: Generated::Numbered("_vsock"),
        pci_segment: *pci_segment,
        pci_device_id: *pci_device_id,
    }
}

/// Gives each device the name that it has in any case.
fn give_names(devices: &mut [PciDevice<'_>]) {
    let taken: BTreeSet<&str> = devices.iter().filter_map(|device| device.id).collect();
    // Of each list how many devices there were, and the next number that may be free.
    let mut lists: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for device in devices {
        let prefix = match device.generated {
            Generated::Numbered(prefix) => prefix,
            Generated::Alone(name) => {
                device.name = device.id.unwrap_or(name).to_owned();
                continue;
            }
        };
        let (position, free) = lists.entry(prefix).or_default();
        let at = *position;
        *position += 1;
        if let Some(id) = device.id {
            device.name = id.to_owned();
            continue;
        }
        *free = at.max(*free);
        device.name = loop {
            let name = format!("{prefix}{free}");
            *free += 1;
            if !taken.contains(name.as_str()) {
                break name;
            }
        };
    }
}

/// Adds what is wrong with names and places of devices to `problems`. A flood of problems is cut
/// off: each may repeat a long path.
pub(super) fn validate(config: &VmConfig, problems: &mut Vec<Problem>) {
    let devices = devices(config);
    let mut names = BTreeSet::new();
    for device in &devices {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        let PciDevice { option, id, .. } = device;
        let Some(id) = id else {
            continue;
        };
        let reason = match device.generated.id_fault(id) {
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
}

impl Generated {
    /// What is wrong with the id of a device whose generated names have this form, if anything is.
    fn id_fault(self, id: &str) -> Option<String> {
        let length = id.chars().count();
        let reserved = GENERATED.iter().find(|prefix| id.starts_with(**prefix));
        if id.is_empty() {
            Some("must not be empty; without id= the device is given a name".to_owned())
        } else if length > MAX_ID {
            Some(format!(
                "has {length} characters; at most {MAX_ID} are allowed"
            ))
        } else if id.contains(char::is_control) {
            Some("must not contain control characters".to_owned())
        } else {
            let prefix = reserved.filter(|_| !self.is_one(id))?;
            Some(format!(
                "names that begin with {prefix} are generated; only {self} is allowed here"
            ))
        }
    }

    fn is_one(self, id: &str) -> bool {
        match self {
            Self::Alone(name) => id == name,
            // Without leading zeros and signs, which no generated name has.
            Self::Numbered(prefix) => id.strip_prefix(prefix).is_some_and(|number| {
                let parsed: Option<u32> = number.parse().ok();
                parsed.is_some_and(|parsed| parsed.to_string() == number)
            }),
        }
    }
}

impl fmt::Display for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbered(prefix) => write!(f, "{prefix}<number>"),
            Self::Alone(name) => f.write_str(name),
        }
    }
}

/// Whether segment 0 has room for one more device.
pub(super) fn has_room(config: &VmConfig) -> bool {
    let devices = devices(config).into_iter();
    let count = devices.filter(|device| device.pci_segment == 0).count();
    count < usize::from(MAX_PCI_DEVICE_ID)
}

/// Our device trees have no PCI.
fn validate_without_acpi(
    config: &VmConfig,
    devices: &[PciDevice<'_>],
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
fn validate_places(config: &VmConfig, devices: &[PciDevice<'_>], problems: &mut Vec<Problem>) {
    let mut places: BTreeMap<(u16, u8), &str> = BTreeMap::new();
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for device in devices {
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        let PciDevice {
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
