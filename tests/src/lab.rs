//! Where a lab test runs and what it finds there: the environment that `scripts/lab-run` sets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The lab that this process runs in.
pub struct Lab {
    binaries: PathBuf,
    assets: PathBuf,
    modules: PathBuf,
    helpers: PathBuf,
    results: PathBuf,
    results_shown: PathBuf,
    slowdown: u32,
}

impl Lab {
    /// The lab, from the environment.
    ///
    /// # Errors
    /// If this process was not started by `scripts/lab-run`.
    pub fn get() -> Result<Self> {
        let var = |name: &str| {
            std::env::var_os(name).with_context(|| {
                format!("{name} is not set: lab tests are started by cargo through scripts/lab-run")
            })
        };
        Ok(Self {
            binaries: var("LAB_BINARIES")?.into(),
            assets: var("LAB_ASSETS")?.into(),
            modules: var("LAB_MODULES")?.into(),
            helpers: var("LAB_HELPERS")?.into(),
            results: var("LAB_RESULTS")?.into(),
            results_shown: var("LAB_RESULTS_SHOWN")?.into(),
            slowdown: var("LAB_SLOWDOWN")?
                .to_str()
                .and_then(|text| text.parse().ok())
                .context("LAB_SLOWDOWN is not a number")?,
        })
    }

    /// One of the project's programs, built for release.
    pub fn program(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// A file for guests: `vmlinuz`, on x86_64 also `vmlinux`, `busybox`, and in `kernels` further
    /// kernels if they were fetched.
    pub fn asset(&self, name: &str) -> PathBuf {
        self.assets.join(name)
    }

    /// A kernel module for guests: one of `tests/modules`, built for their kernel.
    pub fn module(&self, name: &str) -> PathBuf {
        self.modules.join(format!("{name}.ko"))
    }

    /// A program for guests: one of `tests/programs`, which needs no libraries.
    pub fn guest_program(&self, name: &str) -> PathBuf {
        self.modules.join(name)
    }

    /// A program of this crate that tests start: one that is not called `lab_*`.
    pub fn helper(&self, name: &str) -> PathBuf {
        self.helpers.join(name)
    }

    /// The kernel that boots fastest: the uncompressed one.
    pub fn kernel(&self) -> PathBuf {
        self.asset(if cfg!(target_arch = "x86_64") {
            "vmlinux"
        } else {
            "vmlinuz"
        })
    }

    /// Whether this is the developer's own machine, and not an emulated host.
    pub fn is_direct(&self) -> bool {
        self.slowdown == 1
    }

    /// `time` on hardware, as long as it takes here.
    pub fn scaled(&self, time: Duration) -> Duration {
        time * self.slowdown
    }

    /// A new folder for logs, kept if any test of this binary fails. Returns its path here and its
    /// path on the machine where the developer looks for it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn log_folder(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let mut unique = name.to_owned();
        let mut count = 1;
        while let Err(error) = std::fs::create_dir(self.results.join(&unique)) {
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                return Err(error).with_context(|| self.folder_error(&unique));
            }
            count += 1;
            unique = format!("{name}-{count}");
        }
        Ok((self.results.join(&unique), self.results_shown.join(&unique)))
    }

    fn folder_error(&self, name: &str) -> String {
        let path: &Path = &self.results.join(name);
        format!("cannot make {}", path.display())
    }
}
