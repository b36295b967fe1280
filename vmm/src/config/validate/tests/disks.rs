//! Disks and their limits.

use super::*;
use crate::config::{DiskConfig, ImageType, LockGranularity, RateLimiterConfig, TokenBucket};

#[test]
fn ordinary_disks_are_accepted() {
    for options in [
        &["--disk", "path=/i"][..],
        &[
            "--disk",
            "path=/i,readonly=on",
            "path=/i,readonly=on,id=_disk7",
        ],
        &[
            "--disk",
            "path=/i,image_type=raw,backing_files=off,sparse=off",
            "path=/i,image_type=qcow2,backing_files=on",
        ],
        &[
            "--cpus",
            "boot=2,max=4",
            "--disk",
            "path=/i,num_queues=2,queue_size=32768,queue_affinity=[1@[0-3],0@[8191]]",
        ],
        &[
            "--disk",
            "path=/i,queue_size=4,serial=\"a serial number, 20\"",
        ],
        &[
            "--disk",
            "path=/i,lock_granularity=full,direct=on,image_type=raw",
        ],
        &["--disk", "path=/i,bw_size=0,bw_refill_time=0"],
        &[
            "--disk",
            "path=/i,bw_size=1M,bw_refill_time=100,ops_size=1,ops_refill_time=100",
        ],
        // One that two disks share, and one that none does.
        &[
            "--rate-limit-group",
            "id=g,bw_size=1,bw_refill_time=1",
            "id=unused,ops_size=1,ops_refill_time=1",
            "--disk",
            "path=/i,rate_limit_group=g",
            "path=/j,rate_limit_group=g",
        ],
    ] {
        assert_eq!(problems(Isa::X86_64, options), [""; 0], "{options:?}");
    }
}

#[test]
fn a_disk_is_what_was_asked_for() {
    let line = "path=/i,readonly=on,bw_size=64K,bw_refill_time=100,bw_one_time_burst=1M,\
                ops_size=1000,ops_refill_time=10,image_type=raw,lock_granularity=full";
    let config = configured(&["--disk", line, "path=/j"]);
    let bucket = |size, one_time_burst, refill_time| {
        Some(TokenBucket {
            size,
            one_time_burst,
            refill_time,
        })
    };
    let DiskConfig {
        rate_limiter_config,
        image_type,
        lock_granularity,
        readonly,
        ..
    } = &config.disks[0];
    let limits = RateLimiterConfig {
        bandwidth: bucket(64 << 10, Some(1 << 20), 100),
        ops: bucket(1000, None, 10),
    };
    assert_eq!(*rate_limiter_config, Some(limits));
    assert_eq!(*image_type, ImageType::Raw);
    assert_eq!(*lock_granularity, LockGranularity::Full);
    assert!(*readonly);
    let body = r#"{"payload":{"kernel":"/kernel"},"disks":[{"path":"/j"}]}"#;
    let from_json = VmConfig::from_json(body.as_bytes()).unwrap();
    assert_eq!(from_json.disks[0], config.disks[1]);
    assert_eq!(config.disks[1].rate_limiter_config, None);
    assert_eq!(config.disks[1].image_type, ImageType::Unknown);
    assert!(config.disks[1].sparse);
}

#[test]
fn impossible_disks_are_refused() {
    let at = "--disk path=/i";
    let queue_sizes = "must be a power of two from 4 to 32768";
    for (value, message) in [
        ("path=\"\"", "--disk path=: the path is empty".to_owned()),
        (
            "path=/i,num_queues=0",
            format!("{at},num_queues=0: must be 1 to the number of vCPUs at boot, --cpus boot=1"),
        ),
        (
            "path=/i,num_queues=2",
            format!("{at},num_queues=2: must be 1 to the number of vCPUs at boot, --cpus boot=1"),
        ),
        (
            "path=/i,queue_size=0",
            format!("{at},queue_size=0: {queue_sizes}"),
        ),
        (
            "path=/i,queue_size=2",
            format!("{at},queue_size=2: {queue_sizes}"),
        ),
        (
            "path=/i,queue_size=100",
            format!("{at},queue_size=100: {queue_sizes}"),
        ),
        (
            "path=/i,serial=123456789012345678901",
            format!("{at},serial=123456789012345678901: has 21 bytes; at most 20 are allowed"),
        ),
        (
            "path=/i,serial=\"\"",
            format!("{at},serial=: must not be empty; without serial= the disk is given one"),
        ),
        (
            "path=/i,serial=\u{e4}",
            format!("{at},serial=\u{e4}: must be ASCII without control characters"),
        ),
        (
            "path=/i,queue_affinity=[1@[0]]",
            format!(
                "{at},queue_affinity=[1@...]: there is no queue 1; they are 0 to num_queues=1 - 1"
            ),
        ),
        (
            "path=/i,queue_affinity=[0@[0],0@[1]]",
            format!("{at},queue_affinity=[0@...]: queue 0 is named twice"),
        ),
        (
            "path=/i,queue_affinity=[0@[]]",
            format!("{at},queue_affinity=[0@...]: queue 0 needs at least one host CPU"),
        ),
        (
            "path=/i,queue_affinity=[0@[8192]]",
            format!("{at},queue_affinity=[0@...]: no host has a CPU 8192; the last is 8191"),
        ),
        (
            "path=/i,image_type=vhd",
            format!("not supported yet: {at},image_type=vhd"),
        ),
        (
            "path=/i,image_type=vhdx",
            format!("not supported yet: {at},image_type=vhdx"),
        ),
        (
            "path=/i,id=_disk",
            format!(
                "{at},id=_disk: names that begin with _disk are generated; only _disk<number> is \
                 allowed here"
            ),
        ),
        (
            "path=/i,pci_device_id=32",
            format!(
                "{at},pci_segment=0,pci_device_id=32: must be 1 to 31; device 0 of segment 0 is the \
                 host bridge"
            ),
        ),
    ] {
        refuses("--disk", value, &message);
    }
}

#[test]
fn impossible_groups_are_refused() {
    let limits = "bw_size=1,bw_refill_time=1";
    for (value, message) in [
        (
            "id=g".to_owned(),
            "--rate-limit-group id=g: limits nothing; give bw_size and bw_refill_time, or ops_size \
             and ops_refill_time",
        ),
        (
            format!("id=\"\",{limits}"),
            "--rate-limit-group id=: must not be empty",
        ),
        (
            format!("id=a\tb,{limits}"),
            "--rate-limit-group id=a\tb: must not contain control characters",
        ),
    ] {
        refuses("--rate-limit-group", &value, message);
    }
    let group = format!("id=g,{limits}");
    assert_eq!(
        problems(
            Isa::X86_64,
            &[
                "--rate-limit-group",
                &group,
                &group,
                "--disk",
                "path=/i,rate_limit_group=g,ops_size=1,ops_refill_time=1",
            ]
        ),
        [
            "--rate-limit-group id=g: another group has this id",
            "--disk path=/i,rate_limit_group=g: the disk has limits of its own; drop one of the two",
        ]
    );
    assert_eq!(
        problems(Isa::X86_64, &["--disk", "path=/i,rate_limit_group=g"]),
        [
            "--disk path=/i,rate_limit_group=g: there is no such group; declare it with \
             --rate-limit-group",
        ]
    );
}

/// In the spelling of the command line, whatever JSON calls it.
#[test]
fn half_of_a_limit_names_the_key_that_is_missing() {
    for (value, message) in [
        (
            "path=/i,bw_size=1G",
            "--disk path=/i,bw_size=1G: bw_refill_time=<ms> is missing",
        ),
        (
            "path=/i,ops_one_time_burst=1",
            "--disk path=/i,ops_one_time_burst=1: ops_size=<count> is missing\n\
             --disk path=/i,ops_one_time_burst=1: ops_refill_time=<ms> is missing",
        ),
        (
            "path=/i,bw_size=x,bw_refill_time=1",
            "--disk bw_size=x: \"x\" is not a size; expected bytes, or K, M, G or T of them: 1G",
        ),
        (
            "path=/i,image_type=unknown",
            "--disk image_type=unknown: expected one of vhd, qcow2, raw, vhdx",
        ),
        (
            "path=/i,lock_granularity=ByteRange",
            "--disk lock_granularity=ByteRange: did you mean \"byte-range\"?",
        ),
        (
            "path=/i,rate_limiter_config=1",
            "--disk rate_limiter_config=1: unknown key \"rate_limiter_config\"; ",
        ),
    ] {
        let error = match cli::parse(["vmm", "--disk", value].map(Into::into)) {
            Ok(other) => panic!("{value}: {other:?}"),
            Err(error) => error.to_string(),
        };
        assert!(error.starts_with(message), "{value}: {error}");
    }
    let body = r#"{"payload":{},"disks":[{"path":"/i","rate_limiter_config":{"ops":{"size":1}}}]}"#;
    assert_eq!(
        VmConfig::from_json(body.as_bytes())
            .unwrap_err()
            .to_string(),
        "disks[0].rate_limiter_config.ops.refill_time: is missing"
    );
}

#[test]
fn disks_have_names_and_can_be_taken_out() {
    let options = [
        "--rng",
        "src=/r",
        "--disk",
        "path=/i",
        "path=/j,id=_disk0",
        "path=/k,id=data",
        "--device",
        "path=/d",
    ];
    let mut config = configured(&options);
    let names = ["_vfio0", "_disk1", "_disk0", "data", "__rng", "__console"];
    assert_eq!(config.device_ids(), names);
    assert_eq!(config.validate(Isa::X86_64), Ok(()));
    assert!(config.remove_device("_disk0"));
    let names = ["_vfio0", "_disk1", "data", "__rng", "__console"];
    assert_eq!(config.device_ids(), names);
    assert!(!config.remove_device("_disk0"));
}
