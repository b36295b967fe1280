use proptest::prelude::*;

use super::*;
use crate::config::{ConsoleMode, CpusConfig, DebugConsoleConfig, MemoryConfig};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn host(isa: Isa) -> HostFacts {
    HostFacts {
        isa,
        phys_bits: 48,
        max_vcpus: 1024,
        max_vcpu_ids: 4096,
        pmu: isa == Isa::Aarch64,
        memory: HostMemory::default(),
        cacheable_device_memory: true,
        devices: BTreeMap::new(),
    }
}

fn config(memory: u64, vcpus: u32) -> VmConfig {
    VmConfig {
        cpus: CpusConfig {
            boot_vcpus: vcpus,
            max_vcpus: vcpus,
            ..CpusConfig::default()
        },
        memory: MemoryConfig {
            size: memory,
            ..MemoryConfig::default()
        },
        ..VmConfig::default()
    }
}

fn plan(isa: Isa, config: &VmConfig) -> Plan {
    Plan::new(config, &host(isa)).unwrap()
}

fn ram(isa: Isa, memory: u64) -> Vec<(u64, u64)> {
    let plan = plan(isa, &config(memory, 1));
    let ranges = plan.memory.ram.iter();
    ranges.map(|range| (range.start, range.size)).collect()
}

#[test]
fn x86_64_ram_goes_around_the_32_bit_hole() {
    assert_eq!(ram(Isa::X86_64, 512 * MIB), [(0, 512 * MIB)]);
    assert_eq!(ram(Isa::X86_64, 3 * GIB), [(0, 3 * GIB)]);
    let split = [(0, 3 * GIB), (4 * GIB, 2 * GIB)];
    assert_eq!(ram(Isa::X86_64, 5 * GIB), split);
}

#[test]
fn aarch64_ram_is_one_range() {
    assert_eq!(ram(Isa::Aarch64, 512 * MIB), [(GIB, 512 * MIB)]);
    assert_eq!(ram(Isa::Aarch64, 5 * GIB), [(GIB, 5 * GIB)]);
}

/// Every byte that is placed lies in RAM, and nothing lies in anything else's place.
#[test]
fn tables_lie_in_ram_and_apart() {
    for isa in [Isa::X86_64, Isa::Aarch64] {
        let plan = plan(isa, &config(GIB, 255));
        let FirmwarePlan::Acpi {
            rsdp,
            tables,
            smbios,
            reset_vector,
        } = &plan.firmware
        else {
            panic!("no ACPI");
        };
        assert!(
            tables
                .iter()
                .any(|table| table.name == "RSDP" && table.gpa == *rsdp)
        );
        assert_eq!(reset_vector.is_some(), isa == Isa::X86_64);
        let mut placed: Vec<&PlannedTable> =
            tables.iter().chain(smbios).chain(reset_vector).collect();
        placed.sort_by_key(|table| table.gpa);
        for table in &placed {
            let end = table.gpa + table.bytes.len() as u64;
            let inside = |range: &GpaRange| range.start <= table.gpa && end <= range.end();
            assert!(
                plan.memory.ram.iter().any(inside),
                "{} {:#x}",
                table.name,
                table.gpa
            );
        }
        for pair in placed.windows(2) {
            let end = pair[0].gpa + pair[0].bytes.len() as u64;
            assert!(end <= pair[1].gpa, "{} and {}", pair[0].name, pair[1].name);
        }
        let window = plan.memory.acpi_window.unwrap();
        assert!(
            tables
                .iter()
                .filter(|table| table.name != "RSDP")
                .all(|table| {
                    window.start <= table.gpa
                        && table.gpa + table.bytes.len() as u64 <= window.end()
                })
        );
    }
}

#[test]
fn the_64_bit_window_is_what_the_guest_can_address_above_ram() {
    let plan = plan(Isa::X86_64, &config(5 * GIB, 1));
    assert_eq!(plan.cpus.phys_bits, 46, "--cpus max_phys_bits");
    assert_eq!(plan.memory.mmio64.start, 6 * GIB);
    assert_eq!(plan.memory.mmio64.end(), 1 << 46);
}

#[test]
fn memory_that_does_not_fit_names_size_and_width() {
    for (isa, bits) in [(Isa::X86_64, 46), (Isa::Aarch64, 48)] {
        let error = Plan::new(&config(1 << bits, 1), &host(isa)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("size={:#x}", 1_u64 << bits)),
            "{text}"
        );
        assert!(text.contains(&format!("{bits}-bit")), "{text}");
    }
}

#[test]
fn memory_that_is_too_small_says_what_is_needed() {
    for isa in [Isa::X86_64, Isa::Aarch64] {
        let error = Plan::new(&config(MIB, 1), &host(isa)).unwrap_err();
        let is_it = matches!(error, PlanError::TooLittleMemory { needed, .. } if needed > MIB);
        assert!(is_it, "{error}");
    }
}

#[test]
fn more_vcpus_than_the_host_allows_are_refused() {
    let few = HostFacts {
        max_vcpus: 4,
        ..host(Isa::X86_64)
    };
    let error = Plan::new(&config(GIB, 5), &few).unwrap_err().to_string();
    assert!(
        error.contains("max=5") && error.contains("at most 4"),
        "{error}"
    );
}

/// 9 threads and 9 cores take 4 bits each: package 1 begins at APIC id 256.
#[test]
fn apic_ids_with_holes_are_held_against_what_the_host_allows() {
    let mut config = config(GIB, 243);
    config.cpus.topology = Some(crate::config::CpuTopology {
        threads_per_core: 9,
        cores_per_die: 9,
        dies_per_package: 1,
        packages: 3,
    });
    let plan = Plan::new(&config, &host(Isa::X86_64)).unwrap();
    assert_eq!(plan.cpus.cpus[81].hardware_id, 256);
    assert_eq!(
        (plan.cpus.cpus[81].package, plan.cpus.cpus[81].core),
        (1, 0)
    );
    let narrow = HostFacts {
        max_vcpu_ids: 256,
        ..host(Isa::X86_64)
    };
    let error = Plan::new(&config, &narrow).unwrap_err().to_string();
    assert!(error.contains("APIC id would be"), "{error}");
}

/// KVM's MPIDRs: 16 CPUs share Aff1.
#[test]
fn aarch64_cpus_are_numbered_as_kvm_numbers_them() {
    let plan = plan(Isa::Aarch64, &config(GIB, 18));
    let ids: Vec<u64> = plan.cpus.cpus.iter().map(|cpu| cpu.hardware_id).collect();
    assert_eq!(ids[15..], [15, 0x100, 0x101]);
}

#[test]
fn a_plan_without_acpi_has_no_table_and_no_event_device() {
    let mut config = config(GIB, 1);
    config.platform.acpi = false;
    let plan = plan(Isa::Aarch64, &config);
    assert_eq!(plan.firmware, FirmwarePlan::DeviceTree);
    assert_eq!(plan.memory.acpi_window, None);
    assert_eq!(plan.devices.events, None);
}

#[test]
fn no_serial_port_where_it_is_off() {
    let mut config = config(GIB, 1);
    config.serial.mode = ConsoleMode::Off;
    for isa in [Isa::X86_64, Isa::Aarch64] {
        let plan = plan(isa, &config);
        assert_eq!(plan.devices.serial, None);
        let FirmwarePlan::Acpi { tables, .. } = &plan.firmware else {
            panic!("no ACPI");
        };
        assert!(tables.iter().all(|table| table.name != "SPCR"));
    }
}

#[test]
fn a_debug_console_on_a_taken_port_names_the_owner() {
    let mut config = config(GIB, 1);
    config.debug_console = DebugConsoleConfig {
        mode: ConsoleMode::File,
        iobase: 0x3fd,
        ..DebugConsoleConfig::default()
    };
    let error = Plan::new(&config, &host(Isa::X86_64))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("iobase=0x3fd") && error.contains("serial port"),
        "{error}"
    );
    config.debug_console.iobase = 0xe9;
    assert_eq!(plan(Isa::X86_64, &config).devices.debug_console, Some(0xe9));
}

/// The last of the ports of PCI is the last that there is.
#[test]
fn a_debug_console_cannot_be_among_the_ports_of_pci() {
    let mut config = config(GIB, 1);
    config.debug_console.mode = ConsoleMode::File;
    for (port, taken) in [
        (0xbfff, false),
        (0xc000, true),
        (0xd123, true),
        (0xffff, true),
        (0xcf7, false),
        (0xcff, true),
        (0xd00, false),
        (0, false),
    ] {
        config.debug_console.iobase = port;
        let planned = Plan::new(&config, &host(Isa::X86_64));
        let refused = match planned {
            Ok(_) => false,
            Err(PlanError::PortTaken { port: named, .. }) => named == port,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(refused, taken, "{port:#x}");
    }
}

/// A plan is stored with the machine: what comes back is what was stored, and the same input gives
/// the same bytes.
#[test]
fn plans_are_plain_data_and_repeatable() {
    for isa in [Isa::X86_64, Isa::Aarch64] {
        let once = plan(isa, &config(5 * GIB, 8));
        assert_eq!(once, plan(isa, &config(5 * GIB, 8)));
        let stored = serde_json::to_string(&once).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), once);
    }
}

fn nodes(cpus: &[&[u32]]) -> Vec<crate::config::NumaConfig> {
    let node = |(id, cpus): (u32, &&[u32])| crate::config::NumaConfig {
        guest_numa_id: id,
        cpus: cpus.to_vec(),
        distances: Vec::new(),
        memory_zones: Vec::new(),
        hmat: Vec::new(),
        pci_segments: Vec::new(),
        device_id: None,
    };
    (0..).zip(cpus).map(node).collect()
}

/// Linux complains of packages in two nodes.
#[test]
fn packages_follow_the_nodes_unless_a_topology_is_given() {
    let equal: &[&[u32]] = &[&[0, 1], &[2, 3], &[]];
    let mixed: &[&[u32]] = &[&[0, 2], &[1, 3]];
    let unequal: &[&[u32]] = &[&[0], &[1, 2, 3]];
    let one: &[&[u32]] = &[&[0, 1, 2, 3], &[]];
    for (cpus, packages) in [(equal, 2), (mixed, 4), (unequal, 4), (one, 1)] {
        let mut config = config(GIB, 4);
        config.numa = nodes(cpus);
        let planned = plan(Isa::X86_64, &config);
        assert_eq!(planned.cpus.topology.packages, packages, "{cpus:?}");
        assert!(
            !planned
                .warnings()
                .iter()
                .any(|text| text.contains("package"))
        );
        config.cpus.topology = Some(crate::config::CpuTopology {
            threads_per_core: 1,
            cores_per_die: 4,
            dies_per_package: 1,
            packages: 1,
        });
        let planned = plan(Isa::X86_64, &config);
        assert_eq!(planned.cpus.topology.packages, 1);
        let warned = planned
            .warnings()
            .iter()
            .any(|text| text.contains("CPU package 0"));
        assert_eq!(warned, packages > 1, "{cpus:?}");
    }
}

#[test]
fn numbers_are_written_as_ranges() {
    assert_eq!(ranges(&[]), "");
    assert_eq!(ranges(&[4]), "4");
    assert_eq!(
        ranges(&[0, 1, 2, 5, 7, 8, u32::MAX]),
        "0-2,5,7-8,4294967295"
    );
}

prop_compose! {
    /// CPUs and RAM, most of them sensible, and what a host may allow.
    fn wishes()(
        levels in prop::array::uniform4(1u32..8),
        surplus in 0u32..4,
        with_topology in any::<bool>(),
        pages in prop_oneof![1u64..1 << 20, 1u64..1 << 40],
        max_phys_bits in prop::option::of(30u8..54),
        acpi in any::<bool>(),
        phys_bits in 32u8..=52,
        max_vcpus in 1u32..1024,
        max_vcpu_ids in 1u32..4096,
        pmu in any::<bool>(),
    ) -> (VmConfig, HostFacts) {
        let [threads_per_core, cores_per_die, dies_per_package, packages] = levels;
        let topology = crate::config::CpuTopology { threads_per_core, cores_per_die, dies_per_package, packages };
        let max = levels.iter().product();
        let mut config = config(pages * 4096, max);
        config.cpus.boot_vcpus = max.saturating_sub(surplus);
        config.cpus.topology = with_topology.then_some(topology);
        config.cpus.max_phys_bits = max_phys_bits;
        config.platform.acpi = acpi;
        config.payload.kernel = Some("kernel".into());
        let isa = Isa::X86_64;
        (config, HostFacts {
            isa, phys_bits, max_vcpus, max_vcpu_ids, pmu, memory: HostMemory::default(),
            cacheable_device_memory: true, devices: BTreeMap::new(),
        })
    }
}

proptest! {
    /// Whatever is found valid is planned or refused, and a plan has what was asked for.
    #[test]
    fn valid_configurations_are_planned_or_refused((config, host) in wishes()) {
        for isa in [Isa::X86_64, Isa::Aarch64] {
            let host = HostFacts { isa, ..host.clone() };
            let (Ok(()), Ok(plan)) = (config.validate(isa), Plan::new(&config, &host)) else {
                continue;
            };
            prop_assert_eq!(plan.cpus.boot, config.cpus.boot_vcpus);
            prop_assert_eq!(plan.cpus.cpus.len(), config.cpus.max_vcpus as usize);
            let ram = &plan.memory.ram;
            prop_assert_eq!(ram.iter().map(|range| range.size).sum::<u64>(), config.memory.size);
            prop_assert!(ram.is_sorted_by(|a, b| a.end() <= b.start));
            prop_assert!(plan.memory.mmio64.start >= ram[ram.len() - 1].end());
            prop_assert!(plan.memory.mmio64.end() <= 1 << plan.cpus.phys_bits);
            prop_assert!(plan.cpus.phys_bits <= host.phys_bits);
        }
    }
}
