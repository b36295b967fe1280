use std::collections::BTreeSet;

use super::*;
use crate::api::{Method, ROUTES};
use crate::remote::{Body, Print};

fn parse_all(args: &[&str]) -> Result<Command, CliError> {
    parse(["ch-remote"].iter().chain(args).map(Into::into))
}

/// What a command asks for, the socket given before it.
fn call(args: &[&str]) -> Result<Call, String> {
    let args = [&["--api-socket", "/s"][..], args].concat();
    match parse_all(&args) {
        Ok(Command::Call { socket, call }) => {
            assert_eq!(socket, PathBuf::from("/s"));
            Ok(call)
        }
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn printed(args: &[&str]) -> String {
    match parse_all(args) {
        Ok(Command::Print(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// The commands of the compatible interface and ours: arguments, method, route, body.
const COMMAND_LINES: [(&str, Method, &str, &str); 35] = [
    (
        "add-device path=/d,id=gpu0,guest_numa_ids=[2-9]",
        Method::Put,
        "vm.add-device",
        r#"{"guest_numa_ids":[2,3,4,5,6,7,8,9],"id":"gpu0","iommu":false,"path":"/d","pci_segment":0}"#,
    ),
    (
        "add-disk path=/disk,readonly=on,id=data",
        Method::Put,
        "vm.add-disk",
        r#"{"backing_files":false,"direct":false,"id":"data","image_type":"Unknown","lock_granularity":"ByteRange","num_queues":1,"path":"/disk","pci_segment":0,"queue_size":128,"readonly":true,"sparse":true}"#,
    ),
    (
        "add-net tap=t,num_queues=4,offload_tso=off",
        Method::Put,
        "vm.add-net",
        r#"{"num_queues":4,"offload_csum":true,"offload_tso":false,"offload_ufo":true,"pci_segment":0,"queue_size":256,"tap":"t"}"#,
    ),
    (
        "add-vsock cid=3,socket=/s",
        Method::Put,
        "vm.add-vsock",
        r#"{"cid":3,"pci_segment":0,"socket":"/s"}"#,
    ),
    (
        "add-user-device socket=/s,pci_segment=1",
        Method::Put,
        "vm.add-user-device",
        r#"{"pci_segment":1,"socket":"/s"}"#,
    ),
    ("boot", Method::Put, "vm.boot", ""),
    (
        "coredump file:///core",
        Method::Put,
        "vm.coredump",
        r#"{"destination_url":"file:///core"}"#,
    ),
    ("counters", Method::Get, "vm.counters", ""),
    ("create", Method::Put, "vm.create", "-"),
    ("create -", Method::Put, "vm.create", "-"),
    ("create /vm.json", Method::Put, "vm.create", "/vm.json"),
    ("delete", Method::Put, "vm.delete", ""),
    ("info", Method::Get, "vm.info", ""),
    ("nmi", Method::Put, "vm.nmi", ""),
    ("numa", Method::Get, "vm.info", ""),
    ("pause", Method::Put, "vm.pause", ""),
    ("ping", Method::Get, "vmm.ping", ""),
    ("power-button", Method::Put, "vm.power-button", ""),
    ("reboot", Method::Put, "vm.reboot", ""),
    (
        "remove-device gpu0",
        Method::Put,
        "vm.remove-device",
        r#"{"id":"gpu0"}"#,
    ),
    (
        "resize --cpus 4",
        Method::Put,
        "vm.resize",
        r#"{"desired_vcpus":4}"#,
    ),
    (
        "resize --memory 0x1000",
        Method::Put,
        "vm.resize",
        r#"{"desired_ram":4096}"#,
    ),
    (
        "resize --cpus=4 --memory=8G --balloon=512M",
        Method::Put,
        "vm.resize",
        r#"{"desired_balloon":536870912,"desired_ram":8589934592,"desired_vcpus":4}"#,
    ),
    (
        "resize-disk --disk d0 --size 1T",
        Method::Put,
        "vm.resize-disk",
        r#"{"desired_size":1099511627776,"id":"d0"}"#,
    ),
    (
        "resize-zone --id mem0 --size 1024K",
        Method::Put,
        "vm.resize-zone",
        r#"{"desired_ram":1048576,"id":"mem0"}"#,
    ),
    ("resume", Method::Put, "vm.resume", ""),
    ("shutdown", Method::Put, "vm.shutdown", ""),
    ("shutdown-vmm", Method::Put, "vmm.shutdown", ""),
    (
        "snapshot file:///snap",
        Method::Put,
        "vm.snapshot",
        r#"{"destination_url":"file:///snap"}"#,
    ),
    // The order of the rest is of no matter: values that need care.
    (
        r#"remove-device a"b"#,
        Method::Put,
        "vm.remove-device",
        r#"{"id":"a\"b"}"#,
    ),
    (
        "resize --cpus 0x10",
        Method::Put,
        "vm.resize",
        r#"{"desired_vcpus":16}"#,
    ),
    (
        "resize --memory 0",
        Method::Put,
        "vm.resize",
        r#"{"desired_ram":0}"#,
    ),
    (
        r#"add-device path="/a,b",generic_initiator=only"#,
        Method::Put,
        "vm.add-device",
        r#"{"generic_initiator":"Only","iommu":false,"path":"/a,b","pci_segment":0}"#,
    ),
    (
        "add-device path=/d,x_exclude_mmap_bars=[1-2],iommu=on",
        Method::Put,
        "vm.add-device",
        r#"{"iommu":true,"path":"/d","pci_segment":0,"x_exclude_mmap_bars":[1,2]}"#,
    ),
    (
        "add-user-device socket=/s,id=a,pci_device_id=3",
        Method::Put,
        "vm.add-user-device",
        r#"{"id":"a","pci_device_id":3,"pci_segment":0,"socket":"/s"}"#,
    ),
];

/// Commands whose options are not there yet, with what they are given.
const NOT_YET: [&str; 7] = [
    "add-fs tag=a,socket=/s",
    "add-generic-vhost-user socket=/s,queue_sizes=[1],device_type=1",
    "add-pmem file=/p",
    "add-vdpa path=/v",
    "receive-migration receiver_url=unix:/m",
    "restore source_url=file:///s",
    "send-migration destination_url=unix:/m --local",
];

#[test]
fn commands_ask_for_what_the_interface_says() {
    for (line, method, route, body) in COMMAND_LINES {
        let args: Vec<&str> = line.split(' ').collect();
        let body = match body {
            "" => Body::None,
            body if body.starts_with('{') => Body::Json(body.to_owned()),
            path => Body::File(path.into()),
        };
        let print = match line {
            "numa" => Print::Numa,
            _ => Print::Body,
        };
        let expected = Call {
            method,
            route,
            body,
            files: Vec::new(),
            print,
        };
        assert_eq!(call(&args), Ok(expected), "{line}");
    }
}

/// What they are numbers of goes with the request instead.
#[test]
fn descriptors_of_a_tap_are_sent_along() {
    let call = call(&["add-net", "fd=[5,7],num_queues=4"]).unwrap();
    assert_eq!(call.files, [5, 7]);
    let Body::Json(body) = call.body else {
        panic!("{:?}", call.body);
    };
    assert!(!body.contains("fds"), "{body}");
}

#[test]
fn every_command_and_every_route_is_tested() {
    let name = |line: &'static str| line.split(' ').next().unwrap();
    let lines = COMMAND_LINES.iter().map(|(line, ..)| *line).chain(NOT_YET);
    let tested: BTreeSet<&str> = lines.map(name).collect();
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    assert!(names.is_sorted());
    assert_eq!(tested, names.iter().copied().collect());
    // Ours is the only command that has no route to itself.
    assert_eq!(names.len(), ROUTES.len() + 1);
}

/// What is refused here is what the server would refuse too.
#[test]
fn what_is_not_there_yet_is_refused_before_anything_is_sent() {
    for line in NOT_YET {
        let args: Vec<&str> = line.split(' ').collect();
        let name = args[0];
        let refusal = Err(format!("not supported yet: {name}"));
        assert_eq!(call(&args), refusal);
        assert_eq!(call(&args[..1]), refusal);
        let route = ROUTES
            .iter()
            .find(|route| route.name == format!("vm.{name}"));
        let effect = route.unwrap().effect;
        assert!(matches!(effect, crate::api::Effect::NotYet), "{name}");
    }
}

#[test]
fn wrong_values_are_named_with_what_they_were_given_to() {
    for (args, message) in [
        (
            &["add-device", "pth=/d,iomu=on"][..],
            "add-device pth=/d: unknown key \"pth\"; did you mean \"path\"?\n\
             add-device iomu=on: unknown key \"iomu\"; did you mean \"iommu\"?",
        ),
        (
            &["add-device", "path=/d,pci_segment=x,iommu=y"],
            "add-device iommu=y: expected on or off\n\
             add-device pci_segment=x: \"x\" is not a number",
        ),
        (
            &["add-device", "id=a"],
            "add-device id=a: path=<path> is missing",
        ),
        (
            &["add-device", "path=/d,fd=3"],
            "not supported yet: add-device fd",
        ),
        (
            &["add-user-device", "socket="],
            "add-user-device socket=: the value is missing: socket=<path>",
        ),
        (
            &["resize", "--memory", "1X"],
            "--memory 1X: \"1X\" is not a size; expected bytes, or K, M, G or T of them: 1G",
        ),
        (
            &["resize", "--cpus", "4294967296"],
            "--cpus 4294967296: out of range: at most 4294967295",
        ),
        (
            &["resize", "--cpus", "1G"],
            "--cpus 1G: \"1G\" is not a number",
        ),
        (
            &["resize-disk", "--disk", "d", "--size", "99999999T"],
            "--size 99999999T: \"99999999T\" is not a size; expected bytes, or K, M, G or T of them: \
             1G",
        ),
        (
            &["resize-zone", "--id", "z", "--size", ""],
            "--size : \"\" is not a size; expected bytes, or K, M, G or T of them: 1G",
        ),
    ] {
        assert_eq!(call(args).unwrap_err(), message);
    }
}

#[test]
fn a_command_line_that_is_not_one_is_an_error() {
    for args in [
        &[][..],
        &["--api-socket", "/s"],
        &["info"],
        &["--api-socket", "/s", "inof"],
        &["--api-socket", "/s", "--api-socket", "/t", "info"],
        &["--api-socket", "/s", "info", "more"],
        &["--api-socket", "/s", "resize"],
        &["--api-socket", "/s", "resize-disk", "--disk", "d"],
        &["--api-socket", "/s", "resize-zone", "--size", "1G"],
        &["--api-socket", "/s", "add-device"],
        &["--api-socket", "/s", "remove-device"],
        &["--api-socket", "/s", "remove-device", "a", "b"],
        &["--api-socket", "/s", "snapshot"],
        &["--api-socket", "/s", "coredump"],
    ] {
        assert!(
            matches!(parse_all(args), Err(CliError::Usage(_))),
            "{args:?}"
        );
    }
}

/// The help of the program, and then of each command that takes something.
#[test]
fn help_is_what_it_was_agreed_to_be() {
    let mut help = printed(&["--help"]);
    let taking = COMMANDS
        .iter()
        .filter(|command| !matches!(command.takes, Takes::Nothing | Takes::NotYet));
    for command in taking {
        let of_command = printed(&[command.name, "--help"]);
        assert_eq!(printed(&["help", command.name]), of_command);
        help.push_str(&format!("\n$ ch-remote {}\n{of_command}", command.name));
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/remote/cli/help.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(golden, &help).unwrap();
    }
    assert_eq!(std::fs::read_to_string(golden).unwrap(), help);
}

#[test]
fn the_version_is_that_of_the_vmm() {
    let version = concat!("ch-remote v", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(printed(&["--version"]), version);
    assert_eq!(printed(&["-V"]), version);
}
