//! What the host offers: KVM, its limits, and on x86_64 the CPUID that it can give guests.

use std::{fs, io};

use arch::Isa;
use kvm_ioctls::Kvm;
use thiserror::Error;

use crate::plan::{HostFacts, HostMemory};

/// The host's instruction set, and so its guests'.
#[cfg(target_arch = "x86_64")]
pub const HOST_ISA: Isa = Isa::X86_64;
/// The host's instruction set, and so its guests'.
#[cfg(target_arch = "aarch64")]
pub const HOST_ISA: Isa = Isa::Aarch64;

/// Why this host cannot run guests.
#[derive(Debug, Error)]
pub enum HostError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm; is KVM there, and may this user read and write it?")]
    Open(#[source] io::Error),
    /// KVM speaks another interface.
    #[error("KVM has API version {0}, and 12 is needed")]
    Version(i32),
    /// KVM does not say what CPUs it offers.
    #[cfg(target_arch = "x86_64")]
    #[error("KVM does not say which CPU features it supports")]
    Cpuid(#[source] io::Error),
}

/// The host, opened once for all boots of a guest.
pub struct Host {
    /// KVM itself.
    pub kvm: Kvm,
    /// What the plan needs to know.
    pub facts: HostFacts,
    /// CPUID leaves that KVM supports.
    #[cfg(target_arch = "x86_64")]
    pub cpuid: kvm_bindings::CpuId,
}

impl Host {
    /// Opens KVM and asks for its limits.
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new().map_err(|error| HostError::Open(error.into()))?;
        let version = kvm.get_api_version();
        if version != kvm_bindings::KVM_API_VERSION as i32 {
            return Err(HostError::Version(version));
        }
        #[cfg(target_arch = "x86_64")]
        let cpuid = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| HostError::Cpuid(error.into()))?;
        #[cfg(target_arch = "x86_64")]
        let phys_bits = arch::x86_64::cpuid::phys_bits(&cpuid);
        #[cfg(target_arch = "aarch64")]
        let phys_bits = ipa_bits(&kvm);
        let facts = HostFacts {
            isa: HOST_ISA,
            phys_bits,
            max_vcpus: limit(kvm.get_max_vcpus()),
            max_vcpu_ids: limit(kvm.get_max_vcpu_id()),
            pmu: HOST_ISA == Isa::Aarch64 && kvm.check_extension(kvm_ioctls::Cap::ArmPmuV3),
            memory: host_memory(),
            cacheable_device_memory: caches_device_memory(&kvm),
            devices: std::collections::BTreeMap::new(),
        };
        Ok(Self {
            kvm,
            facts,
            #[cfg(target_arch = "x86_64")]
            cpuid,
        })
    }
}

/// What memory this host has (Linux, Documentation/ABI/stable/sysfs-devices-node and
/// Documentation/admin-guide/mm/hugetlbpage.rst). What cannot be read is not there.
pub fn host_memory() -> HostMemory {
    // A kernel without NUMA has one node and does not say so.
    let nodes = fs::read_to_string("/sys/devices/system/node/has_memory");
    let nodes = nodes.map_or_else(|_| vec![0], |text| numbers(&text));
    let pools = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten();
    let mut sizes: Vec<u64> = pools
        .filter_map(|pool| {
            let name = pool.ok()?.file_name();
            let kib = name
                .to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?;
            kib.parse::<u64>().ok()?.checked_mul(1024)
        })
        .collect();
    sizes.sort_unstable();
    HostMemory {
        numa_nodes: nodes,
        hugepage_sizes: sizes,
    }
}

/// Numbers as the kernel lists them: `0-1,4`.
fn numbers(text: &str) -> Vec<u32> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

fn limit(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Whether memory of devices is mapped cacheable where the host's driver maps it so.
fn caches_device_memory(kvm: &Kvm) -> bool {
    /// KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED (Linux 6.17, include/uapi/linux/kvm.h).
    const CACHEABLE_PFNMAP: std::ffi::c_ulong = 243;
    HOST_ISA == Isa::X86_64 || kvm.check_extension_raw(CACHEABLE_PFNMAP) > 0
}

/// Width of guest-physical addresses; hosts that cannot tell have 40 bits
/// (Linux, Documentation/virt/kvm/api.rst, section 4.2).
#[cfg(target_arch = "aarch64")]
fn ipa_bits(kvm: &Kvm) -> u8 {
    match u8::try_from(kvm.get_host_ipa_limit()) {
        Ok(0) | Err(_) => 40,
        Ok(bits) => bits,
    }
}
