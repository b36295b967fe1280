//! What is checked in, and what a fuzzer has found, without a fuzzer.

use std::path::{Path, PathBuf};

/// The files of a folder of seeds, if there is one.
fn inputs(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(folder);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_seed_and_everything_that_was_mended_is_stood() {
    let common = inputs("devices");
    assert!(!common.is_empty(), "there are no seeds");
    for target in fuzz::targets() {
        for path in common.iter().chain(&inputs(target.name)) {
            println!("{} for {}", path.display(), target.name);
            target.run(&std::fs::read(path).unwrap());
        }
    }
}

/// `FUZZ_TARGET` and `FUZZ_INPUT` name a target and a file, which is given to it many times: threads
/// do not meet in the same way each time.
#[test]
#[ignore = "needs an input: scripts/fuzz says how it is run"]
fn one_input() {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET");
    let path = std::env::var("FUZZ_INPUT").expect("FUZZ_INPUT");
    let target = fuzz::target(&name).unwrap();
    let bytes = std::fs::read(path).unwrap();
    println!("{}", target.describe(&bytes));
    for _ in 0..100 {
        target.run(&bytes);
    }
}
