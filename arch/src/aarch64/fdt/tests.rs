use std::collections::BTreeMap;

use super::*;
use crate::aarch64::mpidr;

/// Nodes by path, each with its properties by name.
struct Tree(BTreeMap<String, BTreeMap<String, Vec<u8>>>);

impl Tree {
    /// Reads a blob (Devicetree Specification 0.4, chapter 5).
    fn read(blob: &[u8]) -> Self {
        let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
        let string = |at: usize| {
            let end = at + blob[at..].iter().position(|&byte| byte == 0).unwrap();
            String::from_utf8(blob[at..end].to_vec()).unwrap()
        };
        assert_eq!(word(0), 0xd00d_feed);
        assert_eq!(word(4), blob.len());
        let (mut at, strings) = (word(8), word(12));
        let mut nodes = BTreeMap::new();
        let mut path: Vec<String> = Vec::new();
        loop {
            let token = word(at);
            at += 4;
            match token {
                1 => {
                    let name = string(at);
                    at = (at + name.len() + 1).next_multiple_of(4);
                    path.push(name);
                    nodes.insert(path.join("/"), BTreeMap::new());
                }
                2 => drop(path.pop().unwrap()),
                3 => {
                    let (length, name) = (word(at), string(strings + word(at + 4)));
                    let value = blob[at + 8..at + 8 + length].to_vec();
                    at = (at + 8 + length).next_multiple_of(4);
                    let node: &mut BTreeMap<_, _> = nodes.get_mut(&path.join("/")).unwrap();
                    assert!(node.insert(name, value).is_none());
                }
                9 => break,
                other => panic!("token {other}"),
            }
        }
        assert!(path.is_empty());
        Self(nodes)
    }

    fn paths(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn value(&self, path: &str, name: &str) -> &[u8] {
        &self.0[path][name]
    }

    fn cells(&self, path: &str, name: &str) -> Vec<u32> {
        let (cells, rest) = self.value(path, name).as_chunks();
        assert!(rest.is_empty());
        cells.iter().map(|&cell| u32::from_be_bytes(cell)).collect()
    }

    fn strings(&self, path: &str, name: &str) -> Vec<&str> {
        let text = std::str::from_utf8(self.value(path, name)).unwrap();
        text.strip_suffix('\0').unwrap().split('\0').collect()
    }

    fn has(&self, path: &str, name: &str) -> bool {
        self.0[path].contains_key(name)
    }
}

const RNG: [u8; 32] = [0xab; 32];

fn chosen(bootargs: &str) -> Chosen<'_> {
    Chosen {
        bootargs,
        initramfs: Some(GpaRange {
            start: 0x4100_0000,
            size: 0x1234,
        }),
        seeds: Seeds {
            kaslr: [1, 2, 3, 4, 5, 6, 7, 8],
            rng: &RNG,
        },
    }
}

const EFI: EfiPointers = EfiPointers {
    system_table: 0x403F_0100,
    memory_map: 0x403F_0000,
    memory_map_size: 120,
};

#[test]
fn acpi_stub_has_chosen_and_nothing_else() {
    let tree = Tree::read(&acpi_stub(&chosen("quiet"), &EFI).unwrap());
    assert_eq!(tree.paths(), ["", "/chosen"]);
    assert_eq!(tree.cells("", "#address-cells"), [2]);
    assert_eq!(tree.cells("", "#size-cells"), [2]);
    assert_eq!(tree.0[""].len(), 2);
}

#[test]
fn acpi_stub_says_what_linux_asks_for() {
    let tree = Tree::read(&acpi_stub(&chosen("quiet panic=-1"), &EFI).unwrap());
    let cells = |name| tree.cells("/chosen", name);
    assert_eq!(tree.strings("/chosen", "bootargs"), ["quiet panic=-1"]);
    assert_eq!(cells("linux,initrd-start"), [0, 0x4100_0000]);
    assert_eq!(cells("linux,initrd-end"), [0, 0x4100_1234]);
    assert_eq!(cells("linux,uefi-system-table"), [0, 0x403F_0100]);
    assert_eq!(cells("linux,uefi-mmap-start"), [0, 0x403F_0000]);
    assert_eq!(cells("linux,uefi-mmap-size"), [120]);
    assert_eq!(cells("linux,uefi-mmap-desc-size"), [40]);
    assert_eq!(cells("linux,uefi-mmap-desc-ver"), [1]);
    assert_eq!(cells("linux,uefi-secure-boot"), [2]);
    assert_eq!(
        tree.value("/chosen", "kaslr-seed"),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(tree.value("/chosen", "rng-seed"), RNG);
    assert_eq!(tree.0["/chosen"].len(), 11);
}

#[test]
fn without_an_initramfs_nothing_is_said_of_it() {
    let chosen = Chosen {
        initramfs: None,
        ..chosen("")
    };
    let tree = Tree::read(&acpi_stub(&chosen, &EFI).unwrap());
    assert!(!tree.has("/chosen", "linux,initrd-start"));
    assert!(!tree.has("/chosen", "linux,initrd-end"));
}

#[test]
fn command_line_ends_where_linux_would_cut_it() {
    let longest = "x".repeat(2047);
    assert!(acpi_stub(&chosen(&longest), &EFI).is_ok());
    assert_eq!(
        acpi_stub(&chosen(&format!("{longest}x")), &EFI),
        Err(FdtError::BootargsTooLong { length: 2048 })
    );
    assert_eq!(
        acpi_stub(&chosen("a\0b"), &EFI),
        Err(FdtError::Encode(vm_fdt::Error::InvalidString))
    );
}

/// CPUs of `packages` x `dies` x `cores` x `threads`.
fn cpus(packages: u32, dies: u32, cores: u32, threads: u32) -> Vec<Cpu> {
    let mut cpus = Vec::new();
    for package in 0..packages {
        for die in 0..dies {
            for core in 0..cores {
                for thread in 0..threads {
                    cpus.push(Cpu {
                        mpidr: mpidr(cpus.len() as u32),
                        package,
                        die,
                        core,
                        thread,
                        numa_node: None,
                    });
                }
            }
        }
    }
    cpus
}

const RAM: [Ram; 2] = [
    Ram {
        range: GpaRange {
            start: 0x4000_0000,
            size: 0x1_4000_0000,
        },
        numa_node: None,
    },
    Ram {
        range: GpaRange {
            start: 0x2_0000_0000,
            size: 0x1000_0000,
        },
        numa_node: None,
    },
];

fn machine(cpus: &[Cpu]) -> MachineTree<'_> {
    MachineTree {
        chosen: chosen("console=ttyAMA0"),
        cpus,
        pmu: true,
        ram: &RAM,
        distances: &[],
        gic: Gic {
            distributor: layout::GIC_DISTRIBUTOR,
            redistributors: layout::gic_redistributors(2),
            its: layout::GIC_ITS,
        },
        serial: Some(Peripheral {
            registers: layout::SERIAL,
            intid: layout::INTID_SERIAL,
        }),
        rtc: Peripheral {
            registers: layout::RTC,
            intid: layout::INTID_RTC,
        },
    }
}

fn machine_of(cpus: &[Cpu]) -> Tree {
    Tree::read(&machine_tree(&machine(cpus)).unwrap())
}

#[test]
fn memory_is_one_node_for_each_range() {
    let tree = machine_of(&cpus(1, 1, 1, 1));
    let low = "/memory@40000000";
    assert_eq!(tree.strings(low, "device_type"), ["memory"]);
    assert_eq!(tree.cells(low, "reg"), [0, 0x4000_0000, 1, 0x4000_0000]);
    let high = "/memory@200000000";
    assert_eq!(tree.cells(high, "reg"), [2, 0, 0, 0x1000_0000]);
}

#[test]
fn without_numa_nothing_is_said_of_nodes() {
    let tree = machine_of(&cpus(1, 1, 2, 1));
    assert!(!tree.0.contains_key("/distance-map"));
    let mut paths = tree.paths().into_iter();
    assert!(paths.all(|path| !tree.has(path, "numa-node-id")));
}

/// The shape of the example in numa.txt, with nodes 0 and 3.
#[test]
fn cpus_and_memory_are_in_their_nodes() {
    let mut cpus = cpus(1, 1, 2, 1);
    cpus[0].numa_node = Some(0);
    cpus[1].numa_node = Some(3);
    let mut ram = RAM;
    ram[0].numa_node = Some(3);
    ram[1].numa_node = Some(0);
    let distance = |from, to, distance| Distance { from, to, distance };
    let distances = [
        distance(0, 0, 10),
        distance(0, 3, 20),
        distance(3, 0, 31),
        distance(3, 3, 10),
    ];
    let described = MachineTree {
        ram: &ram,
        distances: &distances,
        ..machine(&cpus)
    };
    let tree = Tree::read(&machine_tree(&described).unwrap());
    for (path, node) in [
        ("/cpus/cpu@0", 0),
        ("/cpus/cpu@1", 3),
        ("/memory@40000000", 3),
        ("/memory@200000000", 0),
    ] {
        assert_eq!(tree.cells(path, "numa-node-id"), [node], "{path}");
    }
    let map = "/distance-map";
    assert_eq!(tree.strings(map, "compatible"), ["numa-distance-map-v1"]);
    assert_eq!(
        tree.cells(map, "distance-matrix"),
        [0, 0, 10, 0, 3, 20, 3, 0, 31, 3, 3, 10]
    );
}

#[test]
fn psci_is_called_with_hvc() {
    let tree = machine_of(&cpus(1, 1, 1, 1));
    assert_eq!(
        tree.strings("/psci", "compatible"),
        ["arm,psci-1.0", "arm,psci-0.2"]
    );
    assert_eq!(tree.strings("/psci", "method"), ["hvc"]);
}

/// Cells as in arm,arch_timer.yaml (order: secure, non-secure, virtual, hypervisor), arm,gic-v3.yaml
/// (1: private, number - 16, 4: level) and arm/pmu.yaml.
#[test]
fn private_interrupts_are_level_triggered() {
    let tree = machine_of(&cpus(1, 1, 1, 1));
    assert_eq!(tree.strings("/timer", "compatible"), ["arm,armv8-timer"]);
    assert_eq!(
        tree.cells("/timer", "interrupts"),
        [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]
    );
    assert!(tree.value("/timer", "always-on").is_empty());
    assert_eq!(tree.strings("/pmu", "compatible"), ["arm,armv8-pmuv3"]);
    assert_eq!(tree.cells("/pmu", "interrupts"), [1, 7, 4]);
}

#[test]
fn gic_holds_its_translation_service() {
    let tree = machine_of(&cpus(1, 1, 1, 1));
    let gic = "/interrupt-controller@8000000";
    assert_eq!(tree.strings(gic, "compatible"), ["arm,gic-v3"]);
    assert!(tree.value(gic, "interrupt-controller").is_empty());
    assert!(tree.value(gic, "ranges").is_empty());
    assert_eq!(tree.cells(gic, "#interrupt-cells"), [3]);
    assert_eq!(
        tree.cells(gic, "reg"),
        [0, 0x0800_0000, 0, 0x1_0000, 0, 0x0A00_0000, 0, 0x4_0000]
    );
    assert_eq!(tree.cells(gic, "interrupts"), [1, 9, 4]);
    assert_eq!(
        tree.cells(gic, "phandle"),
        tree.cells("", "interrupt-parent")
    );

    let its = "/interrupt-controller@8000000/msi-controller@8040000";
    assert_eq!(tree.strings(its, "compatible"), ["arm,gic-v3-its"]);
    assert!(tree.value(its, "msi-controller").is_empty());
    assert_eq!(tree.cells(its, "#msi-cells"), [1]);
    assert_eq!(tree.cells(its, "reg"), [0, 0x0804_0000, 0, 0x2_0000]);
}

#[test]
fn serial_port_is_the_console() {
    let tree = machine_of(&cpus(1, 1, 1, 1));
    let serial = "/serial@9000000";
    assert_eq!(tree.strings("/chosen", "stdout-path"), [serial]);
    assert_eq!(
        tree.strings(serial, "compatible"),
        ["arm,pl011", "arm,primecell"]
    );
    assert_eq!(tree.cells(serial, "reg"), [0, 0x0900_0000, 0, 0x1000]);
    assert_eq!(tree.cells(serial, "interrupts"), [0, 1, 4]);
    assert_eq!(tree.strings(serial, "clock-names"), ["uartclk", "apb_pclk"]);
    let clock = tree.cells("/apb-pclk", "phandle")[0];
    assert_eq!(tree.cells(serial, "clocks"), [clock, clock]);
    assert_eq!(tree.strings("/apb-pclk", "compatible"), ["fixed-clock"]);
    assert_eq!(tree.cells("/apb-pclk", "clock-frequency"), [24_000_000]);
    assert_eq!(tree.cells("/apb-pclk", "#clock-cells"), [0]);

    let rtc = "/rtc@9010000";
    assert_eq!(
        tree.strings(rtc, "compatible"),
        ["arm,pl031", "arm,primecell"]
    );
    assert_eq!(tree.cells(rtc, "interrupts"), [0, 2, 4]);
    assert_eq!(tree.cells(rtc, "clocks"), [clock]);
}

#[test]
fn what_a_machine_lacks_is_not_described() {
    let cpus = cpus(1, 1, 1, 1);
    let lacking = MachineTree {
        pmu: false,
        serial: None,
        ..machine(&cpus)
    };
    let tree = Tree::read(&machine_tree(&lacking).unwrap());
    assert!(!tree.has("/chosen", "stdout-path"));
    assert!(!tree.0.contains_key("/serial@9000000"));
    assert!(!tree.0.contains_key("/pmu"));
}

#[test]
fn interrupts_that_no_device_has_are_refused() {
    let cpus = cpus(1, 1, 1, 1);
    for intid in [0, 31, 1020] {
        let mut machine = machine(&cpus);
        machine.rtc.intid = intid;
        assert_eq!(machine_tree(&machine), Err(FdtError::NotShared(intid)));
    }
}

#[test]
fn cpus_are_named_by_their_affinity_and_started_by_psci() {
    let tree = machine_of(&cpus(1, 1, 18, 1));
    let cpu = "/cpus/cpu@101";
    assert_eq!(tree.strings(cpu, "device_type"), ["cpu"]);
    assert_eq!(tree.strings(cpu, "compatible"), ["arm,armv8"]);
    assert_eq!(tree.strings(cpu, "enable-method"), ["psci"]);
    assert_eq!(tree.cells(cpu, "reg"), [0, 0x101]);
    assert_eq!(tree.cells("/cpus", "#address-cells"), [2]);
    assert_eq!(tree.cells("/cpus", "#size-cells"), [0]);
}

/// The shape of example 1 of cpu-topology.txt, with one level of clusters.
#[test]
fn threads_are_the_leaves_of_the_topology() {
    let tree = machine_of(&cpus(2, 2, 1, 2));
    let map = tree.paths();
    let map: Vec<&str> = map
        .into_iter()
        .filter_map(|path| path.strip_prefix("/cpus/cpu-map/"))
        .filter(|path| path.contains("thread"))
        .collect();
    assert_eq!(
        map,
        [
            "socket0/cluster0/core0/thread0",
            "socket0/cluster0/core0/thread1",
            "socket0/cluster1/core0/thread0",
            "socket0/cluster1/core0/thread1",
            "socket1/cluster0/core0/thread0",
            "socket1/cluster0/core0/thread1",
            "socket1/cluster1/core0/thread0",
            "socket1/cluster1/core0/thread1",
        ]
    );
    for (leaf, index) in map.iter().zip(0..) {
        let cpu = format!("/cpus/cpu@{:x}", mpidr(index));
        assert_eq!(
            tree.cells(&format!("/cpus/cpu-map/{leaf}"), "cpu"),
            tree.cells(&cpu, "phandle")
        );
    }
}

#[test]
fn cores_are_the_leaves_without_threads() {
    let tree = machine_of(&cpus(1, 1, 2, 1));
    let core = "/cpus/cpu-map/socket0/cluster0/core1";
    assert_eq!(
        tree.cells(core, "cpu"),
        tree.cells("/cpus/cpu@1", "phandle")
    );
    assert!(!tree.paths().iter().any(|path| path.contains("thread")));
    assert!(
        !machine_of(&cpus(1, 1, 1, 1))
            .0
            .contains_key("/cpus/cpu-map")
    );
}

#[test]
fn a_topology_with_gaps_is_numbered_without() {
    let mut some = cpus(3, 1, 2, 1);
    some.retain(|cpu| cpu.package != 1);
    let tree = machine_of(&some);
    assert!(tree.0.contains_key("/cpus/cpu-map/socket1/cluster0/core1"));
    assert!(!tree.0.contains_key("/cpus/cpu-map/socket2"));
    assert_eq!(
        tree.cells("/cpus/cpu-map/socket1/cluster0/core0", "cpu"),
        tree.cells("/cpus/cpu@4", "phandle")
    );
}

#[test]
fn all_cpus_that_the_gic_serves_fit() {
    let cpus = cpus(2, 2, 32, 2);
    assert_eq!(cpus.len() as u32, layout::MAX_CPUS);
    assert!(machine_tree(&machine(&cpus)).is_ok());
}
