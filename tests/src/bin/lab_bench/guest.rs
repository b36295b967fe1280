//! The same guest, of either VMM.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tempfile::TempDir;
use tests::{CMDLINE, Initramfs, Lab, RunningVmm, Vmm};

use crate::counters::{Counters, Used};
use crate::image::{Format, Store};

/// Runs `disk_load` on its disk.
const SCRIPT: &str = "
echo @init
modprobe virtio_blk
stty -echo
queues=$(ls /sys/block/vda/mq | wc -l)
echo @up $queues
/bin/disk_load /dev/vda
";
/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
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
    /// Starts one with a vCPU for each queue of its disk.
    pub fn start(
        monitor: &Monitor,
        image: &Path,
        format: Format,
        store: Store,
        queues: usize,
    ) -> Result<Started> {
        let lab = Lab::get()?;
        let files = tempfile::tempdir()?;
        let initramfs = files.path().join("initramfs");
        let script = Initramfs::new(SCRIPT).drivers().binary("disk_load");
        script.write_to(&initramfs)?;
        let vmm = match monitor {
            Monitor::Ours(name) => {
                let disk = format!(
                    "path={},image_type={},num_queues={queues},queue_size={QUEUE_SIZE},direct={}",
                    image.display(),
                    format.name(),
                    if store == Store::Direct { "on" } else { "off" }
                );
                Vmm::program(monitor.program(&lab)?)
                    .name(name)
                    .args(["--cpus", &format!("boot={queues}")])
                    .args(["--memory", &format!("size={MEMORY_MIB}M")])
                    .args(["--serial", "tty", "--console", "off"])
                    .args(["--disk", &disk, "--cmdline", CMDLINE])
                    .arg("--kernel")
                    .arg(lab.kernel())
                    .arg("--initramfs")
                    .arg(&initramfs)
            }
            Monitor::Qemu => {
                let disk = QemuDisk {
                    image,
                    format,
                    store,
                    queues,
                };
                disk.add_to(Vmm::program(monitor.program(&lab)?))
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
                    .arg(&initramfs)
            }
        };
        let clock = Instant::now();
        let vmm = vmm.timeout(LIFE).spawn()?;
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

    /// Lets it carry out an order of `disk_load`.
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

/// The disk of a guest of QEMU's, with all that makes it fast: a thread for each queue, io_uring.
struct QemuDisk<'a> {
    image: &'a Path,
    format: Format,
    store: Store,
    queues: usize,
}

impl QemuDisk<'_> {
    fn add_to(&self, mut vmm: Vmm) -> Vmm {
        let Self {
            image,
            format,
            store,
            queues,
        } = *self;
        let direct = store == Store::Direct;
        let cache = json!({"direct": direct, "no-flush": false});
        let driver = match store {
            Store::Tmpfs => "file",
            Store::PageCache | Store::Direct => "host_device",
        };
        let node = json!({
            "driver": format.name(),
            "node-name": "disk",
            "cache": cache,
            "discard": "unmap",
            "file": {
                "driver": driver,
                "filename": image,
                "aio": "io_uring",
                "cache": cache,
                "discard": "unmap",
            },
        });
        let mut mapping = Vec::new();
        for queue in 0..queues {
            let name = format!("queue{queue}");
            vmm = vmm.args(["-object", &format!("iothread,id={name}")]);
            mapping.push(json!({"iothread": name}));
        }
        let device = json!({
            "driver": "virtio-blk-pci",
            "drive": "disk",
            "num-queues": queues,
            "queue-size": QUEUE_SIZE,
            "iothread-vq-mapping": mapping,
        });
        vmm.args(["-blockdev", &node.to_string()])
            .args(["-device", &device.to_string()])
    }
}
