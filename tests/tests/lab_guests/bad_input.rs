//! What the operator can get wrong: a clear error that names option and value, a non-zero exit
//! code, nothing left behind.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tests::{Lab, Vmm};

/// Runs the VMM and expects it to refuse with all of `words` on standard error, within two
/// seconds of hardware time and without a word on standard output.
pub(crate) fn refused(vmm: Vmm, words: &[&str]) -> Result<()> {
    let outcome = vmm.run()?;
    ensure!(
        matches!(outcome.code(), Some(1 | 2)),
        "exit status {}, errors {}",
        outcome.status,
        outcome.stderr
    );
    ensure!(outcome.stdout.is_empty(), "a guest ran: {}", outcome.stdout);
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    for word in words {
        ensure!(
            outcome.stderr.contains(word),
            "no {word:?} in: {}",
            outcome.stderr
        );
    }
    Ok(())
}

/// A VMM with a kernel that boots, and `arguments`.
pub(crate) fn with(arguments: &[&str]) -> Result<Vmm> {
    let kernel = Lab::get()?.kernel();
    let serial = ["--serial", "tty"];
    let serial = serial.iter().filter(|_| !arguments.contains(&"--serial"));
    Ok(Vmm::new()?
        .arg("--kernel")
        .arg(kernel)
        .args(["--console", "off"])
        .args(serial)
        .args(arguments))
}

fn with_kernel(kernel: &Path) -> Result<Vmm> {
    Ok(Vmm::new()?
        .arg("--kernel")
        .arg(kernel)
        .args(["--serial", "tty", "--console", "off"]))
}

#[test]
fn missing_files() -> Result<()> {
    refused(
        with_kernel(Path::new("/nonexistent/kernel"))?,
        &["--kernel", "/nonexistent/kernel", "No such file"],
    )?;
    refused(
        with(&["--initramfs", "/nonexistent/initramfs"])?,
        &["--initramfs", "/nonexistent/initramfs", "No such file"],
    )?;
    refused(
        with_kernel(Path::new("/"))?,
        &["--kernel /", "not a regular file"],
    )?;
    refused(Vmm::new()?.args(["--cpus", "boot=1"]), &["--kernel"])
}

#[test]
fn kernels_that_are_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let kernel = fs::read(Lab::get()?.kernel())?;

    fs::write(path("empty"), [])?;
    refused(with_kernel(&path("empty"))?, &["--kernel", "empty"])?;
    fs::write(path("text"), "not a kernel\n".repeat(1000))?;
    refused(with_kernel(&path("text"))?, &["--kernel", "text"])?;
    let half = kernel.get(..kernel.len() / 2).context("half a kernel")?;
    fs::write(path("half"), half)?;
    refused(with_kernel(&path("half"))?, &["--kernel", "half"])?;

    // The other architecture's: an arm64 Image header, or an ELF and a bzImage for x86.
    let mut foreign = vec![0; 4096];
    if cfg!(target_arch = "x86_64") {
        foreign.splice(0..2, *b"MZ");
        foreign.splice(56..60, *b"ARM\x64");
    } else {
        foreign.splice(0x1fe..0x200, [0x55, 0xaa]);
        foreign.splice(0x202..0x206, *b"HdrS");
    }
    fs::write(path("foreign"), foreign)?;
    let other = if cfg!(target_arch = "x86_64") {
        "arm64"
    } else {
        "x86"
    };
    refused(
        with_kernel(&path("foreign"))?,
        &["--kernel", "foreign", other],
    )
}

#[test]
fn an_initramfs_that_does_not_fit() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("large");
    fs::File::create(&path)?.set_len(1 << 30)?;
    let vmm = with(&["--memory", "size=512M", "--initramfs"])?.arg(&path);
    refused(vmm, &["--initramfs", "large", "0x40000000"])
}

#[test]
fn values_that_make_no_sense() -> Result<()> {
    for (arguments, words) in [
        (["--memory", "size=0"], &["--memory", "size=0"][..]),
        (["--memory", "size=1"], &["--memory", "size=1"]),
        (["--memory", "size=8E"], &["--memory", "size"]),
        (["--memory", "size=3P"], &["--memory", "size"]),
        (
            ["--memory", "size=1T,prefault=maybe"],
            &["--memory", "prefault", "maybe"],
        ),
        (["--memory", "sise=1G"], &["sise", "size"]),
        (
            ["--memory", "size=1G,hugepage_size=2M"],
            &["hugepage_size", "hugepages"],
        ),
        (
            ["--memory", "size=1G,hugepages=on,hugepage_size=3M"],
            &["hugepage_size"],
        ),
        (["--cpus", "boot=0"], &["--cpus", "boot=0"]),
        (["--cpus", "boot=256"], &["--cpus", "256"]),
        (["--cpus", "boot=4,max=2"], &["--cpus", "max"]),
        (
            ["--cpus", "boot=4,topology=1:1:1:1"],
            &["--cpus", "topology"],
        ),
        (
            ["--cpus", "boot=2,affinity=[0@[0],0@[1]]"],
            &["--cpus", "affinity"],
        ),
        (
            ["--cpus", "boot=2,affinity=[0@[4095]]"],
            &["affinity", "4095"],
        ),
        (["--serial", "noisy"], &["--serial", "noisy"]),
        (
            ["--serial", "file=/nonexistent/folder/file"],
            &["--serial", "/nonexistent/folder"],
        ),
        (["--vdpa", "path=/v"], &["not supported yet: --vdpa"]),
        (
            ["--cpus", "boot=1,kvm_hyperv=on"],
            &["not supported yet: --cpus kvm_hyperv"],
        ),
        (["--kernal", "x"], &["--kernal", "--kernel"]),
    ] {
        refused(with(&arguments)?, words).with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}

#[test]
fn more_huge_pages_than_the_host_has() -> Result<()> {
    refused(
        with(&["--memory", "size=64G,hugepages=on"])?,
        &["--memory", "hugepages=on"],
    )
}

/// Neither the socket nor the file of a refused machine stays, and a file that was there before
/// keeps what it has; whether the machine is refused early or late.
#[test]
fn nothing_is_left_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    fs::write(path("text"), "not a kernel\n")?;
    fs::write(path("log"), "from the last guest")?;
    for kernel in [Path::new("/nonexistent/kernel"), &path("text")] {
        for serial in ["socket=socket", "file=file", "file=log"] {
            let (mode, name) = serial.split_once('=').context("no name")?;
            let vmm = Vmm::new()?
                .arg("--kernel")
                .arg(kernel)
                .args(["--console", "off", "--serial"])
                .arg(format!("{mode}={}", path(name).display()));
            refused(vmm, &["--kernel", &kernel.display().to_string()])?;
        }
    }
    let mut left: Vec<_> = fs::read_dir(folder.path())?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    left.sort();
    ensure!(left == ["log", "text"], "{left:?}");
    assert_eq!(fs::read_to_string(path("log"))?, "from the last guest");
    Ok(())
}
