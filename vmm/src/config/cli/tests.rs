use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::config::ConsoleMode;

/// The options of the compatible interface, and a value that each of them takes.
const INTERFACE: [(&str, &str); 43] = [
    ("--api-socket", "/run/api"),
    ("--balloon", "size=1G"),
    ("--cmdline", "quiet"),
    ("--console", "off"),
    ("--cpus", "boot=1"),
    ("--debug-console", "off"),
    ("--device", "path=/sys/bus/pci/devices/0000:00:01.0"),
    ("--disk", "path=/disk"),
    ("--event-monitor", "fd=3"),
    ("--firmware", "/firmware"),
    ("--fs", "tag=a,socket=/s"),
    (
        "--generic-vhost-user",
        "device_type=1,socket=/s,queue_sizes=[1]",
    ),
    ("--initramfs", "/initramfs"),
    ("--kernel", "/kernel"),
    ("--landlock", ""),
    ("--landlock-rules", "path=/,access=rw"),
    ("--log-file", "/log"),
    ("--log-format", "{msg}"),
    ("--memory", "size=1G"),
    ("--memory-zone", "id=a,size=1G"),
    ("--net", "tap=a"),
    ("--no-shutdown", ""),
    ("--numa", "guest_numa_id=0"),
    ("--pci-segment", "pci_segment=0"),
    ("--platform", "acpi=on"),
    ("--pmem", "file=/p"),
    ("--pvpanic", ""),
    ("--rate-limit-group", "id=a"),
    ("--restore", "source_url=file:///"),
    ("--rng", "src=/dev/urandom"),
    ("--rtc", ""),
    ("--seccomp", "true"),
    ("--serial", "null"),
    ("--tpm", "socket=/s"),
    ("--user-device", "socket=/s"),
    ("-v", ""),
    ("--vdpa", "path=/v"),
    ("-V", ""),
    ("--version", ""),
    ("--vsock", "cid=3,socket=/s"),
    ("--watchdog", ""),
    ("-h", ""),
    ("--help", ""),
];

/// The keys of those options that are there.
const KEYS: [(&str, &[&str]); 17] = [
    ("--api-socket", &["path", "fd"]),
    ("--event-monitor", &["path", "fd"]),
    (
        "--cpus",
        &[
            "boot",
            "max",
            "topology",
            "kvm_hyperv",
            "max_phys_bits",
            "affinity",
            "features",
            "nested",
            "core_scheduling",
        ],
    ),
    (
        "--memory",
        &[
            "size",
            "mergeable",
            "shared",
            "hugepages",
            "hugepage_size",
            "hotplug_method",
            "hotplug_size",
            "hotplugged_size",
            "prefault",
            "reserve",
            "thp",
        ],
    ),
    ("--serial", &["file", "socket"]),
    (
        "--console",
        &[
            "file",
            "socket",
            "iommu",
            "id",
            "pci_segment",
            "pci_device_id",
        ],
    ),
    ("--debug-console", &["file", "iobase"]),
    (
        "--platform",
        &[
            "num_pci_segments",
            "iommu_segments",
            "iommu_address_width",
            "iommufd",
            "iommufd_fd",
            "vfio_p2p_dma",
            "system_manufacturer",
            "system_product_name",
            "system_version",
            "system_serial_number",
            "system_uuid",
            "system_sku_number",
            "system_family",
            "oem_strings",
            "chassis_asset_tag",
        ],
    ),
    (
        "--memory-zone",
        &[
            "size",
            "file",
            "shared",
            "hugepages",
            "hugepage_size",
            "host_numa_node",
            "id",
            "hotplug_size",
            "hotplugged_size",
            "prefault",
            "reserve",
        ],
    ),
    (
        "--numa",
        &[
            "guest_numa_id",
            "cpus",
            "distances",
            "device_id",
            "memory_zones",
            "pci_segments",
        ],
    ),
    (
        "--device",
        &[
            "path",
            "fd",
            "iommu",
            "id",
            "pci_segment",
            "pci_device_id",
            "x_nv_gpudirect_clique",
            "x_exclude_mmap_bars",
        ],
    ),
    (
        "--user-device",
        &["socket", "id", "pci_segment", "pci_device_id"],
    ),
    (
        "--disk",
        &[
            "path",
            "readonly",
            "direct",
            "iommu",
            "num_queues",
            "queue_size",
            "vhost_user",
            "socket",
            "bw_size",
            "bw_one_time_burst",
            "bw_refill_time",
            "ops_size",
            "ops_one_time_burst",
            "ops_refill_time",
            "id",
            "pci_segment",
            "pci_device_id",
            "rate_limit_group",
            "queue_affinity",
            "serial",
            "backing_files",
            "sparse",
            "image_type",
            "lock_granularity",
        ],
    ),
    (
        "--rate-limit-group",
        &[
            "bw_size",
            "bw_one_time_burst",
            "bw_refill_time",
            "ops_size",
            "ops_one_time_burst",
            "ops_refill_time",
            "id",
        ],
    ),
    (
        "--rng",
        &["src", "iommu", "id", "pci_segment", "pci_device_id"],
    ),
    (
        "--vsock",
        &[
            "cid",
            "socket",
            "iommu",
            "id",
            "pci_segment",
            "pci_device_id",
        ],
    ),
    (
        "--pci-segment",
        &[
            "pci_segment",
            "mmio32_aperture_weight",
            "mmio64_aperture_weight",
        ],
    ),
];

fn run(args: &[&str]) -> Result<Command, CliError> {
    let args = ["cloud-hypervisor"].iter().chain(args);
    parse(args.map(OsString::from))
}

fn error(args: &[&str]) -> String {
    run(args).expect_err("an error").to_string()
}

fn printed(args: &[&str]) -> String {
    match run(args) {
        Ok(Command::Print(text)) => text,
        other => panic!("{args:?}: {other:?}"),
    }
}

/// The paragraph of the help that describes one option.
fn paragraph<'a>(help: &'a str, option: &str) -> &'a str {
    let start = help
        .find(&format!("\n      {option} <"))
        .expect("the option")
        + 1;
    let paragraph = &help[start..];
    let end = paragraph.find("\n      -").unwrap_or(paragraph.len());
    &paragraph[..end]
}

#[test]
fn help_is_what_it_was_agreed_to_be() {
    assert_eq!(printed(&["--help"]), include_str!("help.txt"));
}

#[test]
fn every_option_of_the_interface_is_in_the_help_or_not_supported_yet() {
    let help = printed(&["--help"]);
    for (option, value) in INTERFACE {
        let args = if value.is_empty() {
            vec![option]
        } else {
            vec![option, value]
        };
        let flagged = |separator: char| help.contains(&format!(" {option}{separator}"));
        if flagged(' ') || flagged('\n') || flagged(',') || flagged('.') {
            assert!(run(&args).is_ok(), "{args:?}");
        } else {
            assert_eq!(error(&args), format!("not supported yet: {option}"));
        }
    }
}

#[test]
fn every_key_of_an_option_is_in_the_help_or_not_supported_yet() {
    let help = printed(&["--help"]);
    for (option, keys) in KEYS {
        for key in keys {
            if !paragraph(&help, option).contains(&format!(" {key}=")) {
                assert_eq!(
                    error(&[option, &format!("{key}=x")]),
                    format!("not supported yet: {option} {key}")
                );
            }
        }
    }
}

#[test]
fn every_key_in_the_help_shows_a_default_or_has_none() {
    let help = printed(&["--help"]);
    for line in help.lines().filter(|line| line.contains("=on|off:")) {
        assert!(line.contains("[default: o"), "{line}");
    }
    for (option, default) in [
        ("--cpus", "[default: 1]"),
        ("--cpus", "[default: as boot]"),
        ("--cpus", "core_scheduling=vm|vcpu|off: "),
        ("--memory", "[default: 512M]"),
        ("--serial", "off|null|tty|pty [default: null]"),
        ("--console", "off|null|tty|pty [default: tty]"),
        ("--debug-console", "[default: 0xe9]"),
        ("--device", "[default: _vfio0, _vfio1 and so on]"),
        ("--device", "guest_numa_ids=[<nodes>]|auto[:<count>]: "),
        (
            "--user-device",
            "[default: _vfio_user0, _vfio_user1 and so on]",
        ),
        (
            "--pci-segment",
            "mmio64_aperture_weight=<weight>: its share for 64-bit BARs [default: 1]",
        ),
        (
            "--platform",
            "num_pci_segments=<count>: PCI segments, at most 96 [default: 1]",
        ),
    ] {
        assert!(paragraph(&help, option).contains(default), "{option}");
    }
}

#[test]
fn version_is_the_name_and_the_number() {
    let version = concat!("cloud-hypervisor v", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(printed(&["--version"]), version);
    assert_eq!(printed(&["-V"]), version);
}

#[test]
fn a_machine_is_put_together_from_its_options() {
    let args = [
        "--kernel",
        "/boot/vmlinux,1",
        "--initramfs",
        "/boot/initrd",
        "--cmdline",
        "console=ttyS0,115200 \"quoted\" [x",
        "--cpus",
        "boot=2",
        "--memory",
        "size=1G",
        "--serial",
        "tty",
        "--console",
        "off",
        "-vv",
        "--log-file",
        "/log",
        "--log-format",
        "{level}, {{{msg}}}",
        "--event-monitor",
        "path=/run/events",
        "--api-socket",
        "/run/api",
        "--no-shutdown",
    ];
    let Ok(Command::Run {
        config: Some(config),
        options,
    }) = run(&args)
    else {
        panic!("not a machine");
    };
    assert_eq!(
        config.payload.kernel,
        Some(PathBuf::from("/boot/vmlinux,1"))
    );
    assert_eq!(
        config.payload.initramfs,
        Some(PathBuf::from("/boot/initrd"))
    );
    assert_eq!(
        config.payload.cmdline.as_deref(),
        Some("console=ttyS0,115200 \"quoted\" [x")
    );
    assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (2, 2));
    assert_eq!(config.memory.size, 1 << 30);
    assert_eq!(config.serial.mode, ConsoleMode::Tty);
    assert_eq!(config.console.unwrap().mode, ConsoleMode::Off);
    let expected = RunOptions {
        log: LogOptions {
            verbosity: 2,
            file: Some(PathBuf::from("/log")),
            format: "{level}, {{{msg}}}".parse().unwrap(),
        },
        event_monitor: Some(Target::Path("/run/events".into())),
        api_socket: Some(Target::Path("/run/api".into())),
        no_shutdown: true,
    };
    assert_eq!(options, expected);
}

#[test]
fn without_a_machine_requests_are_waited_for() {
    let machine = |args: &[&str]| match run(args) {
        Ok(Command::Run { config, .. }) => config.is_some(),
        other => panic!("{other:?}"),
    };
    assert!(!machine(&["--api-socket", "/run/api"]));
    assert!(!machine(&["--api-socket", "fd=3", "-v", "--no-shutdown"]));
    assert!(machine(&["--api-socket", "/run/api", "--kernel", "k"]));
    // What is said of a machine is not forgotten, so it is missed that it boots nothing.
    assert!(machine(&[
        "--api-socket",
        "/run/api",
        "--memory",
        "size=1G"
    ]));
    // There is nobody to wait for.
    assert!(machine(&["--no-shutdown"]));
}

#[test]
fn all_wrong_options_are_reported_at_once() {
    let args = [
        "--kernel",
        "/kernel",
        "--firmware",
        "/firmware",
        "--vdpa",
        "path=a",
        "path=b",
        "--cpus",
        "boot=x,max=y,kvm_hyperv=on",
        "--memory",
        "sise=1G",
        "--console",
        "tty,iommu=on",
    ];
    assert_eq!(
        error(&args),
        "not supported yet: --firmware\n\
         not supported yet: --vdpa\n\
         not supported yet: --cpus kvm_hyperv\n\
         --memory sise=1G: unknown key \"sise\"; did you mean \"size\"?\n\
         not supported yet: --console iommu\n\
         --cpus boot=x: \"x\" is not a number\n\
         --cpus max=y: \"y\" is not a number"
    );
}

#[test]
fn a_value_that_asks_for_what_is_done_anyway_is_accepted() {
    for args in [
        &["--cpus", "kvm_hyperv=off,features=[]"][..],
        &[
            "--memory",
            "hotplug_method=acpi,hotplug_size=0,hotplugged_size=0,reserve=off",
        ],
        &["--console", "off,iommu=off"],
        &[
            "--platform",
            "iommufd=off,vfio_p2p_dma=on,num_pci_segments=1",
        ],
        &["--device", "path=/d,iommu=off"],
        &["--rng", "src=/dev/urandom,iommu=off"],
        &["--vsock", "cid=3,socket=/s,iommu=off"],
        &["--disk", "path=/d,iommu=off,vhost_user=off"],
        &["--seccomp", "false"],
    ] {
        assert!(run(args).is_ok(), "{args:?}");
    }
    assert_eq!(error(&["--seccomp"]), "not supported yet: --seccomp");
    assert_eq!(error(&["--seccomp", "log"]), "not supported yet: --seccomp");
}

#[test]
fn options_that_are_unknown_repeated_or_without_value_are_errors() {
    let unknown = error(&["--kernal", "/kernel"]);
    assert!(unknown.starts_with("unexpected argument '--kernal' found"));
    assert!(unknown.contains("'--kernel'"), "{unknown}");
    for args in [
        &["--cpus", "boot=1", "--cpus", "boot=2"][..],
        &["--kernel"],
        &["stray"],
    ] {
        assert!(matches!(run(args), Err(CliError::Usage(_))), "{args:?}");
    }
    assert_eq!(CliError::EXIT_CODE, 2);
}

#[test]
fn a_value_that_is_not_utf8_is_an_error_and_not_mangled() {
    let path = OsString::from_vec(b"/ker\xffnel".to_vec());
    let args = ["cloud-hypervisor", "--kernel"].map(OsString::from);
    let error = parse(args.into_iter().chain([path])).unwrap_err();
    assert_eq!(error.to_string(), "--kernel /ker\u{fffd}nel: is not UTF-8");
}

#[test]
fn a_required_key_that_is_missing_is_named_with_its_option() {
    for (args, message) in [
        (
            ["--numa", "cpus=[0]"],
            "--numa cpus=[0]: guest_numa_id=<node> is missing",
        ),
        (
            ["--memory-zone", "id=,size=1G"],
            "--memory-zone id=: the value is missing: id=<name>",
        ),
        (
            ["--device", "pci_segment=0"],
            "--device pci_segment=0: path=<path> is missing",
        ),
        (
            ["--user-device", "id=a"],
            "--user-device id=a: socket=<path> is missing",
        ),
        (
            ["--pci-segment", "mmio32_aperture_weight=2"],
            "--pci-segment mmio32_aperture_weight=2: pci_segment=<segment> is missing",
        ),
        (
            ["--memory-zone", "shared=on"],
            "--memory-zone shared=on: id=<name> is missing\n\
             --memory-zone shared=on: size=<size> is missing",
        ),
    ] {
        assert_eq!(run(&args).unwrap_err().to_string(), message);
    }
}

#[test]
fn events_go_to_one_place_at_most() {
    let target = |args: &[&str]| match run(args) {
        Ok(Command::Run { options, .. }) => options.event_monitor,
        other => panic!("{other:?}"),
    };
    assert_eq!(target(&["--kernel", "k"]), None);
    assert_eq!(target(&["--event-monitor", "fd=7"]), Some(Target::Fd(7)));
    assert_eq!(
        error(&["--event-monitor", "fd=0", "--cpus", "boot=x"]),
        "--event-monitor fd=0: descriptors below 3 are the standard streams\n\
         --cpus boot=x: \"x\" is not a number"
    );
    let twice = ["--event-monitor", "fd=7", "--event-monitor", "fd=8"];
    assert!(matches!(run(&twice), Err(CliError::Usage(_))));
}

#[test]
fn the_form_of_the_log_is_read_with_everything_else() {
    let format = |args: &[&str]| match run(args) {
        Ok(Command::Run { options, .. }) => options.log.format,
        other => panic!("{other:?}"),
    };
    assert_eq!(format(&["--kernel", "k"]), Format::default());
    let default = "cloud-hypervisor: {boottime}s: <{thread}> {level}:{location} -- {msg}";
    assert_eq!(format(&["--log-format", default]), Format::default());
    assert_ne!(format(&["--log-format", "{msg}"]), Format::default());
    assert_eq!(
        error(&["--log-format", "{msg} {mgs}", "--cpus", "boot=x"]),
        "--log-format {msg} {mgs}: {mgs} is unknown; there are {boottime}, {wallclock}, {pid}, \
         {tid}, {thread}, {level}, {location}, {msg}\n\
         --cpus boot=x: \"x\" is not a number"
    );
}

#[test]
fn a_plan_is_shown_instead_of_run() {
    let read = |args: &[&str]| parse(["vmm", "--kernel", "k"].iter().chain(args).map(Into::into));
    let shown = |args: &[&str]| match read(args) {
        Ok(Command::Plan { config: _, options }) => options,
        other => panic!("{other:?}"),
    };
    assert_eq!(shown(&["--plan"]), PlanOptions::default());
    assert_eq!(
        shown(&["--plan=/x", "--plan-format", "json", "--plan-facts", "f"]),
        PlanOptions {
            folder: Some("/x".into()),
            json: true,
            facts: Some("f".into()),
        }
    );
    assert!(read(&["--plan-format", "json"]).is_err());
    assert!(read(&["--plan", "--plan-format", "yaml"]).is_err());
}
