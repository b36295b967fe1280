//! What CPUID tells a guest: what KVM supports, with the guest's own topology and address width.
//!
//! [`CpuidPlan`] is made once for a guest; each vCPU's copy then takes a few stores
//! ([`CpuidPlan::for_cpu`]), so that starting many vCPUs asks KVM only once. Leaf and bit numbers
//! are those of the Intel SDM, volume 2, "CPUID", the AMD APM, volume 3, appendix E, and Linux's
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use thiserror::Error;

use crate::CpuTopology;

#[cfg(test)]
mod tests;

/// What a guest's CPUID depends on besides what KVM supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidOptions {
    /// CPU topology.
    pub topology: CpuTopology,
    /// Most bits of a guest-physical address; fewer if KVM has fewer.
    pub phys_bits: u8,
    /// Whether the guest may run guests of its own.
    pub nested: bool,
    /// Whether KVM has the timer's TSC-deadline mode (`KVM_CAP_TSC_DEADLINE_TIMER`).
    pub tsc_deadline: bool,
}

/// CPUID cannot be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CpuidError {
    /// More entries than KVM takes.
    #[error("CPUID has {0} entries and KVM takes at most {KVM_MAX_CPUID_ENTRIES}")]
    TooManyEntries(usize),
}

/// CPUID of a guest, save for what differs from vCPU to vCPU.
#[derive(Clone, Debug)]
pub struct CpuidPlan {
    entries: CpuId,
    topology: CpuTopology,
}

// Basic and extended leaves.
const VENDOR: u32 = 0;
const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const KVM_FEATURES: u32 = 0x4000_0001;
const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const ADDRESS_SIZES: u32 = 0x8000_0008;
const SVM: u32 = 0x8000_000a;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_TOPOLOGY_V2: u32 = 0x8000_0026;

// Leaf 1, ECX and EDX.
const VMX_BIT: u32 = 1 << 5;
const X2APIC_BIT: u32 = 1 << 21;
const TSC_DEADLINE_BIT: u32 = 1 << 24;
const HYPERVISOR_BIT: u32 = 1 << 31;
const HTT_BIT: u32 = 1 << 28;

// Leaf 0x8000_0001, ECX.
const CMP_LEGACY_BIT: u32 = 1 << 1;
const SVM_BIT: u32 = 1 << 2;
const TOPOLOGY_EXTENSIONS_BIT: u32 = 1 << 22;

/// `KVM_FEATURE_MSI_EXT_DEST_ID`: messages of MSI and I/O APIC carry 15-bit APIC ids. KVM leaves
/// it to the VMM to say so, whose I/O APIC and message routes must do it.
const KVM_MSI_EXT_DEST_ID_BIT: u32 = 1 << 15;

/// Level types of leaves 0xb and 0x1f.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
const LEVEL_DIE: u32 = 5;

impl CpuidPlan {
    /// Plans CPUID from the entries of `KVM_GET_SUPPORTED_CPUID`.
    ///
    /// Leaves that are not about topology, address width, APIC, virtualization or KVM itself, the
    /// performance counters of leaf 0xa among them, stay as KVM gives them.
    ///
    /// # Errors
    /// [`CpuidError::TooManyEntries`].
    pub fn new(supported: &CpuId, options: &CpuidOptions) -> Result<Self, CpuidError> {
        let supported = supported.as_slice();
        let topology = options.topology;
        let amd = is_amd(supported);
        let amd_topology = amd
            && supported.iter().any(|entry| {
                entry.function == EXTENDED_FEATURES && entry.ecx & TOPOLOGY_EXTENSIONS_BIT != 0
            });
        // Dies have no place in leaf 0xb.
        let v2 = topology.dies_per_package > 1
            || supported
                .iter()
                .any(|entry| entry.function == VENDOR && entry.eax >= TOPOLOGY_V2);

        let mut entries: Vec<_> = supported
            .iter()
            .filter(|entry| match entry.function {
                TOPOLOGY | TOPOLOGY_V2 | AMD_TOPOLOGY | AMD_TOPOLOGY_V2 => false,
                AMD_CACHES => amd_topology,
                SVM => options.nested,
                _ => true,
            })
            .copied()
            .collect();
        for entry in &mut entries {
            match entry.function {
                VENDOR => entry.eax = entry.eax.max(if v2 { TOPOLOGY_V2 } else { TOPOLOGY }),
                FEATURES => set_features(entry, options),
                CACHES if !amd => set_cache_sharing(entry, &topology),
                AMD_CACHES => set_cache_sharing(entry, &topology),
                KVM_FEATURES => entry.eax |= KVM_MSI_EXT_DEST_ID_BIT,
                EXTENDED if amd_topology => entry.eax = entry.eax.max(AMD_TOPOLOGY),
                EXTENDED_FEATURES => set_extended_features(entry, options, amd),
                ADDRESS_SIZES => set_address_sizes(entry, options, amd),
                _ => {}
            }
        }
        add_topology(&mut entries, TOPOLOGY, &levels(&topology));
        if v2 {
            add_topology(&mut entries, TOPOLOGY_V2, &levels_v2(&topology));
        }
        if amd_topology {
            entries.push(kvm_cpuid_entry2 {
                function: AMD_TOPOLOGY,
                ..Default::default()
            });
        }

        let count = entries.len();
        CpuId::from_entries(&entries)
            .map(|entries| Self { entries, topology })
            .map_err(|_| CpuidError::TooManyEntries(count))
    }

    /// CPUID of the vCPU with this APIC id.
    pub fn for_cpu(&self, apic_id: u32) -> CpuId {
        let mut cpuid = self.entries.clone();
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                FEATURES => set_field(&mut entry.ebx, 24, 8, apic_id & 0xff),
                TOPOLOGY | TOPOLOGY_V2 => entry.edx = apic_id,
                AMD_TOPOLOGY => set_amd_topology(entry, &self.topology, apic_id),
                _ => {}
            }
        }
        cpuid
    }
}

/// Width of guest-physical addresses that KVM supports, in bits: what leaf 0x8000_0008 says of the
/// processor, or of nested paging where that has less.
pub fn phys_bits(supported: &CpuId) -> u8 {
    /// Of processors that do not say (Intel SDM, volume 2, "CPUID", leaf 0x8000_0008).
    const UNKNOWN: u8 = 36;

    let sizes = supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == ADDRESS_SIZES);
    let [physical, _, guest, _] = sizes.map_or(0, |entry| entry.eax).to_le_bytes();
    match (physical, guest) {
        (0, _) => UNKNOWN,
        (_, 0) => physical,
        _ => physical.min(guest),
    }
}

/// Whether the vendor uses AMD's topology leaves.
fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    entries.iter().any(|entry| {
        let name = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
        entry.function == VENDOR
            && [b"AuthenticAMD", b"HygonGenuine"]
                .iter()
                .any(|vendor| name.as_flattened() == &vendor[..])
    })
}

/// Leaf 1, save for the APIC id.
fn set_features(entry: &mut kvm_cpuid_entry2, options: &CpuidOptions) {
    let threads = options.topology.threads_per_package();
    set_field(&mut entry.ebx, 16, 8, threads);
    set_bits(&mut entry.ecx, X2APIC_BIT | HYPERVISOR_BIT, true);
    set_bits(&mut entry.ecx, TSC_DEADLINE_BIT, options.tsc_deadline);
    if !options.nested {
        set_bits(&mut entry.ecx, VMX_BIT, false);
    }
    set_bits(&mut entry.edx, HTT_BIT, threads > 1);
}

/// Leaf 4, or leaf 0x8000_001d, which has the same fields and a reserved one: caches up to level 2
/// belong to a core, the others to a die.
fn set_cache_sharing(entry: &mut kvm_cpuid_entry2, topology: &CpuTopology) {
    let kind = entry.eax & 0x1f;
    if kind == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0x7;
    let shift = if level <= 2 {
        topology.core_shift()
    } else {
        topology.die_shift()
    };
    set_field(&mut entry.eax, 14, 12, last_id(shift));
    if entry.function == CACHES {
        set_field(
            &mut entry.eax,
            26,
            6,
            last_id(topology.package_shift() - topology.core_shift()),
        );
    }
}

/// Leaf 0x8000_0001.
fn set_extended_features(entry: &mut kvm_cpuid_entry2, options: &CpuidOptions, amd: bool) {
    if amd {
        set_bits(
            &mut entry.ecx,
            CMP_LEGACY_BIT,
            options.topology.threads_per_package() > 1,
        );
    }
    if !options.nested {
        set_bits(&mut entry.ecx, SVM_BIT, false);
    }
}

/// Leaf 0x8000_0008.
fn set_address_sizes(entry: &mut kvm_cpuid_entry2, options: &CpuidOptions, amd: bool) {
    let limit = u32::from(options.phys_bits);
    let physical = entry.eax & 0xff;
    set_field(&mut entry.eax, 0, 8, physical.min(limit));
    // The width that nested paging handles, 0 if that is the same.
    let guest = entry.eax >> 16 & 0xff;
    set_field(&mut entry.eax, 16, 8, guest.min(limit));
    if amd {
        set_field(
            &mut entry.ecx,
            0,
            8,
            options.topology.threads_per_package().saturating_sub(1),
        );
        set_field(&mut entry.ecx, 12, 4, options.topology.package_shift());
    }
}

/// Leaf 0x8000_001e: ids of core and node. A die is a node there, up to the eight that it counts.
fn set_amd_topology(entry: &mut kvm_cpuid_entry2, topology: &CpuTopology, apic_id: u32) {
    let place = topology.place(apic_id);
    entry.eax = apic_id;
    entry.ebx = place
        .die
        .wrapping_mul(topology.cores_per_die)
        .wrapping_add(place.core)
        & 0xff;
    set_field(
        &mut entry.ebx,
        8,
        8,
        topology.threads_per_core.saturating_sub(1),
    );
    let (node, nodes) = match topology.dies_per_package {
        dies @ 2..=8 => (
            place.package.wrapping_mul(dies).wrapping_add(place.die),
            dies,
        ),
        _ => (place.package, 1),
    };
    entry.ecx = node & 0xff;
    set_field(&mut entry.ecx, 8, 3, nodes - 1);
}

/// Type of a level, shift to the id of the next one, and threads in a unit of it.
type Level = (u32, u32, u32);

/// Levels of leaf 0xb: all that is above the thread and below the package is "core".
fn levels(topology: &CpuTopology) -> Vec<Level> {
    vec![
        (
            LEVEL_THREAD,
            topology.core_shift(),
            topology.threads_per_core,
        ),
        (
            LEVEL_CORE,
            topology.package_shift(),
            topology.threads_per_package(),
        ),
    ]
}

/// Levels of leaf 0x1f.
fn levels_v2(topology: &CpuTopology) -> Vec<Level> {
    let mut levels = vec![
        (
            LEVEL_THREAD,
            topology.core_shift(),
            topology.threads_per_core,
        ),
        (
            LEVEL_CORE,
            topology.die_shift(),
            topology
                .threads_per_core
                .saturating_mul(topology.cores_per_die),
        ),
    ];
    if topology.dies_per_package > 1 {
        levels.push((
            LEVEL_DIE,
            topology.package_shift(),
            topology.threads_per_package(),
        ));
    }
    levels
}

/// Adds leaf 0xb or 0x1f: a subleaf for each level and an empty one behind.
fn add_topology(entries: &mut Vec<kvm_cpuid_entry2>, function: u32, levels: &[Level]) {
    for (index, level) in (0..).zip(levels.iter().map(Some).chain([None])) {
        let &(kind, shift, threads) = level.unwrap_or(&(0, 0, 0));
        entries.push(kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift & 0x1f,
            ebx: threads & 0xffff,
            ecx: kind << 8 | index,
            ..Default::default()
        });
    }
}

/// The highest id of `bits` bits, as leaves 4 and 0x8000_001d count them.
fn last_id(bits: u32) -> u32 {
    1u32.checked_shl(bits).map_or(u32::MAX, |count| count - 1)
}

/// Replaces `count` bits from `from`; what does not fit becomes the highest number that does.
fn set_field(register: &mut u32, from: u32, count: u32, value: u32) {
    let max = last_id(count);
    *register = *register & !(max << from) | value.min(max) << from;
}

fn set_bits(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits
    } else {
        *register &= !bits
    }
}
