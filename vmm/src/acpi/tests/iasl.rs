//! ACPICA's opinion of the tables: `iasl` takes them apart, `acpiexec` runs their methods.
//!
//! `$IASL` and `$ACPIEXEC` name the programs if they are not in the PATH. Without them the tests
//! fail, unless `ACPI_TESTS_WITHOUT_ACPICA` is set.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::samples::Sample;
use crate::plan::{GpaRange, Isa, Registers};

/// What the disassembler writes where it does not understand the bytes. Old versions report that
/// nowhere else.
const NOT_UNDERSTOOD: [&str; 3] = ["Unknown", "Invalid", "****"];

/// Runs a program of ACPICA and gives what it printed; `None` if it is not there and need not be.
fn run(program: &str, variable: &str, arguments: &[&str], folder: &Path) -> Option<String> {
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
                "{} is not installed: install acpica-tools or set {variable}; \
                 with ACPI_TESTS_WITHOUT_ACPICA=1 the ACPI tables go unchecked",
                path.display()
            );
            eprintln!(
                "UNCHECKED: {} is not installed, so it has not seen the ACPI tables",
                path.display()
            );
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
        ["error", "warning", "not contain a valid"]
            .iter()
            .any(|word| line.to_lowercase().contains(word))
    });
    assert_eq!(complaint, None, "in:\n{text}");
}

/// Writes every table that has a header to a file of its own.
fn write(sample: &Sample, folder: &Path) -> Vec<PathBuf> {
    let tables = sample.place().tables.into_iter();
    tables
        .filter(|table| table.name != "RSDP")
        .map(|table| {
            let path = folder.join(table.name.to_lowercase()).with_extension("aml");
            std::fs::write(&path, table.bytes).unwrap();
            path
        })
        .collect()
}

/// Takes a table in a file apart; `false` if iasl is not there and need not be.
pub(crate) fn disassembles(path: &Path) -> bool {
    let folder = path.parent().unwrap();
    let Some(text) = run("iasl", "IASL", &["-d", path.to_str().unwrap()], folder) else {
        return false;
    };
    assert_clean(&text);
    let source = std::fs::read_to_string(path.with_extension("dsl")).unwrap();
    for word in NOT_UNDERSTOOD {
        let line = source.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "in {}", path.display());
    }
    true
}

/// Takes all tables apart and compiles the DSDT again.
pub(super) fn check(sample: &Sample) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if !write(sample, folder).iter().all(|path| disassembles(path)) {
        return;
    }
    let arguments = ["-p", "again", "dsdt.dsl"];
    if let Some(text) = run("iasl", "IASL", &arguments, folder) {
        assert_clean(&text);
        assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
    }
}

/// Evaluates in a namespace with the DSDT of `sample`, whose operation regions read as `fill`.
pub(super) fn evaluate(sample: &Sample, fill: u8, commands: &[&str]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    write(sample, folder.path());
    let commands = commands
        .iter()
        .map(|command| format!("execute {command}"))
        .collect::<Vec<_>>()
        .join(";");
    let fill = fill.to_string();
    let arguments = ["-r", "-fv", &fill, "-b", &commands, "dsdt.aml"];
    let text = run("acpiexec", "ACPIEXEC", &arguments, folder.path())?;
    assert!(!text.contains("AE_"), "{text}");
    Some(text)
}

#[test]
fn x86_with_one_cpu() {
    check(&Sample::new(Isa::X86_64, 1, 1, [1; 4]));
}

#[test]
fn x86_with_surplus_cpus() {
    check(&Sample::new(Isa::X86_64, 2, 8, [2, 2, 1, 2]));
}

#[test]
fn x86_with_255_cpus_and_holes_in_their_ids() {
    let sample = Sample::new(Isa::X86_64, 200, 255, [3, 17, 5, 1]);
    let last = sample.cpus.cpus.last().map(|cpu| cpu.hardware_id);
    assert!(last > Some(254), "{last:?}");
    check(&sample);
}

#[test]
fn x86_without_devices_that_can_be_left_out() {
    let mut sample = Sample::new(Isa::X86_64, 1, 1, [1; 4]);
    sample.devices.serial = None;
    sample.devices.events = None;
    sample.devices.sleep = None;
    sample.devices.debug_console = None;
    check(&sample);
}

#[test]
fn aarch64_with_one_cpu() {
    check(&Sample::new(Isa::Aarch64, 1, 1, [1; 4]));
}

#[test]
fn aarch64_with_surplus_cpus_and_performance_monitors() {
    let mut sample = Sample::new(Isa::Aarch64, 2, 8, [2, 2, 1, 2]);
    sample.cpus.pmu = true;
    check(&sample);
}

#[test]
fn aarch64_with_255_cpus_in_dies() {
    check(&Sample::new(Isa::Aarch64, 255, 255, [3, 17, 5, 1]));
}

#[test]
fn aarch64_without_devices_that_can_be_left_out() {
    let mut sample = Sample::new(Isa::Aarch64, 1, 1, [1; 4]);
    sample.devices.serial = None;
    sample.devices.events = None;
    check(&sample);
}

#[test]
fn aarch64_with_registers_above_4g() {
    let mut sample = Sample::new(Isa::Aarch64, 1, 1, [1; 4]);
    let range = GpaRange {
        start: 0x10_0000_0000,
        size: 0x1000,
    };
    sample.devices.serial.as_mut().unwrap().registers = Registers::Mmio(range);
    sample.devices.events.as_mut().unwrap().registers = Registers::Mmio(range);
    check(&sample);
    // QWord descriptor: memory that is consumed, fixed at both ends and writable.
    if let Some(text) = evaluate(&sample, 0, &["\\_SB.SER0._CRS"]) {
        assert!(
            text.contains("8A 2B 00 00 0D 01 00 00 00 00 00 00 00 00 00 00"),
            "{text}"
        );
    }
}

#[test]
fn only_a_pressed_button_is_notified() {
    for (isa, arguments) in [(Isa::X86_64, "5"), (Isa::Aarch64, "34")] {
        let sample = Sample::new(isa, 1, 1, [1; 4]);
        let method = format!("\\_SB.GED0._EVT {arguments}");
        let notified = |fill| {
            evaluate(&sample, fill, &[&method])
                .map(|text| text.contains("Notify on [PWRB]") && text.contains("Value 0x80"))
        };
        assert_ne!(notified(1), Some(false));
        assert_ne!(notified(0xfe), Some(true));
    }
}

#[test]
fn cpus_past_boot_are_absent() {
    let integers = |sample: &Sample, devices: &[&str]| {
        let commands: Vec<String> = devices
            .iter()
            .flat_map(|device| ["_UID", "_STA"].map(|name| format!("\\_SB.{device}.{name}")))
            .collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        evaluate(sample, 0, &commands).map(|text| {
            text.lines()
                .filter_map(|line| line.trim().strip_prefix("[Integer] = "))
                .map(|digits| u64::from_str_radix(digits, 16).unwrap())
                .collect::<Vec<_>>()
        })
    };
    let expect = |found: Option<Vec<u64>>, values: [u64; 4]| {
        if let Some(found) = found {
            assert_eq!(found, values);
        }
    };
    let sample = Sample::new(Isa::X86_64, 200, 255, [1, 255, 1, 1]);
    expect(integers(&sample, &["C0C7", "C0C8"]), [199, 0xf, 200, 0]);
    let sample = Sample::new(Isa::Aarch64, 3, 4, [1, 2, 1, 2]);
    expect(
        integers(&sample, &["P001.C002", "P001.C003"]),
        [2, 0xf, 3, 0],
    );
}

#[test]
fn s5_exists_where_there_are_sleep_registers() {
    let s5 = |isa| Sample::new(isa, 1, 1, [1; 4]).table("DSDT");
    let package = b"\x08\\_S5_\x12\x07\x04\x0a\x05\x00\x00\x00";
    assert!(s5(Isa::X86_64).ends_with(package));
    assert!(!s5(Isa::Aarch64).windows(4).any(|name| name == b"_S5_"));
}
