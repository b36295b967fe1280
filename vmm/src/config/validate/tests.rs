mod devices;
mod disks;
mod net;
mod places;

use super::*;
use crate::config::ConsoleConfig;
use crate::config::cli::{self, Command};

/// A configuration as a command line, without `--kernel`, gives it.
fn configured(options: &[&str]) -> VmConfig {
    let args = ["vmm", "--kernel", "/kernel"].iter().chain(options);
    match cli::parse(args.map(Into::into)) {
        Ok(Command::Run {
            config: Some(config),
            options: _,
        }) => *config,
        other => panic!("{options:?}: {other:?}"),
    }
}

fn problems(isa: Isa, options: &[&str]) -> Vec<String> {
    match configured(options).validate(isa) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.problems().iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn refuses(option: &str, value: &str, message: &str) {
    assert_eq!(problems(Isa::X86_64, &[option, value]), [message]);
}

#[test]
fn ordinary_machines_are_accepted() {
    for options in [
        &[][..],
        &["--cpus", "boot=255"],
        &["--cpus", "boot=1,max=255", "--memory", "size=64G,shared=on"],
        &[
            "--cpus",
            "boot=2,max=12,topology=2:3:1:2,affinity=[0@[0],11@[0-3,8191]]",
        ],
        &["--cpus", "boot=1,max_phys_bits=52"],
        &["--memory", "size=1M,mergeable=on,prefault=on,thp=off"],
        &["--memory", "size=4G,hugepages=on,hugepage_size=1G"],
        &["--memory", "size=4096T"],
        &[
            "--memory-zone",
            "id=a,size=1G",
            "id=b,size=2G,shared=on,host_numa_node=1",
        ],
        &[
            "--memory-zone",
            "id=a,size=1G",
            "--numa",
            "guest_numa_id=0,cpus=[0],memory_zones=[a],distances=[0@10,1023@11]",
            "guest_numa_id=1023,hmat=[0@1:1:1:1]",
        ],
        &["--serial", "tty", "--console", "off"],
        &["--serial", "socket=/run/serial"],
        &[
            "--platform",
            "uuid=c0de9d28-1F2B-4c3d-8e4f-5a6b7c8d9e0f,serial_number=1",
        ],
    ] {
        for isa in [Isa::X86_64, Isa::Aarch64] {
            assert_eq!(problems(isa, options), [""; 0], "{options:?}");
        }
    }
    let debug_console = ["--debug-console", "tty,iobase=0x402"];
    assert_eq!(problems(Isa::X86_64, &debug_console), [""; 0]);
    assert_eq!(problems(Isa::Aarch64, &["--platform", "acpi=off"]), [""; 0]);
}

#[test]
fn impossible_cpus_are_refused() {
    refuses("--cpus", "boot=0", "--cpus boot=0: must be 1 to 255");
    refuses("--cpus", "boot=256", "--cpus boot=256: must be 1 to 255");
    refuses(
        "--cpus",
        "boot=1,max=256",
        "--cpus max=256: must be at most 255",
    );
    refuses(
        "--cpus",
        "boot=4,max=2",
        "--cpus max=2: must be at least the vCPUs at boot, boot=4",
    );
    refuses(
        "--cpus",
        "boot=4,topology=1:2:1:1",
        "--cpus topology=1:2:1:1: makes 2 vCPUs; it must make max=4",
    );
    refuses(
        "--cpus",
        "boot=4,topology=4:1:0:1",
        "--cpus topology=4:1:0:1: makes 0 vCPUs; it must make max=4",
    );
    refuses(
        "--cpus",
        "topology=4294967295:4294967295:4294967295:4294967295",
        "--cpus topology=4294967295:4294967295:4294967295:4294967295: makes \
         340282366604025813516997721482669850625 vCPUs; it must make max=1",
    );
    for bits in ["31", "53", "255"] {
        let message = format!("--cpus max_phys_bits={bits}: must be 32 to 52 bits");
        refuses("--cpus", &format!("max_phys_bits={bits}"), &message);
    }
}

#[test]
fn impossible_affinity_is_refused() {
    refuses(
        "--cpus",
        "boot=2,affinity=[0@[1],1@[1],0@[2]]",
        "--cpus affinity=[0@[2]]: overlapping affinity: vCPU 0 is named twice",
    );
    refuses(
        "--cpus",
        "boot=2,affinity=[2@[0-1]]",
        "--cpus affinity=[2@[0, 1]]: there is no vCPU 2; they are 0 to max=2 - 1",
    );
    refuses(
        "--cpus",
        "affinity=[0@[]]",
        "--cpus affinity=[0@[]]: vCPU 0 needs at least one host CPU",
    );
    refuses(
        "--cpus",
        "affinity=[0@[8192]]",
        "--cpus affinity=[0@[8192]]: no host has a CPU 8192; the last is 8191",
    );
}

#[test]
fn impossible_memory_is_refused() {
    for (value, message) in [
        (
            "size=0",
            "--memory size=0: must be at least 1 MiB; give for instance size=1G, or size=0 and --memory-zone",
        ),
        (
            "size=1023K",
            "--memory size=1047552: must be at least 1 MiB; give for instance size=1G, or size=0 and --memory-zone",
        ),
        (
            "size=1048577",
            "--memory size=1048577: must be a multiple of the 4096 bytes of a page",
        ),
        (
            "size=4097T",
            "--memory size=4504699138998272: is more than any guest can address (2^52 bytes)",
        ),
        (
            "hugepage_size=2M",
            "--memory hugepage_size=2097152: means nothing without hugepages=on; add it",
        ),
        (
            "hugepages=on,hugepage_size=3M",
            "--memory hugepage_size=3145728: must be a power of two and not less than 4096 bytes",
        ),
        (
            "hugepages=on,hugepage_size=0",
            "--memory hugepage_size=0: must be a power of two and not less than 4096 bytes",
        ),
        (
            "hugepages=on,hugepage_size=1G",
            "--memory hugepage_size=1073741824: size=536870912 must be a multiple of it",
        ),
        (
            "mergeable=on,shared=on",
            "--memory mergeable=on: the host merges private memory only; use shared=off",
        ),
        (
            "mergeable=on,hugepages=on",
            "--memory mergeable=on: the host does not merge huge pages; use hugepages=off",
        ),
    ] {
        refuses("--memory", value, message);
    }
}

#[test]
fn a_machine_needs_something_to_boot() {
    let missing = VmConfig::default().validate(Isa::Aarch64).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "--kernel: nothing to boot; give a kernel: --kernel <path>"
    );
    refuses("--initramfs", "", "--initramfs : the path is empty");
}

#[test]
fn paths_and_texts_that_the_host_cannot_take_are_refused() {
    let mut config = configured(&[]);
    config.payload.kernel = Some("a\0b".into());
    config.payload.cmdline = Some("a\0b".into());
    config.payload.initramfs = Some("x".repeat(4096).into());
    let errors = config.validate(Isa::X86_64).unwrap_err();
    let reasons: Vec<String> = errors.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        [
            "--kernel a\0b: a path cannot contain a NUL character".to_string(),
            format!(
                "--initramfs {}: a path has at most 4095 bytes",
                "x".repeat(4096)
            ),
            "--cmdline \"a\\0b\": must not contain a NUL character".to_string(),
        ]
    );
}

#[test]
fn a_console_has_exactly_the_path_that_its_mode_needs() {
    let path = "s".repeat(108);
    let message = format!("--serial socket={path}: a socket's path has at most 107 bytes");
    refuses("--serial", &format!("socket={path}"), &message);
    assert_eq!(
        problems(
            Isa::X86_64,
            &["--serial", &format!("socket={}", &path[1..])]
        ),
        [""; 0]
    );

    let mut config = configured(&[]);
    config.serial.mode = ConsoleMode::File;
    config.serial.socket = Some("/socket".into());
    config.debug_console.mode = ConsoleMode::Socket;
    config.console = Some(ConsoleConfig {
        file: Some("/file".into()),
        ..ConsoleConfig::of(ConsoleMode::Null)
    });
    assert_eq!(
        config.validate(Isa::X86_64).unwrap_err().to_string(),
        "--serial file: the path is missing: file=<path>\n\
         --serial socket=/socket: contradicts the mode file\n\
         --console file=/file: contradicts the mode null\n\
         --debug-console socket: expected off, pty, tty or file=<path>"
    );
}

#[test]
fn a_debug_console_needs_x86_64_and_a_connection() {
    assert_eq!(
        problems(Isa::Aarch64, &["--debug-console", "pty"]),
        ["--debug-console pty: aarch64 has no I/O ports; only x86_64 has a debug console"]
    );
    refuses(
        "--debug-console",
        "off,iobase=0x402",
        "--debug-console iobase=0x402: means nothing while it is off; add pty, tty or file=<path>",
    );
}

#[test]
fn the_terminal_belongs_to_one_console() {
    assert_eq!(
        problems(Isa::X86_64, &["--serial", "tty", "--debug-console", "tty"]),
        ["--debug-console tty: --serial has the terminal already; connect one of them elsewhere"]
    );
    assert_eq!(
        problems(Isa::X86_64, &["--serial", "tty", "--console", "tty"]),
        [
            "--console tty: --serial has the terminal already; connect one of them elsewhere: --console \
             off or pty, say"
        ]
    );
    // Of the debug console there is no input that two could want.
    let options = ["--console", "tty", "--debug-console", "tty"];
    assert_eq!(problems(Isa::X86_64, &options), [""; 0]);
}

/// As in the compatible interface, but that a default gives way where it would only be in the way.
#[test]
fn a_console_that_nobody_asked_for_is_the_terminal_if_that_can_be() {
    let mode = |config: VmConfig| config.console.unwrap().mode;
    let body = |members: &str| {
        let text = format!(r#"{{"payload": {{"kernel": "k"}}{members}}}"#);
        VmConfig::from_json(text.as_bytes()).unwrap()
    };
    for config in [
        configured(&[]),
        body(""),
        configured(&["--serial", "pty"]),
        body(r#", "console": {"mode": "Tty"}"#),
    ] {
        assert_eq!(config.validate(Isa::Aarch64), Ok(()));
        assert_eq!(config.device_ids(), ["__rng", "__console"]);
        assert_eq!(mode(config), ConsoleMode::Tty);
    }
    for config in [
        configured(&["--serial", "tty"]),
        body(r#", "serial": {"mode": "Tty"}"#),
        configured(&["--platform", "acpi=off"]),
        body(r#", "platform": {"acpi": false}"#),
        configured(&["--console", "off"]),
    ] {
        assert_eq!(config.validate(Isa::Aarch64), Ok(()));
        assert!(!config.device_ids().contains(&"__console".to_owned()));
        assert_eq!(mode(config), ConsoleMode::Off);
    }
    // Where all places of the segment are taken.
    let paths: Vec<String> = (0..30).map(|i| format!("path=/d{i}")).collect();
    let mut options = vec!["--device"];
    options.extend(paths.iter().map(String::as_str));
    assert_eq!(mode(configured(&options)), ConsoleMode::Off);
    assert_eq!(problems(Isa::X86_64, &options), [""; 0]);
    options.pop();
    assert_eq!(mode(configured(&options)), ConsoleMode::Tty);
    assert_eq!(problems(Isa::X86_64, &options), [""; 0]);
}

#[test]
fn strings_that_smbios_cannot_hold_are_refused() {
    refuses(
        "--platform",
        "system_version=\"\"",
        "--platform system_version=\"\": must not be empty",
    );
    refuses(
        "--platform",
        "oem_strings=[a,\"b\n\"]",
        "--platform oem_strings=\"b\\n\": must not contain control characters",
    );
    let text = "x".repeat(4001);
    refuses(
        "--platform",
        &format!("system_family={text}"),
        &format!("--platform system_family=\"{text}\": has 4001 bytes; at most 4000 are allowed"),
    );
    let list = vec!["a"; 256].join(",");
    refuses(
        "--platform",
        &format!("oem_strings=[{list}]"),
        "--platform oem_strings: 256 of them: at most 255 strings can be given",
    );
}

#[test]
fn uuids_are_checked_and_read_in_the_order_of_their_text() {
    for uuid in [
        "x",
        "00112233445566778899aabbccddeeff",
        "00112233-4455-6677-8899-aabbccddeef",
        "00112233-4455-6677-8899-aabbccddeefg",
        "+0112233-4455-6677-8899-aabbccddeeff",
        "0011223-34455-6677-8899-aabbccddeeff",
        "ä112233-4455-6677-8899-aabbccddeeff",
    ] {
        let message = format!(
            "--platform system_uuid={uuid}: not a UUID; expected \
             xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hex"
        );
        refuses("--platform", &format!("system_uuid={uuid}"), &message);
    }
    refuses(
        "--platform",
        "uuid=x",
        "--platform uuid=x: not a UUID; expected xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx in hex",
    );
    let config = configured(&["--platform", "uuid=00112233-4455-6677-8899-AABBccddeeff"]);
    assert_eq!(
        config.platform.uuid(),
        Some([
            0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff
        ])
    );
}

#[test]
fn a_platform_key_is_given_under_one_of_its_names() {
    refuses(
        "--platform",
        "serial_number=a,system_serial_number=b",
        "--platform serial_number=a: is the older name of system_serial_number; give only one of \
         them",
    );
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    refuses(
        "--platform",
        &format!("uuid={uuid},system_uuid={uuid}"),
        &format!("--platform uuid={uuid}: is the older name of system_uuid; give only one of them"),
    );
    let older = configured(&["--platform", "serial_number=a"]);
    let newer = configured(&["--platform", "system_serial_number=a"]);
    assert_eq!(older.platform.serial(), Some("a"));
    assert_eq!(newer.platform.serial(), Some("a"));
}

#[test]
fn a_guest_without_acpi_is_an_aarch64_one_without_smbios() {
    refuses(
        "--platform",
        "acpi=off",
        "--platform acpi=off: an x86_64 guest cannot do without ACPI; only aarch64 has a choice",
    );
    assert_eq!(
        problems(Isa::Aarch64, &["--platform", "acpi=off,system_family=a"]),
        ["--platform acpi=off: a guest without ACPI is given no SMBIOS; remove system_family"]
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let options = ["--cpus", "boot=0,max_phys_bits=1", "--memory", "size=0"];
    assert_eq!(problems(Isa::X86_64, &options).len(), 3);
}

#[test]
fn address_bits_default_to_what_the_architecture_is_given() {
    let config = configured(&[]);
    assert_eq!(config.cpus.phys_bits_limit(Isa::X86_64), Some(46));
    assert_eq!(config.cpus.phys_bits_limit(Isa::Aarch64), None);
    let config = configured(&["--cpus", "max_phys_bits=40"]);
    assert_eq!(config.cpus.phys_bits_limit(Isa::X86_64), Some(40));
    assert_eq!(config.cpus.phys_bits_limit(Isa::Aarch64), Some(40));
}

const TWO_ZONES: [&str; 3] = ["--memory-zone", "id=a,size=1G", "id=b,size=1G"];

/// Every problem of these nodes and zones.
fn node_problems(isa: Isa, nodes: &[&str], rest: &[&str]) -> Vec<String> {
    let numa: &[&str] = if nodes.is_empty() { &[] } else { &["--numa"] };
    let options: Vec<&str> = [numa, nodes, rest].concat();
    problems(isa, &options)
}

#[test]
fn impossible_nodes_are_refused_all_at_once() {
    let nodes = [
        "guest_numa_id=0,cpus=[0,9],memory_zones=[a,c],distances=[0@11,2@10,1@255,7@20]",
        "guest_numa_id=1,cpus=[0],memory_zones=[a],distances=[0@20,0@30]",
        "guest_numa_id=1",
        "guest_numa_id=1024",
        "guest_numa_id=2,hmat=[1@1:1:1:0,2@1:1:1:1,8@1:1:1:1,1@1:1:1:1]",
    ];
    let rest = [&["--cpus", "boot=4"], &TWO_ZONES[..]].concat();
    assert_eq!(
        node_problems(Isa::Aarch64, &nodes, &rest),
        [
            "--numa guest_numa_id=0,cpus=[9]: there is no vCPU 9; the last is 3",
            "--numa guest_numa_id=0,memory_zones=[c]: there is no such zone; there are a, b",
            "--numa guest_numa_id=0,distances=[0@11]: a node is at distance 10 to itself",
            "--numa guest_numa_id=0,distances=[2@10]: must be 11 to 254",
            "--numa guest_numa_id=0,distances=[1@255]: must be 11 to 254",
            "--numa guest_numa_id=0,distances=[7@20]: there is no node 7; declare it with --numa",
            "--numa guest_numa_id=1,cpus=[0]: vCPU 0 is in node 0 already",
            "--numa guest_numa_id=1,memory_zones=[a]: the zone is in node 0 already",
            "--numa guest_numa_id=1,distances=[0@30]: the distance to node 0 is given twice",
            "--numa guest_numa_id=1: is given twice",
            "--numa guest_numa_id=1024: must be at most 1023",
            "--numa guest_numa_id=2,hmat=[1@1:1:1:0]: latencies and bandwidths must be more than 0",
            "--numa guest_numa_id=2,hmat=[2@1:1:1:1]: node 2 is given no CPUs that could use memory",
            "--numa guest_numa_id=2,hmat=[8@1:1:1:1]: there is no node 8",
            "--numa guest_numa_id=2,hmat=[1@1:1:1:1]: node 1 is given twice",
        ]
    );
}

#[test]
fn latencies_that_no_table_can_hold_are_refused() {
    let node =
        |latency| format!("guest_numa_id=0,cpus=[0],memory_zones=[mem0],hmat=[0@1:{latency}:1:1]");
    assert_eq!(
        node_problems(Isa::X86_64, &[&node(4_294_967)], &[]),
        [""; 0]
    );
    assert_eq!(
        node_problems(Isa::X86_64, &[&node(4_294_968)], &[]),
        ["--numa guest_numa_id=0,hmat=[0@1:4294968:1:1]: latencies are at most 4294967 ns"]
    );
}

#[test]
fn impossible_zones_are_refused_all_at_once() {
    let options = [
        "--memory",
        "size=1G,shared=on,hugepages=on,hugepage_size=2M",
        "--memory-zone",
        "id=a,size=0",
        "id=a,size=1G,mergeable=on,shared=on",
        "id=\"\",size=4097",
        "id=b,size=1G,file=/x,hugepages=on",
        "id=c,size=1G,hugepage_size=2M",
    ];
    assert_eq!(
        problems(Isa::X86_64, &options),
        [
            "--memory size=1073741824: RAM is given by --memory-zone; say size=0 here",
            "--memory shared=on: RAM is given by --memory-zone; say it of each zone instead",
            "--memory hugepages=on: RAM is given by --memory-zone; say it of each zone instead",
            "--memory hugepage_size=2097152: RAM is given by --memory-zone; say it of each zone instead",
            "--memory-zone id=a: size=0: must be more than 0",
            "--memory-zone id=a: mergeable=on: the host merges private memory only; use shared=off",
            "--memory-zone id=a: another zone has this name",
            "--memory-zone id=: size=4097: must be a multiple of the 4096 bytes of a page",
            "--memory-zone id=: a zone needs a name",
            "--memory-zone id=b: file=/x: hugepages=on is for memory without a file; a file on a \
             hugetlbfs has its pages anyway",
            "--memory-zone id=c: hugepage_size=2097152: means nothing without hugepages=on; add it",
        ]
    );
    let total = ["--memory-zone", "id=a,size=4096T", "id=b,size=1G"];
    assert_eq!(
        problems(Isa::Aarch64, &total),
        ["--memory size=4503600701112320: is more than any guest can address (2^52 bytes)"]
    );
}

#[test]
fn what_a_device_tree_cannot_carry_is_refused() {
    let nodes = [
        "guest_numa_id=0,cpus=[0],memory_zones=[mem0],hmat=[0@1:1:1:1]",
        "guest_numa_id=1",
    ];
    let rest = ["--platform", "acpi=off"];
    assert_eq!(
        node_problems(Isa::Aarch64, &nodes, &rest),
        [
            "--numa guest_numa_id=0,hmat=: a device tree cannot carry it; drop --platform acpi=off",
            "--numa guest_numa_id=1: a device tree cannot carry an empty node; drop --platform acpi=off",
        ]
    );
    let x86: Vec<String> = node_problems(Isa::X86_64, &nodes, &rest);
    let refusal = "--numa guest_numa_id=0: x86_64 guests learn of NUMA from ACPI alone";
    assert!(
        x86.iter().any(|problem| problem.starts_with(refusal)),
        "{x86:?}"
    );
}
