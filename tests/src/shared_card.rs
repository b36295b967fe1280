//! The emulated host's network card, shared with guests: the host's own driver has the card, and guests
//! are given virtual functions of it (SR-IOV), which it connects with each other and with the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::passthrough::{HostDevice, PassedThrough, write};

const DRIVER: &str = "igb";
/// For how long the host waits for its functions.
const PATIENCE: Duration = Duration::from_secs(60);

/// The card, with its driver and virtual functions bound to vfio-pci, until this is dropped.
pub struct SharedCard {
    functions: PassedThrough,
    path: PathBuf,
}

impl SharedCard {
    /// Has the host make `count` functions, of at most 7.
    ///
    /// # Errors
    /// If the host has no such card, its driver does not take it or makes no functions, or vfio-pci does
    /// not take these.
    pub fn with_functions(count: usize) -> Result<Self> {
        // Nobody else has the card meanwhile.
        let functions = PassedThrough::take(&[])?;
        let path = HostDevice::NetworkCard.path()?;
        let mut card = Self { functions, path };
        run("modprobe", &[DRIVER])?;
        // A driver takes what it finds when it is loaded, and nothing that was bound to another.
        if !card.path.join("driver").exists() {
            HostDevice::NetworkCard.bind(DRIVER)?;
        }
        card.make_functions(count)?;
        Ok(card)
    }

    /// Has the host make functions, where there are none.
    ///
    /// # Errors
    /// As [`with_functions`](Self::with_functions).
    pub fn make_functions(&mut self, count: usize) -> Result<()> {
        // The host's drivers are to leave them alone.
        write(&self.path.join("sriov_drivers_autoprobe"), "0")?;
        write(&self.number(), &count.to_string())?;
        for number in 0..count {
            self.functions.add(HostDevice::VirtualFunction(number))?;
        }
        Ok(())
    }

    /// Has the host take all functions away, whoever has them.
    ///
    /// # Errors
    /// If somebody does not give them back, or some are there afterwards.
    pub fn take_functions_away(&self) -> Result<()> {
        let number = self.number();
        let taker = thread::spawn(move || write(&number, "0"));
        let pause = Duration::from_millis(100);
        let mut left = PATIENCE;
        while !taker.is_finished() {
            left = left.saturating_sub(pause);
            ensure!(!left.is_zero(), "virtual functions are not given back");
            thread::sleep(pause);
        }
        taker.join().expect("no panic")?;
        ensure!(
            HostDevice::VirtualFunction(0).path().is_err(),
            "virtual functions are left"
        );
        Ok(())
    }

    /// Gives the host's interface an address, such as `10.0.0.1/24`, and turns it on. Functions have no
    /// link without.
    ///
    /// # Errors
    /// If there is no interface.
    pub fn turn_on(&self, address: &str) -> Result<()> {
        let folder = self.path.join("net");
        let mut interfaces = fs::read_dir(&folder)?;
        let interface = interfaces
            .next()
            .with_context(|| format!("nothing in {}", folder.display()))??;
        let interface = interface.file_name();
        let interface = interface.to_str().context("no name")?;
        run("ip", &["addr", "add", address, "dev", interface])?;
        run("ip", &["link", "set", interface, "up"])
    }

    /// Where the number of functions is written to.
    fn number(&self) -> PathBuf {
        self.path.join("sriov_numvfs")
    }
}

impl Drop for SharedCard {
    fn drop(&mut self) {
        // Its driver takes functions that are left away.
        if is_bound(&self.path) {
            let _ = HostDevice::NetworkCard.unbind();
        }
    }
}

fn is_bound(card: &Path) -> bool {
    fs::read_link(card.join("driver")).is_ok_and(|link| link.ends_with(DRIVER))
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status();
    let status = status.with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}
