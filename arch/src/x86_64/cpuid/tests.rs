use proptest::prelude::*;

use super::super::topology::apic_id;
use super::*;
use crate::CpuTopology;

/// An entry as KVM would give it.
fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn kvm_gives(entries: &[kvm_cpuid_entry2]) -> CpuId {
    CpuId::from_entries(entries).unwrap()
}

/// A host of Intel's, in the leaves that matter.
fn intel() -> CpuId {
    kvm_gives(&[
        entry(0, 0, [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(1, 0, [0x806f8, 0x0310_0800, 0x0000_0020, 0x0000_0001]),
        entry(4, 0, [0x1c00_4121, 0x02c0_003f, 0x3f, 0]),
        entry(4, 1, [0x1c00_4122, 0x01c0_003f, 0x3f, 0]),
        entry(4, 2, [0x1c00_4143, 0x03c0_003f, 0x7ff, 0]),
        entry(4, 3, [0x1c03_c163, 0x0380_003f, 0xffff, 4]),
        entry(4, 4, [0, 0, 0, 0]),
        entry(0xa, 0, [0x0830_0805, 0, 0, 0x603]),
        entry(0xb, 0, [1, 2, 0x100, 7]),
        entry(0xb, 1, [5, 16, 0x201, 7]),
        entry(0x15, 0, [2, 0x128, 0, 0]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        entry(0x8000_0008, 0, [0x0034_3934, 0, 0, 0]),
    ])
}

/// A host of AMD's.
fn amd() -> CpuId {
    kvm_gives(&[
        entry(0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x0083_0f10, 0x0310_0800, 0, 0]),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0026, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x0040_0005, 0]),
        entry(0x8000_0008, 0, [0x0000_3030, 0, 0x0003_0000, 0]),
        entry(0x8000_000a, 0, [1, 8, 0, 0]),
        entry(0x8000_001d, 0, [0x4121, 0x01c0_003f, 0x3f, 0]),
        entry(0x8000_001d, 3, [0x0001_c163, 0x03c0_003f, 0x3fff, 1]),
        entry(0x8000_001e, 0, [0, 0, 0, 0]),
        entry(0x8000_0026, 0, [1, 2, 0x100, 0]),
    ])
}

const TOPOLOGY_2_6_1_2: CpuTopology = CpuTopology {
    threads_per_core: 2,
    cores_per_die: 6,
    dies_per_package: 1,
    packages: 2,
};
const TOPOLOGY_2_3_2_2: CpuTopology = CpuTopology {
    threads_per_core: 2,
    cores_per_die: 3,
    dies_per_package: 2,
    packages: 2,
};

fn options(topology: CpuTopology) -> CpuidOptions {
    CpuidOptions {
        topology,
        phys_bits: 46,
        nested: true,
        tsc_deadline: true,
    }
}

/// Registers of a leaf, which must be there once.
fn leaf(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let found: Vec<_> = cpuid
        .as_slice()
        .iter()
        .filter(|entry| entry.function == function && entry.index == index)
        .collect();
    assert_eq!(found.len(), 1, "leaf {function:#x}.{index}");
    [found[0].eax, found[0].ebx, found[0].ecx, found[0].edx]
}

fn has(cpuid: &CpuId, function: u32) -> bool {
    cpuid
        .as_slice()
        .iter()
        .any(|entry| entry.function == function)
}

#[test]
fn intel_leaves_show_the_guest_topology() {
    let plan = CpuidPlan::new(&intel(), &options(TOPOLOGY_2_6_1_2)).unwrap();
    let id = apic_id(&TOPOLOGY_2_6_1_2, 1, 0, 5, 1);
    assert_eq!(id, 27);
    let cpuid = plan.for_cpu(id);

    // 12 threads in a package, APIC id 27; VMX, x2APIC, TSC deadline, hypervisor; HTT.
    assert_eq!(
        leaf(&cpuid, 1, 0),
        [0x806f8, 0x1b0c_0800, 0x8120_0020, 0x1000_0001]
    );
    // Core caches: 2 ids; die cache: 16; 8 core ids in a package.
    assert_eq!(leaf(&cpuid, 4, 0)[0], 0x1c00_4121);
    assert_eq!(leaf(&cpuid, 4, 2)[0], 0x1c00_4143);
    assert_eq!(leaf(&cpuid, 4, 3)[0], 0x1c03_c163);
    assert_eq!(leaf(&cpuid, 4, 4), [0; 4]);
    assert_eq!(leaf(&cpuid, 0xb, 0), [1, 2, 0x100, 27]);
    assert_eq!(leaf(&cpuid, 0xb, 1), [4, 12, 0x201, 27]);
    assert_eq!(leaf(&cpuid, 0xb, 2), [0, 0, 2, 27]);
    assert_eq!(leaf(&cpuid, 0x8000_0008, 0)[0], 0x002e_392e);
    assert!(!has(&cpuid, 0x1f) && !has(&cpuid, 0x8000_001e));
}

#[test]
fn leaves_that_are_not_ours_stay() {
    let plan = CpuidPlan::new(&intel(), &options(TOPOLOGY_2_6_1_2)).unwrap();
    let cpuid = plan.for_cpu(0);
    for given in intel()
        .as_slice()
        .iter()
        .filter(|entry| [0xa, 0x15, 0x4000_0000].contains(&entry.function))
    {
        assert!(
            cpuid.as_slice().contains(given),
            "leaf {:#x}",
            given.function
        );
    }
    assert_eq!(leaf(&cpuid, 0x4000_0001, 0)[0], 0x0100_fefb);
}

#[test]
fn dies_need_leaf_1f() {
    let plan = CpuidPlan::new(&intel(), &options(TOPOLOGY_2_3_2_2)).unwrap();
    let cpuid = plan.for_cpu(9);
    assert_eq!(leaf(&cpuid, 0, 0)[0], 0x1f);
    assert_eq!(leaf(&cpuid, 0x1f, 0), [1, 2, 0x100, 9]);
    assert_eq!(leaf(&cpuid, 0x1f, 1), [3, 6, 0x201, 9]);
    assert_eq!(leaf(&cpuid, 0x1f, 2), [4, 12, 0x502, 9]);
    assert_eq!(leaf(&cpuid, 0x1f, 3), [0, 0, 3, 9]);
    assert_eq!(leaf(&cpuid, 0xb, 1), [4, 12, 0x201, 9]);
    // The last-level cache is a die's: 8 ids.
    assert_eq!(leaf(&cpuid, 4, 3)[0], 0x1c01_c163);
}

#[test]
fn amd_leaves_show_the_guest_topology() {
    let plan = CpuidPlan::new(&amd(), &options(TOPOLOGY_2_3_2_2)).unwrap();
    let id = apic_id(&TOPOLOGY_2_3_2_2, 1, 1, 2, 1);
    assert_eq!(id, 0b1_1101);
    let cpuid = plan.for_cpu(id);
    assert_eq!(leaf(&cpuid, 0x8000_0001, 0)[2], 0x0040_0007);
    // 12 threads and 4 bits of APIC id in a package; the width of the counter stays.
    assert_eq!(leaf(&cpuid, 0x8000_0008, 0), [0x302e, 0, 0x0003_400b, 0]);
    assert_eq!(leaf(&cpuid, 0x8000_001d, 0)[0], 0x0000_4121);
    assert_eq!(leaf(&cpuid, 0x8000_001d, 3)[0], 0x0001_c163);
    // Core 5 of its package, two threads, node 3 of two in each package.
    assert_eq!(leaf(&cpuid, 0x8000_001e, 0), [id, 0x105, 0x103, 0]);
    assert!(has(&cpuid, 0x8000_000a) && !has(&cpuid, 0x8000_0026));
}

#[test]
fn amd_without_topology_extensions_has_no_such_leaves() {
    let mut host = amd();
    for entry in host
        .as_mut_slice()
        .iter_mut()
        .filter(|entry| entry.function == 0x8000_0001)
    {
        entry.ecx = 0;
    }
    let cpuid = CpuidPlan::new(&host, &options(TOPOLOGY_2_3_2_2))
        .unwrap()
        .for_cpu(0);
    assert!(!has(&cpuid, 0x8000_001d) && !has(&cpuid, 0x8000_001e));
}

#[test]
fn without_nesting_the_guest_sees_no_virtualization() {
    let options = CpuidOptions {
        nested: false,
        ..options(TOPOLOGY_2_6_1_2)
    };
    let cpuid = CpuidPlan::new(&intel(), &options).unwrap().for_cpu(0);
    assert_eq!(leaf(&cpuid, 1, 0)[2] & 1 << 5, 0);
    let cpuid = CpuidPlan::new(&amd(), &options).unwrap().for_cpu(0);
    assert_eq!(leaf(&cpuid, 0x8000_0001, 0)[2] & 1 << 2, 0);
    assert!(!has(&cpuid, 0x8000_000a));
}

#[test]
fn host_address_width_and_missing_timer_are_kept() {
    let topology = CpuTopology {
        threads_per_core: 1,
        cores_per_die: 1,
        dies_per_package: 1,
        packages: 1,
    };
    let options = CpuidOptions {
        topology,
        phys_bits: 57,
        nested: true,
        tsc_deadline: false,
    };
    let mut host = intel();
    for entry in host
        .as_mut_slice()
        .iter_mut()
        .filter(|entry| entry.function == 1)
    {
        (entry.ecx, entry.edx) = (1 << 24, 1 << 28);
    }
    let cpuid = CpuidPlan::new(&host, &options).unwrap().for_cpu(0);
    assert_eq!(leaf(&cpuid, 0x8000_0008, 0)[0], 0x0034_3934);
    // One thread: no HTT; no TSC deadline.
    assert_eq!(leaf(&cpuid, 1, 0)[1..], [0x0001_0800, 0x8020_0000, 0]);
}

#[test]
fn more_entries_than_kvm_takes_are_refused() {
    let host = kvm_gives(&[entry(7, 0, [0; 4]); KVM_MAX_CPUID_ENTRIES]);
    let error = CpuidPlan::new(&host, &options(TOPOLOGY_2_6_1_2)).unwrap_err();
    assert_eq!(error, CpuidError::TooManyEntries(KVM_MAX_CPUID_ENTRIES + 3));
}

#[test]
fn phys_bits_are_the_fewest_that_kvm_has() {
    assert_eq!(phys_bits(&intel()), 52);
    assert_eq!(phys_bits(&amd()), 48);
    let mut host = amd();
    for entry in host
        .as_mut_slice()
        .iter_mut()
        .filter(|entry| entry.function == 0x8000_0008)
    {
        entry.eax = 0x0030_3934;
    }
    assert_eq!(phys_bits(&host), 48);
    assert_eq!(phys_bits(&kvm_gives(&[])), 36);
}

proptest! {
    /// Reads places back from the shifts of leaf 0x1f and from leaf 0xb, as a guest does.
    #[test]
    fn a_guest_finds_the_topology(
        threads in 1u32..5, cores in 1u32..9, dies in 2u32..5, packages in 1u32..4,
        pick in any::<prop::sample::Index>()
    ) {
        let topology = CpuTopology { threads_per_core: threads, cores_per_die: cores, dies_per_package: dies, packages };
        let cpu = pick.index((threads * cores * dies * packages) as usize) as u32;
        let (thread, core) = (cpu % threads, cpu / threads % cores);
        let (die, package) = (cpu / (threads * cores) % dies, cpu / (threads * cores * dies));
        let id = apic_id(&topology, package, die, core, thread);
        let cpuid = CpuidPlan::new(&intel(), &options(topology)).unwrap().for_cpu(id);

        let shifts = [0, 1, 2].map(|index| leaf(&cpuid, 0x1f, index)[0]);
        let part = |from: u32, to: u32| id >> from & ((1 << (to - from)) - 1);
        prop_assert_eq!(leaf(&cpuid, 0x1f, 0)[3], id);
        prop_assert_eq!(part(0, shifts[0]), thread);
        prop_assert_eq!(part(shifts[0], shifts[1]), core);
        prop_assert_eq!(part(shifts[1], shifts[2]), die);
        prop_assert_eq!(id >> shifts[2], package);

        let counts = [0, 1, 2].map(|index| leaf(&cpuid, 0x1f, index)[1]);
        prop_assert_eq!(counts, [threads, threads * cores, threads * cores * dies]);

        prop_assert_eq!(leaf(&cpuid, 0xb, 1)[0], shifts[2]);
        prop_assert_eq!(leaf(&cpuid, 0xb, 1)[1], counts[2]);
    }
}
