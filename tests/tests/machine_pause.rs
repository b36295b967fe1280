//! Machines that are paused, go on, and are given NMIs, with probe guests on this machine's KVM.
//!
//! Guests count in RAM that is a file, so that it can be seen whether they run.
#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "asks how much waits in a pipe")]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tests::probe;
use vmm::config::cli;
use vmm::console::{Backend, Mode};
use vmm::events::Events;
use vmm::machine::{Consoles, Control, Ending, Host, Lent, Machine, Payload, prepare_kicks};
use vmm::passthrough::Passthrough;
use vmm::plan::Plan;
use vmm::virtio::{Backends, GivenTaps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::signal::{SIGRTMIN, block_signal};

/// The longest that a guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// In which a machine is to stop or start.
const LIMIT: Duration = Duration::from_millis(100);
/// How long a guest is watched that is to stand still.
const WATCHED: Duration = Duration::from_millis(20);

/// Where the probe counts: see `tests/probe/probe.h`.
const COUNTERS: u64 = 0x9000;
const NMI_COUNTERS: u64 = 0xa000;

/// A running machine without the main loop around it.
struct Guest {
    machine: Option<Machine>,
    control: Arc<Control>,
    ram: File,
    cpus: u64,
    _folder: TempDir,
}

impl Guest {
    fn start(cpus: u64, words: &str) -> Self {
        Self::start_with(cpus, words, Consoles::default())
    }

    fn start_with(cpus: u64, words: &str, consoles: Consoles) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ram");
        let mut ram = File::options();
        let ram = ram.read(true).write(true).create_new(true).open(&path);
        let ram = ram.unwrap();
        ram.set_len(64 << 20).unwrap();
        let zone = format!("id=ram,size=64M,shared=on,file={}", path.display());
        let kernel = probe::build().to_str().unwrap();
        let boot = format!("boot={cpus}");
        #[rustfmt::skip]
        let arguments = [
            "cloud-hypervisor", "--kernel", kernel, "--cmdline", words, "--cpus", &boot,
            "--memory", "size=0", "--memory-zone", &zone, "--serial", "null", "--console", "off",
        ];
        let cli::Command::Run {
            config: Some(config),
            ..
        } = cli::parse(arguments.map(OsString::from)).expect("a proper command line")
        else {
            panic!("nothing to run");
        };
        let host = Host::open().unwrap();
        let losses = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let passthrough = Passthrough::open(&config, &losses, &Events::none()).unwrap();
        let plan = Plan::new(&config, &host.facts).unwrap();
        let mut payload = Payload::open(&config.payload).unwrap();
        let control = Arc::new(Control::new().unwrap());
        prepare_kicks().unwrap();
        let machine = Machine::start(
            &host,
            &plan,
            &config,
            &mut payload,
            &Lent {
                passthrough: &passthrough,
                backends: &Backends::open(&config, None, &GivenTaps::default()).unwrap(),
                consoles: &consoles,
            },
            &control,
        );
        Self {
            machine: Some(machine.unwrap()),
            control,
            ram,
            cpus,
            _folder: folder,
        }
    }

    /// A guest all of whose vCPUs count.
    fn counting(cpus: u64) -> Self {
        let guest = Self::start(cpus, "nmis countcpus count");
        guest.wait_for_progress();
        guest
    }

    fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    fn read(&self, start: u64) -> Vec<u32> {
        let read = |cpu| {
            let mut bytes = [0; 4];
            self.ram
                .read_exact_at(&mut bytes, start + 64 * cpu)
                .unwrap();
            u32::from_le_bytes(bytes)
        };
        (0..self.cpus).map(read).collect()
    }

    fn counters(&self) -> Vec<u32> {
        self.read(COUNTERS)
    }

    /// Waits until each vCPU has counted on at `start`.
    fn wait_for_more(&self, start: u64, before: &[u32]) {
        wait_for(&format!("{start:#x} from {before:?}"), || {
            let now = self.read(start);
            now.iter().zip(before).all(|(now, before)| now != before)
        });
    }

    fn wait_for_progress(&self) {
        self.wait_for_more(COUNTERS, &self.counters());
    }

    fn assert_still(&self) {
        let before = self.counters();
        thread::sleep(WATCHED);
        assert_eq!(self.counters(), before);
    }

    /// Gives all vCPUs an NMI, and waits until they have seen to it.
    fn nmi(&self) {
        let before = self.read(NMI_COUNTERS);
        self.machine().nmi().unwrap();
        self.wait_for_more(NMI_COUNTERS, &before);
    }
}

impl Drop for Guest {
    /// Whatever it was at, it ends.
    fn drop(&mut self) {
        let start = Instant::now();
        drop(self.machine.take());
        let ending = self.control.take();
        if !thread::panicking() {
            assert!(start.elapsed() < PATIENCE);
            assert!(!matches!(ending, Some(Ending::Failed(_))), "{ending:?}");
        }
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

fn timed(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

/// The time in the middle: another program may take the host's CPUs now and then.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let guest = Guest::counting(4);
    for _ in 0..10 {
        guest.machine().pause().unwrap();
        assert!(guest.machine().is_paused());
        guest.assert_still();
        // Twice is as good as once.
        guest.machine().pause().unwrap();
        guest.assert_still();
        guest.machine().resume();
        assert!(!guest.machine().is_paused());
        guest.machine().resume();
        guest.wait_for_progress();
    }
}

/// vCPUs that are halted, and those that nobody has started.
#[test]
fn idle_guests_stop_and_start_in_time() {
    for (cpus, words) in [
        (1, "nmis"),
        (4, "nmis haltcpus"),
        (4, "nmis"),
        (64, "nmis haltcpus"),
    ] {
        let guest = Guest::start(cpus, words);
        let halted = words.contains("haltcpus");
        wait_for("idle vCPUs", || {
            let counters = guest.counters();
            let awaited = if halted { counters.len() } else { 1 };
            counters.iter().take(awaited).all(|count| *count == 1)
        });
        let mut pauses = Vec::new();
        let mut resumes = Vec::new();
        let mut starts = Vec::new();
        for _ in 0..9 {
            pauses.push(timed(|| guest.machine().pause().unwrap()));
            // Delivered when it goes on, which shows that it does.
            let before = guest.read(NMI_COUNTERS);
            guest.machine().nmi().unwrap();
            thread::sleep(WATCHED);
            assert_eq!(guest.read(NMI_COUNTERS), before);
            resumes.push(timed(|| guest.machine().resume()));
            let runs =
                |(cpu, (now, before)): (usize, (&u32, &u32))| now != before || (cpu > 0 && !halted);
            starts.push(timed(|| {
                wait_for("NMIs", || {
                    let now = guest.read(NMI_COUNTERS);
                    now.iter().zip(&before).enumerate().all(runs)
                });
            }));
        }
        let [pause, resume, start] = [pauses, resumes, starts].map(median);
        println!(
            "{cpus} vCPUs, {words}: {pause:?} to pause, {resume:?} to resume, {start:?} to run"
        );
        assert!(pause < LIMIT, "{pause:?}");
        assert!(resume + start < LIMIT, "{resume:?} and {start:?}");
    }
}

/// vCPUs that wait for their start-up IPI go on waiting, and can still be started.
#[test]
fn vcpus_are_started_after_a_pause() {
    let guest = Guest::start(4, "nmis countcpus count");
    // Whatever it has come to by now.
    for _ in 0..20 {
        guest.machine().pause().unwrap();
        guest.machine().resume();
    }
    guest.wait_for_progress();
    guest.nmi();
}

/// The CPU time that the thread of this name has taken, in clock ticks, as a rule of 10 ms
/// (proc_pid_stat(5), fields 14 and 15).
fn cpu_ticks(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let stat = stats
        .into_iter()
        .find(|stat| stat.contains(&format!("({name})")));
    let stat = stat.unwrap_or_else(|| panic!("no thread {name}"));
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let times = fields.split(' ').skip(11).take(2);
    times.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// No kick makes a vCPU's thread busy that has nothing to run: one that is halted, and one that has not been started
/// and must not hear of NMIs.
#[test]
fn idle_vcpus_stay_idle_after_kicks() {
    for (words, unstarted) in [("nmis", true), ("nmis haltcpus", false)] {
        // Such a vCPU's name in no other test of this process.
        let cpus = if unstarted { 66 } else { 64 };
        let guest = Guest::start(cpus, words);
        let awaited = if unstarted { 1 } else { 64 };
        wait_for("idle vCPUs", || {
            guest
                .counters()
                .iter()
                .take(awaited)
                .all(|count| *count == 1)
        });
        let name = format!("vcpu{}", cpus - 1);
        for _ in 0..3 {
            guest.machine().nmi().unwrap();
            guest.machine().pause().unwrap();
            guest.machine().resume();
        }
        guest.machine().nmi().unwrap();
        thread::sleep(WATCHED);
        let before = cpu_ticks(&name);
        thread::sleep(Duration::from_millis(500));
        let ticks = cpu_ticks(&name) - before;
        assert!(ticks < 10, "{name} is busy, {words}: {ticks} ticks");
    }
}

/// A vCPU whose thread cannot be stopped, here because it is deaf to signals, does not hang whoever
/// asks for a pause, and the guest runs on.
#[test]
fn a_vcpu_that_does_not_stop_is_named_and_the_guest_runs_on() {
    let folder = tempfile::tempdir().unwrap();
    let (backend, reader) = pipe(folder.path());
    let consoles = Consoles {
        serial: Some(backend.port()),
        debug: None,
        virtio: None,
    };
    let guest = thread::spawn(|| {
        // Threads inherit what is blocked.
        block_signal(SIGRTMIN()).unwrap();
        Guest::start_with(1, "chatter", consoles)
    });
    let guest = guest.join().unwrap();
    wait_for("a full pipe", || waiting(&reader) == PIPE);
    let start = Instant::now();
    let error = guest.machine().pause().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(20));
    let text = error.to_string();
    assert!(text.contains("vCPU 0 did not stop within 5 s"), "{text}");
    assert!(!guest.machine().is_paused());
    // It is not stopped, nor is any of its output lost.
    let mut all = String::new();
    while all.len() < 4 * PIPE {
        all += &read_some(&reader);
    }
    let (_, letters) = all.split_once("chatter: done\n").unwrap();
    assert_chatter(letters);
    // Now it can be: it waits for nobody.
    let done = Arc::new(AtomicBool::new(false));
    let drain = thread::spawn({
        let done = Arc::clone(&done);
        move || {
            while !done.load(Ordering::Relaxed) {
                read_some(&reader);
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    guest.machine().pause().unwrap();
    drop(guest);
    done.store(true, Ordering::Relaxed);
    drain.join().unwrap();
}

#[test]
fn nmis_reach_all_vcpus_and_leave_them_running() {
    let guest = Guest::counting(4);
    for _ in 0..50 {
        guest.nmi();
        guest.wait_for_progress();
    }
}

fn cycles(count: u32) {
    let guest = Guest::counting(4);
    for cycle in 0..count {
        match cycle % 4 {
            0 => {
                let before = guest.read(NMI_COUNTERS);
                guest.machine().nmi().unwrap();
                guest.machine().pause().unwrap();
                guest.machine().resume();
                guest.wait_for_more(NMI_COUNTERS, &before);
            }
            1 => guest.nmi(),
            2 => {
                guest.machine().pause().unwrap();
                let before = guest.counters();
                assert_eq!(guest.counters(), before);
                guest.machine().resume();
                // Again before all have left.
                guest.machine().pause().unwrap();
                guest.machine().resume();
            }
            _ => {
                guest.machine().pause().unwrap();
                let before = guest.read(NMI_COUNTERS);
                guest.machine().nmi().unwrap();
                guest.machine().resume();
                guest.wait_for_more(NMI_COUNTERS, &before);
            }
        }
    }
    guest.wait_for_progress();
}

#[test]
fn no_request_is_lost_by_a_busy_guest() {
    cycles(400);
}

#[test]
#[ignore = "10,000 times, run by scripts/test --full"]
fn no_request_is_lost_by_a_busy_guest_in_the_long_run() {
    cycles(10_000);
}

#[test]
fn a_paused_machine_can_be_dropped() {
    for _ in 0..10 {
        let guest = Guest::counting(4);
        guest.machine().pause().unwrap();
        drop(guest);
    }
}

/// A guest that has ended in any way, and with a triple fault the vCPU's thread, keeps nobody waiting.
#[test]
fn a_guest_that_has_ended_can_be_paused() {
    for (words, failed) in [("nmis poweroff", false), ("triple", true)] {
        let guest = Guest::start(2, words);
        wait_for("the end", || guest.control.event().read().is_ok());
        guest.machine().pause().unwrap();
        guest.machine().nmi().unwrap();
        guest.machine().resume();
        let ending = guest.control.take();
        assert_eq!(
            matches!(ending, Some(Ending::Failed(_))),
            failed,
            "{ending:?}"
        );
        assert!(failed || matches!(ending, Some(Ending::PowerOff)));
    }
}

/// A pipe that the guest's output goes to, and its reader.
fn pipe(folder: &Path) -> (Backend, File) {
    let path = folder.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    let backend = Backend::open(&Mode::File(path.clone())).unwrap();
    let mut reader = OpenOptions::new();
    reader.read(true).custom_flags(libc::O_NONBLOCK);
    (backend, reader.open(path).unwrap())
}

/// All that there is to read.
fn read_some(mut pipe: &File) -> String {
    let mut text = Vec::new();
    let error = pipe.read_to_end(&mut text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    String::from_utf8(text).unwrap()
}

/// That the letters are all there, in order.
fn assert_chatter(letters: &str) {
    let expected = "abcdefghijklmnopqrstuvwxyz\n".bytes().cycle();
    assert!(letters.len() > PIPE);
    assert!(
        letters.bytes().eq(expected.take(letters.len())),
        "{letters}"
    );
}

/// How much fits into a pipe (pipe(7)).
const PIPE: usize = 1 << 16;

/// A guest that prints more than anybody reads waits for its reader. It can be paused all the same, prints
/// nothing while it is, and loses nothing.
#[test]
fn a_guest_that_waits_for_the_reader_of_its_console_can_be_paused() {
    let folder = tempfile::tempdir().unwrap();
    let (backend, reader) = pipe(folder.path());
    let consoles = Consoles {
        serial: Some(backend.port()),
        debug: None,
        virtio: None,
    };
    let guest = Guest::start_with(1, "chatter", consoles);
    let mut text = String::new();
    for round in 0..4 {
        wait_for("a full pipe", || waiting(&reader) == PIPE);
        // It is about to wait.
        thread::sleep(Duration::from_millis(10));
        let times = (0..5).map(|_| {
            let time = timed(|| guest.machine().pause().unwrap());
            if round % 2 == 1 {
                guest.machine().resume();
                thread::sleep(Duration::from_millis(2));
                guest.machine().pause().unwrap();
            }
            guest.machine().resume();
            time
        });
        assert!(median(times.collect()) < LIMIT);
        guest.machine().pause().unwrap();
        text += &read_some(&reader);
        thread::sleep(WATCHED);
        assert_eq!(waiting(&reader), 0);
        guest.machine().resume();
    }
    let (_, letters) = text.split_once("chatter: done\n").unwrap();
    assert_chatter(letters);
    // Neither does it keep a paused machine from ending.
    guest.machine().pause().unwrap();
}

/// The last byte before a pause is printed though the guest never prints again.
#[test]
fn what_a_vcpu_could_not_print_before_a_pause_comes_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let (backend, reader) = pipe(folder.path());
    let mut consoles = Consoles {
        serial: Some(backend.port()),
        debug: None,
        virtio: None,
    };
    // Leaves room for all that the guest says but for its last byte.
    std::io::Write::write_all(consoles.serial.as_mut().unwrap(), &[b'.'; PIPE - 20]).unwrap();
    let guest = Guest::start_with(1, "", consoles);
    wait_for("a full pipe", || waiting(&reader) == PIPE);
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(5));
        guest.machine().pause().unwrap();
        guest.machine().resume();
    }
    guest.machine().pause().unwrap();
    assert_eq!(read_some(&reader).len(), PIPE);
    thread::sleep(WATCHED);
    assert_eq!(waiting(&reader), 0);
    guest.machine().resume();
    let mut rest = String::new();
    wait_for("the rest", || {
        if waiting(&reader) > 0 {
            rest += &read_some(&reader);
        }
        !rest.is_empty()
    });
    // Behind "probe: up\nprobe: end".
    assert_eq!(rest, "\n");
}

/// Bytes that wait in a pipe.
fn waiting(pipe: &File) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes an integer (tty_ioctl(4)).
    let answer = unsafe { ioctl_with_mut_ref(pipe, libc::FIONREAD, &mut count) };
    assert_eq!(answer, 0);
    usize::try_from(count).unwrap()
}
