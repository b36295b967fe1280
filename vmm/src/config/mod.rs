//! The configuration: what the user asks for.
//!
//! The types are the body of the REST API's `vm.create`, field for field. Two front ends read them:
//! JSON as serde's names say, and the command line as each type's [`spelling`] table says. Both go
//! through one [`tree`], so both report every problem at once, and neither takes the other's
//! spelling. [`VmConfig::validate`] holds for both.

pub mod cli;
mod console;
mod cpus;
mod device;
mod device_nodes;
mod disk;
mod error;
mod help;
mod json;
mod memory;
mod memory_zone;
mod net;
mod numa;
mod option_string;
mod passthrough;
mod payload;
mod pci_segment;
mod places;
mod platform;
mod rate_limiter;
mod rng;
mod schema;
mod spelling;
mod target;
mod tree;
mod user_device;
mod validate;
mod vsock;

#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use console::{
    ConsoleConfig, ConsoleMode, DEFAULT_DEBUG_CONSOLE_PORT, DebugConsoleConfig, SerialConfig,
};
pub use cpus::{
    CoreScheduling, CpuAffinity, CpuTopology, CpusConfig, DEFAULT_X86_PHYS_BITS, MAX_HOST_CPUS,
    MAX_VCPUS,
};
pub use device::DeviceConfig;
pub use device_nodes::{GenericInitiator, GuestNumaIds, MAX_DEVICE_NODES};
pub use disk::{DiskConfig, ImageType, LockGranularity, VirtQueueAffinity};
pub use error::{ConfigErrors, Problem};
pub use memory::{DEFAULT_MEMORY_SIZE, MemoryConfig};
pub use memory_zone::{BARE_ZONE, MemoryZoneConfig};
pub use net::NetConfig;
pub use numa::{AccessPerformance, MAX_NODE_ID, NumaConfig, NumaDistance, NumaInitiator};
pub use payload::PayloadConfig;
pub use pci_segment::PciSegmentConfig;
pub use places::MAX_PCI_DEVICE_ID;
pub use platform::{MAX_PCI_SEGMENTS, PlatformConfig};
pub use rate_limiter::{RateLimitGroupConfig, RateLimiterConfig, TokenBucket};
pub use rng::RngConfig;
pub use schema::complete_schema;
pub use target::Target;
pub use user_device::UserDeviceConfig;
pub use vsock::VsockConfig;

use spelling::{NotYet, Spelling};

/// A virtual machine, as the user asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The virtual CPUs.
    #[serde(default)]
    #[schema(default = CpusConfig::default)]
    pub cpus: CpusConfig,
    /// The guest's RAM.
    #[serde(default)]
    #[schema(default = MemoryConfig::default)]
    pub memory: MemoryConfig,
    /// What the guest boots.
    pub payload: PayloadConfig,
    /// The serial port.
    #[serde(default)]
    #[schema(default = SerialConfig::default)]
    pub serial: SerialConfig,
    /// The virtio console; without it the guest has one that is connected to the terminal, but none if
    /// the serial port has the terminal or the guest has no PCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// The debug console.
    #[serde(default)]
    #[schema(default = DebugConsoleConfig::default)]
    pub debug_console: DebugConsoleConfig,
    /// How the machine introduces itself to the guest.
    #[serde(default)]
    #[schema(default = PlatformConfig::default)]
    pub platform: PlatformConfig,
    /// NUMA nodes; without any the guest is not told of NUMA.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<NumaConfig>,
    /// Devices of the host that the guest is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceConfig>,
    /// Devices in other processes that the guest is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_devices: Vec<UserDeviceConfig>,
    /// Limits that several disks share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limit_groups: Vec<RateLimitGroupConfig>,
    /// Disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// The source of entropy; without it the guest has one that reads from `/dev/urandom`, unless it has
    /// no PCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rng: Option<RngConfig>,
    /// Sockets between guest and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// PCI segments whose shares of the address space are not the same as those of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pci_segments: Vec<PciSegmentConfig>,
}

impl VmConfig {
    /// Reads the body of `vm.create`. A member that is `null` counts as absent.
    ///
    /// # Errors
    /// The text is not JSON, or members are unknown, not supported yet, missing or of the wrong
    /// type: all of them. The values are for [`VmConfig::validate`] to check.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigErrors> {
        from_json(text).map(Self::completed)
    }

    /// The same with the devices that every guest is given unless others were asked for, if it can
    /// have any: a guest without PCI is given none. A serial port that has the terminal keeps it.
    fn completed(mut self) -> Self {
        if self.platform.acpi {
            self.rng.get_or_insert_default();
        }
        if self.console.is_none() {
            let can_be = self.platform.acpi
                && self.serial.mode != ConsoleMode::Tty
                && places::has_room(&self);
            self.console = Some(ConsoleConfig::of(match can_be {
                true => ConsoleMode::Tty,
                false => ConsoleMode::Off,
            }));
        }
        self
    }
}

/// Reads the body of a request, as [`VmConfig::from_json`] does.
///
/// # Errors
/// As there.
pub fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, ConfigErrors> {
    let mut problems = Vec::new();
    let value = tree::read(json::document(text)?, &mut problems);
    ConfigErrors::of(value, problems)
}

/// A type that one option has the fields of, by itself as well as in [`VmConfig`].
pub trait FromOption: DeserializeOwned {
    /// How the option is spelled.
    #[doc(hidden)]
    const SPELLING: &'static Spelling;

    /// Reads the value of such an option; `name` is what the option is called.
    ///
    /// # Errors
    /// Keys are unknown, not supported yet or missing, or else have values of the wrong form: all of
    /// them. What the values amount to is for [`VmConfig::validate`] to check.
    fn from_option(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        let mut problems = Vec::new();
        let tree = option_string::option(name, text, Self::SPELLING, &mut problems);
        // What is left of an option that is wrong would only be missed by more problems.
        if !problems.is_empty() {
            return ConfigErrors::of(None, problems);
        }
        let value = tree::read(tree, &mut problems);
        ConfigErrors::of(value, problems)
    }

    /// The keys with their forms and defaults, one a line, for `--help`.
    fn keys() -> String {
        help::keys(Self::SPELLING)
    }
}

impl FromOption for DeviceConfig {
    const SPELLING: &'static Spelling = &device::SPELLING;
}

impl FromOption for UserDeviceConfig {
    const SPELLING: &'static Spelling = &user_device::SPELLING;
}

impl FromOption for DiskConfig {
    const SPELLING: &'static Spelling = &disk::SPELLING;
}

impl FromOption for VsockConfig {
    const SPELLING: &'static Spelling = &vsock::SPELLING;
}

impl FromOption for NetConfig {
    const SPELLING: &'static Spelling = &net::SPELLING;
}

/// Reads a number as the command line writes it; `option` is what it was given for.
///
/// # Errors
/// It is none, or does not fit.
pub fn number(option: &str, text: &str) -> Result<u32, ConfigErrors> {
    option_string::number(text).map_err(|error| value_problem(option, text, error))
}

/// Reads bytes as the command line writes them, K, M, G and T included; `option` is what they were
/// given for.
///
/// # Errors
/// It is no size, or does not fit.
pub fn size(option: &str, text: &str) -> Result<u64, ConfigErrors> {
    option_string::bytes(text).map_err(|error| value_problem(option, text, error))
}

fn value_problem(option: &str, text: &str, error: tree::Error) -> ConfigErrors {
    Problem::invalid(format_args!("{option} {text}"), error).into()
}

/// An option whose keys are the fields of a type.
#[derive(Debug)]
struct Section {
    /// Name of the option.
    option: &'static str,
    /// Where its values go in [`VmConfig`].
    place: Place,
    /// Spelling of the field's type.
    spelling: &'static Spelling,
}

/// Where the values of an option go.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Into a field; the option may be given once.
    Field(&'static str),
    /// Into a list; the option may be given any number of times.
    List(&'static str),
    /// As `List`, in a field of a field.
    ListIn(&'static str, &'static str),
}

/// The options that have keys; [`payload::SPELLING`] has those that have none.
const SECTIONS: [Section; 16] = [
    Section {
        option: "cpus",
        place: Place::Field("cpus"),
        spelling: &cpus::SPELLING,
    },
    Section {
        option: "memory",
        place: Place::Field("memory"),
        spelling: &memory::SPELLING,
    },
    Section {
        option: "memory-zone",
        place: Place::ListIn("memory", "zones"),
        spelling: &memory_zone::SPELLING,
    },
    Section {
        option: "numa",
        place: Place::List("numa"),
        spelling: &numa::SPELLING,
    },
    Section {
        option: "device",
        place: Place::List("devices"),
        spelling: &device::SPELLING,
    },
    Section {
        option: "user-device",
        place: Place::List("user_devices"),
        spelling: &user_device::SPELLING,
    },
    Section {
        option: "disk",
        place: Place::List("disks"),
        spelling: &disk::SPELLING,
    },
    Section {
        option: "net",
        place: Place::List("net"),
        spelling: &net::SPELLING,
    },
    Section {
        option: "rate-limit-group",
        place: Place::List("rate_limit_groups"),
        spelling: &rate_limiter::SPELLING,
    },
    Section {
        option: "rng",
        place: Place::Field("rng"),
        spelling: &rng::SPELLING,
    },
    Section {
        option: "vsock",
        place: Place::Field("vsock"),
        spelling: &vsock::SPELLING,
    },
    Section {
        option: "pci-segment",
        place: Place::List("pci_segments"),
        spelling: &pci_segment::SPELLING,
    },
    Section {
        option: "serial",
        place: Place::Field("serial"),
        spelling: &console::SERIAL,
    },
    Section {
        option: "console",
        place: Place::Field("console"),
        spelling: &console::CONSOLE,
    },
    Section {
        option: "debug-console",
        place: Place::Field("debug_console"),
        spelling: &console::DEBUG_CONSOLE,
    },
    Section {
        option: "platform",
        place: Place::Field("platform"),
        spelling: &platform::SPELLING,
    },
];

/// Options of the whole machine that are not there yet.
const VM: Spelling = Spelling {
    type_name: "VmConfig",
    about: "A virtual machine",
    bare: None,
    keys: &[],
    not_yet: &[
        NotYet::both("balloon"),
        NotYet::both("fs"),
        NotYet::named("generic-vhost-user", "generic_vhost_user"),
        NotYet::field("iommu").unless_json("false"),
        NotYet::named("landlock", "landlock_enable").unless_json("false"),
        NotYet::named("landlock-rules", "landlock_rules"),
        NotYet::both("pmem"),
        NotYet::both("pvpanic").unless_json("false"),
        NotYet::option("restore"),
        NotYet::both("rtc"),
        NotYet::option("seccomp").unless_text("false"),
        NotYet::both("tpm"),
        NotYet::both("vdpa"),
        NotYet::both("watchdog").unless_json("false"),
    ],
};

/// The spelling of a type, by the name that serde knows it by.
fn spelling_of(type_name: &str) -> Option<&'static Spelling> {
    let sections = SECTIONS.iter().map(|section| section.spelling);
    sections
        .chain([&VM, &payload::SPELLING])
        .find(|spelling| spelling.type_name == type_name)
}

/// What separates the fields of a type that is written without keys, as a topology's
/// `threads:cores:dies:packages`.
fn separator_of(type_name: &str) -> Option<char> {
    match type_name {
        "CpuTopology" | "AccessPerformance" => Some(':'),
        "CpuAffinity" | "NumaDistance" | "NumaInitiator" | "VirtQueueAffinity" => Some('@'),
        _ => None,
    }
}
