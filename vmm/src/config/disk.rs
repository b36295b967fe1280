//! `--disk`: a disk that the guest is given.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cpus::MAX_HOST_CPUS;
use super::error::Problem;
use super::rate_limiter::{self, RateLimiterConfig};
use super::schema::{self, DeviceName, DiskSerial, GroupName, HostPath};
use super::spelling::{Fallback, Key, NotYet, Spelling, Value, word_of};
use super::tree::MAX_PROBLEMS;
use super::validate::path_fault;
use super::{VmConfig, places};

/// How `--disk` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "DiskConfig",
    about: "A disk (virtio-blk); may be given several times",
    bare: None,
    keys: &[
        Key::new(
            "path",
            "path",
            Value::Typed("<path>"),
            "its image: a file or a block device",
        )
        .or(Fallback::Required),
        Key::new(
            "readonly",
            "readonly",
            Value::Switch,
            "let the guest read it only",
        )
        .or(Fallback::Value("off")),
        Key::new(
            "direct",
            "direct",
            Value::Switch,
            "keep it out of the host's page cache (O_DIRECT)",
        )
        .or(Fallback::Value("off")),
        Key::new(
            "num_queues",
            "num_queues",
            Value::Typed("<count>"),
            "request queues, at most one for each vCPU at boot",
        )
        .or(Fallback::Value("1")),
        Key::new(
            "queue_size",
            "queue_size",
            Value::Typed("<count>"),
            "descriptors in each queue, a power of two",
        )
        .or(Fallback::Value("128")),
        Key::new(
            "queue_affinity",
            "queue_affinity",
            Value::Typed("[<queue>@[<host cpus>],...]"),
            "host CPUs that work for a queue",
        )
        .or(Fallback::Absent("any")),
        rate_limiter::BW_SIZE,
        rate_limiter::BW_ONE_TIME_BURST,
        rate_limiter::BW_REFILL_TIME,
        rate_limiter::OPS_SIZE,
        rate_limiter::OPS_ONE_TIME_BURST,
        rate_limiter::OPS_REFILL_TIME,
        Key::new(
            "rate_limit_group",
            "rate_limit_group",
            Value::Typed("<name>"),
            "limits of a --rate-limit-group, instead of its own",
        )
        .or(Fallback::Absent("none")),
        places::ID.or(Fallback::Absent("_disk0, _disk1 and so on")),
        Key::new(
            "serial",
            "serial",
            Value::Typed("<text>"),
            "serial number, at most 20 characters",
        )
        .or(Fallback::Absent("made from what the image is")),
        places::PCI_SEGMENT,
        places::PCI_DEVICE_ID,
        Key::new(
            "image_type",
            "image_type",
            Value::Typed("raw|qcow2"),
            "what the image is; where its first bytes have to tell, sector 0 of a raw one can only be \
             read, so that a guest cannot make it a qcow2 image that names files of the host",
        )
        .or(Fallback::Absent("what its first bytes say")),
        Key::new(
            "backing_files",
            "backing_files",
            Value::Switch,
            "open the files that a qcow2 image is based on, which can be any that its header names",
        )
        .or(Fallback::Value("off")),
        Key::new(
            "sparse",
            "sparse",
            Value::Switch,
            "give the host back what the guest discards",
        )
        .or(Fallback::Value("on")),
        Key::new(
            "lock_granularity",
            "lock_granularity",
            Value::Typed("byte-range|full"),
            "what of the image is locked against other programs: its bytes, or the file as a whole",
        )
        .or(Fallback::Value("byte-range")),
    ],
    not_yet: &[
        NotYet::both("iommu")
            .unless_text("off")
            .unless_json("false"),
        NotYet::both("vhost_user")
            .unless_text("off")
            .unless_json("false"),
        NotYet::named("socket", "vhost_socket"),
    ],
};

/// What an image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ImageType {
    /// A VHD image of fixed size; there is no support for it yet.
    FixedVhd,
    /// A qcow2 image.
    Qcow2,
    /// The bytes of the disk.
    Raw,
    /// A VHDX image; there is no support for it yet.
    Vhdx,
    /// What its first bytes say. A guest writes those of a raw image, and could make it anything: so
    /// sector 0 of an image that is found to be raw can only be read, as in Cloud Hypervisor.
    #[default]
    Unknown,
}

/// What of an image is locked against other programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum LockGranularity {
    /// Its bytes.
    #[default]
    ByteRange,
    /// The file as a whole, whatever its size becomes.
    Full,
}

/// Where the work for a queue is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtQueueAffinity {
    /// The queue, from 0.
    #[schema(maximum = 254)]
    pub queue_index: u16,
    /// Host CPUs, as the host's kernel numbers them.
    #[schema(min_items = 1, maximum = 8191)]
    pub host_cpus: Vec<u32>,
}

/// A disk that the guest is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its image: a file or a block device.
    #[schema(value_type = HostPath)]
    pub path: PathBuf,
    /// Whether the guest may only read it.
    #[serde(default)]
    #[schema(default = bool::default)]
    pub readonly: bool,
    /// Whether it is kept out of the host's page cache.
    #[serde(default)]
    #[schema(default = bool::default)]
    pub direct: bool,
    /// Request queues, at most one for each vCPU at boot.
    #[serde(default = "default_num_queues")]
    #[schema(default = default_num_queues, minimum = 1, maximum = 255)]
    pub num_queues: u16,
    /// Descriptors in each queue, a power of two.
    #[serde(default = "default_queue_size")]
    #[schema(default = default_queue_size, minimum = 4, maximum = 32768)]
    pub queue_size: u16,
    /// How much may be moved; a disk with `rate_limit_group` has no limits of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// The group of `rate_limit_groups` whose limits it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<GroupName>)]
    pub rate_limit_group: Option<String>,
    /// Its name; without it the disk is given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DeviceName>)]
    pub id: Option<String>,
    /// Its serial number; without it, one is made from what the image is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DiskSerial>)]
    pub serial: Option<String>,
    /// The PCI segment that the guest finds it on.
    #[serde(default)]
    #[schema(default = u16::default, maximum = 95)]
    pub pci_segment: u16,
    /// Its device number there, 1 to 31, and 0 on segments other than 0; without it, any that is free
    /// but 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 31)]
    pub pci_device_id: Option<u8>,
    /// Where the work for its queues is done; a queue that is not named is served anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue_affinity: Vec<VirtQueueAffinity>,
    /// Whether the files that a qcow2 image is based on are opened.
    #[serde(default)]
    #[schema(default = bool::default)]
    pub backing_files: bool,
    /// Whether the host is given back what the guest discards.
    #[serde(default = "yes")]
    #[schema(default = yes)]
    pub sparse: bool,
    /// What the image is.
    #[serde(default)]
    #[schema(schema_with = schema::image_type)]
    pub image_type: ImageType,
    /// What of the image is locked against other programs.
    #[serde(default)]
    #[schema(default = LockGranularity::default)]
    pub lock_granularity: LockGranularity,
}

/// Sizes that a queue can have: a request takes three descriptors (Virtio 1.3, section 5.2.6), sizes
/// are powers of two, and 32768 is the largest (section 2.7).
const QUEUE_SIZES: RangeInclusive<u16> = 4..=32768;

/// Bytes of a serial number (Virtio 1.3, section 5.2.6: `VIRTIO_BLK_T_GET_ID`).
const MAX_SERIAL: usize = 20;

fn default_num_queues() -> u16 {
    1
}

fn default_queue_size() -> u16 {
    128
}

fn yes() -> bool {
    true
}

/// Adds what is wrong with disks to `problems`, except for their names and places. A flood of problems
/// is cut off: each may repeat a long path.
pub(super) fn validate(config: &VmConfig, problems: &mut Vec<Problem>) {
    let groups = config.rate_limit_groups.iter();
    let groups: BTreeSet<&str> = groups.map(|group| group.id.as_str()).collect();
    for disk in &config.disks {
        if problems.len() >= MAX_PROBLEMS {
            return;
        }
        disk.validate(config.cpus.boot_vcpus, &groups, problems);
    }
}

impl DiskConfig {
    /// The option that gave it, for messages.
    pub(crate) fn option(&self) -> String {
        format!("--disk path={}", self.path.display())
    }

    fn validate(&self, vcpus: u32, groups: &BTreeSet<&str>, problems: &mut Vec<Problem>) {
        let Self {
            path,
            readonly: _,
            direct: _,
            num_queues,
            queue_size,
            rate_limiter_config,
            rate_limit_group,
            id: _,
            serial,
            pci_segment: _,
            pci_device_id: _,
            queue_affinity: _,
            backing_files: _,
            sparse: _,
            image_type,
            lock_granularity: _,
        } = self;
        let option = self.option();
        let mut invalid = |value: String, reason: String| {
            problems.push(Problem::invalid(format_args!("{option}{value}"), reason));
        };
        if let Some(reason) = path_fault(path) {
            invalid(String::new(), reason.to_owned());
        }
        if *num_queues == 0 || u32::from(*num_queues) > vcpus {
            let reason = format!("must be 1 to the number of vCPUs at boot, --cpus boot={vcpus}");
            invalid(format!(",num_queues={num_queues}"), reason);
        }
        if !QUEUE_SIZES.contains(queue_size) || !queue_size.is_power_of_two() {
            let (least, most) = QUEUE_SIZES.into_inner();
            let reason = format!("must be a power of two from {least} to {most}");
            invalid(format!(",queue_size={queue_size}"), reason);
        }
        if let Some(group) = rate_limit_group {
            let value = format!(",rate_limit_group={group}");
            if !groups.contains(group.as_str()) {
                let reason = "there is no such group; declare it with --rate-limit-group";
                invalid(value, reason.to_owned());
            } else if rate_limiter_config.is_some() {
                let reason = "the disk has limits of its own; drop one of the two";
                invalid(value, reason.to_owned());
            }
        }
        if let Some(serial) = serial
            && let Some(reason) = serial_fault(serial)
        {
            invalid(format!(",serial={serial}"), reason);
        }
        match image_type {
            ImageType::Raw | ImageType::Qcow2 | ImageType::Unknown => {}
            ImageType::FixedVhd | ImageType::Vhdx => {
                problems.push(Problem::NotYet(format!("{option},image_type={image_type}")));
            }
        }
        self.validate_affinity(problems);
    }

    fn validate_affinity(&self, problems: &mut Vec<Problem>) {
        let mut named = BTreeSet::new();
        for affinity in &self.queue_affinity {
            let VirtQueueAffinity {
                queue_index,
                host_cpus,
            } = affinity;
            let reason = if *queue_index >= self.num_queues {
                let count = self.num_queues;
                format!("there is no queue {queue_index}; they are 0 to num_queues={count} - 1")
            } else if !named.insert(*queue_index) {
                format!("queue {queue_index} is named twice")
            } else if host_cpus.is_empty() {
                format!("queue {queue_index} needs at least one host CPU")
            } else if let Some(cpu) = host_cpus.iter().find(|cpu| **cpu >= MAX_HOST_CPUS) {
                format!("no host has a CPU {cpu}; the last is {}", MAX_HOST_CPUS - 1)
            } else {
                continue;
            };
            let at = format!("{},queue_affinity=[{queue_index}@...]", self.option());
            problems.push(Problem::invalid(at, reason));
            // One fault says enough of a list that may be long.
            return;
        }
    }
}

/// What is wrong with a serial number, if anything is.
fn serial_fault(serial: &str) -> Option<String> {
    let length = serial.len();
    if serial.is_empty() {
        Some("must not be empty; without serial= the disk is given one".to_owned())
    } else if length > MAX_SERIAL {
        Some(format!(
            "has {length} bytes; at most {MAX_SERIAL} are allowed"
        ))
    } else {
        let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        let reason = "must be ASCII without control characters";
        (!serial.bytes().all(printable)).then(|| reason.to_owned())
    }
}

impl fmt::Display for ImageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = format!("{self:?}");
        f.write_str(&word_of("ImageType", &variant).unwrap_or(variant))
    }
}
