//! `--net`: a network interface that the guest is given.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use devices::virtio::net::{HardwareAddress, InterfaceAddress};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::error::{ConfigErrors, Problem};
use super::rate_limiter::{self, RateLimiterConfig};
use super::schema::{DeviceName, InterfaceName, IpText, MacText};
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};
use super::tree::MAX_PROBLEMS;
use super::{VmConfig, places};

/// How `--net` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "NetConfig",
    about: "A network interface (virtio-net); may be given several times",
    bare: None,
    keys: &[
        Key::new(
            "tap",
            "tap",
            Value::Typed("<name>"),
            "the host's end: a tap, which is made if it is not there",
        )
        .or(Fallback::Absent("one that is made for it"))
        .or_empty(),
        Key::new(
            "ip",
            "ip",
            Value::Typed("<address>"),
            "IP address of the host's end",
        )
        .or(Fallback::Absent(
            "192.168.249.1 for a tap that is made, else what it has",
        ))
        .or_empty(),
        Key::new(
            "mask",
            "mask",
            Value::Typed("<mask>"),
            "network mask of that address",
        )
        .or(Fallback::Absent(
            "255.255.255.0, or ffff:ffff:ffff:ffff:: for IPv6",
        ))
        .or_empty(),
        Key::new(
            "mac",
            "mac",
            Value::Typed("<address>"),
            "MAC address of the guest's end",
        )
        .or(Fallback::Absent("a random one"))
        .or_empty(),
        Key::new(
            "host_mac",
            "host_mac",
            Value::Typed("<address>"),
            "MAC address of the host's end",
        )
        .or(Fallback::Absent("what it has"))
        .or_empty(),
        Key::new(
            "mtu",
            "mtu",
            Value::Typed("<bytes>"),
            "largest packet, for both ends",
        )
        .or(Fallback::Absent("that of the host's end, which the guest is not told")),
        Key::new(
            "fd",
            "fds",
            Value::Typed("[<descriptor>,...]"),
            "the host's end: a tap that whoever started this process has opened, a descriptor for each two \
             queues",
        )
        .or(Fallback::Absent("none")),
        Key::new(
            "num_queues",
            "num_queues",
            Value::Typed("<count>"),
            "queues, half of them for each direction; at most two for each vCPU at boot",
        )
        .or(Fallback::Value("2")),
        Key::new(
            "queue_size",
            "queue_size",
            Value::Typed("<count>"),
            "descriptors in each queue, a power of two",
        )
        .or(Fallback::Value("256")),
        Key::new(
            "offload_csum",
            "offload_csum",
            Value::Switch,
            "let either end leave checksums to the other; nothing can be left to it without",
        )
        .or(Fallback::Value("on")),
        Key::new(
            "offload_tso",
            "offload_tso",
            Value::Switch,
            "let either end leave the segmentation of TCP to the other",
        )
        .or(Fallback::Value("on")),
        Key::new(
            "offload_ufo",
            "offload_ufo",
            Value::Switch,
            "let either end leave the fragmentation of UDP to the other",
        )
        .or(Fallback::Value("on")),
        rate_limiter::BW_SIZE,
        rate_limiter::BW_ONE_TIME_BURST,
        rate_limiter::BW_REFILL_TIME,
        rate_limiter::OPS_SIZE,
        rate_limiter::OPS_ONE_TIME_BURST,
        rate_limiter::OPS_REFILL_TIME,
        places::ID.or(Fallback::Absent("_net0, _net1 and so on")),
        places::PCI_SEGMENT,
        places::PCI_DEVICE_ID,
    ],
    not_yet: &[
        NotYet::both("iommu")
            .unless_text("off")
            .unless_json("false"),
        NotYet::both("vhost_user")
            .unless_text("off")
            .unless_json("false"),
        NotYet::named("socket", "vhost_socket"),
        NotYet::both("vhost_mode")
            .unless_text("client")
            .unless_json("\"Client\""),
    ],
};

/// A network interface that the guest is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The host's end: a tap, which is made if it is not there. Without it and without descriptors, one is
    /// made for it.
    #[serde(
        default,
        deserialize_with = "text_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<InterfaceName>)]
    pub tap: Option<String>,
    /// IP address of the host's end. Without it, a tap that is made has 192.168.249.1, and another one what
    /// it has.
    #[serde(
        default,
        deserialize_with = "text_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<IpText>)]
    pub ip: Option<String>,
    /// Network mask of that address; without it, 255.255.255.0 or ffff:ffff:ffff:ffff::.
    #[serde(
        default,
        deserialize_with = "text_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<IpText>)]
    pub mask: Option<String>,
    /// MAC address of the guest's end; without it, a random one.
    #[serde(
        default,
        deserialize_with = "text_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<MacText>)]
    pub mac: Option<String>,
    /// MAC address of the host's end; without it, what it has.
    #[serde(
        default,
        deserialize_with = "text_or_nothing",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<MacText>)]
    pub host_mac: Option<String>,
    /// Bytes of the largest packet, for both ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1280, maximum = 65521)]
    pub mtu: Option<u16>,
    /// Descriptors of a tap that is open, one for each two queues: numbers of those that the VMM has
    /// inherited, or has been sent with the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(minimum = 3, maximum = 2147483647)]
    pub fds: Vec<u32>,
    /// Queues, half of them for each direction; at most two for each vCPU at boot.
    #[serde(default = "default_num_queues")]
    #[schema(default = default_num_queues, minimum = 2, maximum = 510, multiple_of = 2)]
    pub num_queues: u16,
    /// Descriptors in each queue, a power of two.
    #[serde(default = "default_queue_size")]
    #[schema(default = default_queue_size, minimum = 32, maximum = 32768)]
    pub queue_size: u16,
    /// Whether either end leaves checksums to the other; nothing can be left to it without.
    #[serde(default = "yes")]
    #[schema(default = yes)]
    pub offload_csum: bool,
    /// Whether either end leaves the segmentation of TCP to the other.
    #[serde(default = "yes")]
    #[schema(default = yes)]
    pub offload_tso: bool,
    /// Whether either end leaves the fragmentation of UDP to the other.
    #[serde(default = "yes")]
    #[schema(default = yes)]
    pub offload_ufo: bool,
    /// How much may be moved, in each direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_config: Option<RateLimiterConfig>,
    /// Its name; without it the interface is given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DeviceName>)]
    pub id: Option<String>,
    /// The PCI segment that the guest finds it on.
    #[serde(default)]
    #[schema(default = u16::default, maximum = 95)]
    pub pci_segment: u16,
    /// Its device number there, 1 to 31, and 0 on segments other than 0; without it, any that is free
    /// but 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 31)]
    pub pci_device_id: Option<u8>,
}

/// Sizes that a queue can have: Linux has up to 19 parts in a frame that it sends, sizes are powers of two,
/// and 32768 is the largest (Virtio 1.3, section 2.7).
const QUEUE_SIZES: RangeInclusive<u16> = 32..=32768;
/// The largest packets that can be asked for: what IPv6 needs at least (RFC 8200, section 5), and what a tap
/// takes at most.
const MTUS: RangeInclusive<u16> = 1280..=65521;
/// The longest name of an interface, in bytes (IFNAMSIZ less its NUL).
const MAX_TAP: usize = 15;
/// The lowest descriptor that is no standard stream.
const FIRST_DESCRIPTOR: u32 = 3;
/// The largest number that a descriptor can have.
const LAST_DESCRIPTOR: u32 = i32::MAX as u32;

const DEFAULT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 249, 1));

fn default_num_queues() -> u16 {
    2
}

fn default_queue_size() -> u16 {
    256
}

/// A text, where an empty one is none: `tap=,mac=` asks for nothing.
fn text_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()))
}

fn yes() -> bool {
    true
}

/// Adds what is wrong with network interfaces to `problems`, except for their names and places.
pub(super) fn validate(config: &VmConfig, problems: &mut Vec<Problem>) {
    let mut descriptors = BTreeSet::new();
    let mut taps = BTreeSet::new();
    for net in &config.net {
        if problems.len() >= MAX_PROBLEMS {
            return;
        }
        net.validate(config.cpus.boot_vcpus, problems);
        net.validate_descriptors(&mut descriptors, problems);
        if let Some(tap) = &net.tap
            && !taps.insert(tap.as_str())
        {
            let reason = "another --net has this tap; use num_queues for several queues of one";
            problems.push(Problem::invalid(net.option(), reason));
        }
    }
}

impl NetConfig {
    /// The option that gave it, for messages.
    pub(crate) fn option(&self) -> String {
        match (&self.tap, &self.id, &self.mac) {
            (Some(tap), ..) => format!("--net tap={tap}"),
            (None, Some(id), _) => format!("--net id={id}"),
            (None, None, Some(mac)) => format!("--net mac={mac}"),
            (None, None, None) => "--net".to_owned(),
        }
    }

    /// Pairs of queues, one for each direction.
    pub fn pairs(&self) -> u16 {
        self.num_queues / 2
    }

    /// Says which descriptors came for it.
    ///
    /// # Errors
    /// It names some already.
    pub fn set_descriptors(&mut self, fds: Vec<u32>) -> Result<(), ConfigErrors> {
        if !self.fds.is_empty() {
            let reason = "descriptors came with the request; drop one of the two";
            return Err(Problem::invalid("fds", reason).into());
        }
        self.fds = fds;
        Ok(())
    }

    /// Gives it an address if it has none; where the host has no randomness, it stays without.
    pub(super) fn choose_mac(&mut self) {
        if self.mac.is_none() {
            self.mac = HardwareAddress::random().ok().map(|mac| mac.to_string());
        }
    }

    /// What the host's end is given: an address that was asked for, or the usual one.
    ///
    /// # Returns
    /// The address, and whether it was asked for.
    ///
    /// # Errors
    /// What is wrong with it, with the key at fault.
    pub fn address(&self) -> Result<(InterfaceAddress, bool), (String, String)> {
        let read = |key: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(str::parse::<IpAddr>).transpose();
            parsed.map_err(|_| {
                let text = text.as_deref().unwrap_or_default();
                (format!("{key}={text}"), "is no IP address".to_owned())
            })
        };
        let (ip, mask) = (read("ip", &self.ip)?, read("mask", &self.mask)?);
        let was_asked_for = ip.is_some() || mask.is_some();
        let ip = ip.unwrap_or(DEFAULT_IP);
        let prefix = match (mask, ip) {
            (None, IpAddr::V4(_)) => Some(24),
            (None, IpAddr::V6(_)) => Some(64),
            (Some(IpAddr::V4(mask)), IpAddr::V4(_)) => prefix_of(u32::from(mask).into(), 32),
            (Some(IpAddr::V6(mask)), IpAddr::V6(_)) => prefix_of(mask.into(), 128),
            (Some(_), _) => None,
        };
        let Some(prefix) = prefix else {
            let key = format!("mask={}", self.mask.as_deref().unwrap_or_default());
            let reason = format!("is no network mask for {ip}: ones, and zeroes behind them");
            return Err((key, reason));
        };
        Ok((InterfaceAddress { ip, prefix }, was_asked_for))
    }

    fn validate(&self, vcpus: u32, problems: &mut Vec<Problem>) {
        let Self {
            tap,
            ip: _,
            mask: _,
            mac,
            host_mac,
            mtu,
            fds: _,
            num_queues,
            queue_size,
            offload_csum: _,
            offload_tso: _,
            offload_ufo: _,
            rate_limiter_config: _,
            id: _,
            pci_segment: _,
            pci_device_id: _,
        } = self;
        let option = self.option();
        let mut invalid = |value: &str, reason: String| {
            let at = match option.split_once(' ') {
                // It names what is at fault already.
                Some((_, named)) if named == value => option.clone(),
                Some(_) => format!("{option},{value}"),
                None => format!("{option} {value}"),
            };
            problems.push(Problem::invalid(at, reason));
        };
        if let Some(tap) = tap
            && let Some(reason) = tap_fault(tap)
        {
            invalid(&format!("tap={tap}"), reason);
        }
        if let Err((key, reason)) = self.address() {
            invalid(&key, reason);
        }
        for (key, address) in [("mac", mac), ("host_mac", host_mac)] {
            if let Some(address) = address
                && let Some(reason) = mac_fault(address)
            {
                invalid(&format!("{key}={address}"), reason);
            }
        }
        if let Some(mtu) = mtu
            && !MTUS.contains(mtu)
        {
            let (least, most) = MTUS.into_inner();
            invalid(
                &format!("mtu={mtu}"),
                format!("must be {least} to {most} bytes"),
            );
        }
        let pairs = u32::from(self.pairs());
        if num_queues % 2 != 0 || pairs == 0 || pairs > vcpus {
            let reason = format!(
                "must be even, and from 2 to two for each vCPU at boot, --cpus boot={vcpus}"
            );
            invalid(&format!("num_queues={num_queues}"), reason);
        }
        if !QUEUE_SIZES.contains(queue_size) || !queue_size.is_power_of_two() {
            let (least, most) = QUEUE_SIZES.into_inner();
            let reason = format!("must be a power of two from {least} to {most}");
            invalid(&format!("queue_size={queue_size}"), reason);
        }
    }

    /// Checks descriptors of a tap; `known` are those of interfaces before.
    fn validate_descriptors(&self, known: &mut BTreeSet<u32>, problems: &mut Vec<Problem>) {
        if self.fds.is_empty() {
            return;
        }
        let at = format!("--net fd={:?}", self.fds).replace(", ", ",");
        let given = [
            ("tap", &self.tap),
            ("ip", &self.ip),
            ("mask", &self.mask),
            ("host_mac", &self.host_mac),
        ];
        let given = given.iter().find(|(_, value)| value.is_some());
        let pairs = self.pairs();
        let count = self.fds.len();
        let is_possible = |fd: &u32| (FIRST_DESCRIPTOR..=LAST_DESCRIPTOR).contains(fd);
        let reason = if let Some(fd) = self.fds.iter().find(|fd| !is_possible(fd)) {
            format!(
                "descriptor {fd} cannot be a tap: it has to be {FIRST_DESCRIPTOR} to {LAST_DESCRIPTOR}"
            )
        } else if let Some(fd) = self.fds.iter().find(|fd| !known.insert(**fd)) {
            format!("descriptor {fd} is given twice")
        } else if let Some((key, _)) = given {
            format!("whoever opened the tap has set it up; drop {key}")
        } else if count != usize::from(pairs) {
            let queues = self.num_queues;
            format!(
                "{count} descriptors do not fit num_queues={queues}: one is needed for each two queues"
            )
        } else {
            return;
        };
        problems.push(Problem::invalid(at, reason));
    }
}

/// Bits of a mask of `width` bits that are the network's; nothing if it is none.
fn prefix_of(mask: u128, width: u32) -> Option<u8> {
    let aligned = mask << (128 - width);
    let ones = aligned.leading_ones();
    // At most 128.
    (aligned.count_ones() == ones).then_some(ones as u8)
}

/// What is wrong with the name of a tap, if anything is.
fn tap_fault(tap: &str) -> Option<String> {
    let length = tap.len();
    if length > MAX_TAP {
        Some(format!("has {length} bytes; at most {MAX_TAP} are allowed"))
    } else if tap == "." || tap == ".." {
        Some("cannot be the name of an interface".to_owned())
    } else {
        let is_wrong = |byte: u8| !byte.is_ascii_graphic() || b"/:%".contains(&byte);
        let reason = "must be ASCII without spaces, control characters, '/', ':' and '%'";
        tap.bytes().any(is_wrong).then(|| reason.to_owned())
    }
}

/// What is wrong with a MAC address, if anything is.
fn mac_fault(text: &str) -> Option<String> {
    match text.parse::<HardwareAddress>() {
        Err(error) => Some(error.to_string()),
        Ok(mac) if mac.is_multicast() => {
            Some("is of many interfaces: the first byte must be even".to_owned())
        }
        Ok(HardwareAddress([0, 0, 0, 0, 0, 0])) => {
            Some("is of no interface: it must not be zero".to_owned())
        }
        Ok(_) => None,
    }
}
