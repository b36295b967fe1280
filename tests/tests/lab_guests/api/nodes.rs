//! Devices with NUMA nodes of their own, given over the API: what `vm.info` and `ch-remote numa` say
//! is what Linux finds; and what is left when the server of a device dies.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::coherent_device::Options;
use tests::{CMDLINE, CoherentDevice, Initramfs, Linux, Report};

const MIB: u64 = 1 << 20;

/// Nodes with CPUs or RAM, whose ids are not the numbers that Linux gives them: node 0, and node 1.
const FIRST: u32 = 0;
const SECOND: u32 = 3;
/// RAM of both in MiB.
const RAM: [u64; 2] = [512, 384];
/// Nodes of the first device: those that are declared, and those of the second, which `auto:2` makes.
const DECLARED: [u32; 2] = [6, 7];
const MADE: [u32; 2] = [8, 9];
/// Where the devices are: the segment of the second node, and the first free place.
const BDFS: [&str; 2] = ["0001:00:05.0", "0000:00:01.0"];

/// What can be used of the first device's memory: less than its BAR, which is what such memory is known
/// by. That of the second device could be any.
const USABLE: u64 = 448 * MIB;
const BAR: u64 = 512 * MIB;
/// What each node of a device is given.
const GIVEN: u64 = 128 * MIB;

const SCRIPT: &str = r#"
folder() { echo "/sys/bus/pci/devices/$1"; }
files() { echo "$(folder "$1")/coherent_memory"; }
# What configuration space begins with, not as the kernel remembers it.
ids() { od -An -tx1 -N4 "$(folder "$1")/config"; }
# Devices that are lost are ones, as soon as the VMM has noticed.
is_lost() {
    tries=0
    until [ "$(ids "$1")" = " ff ff ff ff" ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || return 1
        usleep 100000
    done
}
give() {
    for bdf in $BDFS; do
        for node in 1 2; do echo "$GIVEN" >"$(files "$bdf")/add" || return 1; done
    done
}
topology() {
    for folder in /sys/devices/system/node/node[0-9]*; do
        number=${folder##*/node}
        echo "$number cpus $(cat "$folder/cpulist")"
        echo "$number distances $(cat "$folder/distance")"
        echo "$number KiB $(awk '/MemTotal/ { print $4 }' "$folder/meminfo")"
    done
}

if [ ! -e "$(folder "${BDFS% *}")" ]; then
    section second/devices sh -c "cd /sys/bus/pci/devices; echo *"
    return 0
fi
section possible cat /sys/devices/system/node/possible
section has_memory cat /sys/devices/system/node/has_memory
section initiators cat /sys/devices/system/node/has_generic_initiator
section load insmod /lib/coherent_memory.ko
for bdf in $BDFS; do
    section "bars/$bdf" cat "$(folder "$bdf")/resource"
    section "near/$bdf" cat "$(folder "$bdf")/numa_node"
    section "source/$bdf" cat "$(files "$bdf")/source"
done
section give give
for bdf in $BDFS; do section "nodes/$bdf" cat "$(files "$bdf")/nodes"; done
section topology topology
echo ready
read -r answer </dev/console
section lost is_lost "${BDFS% *}"
section alive ids "${BDFS#* }"
echo bereft
sleep 1000
"#;

fn device(usable: Option<u64>) -> Result<CoherentDevice> {
    CoherentDevice::start(Options {
        memory: BAR,
        usable,
        ..Options::default()
    })
}

/// What is asked for before there are devices.
fn machine(linux: &Linux) -> Result<Value> {
    let script = format!("BDFS='{}' GIVEN={GIVEN}\n{SCRIPT}", BDFS.join(" "));
    let initramfs = Initramfs::new(&script).module("coherent_memory");
    let cmdline = format!("{CMDLINE} memhp_default_state=online_movable");
    let mut machine = linux.machine(&initramfs, &cmdline)?;
    machine["cpus"] = json!({"boot_vcpus": 3, "max_vcpus": 3});
    machine["memory"] = json!({"size": 0, "zones": [
        {"id": "near", "size": RAM[0] * MIB, "shared": true},
        {"id": "far", "size": RAM[1] * MIB, "shared": true},
    ]});
    machine["platform"] = json!({"num_pci_segments": 2});
    let distance = |to: u32, distance: u32| json!({"destination": to, "distance": distance});
    machine["numa"] = json!([
        {"guest_numa_id": FIRST, "cpus": [0, 2], "memory_zones": ["near"],
         "distances": [distance(SECOND, 21), distance(DECLARED[0], 60), distance(DECLARED[1], 61)]},
        {"guest_numa_id": SECOND, "cpus": [1], "memory_zones": ["far"], "pci_segments": [1],
         "distances": [distance(FIRST, 31)]},
        {"guest_numa_id": DECLARED[0]},
        {"guest_numa_id": DECLARED[1]},
    ]);
    Ok(machine)
}

/// A number after `0x`.
fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// BARs of a device as Linux has them: index, address and size. Lines of `resource` are first and last
/// address and flags, for each BAR in its order (Documentation/PCI/sysfs-pci.rst).
fn bars(report: &Report, bdf: &str) -> Result<Vec<(u64, u64, u64)>> {
    let text = report.text(&format!("bars/{bdf}"))?;
    let mut bars = Vec::new();
    for (index, line) in (0..6).zip(text.lines()) {
        let mut words = line.split(' ').filter_map(hexadecimal);
        let (start, end) = words.next().zip(words.next()).context("two numbers")?;
        if end > 0 {
            bars.push((index, start, end - start + 1));
        }
    }
    Ok(bars)
}

/// A node as Linux has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Node {
    cpus: String,
    distances: Vec<u64>,
    kib: u64,
}

/// What Linux says of nodes, by their numbers.
fn topology(report: &Report) -> Result<BTreeMap<u64, Node>> {
    let mut nodes = BTreeMap::<u64, Node>::new();
    for line in report.text("topology")?.lines() {
        let mut words = line.splitn(3, ' ');
        let number = words.next().context("a number")?.parse()?;
        let node = nodes.entry(number).or_default();
        let (what, value) = words.next().zip(words.next()).context("two words")?;
        match what {
            "cpus" => value.clone_into(&mut node.cpus),
            "distances" => {
                let distances = value.split(' ').map(str::parse);
                node.distances = distances.collect::<Result<_, _>>()?;
            }
            _ => node.kib = value.parse()?,
        }
    }
    Ok(nodes)
}

/// What `vm.info` says is what Linux finds, by the numbers that it was told Linux will use.
fn assert_info(info: &Value, report: &Report) -> Result<()> {
    let numa = &info["numa"];
    let nodes = numa["nodes"].as_array().context("no nodes")?;
    assert_eq!(
        report.text("possible")?.trim(),
        format!("0-{}", nodes.len() - 1)
    );
    assert_eq!(report.text("has_memory")?.trim(), "0-1");
    let linux = topology(report)?;
    assert_eq!(linux.len(), nodes.len());
    for ((number, seen), (told, distances)) in linux.iter().zip(
        nodes
            .iter()
            .zip(numa["distances"].as_array().context("rows")?),
    ) {
        assert_eq!(told["linux_node"], *number);
        assert_eq!(*distances, json!(seen.distances), "node {number}");
        let cpus: Vec<u32> = serde_json::from_value(told["cpus"].clone())?;
        assert_eq!(seen.cpus, vmm::plan::ranges(&cpus), "node {number}");
        let ranges = told["memory"].as_array().context("no memory")?.iter();
        let bytes = ranges
            .filter_map(|range| range["size"].as_u64())
            .sum::<u64>();
        match told.get("device") {
            None => {
                // Less what the kernel keeps.
                let most = bytes >> 10;
                ensure!(
                    (most - most / 4..=most).contains(&seen.kib),
                    "{told}: {seen:?}"
                );
            }
            Some(_) => assert_eq!((bytes, seen.kib), (0, GIVEN >> 10), "node {number}"),
        }
    }
    Ok(())
}

/// What `vm.info` says of the devices is what Linux and its driver find.
fn assert_devices(info: &Value, report: &Report) -> Result<()> {
    let devices = info["numa"]["devices"].as_array().context("no devices")?;
    let mut devices: Vec<_> = devices.iter().collect();
    devices.sort_by_key(|device| device["id"].as_str() != Some("gpu0"));
    let expected = [("gpu0", DECLARED, Some(USABLE)), ("gpu1", MADE, None)];
    assert_eq!(devices.len(), expected.len());
    let linux = info["numa"]["nodes"].as_array().context("no nodes")?;
    for (((id, nodes, size), bdf), told) in expected.into_iter().zip(BDFS).zip(devices) {
        let tree = &info["device_tree"][id];
        assert_eq!(told["id"], id);
        assert_eq!(
            (&told["pci_bdf"], &tree["pci_bdf"]),
            (&json!(bdf), &json!(bdf))
        );
        assert_eq!(told["guest_numa_ids"], json!(nodes));
        let source = report.text(&format!("source/{bdf}"))?.trim();
        assert_eq!((&told["dsd"], source), (&json!(true), "dsd"));
        assert_eq!(told["generic_initiators"], true);

        let seen = bars(report, bdf)?;
        let resources = tree["resources"].as_array().context("no resources")?;
        let bars = resources
            .iter()
            .filter_map(|resource| resource.get("PciBar"));
        let bars = bars.map(|bar| json!([bar["index"], bar["base"], bar["size"]]));
        assert_eq!(json!(seen), Value::from_iter(bars));
        let (bar, address, length) = *seen.last().context("no BARs")?;
        assert_eq!(length, BAR);
        let memory = size.map(|size| json!({"bar": bar, "address": address, "size": size}));
        assert_eq!(told.get("coherent_memory"), memory.as_ref());

        // The driver gave each of its nodes memory, from where the VMM says that it is.
        let lines = nodes.iter().zip(0..).map(|(node, position)| {
            let mut told = linux.iter().filter(|told| told["guest_numa_id"] == *node);
            let number = told.next().map_or(&Value::Null, |told| &told["linux_node"]);
            let start = address + position * GIVEN;
            format!("{node} {number} {start:#x} {GIVEN}\n")
        });
        let given = report.text(&format!("nodes/{bdf}"))?;
        assert_eq!(given, lines.collect::<String>());
    }
    assert_eq!(report.text("initiators")?.trim(), "2-5");
    for (bdf, node) in BDFS.into_iter().zip(["1", "0"]) {
        assert_eq!(report.text(&format!("near/{bdf}"))?.trim(), node);
    }
    Ok(())
}

/// What `ch-remote numa` prints, made from what Linux says.
fn table(report: &Report) -> Result<String> {
    let linux = topology(report)?;
    let ids = [FIRST, SECOND, DECLARED[0], DECLARED[1], MADE[0], MADE[1]];
    let owners = ["near", "far", "gpu0", "gpu0", "gpu1", "gpu1"];
    let mut text =
        String::from("NUMA nodes\n    id  Linux  CPUs        RAM         zones or device\n");
    for (((number, node), id), owner) in linux.iter().zip(ids).zip(owners) {
        let ram = match RAM.get(usize::try_from(*number)?) {
            Some(mebibytes) => format!("{mebibytes} MiB"),
            None => "empty".to_owned(),
        };
        let cpus = if node.cpus.is_empty() {
            "-"
        } else {
            &node.cpus
        };
        writeln!(
            text,
            "  {id:>4}  {number:>5}  {cpus:<10}  {ram:<10}  {owner}"
        )?;
    }
    let columns = |numbers: &[u64]| -> String {
        numbers
            .iter()
            .map(|number| format!("{number:>4}"))
            .collect()
    };
    writeln!(text, "\nDistances, from a row's node to a column's")?;
    writeln!(text, "        {}", columns(&ids.map(u64::from)))?;
    for (node, id) in linux.values().zip(ids) {
        writeln!(text, "  {id:>4}  {}", columns(&node.distances))?;
    }
    writeln!(text, "\nDevices")?;
    let told = "told by _DSD and generic initiators";
    // By their addresses.
    writeln!(text, "  {}  gpu1\n      nodes 8-9, {told}", BDFS[1])?;
    writeln!(text, "  {}  gpu0", BDFS[0])?;
    let seen = bars(report, BDFS[0])?;
    let (bar, start, _) = seen.last().context("no BARs")?;
    let (end, mebibytes) = (start + USABLE - 1, USABLE / MIB);
    writeln!(
        text,
        "      memory that CPUs may cache: {mebibytes} MiB in BAR {bar}, {start:#014x}-{end:#014x}"
    )?;
    writeln!(text, "      nodes 6-7, {told}")?;
    Ok(text)
}

/// Adds the devices to a virtual machine that is not booted.
fn add_devices(linux: &Linux, devices: &[CoherentDevice; 2]) {
    for body in [
        json!({"socket": devices[0].socket(), "id": "gpu0", "guest_numa_ids": DECLARED,
               "pci_segment": 1, "pci_device_id": 5}),
        json!({"socket": devices[1].socket(), "id": "gpu1", "guest_numa_ids": "auto:2"}),
    ] {
        linux.server.put("vm.add-user-device", &body).expect(204);
    }
}

/// Holds that devices with nodes cannot come while Linux runs, with the reason.
fn refuse_another(linux: &Linux) -> Result<()> {
    for nodes in [json!([10]), json!("auto:1")] {
        let body = json!({"socket": "/run/gpu2", "id": "gpu2", "guest_numa_ids": nodes});
        let reason = linux.server.put("vm.add-user-device", &body);
        let reason = reason.expect(400).reasons().concat();
        for part in [
            "gpu2",
            "guest_numa_ids",
            "at boot",
            "Shut the virtual machine down",
        ] {
            ensure!(reason.contains(part), "{reason}");
        }
    }
    let devices = linux.server.info()["config"]["user_devices"].clone();
    assert_eq!(devices.as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn linux_finds_nodes_and_devices_as_the_api_says_and_outlives_the_loss_of_one() -> Result<()> {
    let mut linux = Linux::start(&["--no-shutdown"])?;
    linux.server.put("vm.create", &machine(&linux)?).expect(204);
    let mut devices = [device(Some(USABLE))?, device(None)?];
    add_devices(&linux, &devices);
    linux.boot()?;
    linux.wait_for_lines("ready", 1)?;
    refuse_another(&linux)?;
    let info = linux.server.info();
    let shown = linux.remote(&["numa"])?;

    devices[0].kill()?;
    linux.write("lost\n")?;
    linux.wait_for_lines("bereft", 1)?;
    let events = ["booting", "booted", "device-lost"];
    linux.expect_events(&events)?;
    let lost = linux.events()?.pop().map(|(.., properties)| properties);
    let lost = lost.context("no events")?;
    assert_eq!(lost["id"], "gpu0");
    assert_eq!(lost["reason"], "the vfio-user server hung up");
    let option = lost["option"].as_str().context("no option")?;
    ensure!(option.starts_with("--user-device"), "{lost}");
    // What was planned stays.
    assert_eq!(linux.server.info(), info);

    linux.server.act("vm.reboot").expect(204);
    let report = linux.report()?;
    linux.server.wait_for_state("Shutdown");
    let rest = ["rebooting", "rebooted", "shutdown"];
    linux.expect_events(&[&events[..], &rest].concat())?;

    assert_info(&info, &report)?;
    assert_devices(&info, &report)?;
    assert_eq!(shown, table(&report)?);
    report.text("lost")?;
    assert_eq!(report.text("alive")?.trim(), "de 10 42 23");
    let second = report.text("second/devices")?;
    // Those of segment 0 are the host bridge, what is left, and the source of randomness.
    let left = "0000:00:00.0 0000:00:01.0 0000:00:02.0 0001:00:00.0";
    assert_eq!(second.trim(), left);
    Ok(())
}
