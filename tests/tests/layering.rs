//! Which of our crates may use which: the design's layers, read back from cargo.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Crates that may use everything, and which nothing may use.
const TESTS: [&str; 2] = ["tests", "fuzz"];

/// Each other crate with all that it may use of ours.
const LAYERS: [(&str, &[&str]); 5] = [
    ("acpi_numa", &[]),
    ("arch", &[]),
    ("pci", &[]),
    ("devices", &["pci"]),
    ("vmm", &["acpi_numa", "arch", "pci", "devices"]),
];

/// Every dependency of one of our crates on another, those of tests and build scripts included.
fn edges() -> BTreeSet<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut edges = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let user = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            // Only a dependency inside the workspace has a path.
            if dependency["path"].is_string() {
                let used = dependency["name"].as_str().expect("a name");
                edges.insert((user.to_owned(), used.to_owned()));
            }
        }
    }
    edges
}

fn allowed(user: &str, used: &str) -> bool {
    TESTS.contains(&user)
        || LAYERS
            .iter()
            .any(|(name, uses)| *name == user && uses.contains(&used))
}

#[test]
fn crates_use_only_the_layers_below() {
    let edges = edges();
    assert!(edges.contains(&("devices".to_owned(), "pci".to_owned())));
    let wrong: Vec<_> = edges
        .iter()
        .filter(|(user, used)| used != user && !allowed(user, used))
        .collect();
    assert!(wrong.is_empty(), "not among the design's layers: {wrong:?}");
}

#[test]
fn the_rule_refuses_what_it_should() {
    assert!(allowed("vmm", "devices"));
    assert!(allowed("tests", "vmm"));
    assert!(allowed("fuzz", "devices"));
    assert!(!allowed("pci", "devices"));
    assert!(!allowed("arch", "pci"));
    assert!(!allowed("vmm", "tests"));
    assert!(!allowed("devices", "fuzz"));
    assert!(!allowed("unknown", "arch"));
}
