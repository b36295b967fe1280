//! The programs under test, built by cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The VMM: what `CLOUD_HYPERVISOR` names, or else cargo's, built at the first call.
///
/// # Panics
/// If it cannot be built.
pub fn cloud_hypervisor() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| binary("CLOUD_HYPERVISOR", "cloud-hypervisor"))
}

/// What asks a VMM for something: what `CH_REMOTE` names, or else cargo's, built at the first call.
///
/// # Panics
/// If it cannot be built.
pub fn ch_remote() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| binary("CH_REMOTE", "ch-remote"))
}

fn binary(variable: &str, name: &str) -> PathBuf {
    match env::var_os(variable) {
        Some(path) => path.into(),
        None => build(name),
    }
}

fn build(name: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--message-format=json"])
        .args(["--package=vmm", "--bin", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{name} cannot be built");
    output
        .stdout
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo says where the executable is")
}
