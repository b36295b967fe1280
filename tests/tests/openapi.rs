//! The REST API against its OpenAPI document: schemathesis makes requests from docs/openapi.json, right
//! ones and wrong ones, and checks each answer by it.
//!
//! `scripts/lab/fetch-schemathesis` installs it, `scripts/lab-run` says where it is. What it has to know
//! besides is in `tests/openapi`. Virtual machines are probe guests.
#![cfg(target_arch = "x86_64")]

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tests::{Forward, probe};

/// The longest that a VMM may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Address space of a VMM, in KiB: a generated configuration may ask for any amount of memory.
const ADDRESS_SPACE: u64 = 3 << 20;

/// Seconds after which schemathesis is killed.
const TOOL_TIMEOUT: &str = "3000";

/// The states that a virtual machine is in when requests come, as the hooks know them, and the
/// phases that are worth their time in it. In the coverage phase, each member of a body is wrong
/// once in every way that schemathesis can think of.
const STATES: [(&str, &str); 5] = [
    ("None", "coverage,fuzzing"),
    ("Created", "coverage,fuzzing"),
    ("Running", "fuzzing"),
    ("Paused", "fuzzing"),
    ("Shutdown", "fuzzing"),
];

/// A VMM with an API, in a folder of its own.
struct Vmm {
    child: Child,
    folder: TempDir,
}

impl Vmm {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |name: &str| File::create(folder.path().join(name)).expect("a log");
        fs::create_dir(folder.path().join("vmm")).expect("a folder");
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -v {ADDRESS_SPACE} && exec \"$0\" \"$@\""))
            .arg(probe::cloud_hypervisor())
            // An NMI ends the guest, which has no handler for one.
            .args(["--api-socket", "path=../api", "--no-shutdown", "-v"])
            .current_dir(folder.path().join("vmm"))
            .stdin(Stdio::null())
            .stdout(open("stdout"))
            .stderr(open("stderr"))
            .spawn()
            .expect("the VMM starts");
        let mut vmm = Self { child, folder };
        vmm.wait_until("socket", |vmm| {
            assert!(
                vmm.child.try_wait().expect("a child").is_none(),
                "{}",
                vmm.errors()
            );
            UnixStream::connect(vmm.socket()).is_ok()
        });
        vmm
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api")
    }

    /// What it said, up to a length that can be read.
    fn errors(&self) -> String {
        let errors = fs::read(self.folder.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&errors[errors.len().saturating_sub(4096)..]).into_owned()
    }

    fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "no {what}: {}", self.errors());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end, and checks that it is as well as it was.
    fn end(mut self) {
        let mut api = UnixStream::connect(self.socket()).expect("it still listens");
        let request = "PUT /api/v1/vmm.shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n";
        api.write_all(request.as_bytes()).expect("it reads");
        let mut status = [0; 12];
        api.read_exact(&mut status).expect("it answers");
        assert_eq!(&status, b"HTTP/1.1 204");
        self.wait_until("end", |vmm| {
            vmm.child.try_wait().expect("a child").is_some()
        });
        let status = self.child.wait().expect("a child");
        assert!(status.success(), "{status}: {}", self.errors());
        let errors = fs::read(self.folder.path().join("stderr")).expect("a log");
        let errors = String::from_utf8_lossy(&errors);
        let panic = errors.lines().find(|line| line.contains("panicked"));
        assert_eq!(panic, None);
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs schemathesis by a document, with further arguments, against a VMM whose virtual machine is in
/// `state` before each request; `folder` is for its files.
fn check(document: &Path, vmm: &Vmm, state: &str, folder: &Path, arguments: &[&str]) -> Output {
    let tool = env::var_os("LAB_SCHEMATHESIS").expect("started by cargo through scripts/lab-run");
    let tool = PathBuf::from(tool);
    assert!(tool.exists(), "no {}: run scripts/setup", tool.display());
    let forward = Forward::to(&vmm.socket()).expect("a port");
    let port = forward.port().to_string();
    let settings = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi");
    Command::new("timeout")
        .arg(TOOL_TIMEOUT)
        .arg(tool)
        .arg("--config-file")
        .arg(settings.join("schemathesis.toml"))
        .args(["--no-color", "run"])
        .arg(document)
        .args(["--url", &format!("http://127.0.0.1:{port}/api/v1")])
        .args([
            "--warnings",
            "off",
            "--request-timeout",
            "60",
            "--no-shrink",
        ])
        // The test does this one.
        .args(["--exclude-operation-id", "vmmShutdown"])
        .args(arguments)
        .current_dir(folder)
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", &settings)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("API_PORT", port)
        .env("VM_STATE", state)
        .env("VM_KERNEL", probe::build())
        .env("VM_WORDS", "haltcpus")
        .output()
        .expect("timeout(1) starts")
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json")
}

/// Runs it for one state and says what was seen on the way.
fn assert_conforms(state: &str, phases: &str, examples: &str) -> Value {
    let vmm = Vmm::start();
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["--phases", phases, "--max-examples", examples];
    let output = check(&document(), &vmm, state, folder.path(), &arguments);
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{state}: {}\n{report}\n{errors}\n--- end of the VMM's log\n{}",
        output.status,
        vmm.errors()
    );
    let passed = report.contains("30 selected / 31 total") && report.contains("30 passed");
    assert!(passed, "not every route was asked: {report}");
    vmm.end();
    let seen = fs::read(folder.path().join("seen.json")).expect("what was seen");
    serde_json::from_slice(&seen).expect("JSON")
}

#[test]
fn answers_are_those_of_the_document_without_a_virtual_machine() {
    let (state, phases) = STATES[0];
    let seen = assert_conforms(state, phases, "20");
    let number = |key: &str| seen[key].as_u64().expect("a number");
    assert!(number("created") > 50 && number("booted") > 20, "{seen}");
}

#[test]
fn answers_are_those_of_the_document_in_every_state() {
    for (state, phases) in &STATES[1..] {
        assert_conforms(state, phases, "10");
    }
}

#[test]
#[ignore = "takes five minutes, run by scripts/test --full"]
fn answers_are_those_of_the_document_to_many_requests() {
    for (state, _) in STATES {
        assert_conforms(state, "coverage,fuzzing", "400");
    }
}

/// A document that is wrong about a status, a body or what is refused does not pass.
#[test]
fn what_is_wrong_is_found() {
    let document = fs::read_to_string(document()).expect("the document");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let vmm = Vmm::start();
    let folder = tempfile::tempdir().expect("a folder");
    type Spoil = fn(&mut Value);
    let cases: [(&str, &str, Spoil); 3] = [
        ("vmInfo", "Undocumented status code", |document| {
            let responses = &mut document["paths"]["/vm.info"]["get"]["responses"];
            responses.as_object_mut().expect("responses").remove("404");
        }),
        ("vmmPing", "Response violates schema", |document| {
            let pong = &mut document["components"]["schemas"]["VmmPingResponse"];
            pong["properties"]["pid"]["type"] = "string".into();
        }),
        (
            "vmCreate",
            "Schema-violating request accepted",
            |document| {
                let cpus = &mut document["components"]["schemas"]["CpusConfig"];
                cpus["properties"]["nested"]["type"] = "integer".into();
            },
        ),
    ];
    for (operation, found, spoil) in cases {
        let mut spoilt = document.clone();
        spoil(&mut spoilt);
        let path = folder.path().join("openapi.json");
        fs::write(&path, spoilt.to_string()).expect("a file");
        let arguments = ["--include-operation-id", operation, "--phases", "coverage"];
        let output = check(&path, &vmm, "None", folder.path(), &arguments);
        let report = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{operation}: {report}");
        assert!(report.contains(found), "{operation}: {report}");
    }
}
