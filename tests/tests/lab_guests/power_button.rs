//! Pressing the power button, which takes a VMM in this process: there is no option for it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tests::{Initramfs, Lab, Report};
use vmm::config::{ConsoleMode, PayloadConfig, SerialConfig, VmConfig};
use vmm::events::Events;
use vmm::{AfterGuest, Vmm};

use crate::CMDLINE;

/// Runs a guest in this process, presses its power button once it has printed `ready`, and returns
/// its report.
pub fn press_when_ready(script: &str) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let console = folder.path().join("console");
    let initramfs = folder.path().join("initramfs");
    Initramfs::new(script).write_to(&initramfs)?;
    let config = VmConfig {
        payload: PayloadConfig {
            kernel: Some(Lab::get()?.kernel()),
            initramfs: Some(initramfs),
            cmdline: Some(CMDLINE.to_owned()),
        },
        serial: SerialConfig {
            mode: ConsoleMode::File,
            file: Some(console.clone()),
            ..SerialConfig::default()
        },
        ..VmConfig::default()
    };
    let mut vmm = Vmm::new(AfterGuest::End, &Events::none())?;
    let handle = vmm.handle();
    vmm.start(config)?;
    let running = std::thread::spawn(move || vmm.run());
    let outcome = wait_for_ready(&console);
    if outcome.is_ok() {
        handle.press_power_button();
    } else {
        handle.shutdown();
    }
    let ended = running
        .join()
        .map_err(|_| anyhow::anyhow!("the VMM panicked"))?;
    outcome?;
    ended?;
    Report::parse(&std::fs::read_to_string(&console)?)
}

fn wait_for_ready(console: &Path) -> Result<()> {
    let deadline = Instant::now() + Lab::get()?.scaled(std::time::Duration::from_secs(15));
    loop {
        let text = std::fs::read(console).context("no console")?;
        let text = String::from_utf8_lossy(&text);
        if text.contains("ready") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the guest is not ready: {text}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
