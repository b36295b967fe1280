//! What is fuzzed: a string of bytes becomes something hostile, and whoever gets it has to stand it.
//!
//! `scripts/fuzz` runs a target under a fuzzer, `tests/replay.rs` gives all targets what is checked in
//! under `seeds`: in `devices` what fuzzers of devices begin with, in folders of single targets what was
//! found and mended.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use devices::virtio::testing::hostile;

/// Something that bytes are given to.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    run: fn(&'static str, &[u8]),
    describe: fn(&[u8]) -> String,
}

impl Target {
    /// Gives it bytes.
    ///
    /// # Panics
    /// It does what it may not.
    pub fn run(&self, bytes: &[u8]) {
        (self.run)(self.name, bytes);
    }

    /// What the bytes are to it.
    pub fn describe(&self, bytes: &[u8]) -> String {
        (self.describe)(bytes)
    }
}

/// All targets: every virtio device is one.
pub fn targets() -> Vec<Target> {
    let device = |name| Target {
        name,
        run: hostile::run,
        describe: hostile::describe,
    };
    hostile::devices().map(device).collect()
}

/// The target of a name.
///
/// # Errors
/// There is none; the error names those that are.
pub fn target(name: &str) -> Result<Target, String> {
    let targets = targets();
    let names: Vec<_> = targets.iter().map(|target| target.name).collect();
    let names = names.join(", ");
    let found = targets.into_iter().find(|target| target.name == name);
    found.ok_or(format!("no target is called {name:?}; there are {names}"))
}

/// What a process has of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads, those of the kernel for it included.
    pub threads: usize,
}

/// Longer than threads take to go that have ended.
const PATIENCE: Duration = Duration::from_secs(10);

impl Holdings {
    /// What this process has now.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn now() -> io::Result<Self> {
        Ok(Self {
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            threads: fs::read_dir("/proc/self/task")?.count(),
        })
    }

    /// Whether this process has no more than this, now or in a moment.
    ///
    /// # Errors
    /// It has more: what it has, in words.
    pub fn is_all(self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let now = Self::now().map_err(|error| format!("/proc: {error}"))?;
            if now.descriptors <= self.descriptors && now.threads <= self.threads {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("there were {self:?}, and now there are {now:?}"));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
