//! Names and places of devices of all kinds.

use super::*;

#[test]
fn a_source_of_entropy_is_checked() {
    for options in [
        &["--rng", "src=/dev/hwrng,id=__rng,iommu=off"][..],
        &["--rng", "id=entropy,pci_device_id=31"],
        &[
            "--platform",
            "num_pci_segments=2",
            "--rng",
            "pci_segment=1,pci_device_id=0",
        ],
    ] {
        assert_eq!(problems(Isa::Aarch64, options), [""; 0], "{options:?}");
    }
    let at = "--rng src=/dev/urandom";
    for (value, message) in [
        ("src=\"\"", "--rng src=: the path is empty".to_owned()),
        (
            "id=__console",
            format!(
                "{at},id=__console: names that begin with __ are generated; only __rng is allowed here"
            ),
        ),
        (
            "id=_vfio0",
            format!(
                "{at},id=_vfio0: names that begin with _vfio are generated; only __rng is allowed here"
            ),
        ),
        (
            "pci_segment=1",
            format!("{at},pci_segment=1: must be less than --platform num_pci_segments=1"),
        ),
        (
            "pci_device_id=0",
            format!(
                "{at},pci_segment=0,pci_device_id=0: must be 1 to 31; device 0 of segment 0 is the \
                 host bridge"
            ),
        ),
    ] {
        refuses("--rng", value, &message);
    }
}

#[test]
fn a_console_is_checked() {
    for options in [
        &["--console", "null,id=__console,iommu=off"][..],
        &["--console", "file=/f,id=a,pci_device_id=31"],
        &["--console", "socket=/s"],
        &[
            "--platform",
            "num_pci_segments=2",
            "--console",
            "pty,pci_segment=1,pci_device_id=0",
        ],
    ] {
        assert_eq!(problems(Isa::Aarch64, options), [""; 0], "{options:?}");
    }
    for (value, message) in [
        (
            "pty,id=__rng",
            "--console pty,id=__rng: names that begin with __ are generated; only __console is allowed \
             here",
        ),
        (
            "file=/f,pci_segment=1",
            "--console file=/f,pci_segment=1: must be less than --platform num_pci_segments=1",
        ),
        (
            "off,id=a",
            "--console off: has neither name nor place; drop id=, pci_segment= and pci_device_id=",
        ),
        ("file=\"\"", "--console file=: the path is empty"),
    ] {
        refuses("--console", value, message);
    }
    let options = ["--platform", "acpi=off", "--console", "null"];
    assert_eq!(
        problems(Isa::Aarch64, &options),
        ["--console null: a guest with --platform acpi=off has no PCI yet; drop one of the two"]
    );
}

#[test]
fn sockets_are_checked() {
    let longest = format!("cid=4294967294,socket=/{}", "s".repeat(106));
    for options in [
        &["--vsock", "cid=3,socket=/s,id=_vsock0,iommu=off"][..],
        &["--vsock", "cid=3,socket=s,id=sockets,pci_device_id=31"],
        &["--vsock", &longest],
        &[
            "--platform",
            "num_pci_segments=2",
            "--vsock",
            "cid=3,socket=/s,pci_segment=1,pci_device_id=0",
        ],
    ] {
        assert_eq!(problems(Isa::Aarch64, options), [""; 0], "{options:?}");
    }
    for cid in [0, 1, 2, u32::MAX] {
        refuses(
            "--vsock",
            &format!("cid={cid},socket=/s"),
            &format!("--vsock cid={cid}: a guest's context is 3 to 4294967294"),
        );
    }
    let at = "--vsock cid=3,socket=/s";
    let long = format!("/{}", "s".repeat(107));
    for (value, message) in [
        (
            "cid=3,socket=\"\"",
            "--vsock cid=3,socket=: the path is empty".to_owned(),
        ),
        (
            &format!("cid=3,socket={long}"),
            format!("--vsock cid=3,socket={long}: a socket's path has at most 107 bytes"),
        ),
        (
            "cid=3,socket=/s,id=_disk0",
            format!(
                "{at},id=_disk0: names that begin with _disk are generated; only _vsock<number> is \
                 allowed here"
            ),
        ),
        (
            "cid=3,socket=/s,pci_segment=1",
            format!("{at},pci_segment=1: must be less than --platform num_pci_segments=1"),
        ),
    ] {
        refuses("--vsock", value, &message);
    }
}

/// Devices of all kinds share names, places and the room of a segment.
#[test]
fn devices_of_other_kinds_are_in_the_way_too() {
    assert_eq!(
        problems(
            Isa::X86_64,
            &[
                "--rng",
                "id=a,pci_device_id=5",
                "--device",
                "path=/d,id=a,pci_device_id=5",
            ]
        ),
        [
            "--rng src=/dev/urandom,id=a: another device has this id",
            "--rng src=/dev/urandom,pci_segment=0,pci_device_id=5: device a is there already",
        ]
    );
    let paths: Vec<String> = (0..31).map(|i| format!("path=/d{i}")).collect();
    let mut options = vec!["--rng", "src=/r", "--device"];
    options.extend(paths.iter().map(String::as_str));
    assert_eq!(
        problems(Isa::X86_64, &options),
        [
            "--rng src=/r,pci_segment=0: a segment has room for 31 devices; use another, see \
             --platform num_pci_segments"
        ]
    );
    options.pop();
    assert_eq!(problems(Isa::X86_64, &options), [""; 0]);
}

#[test]
fn devices_of_every_kind_can_be_taken_out() {
    let mut config = configured(&[
        "--vsock",
        "cid=3,socket=/s",
        "--rng",
        "src=/r",
        "--device",
        "path=/d",
        "path=/e",
    ]);
    let names = ["_vfio0", "_vfio1", "__rng", "__console", "_vsock0"];
    assert_eq!(config.device_ids(), names);
    assert!(config.remove_device("_vsock0"));
    assert_eq!(config.vsock, None);
    assert!(!config.remove_device("_rng"));
    assert!(config.remove_device("__rng"));
    assert_eq!(config.rng, None);
    assert!(config.remove_device("_vfio0"));
    assert_eq!(config.device_ids(), ["_vfio1", "__console"]);
    assert!(!config.remove_device("__rng"));
    assert!(config.remove_device("__console"));
    assert_eq!(config.console, None);
    assert_eq!(config.device_ids(), ["_vfio1"]);
}

/// Such a device owns no nodes.
#[test]
fn nodes_are_of_passed_through_devices_alone() {
    let nodes = [
        "--numa",
        "guest_numa_id=0,cpus=[0]",
        "guest_numa_id=1,device_id=__rng",
    ];
    let refused = problems(Isa::X86_64, &[&nodes[..], &["--rng", "src=/r"]].concat());
    assert!(
        matches!(&refused[..], [problem] if problem.contains("device_id=__rng")),
        "{refused:?}"
    );
}
