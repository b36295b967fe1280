//! The same guest, of either VMM.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tests::{CMDLINE, Initramfs, Lab, RunningVmm, Vmm};

use crate::counters::{Counters, Used};
use crate::hardware::Hardware;

const MEMORY_MIB: u32 = 512;
/// A guest lives for as long as all of its loads take.
const LIFE: Duration = Duration::from_secs(600);
/// Between the last word of a guest and a look at what its VMM has used.
const SETTLING: Duration = Duration::from_millis(20);

/// Who runs a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// A build of ours, by its name in the lab's folder of binaries.
    Ours(String),
    Qemu,
}

impl Monitor {
    /// The build under test.
    pub fn ours() -> Self {
        Self::Ours("cloud-hypervisor".to_owned())
    }

    /// Its program.
    ///
    /// # Errors
    /// Outside the lab.
    pub fn program(&self, lab: &Lab) -> Result<PathBuf> {
        let Self::Ours(name) = self else {
            let tools = std::env::var_os("LAB_TOOLS").context("LAB_TOOLS is not set")?;
            return Ok(Path::new(&tools).join("bin/qemu-system-x86_64"));
        };
        Ok(lab.program(name))
    }
}

/// A guest that waits for orders.
pub struct Guest {
    vmm: RunningVmm,
    orders: u32,
    /// From the start of the process to the guest's init, in seconds.
    pub started: f64,
    _files: TempDir,
}

/// How starting one went.
pub enum Started {
    Up(Guest),
    /// The VMM does not support it.
    Refused(String),
}

impl Guest {
    /// Starts one with a vCPU for each queue of its device, or pair of queues.
    pub fn start(monitor: &Monitor, hardware: Hardware, queues: usize) -> Result<Started> {
        let lab = Lab::get()?;
        let files = tempfile::tempdir()?;
        let initramfs = files.path().join("initramfs");
        let script = Initramfs::new(&hardware.script());
        let script = script.drivers().binary(hardware.program());
        script.write_to(&initramfs)?;
        let vmm = match monitor {
            Monitor::Ours(name) => hardware
                .of_ours(Vmm::program(monitor.program(&lab)?), queues)
                .name(name)
                .args(["--cpus", &format!("boot={queues}")])
                .args(["--memory", &format!("size={MEMORY_MIB}M")])
                .args(["--serial", "tty", "--console", "off"])
                .args(["--cmdline", CMDLINE])
                .arg("--kernel")
                .arg(lab.kernel())
                .arg("--initramfs")
                .arg(&initramfs),
            Monitor::Qemu => hardware
                .of_qemu(Vmm::program(monitor.program(&lab)?), queues)
                .name("qemu")
                // qboot starts a kernel sooner than SeaBIOS.
                .args(["-M", "q35", "-bios", "qboot.rom"])
                .args(["-accel", "kvm", "-cpu", "host"])
                .args(["-name", "bench,debug-threads=on"])
                .args(["-smp", &queues.to_string()])
                .args(["-m", &format!("{MEMORY_MIB}M")])
                .args(["-nodefaults", "-no-user-config", "-no-reboot"])
                .args(["-display", "none", "-serial", "stdio"])
                .args(["-append", CMDLINE, "-kernel"])
                .arg(lab.kernel())
                .arg("-initrd")
                .arg(&initramfs),
        };
        let clock = Instant::now();
        let vmm = vmm.timeout(LIFE).spawn()?;
        // A tap's descriptors are the VMM's alone.
        drop(hardware);
        if let Err(error) = vmm.wait_for_line("@init") {
            // It says why before it ends.
            let text = format!("{error:#}");
            let refused = text.lines().find(|line| line.contains("not supported"));
            let Some(refused) = refused else {
                return Err(error);
            };
            return Ok(Started::Refused(refused.trim().to_owned()));
        }
        let started = clock.elapsed().as_secs_f64();
        let up = vmm.wait_for_line("@up ")?;
        vmm.wait_for_line(&format!("@up {queues}"))
            .with_context(|| format!("the guest does not use {queues} queues: {up}"))?;
        Ok(Started::Up(Self {
            vmm,
            orders: 0,
            started,
            _files: files,
        }))
    }

    /// Lets it carry out an order (`tests::load`).
    ///
    /// # Returns
    /// What the guest says that it took, and what the host says.
    pub fn carry_out(&mut self, order: &str) -> Result<(String, Used)> {
        self.orders += 1;
        let name = format!("@{} ", self.orders);
        self.vmm.write(&format!("{} {order}\n", self.orders))?;
        self.wait_for(&format!("{name}ready"))?;
        let before = self.counters()?;
        self.vmm.write("\n")?;
        self.wait_for(&format!("{name}done"))?;
        let used = self.counters()?.since(&before);
        self.vmm.write("\n")?;
        let took = format!("{name}took ");
        // With its last word the line is whole.
        let end = format!("{name}end");
        self.wait_for(&end)?;
        let line = self.wait_for(&took)?;
        let (_, numbers) = line.split_once(&took).context("it took nothing")?;
        let (numbers, _) = numbers.split_once(&end).context("it took no end")?;
        Ok((numbers.trim().to_owned(), used))
    }

    fn counters(&self) -> Result<Counters> {
        thread::sleep(SETTLING);
        Counters::read(self.vmm.pid())
    }

    fn wait_for(&self, pattern: &str) -> Result<String> {
        self.vmm.wait_for_line(pattern)
    }
}
