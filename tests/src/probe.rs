//! Probe guests: our own payload, on this machine's KVM, under the VMM.
//!
//! The payload is in `tests/probe`; `tests/probe/main.c` lists the words that it understands. It
//! needs no more of KVM than an instruction emulator offers.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::host::threads;
use crate::output::Output;
use crate::signals::restore_defaults;

pub use crate::binaries::cloud_hypervisor;

/// The longest that a probe guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The payload, built at the first call.
///
/// # Panics
/// If there is no C compiler for x86_64.
pub fn build() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let tests = env::current_exe().expect("a program has a path");
        let output = tests.with_file_name("probe.elf");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("probe/build");
        let status = Command::new(script).arg(&output).status();
        assert!(
            status.expect("tests/probe/build starts").success(),
            "the probe guest cannot be built"
        );
        output
    })
}

/// A probe guest under way.
pub struct Probe {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Output,
    errors: Output,
    _logs: TempDir,
}

impl Probe {
    /// The command for a guest that does `words`, under a VMM with further `options`. The serial
    /// port is connected to standard input and output unless `options` have a `--serial`. No signal
    /// is ignored that would end it.
    pub fn command(options: &[&str], words: &str) -> Command {
        let mut command = Command::new(cloud_hypervisor());
        command.arg("--kernel").arg(build());
        command.args(["--cmdline", words, "--console", "off"]);
        if !options.contains(&"--serial") {
            command.args(["--serial", "tty"]);
        }
        command.args(options);
        restore_defaults(&mut command);
        command
    }

    /// Starts such a guest.
    ///
    /// # Panics
    /// If the VMM cannot be started.
    pub fn start(options: &[&str], words: &str) -> Self {
        Self::spawn(&mut Self::command(options, words))
    }

    /// Starts a command that runs a guest.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the VMM starts");
        let logs = tempfile::tempdir().expect("there is a temporary folder");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        Self {
            stdin: child.stdin.take(),
            output: Output::collect(stdout, &logs.path().join("stdout")).expect("a log file"),
            errors: Output::collect(stderr, &logs.path().join("stderr")).expect("a log file"),
            child,
            _logs: logs,
        }
    }

    /// Sends `text` to the guest's serial port.
    ///
    /// # Panics
    /// If the VMM does not take it.
    pub fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is a pipe");
        stdin
            .write_all(text.as_bytes())
            .expect("the VMM takes input");
    }

    /// Waits until the guest has printed `text` `count` times.
    ///
    /// # Panics
    /// If it takes too long or the VMM ends before.
    pub fn wait_for(&mut self, text: &str, count: usize) {
        self.wait_until(text, |probe| {
            let ended = probe.status().is_some();
            let found = probe.output.text().matches(text).count() >= count;
            assert!(found || !ended, "no {text}: {}", probe.describe());
            found
        });
    }

    /// What the VMM has printed so far.
    pub fn errors(&self) -> String {
        self.errors.text()
    }

    /// The VMM's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the VMM's end.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait(mut self) -> Report {
        self.wait_until("end", |probe| probe.status().is_some());
        self.output.finish();
        self.errors.finish();
        Report {
            status: self.status().expect("it has ended"),
            output: self.output.text(),
            errors: self.errors.text(),
        }
    }

    fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the VMM is our child")
    }

    fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "no {what} after {PATIENCE:?}: {}{}",
                self.describe(),
                threads(self.pid())
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn describe(&self) -> String {
        format!(
            "the guest printed:\n{}\nand the VMM:\n{}",
            self.output.text(),
            self.errors.text()
        )
    }

    /// Runs a guest that does `words` and ends by itself.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn run(options: &[&str], words: &str) -> Report {
        Self::start(options, words).wait()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of a guest.
#[derive(Debug)]
pub struct Report {
    /// How the VMM ended.
    pub status: ExitStatus,
    /// What the guest printed.
    pub output: String,
    /// What the VMM printed.
    pub errors: String,
}

impl Report {
    /// Checks that the VMM ended with exit code 0.
    ///
    /// # Panics
    /// If it did not.
    pub fn assert_success(&self) -> &Self {
        assert_eq!(
            self.status.code(),
            Some(0),
            "{}\n{}",
            self.output,
            self.errors
        );
        self
    }

    /// The lines that start with `<kind>: `, without that.
    pub fn lines(&self, kind: &str) -> Vec<&str> {
        self.output
            .lines()
            .filter_map(|line| line.strip_prefix(kind)?.strip_prefix(": "))
            .collect()
    }

    /// The numbers that the first line of `kind` consists of.
    ///
    /// # Panics
    /// If there is no such line or it has something else.
    pub fn numbers(&self, kind: &str) -> Vec<u64> {
        let lines = self.lines(kind);
        let line = lines
            .first()
            .unwrap_or_else(|| panic!("no {kind} in:\n{}\n{}", self.output, self.errors));
        line.split_whitespace().map(number).collect()
    }

    /// The records of `kind`: `rsdp`, `table`, `smbios` or `module`.
    ///
    /// # Panics
    /// If one of them is garbled.
    pub fn records(&self, kind: &str) -> Vec<Record> {
        self.lines(kind).into_iter().map(Record::parse).collect()
    }

    /// The memory map: address, size and type of each entry.
    ///
    /// # Panics
    /// If one of them is garbled.
    pub fn memory_map(&self) -> Vec<(u64, u64, u64)> {
        self.lines("memory")
            .into_iter()
            .map(|line| {
                let mut fields = line.split_whitespace().map(number);
                let mut next = || fields.next().expect("three numbers");
                (next(), next(), next())
            })
            .collect()
    }
}

/// Bytes that the guest found in its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What they are: a signature, or a part.
    pub name: String,
    /// Where they were.
    pub address: u64,
    /// Whether their sum is zero, modulo 256.
    pub checksum_ok: bool,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Record {
    fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, address, size, checksum, bytes] = fields[..] else {
            panic!("garbled record: {line}");
        };
        let bytes: Vec<u8> = (0..bytes.len() / 2)
            .map(|i| u8::from_str_radix(&bytes[2 * i..2 * i + 2], 16).expect("hex"))
            .collect();
        assert_eq!(bytes.len() as u64, number(size), "{line}");
        Self {
            name: name.to_owned(),
            address: number(address),
            checksum_ok: checksum == "sum=ok",
            bytes,
        }
    }
}

fn number(text: &str) -> u64 {
    let digits = text.strip_prefix("0x");
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_else(|| panic!("not a number: {text:?}"))
}
