//! ACPICA's opinion of tables and AML: `iasl` takes them apart, `acpiexec` evaluates what devices
//! say.
//!
//! `$IASL` and `$ACPIEXEC` name the programs if they are not in the PATH. Without them the tests
//! fail, unless `ACPI_TESTS_WITHOUT_ACPICA` is set.

use std::io::ErrorKind;
use std::path::Path as FilePath;
use std::process::Command;
use std::string::String;
use std::{eprintln, format, fs};

use super::*;
use crate::aml::acpi_tables::aml::{Device, Name, Path as AmlPath, Scope};
use crate::aml::acpi_tables::{Aml, sdt::Sdt};
use crate::aml::{DeviceProperties, NodeRange, NodeRangeKeys, Pxm};

/// What the disassembler writes where it does not understand the bytes. Old versions report that
/// nowhere else.
const NOT_UNDERSTOOD: [&str; 3] = ["Unknown", "Invalid", "****"];

/// What a program of ACPICA prints; `None` if it is not there and need not be.
fn run(program: &str, variable: &str, arguments: &[&str], folder: &FilePath) -> Option<String> {
    let path = std::env::var_os(variable).unwrap_or_else(|| program.into());
    let output = Command::new(&path)
        .args(arguments)
        .current_dir(folder)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(
                std::env::var_os("ACPI_TESTS_WITHOUT_ACPICA").is_some(),
                "{} is not installed: install acpica-tools or set {variable}; with \
                 ACPI_TESTS_WITHOUT_ACPICA=1 the tables go unchecked",
                path.display()
            );
            eprintln!("UNCHECKED: {} is not installed", path.display());
            return None;
        }
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}:\n{text}");
    Some(text)
}

/// Fails on every line with an error or a warning, except those that count none.
#[track_caller]
fn assert_clean(text: &str) {
    let complaint = text.lines().find(|line| {
        let line = line.replace("0 Errors", "").replace("0 Warnings", "");
        ["error", "warning", "not contain a valid", "incorrect"]
            .iter()
            .any(|word| line.to_lowercase().contains(word))
    });
    assert_eq!(complaint, None, "in:\n{text}");
}

/// Takes a table apart and gives the source; `None` without ACPICA.
fn disassemble(name: &str, bytes: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("{name}.aml");
    fs::write(folder.path().join(&file), bytes).unwrap();
    let text = run("iasl", "IASL", &["-d", &file], folder.path())?;
    assert_clean(&text);
    let source = fs::read_to_string(folder.path().join(format!("{name}.dsl"))).unwrap();
    for word in NOT_UNDERSTOOD {
        let line = source.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "in:\n{source}");
    }
    Some(source)
}

/// Takes all tables of a topology apart and, put together again, compares them.
fn check(topology: &Topology) {
    for table in tables(topology) {
        let name = format!("{}", table.signature()).to_lowercase();
        let Some(source) = disassemble(&name, table.bytes()) else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let file = format!("{name}.dsl");
        fs::write(folder.path().join(&file), source).unwrap();
        let text = run("iasl", "IASL", &["-vs", &file], folder.path()).unwrap();
        assert_clean(&text);
        let again = fs::read(folder.path().join(format!("{name}.aml"))).unwrap();
        // The compiler signs what it makes: creator and revision differ, and so the checksum.
        let unsigned = |bytes: &[u8]| [&bytes[..9], &bytes[10..28], &bytes[36..]].concat();
        assert_eq!(unsigned(&again), unsigned(table.bytes()), "{name}");
    }
}

#[test]
fn everything_is_understood() {
    check(&Topology::new(everything()).unwrap());
}

#[test]
fn one_node_is_understood() {
    check(&topology(vec![host(0)]));
}

#[test]
fn many_nodes_with_holes_are_understood() {
    let mut nodes: Vec<_> = (0..64).map(|number| Node::new(pxm(number * 2))).collect();
    nodes[0] = host(0);
    check(&topology(nodes));
}

#[test]
fn values_are_where_acpica_looks_for_them() {
    let topology = Topology::new(everything()).unwrap();
    let table = srat::encode(&topology, &IDS);
    let Some(source) = disassemble("srat", table.bytes()) else {
        return;
    };
    let values = |field: &str| -> Vec<u64> {
        let lines = source.lines().filter_map(|line| line.split_once(" : "));
        lines
            .filter(|(name, _)| name.ends_with(field))
            .map(|(_, value)| u64::from_str_radix(value.trim(), 16).unwrap())
            .collect()
    };
    // Of a local APIC, ACPICA shows the low byte under another name.
    let (processors, ports) = ([0, 1], [12]);
    let memory = [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12];
    let domains: Vec<u64> = processors
        .into_iter()
        .chain(2..10)
        .chain(ports)
        .chain(memory)
        .collect();
    assert_eq!(values(" Proximity Domain"), domains);
    assert_eq!(values("Proximity Domain Low(8)"), [0]);
    let with_zeroes = |values: &[u64]| {
        let mut values = values.to_vec();
        values.resize(memory.len(), 0);
        values
    };
    assert_eq!(
        values("Base Address"),
        with_zeroes(&[0, 1 << 32, 0x100_0000_0000])
    );
    assert_eq!(
        values("Address Length"),
        with_zeroes(&[1 << 30, 1 << 30, 0x40_0000_0000])
    );
    assert_eq!(
        values("Hot Pluggable"),
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    );
    assert_eq!(values("Non-Volatile"), with_zeroes(&[0, 1]));
    assert!(values(" Enabled").iter().all(|enabled| *enabled == 1));
}

/// A DSDT with a device that has all that this crate can say of one.
fn dsdt() -> Vec<u8> {
    let range = NodeRange::new(&[pxm(3), pxm(2)]).unwrap();
    let properties = DeviceProperties::new()
        .with_nodes(NodeRangeKeys::DEV_MEM, range)
        .and_then(|properties| properties.with_nodes(NodeRangeKeys::NVIDIA_GPU_MEM, range))
        .and_then(|properties| properties.with("large", u64::MAX))
        .unwrap();
    let address = Name::new(AmlPath::new("_ADR"), &(5u32 << 16));
    let node = Pxm(pxm(0x123));
    let slot = Device::new(AmlPath::new("S005"), vec![&address, &node, &properties]);
    let mut sdt = Sdt::new(
        *b"DSDT",
        36,
        2,
        IDS.oem_id,
        IDS.oem_table_id,
        IDS.oem_revision,
    );
    let mut aml = Vec::new();
    Scope::new(AmlPath::new("_SB_"), vec![&slot]).to_aml_bytes(&mut aml);
    sdt.append_slice(&aml);
    sdt.as_slice().to_vec()
}

#[test]
fn what_devices_say_is_understood() {
    disassemble("dsdt", &dsdt());
}

#[test]
fn what_devices_say_is_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("dsdt.aml"), dsdt()).unwrap();
    let commands = "execute \\_SB.S005._PXM;execute \\_SB.S005._DSD";
    let arguments = ["-r", "-b", commands, "dsdt.aml"];
    let Some(text) = run("acpiexec", "ACPIEXEC", &arguments, folder.path()) else {
        return;
    };
    assert!(!text.contains("AE_"), "{text}");
    let mut found = text.lines().filter_map(|line| {
        let line = line.trim_start().trim_start_matches(['(', ')']);
        let at = line
            .find("[Integer] = ")
            .or_else(|| line.find("[String] "))?;
        Some(&line[at..])
    });
    let mut expect = |text: &str| {
        let line = found.next();
        assert!(
            line.is_some_and(|line| line.contains(text)),
            "{text} in {line:?}"
        );
    };
    expect("[Integer] = 0000000000000123");
    for (start, count) in [
        ("dev-mem-pxm-start", "dev-mem-pxm-count"),
        ("nvidia,gpu-mem-pxm-start", "nvidia,gpu-mem-pxm-count"),
    ] {
        expect(start);
        expect("[Integer] = 0000000000000002");
        expect(count);
        expect("[Integer] = 0000000000000002");
    }
    expect("large");
    expect("[Integer] = FFFFFFFFFFFFFFFF");
}
