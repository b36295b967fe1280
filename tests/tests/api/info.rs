//! What `vm.info` says, held against what was asked for and what the guest finds.

use std::path::Path;

use serde_json::{Value, json};
use tests::CoherentDevice;
use tests::probe;

use crate::{MEMORY, MIB, console, machine, running, server, simulated, wait_for};

#[test]
fn ping_names_version_and_process() {
    let server = server(&[]);
    let pong = server.get("vmm.ping").expect(200).json();
    assert_eq!(pong["pid"], server.pid());
    assert_eq!(pong["features"], json!([]));
    for version in ["version", "build_version"] {
        let version = pong[version].as_str().unwrap();
        assert!(version.starts_with('v'), "{version}");
    }
}

#[test]
fn info_follows_the_state() {
    let server = server(&[]);
    let body = machine(&server, "listen");
    server.put("vm.create", &body).expect(204);
    let info = server.info();
    assert_eq!(info["state"], "Created");
    assert_eq!(info["memory_actual_size"], 64 * MIB);
    assert_eq!(info["config"]["payload"], body["payload"]);
    // Nothing is decided before boot.
    assert_eq!(info.get("device_tree"), None);
    server.act("vm.boot").expect(204);
    assert_eq!(server.info()["device_tree"]["__serial"]["id"], "__serial");
    server.act("vm.shutdown").expect(204);
    assert_eq!(server.info().get("device_tree"), None);
}

#[test]
fn the_serial_port_is_where_the_tree_says() {
    let info = running(&[]).info();
    let expected = json!({
        "id": "__serial",
        "resources": [{"PioAddressRange": {"base": 0x3f8, "size": 8}}, {"LegacyIrq": 4}],
        "children": [],
    });
    assert_eq!(info["device_tree"]["__serial"], expected);
    let devices = info["device_tree"].as_object().unwrap();
    let names: Vec<&String> = devices.keys().collect();
    assert_eq!(
        names,
        [
            "__acpi_sleep",
            "__console",
            "__ged",
            "__rng",
            "__rtc",
            "__serial"
        ]
    );
    // No nodes were asked for, so the guest is told of none.
    assert_eq!(info.get("numa"), None);
}

#[test]
fn a_pseudo_terminal_is_named_while_it_is_there() {
    for console in ["serial", "debug_console", "console"] {
        let server = server(&[]);
        let mut body = machine(&server, "listen");
        body[console] = json!({"mode": "Pty"});
        server.put("vm.create", &body).expect(204);
        let asked = server.info()["config"][console].clone();
        assert_eq!(asked.get("file"), None);
        server.act("vm.boot").expect(204);
        let open = server.info()["config"][console].clone();
        let path = open["file"].as_str().unwrap();
        assert!(path.starts_with("/dev/pts/"), "{open}");
        assert!(Path::new(path).exists());
        server.act("vm.reboot").expect(204);
        assert_eq!(server.info()["config"][console], open);
        server.act("vm.shutdown").expect(204);
        assert_eq!(server.info()["config"][console], asked);
    }
}

/// What is not asked for is decided on when the virtual machine is created.
#[test]
fn a_console_that_nobody_asked_for_is_described() {
    for (serial, mode) in [("Null", "Tty"), ("Tty", "Off")] {
        let server = server(&[]);
        let mut body = machine(&server, "listen");
        body["serial"] = json!({"mode": serial});
        server.put("vm.create", &body).expect(204);
        assert_eq!(server.info()["config"]["console"]["mode"], mode);
        server.act("vm.boot").expect(204);
        let info = server.info();
        assert_eq!(info["config"]["console"]["mode"], mode);
        let node = &info["device_tree"]["__console"];
        assert_eq!(node.is_object(), mode == "Tty", "{node}");
    }
}

#[test]
fn counters_are_there_and_count_nothing_without_devices_that_count() {
    let server = running(&[]);
    assert_eq!(server.get("vm.counters").expect(200).json(), json!({}));
}

#[test]
fn disks_count_from_boot_on() {
    let server = server(&[]);
    let image = server.folder().join("image");
    std::fs::write(&image, [0; 4096]).unwrap();
    server
        .put("vm.create", &machine(&server, "listen"))
        .expect(204);
    let disk = json!({"path": &image, "id": "data", "image_type": "Raw"});
    server.put("vm.add-disk", &disk).expect(204);
    server
        .put("vm.add-disk", &json!({"path": &image, "readonly": true}))
        .expect(204);
    server
        .put("vm.remove-device", &json!({"id": "_disk1"}))
        .expect(204);
    server.get("vm.counters").expect(405);
    server.act("vm.boot").expect(204);
    let counters = server.get("vm.counters").expect(200).json();
    let counters = counters.as_object().unwrap();
    assert_eq!(counters.keys().collect::<Vec<_>>(), ["data"]);
    let values = counters["data"].as_object().unwrap();
    for name in ["read_bytes", "read_ops", "write_bytes", "write_ops"] {
        assert_eq!(values[name], 0, "{values:?}");
    }
    assert_eq!(
        server.info()["config"]["disks"][0]["path"],
        image.display().to_string()
    );
}

/// A machine with nodes for a device, in both spellings.
struct Nodes {
    body: Value,
    options: Vec<String>,
}

fn nodes(device: &CoherentDevice, words: &str, folder: &Path) -> Nodes {
    let socket = device.socket().display().to_string();
    let kernel = probe::build().display().to_string();
    let console = folder.join("console").display().to_string();
    let body = json!({
        "payload": {"kernel": &kernel, "cmdline": words},
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "memory": {"size": 0, "zones": [
            {"id": "near", "size": 64 * MIB, "shared": true},
            {"id": "far", "size": 32 * MIB, "shared": true},
        ]},
        "serial": {"mode": "File", "file": &console},
        "console": {"mode": "Off"},
        "platform": {"num_pci_segments": 3, "system_uuid": "6b1f61a4-5a8e-4f36-9a0c-1f1b2f3a4b5c"},
        "numa": [
            {"guest_numa_id": 0, "cpus": [0, 1], "memory_zones": ["near"],
             "distances": [{"destination": 1, "distance": 30}]},
            {"guest_numa_id": 1, "memory_zones": ["far"], "pci_segments": [2]},
            {"guest_numa_id": 2}, {"guest_numa_id": 3}, {"guest_numa_id": 4},
        ],
        "user_devices": [
            {"socket": &socket, "id": "gpu0", "pci_segment": 2, "pci_device_id": 0,
             "guest_numa_ids": [2, 3, 4]},
        ],
    });
    let options = [
        "--kernel",
        &kernel,
        "--cmdline",
        words,
        "--cpus",
        "boot=2",
        "--memory",
        "size=0",
        "--memory-zone",
        "id=near,size=64M,shared=on",
        "id=far,size=32M,shared=on",
        "--serial",
        &format!("file={console}"),
        "--console",
        "off",
        "--platform",
        "num_pci_segments=3,system_uuid=6b1f61a4-5a8e-4f36-9a0c-1f1b2f3a4b5c",
        "--numa",
        "guest_numa_id=0,cpus=[0-1],memory_zones=[near],distances=[1@30]",
        "guest_numa_id=1,memory_zones=[far],pci_segments=[2]",
        "guest_numa_id=2",
        "guest_numa_id=3",
        "guest_numa_id=4",
        "--user-device",
        &format!("socket={socket},id=gpu0,pci_segment=2,pci_device_id=0,guest_numa_ids=[2-4]"),
    ];
    Nodes {
        body,
        options: options.map(ToOwned::to_owned).to_vec(),
    }
}

/// The guest prints every table, and the bytes are the same however it was asked for.
#[test]
fn a_machine_of_the_api_is_that_of_the_command_line_byte_for_byte() {
    let device = simulated();
    let words = "memmap acpi smbios listen";
    let mut by_api = server(&[]);
    let Nodes { body, .. } = nodes(&device, words, by_api.folder());
    by_api.put("vm.create", &body).expect(204);
    by_api.act("vm.boot").expect(204);
    wait_for(&mut by_api, "listen: ready", 1);
    let (info, printed) = (by_api.info(), console(&by_api));
    // The server serves one client at a time.
    by_api.act("vmm.shutdown").expect(204);
    assert_eq!(by_api.wait().code(), Some(0), "{}", by_api.errors());

    let device = simulated();
    let folder = tempfile::tempdir().unwrap();
    let Nodes { options, .. } = nodes(&device, words, folder.path());
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut by_options = server(&options);
    by_options.wait_until("tables", |_| {
        let text = std::fs::read_to_string(folder.path().join("console"));
        text.is_ok_and(|text| text.contains("listen: ready"))
    });
    let other = std::fs::read_to_string(folder.path().join("console")).unwrap();
    assert!(
        printed.contains("SRAT") && printed.contains("DSDT"),
        "{printed}"
    );
    assert_eq!(printed, other);
    let other = by_options.info();
    assert_eq!(info["device_tree"], other["device_tree"]);
    assert_eq!(info["numa"], other["numa"]);
    assert_eq!(info["memory_actual_size"], 96 * MIB);
}

#[test]
fn numa_says_what_the_guest_is_told() {
    let device = simulated();
    let server = server(&[]);
    let Nodes { body, .. } = nodes(&device, "listen", server.folder());
    server.put("vm.create", &body).expect(204);
    server.act("vm.boot").expect(204);
    let info = server.info();
    let numa = &info["numa"];
    let node = |id: usize| &numa["nodes"][id];
    assert_eq!(node(0)["cpus"], json!([0, 1]));
    assert_eq!(node(1)["memory_zones"], json!(["far"]));
    let bytes = |id| -> u64 {
        let ranges = node(id)["memory"].as_array().unwrap();
        ranges
            .iter()
            .map(|range| range["size"].as_u64().unwrap())
            .sum()
    };
    assert_eq!([0, 1, 2, 3, 4].map(bytes), [64 * MIB, 32 * MIB, 0, 0, 0]);
    for id in 0..5 {
        assert_eq!(node(id)["guest_numa_id"], id);
        assert_eq!(node(id)["proximity_domain"], id);
        assert_eq!(node(id)["linux_node"], id);
        let owner = if id < 2 { Value::Null } else { json!("gpu0") };
        assert_eq!(node(id).get("device").cloned().unwrap_or_default(), owner);
    }
    assert_eq!(numa["distances"][0][1], 30);
    let gpu = &numa["devices"][0];
    assert_eq!(gpu["id"], "gpu0");
    assert_eq!(gpu["pci_bdf"], "0002:00:00.0");
    assert_eq!(gpu["guest_numa_ids"], json!([2, 3, 4]));
    assert_eq!(gpu["dsd"], true);
    // Its memory is BAR 4, where the device tree says that this is.
    let memory = &gpu["coherent_memory"];
    let bars = info["device_tree"]["gpu0"]["resources"].as_array().unwrap();
    // It has no wired interrupt.
    assert!(
        bars.iter()
            .all(|resource| resource.get("LegacyIrq").is_none())
    );
    let bars = bars.iter().map(|resource| &resource["PciBar"]);
    let bar = bars.clone().find(|bar| bar["index"] == 4).unwrap();
    assert_eq!(
        (&memory["bar"], &memory["address"]),
        (&json!(4), &bar["base"])
    );
    assert_eq!(memory["size"], MEMORY);
    assert_eq!(
        (&bar["type_"], &bar["prefetchable"]),
        (&json!("Mmio64"), &json!(true))
    );
    assert_eq!(info["memory_actual_size"], 96 * MIB);
    assert_eq!(info["device_tree"]["gpu0"]["pci_bdf"], "0002:00:00.0");
}

#[test]
fn nodes_that_are_made_for_a_device_are_named() {
    let device = simulated();
    let server = server(&[]);
    let Nodes { mut body, .. } = nodes(&device, "listen", server.folder());
    body["user_devices"][0]["guest_numa_ids"] = json!("auto:3");
    let numa = body["numa"].as_array_mut().unwrap();
    numa.truncate(2);
    server.put("vm.create", &body).expect(204);
    server.act("vm.boot").expect(204);
    let info = server.info();
    assert_eq!(
        info["config"]["user_devices"][0]["guest_numa_ids"],
        "auto:3"
    );
    assert_eq!(
        info["numa"]["devices"][0]["guest_numa_ids"],
        json!([2, 3, 4])
    );
    assert_eq!(info["numa"]["nodes"].as_array().unwrap().len(), 5);
}
