//! A fuzzer. `FUZZ_TARGET` says of what, or is `list`; arguments are libFuzzer's.
#![no_main]

use std::process::exit;
use std::sync::OnceLock;

use fuzz::{Holdings, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

/// The target that is asked for.
fn chosen() -> Target {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    if name == "list" {
        fuzz::targets()
            .iter()
            .for_each(|target| println!("{}", target.name));
        exit(0);
    }
    fuzz::target(&name).unwrap_or_else(|error| {
        eprintln!("FUZZ_TARGET: {error}");
        exit(2)
    })
}

libfuzzer_sys::fuzz_target!(
    init: {
        TARGET.get_or_init(chosen);
    },
    |bytes: &[u8]| {
        let before = Holdings::now().unwrap_or_else(|error| panic!("/proc: {error}"));
        TARGET.get_or_init(chosen).run(bytes);
        before.is_all().unwrap_or_else(|what| panic!("{what}"));
    }
);
