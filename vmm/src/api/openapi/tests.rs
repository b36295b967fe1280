//! That the document is the one that ships, and true.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::config::{
    ConsoleConfig, CpuTopology, CpusConfig, DebugConsoleConfig, DiskConfig, MemoryConfig,
    MemoryZoneConfig, NetConfig, NumaConfig, PciSegmentConfig, PlatformConfig, RateLimiterConfig,
    RngConfig, SerialConfig, TokenBucket, VsockConfig, from_json,
};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

/// `UPDATE_GOLDEN=1 cargo test -p vmm openapi` writes it anew.
#[test]
fn the_document_that_ships_is_the_one_that_is_made() {
    let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &made).unwrap();
    }
    let ships = std::fs::read_to_string(Path::new(GOLDEN)).unwrap_or_default();
    assert!(
        ships == made,
        "docs/openapi.json is out of date: UPDATE_GOLDEN=1 cargo test -p vmm openapi"
    );
}

#[test]
fn whatever_is_referred_to_is_there_and_is_used() {
    let document = document();
    let Value::Object(schemas) = &document["components"]["schemas"] else {
        panic!("no schemas");
    };
    let text = document.to_string();
    let mut used = BTreeSet::new();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        used.insert(reference.split('"').next().unwrap());
    }
    let there: BTreeSet<&str> = schemas.keys().map(String::as_str).collect();
    assert_eq!(used, there);
}

#[test]
fn every_route_is_there_with_its_statuses() {
    let document = document();
    for route in &ROUTES {
        let method = route.method.as_str().to_lowercase();
        let operation = &document["paths"][format!("/{}", route.name)][method];
        let responses = operation["responses"].as_object().unwrap();
        for status in route.statuses() {
            let response = &responses[&status.to_string()];
            assert_eq!(
                response.get("content").is_none(),
                status == 204,
                "{response}"
            );
        }
        assert_eq!(operation.get("requestBody").is_some(), route.body.is_some());
    }
}

#[test]
fn statuses_follow_the_state() {
    use crate::api::VmState::{Created, Paused, Running, Shutdown};
    let states = [
        None,
        Some(Created),
        Some(Running),
        Some(Paused),
        Some(Shutdown),
    ];
    let statuses = |path: &str| {
        let route = Route::find(path).unwrap();
        states.map(|state| route.status(state))
    };
    assert_eq!(statuses("/api/v1/vmm.ping"), [200; 5]);
    assert_eq!(statuses("/api/v1/vm.create"), [204, 409, 409, 409, 409]);
    assert_eq!(statuses("/api/v1/vm.boot"), [404, 204, 405, 405, 204]);
    assert_eq!(statuses("/api/v1/vm.counters"), [404, 405, 200, 200, 405]);
    assert_eq!(statuses("/api/v1/vm.pause"), [404, 405, 204, 405, 405]);
    assert_eq!(statuses("/api/v1/vm.resume"), [404, 405, 405, 204, 405]);
    assert_eq!(statuses("/api/v1/vm.add-device"), [404, 204, 501, 501, 204]);
    assert_eq!(statuses("/api/v1/vm.snapshot"), [501; 5]);
}

/// docs/api.md has a table that the program is held to. Where there is a body, what is in it counts too.
#[test]
fn statuses_are_those_that_the_program_was_seen_to_answer() {
    use crate::api::VmState::{Created, Paused, Running, Shutdown};
    let text = include_str!("../../../../docs/api.md");
    let states = [
        None,
        Some(Created),
        Some(Running),
        Some(Paused),
        Some(Shutdown),
    ];
    for route in &ROUTES {
        let name = format!("| `{} {}` |", route.method.as_str(), route.name);
        let row = text.lines().find_map(|line| line.strip_prefix(&name));
        let row = row.unwrap_or_else(|| panic!("docs/api.md has no {name}"));
        let seen: Vec<u16> = row
            .split_terminator('|')
            .map(|status| status.trim().parse().unwrap())
            .collect();
        assert_eq!(seen.len(), states.len(), "{name}");
        for (state, seen) in states.into_iter().zip(seen) {
            assert!(route.statuses().contains(&seen), "{name} {seen}");
            if route.body.is_none() {
                assert_eq!(route.status(state), seen, "{name} {state:?}");
            }
        }
    }
}

/// Its schema is that of a type which is only there for that.
#[test]
fn ranges_are_written_as_their_schema_says() {
    let range = json!(crate::plan::GpaRange { start: 1, size: 2 });
    let written = range.as_object().unwrap().keys();
    let schema = &schemas()["GpaRange"];
    assert!(written.eq(schema["properties"].as_object().unwrap().keys()));
    assert_eq!(schema["required"].as_array().map(Vec::len), Some(2));
}

/// A member is left out, `null`, and what its schema says that stands for an absent one: all of them
/// are the same. `whole` has what is required.
fn defaults_are_true<T>(whole: &Value)
where
    T: DeserializeOwned + Serialize + ToSchema + PartialEq + Debug,
{
    let name = T::name();
    let schemas = schemas();
    let schema = &schemas[&*name];
    let read = |value: &Value| from_json::<T>(value.to_string().as_bytes());
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (member, property) in schema["properties"].as_object().unwrap() {
        let at = format!("{name}.{member}");
        let mut absent = whole.clone();
        absent.as_object_mut().unwrap().remove(member);
        let with = |value: &Value| {
            let mut given = absent.clone();
            given[member] = value.clone();
            read(&given)
        };
        if required.contains(&json!(member)) {
            assert!(read(&absent).is_err(), "{at}");
            assert!(with(&Value::Null).is_err(), "{at}");
            continue;
        }
        let without = read(&absent).unwrap();
        assert_eq!(with(&Value::Null).unwrap(), without, "{at}");
        let reference = property["$ref"].as_str().unwrap_or_default();
        if let Some((_, not_yet)) = reference.split_once("schemas/NotYet") {
            let schema = &schemas[&format!("NotYet{not_yet}")];
            let taken = schema.get("anyOf").map_or(schema, |forms| &forms[0]);
            for value in taken["enum"].as_array().unwrap() {
                assert_eq!(with(value).unwrap(), without, "{at}: {value}");
            }
            for value in [json!(true), json!(1), json!("x"), json!([1])] {
                assert!(with(&value).is_err(), "{at}: {value}");
            }
            let group = taken["enum"]
                .as_array()
                .is_some_and(|values| values.len() == 3);
            assert_eq!(with(&json!({ "x": { "y": [] } })).is_ok(), group, "{at}");
        }
        match property.get("default") {
            Some(default) => assert_eq!(with(default).unwrap(), without, "{at}"),
            // It is absent when it is written, too.
            None => assert_eq!(json!(without).get(member), None, "{at}"),
        }
    }
}

#[test]
fn defaults_are_those_of_the_types() {
    let whole = json!({ "payload": {} });
    defaults_are_true::<VmConfig>(&whole);
    defaults_are_true::<CpusConfig>(&json!({ "boot_vcpus": 1, "max_vcpus": 1 }));
    defaults_are_true::<CpuTopology>(&json!({}));
    defaults_are_true::<MemoryConfig>(&json!({ "size": 0 }));
    defaults_are_true::<MemoryZoneConfig>(&json!({ "id": "a", "size": 0 }));
    defaults_are_true::<NumaConfig>(&json!({ "guest_numa_id": 1 }));
    defaults_are_true::<PciSegmentConfig>(&json!({ "pci_segment": 1 }));
    defaults_are_true::<PlatformConfig>(&json!({}));
    defaults_are_true::<SerialConfig>(&json!({ "mode": "Off" }));
    defaults_are_true::<ConsoleConfig>(&json!({ "mode": "Off" }));
    defaults_are_true::<DebugConsoleConfig>(&json!({ "mode": "Off" }));
    defaults_are_true::<DeviceConfig>(&json!({ "path": "/a" }));
    defaults_are_true::<UserDeviceConfig>(&json!({ "socket": "/a" }));
    defaults_are_true::<RngConfig>(&json!({ "src": "/a" }));
    defaults_are_true::<VsockConfig>(&json!({ "cid": 3, "socket": "/a" }));
    defaults_are_true::<DiskConfig>(&json!({ "path": "/a" }));
    defaults_are_true::<NetConfig>(&json!({}));
    defaults_are_true::<RateLimiterConfig>(&json!({}));
    defaults_are_true::<TokenBucket>(&json!({ "size": 1, "refill_time": 1 }));
    defaults_are_true::<VmRemoveDevice>(&json!({ "id": "a" }));
}

/// A configuration in which the numbers of [`bounds_are_those_of_validation`] can be set one by one.
fn roomy() -> Value {
    json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 255, "max_phys_bits": 40 },
        "memory": { "size": 1 << 30 },
        "payload": { "kernel": "/k" },
        "platform": { "num_pci_segments": 96 },
        "pci_segments": [{ "pci_segment": 1, "mmio32_aperture_weight": 1 }],
        "numa": [
            {
                "guest_numa_id": 0,
                "cpus": [0],
                "distances": [{ "destination": 1, "distance": 20 }],
            },
            {
                "guest_numa_id": 1,
                "pci_segments": [1],
                "hmat": [{ "initiator": 0, "access": {
                    "read_latency": 1, "write_latency": 1, "read_bandwidth": 1, "write_bandwidth": 1,
                } }],
            },
            { "guest_numa_id": 2 },
        ],
        "devices": [{
            "path": "/d", "pci_segment": 1, "pci_device_id": 1, "x_exclude_mmap_bars": [0],
        }],
        "disks": [{
            "path": "/i", "queue_size": 4, "pci_segment": 1, "pci_device_id": 3,
            "queue_affinity": [{ "queue_index": 0, "host_cpus": [0] }],
        }],
        "net": [{ "mtu": 1500, "queue_size": 32, "pci_segment": 1, "pci_device_id": 5 }],
        "rng": { "src": "/r", "pci_segment": 1, "pci_device_id": 2 },
        "vsock": { "cid": 3, "socket": "/s", "pci_segment": 1, "pci_device_id": 4 },
    })
}

#[test]
fn bounds_are_those_of_validation() {
    let schemas = schemas();
    let valid = |config: &Value| {
        let config = VmConfig::from_json(config.to_string().as_bytes());
        config.is_ok_and(|config| config.validate(arch::Isa::X86_64).is_ok())
    };
    assert!(valid(&roomy()));
    let cases = [
        ("/cpus/boot_vcpus", "CpusConfig", "boot_vcpus"),
        ("/cpus/max_vcpus", "CpusConfig", "max_vcpus"),
        ("/cpus/max_phys_bits", "CpusConfig", "max_phys_bits"),
        (
            "/platform/num_pci_segments",
            "PlatformConfig",
            "num_pci_segments",
        ),
        (
            "/pci_segments/0/pci_segment",
            "PciSegmentConfig",
            "pci_segment",
        ),
        (
            "/pci_segments/0/mmio32_aperture_weight",
            "PciSegmentConfig",
            "mmio32_aperture_weight",
        ),
        ("/numa/2/guest_numa_id", "NumaConfig", "guest_numa_id"),
        ("/numa/0/cpus/0", "NumaConfig", "cpus"),
        ("/numa/1/pci_segments/0", "NumaConfig", "pci_segments"),
        ("/numa/0/distances/0/distance", "NumaDistance", "distance"),
        (
            "/numa/1/hmat/0/access/read_latency",
            "AccessPerformance",
            "read_latency",
        ),
        (
            "/numa/1/hmat/0/access/write_bandwidth",
            "AccessPerformance",
            "write_bandwidth",
        ),
        ("/devices/0/pci_segment", "DeviceConfig", "pci_segment"),
        ("/devices/0/pci_device_id", "DeviceConfig", "pci_device_id"),
        ("/disks/0/queue_size", "DiskConfig", "queue_size"),
        ("/disks/0/pci_segment", "DiskConfig", "pci_segment"),
        ("/disks/0/pci_device_id", "DiskConfig", "pci_device_id"),
        (
            "/disks/0/queue_affinity/0/host_cpus/0",
            "VirtQueueAffinity",
            "host_cpus",
        ),
        ("/net/0/mtu", "NetConfig", "mtu"),
        ("/net/0/queue_size", "NetConfig", "queue_size"),
        ("/net/0/pci_segment", "NetConfig", "pci_segment"),
        ("/net/0/pci_device_id", "NetConfig", "pci_device_id"),
        ("/rng/pci_segment", "RngConfig", "pci_segment"),
        ("/rng/pci_device_id", "RngConfig", "pci_device_id"),
        ("/vsock/cid", "VsockConfig", "cid"),
        ("/vsock/pci_segment", "VsockConfig", "pci_segment"),
        ("/vsock/pci_device_id", "VsockConfig", "pci_device_id"),
        (
            "/devices/0/x_exclude_mmap_bars/0",
            "DeviceConfig",
            "x_exclude_mmap_bars",
        ),
    ];
    // The least is wrong there for another reason.
    let unlike_least = ["/numa/0/distances/0/distance", "/platform/num_pci_segments"];
    for (pointer, name, member) in cases {
        let property = &schemas[name]["properties"][member];
        let bounds = property.get("items").unwrap_or(property);
        let [least, most] = ["minimum", "maximum"].map(|bound| bounds[bound].as_u64().unwrap());
        let set = |value: u64| {
            let mut config = roomy();
            *config.pointer_mut(pointer).unwrap() = json!(value);
            config
        };
        assert!(!valid(&set(most + 1)), "{pointer}: more than {most}");
        assert!(valid(&set(most)), "{pointer}={most}");
        if let Some(less) = least.checked_sub(1) {
            assert!(!valid(&set(less)), "{pointer}: less than {least}");
            let least = unlike_least.contains(&pointer) || valid(&set(least));
            assert!(least, "{pointer}: the least");
        }
    }
}
