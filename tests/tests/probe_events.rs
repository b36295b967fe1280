//! What the VMM tells of itself while it runs probe guests: events and logs.
#![cfg(target_arch = "x86_64")]

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tests::probe::{Probe, Report};

/// Reads events, which must be objects with an empty line behind each, whose times never decrease.
/// Returns source and name of each.
fn events(text: &str) -> Vec<String> {
    let mut latest = Duration::ZERO;
    let mut names = Vec::new();
    for event in text.split_inclusive("\n}\n\n") {
        assert!(event.ends_with("\n}\n\n"), "{text}");
        let event: Value = serde_json::from_str(event).unwrap();
        let time = &event["timestamp"];
        let nanos = time["nanos"].as_u64().unwrap().try_into().unwrap();
        let time = Duration::new(time["secs"].as_u64().unwrap(), nanos);
        assert!(time >= latest, "{text}");
        latest = time;
        let properties = &event["properties"];
        let is_known = match properties.as_object() {
            None => properties.is_null(),
            Some(members) => members.values().all(Value::is_string),
        };
        assert!(is_known, "{text}");
        names.push(format!(
            "{}:{}",
            event["source"].as_str().unwrap(),
            event["event"].as_str().unwrap()
        ));
    }
    names
}

/// Checks what a machine that ran to its end reports.
fn assert_complete(text: &str) {
    let names = events(text);
    assert_eq!(names.first().unwrap(), "vmm:starting", "{text}");
    assert_eq!(names.last().unwrap(), "vmm:shutdown", "{text}");
    let times = |name: &str| names.iter().filter(|known| *known == name).count();
    assert_eq!(times("vmm:starting"), 1);
    assert_eq!(times("vmm:shutdown"), 1);
    assert_eq!(times("vmm:events-lost"), 0);
}

fn option(path: &Path) -> String {
    format!("path={}", path.display())
}

fn fifo(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("fifo");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    path
}

#[test]
fn a_file_has_what_happened_from_start_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    fs::write(&path, "what was there before").unwrap();
    let before = Instant::now();
    Probe::run(&["--event-monitor", &option(&path)], "poweroff").assert_success();
    let took = before.elapsed();
    let text = fs::read_to_string(&path).unwrap();
    assert_complete(&text);
    let last: Value = serde_json::from_str(text.rsplit("\n\n").nth(1).unwrap()).unwrap();
    let secs = last["timestamp"]["secs"].as_u64().unwrap();
    assert!(secs <= took.as_secs(), "{text}");
}

#[test]
fn a_machine_that_fails_is_reported_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let missing = folder.path().join("kernel");
    let monitor = option(&path);
    let mut command = Command::new(Probe::command(&[], "").get_program());
    command.arg("--kernel").arg(&missing);
    command.args(["--console", "off", "--event-monitor", &monitor]);
    let report = Probe::spawn(&mut command).wait();
    assert_eq!(report.status.code(), Some(1), "{}", report.errors);
    assert_complete(&fs::read_to_string(&path).unwrap());
}

/// Runs a guest whose VMM inherits its standard output as descriptor 7 too, and has its standard
/// output in its errors.
fn run_with_7(options: &[&str], words: &str) -> Report {
    let inner = Probe::command(options, words);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 7>&1 1>&2"]);
    command.arg(inner.get_program()).args(inner.get_args());
    Probe::spawn(&mut command).wait()
}

#[test]
fn an_inherited_pipe_has_the_events_and_nothing_else() {
    let report = run_with_7(&["--event-monitor", "fd=7"], "poweroff");
    report.assert_success();
    assert_complete(&report.output);
}

#[test]
fn what_is_not_inherited_is_refused_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let log = log.to_str().unwrap();
    let report = run_with_7(&["--event-monitor", "fd=8", "--log-file", log], "poweroff");
    assert_eq!(report.status.code(), Some(1));
    let expected = "cloud-hypervisor: --event-monitor fd=8: descriptor 8 is not open";
    assert!(report.errors.starts_with(expected), "{}", report.errors);
    assert!(!Path::new(log).exists());

    let report = Probe::run(&["--event-monitor", "fd=1"], "poweroff");
    assert_eq!(report.status.code(), Some(2), "{}", report.errors);
}

#[test]
fn a_fifo_that_nobody_reads_delays_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let run = || {
        let before = Instant::now();
        Probe::run(&["--event-monitor", &option(&path)], "poweroff").assert_success();
        before.elapsed()
    };
    // The first one may have to build the VMM, and a machine may be busy. What is not read would be
    // waited for for a second at the end, if it had no room in the pipe.
    let took: Vec<_> = (0..5).map(|_| run()).collect();
    let fastest = took.iter().min().unwrap();
    assert!(*fastest < Duration::from_millis(900), "{took:?}");
}

#[test]
fn a_reader_of_a_fifo_finds_all_events() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let mut reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    Probe::run(&["--event-monitor", &option(&path)], "poweroff").assert_success();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_complete(&text);
}

#[test]
fn a_reader_that_goes_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let writer = format!("exec \"$0\" \"$@\" 7>\"{}\"", path.display());
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let inner = Probe::command(&["--event-monitor", "fd=7"], "listen");
    let mut command = Command::new("sh");
    command.args(["-c", &writer]);
    command.arg(inner.get_program()).args(inner.get_args());
    let mut probe = Probe::spawn(&mut command);
    let start = Instant::now();
    let mut byte = [0];
    while let Err(error) = (&reader).read_exact(&mut byte) {
        let is_early = matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::UnexpectedEof
        );
        assert!(
            is_early && start.elapsed() < Duration::from_secs(60),
            "{error}"
        );
    }
    drop(reader);
    probe.wait_for("listen: ready", 1);
    probe.send("poweroff\n");
    let report = probe.wait();
    report.assert_success();
    let warning = "--event-monitor: an event cannot be written: Broken pipe";
    assert!(report.errors.contains(warning), "{}", report.errors);
}

#[test]
fn log_lines_look_as_the_operator_wants_them() {
    let options = ["-v", "--log-format", "<{level}> {{{thread}}} {msg}"];
    let mut guest = Probe::start(&options, "listen");
    for (boot, way) in ["reset\n", "poweroff\n"].iter().enumerate() {
        guest.wait_for("listen: ready", boot + 1);
        guest.send(way);
    }
    let report = guest.wait();
    report.assert_success();
    let line = "<INFO> {main} the guest resets";
    assert!(
        report.errors.lines().any(|known| known == line),
        "{}",
        report.errors
    );

    let report = Probe::run(&["--log-format", "{message}"], "poweroff");
    assert_eq!(report.status.code(), Some(2));
    let expected = "cloud-hypervisor: --log-format {message}: {message} is unknown; there are ";
    assert!(report.errors.starts_with(expected), "{}", report.errors);
}
