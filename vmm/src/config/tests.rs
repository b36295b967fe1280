//! The two front ends against each other.

mod interface;
mod property;

use std::fmt::Debug;

use serde::de::DeserializeOwned;

use super::*;

/// Reads the keys of one option.
fn option<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, String> {
    let section = SECTIONS.iter().find(|section| section.option == name);
    let spelling = section.expect("an option").spelling;
    let mut problems = Vec::new();
    let node = option_string::option(&format!("--{name}"), text, spelling, &mut problems);
    let value = tree::read(node, &mut problems);
    ConfigErrors::of(value, problems).map_err(|errors| errors.to_string())
}

/// Reads a machine that is configured by one option alone.
fn machine(name: &str, text: &str) -> Result<VmConfig, String> {
    let args = ["vmm", &format!("--{name}"), text];
    match cli::parse(args.map(Into::into)) {
        Ok(cli::Command::Run {
            config: Some(config),
            options: _,
        }) => Ok(*config),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads JSON the way a request body is read.
fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let mut problems = Vec::new();
    let node = json::document(text.as_bytes()).map_err(|problem| problem.to_string())?;
    let value = tree::read(node, &mut problems);
    ConfigErrors::of(value, problems).map_err(|errors| errors.to_string())
}

fn same<T: DeserializeOwned + PartialEq + Debug>(name: &str, pairs: &[(&str, &str)]) {
    for (text, body) in pairs {
        let from_option: T = option(name, text).unwrap();
        let from_json: T = json(body).unwrap();
        assert_eq!(from_option, from_json, "--{name} {text}");
    }
}

#[test]
fn options_and_json_mean_the_same() {
    same::<CpusConfig>(
        "cpus",
        &[
            ("boot=1", r#"{"boot_vcpus":1,"max_vcpus":1}"#),
            ("boot=4", r#"{"boot_vcpus":4,"max_vcpus":4}"#),
            ("max=4", r#"{"boot_vcpus":1,"max_vcpus":4}"#),
            (
                "boot=2,max=8,topology=2:2:1:2,max_phys_bits=40,nested=off",
                r#"{"boot_vcpus":2,"max_vcpus":8,"max_phys_bits":40,"nested":false,"topology":
                {"threads_per_core":2,"cores_per_die":2,"dies_per_package":1,"packages":2}}"#,
            ),
            (
                "affinity=[0@[2,3],1@[0-1,7]],boot=2",
                r#"{"boot_vcpus":2,"max_vcpus":2,"affinity":
                [{"vcpu":0,"host_cpus":[2,3]},{"vcpu":1,"host_cpus":[0,1,7]}]}"#,
            ),
            (
                "kvm_hyperv=off,features=[]",
                r#"{"boot_vcpus":1,"max_vcpus":1,"kvm_hyperv":false,"core_scheduling":null,
                "features":{"amx":false},"affinity":null,"topology":null,"max_phys_bits":null}"#,
            ),
            (
                "core_scheduling=vm",
                r#"{"boot_vcpus":1,"max_vcpus":1,"core_scheduling":"Vm"}"#,
            ),
            (
                "core_scheduling=vcpu",
                r#"{"boot_vcpus":1,"max_vcpus":1,"core_scheduling":"Vcpu"}"#,
            ),
            (
                "core_scheduling=off",
                r#"{"boot_vcpus":1,"max_vcpus":1,"core_scheduling":"Off"}"#,
            ),
        ],
    );
    same::<MemoryZoneConfig>(
        "memory-zone",
        &[
            ("id=a,size=1G", r#"{"id":"a","size":1073741824}"#),
            (
                "id=b,size=2M,file=/x,shared=on,host_numa_node=1,prefault=on,hotplug_size=0",
                r#"{"id":"b","size":2097152,"file":"/x","shared":true,"host_numa_node":1,
                "prefault":true,"reserve":false,"hotplugged_size":0}"#,
            ),
        ],
    );
    same::<NumaConfig>(
        "numa",
        &[
            ("guest_numa_id=2", r#"{"guest_numa_id":2}"#),
            (
                "guest_numa_id=0,cpus=[0-2,5],distances=[1@20,2@40],memory_zones=[m0,m1]",
                r#"{"guest_numa_id":0,"cpus":[0,1,2,5],"memory_zones":["m0","m1"],"distances":
                [{"destination":1,"distance":20},{"destination":2,"distance":40}]}"#,
            ),
            (
                "guest_numa_id=3,hmat=[0@300:350:90000:80000]",
                r#"{"guest_numa_id":3,"device_id":null,"hmat":[{"initiator":0,"access":
                {"read_latency":300,"write_latency":350,
                "read_bandwidth":90000,"write_bandwidth":80000}}]}"#,
            ),
            (
                "guest_numa_id=4,pci_segments=[0-1,3],device_id=gpu",
                r#"{"guest_numa_id":4,"pci_segments":[0,1,3],"device_id":"gpu"}"#,
            ),
        ],
    );
    same::<MemoryConfig>(
        "memory",
        &[
            ("size=1G", r#"{"size":1073741824}"#),
            ("shared=on", r#"{"size":536870912,"shared":true}"#),
            (
                "size=4G,mergeable=on,prefault=on,thp=off",
                r#"{"size":4294967296,"mergeable":true,"prefault":true,"thp":false}"#,
            ),
            (
                "size=2M,hugepages=on,hugepage_size=2M",
                r#"{"size":2097152,"hugepages":true,"hugepage_size":2097152}"#,
            ),
            (
                "hotplug_method=acpi,hotplug_size=0,hotplugged_size=0,reserve=off",
                r#"{"size":536870912,"hotplug_method":"Acpi","hotplug_size":0,"hotplugged_size":0,
                "reserve":false,"zones":[],"hugepage_size":null}"#,
            ),
        ],
    );
    same::<SerialConfig>(
        "serial",
        &[
            ("off", r#"{"mode":"Off"}"#),
            ("null", r#"{"mode":"Null"}"#),
            ("tty", r#"{"mode":"Tty","file":null}"#),
            ("pty", r#"{"mode":"Pty"}"#),
            ("file=\"/a,b\"", r#"{"mode":"File","file":"/a,b"}"#),
            ("socket=/a=b", r#"{"mode":"Socket","socket":"/a=b"}"#),
        ],
    );
    same::<ConsoleConfig>(
        "console",
        &[
            ("off,iommu=off", r#"{"mode":"Off","iommu":false,"id":null}"#),
            ("null", r#"{"mode":"Null","pci_segment":0}"#),
            ("tty,id=a", r#"{"mode":"Tty","file":null,"id":"a"}"#),
            (
                "pci_segment=2,pci_device_id=3",
                r#"{"mode":"Tty","pci_segment":2,"pci_device_id":3}"#,
            ),
            ("pty", r#"{"mode":"Pty"}"#),
            (
                "file=\"/a,b\",id=a",
                r#"{"mode":"File","file":"/a,b","id":"a"}"#,
            ),
            ("socket=/a=b", r#"{"mode":"Socket","socket":"/a=b"}"#),
        ],
    );
    same::<DebugConsoleConfig>(
        "debug-console",
        &[
            ("off", r#"{"mode":"Off"}"#),
            ("tty,iobase=0x402", r#"{"mode":"Tty","iobase":1026}"#),
            ("iobase=1026,pty", r#"{"mode":"Pty","iobase":1026}"#),
            ("file=/a", r#"{"mode":"File","file":"/a","iobase":null}"#),
        ],
    );
    same::<PlatformConfig>(
        "platform",
        &[
            ("acpi=off", r#"{"acpi":false}"#),
            (
                "num_pci_segments=3,vfio_p2p_dma=off",
                r#"{"num_pci_segments":3,"vfio_p2p_dma":false,"iommufd":false}"#,
            ),
            (
                "oem_strings=[a,\"b,c\",1-3],system_version=1-3,iommufd=off,vfio_p2p_dma=on",
                r#"{"oem_strings":["a","b,c","1-3"],"system_version":"1-3","tdx":false}"#,
            ),
            (
                "serial_number=s,uuid=u,system_manufacturer=m,system_product_name=p,\
                 system_sku_number=k,system_family=f,chassis_asset_tag=c,\
                 system_serial_number=t,system_uuid=v",
                r#"{"serial_number":"s","uuid":"u","system_manufacturer":"m","system_family":"f",
                "system_product_name":"p","system_sku_number":"k","chassis_asset_tag":"c",
                "system_serial_number":"t","system_uuid":"v"}"#,
            ),
        ],
    );
}

#[test]
fn passed_through_devices_mean_the_same() {
    same::<DeviceConfig>(
        "device",
        &[
            ("path=/d", r#"{"path":"/d","x_nv_gpudirect_clique":null}"#),
            (
                "path=/d,iommu=off,pci_segment=0,generic_initiator=auto,x_allow_noncacheable=off",
                r#"{"path":"/d","iommu":false,"pci_segment":0,"generic_initiator":"Auto","id":null,
                "x_exclude_mmap_bars":[],"guest_numa_ids":null,"pci_device_id":null}"#,
            ),
            (
                "path=\"/d,1\",iommu=on,id=gpu,pci_segment=2,pci_device_id=31,\
                 x_exclude_mmap_bars=[0,2-3],guest_numa_ids=[2-4,7],generic_initiator=only,\
                 x_allow_noncacheable=on",
                r#"{"path":"/d,1","iommu":true,"id":"gpu","pci_segment":2,"pci_device_id":31,
                "x_exclude_mmap_bars":[0,2,3],"guest_numa_ids":[2,3,4,7],
                "generic_initiator":"Only","x_allow_noncacheable":true}"#,
            ),
        ],
    );
    same::<UserDeviceConfig>(
        "user-device",
        &[
            ("socket=/s", r#"{"socket":"/s"}"#),
            (
                "socket=/s,id=a,pci_segment=1,pci_device_id=3,guest_numa_ids=5,\
                 generic_initiator=off",
                r#"{"socket":"/s","id":"a","pci_segment":1,"pci_device_id":3,"guest_numa_ids":[5],
                "generic_initiator":"Off"}"#,
            ),
        ],
    );
    same::<PciSegmentConfig>(
        "pci-segment",
        &[
            (
                "pci_segment=1",
                r#"{"pci_segment":1,"mmio32_aperture_weight":1,"mmio64_aperture_weight":null}"#,
            ),
            (
                "pci_segment=1,mmio32_aperture_weight=2,mmio64_aperture_weight=300",
                r#"{"pci_segment":1,"mmio32_aperture_weight":2,"mmio64_aperture_weight":300}"#,
            ),
        ],
    );
}

#[test]
fn nodes_of_a_device_are_a_list_or_a_text() {
    use GuestNumaIds::{Auto, Ids};
    let body = |ids: &str| json(&format!(r#"{{"path":"/d","guest_numa_ids":{ids}}}"#));
    let body = |ids: &str| body(ids).map(|device: DeviceConfig| device.guest_numa_ids);
    let text = |ids: &str| option("device", &format!("path=/d,guest_numa_ids={ids}"));
    let text = |ids: &str| text(ids).map(|device: DeviceConfig| device.guest_numa_ids);
    for (ids, expected) in [
        ("[2-9]", Ids((2..=9).collect())),
        ("[4,2-3]", Ids(vec![4, 2, 3])),
        ("2", Ids(vec![2])),
        ("[]", Ids(vec![])),
        ("auto", Auto(8)),
        ("auto:4", Auto(4)),
        ("auto:0x10", Auto(16)),
    ] {
        assert_eq!(text(ids), Ok(Some(expected.clone())), "{ids}");
        assert_eq!(body(&format!("\"{ids}\"")), Ok(Some(expected)), "{ids}");
    }
    assert_eq!(body("[2,3]"), Ok(Some(Ids(vec![2, 3]))));
    let forms = "expected nodes, as in [2-9], or auto, or auto:<count>";
    for (ids, reason) in [
        ("Auto", forms),
        ("auto8", forms),
        ("-1", forms),
        ("auto:", "\"\" is not a number"),
        ("auto:-1", "\"-1\" is not a number"),
        ("auto:1-2", "\"1-2\" is not a number"),
        ("auto:4294967296", "out of range: at most 4294967295"),
        ("[x]", "\"x\" is not a number"),
        ("[1,,2]", "an item of the list is missing"),
        (
            "[3-2]",
            "the range 3-2 must ascend and hold at most 65536 numbers",
        ),
    ] {
        let message = format!("--device guest_numa_ids={ids}: {reason}");
        assert_eq!(text(ids), Err(message));
        let quoted = format!("\"{ids}\"");
        let message = format!("guest_numa_ids={quoted}: {reason}");
        assert_eq!(body(&quoted), Err(message));
    }
    assert_eq!(body("2"), Err(format!("guest_numa_ids=2: {forms}")));
    assert_eq!(body("{}"), Err(format!("guest_numa_ids: {forms}")));
    assert_eq!(
        body("[2,-1]"),
        Err("guest_numa_ids[1]=-1: expected u32".to_owned())
    );
    assert_eq!(
        body("[\"2\"]"),
        Err("guest_numa_ids[0]=\"2\": expected u32".to_owned())
    );
}

#[test]
fn what_devices_do_not_have_yet_is_refused() {
    for (text, message) in [
        (
            "path=/d,fd=3,x_nv_gpudirect_clique=0",
            "not supported yet: --device fd\nnot supported yet: --device x_nv_gpudirect_clique",
        ),
        ("fd=3", "not supported yet: --device fd"),
        ("id=a", "--device id=a: path=<path> is missing"),
    ] {
        assert_eq!(machine("device", text).unwrap_err(), message);
    }
    for (body, message) in [
        (
            r#"{"path":"/d","x_nv_gpudirect_clique":1}"#,
            "not supported yet: x_nv_gpudirect_clique",
        ),
        (r#"{"id":"a"}"#, "path: is missing"),
    ] {
        assert_eq!(json::<DeviceConfig>(body).unwrap_err(), message);
    }
}

#[test]
fn an_absent_option_is_the_same_as_one_that_spells_out_its_default() {
    assert_eq!(option("cpus", "boot=1"), Ok(CpusConfig::default()));
    assert_eq!(option("memory", "size=512M"), Ok(MemoryConfig::default()));
    assert_eq!(option("serial", "null"), Ok(SerialConfig::default()));
    let console = ConsoleConfig::of(ConsoleMode::Tty);
    assert_eq!(option("console", "tty"), Ok(console));
    assert_eq!(
        option("debug-console", "off"),
        Ok(DebugConsoleConfig::default())
    );
    for text in ["acpi=on", "num_pci_segments=1,vfio_p2p_dma=on"] {
        assert_eq!(option("platform", text), Ok(PlatformConfig::default()));
    }
    assert_eq!(json(r#"{"payload":{}}"#), Ok(VmConfig::default()));
}

#[test]
fn neither_front_end_takes_the_spelling_of_the_other() {
    for (name, text) in [
        ("cpus", "boot_vcpus=2"),
        ("cpus", "nested=true"),
        ("memory", "size=1073741824,zones=[]"),
        ("serial", "mode=Tty"),
        ("serial", "Tty"),
        ("console", "Off"),
        ("platform", "iommu_address_width_bits=39"),
        ("device", "path=/d,generic_initiator=Only"),
        ("device", "path=/d,iommu=false"),
    ] {
        let read = machine(name, text);
        assert!(read.is_err(), "--{name} {text}");
    }
    assert!(json::<CpusConfig>(r#"{"boot":1,"max":1}"#).is_err());
    assert!(json::<CpusConfig>(r#"{"boot_vcpus":"1","max_vcpus":1}"#).is_err());
    assert!(json::<MemoryConfig>(r#"{"size":"1G"}"#).is_err());
    assert!(json::<MemoryConfig>(r#"{"size":1,"shared":"on"}"#).is_err());
    assert!(json::<SerialConfig>(r#"{"mode":"tty"}"#).is_err());
    assert!(json::<SerialConfig>(r#""tty""#).is_err());
    assert!(json::<DeviceConfig>(r#"{"path":"/d","generic_initiator":"only"}"#).is_err());
    assert!(json::<DeviceConfig>(r#"{"path":"/d","x_exclude_mmap_bars":"[0-1]"}"#).is_err());
    let topology = r#"{"boot_vcpus":1,"max_vcpus":1,"topology":[1,1,1,1]}"#;
    assert!(json::<CpusConfig>(topology).is_err());
}

#[test]
fn misspelt_keys_name_the_nearest_one() {
    for (name, text, message) in [
        (
            "memory",
            "sise=1G",
            "--memory sise=1G: unknown key \"sise\"; did you mean \"size\"?",
        ),
        (
            "cpus",
            "topolgy=1:1:1:1",
            "--cpus topolgy=1:1:1:1: unknown key \"topolgy\"; did you mean \"topology\"?",
        ),
        (
            "cpus",
            "4",
            "--cpus 4: not key=value; did you mean \"boot=4\"?",
        ),
        (
            "cpus",
            "boot",
            "--cpus boot: the value is missing: boot=<count>",
        ),
        (
            "cpus",
            "boot=",
            "--cpus boot=: the value is missing: boot=<count>",
        ),
        (
            "serial",
            "foo",
            "--serial foo: expected one of off, null, tty, pty, file=<path>, socket=<path>",
        ),
        (
            "serial",
            "file",
            "--serial file: the value is missing: file=<path>",
        ),
    ] {
        let read = machine(name, text);
        assert_eq!(read.unwrap_err(), message);
    }
    assert_eq!(
        json::<VmConfig>(r#"{"payload":{},"memroy":{}}"#).unwrap_err(),
        "memroy: unknown key \"memroy\"; did you mean \"memory\"?"
    );
}

#[test]
fn an_option_that_contradicts_itself_is_refused() {
    for (name, text, message) in [
        (
            "cpus",
            "boot=1,boot=2",
            "--cpus boot=2: \"boot\" is given twice",
        ),
        (
            "serial",
            "tty,file=/a",
            "--serial file=/a: contradicts \"tty\" before it",
        ),
        (
            "serial",
            "tty,off",
            "--serial off: contradicts \"tty\" before it",
        ),
        (
            "cpus",
            "affinity=[0@[1]",
            "--cpus affinity=[0@[1]: a closing bracket is missing; quote the value if the \
             bracket belongs to it",
        ),
    ] {
        let read = machine(name, text);
        assert_eq!(read.unwrap_err(), message);
    }
}

#[test]
fn json_reports_every_problem_with_its_place() {
    let body = r#"{
        "cpus": {"boot_vcpus": "x", "max_vcpus": 1.5, "kvm_hyperv": true, "bot": 1,
                 "core_scheduling": "vm",
                 "affinity": [{"vcpu": 0, "host_cpus": [1, -1]}]},
        "memory": {"size": "1G", "hotplug_size": 4096, "zones": [{"id": "a"}]},
        "serial": {"mode": "tty"},
        "platform": {"tdx": true, "oem_strings": "a"},
        "vdpa": [{"path": "/a"}],
        "net": null,
        "fs": [],
        "watchdog": true,
        "pvpanic": false,
        "cpu": {}
    }"#;
    let mut problems: Vec<String> = match VmConfig::from_json(body.as_bytes()) {
        Ok(config) => panic!("{config:?}"),
        Err(errors) => errors.problems().iter().map(ToString::to_string).collect(),
    };
    let mut expected = [
        "cpus.boot_vcpus=\"x\": expected u32",
        "cpus.max_vcpus=1.5: expected u32",
        "not supported yet: cpus.kvm_hyperv",
        "cpus.bot: unknown key \"bot\"; expected one of boot_vcpus, max_vcpus, topology, \
         max_phys_bits, nested, affinity, core_scheduling",
        "cpus.core_scheduling=\"vm\": unknown value \"vm\"; did you mean \"Vm\"?",
        "cpus.affinity[0].host_cpus[1]=-1: expected u32",
        "memory.size=\"1G\": expected u64",
        "memory.zones[0].size: is missing",
        "not supported yet: memory.hotplug_size",
        "serial.mode=\"tty\": unknown value \"tty\"; did you mean \"Tty\"?",
        "not supported yet: platform.tdx",
        "platform.oem_strings=\"a\": expected a sequence",
        "not supported yet: vdpa",
        "not supported yet: watchdog",
        "cpu: unknown key \"cpu\"; did you mean \"cpus\"?",
        "payload: is missing",
    ];
    problems.sort();
    expected.sort();
    assert_eq!(problems, expected);
}

#[test]
fn what_is_no_configuration_is_refused() {
    for (body, message) in [
        ("", "JSON: EOF while parsing a value at line 1 column 0"),
        ("[]", "JSON: expected an object"),
        ("{}", "payload: is missing"),
        (r#"{"payload":null}"#, "payload: is missing"),
        (
            r#"{"payload":{"kernel":"a","kernel":"b"}}"#,
            "JSON: \"kernel\" is given twice at line 1 column 33",
        ),
        (
            r#"{"payload":{"firmware":"a"}}"#,
            "not supported yet: payload.firmware",
        ),
        (
            r#"{"payload":{},"cpus":{"boot_vcpus":1}}"#,
            "cpus.max_vcpus: is missing",
        ),
    ] {
        let read = VmConfig::from_json(body.as_bytes());
        assert_eq!(read.unwrap_err().to_string(), message, "{body}");
    }
    assert!(VmConfig::from_json("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn a_flood_of_problems_is_cut_off() {
    let members: Vec<String> = (0..10_000).map(|i| format!("\"x{i}\":0")).collect();
    let body = format!("{{{}}}", members.join(","));
    let errors = VmConfig::from_json(body.as_bytes()).unwrap_err();
    assert_eq!(errors.problems().len(), 32);
}
