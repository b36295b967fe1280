//! Golden plans: what operators are shown, and the bytes of the tables that tell of NUMA.
//!
//! `UPDATE_GOLDEN=1 cargo test -p vmm show` writes them anew.

use std::path::{Path, PathBuf};

use super::*;
use crate::config::cli::{self, Command};

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
];

/// Stands for empty nodes 2 to 9.
const EIGHT: &str = "eight";
/// Stands for 64 nodes with a CPU each.
const SIXTY_FOUR: &str = "sixty-four";

fn options(lines: &[&str]) -> Vec<String> {
    let nodes = |numbers: std::ops::Range<u32>, rest: fn(u32) -> String| {
        let node = |number| format!("guest_numa_id={number}{}", rest(number));
        numbers.map(node).collect::<Vec<_>>()
    };
    let mut all = vec![
        "cloud-hypervisor".to_owned(),
        "--kernel".into(),
        "k".into(),
        "--plan".into(),
    ];
    for line in lines {
        match *line {
            EIGHT => {
                all.push("--numa".into());
                all.extend(nodes(2..10, |_| String::new()));
            }
            SIXTY_FOUR => {
                all.push("--numa".into());
                all.extend(nodes(0..64, |number| format!(",cpus=[{number}]")));
            }
            line => all.extend(line.split_whitespace().map(str::to_owned)),
        }
    }
    all
}

/// What is shown of a machine, and the folder with its tables.
fn plan(lines: &[&str], isa: &str, folder: &Path) -> (VmConfig, Result<String, ShowError>) {
    let Ok(Command::Plan { config, options }) =
        cli::parse(options(lines).into_iter().map(Into::into))
    else {
        panic!("{lines:?}");
    };
    let options = PlanOptions {
        folder: Some(folder.to_owned()),
        facts: Some(Path::new(FOLDER).join(format!("facts.{isa}.json"))),
        ..options
    };
    let shown = show(&config, &options);
    (*config, shown)
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
    for (name, lines) in MACHINES {
        for isa in ["x86_64", "aarch64"] {
            let folder = tempfile::tempdir().unwrap();
            let (_, shown) = plan(lines, isa, folder.path());
            let mut text = shown.unwrap();
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
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

#[test]
fn iasl_understands_every_table() {
    for (_, lines) in MACHINES {
        for isa in ["x86_64", "aarch64"] {
            let folder = tempfile::tempdir().unwrap();
            plan(lines, isa, folder.path()).1.unwrap();
            for file in files(folder.path()) {
                let understood =
                    file.ends_with("rsdp.dat") || crate::acpi::tests::iasl::disassembles(&file);
                if !understood {
                    return;
                }
            }
        }
    }
}

/// What is printed as JSON is what can be given back as facts, and has the plan as a machine gets it.
#[test]
fn json_is_the_plan_and_the_facts() {
    let folder = tempfile::tempdir().unwrap();
    let facts = recorded(&Path::new(FOLDER).join("facts.aarch64.json")).unwrap();
    let (config, _) = plan(TWO_NODES, "aarch64", folder.path());
    let options = PlanOptions {
        json: true,
        facts: Some(Path::new(FOLDER).join("facts.aarch64.json")),
        ..PlanOptions::default()
    };
    let text = show(&config, &options).unwrap();
    let file = folder.path().join("shown.json");
    fs::write(&file, &text).unwrap();
    assert_eq!(recorded(&file).unwrap(), facts);
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let plan: Plan = serde_json::from_value(shown["plan"].clone()).unwrap();
    assert_eq!(plan, Plan::new(&config, &facts).unwrap());
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
    ] {
        let (_, shown) = plan(&[options], "x86_64", folder.path());
        assert_eq!(shown.unwrap_err().to_string(), message);
    }
    let facts = Path::new("/nowhere/facts");
    let error = recorded(facts).unwrap_err().to_string();
    assert_eq!(error, "--plan-facts /nowhere/facts: cannot read it");
}
