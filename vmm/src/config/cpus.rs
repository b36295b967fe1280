//! `--cpus`: the virtual CPUs.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use arch::Isa;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::spelling::{Fallback, Key, NotYet, Spelling, Value};

/// How `--cpus` is spelled.
pub const SPELLING: Spelling = Spelling {
    type_name: "CpusConfig",
    about: "Virtual CPUs",
    bare: None,
    keys: &[
        Key::new(
            "boot",
            "boot_vcpus",
            Value::Typed("<count>"),
            "vCPUs at boot",
        )
        .or(Fallback::Value("1")),
        Key::new(
            "max",
            "max_vcpus",
            Value::Typed("<count>"),
            "vCPUs that the guest can ever have, at most 255",
        )
        .or(Fallback::SameAs("boot")),
        Key::new(
            "topology",
            "topology",
            Value::Typed("<threads>:<cores>:<dies>:<packages>"),
            "threads per core, cores per die, dies per package, packages",
        )
        .or(Fallback::Absent(
            "cores, in a package for each node with CPUs",
        )),
        Key::new(
            "affinity",
            "affinity",
            Value::Typed("[<vcpu>@[<host cpus>],...]"),
            "host CPUs that a vCPU may run on",
        )
        .or(Fallback::Absent("any")),
        Key::new(
            "max_phys_bits",
            "max_phys_bits",
            Value::Typed("<bits>"),
            "most guest-physical address bits",
        )
        .or(Fallback::Absent("46 on x86_64, the host's on aarch64")),
        Key::new(
            "nested",
            "nested",
            Value::Switch,
            "offer hardware virtualization to the guest, x86_64 only",
        )
        .or(Fallback::Value("on")),
        Key::new(
            "core_scheduling",
            "core_scheduling",
            Value::Typed("vm|vcpu|off"),
            "what may run on the host core of a vCPU at the same time: vm is other vCPUs of this \
             machine, vcpu is nothing, off is anything",
        )
        .or(Fallback::Absent("vm, where the host's kernel can")),
    ],
    not_yet: &[
        NotYet::both("kvm_hyperv")
            .unless_text("off")
            .unless_json("false"),
        NotYet::both("features")
            .unless_text("[]")
            .unless_json("false"),
    ],
};

/// The virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpusConfig {
    /// vCPUs that run at boot.
    #[schema(minimum = 1, maximum = 255)]
    pub boot_vcpus: u32,
    /// vCPUs that the guest can ever have, those at boot included.
    #[schema(minimum = 1, maximum = 255)]
    pub max_vcpus: u32,
    /// Topology that the guest is shown; without it, cores in a package for each NUMA node that has
    /// CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<CpuTopology>,
    /// Limit on the guest-physical address width, in bits; without it 46 on x86_64, and what the host
    /// has on aarch64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 32, maximum = 52)]
    pub max_phys_bits: Option<u8>,
    /// Whether the guest is offered hardware virtualization. x86_64 only: on aarch64 no guest is.
    #[serde(default = "enabled")]
    #[schema(default = enabled)]
    pub nested: bool,
    /// Host CPUs that vCPUs may run on; a vCPU that is not named runs anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<CpuAffinity>,
    /// What may run beside a vCPU, on the other hardware threads of its host core; without it
    /// [`CoreScheduling::Vm`], where the host's kernel can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_scheduling: Option<CoreScheduling>,
}

/// What may run beside a vCPU, on the other hardware threads of its host core (Linux,
/// admin-guide/hw-vuln/core-scheduling).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CoreScheduling {
    /// Other vCPUs of the same machine.
    Vm,
    /// Nothing.
    Vcpu,
    /// Anything.
    Off,
}

/// Units at each level of the topology; their product is the number of vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuTopology {
    /// Threads in a core.
    #[serde(default = "one")]
    #[schema(default = one, minimum = 1, maximum = 255)]
    pub threads_per_core: u32,
    /// Cores in a die.
    #[serde(default = "one")]
    #[schema(default = one, minimum = 1, maximum = 255)]
    pub cores_per_die: u32,
    /// Dies in a package.
    #[serde(default = "one")]
    #[schema(default = one, minimum = 1, maximum = 255)]
    pub dies_per_package: u32,
    /// Packages in the machine.
    #[serde(default = "one")]
    #[schema(default = one, minimum = 1, maximum = 255)]
    pub packages: u32,
}

/// Where one vCPU may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuAffinity {
    /// The vCPU, from 0.
    #[schema(maximum = 254)]
    pub vcpu: u32,
    /// Host CPUs, as the host's kernel numbers them.
    #[schema(min_items = 1, maximum = 8191)]
    pub host_cpus: Vec<u32>,
}

/// The most vCPUs of a guest.
pub const MAX_VCPUS: u32 = 255;

/// Host CPUs are numbered below this: Linux builds for no more (x86's MAXSMP, NR_CPUS = 8192).
pub const MAX_HOST_CPUS: u32 = 8192;

/// Guest-physical address widths that a guest can be given, in bits: what both x86_64 (52 bits of
/// a page-table entry) and KVM on aarch64 (KVM_VM_TYPE_ARM_IPA_SIZE) take.
const PHYS_BITS: RangeInclusive<u8> = 32..=52;

/// Address width of x86_64 guests where nothing else was asked for, in bits.
pub const DEFAULT_X86_PHYS_BITS: u8 = 46;

impl CpusConfig {
    /// The most guest-physical address bits that the configuration allows; `None` leaves it to the
    /// host.
    pub fn phys_bits_limit(&self, isa: Isa) -> Option<u8> {
        match isa {
            Isa::X86_64 => Some(self.max_phys_bits.unwrap_or(DEFAULT_X86_PHYS_BITS)),
            Isa::Aarch64 => self.max_phys_bits,
        }
    }
}

impl Default for CpusConfig {
    fn default() -> Self {
        Self {
            boot_vcpus: 1,
            max_vcpus: 1,
            topology: None,
            max_phys_bits: None,
            nested: true,
            affinity: Vec::new(),
            core_scheduling: None,
        }
    }
}

fn enabled() -> bool {
    true
}

fn one() -> u32 {
    1
}

impl CpusConfig {
    /// Adds what is wrong with it to `problems`.
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self {
            boot_vcpus,
            max_vcpus,
            topology,
            max_phys_bits,
            nested: _,
            affinity,
            core_scheduling: _,
        } = self;
        let mut invalid = |value: String, reason: String| {
            problems.push(Problem::invalid(format_args!("--cpus {value}"), reason));
        };
        let in_range = |count: u32| (1..=MAX_VCPUS).contains(&count);
        if !in_range(*boot_vcpus) {
            let reason = format!("must be 1 to {MAX_VCPUS}");
            invalid(format!("boot={boot_vcpus}"), reason);
        }
        if max_vcpus < boot_vcpus {
            let reason = format!("must be at least the vCPUs at boot, boot={boot_vcpus}");
            invalid(format!("max={max_vcpus}"), reason);
        } else if !in_range(*max_vcpus) && max_vcpus != boot_vcpus {
            let reason = format!("must be at most {MAX_VCPUS}");
            invalid(format!("max={max_vcpus}"), reason);
        }
        if let Some(topology) = topology {
            let product = topology.vcpus();
            if product != u128::from(*max_vcpus) {
                let reason = format!("makes {product} vCPUs; it must make max={max_vcpus}");
                invalid(format!("topology={topology}"), reason);
            }
        }
        if let Some(bits) = max_phys_bits
            && !PHYS_BITS.contains(bits)
        {
            let (least, most) = PHYS_BITS.into_inner();
            let reason = format!("must be {least} to {most} bits");
            invalid(format!("max_phys_bits={bits}"), reason);
        }
        let mut named = BTreeSet::new();
        for CpuAffinity { vcpu, host_cpus } in affinity {
            let value = format!("affinity=[{vcpu}@{host_cpus:?}]");
            if vcpu >= max_vcpus {
                let reason = format!("there is no vCPU {vcpu}; they are 0 to max={max_vcpus} - 1");
                invalid(value.clone(), reason);
            }
            if !named.insert(*vcpu) {
                let reason = format!("overlapping affinity: vCPU {vcpu} is named twice");
                invalid(value.clone(), reason);
            }
            if host_cpus.is_empty() {
                let reason = format!("vCPU {vcpu} needs at least one host CPU");
                invalid(value, reason);
            } else if let Some(cpu) = host_cpus.iter().find(|cpu| **cpu >= MAX_HOST_CPUS) {
                let reason = format!("no host has a CPU {cpu}; the last is {}", MAX_HOST_CPUS - 1);
                invalid(value, reason);
            }
        }
    }
}

impl CpuTopology {
    /// vCPUs that it makes.
    fn vcpus(&self) -> u128 {
        let Self {
            threads_per_core,
            cores_per_die,
            dies_per_package,
            packages,
        } = *self;
        [threads_per_core, cores_per_die, dies_per_package, packages]
            .map(u128::from)
            .iter()
            .product()
    }
}

impl fmt::Display for CoreScheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vm => "vm",
            Self::Vcpu => "vcpu",
            Self::Off => "off",
        })
    }
}

impl fmt::Display for CpuTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            threads_per_core,
            cores_per_die,
            dies_per_package,
            packages,
        } = self;
        write!(
            f,
            "{threads_per_core}:{cores_per_die}:{dies_per_package}:{packages}"
        )
    }
}
