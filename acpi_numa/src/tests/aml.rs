//! `_PXM` and `_DSD`, against bytes assembled by hand from ACPI 6.5, section 20.2.

use alloc::string::ToString;

use super::*;
use crate::aml::acpi_tables::Aml;
use crate::aml::{DeviceProperties, NodeRange, NodeRangeError, NodeRangeKeys, PropertyError, Pxm};

fn bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

#[test]
fn pxm_is_a_named_number() {
    assert_eq!(bytes(&Pxm(pxm(0))), b"\x08_PXM\x00");
    assert_eq!(bytes(&Pxm(pxm(1))), b"\x08_PXM\x01");
    assert_eq!(bytes(&Pxm(pxm(9))), b"\x08_PXM\x0a\x09");
    assert_eq!(bytes(&Pxm(pxm(0x3ff))), b"\x08_PXM\x0b\xff\x03");
}

#[test]
fn dsd_is_a_package_of_uuid_and_pairs() {
    let range = NodeRange::new(&[4, 2, 3].map(pxm)).unwrap();
    let properties = DeviceProperties::new()
        .with_nodes(NodeRangeKeys::DEV_MEM, range)
        .unwrap();
    // DefName, DefPackage of two: a buffer of 16 with the UUID, and a package of two packages.
    let expected = [
        b"\x08_DSD\x12\x4a\x04\x02".as_slice(),
        b"\x11\x13\x0a\x10",
        b"\x14\xd8\xff\xda\xba\x6e\x8c\x4d\x8a\x91\xbc\x9b\xbf\x4a\xa3\x01",
        b"\x12\x32\x02",
        b"\x12\x17\x02\x0ddev-mem-pxm-start\x00\x0a\x02",
        b"\x12\x17\x02\x0ddev-mem-pxm-count\x00\x0a\x03",
    ]
    .concat();
    assert_eq!(bytes(&properties), expected);
}

#[test]
fn nodes_are_told_under_both_drivers_names() {
    let range = NodeRange::new(&[pxm(5)]).unwrap();
    let properties = DeviceProperties::new()
        .with_nodes(NodeRangeKeys::DEV_MEM, range)
        .and_then(|properties| properties.with_nodes(NodeRangeKeys::NVIDIA_GPU_MEM, range))
        .unwrap();
    let listed: Vec<_> = properties.iter().collect();
    assert_eq!(
        listed,
        [
            ("dev-mem-pxm-start", 5),
            ("dev-mem-pxm-count", 1),
            ("nvidia,gpu-mem-pxm-start", 5),
            ("nvidia,gpu-mem-pxm-count", 1)
        ]
    );
}

#[test]
fn without_properties_there_is_no_dsd() {
    assert_eq!(bytes(&DeviceProperties::new()), []);
}

#[test]
fn names_of_properties() {
    for key in ["", "ä", "a\0b"] {
        let error = DeviceProperties::new().with(key, 0).unwrap_err();
        assert!(matches!(error, PropertyError::Key { .. }), "{error}");
    }
    let properties = DeviceProperties::new().with("a", 1).unwrap();
    assert_eq!(
        properties.with("a", 2).unwrap_err().to_string(),
        "the device property a is there twice"
    );
    let full = (0..255).try_fold(DeviceProperties::new(), |properties, number| {
        properties.with(&number.to_string(), number)
    });
    let full = full.unwrap();
    assert!(bytes(&full).len() > 255 * 5);
    assert!(matches!(
        full.with("one more", 0),
        Err(PropertyError::TooMany { .. })
    ));
}

#[test]
fn ranges_of_nodes() {
    let range = |nodes: &[u32]| {
        let nodes: Vec<_> = nodes.iter().copied().map(pxm).collect();
        NodeRange::new(&nodes)
    };
    let all = range(&[9, 8, 10]).unwrap();
    assert_eq!((all.start(), all.count()), (pxm(8), 3));
    assert_eq!(range(&[]), Err(NodeRangeError::Empty));
    assert_eq!(
        range(&[3, 2, 3]),
        Err(NodeRangeError::Duplicate { pxm: pxm(3) })
    );
    assert_eq!(
        range(&[2, 6, 3]).unwrap_err().to_string(),
        "a device's nodes go from 2 to 6 without 4: a driver can only be told a range without \
         holes"
    );
    assert_eq!(range(&[u32::MAX - 1, u32::MAX]).unwrap().count(), 2);
}
