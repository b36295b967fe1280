//! Taps, as far as every machine lets them be tried; and addresses. With rights they are made and used, and
//! the lab does that in any case.

use std::fs::File;

use super::*;
use crate::virtio::net::{InterfaceAddress, Tap, TapError, TapOptions};

fn options(name: Option<&str>) -> TapOptions<'_> {
    TapOptions {
        name,
        pairs: 1,
        address: None,
        address_if_new: InterfaceAddress {
            ip: [192, 168, 249, 1].into(),
            prefix: 24,
        },
        hardware_address: None,
        mtu: None,
    }
}

#[test]
fn what_is_no_tap_is_refused() {
    let error = Tap::from_descriptors(Vec::new(), None).unwrap_err();
    assert!(matches!(error, TapError::None));
    let file = || OwnedFd::from(File::open("/dev/null").unwrap());
    let error = Tap::from_descriptors(vec![file()], None).unwrap_err();
    assert_eq!(error.to_string(), "descriptor 1 of 1 is no tap");
    let error = Tap::open(&options(Some("sixteen-bytes-16"))).unwrap_err();
    assert!(matches!(error, TapError::Name(_)), "{error}");
    // The loopback interface is none, whoever asks; without rights or taps it says so.
    let error = Tap::open(&options(Some("lo"))).unwrap_err();
    assert!(
        matches!(
            error,
            TapError::Other(_) | TapError::NotAllowed(_) | TapError::Device(_)
        ),
        "{error:?}"
    );
}

#[test]
fn hardware_addresses_are_read_and_written() {
    let address: HardwareAddress = "52:54:00:AB:cd:0f".parse().unwrap();
    assert_eq!(address.0, [0x52, 0x54, 0, 0xab, 0xcd, 0xf]);
    assert_eq!(address.to_string(), "52:54:00:ab:cd:0f");
    for bad in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:0f:",
        "52:54:00:ab:cd:0f:00",
        "52:54:00:ab:cd:+f",
        "52:54:00:ab:cd:f",
        "52-54-00-ab-cd-0f",
        "52:54:00:ab:cd:0g",
    ] {
        assert!(bad.parse::<HardwareAddress>().is_err(), "{bad}");
    }
    for _ in 0..100 {
        let random = HardwareAddress::random().unwrap();
        assert_eq!(random.0[0] & 3, 2, "{random}");
        assert!(!random.is_multicast());
    }
}
