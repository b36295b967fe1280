//! Network interfaces.

use super::*;
use crate::config::NetConfig;

#[test]
fn ordinary_interfaces_are_accepted() {
    for options in [
        &["--net", "tap=t"][..],
        &["--net", "tap=,mac=,ip=,mask=,host_mac="],
        &["--net", "tap=t0", "tap=t1", "mac=52:54:00:00:00:01"],
        &[
            "--cpus",
            "boot=2",
            "--net",
            "tap=fifteen-bytes-1,num_queues=4,queue_size=32768,mtu=9000,host_mac=02:00:00:00:00:01",
        ],
        &["--net", "ip=10.0.0.1,mask=255.0.0.0,mac=52:54:00:AA:bb:01"],
        &[
            "--net",
            "ip=fd00::1",
            "mask=255.255.255.255",
            "mask=0.0.0.0",
        ],
        &["--net", "ip=fd00::1,mask=ffff:ff00::"],
        &["--net", "fd=[3],mac=52:54:00:00:00:01,mtu=1500"],
        &[
            "--cpus",
            "boot=2",
            "--net",
            "fd=[3,4],num_queues=4",
            "fd=[5]",
        ],
        &["--net", "offload_tso=off,offload_ufo=off,offload_csum=off"],
        &[
            "--net",
            "bw_size=1M,bw_refill_time=100,ops_size=10,ops_refill_time=1",
        ],
        &["--net", "iommu=off,vhost_user=off,vhost_mode=client"],
    ] {
        assert_eq!(problems(Isa::X86_64, options), [""; 0], "{options:?}");
    }
}

#[test]
fn an_interface_is_what_was_asked_for() {
    let config = configured(&["--net", "tap=t,fd=[],num_queues=2,ip=,mac=", "ip=fd00::1"]);
    let body = r#"{"payload":{"kernel":"/kernel"},"net":[{"tap":"t"},{"ip":"fd00::1"}]}"#;
    let from_json = VmConfig::from_json(body.as_bytes()).unwrap();
    assert_eq!(from_json.net, config.net);
    let [first, second] = &config.net[..] else {
        panic!("{:?}", config.net);
    };
    let address = |net: &NetConfig| {
        let (address, was_asked_for) = net.address().unwrap();
        (address.ip.to_string(), address.prefix, was_asked_for)
    };
    assert_eq!(address(first), ("192.168.249.1".to_owned(), 24, false));
    assert_eq!(address(second), ("fd00::1".to_owned(), 64, true));
    assert_eq!((first.pairs(), first.queue_size), (1, 256));
    assert!(first.offload_csum && first.offload_tso && first.offload_ufo);
    let mask = configured(&["--net", "mask=255.255.254.0"]);
    assert_eq!(
        address(&mask.net[0]),
        ("192.168.249.1".to_owned(), 23, true)
    );
}

/// An address is chosen once, and only where there is none.
#[test]
fn addresses_are_chosen_with_names() {
    let mut config = configured(&["--net", "tap=a", "tap=b,mac=52:54:00:00:00:01,id=b"]);
    config.name_devices();
    let chosen = config.net[0].mac.clone().unwrap();
    assert!(chosen.starts_with(|digit: char| digit.is_ascii_hexdigit()));
    assert_eq!(config.net[1].mac.as_deref(), Some("52:54:00:00:00:01"));
    assert_eq!(config.device_ids(), ["_net0", "b", "__rng", "__console"]);
    let named = config.clone();
    config.name_devices();
    assert_eq!(config, named);
    assert_eq!(config.validate(Isa::X86_64), Ok(()));
    let mut other = configured(&["--net", "tap=a"]);
    other.name_devices();
    assert_ne!(other.net[0].mac.as_ref(), Some(&chosen));
    assert!(config.remove_device("_net0"));
    assert_eq!(config.net.len(), 1);
    // Its name is free again.
    assert!(!config.remove_device("_net0"));
}

#[test]
fn impossible_interfaces_are_refused() {
    let at = "--net tap=t";
    let no_mac = "is no MAC address: six bytes in hexadecimal with colons between them, as \
                  52:54:00:12:34:56";
    let queues = "must be even, and from 2 to two for each vCPU at boot, --cpus boot=1";
    let sizes = "must be a power of two from 32 to 32768";
    let name = "must be ASCII without spaces, control characters, '/', ':' and '%'";
    for (value, message) in [
        (
            "tap=sixteen-bytes-16",
            "--net tap=sixteen-bytes-16: has 16 bytes; at most 15 are allowed".to_owned(),
        ),
        ("tap=a/b", format!("--net tap=a/b: {name}")),
        ("tap=tap%d", format!("--net tap=tap%d: {name}")),
        (
            "tap=..",
            "--net tap=..: cannot be the name of an interface".to_owned(),
        ),
        ("ip=1.2.3", "--net ip=1.2.3: is no IP address".to_owned()),
        (
            "tap=t,mask=255.0.255.0",
            format!(
                "{at},mask=255.0.255.0: is no network mask for 192.168.249.1: ones, and zeroes behind \
                 them"
            ),
        ),
        (
            "tap=t,ip=fd00::1,mask=255.255.255.0",
            format!(
                "{at},mask=255.255.255.0: is no network mask for fd00::1: ones, and zeroes behind them"
            ),
        ),
        ("mac=52:54:0:1:2:3", format!("--net mac=52:54:0:1:2:3: {no_mac}")),
        ("tap=t,host_mac=x", format!("{at},host_mac=x: {no_mac}")),
        (
            "tap=t,mac=01:00:5e:00:00:01",
            format!("{at},mac=01:00:5e:00:00:01: is of many interfaces: the first byte must be even"),
        ),
        (
            "tap=t,mac=00:00:00:00:00:00",
            format!("{at},mac=00:00:00:00:00:00: is of no interface: it must not be zero"),
        ),
        (
            "tap=t,mtu=1279",
            format!("{at},mtu=1279: must be 1280 to 65521 bytes"),
        ),
        (
            "tap=t,mtu=65522",
            format!("{at},mtu=65522: must be 1280 to 65521 bytes"),
        ),
        ("tap=t,num_queues=0", format!("{at},num_queues=0: {queues}")),
        ("tap=t,num_queues=1", format!("{at},num_queues=1: {queues}")),
        ("tap=t,num_queues=3", format!("{at},num_queues=3: {queues}")),
        ("tap=t,num_queues=4", format!("{at},num_queues=4: {queues}")),
        ("tap=t,queue_size=16", format!("{at},queue_size=16: {sizes}")),
        ("tap=t,queue_size=100", format!("{at},queue_size=100: {sizes}")),
        (
            "fd=[2]",
            "--net fd=[2]: descriptor 2 cannot be a tap: it has to be 3 to 2147483647".to_owned(),
        ),
        (
            "fd=[2147483648]",
            "--net fd=[2147483648]: descriptor 2147483648 cannot be a tap: it has to be 3 to 2147483647"
                .to_owned(),
        ),
        (
            "fd=[3,3]",
            "--net fd=[3,3]: descriptor 3 is given twice".to_owned(),
        ),
        (
            "fd=[3,4]",
            "--net fd=[3,4]: 2 descriptors do not fit num_queues=2: one is needed for each two queues"
                .to_owned(),
        ),
        (
            "tap=t,fd=[3]",
            "--net fd=[3]: whoever opened the tap has set it up; drop tap".to_owned(),
        ),
        (
            "host_mac=02:00:00:00:00:01,fd=[3]",
            "--net fd=[3]: whoever opened the tap has set it up; drop host_mac".to_owned(),
        ),
    ] {
        refuses("--net", value, &message);
    }
    let twice = problems(Isa::X86_64, &["--net", "tap=t", "tap=t"]);
    let reason = "another --net has this tap; use num_queues for several queues of one";
    assert_eq!(twice, [format!("{at}: {reason}")]);
    let twice = problems(Isa::X86_64, &["--net", "fd=[3]", "fd=[3]"]);
    assert_eq!(twice, ["--net fd=[3]: descriptor 3 is given twice"]);
}

/// Each may repeat much; there is an end to it.
#[test]
fn a_flood_of_problems_is_cut_off() {
    let mut config = configured(&["--net", "tap=a/b,num_queues=0"]);
    config.net = vec![config.net[0].clone(); 10_000];
    let errors = config.validate(Isa::X86_64).unwrap_err();
    assert!(errors.problems().len() < 1000);
}
