//! What the host says about a process and its memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

const HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// A folder for each guest (Linux, virt/kvm/kvm_main.c).
const KVM_COUNTERS: &str = "/sys/kernel/debug/kvm";
/// KVM's counter of accesses to memory that no memory is behind, which it has left to the VMM.
pub const ACCESSES_TO_VMM: &str = if cfg!(target_arch = "x86_64") {
    "mmio_exits"
} else {
    "mmio_exit_user"
};
/// The pool is one for all tests of a process.
static POOL: Mutex<()> = Mutex::new(());

/// 2 MiB hugepages of the host, reserved until this is dropped. Only one test has some at a time;
/// others wait.
pub struct Hugepages {
    _pool: MutexGuard<'static, ()>,
}

impl Hugepages {
    /// Reserves `count` pages.
    ///
    /// # Errors
    /// If the host does not have them.
    pub fn reserve(count: u64) -> Result<Self> {
        let pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let path = Path::new(HUGEPAGES).join("nr_hugepages");
        fs::write(&path, count.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let hugepages = Self { _pool: pool };
        let total = hugepages.counter("nr_hugepages")?;
        ensure!(total == count, "the host gave {total} of {count} hugepages");
        Ok(hugepages)
    }

    /// Pages that nobody uses.
    ///
    /// # Errors
    /// If the host does not say.
    pub fn free(&self) -> Result<u64> {
        self.counter("free_hugepages")
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let path = Path::new(HUGEPAGES).join(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{name} {text:?}"))
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(HUGEPAGES).join("nr_hugepages"), "0");
    }
}

/// Host CPUs that each vCPU thread of a process may run on, in order of the vCPUs, as
/// proc_pid_status(5) lists them.
///
/// # Errors
/// If the process is not there or is no VMM.
pub fn vcpu_affinity(pid: u32) -> Result<Vec<String>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let folder = entry?.path();
        let name = fs::read_to_string(folder.join("comm"))?;
        let Some(index) = name.trim().strip_prefix("vcpu") else {
            continue;
        };
        let status = fs::read_to_string(folder.join("status"))?;
        let key = "Cpus_allowed_list:";
        let allowed = status.lines().find_map(|line| line.strip_prefix(key));
        let allowed = allowed.context("no affinity")?.trim().to_owned();
        threads.push((index.parse::<u32>()?, allowed));
    }
    threads.sort();
    Ok(threads.into_iter().map(|(_, allowed)| allowed).collect())
}

/// Time between two looks at how long threads have run.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What every thread of process `pid` does, for a report of one that should have ended: its state
/// and the signals that are pending, blocked and ignored, where it waits in the kernel and in which system
/// call (proc_pid_wchan(5), proc_pid_syscall(5)), its kernel stack where that may be read, and
/// twice, a moment apart, its time on a CPU.
///
/// A thread whose state is `R` and whose time stands still is ready to run and gets no CPU: then it
/// is the host that makes everyone wait.
pub fn threads(pid: u32) -> String {
    let folder = format!("/proc/{pid}/task");
    let tasks = match fs::read_dir(&folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())),
        Err(error) => return format!("\n{folder}: {error}"),
    };
    let ran = |task: PathBuf| (read(&task, "schedstat"), task);
    let tasks: Vec<_> = tasks.map(ran).collect();
    thread::sleep(LOOK_AGAIN);
    let mut text = format!("\n--- threads of process {pid}");
    for (ran_before, task) in tasks {
        let status = read(&task, "status");
        let told = ["State:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:"];
        let told = status
            .lines()
            .filter(|line| told.iter().any(|key| line.starts_with(key)));
        let _ = write!(
            text,
            "\n{} {:?}: {}\n  waits in {}, system call {}\n  nanoseconds on a CPU, in its queue, \
             and turns: {ran_before}, {LOOK_AGAIN:?} later {}\n{}",
            read(&task, "comm"),
            task.file_name().unwrap_or_default(),
            told.collect::<Vec<_>>().join(", ").replace('\t', " "),
            read(&task, "wchan"),
            read(&task, "syscall"),
            read(&task, "schedstat"),
            read(&task, "stack"),
        );
    }
    text
}

/// What a file of /proc says, or why it does not.
fn read(folder: &Path, name: &str) -> String {
    match fs::read_to_string(folder.join(name)) {
        Ok(text) => text.trim_end().to_owned(),
        Err(error) => format!("{name}: {error}"),
    }
}

/// One mapping of a process, from /proc/PID/smaps (proc_pid_smaps(5)).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// File or purpose; empty for anonymous memory.
    pub name: String,
    /// Where it begins in its file, in bytes.
    pub offset: u64,
    /// Bytes of address space.
    pub size: u64,
    /// Bytes resident; hugetlbfs pages are not counted here.
    pub rss: u64,
    /// Bytes of private and shared hugetlbfs pages.
    pub hugetlb: u64,
    /// Bytes of anonymous transparent hugepages.
    pub anon_huge: u64,
    /// Two-letter flags: `sh` shared, `mg` mergeable, `hg` hugepages advised, `ht` hugetlbfs.
    pub flags: Vec<String>,
}

impl Mapping {
    /// Whether a VMM has guest RAM there. Advice on a part splits a mapping, so RAM is told by what
    /// all of it has: no core dumps (`dd`).
    pub fn is_guest_ram(&self) -> bool {
        self.size >= 1 << 20 && self.flags.iter().any(|flag| flag == "dd")
    }
}

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Threads.
    pub threads: usize,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Bytes of address space that are guest RAM.
    pub guest_ram: u64,
    /// Bytes resident that are not guest RAM.
    pub own_memory: u64,
}

/// What KVM has counted for the guest of VMM `pid`, by the name of a file in debugfs. Only root can tell.
///
/// # Errors
/// The process is gone, or KVM does not count that.
pub fn kvm_counter(pid: u32, name: &str) -> Result<u64> {
    let prefix = format!("{pid}-");
    let folders = fs::read_dir(KVM_COUNTERS).context("KVM's counters cannot be read")?;
    let mut folders = folders.filter_map(|entry| Some(entry.ok()?.path()));
    let folder = folders.find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(&prefix)
    });
    let folder = folder.with_context(|| format!("no guest of {pid} in {KVM_COUNTERS}"))?;
    let path = folder.join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.trim()
        .parse()
        .with_context(|| format!("{name} is {text:?}"))
}

/// What VMM `pid` uses.
///
/// # Errors
/// If the process is gone.
pub fn usage(pid: u32) -> Result<Usage> {
    let count = |what: &str| -> Result<usize> {
        let path = format!("/proc/{pid}/{what}");
        let entries = fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(entries.count())
    };
    let (ram, own): (Vec<_>, Vec<_>) = mappings(pid)?.into_iter().partition(Mapping::is_guest_ram);
    Ok(Usage {
        threads: count("task")?,
        descriptors: count("fd")?,
        guest_ram: ram.iter().map(|mapping| mapping.size).sum(),
        own_memory: own.iter().map(|mapping| mapping.rss).sum(),
    })
}

/// The mappings of process `pid`.
///
/// # Errors
/// If the process is gone or the file is not understood.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse(&text).with_context(|| format!("{path} is not understood"))
}

fn parse(smaps: &str) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().context("an empty line")?;
        let Some(key) = first.strip_suffix(':') else {
            // address range, permissions, offset, device, inode, name
            let offset = words.nth(1).context("no offset")?;
            mappings.push(Mapping {
                offset: u64::from_str_radix(offset, 16).context("offset")?,
                name: words.skip(2).collect::<Vec<_>>().join(" "),
                ..Mapping::default()
            });
            continue;
        };
        let mapping = mappings.last_mut().context("a field before any mapping")?;
        let mut kib = || -> Result<u64> {
            let number: u64 = words.next().context("no number")?.parse()?;
            Ok(number * 1024)
        };
        match key {
            "Size" => mapping.size = kib()?,
            "Rss" => mapping.rss = kib()?,
            "AnonHugePages" => mapping.anon_huge = kib()?,
            "Private_Hugetlb" | "Shared_Hugetlb" => mapping.hugetlb += kib()?,
            "VmFlags" => mapping.flags = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    Ok(mappings)
}

/// Where the pages of one mapping of a process are, from /proc/PID/numa_maps (numa(7)).
#[derive(Debug, PartialEq, Eq)]
pub struct Placement {
    /// The memory policy, such as `default` or `bind:0`.
    pub policy: String,
    /// Resident bytes by node.
    pub nodes: BTreeMap<u32, u64>,
}

/// Where the pages of process `pid` are, mapping by mapping.
///
/// # Errors
/// If the process is gone, the host has no NUMA, or the file is not understood.
pub fn placements(pid: u32) -> Result<Vec<Placement>> {
    let path = format!("/proc/{pid}/numa_maps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let lines = text.lines().map(parse_placement);
    lines
        .collect::<Result<_>>()
        .with_context(|| format!("{path} is not understood"))
}

fn parse_placement(line: &str) -> Result<Placement> {
    let mut words = line.split_whitespace().skip(1);
    let policy = words.next().context("no policy")?.to_owned();
    let mut pages = BTreeMap::new();
    let mut page_size = 0;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        if key == "kernelpagesize_kB" {
            page_size = value.parse::<u64>()? * 1024;
        } else if let Some(Ok(node)) = key.strip_prefix('N').map(str::parse::<u32>) {
            pages.insert(node, value.parse::<u64>()?);
        }
    }
    let bytes = |(node, count)| (node, count * page_size);
    Ok(Placement {
        policy,
        nodes: pages.into_iter().map(bytes).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Instant;

    use super::*;

    #[test]
    fn reads_smaps() {
        let text = "\
7f0000000000-7f0020000000 rw-s 0a000000 00:01 1029 /memfd:ram (deleted)
Size:             524288 kB
Rss:               10240 kB
AnonHugePages:         0 kB
Shared_Hugetlb:     4096 kB
Private_Hugetlb:    2048 kB
VmFlags: rd wr sh mr mw me ms sd mg
7f0020000000-7f0020001000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   4 kB
VmFlags: rd wr
";
        let mappings = parse(text).unwrap();
        assert_eq!(
            mappings[0],
            Mapping {
                name: "/memfd:ram (deleted)".to_owned(),
                offset: 160 << 20,
                size: 512 << 20,
                rss: 10 << 20,
                hugetlb: 6 << 20,
                anon_huge: 0,
                flags: "rd wr sh mr mw me ms sd mg"
                    .split(' ')
                    .map(str::to_owned)
                    .collect(),
            }
        );
        assert_eq!(mappings[1].name, "");
        assert_eq!(mappings[1].rss, 4096);
        assert_eq!(mappings.len(), 2);
    }

    #[test]
    fn guest_ram_is_large_and_not_dumped() {
        let ram = Mapping {
            size: 1 << 20,
            flags: vec!["rd".to_owned(), "dd".to_owned()],
            ..Mapping::default()
        };
        assert!(ram.is_guest_ram());
        assert!(!Mapping { size: 4096, ..ram }.is_guest_ram());
        let heap = Mapping {
            size: 1 << 20,
            ..Mapping::default()
        };
        assert!(!heap.is_guest_ram());
    }

    #[test]
    fn counts_what_this_process_uses() {
        let pid = std::process::id();
        let before = usage(pid).unwrap();
        let files = [(); 8].map(|()| fs::File::open("/proc/self/stat").unwrap());
        let after = usage(pid).unwrap();
        // Other tests run meanwhile, and have files of their own.
        assert!(before.threads > 0 && before.own_memory > 0);
        assert!(after.descriptors >= files.len());
        assert_eq!(after.guest_ram, 0);
    }

    #[test]
    fn says_what_a_thread_waits_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        let waiting = thread::Builder::new().name("reads a pipe".to_owned());
        let waiting = waiting.spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
        let read = if cfg!(target_arch = "x86_64") { 0 } else { 63 };
        let call = format!(", system call {read} 0x");
        let start = Instant::now();
        loop {
            let text = threads(std::process::id());
            let at = text.find("\nreads a pipe \"").unwrap_or(text.len());
            let mut lines = text[at..].lines().skip(1);
            let state = lines.next().unwrap_or_default();
            let place = lines.next().unwrap_or_default();
            let run = lines.next().unwrap_or_default();
            if state.contains("State: S") && place.contains(&call) {
                for signals in ["ShdPnd: 0", "SigBlk: 0", "SigIgn: 0"] {
                    assert!(state.contains(signals), "{text}");
                }
                assert!(place.starts_with("  waits in "), "{text}");
                let run = run.split([',', ':']).nth(3).unwrap();
                assert!(run.split(' ').filter_map(|n| n.parse::<u64>().ok()).count() == 3);
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{text}");
        }
        drop(writer);
        waiting.unwrap().join().unwrap();
        assert!(threads(u32::MAX).contains("/task: "));
    }

    #[test]
    fn reads_numa_maps() {
        let line = "7f00 bind:0-1 file=/dev/Name anon=3 N0=1 dirty=3 N10=2 kernelpagesize_kB=2048";
        let expected = Placement {
            policy: "bind:0-1".to_owned(),
            nodes: BTreeMap::from([(0, 2 << 20), (10, 4 << 20)]),
        };
        assert_eq!(parse_placement(line).unwrap(), expected);
        let untouched = parse_placement("7f00 default").unwrap();
        assert_eq!(untouched.policy, "default");
        assert!(untouched.nodes.is_empty());
    }

    #[test]
    fn reads_this_process() {
        let mappings = mappings(std::process::id()).unwrap();
        let stack = mappings.iter().find(|mapping| mapping.name == "[stack]");
        assert!(stack.is_some_and(|stack| stack.rss > 0), "{mappings:?}");
    }
}
