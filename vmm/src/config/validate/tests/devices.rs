//! Passed-through devices, their names and places, and their nodes.

use super::*;
use crate::config::GuestNumaIds;

/// A machine with a node for CPUs and RAM, and nodes 1 to 8 for devices.
const NODES: [&str; 10] = [
    "--numa",
    "guest_numa_id=0,cpus=[0],memory_zones=[mem0]",
    "guest_numa_id=1",
    "guest_numa_id=2",
    "guest_numa_id=3",
    "guest_numa_id=4",
    "guest_numa_id=5",
    "guest_numa_id=6",
    "guest_numa_id=7",
    "guest_numa_id=8",
];
const SHARED: [&str; 2] = ["--memory", "size=1G,shared=on"];

/// Problems of a machine with those nodes.
fn with_nodes(options: &[&str]) -> Vec<String> {
    problems(Isa::Aarch64, &[&NODES, options].concat())
}

#[test]
fn ordinary_devices_are_accepted() {
    for options in [
        &["--device", "path=/d"][..],
        &["--device", "path=/d,id=_vfio7", "path=/e"],
        &[
            "--device",
            "path=/d,pci_device_id=1",
            "path=/e,pci_device_id=31",
        ],
        &["--device", "path=/d,x_exclude_mmap_bars=[0-5]"],
        &["--device", "path=/d,x_allow_noncacheable=on"],
        &["--device", "path=/d,guest_numa_ids=[1-8]"],
        &[
            "--device",
            "path=/d,guest_numa_ids=[3,2,1],generic_initiator=on",
        ],
        &[
            "--device",
            "path=/d,guest_numa_ids=[1,3],generic_initiator=only",
            "path=/e,guest_numa_ids=[2],generic_initiator=off",
            "path=/f,guest_numa_ids=auto",
            "path=/g,guest_numa_ids=auto:64",
        ],
        &[
            "--user-device",
            "socket=/s,guest_numa_ids=[8]",
            "socket=/t,id=_vfio_user9",
            "--memory",
            "size=1G,shared=on",
        ],
        &[
            "--platform",
            "num_pci_segments=96,vfio_p2p_dma=off",
            "--pci-segment",
            "pci_segment=95,mmio32_aperture_weight=4294967295",
            "pci_segment=0",
            "--device",
            "path=/d,pci_segment=95,pci_device_id=1",
            "path=/e,pci_device_id=1",
        ],
    ] {
        assert_eq!(with_nodes(options), [""; 0], "{options:?}");
    }
    let nodes = [
        "--platform",
        "num_pci_segments=2",
        "--numa",
        "guest_numa_id=0,cpus=[0],pci_segments=[0]",
        "guest_numa_id=1,device_id=gpu",
        "guest_numa_id=2,device_id=gpu,pci_segments=[1]",
        "--device",
        "path=/d,id=gpu,guest_numa_ids=[1-3]",
    ];
    let third = [&nodes[..6], &["guest_numa_id=3"], &nodes[6..]].concat();
    assert_eq!(problems(Isa::X86_64, &third), [""; 0]);
}

#[test]
fn impossible_devices_are_refused() {
    for (option, value, message) in [
        ("--device", "path=\"\"", "--device path=: the path is empty"),
        (
            "--device",
            "path=/d,iommu=on",
            "--device path=/d,iommu=on: there is no virtio-iommu yet; use iommu=off",
        ),
        (
            "--device",
            "path=/d,x_exclude_mmap_bars=[5-6]",
            "--device path=/d,x_exclude_mmap_bars=[6]: BARs are numbered 0 to 5",
        ),
        (
            "--device",
            "path=/d,x_exclude_mmap_bars=[0,0]",
            "--device path=/d,x_exclude_mmap_bars=[0]: the BAR is given twice",
        ),
        (
            "--device",
            "path=/d,pci_device_id=0",
            "--device path=/d,pci_segment=0,pci_device_id=0: must be 1 to 31; device 0 of \
             segment 0 is the host bridge",
        ),
        (
            "--device",
            "path=/d,pci_device_id=32",
            "--device path=/d,pci_segment=0,pci_device_id=32: must be 1 to 31; device 0 of \
             segment 0 is the host bridge",
        ),
        (
            "--device",
            "path=/d,pci_segment=1",
            "--device path=/d,pci_segment=1: must be less than --platform num_pci_segments=1",
        ),
        (
            "--device",
            "path=/d,generic_initiator=only",
            "--device path=/d,generic_initiator=only: means nothing without nodes; add \
             guest_numa_ids",
        ),
    ] {
        refuses(option, value, message);
    }
    let socket = "s".repeat(108);
    assert_eq!(
        problems(
            Isa::X86_64,
            &[
                "--user-device",
                &format!("socket={socket}"),
                SHARED[0],
                SHARED[1]
            ]
        ),
        [format!(
            "--user-device socket={socket}: a socket's path has at most 107 bytes"
        )]
    );
}

#[test]
fn names_of_devices_are_checked() {
    for (id, reason) in [
        (
            "\"\"".to_owned(),
            "must not be empty; without id= the device is given a name",
        ),
        (
            "x".repeat(257),
            "has 257 characters; at most 256 are allowed",
        ),
        ("a\tb".to_owned(), "must not contain control characters"),
        (
            "_vfio".to_owned(),
            "names that begin with _vfio are generated; only _vfio<number> is allowed here",
        ),
        (
            "_vfio01".to_owned(),
            "names that begin with _vfio are generated; only _vfio<number> is allowed here",
        ),
        (
            "__rng".to_owned(),
            "names that begin with __ are generated; only _vfio<number> is allowed here",
        ),
        (
            "_vfio_user0".to_owned(),
            "names that begin with _vfio are generated; only _vfio<number> is allowed here",
        ),
    ] {
        let message = format!("--device path=/d,id={}: {reason}", id.replace('"', ""));
        refuses("--device", &format!("path=/d,id={id}"), &message);
    }
    let longest = "ä".repeat(256);
    assert_eq!(
        problems(Isa::X86_64, &["--device", &format!("path=/d,id={longest}")]),
        [""; 0]
    );
    let options = [
        "--device",
        "path=/d,id=a",
        "--user-device",
        "socket=/s,id=a",
        "socket=/t,id=_vfio0",
    ];
    assert_eq!(
        problems(Isa::X86_64, &[&options[..], &SHARED].concat()),
        [
            "--user-device socket=/s,id=a: another device has this id",
            "--user-device socket=/t,id=_vfio0: names that begin with _vfio are generated; only \
             _vfio_user<number> is allowed here",
        ]
    );
}

#[test]
fn every_device_has_a_name() {
    for (options, names) in [
        (
            &["--device", "path=/d", "path=/e"][..],
            &["_vfio0", "_vfio1", "__rng", "__console"][..],
        ),
        (
            &[
                "--device",
                "path=/d,id=a",
                "path=/e",
                "--user-device",
                "socket=/s",
            ],
            &["a", "_vfio1", "_vfio_user0", "__rng", "__console"],
        ),
        (
            &["--device", "path=/d,id=_vfio1", "path=/e", "path=/f"],
            &["_vfio1", "_vfio2", "_vfio3", "__rng", "__console"],
        ),
        (
            &["--device", "path=/d", "path=/e,id=_vfio0", "path=/f"],
            &["_vfio1", "_vfio0", "_vfio2", "__rng", "__console"],
        ),
        (
            &["--rng", "src=/r", "--device", "path=/d"],
            &["_vfio0", "__rng", "__console"],
        ),
        (&["--rng", "id=entropy"], &["entropy", "__console"]),
    ] {
        assert_eq!(configured(options).device_ids(), names, "{options:?}");
    }
}

#[test]
fn a_guest_has_a_source_of_entropy_unless_it_has_no_pci() {
    let body = |platform: &str| {
        let text = format!(r#"{{"payload": {{"kernel": "k"}}, "platform": {platform}}}"#);
        VmConfig::from_json(text.as_bytes()).unwrap()
    };
    for config in [configured(&[]), body("{}")] {
        assert_eq!(config.rng.unwrap().src, Path::new("/dev/urandom"));
    }
    for config in [
        configured(&["--platform", "acpi=off"]),
        body(r#"{"acpi": false}"#),
    ] {
        assert_eq!(config.rng, None);
        assert_eq!(config.validate(Isa::Aarch64), Ok(()));
    }
    let options = ["--platform", "acpi=off", "--rng", "src=/dev/urandom"];
    assert_eq!(
        problems(Isa::Aarch64, &options),
        [
            "--rng src=/dev/urandom: a guest with --platform acpi=off has no PCI yet; drop one of the two"
        ]
    );
}

#[test]
fn no_two_devices_are_the_same_or_in_the_same_place() {
    assert_eq!(
        problems(
            Isa::X86_64,
            &[
                "--device",
                "path=/d,id=a,pci_device_id=5",
                "path=/d/,pci_device_id=5",
                "--user-device",
                "socket=/s,pci_device_id=5",
                "socket=/s",
                "--memory",
                "size=1G,shared=on",
            ]
        ),
        [
            "--device path=/d/: is given twice; a device can be passed through once",
            "--user-device socket=/s: is given twice; a device can be passed through once",
            "--device path=/d/,pci_segment=0,pci_device_id=5: device a is there already",
            "--user-device socket=/s,pci_segment=0,pci_device_id=5: device _vfio1 is there already",
        ]
    );
    let paths: Vec<String> = (0..33).map(|i| format!("path=/d{i}")).collect();
    let platform = ["--platform", "num_pci_segments=2", "--rng", "pci_segment=1"];
    let mut options = platform.to_vec();
    options.push("--device");
    options.extend(paths[..31].iter().map(String::as_str));
    assert_eq!(problems(Isa::X86_64, &options), [""; 0]);
    options.extend(paths[31..].iter().map(String::as_str));
    assert_eq!(
        problems(Isa::X86_64, &options),
        [
            "--device path=/d31,pci_segment=0: a segment has room for 31 devices; use another, see \
             --platform num_pci_segments"
        ]
    );
}

#[test]
fn impossible_segments_are_refused_all_at_once() {
    assert_eq!(
        problems(
            Isa::X86_64,
            &[
                "--platform",
                "num_pci_segments=2",
                "--numa",
                "guest_numa_id=0,cpus=[0],pci_segments=[0,2,0]",
                "guest_numa_id=1,pci_segments=[0-1]",
                "--device",
                "path=/d,pci_segment=3",
                "--user-device",
                "socket=/s,pci_segment=2",
                "--pci-segment",
                "pci_segment=1,mmio32_aperture_weight=0,mmio64_aperture_weight=0",
                "pci_segment=1",
                "pci_segment=2",
                "--memory",
                "size=1G,shared=on",
            ]
        ),
        [
            "--numa guest_numa_id=0,pci_segments=[2]: must be less than --platform \
             num_pci_segments=2",
            "--numa guest_numa_id=0,pci_segments=[0]: the segment is in node 0 already",
            "--numa guest_numa_id=1,pci_segments=[0]: the segment is in node 0 already",
            "--device path=/d,pci_segment=3: must be less than --platform num_pci_segments=2",
            "--user-device socket=/s,pci_segment=2: must be less than --platform num_pci_segments=2",
            "--pci-segment pci_segment=1,mmio32_aperture_weight=0: must be at least 1",
            "--pci-segment pci_segment=1,mmio64_aperture_weight=0: must be at least 1",
            "--pci-segment pci_segment=1: is given twice",
            "--pci-segment pci_segment=2: must be less than --platform num_pci_segments=2",
        ]
    );
    for count in ["0", "97"] {
        assert_eq!(
            problems(
                Isa::X86_64,
                &[
                    "--platform",
                    &format!("num_pci_segments={count}"),
                    "--device",
                    "path=/d"
                ]
            ),
            [format!(
                "--platform num_pci_segments={count}: must be 1 to 96"
            )]
        );
    }
}

#[test]
fn devices_of_processes_need_shared_memory() {
    let device = ["--user-device", "socket=/s"];
    let reason = "--user-device needs shared=on: the other process reaches memory through \
                  descriptors";
    assert_eq!(
        problems(Isa::X86_64, &device),
        [format!("--memory shared=off: {reason}")]
    );
    let zones = [
        "--memory-zone",
        "id=a,size=1G,shared=on",
        "id=b,size=1G,file=/f",
    ];
    assert_eq!(
        problems(Isa::X86_64, &[&device[..], &zones].concat()),
        [format!("--memory-zone id=b: shared=off: {reason}")]
    );
}

#[test]
fn impossible_nodes_of_devices_are_refused_all_at_once() {
    assert_eq!(
        problems(
            Isa::X86_64,
            &[
                "--numa",
                "guest_numa_id=0,cpus=[0],device_id=a",
                "guest_numa_id=1,memory_zones=[mem0]",
                "guest_numa_id=2",
                "guest_numa_id=3,device_id=a",
                "guest_numa_id=4,device_id=nobody",
                "guest_numa_id=5,device_id=b",
                "guest_numa_id=7,device_id=b",
                "guest_numa_id=8",
                "--device",
                "path=/a,id=a,guest_numa_ids=[0-2,2,9]",
                "path=/b,id=b",
                "path=/c,guest_numa_ids=[2,5]",
                "path=/e,guest_numa_ids=[4,8]",
                "path=/f,guest_numa_ids=auto:0",
                "path=/g,guest_numa_ids=[0-64]",
            ]
        ),
        [
            "--device path=/a,guest_numa_ids=[0]: node 0 has CPUs; nodes of devices are declared \
             without cpus and memory_zones",
            "--device path=/a,guest_numa_ids=[1]: node 1 has RAM; nodes of devices are declared \
             without cpus and memory_zones",
            "--device path=/a,guest_numa_ids=[2]: node 2 is given twice",
            "--device path=/a,guest_numa_ids=[9]: there is no node 9; declare it with --numa",
            "--numa guest_numa_id=3,device_id=a: the device's guest_numa_ids are without node 3; name \
             it there too, or only here",
            "--numa device_id=b: a range with holes cannot be said in a _DSD; instead of 5,7 give \
             nodes that follow each other, or generic_initiator=only",
            "--device path=/c,guest_numa_ids=[2]: node 2 belongs to device a already",
            "--device path=/c,guest_numa_ids=[5]: node 5 belongs to device b already",
            "--device path=/e,guest_numa_ids=[4,8]: a range with holes cannot be said in a _DSD; \
             instead of 4,8 give nodes that follow each other, or generic_initiator=only",
            "--device path=/f,guest_numa_ids=auto:0: makes 0 nodes; a device has 1 to 64",
            "--device path=/g,guest_numa_ids=[0-64]: makes 65 nodes; a device has 1 to 64",
            "--numa guest_numa_id=4,device_id=nobody: there is no such device; there are _vfio2, \
             _vfio3, _vfio4, _vfio5, a, b",
        ]
    );
}

#[test]
fn a_node_that_names_a_device_is_one_of_its_own() {
    let numa = |first: &str, rest: &[&str]| {
        let first = format!("guest_numa_id=0,{first}");
        problems(Isa::X86_64, &[&["--numa", first.as_str()], rest].concat())
    };
    assert_eq!(
        numa("device_id=gpu", &[]),
        [
            "--numa guest_numa_id=0,device_id=gpu: there is no such device; give it by --device or \
             --user-device"
        ]
    );
    // What comes after the nodes that are declared is no node that is.
    let auto = [
        "guest_numa_id=1,device_id=_vfio0",
        "--device",
        "path=/d,guest_numa_ids=auto:2",
    ];
    assert_eq!(
        numa("cpus=[0]", &auto),
        [
            "--numa guest_numa_id=1,device_id=_vfio0: the device's guest_numa_ids are without \
             node 1; name it there too, or only here"
        ]
    );
    // The first node takes in everything if no node is given anything.
    assert_eq!(
        numa(
            "device_id=_vfio0",
            &["guest_numa_id=1", "--device", "path=/d"]
        ),
        [
            "--numa guest_numa_id=0,device_id=_vfio0: node 0 takes in the guest's CPUs and RAM, \
             because no node is given any; declare a node with cpus and memory_zones"
        ]
    );
    assert_eq!(
        numa(
            "hmat=[]",
            &["guest_numa_id=1,device_id=_vfio0", "--device", "path=/d"]
        ),
        [""; 0]
    );
}

#[test]
fn auto_needs_a_node_before_it_and_room_behind() {
    refuses(
        "--device",
        "path=/d,guest_numa_ids=auto",
        "--device path=/d,guest_numa_ids=auto:8: CPUs and RAM need a node too; declare at least \
         one with --numa",
    );
    let last = |id: &str| {
        let node = format!("guest_numa_id={id},cpus=[0]");
        let device = "path=/d,guest_numa_ids=auto:2";
        problems(Isa::X86_64, &["--numa", &node, "--device", device])
    };
    assert_eq!(last("1021"), [""; 0]);
    assert_eq!(
        last("1022"),
        [
            "--device path=/d,guest_numa_ids=auto:2: its nodes would reach 1024, counted on from \
             the highest of --numa; the last that can be is 1023"
        ]
    );
    assert_eq!(
        last("4294967295"),
        ["--numa guest_numa_id=4294967295: must be at most 1023"]
    );
}

#[test]
fn a_device_tree_has_no_pci() {
    let options = [
        "--platform",
        "acpi=off,num_pci_segments=2",
        "--numa",
        "guest_numa_id=0,cpus=[0]",
        "--device",
        "path=/d,guest_numa_ids=auto:2",
        "--rng",
        "src=/r",
        "--pci-segment",
        "pci_segment=1",
    ];
    let options_at_fault = [
        "--device path=/d",
        "--rng src=/r",
        "--platform num_pci_segments=2",
        "--pci-segment pci_segment=1",
    ];
    let expected = options_at_fault.map(|option| {
        format!("{option}: a guest with --platform acpi=off has no PCI yet; drop one of the two")
    });
    assert_eq!(problems(Isa::Aarch64, &options), expected);
}

#[test]
fn nodes_are_given_out_in_the_order_of_the_devices() {
    let config = configured(&[
        "--numa",
        "guest_numa_id=0,cpus=[0]",
        "guest_numa_id=20,device_id=_vfio_user1",
        "guest_numa_id=3",
        "guest_numa_id=2",
        "guest_numa_id=1,device_id=b",
        "--user-device",
        "socket=/s,guest_numa_ids=auto:2",
        "socket=/t",
        "--device",
        "path=/a,guest_numa_ids=auto",
        "path=/b,id=b",
        "path=/c,guest_numa_ids=[3,2]",
        "path=/d",
        "path=/e,guest_numa_ids=auto:1",
        "--memory",
        "size=1G,shared=on",
    ]);
    assert_eq!(config.validate(Isa::X86_64), Ok(()));
    let nodes = config.device_nodes();
    let nodes: Vec<(&str, Option<&[u32]>)> = nodes
        .iter()
        .map(|(name, nodes)| (name.as_str(), nodes.as_deref()))
        .collect();
    assert_eq!(
        nodes,
        [
            ("_vfio0", Some(&[21, 22, 23, 24, 25, 26, 27, 28][..])),
            ("b", Some(&[1])),
            ("_vfio2", Some(&[2, 3])),
            ("_vfio3", None),
            ("_vfio4", Some(&[29])),
            ("_vfio_user0", Some(&[30, 31])),
            ("_vfio_user1", Some(&[20])),
        ]
    );
}

/// No answer to these is right, but there is one, and soon.
#[test]
fn absurd_machines_do_no_harm() {
    let mut config = configured(&["--device", "path=/d,guest_numa_ids=auto:4294967295"]);
    config.devices = vec![config.devices[0].clone(); 20_000];
    config.user_devices = Vec::new();
    let mut node = configured(&["--numa", "guest_numa_id=4294967295"]).numa;
    node[0].device_id = Some("_vfio7".to_owned());
    config.numa = vec![node[0].clone(); 20_000];
    for (position, device) in config.devices.iter_mut().enumerate().step_by(2) {
        device.id = Some(format!("_vfio{}", position + 10_000));
    }
    assert_eq!(config.device_nodes().len(), 20_000);
    assert!(config.validate(Isa::X86_64).is_err());
    // A long path is not repeated in a complaint about each of many things.
    config.numa = configured(&[]).numa;
    config.devices[0].path = "x".repeat(1 << 20).into();
    config.devices[0].x_exclude_mmap_bars = vec![6; 1 << 20];
    config.devices[0].guest_numa_ids = Some(GuestNumaIds::Ids(vec![7; 1 << 20]));
    config.devices = vec![config.devices[0].clone(); 3];
    let errors = config.validate(Isa::X86_64).unwrap_err();
    assert!(errors.problems().len() < 50);
}
