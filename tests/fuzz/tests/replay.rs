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
