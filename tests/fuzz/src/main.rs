//! A fuzzer. `FUZZ_TARGET` says of what; arguments are libFuzzer's.
#![no_main]

use std::sync::OnceLock;

use fuzz::{Holdings, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::target(&name).unwrap_or_else(|error| panic!("FUZZ_TARGET: {error}"))
    });
    let before = Holdings::now().unwrap_or_else(|error| panic!("/proc: {error}"));
    target.run(bytes);
    before.is_all().unwrap_or_else(|what| panic!("{what}"));
});
