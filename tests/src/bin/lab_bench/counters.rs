//! What the host has counted for a process.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use tests::{ACCESSES_TO_VMM, kvm_counter};

/// Counters of a VMM's process at one moment.
pub struct Counters {
    /// What the emulated host's CPU has taken of a real one, in nanoseconds.
    emulator: Option<u64>,
    exits: u64,
    mmio: u64,
    threads: BTreeMap<String, Thread>,
}

/// What has come to them since.
pub struct Used {
    /// What the emulated host's CPU has taken of a real one, in nanoseconds; nothing on a host of its own.
    pub emulator: Option<u64>,
    /// CPU time of the process, in nanoseconds, the guest's included.
    pub nanoseconds: u64,
    /// How often a vCPU left the guest.
    pub exits: u64,
    /// How often an access of the guest was carried out by the VMM.
    pub mmio: u64,
    /// CPU time of threads that are no vCPUs, in nanoseconds.
    pub device_nanoseconds: u64,
    /// How often they have waited.
    pub waits: u64,
}

impl Counters {
    /// Those of process `pid`, which runs one guest.
    ///
    /// # Errors
    /// The process is gone, or KVM does not count.
    pub fn read(pid: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = entry?.path();
            // A thread may have ended meanwhile.
            if let Some(thread) = Thread::read(&task) {
                threads.insert(task.display().to_string(), thread);
            }
        }
        Ok(Self {
            emulator: emulator(),
            exits: kvm_counter(pid, "exits")?,
            mmio: kvm_counter(pid, ACCESSES_TO_VMM)?,
            threads,
        })
    }

    /// What has come to them since `before`. What a thread took that has ended since is missing.
    pub fn since(&self, before: &Self) -> Used {
        let mut used = Used {
            emulator: (self.emulator.zip(before.emulator)).map(|(now, then)| now - then),
            nanoseconds: 0,
            exits: self.exits - before.exits,
            mmio: self.mmio - before.mmio,
            device_nanoseconds: 0,
            waits: 0,
        };
        for (task, thread) in &self.threads {
            let then = before.threads.get(task).copied().unwrap_or_default();
            let nanoseconds = thread.nanoseconds - then.nanoseconds;
            used.nanoseconds += nanoseconds;
            if !thread.is_vcpu {
                used.device_nanoseconds += nanoseconds;
                used.waits += thread.waits - then.waits;
            }
        }
        used
    }
}

/// What a thread has used.
#[derive(Clone, Copy, Default)]
struct Thread {
    is_vcpu: bool,
    /// Time on a CPU.
    nanoseconds: u64,
    /// How often it has waited.
    waits: u64,
}

impl Thread {
    fn read(task: &Path) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(task.join(name)).ok();
        let name = read("comm")?;
        let status = read("status")?;
        let key = "voluntary_ctxt_switches:";
        let waits = status.lines().find_map(|line| line.strip_prefix(key))?;
        Some(Self {
            // Of ours, and of QEMU's.
            is_vcpu: name.starts_with("vcpu") || name.starts_with("CPU "),
            nanoseconds: read("schedstat")?.split(' ').next()?.parse().ok()?,
            waits: waits.trim().parse().ok()?,
        })
    }
}

/// What the threads of the emulator that are CPUs have taken (`scripts/lab-run`).
fn emulator() -> Option<u64> {
    let tasks = fs::read_dir("/lab/emulator/task").ok()?;
    let threads = tasks.filter_map(|task| Thread::read(&task.ok()?.path()));
    let cpus = threads.filter(|thread| thread.is_vcpu);
    Some(cpus.map(|thread| thread.nanoseconds).sum()).filter(|taken| *taken > 0)
}
