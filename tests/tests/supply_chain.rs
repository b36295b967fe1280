//! What we build on: where it comes from, under which licences, and each crate once.
//!
//! Known vulnerabilities are not looked up: that needs a database from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Licences that the product may be built from, all compatible with its own.
const LICENCES: [&str; 5] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-3-Clause",
    "MIT",
    "Unicode-3.0",
];

/// Crates that only tests are built with, and licences that they may have beside those.
const OF_TESTS: [(&str, &str); 1] = [("libfuzzer-sys", "NCSA")];

/// Crates that may be there in several versions, and why that cannot be helped.
const DUPLICATES: [(&str, &str); 2] = [
    (
        "bitflags",
        "vmm-sys-util is on version 1, everything else on 2",
    ),
    (
        "syn",
        "used at build time only, and its users move to version 3 one by one",
    ),
];

const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// The crates that any of ours needs on any target, one JSON object each.
fn packages() -> Vec<Value> {
    let mut packages = Vec::new();
    for target in TARGETS {
        let output = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version=1",
                "--locked",
                "--all-features",
            ])
            .args(["--filter-platform", target])
            .output()
            .expect("cargo metadata runs");
        assert!(output.status.success(), "{output:?}");
        let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        match metadata["packages"].take() {
            Value::Array(found) => packages.extend(found),
            other => panic!("no packages: {other}"),
        }
    }
    packages
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or("")
}

#[test]
fn every_licence_is_allowed() {
    let wrong: BTreeSet<_> = packages()
        .iter()
        .map(|package| {
            (
                text(package, "name").to_owned(),
                text(package, "license").to_owned(),
            )
        })
        .filter(|(name, licence)| {
            let more = OF_TESTS
                .iter()
                .find(|(crate_of_tests, _)| crate_of_tests == name);
            let licence = match more {
                // As good as one that is allowed.
                Some((_, more)) => licence.replace(more, LICENCES[0]),
                None => licence.clone(),
            };
            !acceptable(&licence)
        })
        .collect();
    assert!(wrong.is_empty(), "licences not on the list: {wrong:?}");
}

#[test]
fn what_is_there_for_tests_is_used_by_tests() {
    let packages = packages();
    for (name, _) in OF_TESTS {
        let uses = |package: &&Value| {
            let dependencies = package["dependencies"].as_array();
            dependencies.is_some_and(|all| all.iter().any(|one| one["name"] == name))
        };
        let users = packages.iter().filter(uses);
        let users: BTreeSet<_> = users.map(|user| text(user, "name")).collect();
        assert_eq!(users, BTreeSet::from(["fuzz"]), "{name}");
    }
}

#[test]
fn everything_else_comes_from_one_registry() {
    let packages = packages();
    let others: BTreeSet<_> = packages
        .iter()
        .filter_map(|package| package["source"].as_str())
        .collect();
    assert!(
        others.len() == 1 && others.iter().all(|source| source.starts_with("registry+")),
        "{others:?}"
    );
    // Crates without a source are part of this workspace.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().expect("the workspace's folder");
    for package in packages
        .iter()
        .filter(|package| package["source"].is_null())
    {
        let path = text(package, "manifest_path");
        assert!(Path::new(path).starts_with(workspace), "{path}");
    }
}

#[test]
fn crates_are_there_once() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        versions
            .entry(text(&package, "name").to_owned())
            .or_default()
            .insert(text(&package, "version").to_owned());
    }
    let several: BTreeMap<_, _> = versions
        .iter()
        .filter(|(_, versions)| versions.len() > 1)
        .collect();
    let known: BTreeSet<_> = DUPLICATES.iter().map(|(name, _)| *name).collect();
    let new: Vec<_> = several
        .iter()
        .filter(|(name, _)| !known.contains(name.as_str()))
        .collect();
    assert!(new.is_empty(), "in several versions: {new:?}");
    let gone: Vec<_> = known
        .iter()
        .filter(|name| !several.keys().any(|several| several == *name))
        .collect();
    assert!(gone.is_empty(), "no longer in several versions: {gone:?}");
}

/// Modules for test guests use functions that the kernel keeps for its own licence; each of their
/// files says so, and the README, where everything else is under another.
#[test]
fn kernel_modules_name_their_licence() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("modules")];
    let mut sources = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|extension| extension != "md") {
                let text = std::fs::read_to_string(&path).expect("text");
                let line = text.lines().next().unwrap_or("");
                assert!(
                    line.ends_with("SPDX-License-Identifier: GPL-2.0"),
                    "{path:?}"
                );
                sources += 1;
            }
        }
    }
    assert!(sources > 0, "no modules");
}

/// Whether an SPDX licence expression (SPDX specification, annex "SPDX license expressions") can
/// be met with the allowed licences. `/` is an old spelling of `OR`.
fn acceptable(expression: &str) -> bool {
    let expression = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<_> = expression.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = either(&mut rest);
    met && rest.is_empty()
}

/// `a OR b`: the weakest operator.
fn either(words: &mut &[&str]) -> bool {
    let mut met = both(words);
    while let Some(rest) = words.strip_prefix(&["OR"]) {
        *words = rest;
        met |= both(words);
    }
    met
}

/// `a AND b`.
fn both(words: &mut &[&str]) -> bool {
    let mut met = one(words);
    while let Some(rest) = words.strip_prefix(&["AND"]) {
        *words = rest;
        met &= one(words);
    }
    met
}

/// One licence, with its exception, or an expression in parentheses.
fn one(words: &mut &[&str]) -> bool {
    match **words {
        ["(", ref rest @ ..] => {
            *words = rest;
            let met = either(words);
            let closed = words.strip_prefix(&[")"]);
            *words = closed.unwrap_or(&[]);
            met && closed.is_some()
        }
        [licence, "WITH", exception, ref rest @ ..] => {
            *words = rest;
            LICENCES.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, ref rest @ ..] => {
            *words = rest;
            LICENCES.contains(&licence)
        }
        [] => false,
    }
}

#[test]
fn licence_expressions_are_understood() {
    for good in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-2.0 OR MIT",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        "(MIT OR GPL-2.0) AND Unicode-3.0",
    ] {
        assert!(acceptable(good), "{good}");
    }
    for bad in [
        "",
        "GPL-2.0",
        "MIT AND GPL-2.0",
        "MIT WITH some-exception",
        "(MIT OR Apache-2.0) AND GPL-2.0",
        "GPL-2.0 OR MIT AND GPL-3.0",
        "(MIT",
        "MIT)",
        "MIT Apache-2.0",
    ] {
        assert!(!acceptable(bad), "{bad}");
    }
}
