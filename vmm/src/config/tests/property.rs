//! Whatever a configuration holds, it comes through both front ends unchanged.

mod devices;
mod disks;
mod net;

use arch::Isa;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use devices::{
    any_device, any_id, any_place, any_rng, any_segment, any_user_device, any_vsock, push_place,
};
use disks::{any_disk, any_group, any_limits, push_limits};
use net::any_net;

fn any_path() -> impl Strategy<Value = Option<std::path::PathBuf>> {
    prop::option::of(any::<String>().prop_map(Into::into))
}

fn any_mode() -> impl Strategy<Value = ConsoleMode> {
    use ConsoleMode::{File, Null, Off, Pty, Socket, Tty};
    prop::sample::select(vec![Off, Pty, Tty, File, Socket, Null])
}

prop_compose! {
    fn any_topology()(levels in any::<[u32; 4]>()) -> CpuTopology {
        let [threads_per_core, cores_per_die, dies_per_package, packages] = levels;
        CpuTopology { threads_per_core, cores_per_die, dies_per_package, packages }
    }
}

prop_compose! {
    fn any_cpus()(
        boot_vcpus in any::<u32>(),
        max_vcpus in any::<u32>(),
        topology in prop::option::of(any_topology()),
        max_phys_bits in any::<Option<u8>>(),
        nested in any::<bool>(),
        affinity in prop::collection::vec(
            (any::<u32>(), prop::collection::vec(any::<u32>(), 0..8)),
            0..4,
        ),
        core_scheduling in prop::option::of(prop::sample::select(
            &[CoreScheduling::Vm, CoreScheduling::Vcpu, CoreScheduling::Off][..],
        )),
    ) -> CpusConfig {
        let affinity = affinity
            .into_iter()
            .map(|(vcpu, host_cpus)| CpuAffinity { vcpu, host_cpus })
            .collect();
        CpusConfig { boot_vcpus, max_vcpus, topology, max_phys_bits, nested, affinity, core_scheduling }
    }
}

prop_compose! {
    fn any_memory()(
        size in any::<u64>(),
        [mergeable, shared, hugepages, prefault, thp] in any::<[bool; 5]>(),
        hugepage_size in any::<Option<u64>>(),
    ) -> MemoryConfig {
        MemoryConfig {
            size, mergeable, shared, hugepages, hugepage_size, prefault, thp, zones: Vec::new(),
        }
    }
}

prop_compose! {
    fn any_zone()(
        (id, size, file) in (any::<String>(), any::<u64>(), any_path()),
        [mergeable, shared, hugepages, prefault] in any::<[bool; 4]>(),
        (hugepage_size, host_numa_node) in any::<(Option<u64>, Option<u32>)>(),
    ) -> MemoryZoneConfig {
        MemoryZoneConfig {
            id, size, file, mergeable, shared, hugepages, hugepage_size, host_numa_node, prefault,
        }
    }
}

prop_compose! {
    fn any_node()(
        guest_numa_id in any::<u32>(),
        cpus in prop::collection::vec(any::<u32>(), 0..8),
        distances in prop::collection::vec(any::<(u32, u32)>(), 0..4),
        memory_zones in prop::collection::vec(any::<String>(), 0..4),
        hmat in prop::collection::vec(any::<(u32, [u32; 4])>(), 0..4),
        pci_segments in prop::collection::vec(any::<u16>(), 0..4),
        device_id in any_id(),
    ) -> NumaConfig {
        let distances = distances.into_iter().map(|(destination, distance)| {
            NumaDistance { destination, distance }
        });
        let hmat = hmat.into_iter().map(|(initiator, figures)| {
            let [read_latency, write_latency, read_bandwidth, write_bandwidth] = figures;
            NumaInitiator {
                initiator,
                access: AccessPerformance {
                    read_latency, write_latency, read_bandwidth, write_bandwidth,
                },
            }
        });
        NumaConfig {
            guest_numa_id,
            cpus,
            distances: distances.collect(),
            memory_zones,
            hmat: hmat.collect(),
            pci_segments,
            device_id,
        }
    }
}

prop_compose! {
    fn any_platform()(
        strings in prop::collection::vec(any::<Option<String>>(), 10),
        oem_strings in prop::collection::vec(any::<String>(), 0..4),
        [acpi, vfio_p2p_dma] in any::<[bool; 2]>(),
        num_pci_segments in any::<u16>(),
    ) -> PlatformConfig {
        let mut strings = strings.into_iter();
        let mut next = || strings.next().flatten();
        PlatformConfig {
            num_pci_segments,
            vfio_p2p_dma,
            system_manufacturer: next(),
            system_product_name: next(),
            system_version: next(),
            system_serial_number: next(),
            system_uuid: next(),
            system_sku_number: next(),
            system_family: next(),
            oem_strings,
            chassis_asset_tag: next(),
            serial_number: next(),
            uuid: next(),
            acpi,
        }
    }
}

prop_compose! {
    fn any_vm()(
        cpus in any_cpus(),
        memory in any_memory(),
        [kernel, initramfs, serial_file, serial_socket, debug_file] in
            [any_path(), any_path(), any_path(), any_path(), any_path()],
        cmdline in any::<Option<String>>(),
        [serial, debug_console] in [any_mode(), any_mode()],
        console in prop::option::of((any_mode(), (any_path(), any_path()), any_place())),
        iobase in any::<u16>(),
        platform in any_platform(),
        zones in prop::collection::vec(any_zone(), 0..3),
        numa in prop::collection::vec(any_node(), 0..3),
        (devices, user_devices, rng, vsock, disks, net, rate_limit_groups) in (
            prop::collection::vec(any_device(), 0..3),
            prop::collection::vec(any_user_device(), 0..3),
            prop::option::of(any_rng()),
            prop::option::of(any_vsock()),
            prop::collection::vec(any_disk(), 0..3),
            prop::collection::vec(any_net(), 0..3),
            prop::collection::vec(any_group(), 0..3),
        ),
        pci_segments in prop::collection::vec(any_segment(), 0..3),
    ) -> VmConfig {
        VmConfig {
            devices,
            user_devices,
            rng,
            vsock,
            disks,
            net,
            rate_limit_groups,
            pci_segments,
            cpus,
            memory: MemoryConfig { zones, ..memory },
            numa,
            payload: PayloadConfig { kernel, cmdline, initramfs },
            serial: SerialConfig { mode: serial, file: serial_file, socket: serial_socket },
            console: console.map(|(mode, (file, socket), place)| {
                let (id, pci_segment, pci_device_id) = place;
                ConsoleConfig { mode, file, socket, id, pci_segment, pci_device_id }
            }),
            debug_console: DebugConsoleConfig { mode: debug_console, file: debug_file, iobase },
            platform,
        }
    }
}

/// Any JSON of a few values; some of them have names and words that mean something.
fn any_json() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["size", "boot_vcpus", "mode", "Tty", "numa", "x", ""]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        name.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        let member = (name.clone().prop_map(String::from), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            prop::collection::hash_map(member.0, member.1, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Pointers (RFC 6901) to every value in `body`; no name in a configuration needs escaping.
fn list_places(body: &Value, at: &mut String, places: &mut Vec<String>) {
    places.push(at.clone());
    let members: Vec<(String, &Value)> = match body {
        Value::Array(values) => (0..).map(|i: usize| i.to_string()).zip(values).collect(),
        Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), v)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in members {
        let length = at.len();
        at.push('/');
        at.push_str(&name);
        list_places(value, at, places);
        at.truncate(length);
    }
}

fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[test]
fn unknown_members_are_refused_wherever_they_are() {
    let body = serde_json::json!({
        "cpus": {
            "boot_vcpus": 1, "max_vcpus": 1, "topology": { "packages": 1 },
            "affinity": [{ "vcpu": 0, "host_cpus": [0] }],
        },
        "memory": { "size": 0, "zones": [{ "id": "a", "size": 1 << 30 }] },
        "payload": { "kernel": "kernel" },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" },
        "debug_console": { "mode": "Off" },
        "platform": { "uuid": "a" },
        "numa": [{
            "guest_numa_id": 0,
            "distances": [{ "destination": 1, "distance": 20 }],
            "hmat": [{
                "initiator": 1,
                "access": {
                    "read_latency": 1, "write_latency": 1,
                    "read_bandwidth": 1, "write_bandwidth": 1,
                },
            }],
        }],
        "devices": [{ "path": "/d" }],
        "user_devices": [{ "socket": "/s" }],
        "rng": { "src": "/r" },
        "vsock": { "cid": 3, "socket": "/s" },
        "disks": [{
            "path": "/i",
            "rate_limiter_config": { "ops": { "size": 1, "refill_time": 1 } },
            "queue_affinity": [{ "queue_index": 0, "host_cpus": [0] }],
        }],
        "net": [{
            "tap": "t",
            "rate_limiter_config": { "ops": { "size": 1, "refill_time": 1 } },
        }],
        "rate_limit_groups": [{ "id": "g", "rate_limiter_config": {
            "bandwidth": { "size": 1, "refill_time": 1 },
        } }],
        "pci_segments": [{ "pci_segment": 0 }],
    });
    let read = |body: &Value| VmConfig::from_json(body.to_string().as_bytes());
    read(&body).unwrap();
    let mut places = Vec::new();
    list_places(&body, &mut String::new(), &mut places);
    let mut objects = 0;
    for place in places {
        let mut body = body.clone();
        if let Some(Value::Object(members)) = body.pointer_mut(&place) {
            members.insert("surplus".into(), 1.into());
            let error = read(&body).unwrap_err().to_string();
            assert!(error.contains("surplus"), "{place}: {error}");
            objects += 1;
        }
    }
    assert_eq!(objects, 30);
}

proptest! {
    #[test]
    fn a_configuration_survives_json(config in any_vm()) {
        let body = serde_json::to_vec(&config).unwrap();
        prop_assert_eq!(VmConfig::from_json(&body).unwrap(), config.clone().completed());
        prop_assert_eq!(serde_json::from_slice::<VmConfig>(&body).unwrap(), config);
    }

    #[test]
    fn cpus_survive_the_command_line(config in any_cpus()) {
        let affinity: Vec<String> = config
            .affinity
            .iter()
            .map(|CpuAffinity { vcpu, host_cpus }| format!("{vcpu}@{host_cpus:?}").replace(' ', ""))
            .collect();
        let mut text = format!(
            "boot={},max={},nested={},affinity=[{}]",
            config.boot_vcpus, config.max_vcpus, switch(config.nested), affinity.join(","),
        );
        if let Some(topology) = &config.topology {
            text.push_str(&format!(",topology={topology}"));
        }
        if let Some(bits) = config.max_phys_bits {
            text.push_str(&format!(",max_phys_bits={bits}"));
        }
        if let Some(mode) = config.core_scheduling {
            text.push_str(&format!(",core_scheduling={mode}"));
        }
        prop_assert_eq!(option("cpus", &text), Ok(config));
    }

    #[test]
    fn memory_survives_the_command_line(config in any_memory()) {
        let mut text = format!(
            "size={},mergeable={},shared={},hugepages={},prefault={},thp={}",
            config.size, switch(config.mergeable), switch(config.shared),
            switch(config.hugepages), switch(config.prefault), switch(config.thp),
        );
        if let Some(size) = config.hugepage_size {
            text.push_str(&format!(",hugepage_size={size:#x}"));
        }
        prop_assert_eq!(option("memory", &text), Ok(config));
    }

    #[test]
    fn zones_survive_the_command_line(config in any_zone()) {
        let mut text = format!(
            "id={},size={},mergeable={},shared={},hugepages={},prefault={}",
            quoted(&config.id), config.size, switch(config.mergeable), switch(config.shared),
            switch(config.hugepages), switch(config.prefault),
        );
        if let Some(path) = &config.file {
            text.push_str(&format!(",file={}", quoted(path.to_str().unwrap())));
        }
        if let Some(size) = config.hugepage_size {
            text.push_str(&format!(",hugepage_size={size:#x}"));
        }
        if let Some(node) = config.host_numa_node {
            text.push_str(&format!(",host_numa_node={node}"));
        }
        prop_assert_eq!(option("memory-zone", &text), Ok(config));
    }

    #[test]
    fn nodes_survive_the_command_line(config in any_node()) {
        let NumaConfig {
            guest_numa_id, cpus, distances, memory_zones, hmat, pci_segments, device_id,
        } = &config;
        let distances: Vec<String> = distances
            .iter()
            .map(|NumaDistance { destination, distance }| format!("{destination}@{distance}"))
            .collect();
        let zones: Vec<String> = memory_zones.iter().map(|zone| quoted(zone)).collect();
        let hmat: Vec<String> = hmat
            .iter()
            .map(|NumaInitiator { initiator, access: AccessPerformance {
                read_latency, write_latency, read_bandwidth, write_bandwidth,
            } }| format!(
                "{initiator}@{read_latency}:{write_latency}:{read_bandwidth}:{write_bandwidth}"
            ))
            .collect();
        let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        let segments: Vec<String> = pci_segments.iter().map(ToString::to_string).collect();
        let mut text = format!(
            "guest_numa_id={guest_numa_id},cpus=[{}],distances=[{}],memory_zones=[{}],hmat=[{}],\
             pci_segments=[{}]",
            cpus.join(","), distances.join(","), zones.join(","), hmat.join(","),
            segments.join(","),
        );
        if let Some(id) = device_id {
            text.push_str(&format!(",device_id={}", quoted(id)));
        }
        prop_assert_eq!(option("numa", &text), Ok(config));
    }

    #[test]
    fn strings_survive_the_command_line(
        manufacturer in any::<String>(),
        oem_strings in prop::collection::vec(any::<String>(), 0..4),
        (num_pci_segments, vfio_p2p_dma) in any::<(u16, bool)>(),
    ) {
        let list: Vec<String> = oem_strings.iter().map(|text| quoted(text)).collect();
        let text = format!(
            "system_manufacturer={},oem_strings=[{}],num_pci_segments={num_pci_segments},\
             vfio_p2p_dma={}",
            quoted(&manufacturer), list.join(","), switch(vfio_p2p_dma),
        );
        let config = PlatformConfig {
            num_pci_segments,
            vfio_p2p_dma,
            system_manufacturer: Some(manufacturer),
            oem_strings,
            ..PlatformConfig::default()
        };
        prop_assert_eq!(option("platform", &text), Ok(config));
    }

    #[test]
    fn no_json_panics(body in prop_oneof![
        any::<Vec<u8>>(),
        "[\\[\\]{}:,\"a-z0-9.-]{0,40}".prop_map(String::into_bytes),
    ]) {
        // No body this short names a payload, so none is a configuration.
        prop_assert!(!VmConfig::from_json(&body).unwrap_err().problems().is_empty());
    }

    /// A body that is nearly right is read and checked to its end, whatever is wrong with it.
    #[test]
    fn damaged_bodies_are_read_or_refused(
        config in any_vm(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4),
    ) {
        let mut body = serde_json::to_value(&config).unwrap();
        for (place, value) in damage {
            let mut places = Vec::new();
            list_places(&body, &mut String::new(), &mut places);
            let place: &String = place.get(&places);
            *body.pointer_mut(place).unwrap() = value;
        }
        match VmConfig::from_json(body.to_string().as_bytes()) {
            Ok(config) => {
                let again = serde_json::to_vec(&config).unwrap();
                prop_assert_eq!(VmConfig::from_json(&again).unwrap(), config);
            }
            Err(errors) => prop_assert!(!errors.problems().is_empty()),
        }
    }

    #[test]
    fn any_configuration_can_be_checked(config in any_vm()) {
        for isa in [Isa::X86_64, Isa::Aarch64] {
            if let Err(errors) = config.validate(isa) {
                prop_assert!(!errors.problems().is_empty());
            }
        }
    }
}
