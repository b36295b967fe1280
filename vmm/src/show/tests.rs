//! Golden plans: what operators are shown, and the bytes of the tables that tell of NUMA.
//!
//! `UPDATE_GOLDEN=1 cargo test -p vmm show` writes them anew.

use std::path::{Path, PathBuf};

use super::*;
use crate::config::cli::{self, Command};
use crate::plan::FunctionSource;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/show/golden");

const TWO_NODES: &[&str] = &[
    "--cpus boot=4",
    "--memory size=0",
    "--memory-zone id=m0,size=1G id=m1,size=1G",
    "--numa guest_numa_id=0,cpus=[0-1],memory_zones=[m0]",
    "--numa guest_numa_id=1,cpus=[2-3],memory_zones=[m1]",
];

/// Options of machines, by name.
const MACHINES: &[(&str, &[&str])] = &[
    ("no_numa", &["--cpus boot=2", "--memory size=5G"]),
    (
        "one_node",
        &[
            "--cpus boot=2",
            "--numa guest_numa_id=0,cpus=[0-1],memory_zones=[mem0]",
        ],
    ),
    ("two_nodes", TWO_NODES),
    (
        "cpus_that_come_later",
        &[
            "--cpus boot=1,max=4",
            "--numa guest_numa_id=0,cpus=[0-1],memory_zones=[mem0] guest_numa_id=1,cpus=[2-3]",
        ],
    ),
    (
        "one_node_and_eight_empty_ones",
        &[
            "--cpus boot=4",
            "--memory size=4G",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0]",
            EIGHT,
        ],
    ),
    (
        "memory_only_node_before_empty_ones",
        &[
            "--cpus boot=2",
            "--memory-zone id=a,size=1G id=b,size=2G",
            "--numa guest_numa_id=0,cpus=[0-1],memory_zones=[a] guest_numa_id=1,memory_zones=[b]",
            EIGHT,
        ],
    ),
    (
        "sparse_ids",
        &[
            "--cpus boot=2",
            "--numa guest_numa_id=1,cpus=[0-1],memory_zones=[mem0] guest_numa_id=7 guest_numa_id=260",
        ],
    ),
    (
        "cpus_in_the_higher_node",
        &[
            "--cpus boot=2",
            "--memory-zone id=a,size=1G id=b,size=1G",
            "--numa guest_numa_id=0,memory_zones=[a] guest_numa_id=1,cpus=[0-1],memory_zones=[b]",
        ],
    ),
    (
        "asymmetric_distances",
        &[
            "--cpus boot=2",
            "--memory-zone id=a,size=1G id=b,size=1G",
            "--numa guest_numa_id=0,cpus=[0],memory_zones=[a],distances=[1@21,2@80] \
           guest_numa_id=1,cpus=[1],memory_zones=[b],distances=[0@31] guest_numa_id=2",
        ],
    ),
    (
        "nothing_assigned",
        &[
            "--cpus boot=4",
            "--memory-zone id=a,size=1G id=b,size=1G",
            "--numa guest_numa_id=3 guest_numa_id=4",
        ],
    ),
    (
        "hmat",
        &[
            "--cpus boot=2",
            "--numa guest_numa_id=0,cpus=[0-1],memory_zones=[mem0],hmat=[0@100:120:90000:80000] \
           guest_numa_id=1,hmat=[0@300:350:40000:30000]",
        ],
    ),
    (
        "zone_around_the_32_bit_hole",
        &[
            "--cpus boot=2",
            "--memory-zone id=a,size=2G id=b,size=3G",
            "--numa guest_numa_id=0,cpus=[0],memory_zones=[a] guest_numa_id=1,cpus=[1],memory_zones=[b]",
        ],
    ),
    (
        "sixty_four_nodes",
        &["--cpus boot=64", "--memory size=8G", SIXTY_FOUR],
    ),
    (
        "gpu_on_its_own_segment",
        &[
            "--plan-facts coherent",
            "--cpus boot=4",
            "--memory size=64G",
            "--platform num_pci_segments=2",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0],pci_segments=[1]",
            "empty 1-8",
            GPU,
            ",pci_segment=1,pci_device_id=0,guest_numa_ids=[1-8],generic_initiator=on",
        ],
    ),
    (
        "gpu_and_its_nodes",
        &[
            "--plan-facts coherent",
            "--cpus boot=4",
            "--memory size=64G",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0]",
            "empty 1-8",
            GPU,
            ",guest_numa_ids=[1-8]",
        ],
    ),
    (
        "gpu_behind_a_memory_only_node",
        &[
            "--plan-facts coherent",
            "--cpus boot=4",
            "--memory-zone id=a,size=32G id=b,size=32G",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[a] guest_numa_id=1,memory_zones=[b]",
            EIGHT,
            GPU,
            ",guest_numa_ids=[2-9]",
        ],
    ),
    (
        "gpu_with_nodes_of_its_own_making",
        &[
            "--plan-facts coherent",
            "--cpus boot=4",
            "--memory size=64G",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0]",
            GPU,
            ",guest_numa_ids=auto",
        ],
    ),
    (
        "gpu_with_holes_between_its_nodes",
        &[
            "--plan-facts coherent",
            "--cpus boot=4",
            "--memory size=64G",
            "--platform num_pci_segments=2",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0]",
            "empty 1-4",
            GPU,
            ",guest_numa_ids=[1,3],generic_initiator=only,pci_segment=1,pci_device_id=0",
        ],
    ),
    (
        "gpu_on_a_host_with_an_old_kvm",
        &[
            "--plan-facts old_kvm",
            "--cpus boot=4",
            "--memory size=64G",
            GPU,
            ",x_allow_noncacheable=on",
        ],
    ),
    (
        "four_gpus",
        &[
            "--plan-facts gb200",
            "--cpus boot=8",
            "--memory-zone id=a,size=240G id=b,size=240G",
            "--platform num_pci_segments=5",
            FOUR_GPUS,
            "--device path=/sys/bus/pci/devices/0008:01:00.0,id=gpu0,pci_segment=1,pci_device_id=0,guest_numa_ids=[2-9]",
            "path=/sys/bus/pci/devices/0009:01:00.0,id=gpu1,pci_segment=2,pci_device_id=0,guest_numa_ids=[10-17]",
            "path=/sys/bus/pci/devices/0018:01:00.0,id=gpu2,pci_segment=3,pci_device_id=0,guest_numa_ids=[18-25]",
            "path=/sys/bus/pci/devices/0019:01:00.0,id=gpu3,pci_segment=4,pci_device_id=0,guest_numa_ids=[26-33]",
        ],
    ),
    (
        "two_gpus_on_one_segment",
        &[
            "--plan-facts gb200",
            "--cpus boot=4",
            "--memory size=240G",
            "--platform num_pci_segments=2",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0],pci_segments=[1]",
            "--device path=/sys/bus/pci/devices/0008:01:00.0,id=gpu0,pci_segment=1,pci_device_id=0,guest_numa_ids=auto:7",
            "path=/sys/bus/pci/devices/0009:01:00.0,id=gpu1,pci_segment=1,guest_numa_ids=auto:7",
        ],
    ),
    ("entropy", &["--cpus boot=1", "--rng src=/dev/urandom"]),
    (
        "gpu_and_entropy_on_another_segment",
        &[
            "--plan-facts coherent",
            "--cpus boot=4",
            "--memory size=64G",
            "--platform num_pci_segments=2",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0]",
            "empty 1-8",
            "--rng pci_segment=1,id=entropy",
            GPU,
            ",guest_numa_ids=[1-8]",
        ],
    ),
    (
        "entropy_beside_passed_through_devices",
        &[
            "--plan-facts mixed",
            "--cpus boot=2",
            "--memory size=4G",
            "--rng src=/dev/hwrng",
            "--device path=/sys/bus/pci/devices/0000:01:00.0",
            "path=/sys/bus/pci/devices/0000:02:00.0,id=shm,pci_device_id=2",
        ],
    ),
    (
        "disks_and_a_gpu_on_its_own_segment",
        &[
            "--plan-facts coherent",
            "--cpus boot=4",
            "--memory size=64G",
            "--platform num_pci_segments=2",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0]",
            "empty 1-8",
            "--disk path=/i,num_queues=4 path=/j,readonly=on,id=data,pci_device_id=1",
            "--rng src=/dev/urandom",
            GPU,
            ",pci_segment=1,pci_device_id=0,guest_numa_ids=[1-8]",
        ],
    ),
    (
        "devices_of_many_kinds",
        &[
            "--plan-facts mixed",
            "--cpus boot=4",
            "--memory size=8G,shared=on",
            "--platform num_pci_segments=2",
            "--numa guest_numa_id=0,cpus=[0-3],memory_zones=[mem0],pci_segments=[1]",
            "--device path=/sys/bus/pci/devices/0000:01:00.0",
            "path=/sys/bus/pci/devices/0000:02:00.0,id=shm,pci_device_id=5",
            "path=/sys/bus/pci/devices/0000:03:00.0,id=net,pci_segment=1",
            "path=/sys/bus/pci/devices/0009:01:00.0,id=gpu0,guest_numa_ids=auto:4",
            "--user-device socket=/run/model.sock",
        ],
    ),
];

/// A device with memory; what follows says more of it.
const GPU: &str = "--device path=/sys/bus/pci/devices/0009:01:00.0,id=gpu0";
/// Empty nodes 2 to 9.
const EIGHT: &str = "empty 2-9";
/// Stands for 64 nodes with a CPU each.
const SIXTY_FOUR: &str = "sixty-four";
/// Stands for two nodes with CPUs and 32 for GPUs, two GPUs near each of them.
const FOUR_GPUS: &str = "four-gpus";

fn options(lines: &[&str], isa: &str) -> Vec<String> {
    let nodes = |numbers: std::ops::RangeInclusive<u32>, rest: fn(u32) -> String| {
        let node = |number| format!("guest_numa_id={number}{}", rest(number));
        numbers.map(node).collect::<Vec<_>>()
    };
    let mut all = vec![
        "cloud-hypervisor".to_owned(),
        "--kernel".into(),
        "k".into(),
        "--plan".into(),
    ];
    if facts(lines).is_none() {
        all.extend([
            "--plan-facts".to_owned(),
            format!("{FOLDER}/facts.{isa}.json"),
        ]);
    }
    for line in lines {
        if let Some(range) = line.strip_prefix("empty ") {
            let (first, last) = range.split_once('-').unwrap();
            let range = first.parse().unwrap()..=last.parse().unwrap();
            all.push("--numa".into());
            all.extend(nodes(range, |_| String::new()));
            continue;
        }
        match *line {
            SIXTY_FOUR => {
                all.push("--numa".into());
                all.extend(nodes(0..=63, |number| format!(",cpus=[{number}]")));
            }
            FOUR_GPUS => {
                all.push("--numa".into());
                all.extend(nodes(0..=33, four_gpus));
            }
            line if line.starts_with("--plan-facts ") => {
                let file = facts_file(lines, isa).unwrap();
                all.extend(["--plan-facts".to_owned(), file.display().to_string()]);
            }
            line if line.starts_with(',') => all.last_mut().unwrap().push_str(line),
            line => all.extend(line.split_whitespace().map(str::to_owned)),
        }
    }
    all
}

/// What is said of a node of [`FOUR_GPUS`].
fn four_gpus(number: u32) -> String {
    let Some(position) = number.checked_sub(2) else {
        let [cpus, zone, other, segments] = match number {
            0 => ["0-3", "a", "1", "1-2"],
            _ => ["4-7", "b", "0", "3-4"],
        };
        return format!(
            ",cpus=[{cpus}],memory_zones=[{zone}],pci_segments=[{segments}],distances=[{other}@20]\
             ,hmat=[{number}@120:120:500000:450000]"
        );
    };
    let near = position / 16;
    let far = 1 - near;
    format!(
        ",distances=[{near}@30,{far}@60],hmat=[{near}@600:650:400000:300000,\
         {far}@1100:1200:150000:100000]"
    )
}

/// The name of the recorded facts, if there are some for this machine.
fn facts<'a>(lines: &[&'a str]) -> Option<&'a str> {
    lines
        .iter()
        .find_map(|line| line.strip_prefix("--plan-facts "))
}

/// The recorded facts; machines that there are for one instruction set alone have none for the other.
fn facts_file(lines: &[&str], isa: &str) -> Option<PathBuf> {
    let file = match facts(lines) {
        Some(name) => Path::new(FOLDER).join(format!("facts/{name}.{isa}.json")),
        None => Path::new(FOLDER).join(format!("facts.{isa}.json")),
    };
    file.exists().then_some(file)
}

/// All machines, each with the instruction sets that there is one for.
fn machines() -> impl Iterator<Item = (&'static str, &'static [&'static str], &'static str)> {
    let machines = MACHINES.iter();
    let machines =
        machines.flat_map(|(name, lines)| ["x86_64", "aarch64"].map(|isa| (*name, *lines, isa)));
    machines.filter(|(_, lines, isa)| facts_file(lines, isa).is_some())
}

fn parse(lines: &[&str], isa: &str) -> (VmConfig, PlanOptions) {
    match cli::parse(options(lines, isa).into_iter().map(Into::into)) {
        Ok(Command::Plan { config, options }) => (*config, options),
        other => panic!("{lines:?}: {other:?}"),
    }
}

/// What is shown of a machine, and the folder with its tables.
fn plan(lines: &[&str], isa: &str, folder: &Path) -> Result<String, ShowError> {
    let (config, options) = parse(lines, isa);
    let options = PlanOptions {
        folder: Some(folder.to_owned()),
        ..options
    };
    show(&config, &options)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Bytes in hexadecimal; a line that repeats the one before it is left out, as hexdump(1) does.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut last: &[u8] = &[];
    for (number, line) in bytes.chunks(16).enumerate() {
        if line != last {
            let bytes: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            text.push_str(&format!("{:04x}: {}\n", number * 16, bytes.join(" ")));
        }
        last = line;
    }
    text
}

#[test]
fn plans_are_what_they_were() {
    let mut changed = Vec::new();
    for (name, lines, isa) in machines() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = plan(lines, isa, folder.path()).unwrap();
        for table in ["srat", "slit", "hmat"] {
            if let Ok(bytes) = fs::read(folder.path().join(format!("{table}.dat"))) {
                text.push_str(&format!("\n{table}\n{}", dump(&bytes)));
            }
        }
        let golden = Path::new(FOLDER).join(format!("{name}.{isa}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &text).unwrap();
        } else if fs::read_to_string(&golden).unwrap_or_default() != text {
            changed.push(format!("{}:\n{text}", golden.display()));
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

#[test]
fn iasl_understands_every_table() {
    for (_, lines, isa) in machines() {
        let folder = tempfile::tempdir().unwrap();
        plan(lines, isa, folder.path()).unwrap();
        for file in files(folder.path()) {
            let understood =
                file.ends_with("rsdp.dat") || crate::acpi::tests::iasl::disassembles(&file);
            if !understood {
                return;
            }
        }
    }
}

/// What is printed as JSON is what can be given back as facts, and has the plan as a machine gets it.
#[test]
fn json_is_the_plan_and_the_facts() {
    let folder = tempfile::tempdir().unwrap();
    for (_, lines, isa) in machines() {
        let (config, options) = parse(lines, isa);
        let facts = recorded(options.facts.as_deref().unwrap()).unwrap();
        let has_devices = !(config.devices.is_empty() && config.user_devices.is_empty());
        assert_eq!(facts.devices.is_empty(), !has_devices);
        let text = show(
            &config,
            &PlanOptions {
                json: true,
                ..options
            },
        )
        .unwrap();
        let file = folder.path().join("shown.json");
        fs::write(&file, &text).unwrap();
        assert_eq!(recorded(&file).unwrap(), facts);
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        let plan: Plan = serde_json::from_value(shown["plan"].clone()).unwrap();
        assert_eq!(plan, Plan::new(&config, &facts).unwrap());
        let again = PlanOptions {
            json: true,
            facts: Some(file),
            folder: None,
        };
        assert_eq!(show(&config, &again).unwrap(), text);
    }
}

/// A slot that is kept is shown as what comes later, with all that is planned for it.
#[test]
fn a_reserved_function_is_shown_with_its_place() {
    for isa in ["x86_64", "aarch64"] {
        let (_, lines) = MACHINES.last().unwrap();
        let (config, options) = parse(lines, isa);
        let facts = recorded(options.facts.as_deref().unwrap()).unwrap();
        let mut plan = Plan::new(&config, &facts).unwrap();
        let of_devices = text::describe(&plan, &facts);
        for segment in &mut plan.pci.as_mut().unwrap().segments {
            let functions = segment.functions.iter_mut();
            let is_probed =
                |source: &FunctionSource| !matches!(source, FunctionSource::Virtio { .. });
            for function in functions.filter(|function| is_probed(&function.source)) {
                function.source = FunctionSource::Reserved;
                function.facts.driver = None;
            }
        }
        let reserved = text::describe(&plan, &facts);
        let mut kept = 0;
        for (before, after) in of_devices.lines().zip(reserved.lines()) {
            match ["      host device ", "      vfio-user server "]
                .iter()
                .any(|start| before.starts_with(start))
            {
                true => {
                    kept += 1;
                    assert_eq!(after, "      kept for a device that comes later");
                }
                false => assert_eq!(after, before),
            }
        }
        assert_eq!(
            (kept, of_devices.lines().count()),
            (5, reserved.lines().count())
        );
    }
}

#[test]
fn what_the_recorded_host_lacks_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for (options, message) in [
        (
            "--memory-zone id=a,size=1G,host_numa_node=2",
            "--memory-zone id=a: host_numa_node=2: the host's nodes with memory are [0, 1]",
        ),
        (
            "--memory size=1G,hugepages=on,hugepage_size=64K",
            "--memory hugepage_size=65536: the host has huge pages of [2097152, 1073741824] bytes",
        ),
        (
            "--device path=/sys/bus/pci/devices/0000:01:00.0",
            "--device path=/sys/bus/pci/devices/0000:01:00.0: nothing is known of this device; \
             --plan-facts must have what was found out about it, under this path or socket as it is \
             written here",
        ),
    ] {
        let shown = plan(&[options], "x86_64", folder.path());
        assert_eq!(shown.unwrap_err().to_string(), message);
    }
    let facts = Path::new("/nowhere/facts");
    let error = recorded(facts).unwrap_err().to_string();
    assert_eq!(error, "--plan-facts /nowhere/facts: cannot read it");
}
