use proptest::prelude::*;
use serde::de::DeserializeOwned;

use super::*;
use crate::config::{ConsoleMode, CpuAffinity, CpuTopology, SECTIONS, tree};

fn text(text: &str, size: bool) -> Text {
    Text {
        origin: "--option key".to_string(),
        text: text.to_string(),
        size,
    }
}

fn read<T: DeserializeOwned>(value: &str) -> Result<T, String> {
    T::deserialize(text(value, false).word()).map_err(|error| error.to_string())
}

fn read_size(value: &str) -> Result<u64, String> {
    Deserialize::deserialize(text(value, true).word()).map_err(|error: Error| error.to_string())
}

#[test]
fn commas_in_brackets_and_quotes_belong_to_the_value() {
    assert_eq!(
        split("a=1,b=[0@[1,2],3],c=\"x,]y\",d", ',').unwrap(),
        ["a=1", "b=[0@[1,2],3]", "c=\"x,]y\"", "d"]
    );
    assert_eq!(split("", ',').unwrap(), [""]);
    assert_eq!(split("a,,b,", ',').unwrap(), ["a", "", "b", ""]);
    assert_eq!(split("ä,ö", ',').unwrap(), ["ä", "ö"]);
}

#[test]
fn unbalanced_brackets_and_quotes_are_errors() {
    assert_eq!(split("a=[1,2", ','), Err(SyntaxError::UnclosedBracket));
    assert_eq!(split("a=1]", ','), Err(SyntaxError::StrayBracket));
    assert_eq!(split("a=\"1", ','), Err(SyntaxError::UnclosedQuote));
    assert_eq!(split("a=\"[\"", ',').unwrap(), ["a=\"[\""]);
}

#[test]
fn quotes_are_taken_off_and_two_in_a_row_stand_for_one() {
    for (quoted, plain) in [
        ("plain", "plain"),
        ("\"a,b\"", "a,b"),
        ("/tmp/\"a,b\"/c", "/tmp/a,b/c"),
        ("\"say \"\"hi\"\"\"", "say \"hi\""),
        ("\"\"", ""),
        ("\"\"\"\"", "\""),
    ] {
        assert_eq!(read::<String>(quoted).unwrap(), plain, "{quoted}");
    }
}

#[test]
fn sizes_take_binary_suffixes() {
    for (size, bytes) in [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("1K", 1024),
        ("512M", 536_870_912),
        ("3G", 3_221_225_472),
        ("1T", 1_099_511_627_776),
    ] {
        assert_eq!(read_size(size).unwrap(), bytes, "{size}");
    }
}

#[test]
fn what_is_no_size_is_refused() {
    for size in [
        "",
        "K",
        "1g",
        "1KB",
        "1GiB",
        "+1",
        "-1",
        "1.5G",
        " 1",
        "1 G",
        "0x1K",
        "16777216T",
        "G1",
        "18446744073709551616",
    ] {
        let error = read_size(size).unwrap_err();
        assert!(error.contains("is not a size"), "{size}: {error}");
    }
}

#[test]
fn numbers_that_are_no_sizes_take_no_suffix() {
    assert_eq!(read::<u32>("0xe9").unwrap(), 233);
    assert_eq!(read::<u32>("1K").unwrap_err(), "\"1K\" is not a number");
    assert_eq!(read::<u32>("+1").unwrap_err(), "\"+1\" is not a number");
    assert_eq!(read::<u32>("0x+1").unwrap_err(), "\"0x+1\" is not a number");
    assert_eq!(read::<u32>("0-3").unwrap_err(), "\"0-3\" is not a number");
    assert_eq!(read::<u8>("255").unwrap(), 255);
    assert_eq!(read::<u8>("256").unwrap_err(), "out of range: at most 255");
}

#[test]
fn switches_are_on_or_off() {
    assert!(read::<bool>("on").unwrap());
    assert!(!read::<bool>("off").unwrap());
    for text in ["true", "false", "1", "", "ON"] {
        assert_eq!(read::<bool>(text).unwrap_err(), "expected on or off");
    }
}

#[test]
fn ranges_stand_for_each_of_their_numbers() {
    assert_eq!(read::<Vec<u32>>("[0-3,7]").unwrap(), [0, 1, 2, 3, 7]);
    assert_eq!(read::<Vec<u32>>("[2-2]").unwrap(), [2]);
    assert_eq!(read::<Vec<u32>>("5-6").unwrap(), [5, 6]);
    assert_eq!(read::<Vec<u32>>("[]").unwrap(), [0; 0]);
    assert_eq!(read::<Vec<u32>>("[0-65535]").unwrap().len(), 65536);
}

#[test]
fn ranges_that_descend_or_are_absurd_are_refused() {
    for list in ["[3-1]", "[0-65536]", "[0-18446744073709551615]"] {
        let error = read::<Vec<u64>>(list).unwrap_err();
        assert!(error.contains("must ascend"), "{list}: {error}");
    }
    assert!(read::<Vec<u8>>("[250-260]").is_err());
    assert!(read::<Vec<u32>>("[1-]").is_err());
    assert!(read::<Vec<u32>>("[1,,2]").is_err());
    assert!(read::<Vec<u32>>("[1,2").is_err());
}

#[test]
fn a_list_of_texts_has_no_ranges() {
    assert_eq!(
        read::<Vec<String>>("[1-3,\"a,b\",x=y]").unwrap(),
        ["1-3", "a,b", "x=y"]
    );
}

#[test]
fn joined_fields_are_read_in_their_order() {
    let topology = CpuTopology {
        threads_per_core: 2,
        cores_per_die: 4,
        dies_per_package: 1,
        packages: 3,
    };
    assert_eq!(read::<CpuTopology>("2:4:1:3").unwrap(), topology);
    let affinity = CpuAffinity {
        vcpu: 1,
        host_cpus: vec![2, 4, 5],
    };
    assert_eq!(read::<CpuAffinity>("1@[2,4-5]").unwrap(), affinity);
    for topology in [
        "2:4:1",
        "2:4:1:3:1",
        "2",
        "[2:4:1:3]",
        "2:4:1:x",
        "1-2:1:1:1",
    ] {
        assert!(read::<CpuTopology>(topology).is_err(), "{topology}");
    }
}

#[test]
fn enums_are_words_in_lower_case() {
    assert_eq!(read::<ConsoleMode>("tty").unwrap(), ConsoleMode::Tty);
    assert_eq!(
        read::<ConsoleMode>("Tty").unwrap_err(),
        "did you mean \"tty\"?"
    );
}

/// Letters that mean something, keys and words among them, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z0-9=,\\[\\]@:\"-]{0,4}",
        prop::sample::select(vec![
            "boot=",
            "max=",
            "topology=",
            "affinity=",
            "size=",
            "file=",
            "iobase=",
            "acpi=",
            "oem_strings=",
            "uuid=",
            "kvm_hyperv=",
            "path=",
            "guest_numa_ids=",
            "generic_initiator=",
            "pci_segment=",
            "auto",
            "tty",
            "off",
            "on",
            ",",
            "0-3",
            "0x",
            "1G",
            "[",
            "]",
            "@",
            ":",
            "\"",
            "18446744073709551615",
        ])
        .prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_option_string_panics(text in prop_oneof![any::<String>(), pieces()]) {
        for section in &SECTIONS {
            let mut problems = Vec::new();
            let node = option("--x", &text, section.spelling, &mut problems);
            let mut members = vec![("payload".to_string(), Node::Map(Vec::new()))];
            crate::config::cli::put(&mut members, section.place, vec![node]);
            let members = Node::Map(members);
            let config: Option<crate::config::VmConfig> = tree::read(members, &mut problems);
            // Every failure is accounted for.
            prop_assert!(config.is_some() || !problems.is_empty());
        }
    }

    #[test]
    fn quoting_brings_any_text_through(text in any::<String>()) {
        let quoted = format!("\"{}\"", text.replace('"', "\"\""));
        prop_assert_eq!(split(&quoted, ',').unwrap(), [quoted.as_str()]);
        prop_assert_eq!(read::<String>(&quoted).unwrap(), text);
    }
}
