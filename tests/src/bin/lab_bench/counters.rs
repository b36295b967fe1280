//! What the host has counted for a process.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where KVM counts what its guests do, a folder for each.
pub const KVM: &str = "/sys/kernel/debug/kvm";

/// Counters of a VMM's process at one moment.
pub struct Counters {
    /// CPU time of user and kernel, in hundredths of a second (proc_pid_stat(5)).
    ticks: u64,
    exits: u64,
    mmio: u64,
    /// By thread, those that are no vCPUs: time on a CPU in nanoseconds, and how often it has waited.
    devices: BTreeMap<String, (u64, u64)>,
}

/// What has come to them since.
pub struct Used {
    /// CPU time, in hundredths of a second.
    pub ticks: u64,
    /// How often a vCPU left the guest.
    pub exits: u64,
    /// How often an access of the guest was carried out by the VMM.
    pub mmio: u64,
    /// CPU time of threads that are no vCPUs.
    pub device_nanoseconds: Option<u64>,
    /// How often they have waited.
    pub switches: u64,
}

impl Counters {
    /// Those of process `pid`, which runs one guest.
    ///
    /// # Errors
    /// The process is gone, or KVM does not count.
    pub fn read(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may have anything in it.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let field = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let ticks = field(11).zip(field(12)).context("no times in stat")?;
        let prefix = format!("{pid}-");
        let folders = fs::read_dir(KVM).context("KVM does not count here")?;
        let mut folders = folders.filter_map(|entry| Some(entry.ok()?.path()));
        let folder = folders.find(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().starts_with(&prefix)
        });
        let folder = folder.with_context(|| format!("no guest of process {pid} in {KVM}"))?;
        let mut devices = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = entry?.path();
            // A thread may have ended meanwhile.
            if let Some(used) = device(&task) {
                devices.insert(task.display().to_string(), used);
            }
        }
        Ok(Self {
            ticks: ticks.0 + ticks.1,
            exits: count(&folder, "exits")?,
            mmio: count(&folder, "mmio_exits")?,
            devices,
        })
    }

    /// What has come to them since `before`. What a thread took that has ended since is missing.
    pub fn since(&self, before: &Self) -> Used {
        let devices = self.devices.iter().map(|(task, (time, waits))| {
            let of = before.devices.get(task).copied().unwrap_or_default();
            (time - of.0, waits - of.1)
        });
        let devices: Vec<_> = devices.collect();
        Used {
            ticks: self.ticks - before.ticks,
            exits: self.exits - before.exits,
            mmio: self.mmio - before.mmio,
            device_nanoseconds: (!devices.is_empty())
                .then(|| devices.iter().map(|used| used.0).sum()),
            switches: devices.iter().map(|used| used.1).sum(),
        }
    }
}

/// What a thread has used; nothing if it is a vCPU's: `vcpu0` of ours, `CPU 0/KVM` of QEMU's.
fn device(task: &Path) -> Option<(u64, u64)> {
    let read = |name: &str| fs::read_to_string(task.join(name)).ok();
    let name = read("comm")?;
    if name.starts_with("vcpu") || name.starts_with("CPU ") {
        return None;
    }
    let time = read("schedstat")?.split(' ').next()?.parse().ok()?;
    let status = read("status")?;
    let key = "voluntary_ctxt_switches:";
    let waits = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some((time, waits.trim().parse().ok()?))
}

fn count(folder: &Path, name: &str) -> Result<u64> {
    let path = folder.join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().parse()?)
}
