//! The guest's user space: busybox and a test's shell script.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::Lab;
use crate::cpio::Archive;

const INIT: &str = include_str!("guest-init.sh");
const FULL_REPORT: &str = include_str!("full-report.sh");

/// Kernel arguments for a guest that starts as fast as it can where everything is slow: little
/// output, no self-tests of cryptography, and on x86_64 no measuring of clocks, which an emulated
/// host cannot keep steady. On aarch64 the console comes from the SPCR.
pub const CMDLINE: &str = if cfg!(target_arch = "x86_64") {
    "console=ttyS0 quiet cryptomgr.notests=1 tsc=reliable no_timer_check"
} else {
    "quiet cryptomgr.notests=1"
};

/// Where the lab has a program.
type PlaceOf = fn(&Lab, &str) -> PathBuf;

/// An initramfs that runs a script and powers off.
///
/// The script is `sh` with all of busybox, as root, with /proc, /sys, /dev and /tmp mounted. What
/// it prints appears on the guest's console. `section NAME COMMAND…` prints a command's output so
/// that [`Report`](crate::Report) finds it again.
pub struct Initramfs {
    script: String,
    modules: Vec<String>,
    /// Names, and where they are.
    programs: Vec<(String, PlaceOf)>,
    drivers: bool,
}

impl Initramfs {
    /// One that runs `script`.
    pub fn new(script: &str) -> Self {
        Self {
            script: format!("{script}\n"),
            modules: Vec::new(),
            programs: Vec::new(),
            drivers: false,
        }
    }

    /// Adds a kernel module of `tests/modules`, which the script finds as `/lib/<name>.ko`.
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Adds a program of `tests/programs`, which the script finds as `/bin/<name>`.
    pub fn program(mut self, name: &str) -> Self {
        self.programs.push((name.to_owned(), Lab::guest_program));
        self
    }

    /// Adds a program that was built with the VMM, statically linked, which the script finds as
    /// `/bin/<name>`.
    pub fn binary(mut self, name: &str) -> Self {
        self.programs.push((name.to_owned(), Lab::program));
        self
    }

    /// Adds the kernel's own drivers of devices (`scripts/lab/fetch`), for the script to `modprobe`:
    /// `nvme`, `igb`, `igbvf`, and those of virtio.
    pub fn drivers(mut self) -> Self {
        self.drivers = true;
        self
    }

    /// One that reports everything the guest can see: CPUs, topology, memory, SMBIOS, ACPI tables
    /// and what the kernel complained about. The sections are in `src/full-report.sh`.
    pub fn full_report() -> Self {
        Self::new(FULL_REPORT)
    }

    /// The script that it runs.
    pub fn script(&self) -> &str {
        &self.script
    }

    /// Writes the archive to `path`.
    ///
    /// # Errors
    /// Outside the lab, and if a file cannot be read or written.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        let lab = Lab::get()?;
        let mut archive = Archive::default();
        for folder in ["/bin", "/dev", "/lib", "/proc", "/sys", "/tmp"] {
            archive.folder(folder);
        }
        archive.file("/bin/busybox", 0o755, &read(&lab.asset("busybox"))?);
        archive.link("/bin/sh", "busybox");
        archive.file("/init", 0o755, INIT.as_bytes());
        archive.file("/test.sh", 0o644, self.script.as_bytes());
        for name in &self.modules {
            archive.file(&format!("/lib/{name}.ko"), 0o644, &read(&lab.module(name))?);
        }
        for (name, place) in &self.programs {
            let program = read(&place(&lab, name))?;
            archive.file(&format!("/bin/{name}"), 0o755, &program);
        }
        let mut bytes = archive.finish();
        if self.drivers {
            // The kernel unpacks archives that follow each other one after the other.
            bytes.extend(read(&lab.asset("guest.cpio"))?);
        }
        std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
