//! NUMA nodes: what Linux makes of the tables, held against what the plan says it will.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{CMDLINE, Initramfs, Report, Vmm};

/// What a guest knows of its nodes, and its tables.
const SCRIPT: &str = r#"
cd /sys/devices/system/node
section nodes sh -c 'grep -H . possible has_memory node*/distance node*/cpulist'
for table in SRAT SLIT HMAT; do
    [ ! -f /sys/firmware/acpi/tables/$table ] || section acpi/$table base64 /sys/firmware/acpi/tables/$table
done
section sizes sh -c 'grep -H MemTotal node*/meminfo'
section complaints sh -c 'dmesg -r | grep -E "^<[0-4]>|(NUMA|SRAT|SLIT|HMAT).*([Ii]nvalid|[Ii]gnor|[Ff]ak|turned off|not used)" || true'
"#;

/// A machine's options.
type Options = &'static [&'static str];

/// Two nodes with everything, and eight for a device.
const EIGHT_EMPTY: Options = &[
    "--cpus",
    "boot=4",
    "--memory-zone",
    "id=a,size=768M",
    "id=b,size=512M",
    "--numa",
    "guest_numa_id=0,cpus=[0,2],memory_zones=[a],distances=[1@21,2@80,3@81],hmat=[0@100:120:90000:80000]",
    "guest_numa_id=1,cpus=[1,3],memory_zones=[b],distances=[0@31]",
    "guest_numa_id=2,hmat=[0@300:350:40000:30000]",
    "guest_numa_id=3",
    "guest_numa_id=4",
    "guest_numa_id=5",
    "guest_numa_id=6",
    "guest_numa_id=7",
    "guest_numa_id=8",
    "guest_numa_id=9",
];

/// Holes between ids, RAM without CPUs before CPUs.
const SPARSE: Options = &[
    "--cpus",
    "boot=2",
    "--memory-zone",
    "id=a,size=384M",
    "id=b,size=512M",
    "--numa",
    "guest_numa_id=1,memory_zones=[a]",
    "guest_numa_id=4,cpus=[0-1],memory_zones=[b]",
    "guest_numa_id=7",
    "guest_numa_id=200",
];

/// CPUs and RAM that no node was given.
const UNASSIGNED: Options = &[
    "--cpus",
    "boot=2",
    "--memory",
    "size=640M",
    "--numa",
    "guest_numa_id=2,cpus=[1]",
    "guest_numa_id=5",
];

/// A file below the guest's node folder.
struct Nodes(BTreeMap<String, String>);

impl Nodes {
    fn of(report: &Report) -> Result<Self> {
        let lines = report.text("nodes")?.lines();
        let files = lines.filter_map(|line| line.split_once(':'));
        Ok(Self(
            files
                .map(|(file, text)| (file.to_owned(), text.trim().to_owned()))
                .collect(),
        ))
    }

    fn file(&self, name: &str) -> Result<&str> {
        let text = self.0.get(name).map(String::as_str);
        text.with_context(|| format!("no {name} in {:?}", self.0))
    }

    fn has(&self, node: u64) -> bool {
        self.0.contains_key(&format!("node{node}/distance"))
    }
}

/// The plan that a machine gets on this host, as JSON, with its tables in `folder`.
fn plan(options: Options, folder: &std::path::Path) -> Result<Value> {
    let outcome = Vmm::new()?
        .args(["--kernel", "none", "--plan-format", "json"])
        .arg(format!("--plan={}", folder.display()))
        .args(options)
        .run()?
        .success()?;
    Ok(serde_json::from_str(&outcome.stdout)?)
}

/// Boots a machine and holds what Linux says against its plan.
fn check(options: Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shown = plan(options, folder.path())?;
    let report = Vmm::boot(&Initramfs::new(SCRIPT), CMDLINE)?
        .args(options)
        .run()?
        .report()?;
    for table in report.names("acpi/") {
        let planned = std::fs::read(folder.path().join(format!("{}.dat", table.to_lowercase())))?;
        assert_eq!(report.bytes(&format!("acpi/{table}"))?, planned, "{table}");
    }
    let numa = &shown["plan"]["numa"];
    let planned = numa["nodes"].as_array().context("no nodes")?;
    let nodes = Nodes::of(&report)?;
    assert_numbers(planned, &nodes)?;
    let distances = numa["distances"].as_array().context("no distances")?;
    assert_distances(planned, distances, &nodes)?;
    crate::report::assert_no_complaints(&report)
}

fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("{value} is no number"))
}

/// The numbers that Linux gave are those that were foretold: CPUs and RAM are where they should be.
fn assert_numbers(planned: &[Value], nodes: &Nodes) -> Result<()> {
    assert_eq!(nodes.file("possible")?, format!("0-{}", planned.len() - 1));
    let mut with_memory = Vec::new();
    for node in planned {
        let linux = number(&node["linux_node"])?;
        let cpus = node["cpus"].as_array().context("no CPUs")?;
        let ram = node["ram"].as_array().context("no RAM")?;
        if !ram.is_empty() {
            with_memory.push(u32::try_from(linux)?);
        }
        if cpus.is_empty() && ram.is_empty() && !nodes.has(linux) {
            // x86 shows such nodes once they have memory.
            ensure!(cfg!(target_arch = "x86_64"), "node {linux} is not there");
            continue;
        }
        let cpus: Vec<u32> = cpus
            .iter()
            .map(|cpu| Ok(u32::try_from(number(cpu)?)?))
            .collect::<Result<_>>()?;
        let list = nodes
            .file(&format!("node{linux}/cpulist"))
            .unwrap_or_default();
        assert_eq!(list, vmm::plan::ranges(&cpus), "CPUs of node {linux}");
    }
    with_memory.sort_unstable();
    assert_eq!(nodes.file("has_memory")?, vmm::plan::ranges(&with_memory));
    Ok(())
}

/// Linux lists the distances to the nodes that it shows, by its own numbers.
fn assert_distances(planned: &[Value], distances: &[Value], nodes: &Nodes) -> Result<()> {
    let mut shown = Vec::new();
    for (position, node) in planned.iter().enumerate() {
        let linux = number(&node["linux_node"])?;
        if nodes.has(linux) {
            shown.push((linux, position));
        }
    }
    shown.sort_unstable();
    for (linux, from) in &shown {
        let row = shown
            .iter()
            .map(|(_, to)| distances[*from][*to].to_string());
        let row = row.collect::<Vec<_>>().join(" ");
        assert_eq!(
            nodes.file(&format!("node{linux}/distance"))?,
            row,
            "node {linux}"
        );
    }
    Ok(())
}

#[test]
fn eight_empty_nodes_beside_two_others() -> Result<()> {
    check(EIGHT_EMPTY)
}

#[test]
fn sparse_and_memory_only_nodes_are_numbered_as_foretold() -> Result<()> {
    check(SPARSE)
}

#[test]
fn what_belongs_to_no_node_is_in_the_one_that_the_plan_says() -> Result<()> {
    check(UNASSIGNED)
}

/// Nodes of RAM have the RAM of their zones, less what the kernel keeps.
#[test]
fn nodes_have_the_ram_of_their_zones() -> Result<()> {
    let report = Vmm::boot(&Initramfs::new(SCRIPT), CMDLINE)?
        .args(SPARSE)
        .run()?
        .report()?;
    for (node, mebibytes) in [(0, 512), (1, 384)] {
        let prefix = format!("node{node}/meminfo:");
        let mut lines = report.text("sizes")?.lines();
        let line = lines.find(|line| line.starts_with(&prefix));
        let line = line.with_context(|| format!("no node {node}"))?;
        let kib = line.split_whitespace().nth_back(1).context("no size")?;
        let total = kib.parse::<u64>()? / 1024;
        let least = mebibytes - mebibytes / 16 - 64;
        ensure!((least..=mebibytes).contains(&total), "{line}");
    }
    Ok(())
}
