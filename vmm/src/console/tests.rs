//! Consoles on real pseudo-terminals, sockets and files, in a real event loop.

mod queue;
mod stdio;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;
use tempfile::TempDir;
use vmm_sys_util::signal::{self, Killable};

use super::output::Ring;
use super::*;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A backend in an event loop of its own.
struct Running {
    port: Port,
    turns: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new(backend: Backend) -> Self {
        let port = backend.port();
        let turns = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (turns, stop) = (turns.clone(), stop.clone());
            move || {
                let mut manager = EventManager::<Backend>::new().unwrap();
                manager.add_subscriber(backend);
                while !stop.load(Ordering::Relaxed) {
                    let events = manager.run_with_timeout(5).unwrap();
                    turns.fetch_add(events, Ordering::Relaxed);
                }
            }
        });
        Self {
            port,
            turns,
            stop,
            thread: Some(thread),
        }
    }

    fn open(mode: &Mode) -> Self {
        Self::new(Backend::open(mode).unwrap())
    }

    /// Checks that the loop has nothing to do.
    fn assert_idle(&self) {
        thread::sleep(Duration::from_millis(50));
        let before = self.turns.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(100));
        assert_eq!(self.turns.load(Ordering::Relaxed), before);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// A device with a small input queue.
struct Fifo {
    port: Port,
    capacity: usize,
    state: Mutex<FifoState>,
}

#[derive(Default)]
struct FifoState {
    queue: VecDeque<u8>,
    starved: bool,
}

impl Fifo {
    fn attach(port: &Port, capacity: usize) -> Arc<Self> {
        let fifo = Arc::new(Self {
            port: port.clone(),
            capacity,
            state: Mutex::default(),
        });
        port.attach(fifo.clone());
        fifo
    }

    /// What the guest does: empties the queue.
    fn drain(&self) -> Vec<u8> {
        let mut state = lock(&self.state);
        let bytes = state.queue.drain(..).collect();
        if std::mem::take(&mut state.starved) {
            self.port.room_again();
        }
        bytes
    }

    /// Drains until `count` bytes have come.
    fn receive(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        wait_for("input", || {
            bytes.extend(self.drain());
            bytes.len() >= count
        });
        bytes
    }
}

impl InputSink for Fifo {
    fn accept(&self, bytes: &[u8]) -> usize {
        let mut state = lock(&self.state);
        let count = bytes.len().min(self.capacity - state.queue.len());
        state.queue.extend(&bytes[..count]);
        state.starved = count < bytes.len();
        count
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "timed out waiting for {what}");
        thread::sleep(Duration::from_micros(20));
    }
}

/// Bytes in which every position can be told from its neighbours.
fn pattern(count: usize) -> Vec<u8> {
    (0..count)
        .map(|i| b'0' + u8::try_from((i ^ (i >> 6) ^ (i >> 12)) % 64).unwrap())
        .collect()
}

fn open_slave(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .unwrap()
}

fn connect(path: &Path) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn read_exactly(mut from: impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

fn socket_path() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    (dir, path)
}

#[test]
fn pty_keeps_its_path_and_settings_from_one_user_to_the_next() {
    let backend = Backend::open(&Mode::Pty).unwrap();
    let path = backend.pty_path().unwrap().to_owned();
    let running = Running::new(backend);
    let mut port = running.port.clone();
    let fifo = Fifo::attach(&port, 16);

    port.write_all(b"early\r\n").unwrap();
    for round in 0..2 {
        let mut user = open_slave(&path);
        if round == 0 {
            assert_eq!(read_exactly(&user, 7), b"early\r\n");
        }
        port.write_all(b"login: ").unwrap();
        assert_eq!(read_exactly(&user, 7), b"login: ");
        user.write_all(b"root\x03\n").unwrap();
        assert_eq!(fifo.receive(6), b"root\x03\n");
        drop(user);
        running.assert_idle();
    }
}

#[test]
fn pty_without_reader_never_blocks_and_keeps_the_newest_output() {
    let backend = Backend::open(&Mode::Pty).unwrap();
    let path = backend.pty_path().unwrap().to_owned();
    let running = Running::new(backend);
    let mut port = running.port.clone();
    let sent = pattern(3 * BACKLOG);
    for chunk in sent.chunks(1000) {
        port.write_all(chunk).unwrap();
    }
    running.assert_idle();

    port.write_all(b"!").unwrap();
    let mut user = open_slave(&path);
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while received.last() != Some(&b'!') {
        let count = user.read(&mut buffer).unwrap();
        received.extend_from_slice(&buffer[..count]);
    }
    let newest = BACKLOG - 1;
    assert!(received.len() < 2 * BACKLOG);
    assert!(
        received[received.len() - 1 - newest..received.len() - 1] == sent[sent.len() - newest..]
    );
    running.assert_idle();
}

#[test]
fn pty_paste_arrives_complete_at_a_slow_guest() {
    let backend = Backend::open(&Mode::Pty).unwrap();
    let path = backend.pty_path().unwrap().to_owned();
    let running = Running::new(backend);
    let fifo = Fifo::attach(&running.port, 64);
    let sent = pattern(1 << 20);
    let paste = thread::spawn({
        let sent = sent.clone();
        move || {
            let mut user = open_slave(&path);
            user.write_all(&sent).unwrap();
            user
        }
    });
    assert!(fifo.receive(sent.len()) == sent);
    drop(paste.join().unwrap());
    running.assert_idle();
}

#[test]
fn a_full_guest_leaves_the_loop_idle() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let fifo = Fifo::attach(&running.port, 16);
    let mut client = connect(&path);
    client.write_all(&pattern(10_000)).unwrap();
    wait_for("a full fifo", || lock(&fifo.state).starved);
    running.assert_idle();
    // Not even a hang-up changes that, and nothing of what the client left is lost.
    drop(client);
    running.assert_idle();
    assert!(fifo.receive(10_000) == pattern(10_000));
    running.assert_idle();
}

#[test]
fn socket_paste_arrives_complete_after_the_client_has_left() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let fifo = Fifo::attach(&running.port, 64);
    let sent = pattern(1 << 20);
    let paste = thread::spawn({
        let sent = sent.clone();
        move || connect(&path).write_all(&sent).unwrap()
    });
    assert!(fifo.receive(sent.len()) == sent);
    paste.join().unwrap();
    running.assert_idle();
}

#[test]
fn socket_output_waits_for_the_first_client_and_follows_the_newest() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let mut port = running.port.clone();
    port.write_all(b"boot").unwrap();
    let first = connect(&path);
    assert_eq!(read_exactly(&first, 4), b"boot");

    let second = connect(&path);
    assert_eq!((&first).read(&mut [0; 1]).unwrap(), 0);
    port.write_all(b"more").unwrap();
    assert_eq!(read_exactly(&second, 4), b"more");

    drop(second);
    running.assert_idle();
    port.write_all(b"while away").unwrap();
    assert_eq!(read_exactly(connect(&path), 10), b"while away");
}

#[test]
fn last_output_is_delivered_though_the_machine_has_hung_up() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let client = connect(&path);
    running.port.hang_up();
    running.port.clone().write_all(b"Power down").unwrap();
    assert_eq!(read_exactly(&client, 10), b"Power down");
    drop(running);
    assert_eq!((&client).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn socket_client_that_sends_no_more_still_gets_output() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let fifo = Fifo::attach(&running.port, 16);
    let mut client = connect(&path);
    client.write_all(b"ls\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fifo.receive(3), b"ls\n");
    running.assert_idle();
    running.port.clone().write_all(b"files").unwrap();
    assert_eq!(read_exactly(&client, 5), b"files");
}

#[test]
fn slow_socket_client_never_blocks_the_guest() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let mut port = running.port.clone();
    let mut client = connect(&path);
    port.write_all(b"x").unwrap();
    assert_eq!(read_exactly(&client, 1), b"x");

    let sent = pattern(3 * BACKLOG);
    port.write_all(&sent).unwrap();
    port.write_all(b"!").unwrap();
    running.assert_idle();
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while received.last() != Some(&b'!') {
        let count = client.read(&mut buffer).unwrap();
        received.extend_from_slice(&buffer[..count]);
    }
    assert!(received.len() > BACKLOG);
    let newest = BACKLOG - 1;
    assert!(
        received[received.len() - 1 - newest..received.len() - 1] == sent[sent.len() - newest..]
    );
}

#[test]
fn input_between_two_machines_goes_to_the_second() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let first = Fifo::attach(&running.port, 2);
    let mut client = connect(&path);
    client.write_all(b"abcd").unwrap();
    wait_for("a full fifo", || lock(&first.state).starved);
    running.port.detach();
    client.write_all(b"efgh").unwrap();
    running.assert_idle();

    let second = Fifo::attach(&running.port, 2);
    assert_eq!(second.receive(6), b"cdefgh");
    assert_eq!(first.drain(), b"ab");
}

#[test]
fn socket_of_a_dead_process_is_replaced_and_removed_at_the_end() {
    let (_dir, path) = socket_path();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let running = Running::open(&Mode::Socket(path.clone()));
    running.port.clone().write_all(b"x").unwrap();
    assert_eq!(read_exactly(connect(&path), 1), b"x");
    drop(running);
    assert!(!path.exists());
}

#[test]
fn socket_in_use_is_refused_without_disturbing_its_client() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let client = connect(&path);
    let error = Backend::open(&Mode::Socket(path.clone())).err().unwrap();
    assert!(matches!(error, ConsoleError::SocketInUse { path: p } if p == path));
    running.port.clone().write_all(b"still here").unwrap();
    assert_eq!(read_exactly(&client, 10), b"still here");
}

#[test]
fn what_is_not_our_socket_is_left_alone() {
    let (_dir, path) = socket_path();
    fs::write(&path, "precious").unwrap();
    let error = Backend::open(&Mode::Socket(path.clone())).err().unwrap();
    assert!(matches!(error, ConsoleError::NotASocket { .. }));
    assert_eq!(fs::read(&path).unwrap(), b"precious");

    fs::remove_file(&path).unwrap();
    let backend = Backend::open(&Mode::Socket(path.clone())).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "somebody else's").unwrap();
    drop(backend);
    assert!(path.exists());
}

#[test]
fn errors_name_the_path() {
    let missing = Path::new("/nonexistent/console");
    for mode in [Mode::File(missing.into()), Mode::Socket(missing.into())] {
        let error = Backend::open(&mode).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/console"));
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.to_string().contains("No such file"));
    }
}

/// Whoever mistypes another option does not lose what the last guest printed.
#[test]
fn file_stays_as_it_was_if_no_machine_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let open = || Backend::open(&Mode::File(path.clone())).unwrap();
    let backend = open();
    assert!(path.exists());
    drop(backend);
    assert!(!path.exists());
    let backend = open();
    let other = dir.path().join("other");
    fs::write(&other, "somebody else's").unwrap();
    fs::rename(&other, &path).unwrap();
    drop(backend);
    drop(open());
    assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
    // A machine that prints nothing has run all the same.
    fs::remove_file(&path).unwrap();
    open().port().pick_up();
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn file_is_emptied_for_the_first_machine_and_then_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "from the last time").unwrap();
    let mut port = Backend::open(&Mode::File(path.clone())).unwrap().port();
    // Dropping the backend hangs the port up.
    port.write_all(b"lost").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"from the last time");

    let backend = Backend::open(&Mode::File(path.clone())).unwrap();
    backend.port().pick_up();
    backend.port().write_all(b"one ").unwrap();
    backend.port().hang_up();
    backend.port().pick_up();
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    log.write_all(b"two ").unwrap();
    backend.port().write_all(b"three").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one two three");
}

#[test]
fn a_pipe_is_opened_before_anybody_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let mode = Mode::File(path.clone());
    let opening = thread::spawn(move || Backend::open(&mode).unwrap());
    wait_for("the pipe", || opening.is_finished());
    let backend = opening.join().unwrap();
    let mut port = backend.port();
    port.pick_up();
    port.write_all(b"early ").unwrap();
    let reader = File::open(&path).unwrap();
    port.write_all(b"late").unwrap();
    drop((backend, port));
    let mut output = String::new();
    (&reader).read_to_string(&mut output).unwrap();
    assert_eq!(output, "early late");
}

#[test]
fn a_failed_write_is_reported() {
    let backend = Backend::open(&Mode::File("/dev/full".into())).unwrap();
    let error = backend.port().write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

#[test]
fn hanging_up_frees_a_vcpu_that_nobody_reads() {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let kick = signal::SIGRTMIN();
    signal::register_signal_handler(kick, nothing).unwrap();

    let (_reader, writer) = io::pipe().unwrap();
    let output = Output::direct(File::from(OwnedFd::from(writer)));
    let mut port = Port::new(output, None).unwrap();
    let vcpu = thread::spawn({
        let mut port = port.clone();
        move || port.write_all(&pattern(1 << 20)).unwrap()
    });
    thread::sleep(Duration::from_millis(50));
    vcpu.kill(kick).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(!vcpu.is_finished());
    port.hang_up();
    vcpu.kill(kick).unwrap();
    wait_for("the vCPU", || vcpu.is_finished());
    port.write_all(b"dropped").unwrap();
}

/// As a paused machine's vCPU: what nobody reads is left, and waited for later, in order.
#[test]
fn a_held_console_keeps_no_vcpu_waiting_and_loses_nothing() {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let kick = signal::SIGRTMIN();
    signal::register_signal_handler(kick, nothing).unwrap();

    let (mut reader, writer) = io::pipe().unwrap();
    let output = Output::direct(File::from(OwnedFd::from(writer)));
    let mut port = Port::new(output, None).unwrap();
    let bytes = pattern(1 << 20);
    let (half, rest) = bytes.split_at(1 << 19);
    let stages = Arc::new(AtomicUsize::new(0));
    let vcpu = thread::spawn({
        let (mut port, half, stages) = (port.clone(), half.to_vec(), stages.clone());
        move || {
            port.write_all(&half).unwrap();
            stages.store(1, Ordering::SeqCst);
            wait_for("the end of the pause", || {
                stages.load(Ordering::SeqCst) == 2
            });
            port.settle();
        }
    });
    thread::sleep(Duration::from_millis(20));
    port.hold();
    wait_for("the vCPU", || {
        vcpu.kill(kick).unwrap();
        stages.load(Ordering::SeqCst) == 1
    });
    // Others do not wait either, nor do they overtake.
    let (second, third) = rest.split_at(1000);
    port.write_all(second).unwrap();
    // Who has left nothing waits for nothing.
    thread::spawn({
        let port = port.clone();
        move || port.settle()
    })
    .join()
    .unwrap();
    port.go_on();
    stages.store(2, Ordering::SeqCst);
    thread::sleep(Duration::from_millis(20));
    assert!(!vcpu.is_finished());
    let writer = thread::spawn({
        let (mut port, third) = (port.clone(), third.to_vec());
        move || port.write_all(&third).unwrap()
    });
    let mut received = vec![0; bytes.len()];
    reader.read_exact(&mut received).unwrap();
    assert!(received == bytes);
    vcpu.join().unwrap();
    writer.join().unwrap();
}

#[test]
fn input_waits_on_the_host_while_the_console_is_held() {
    let (_dir, path) = socket_path();
    let running = Running::open(&Mode::Socket(path.clone()));
    let fifo = Fifo::attach(&running.port, 4);
    let mut client = connect(&path);
    client.write_all(b"ab").unwrap();
    assert_eq!(fifo.receive(2), b"ab");
    running.port.hold();
    client.write_all(b"cdefgh").unwrap();
    running.port.clone().write_all(b"out").unwrap();
    assert_eq!(read_exactly(&client, 3), b"out");
    running.assert_idle();
    assert!(fifo.drain().is_empty());
    running.port.go_on();
    assert_eq!(fifo.receive(6), b"cdefgh");
    // The next machine is not held.
    running.port.hold();
    running.port.pick_up();
    client.write_all(b"i").unwrap();
    assert_eq!(fifo.receive(1), b"i");
}

#[test]
fn null_takes_everything() {
    let running = Running::open(&Mode::Null);
    running.port.clone().write_all(&pattern(1000)).unwrap();
    running.assert_idle();
}

#[test]
fn output_only_console_discards_input() {
    let (_dir, path) = socket_path();
    let backend = Backend::open_output(&Mode::Socket(path.clone())).unwrap();
    let running = Running::new(backend);
    let mut client = connect(&path);
    // More than all buffers on the way hold.
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client.write_all(&pattern(4 << 20)).unwrap();
    running.port.clone().write_all(b"out").unwrap();
    assert_eq!(read_exactly(&client, 3), b"out");
}

proptest! {
    #[test]
    fn ring_holds_the_newest_bytes(
        capacity in 0usize..40,
        steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..60), 0usize..30), 0..20),
    ) {
        let mut ring = Ring::new(capacity);
        let mut model: Vec<u8> = Vec::new();
        for (bytes, consumed) in steps {
            model.extend(&bytes);
            let lost = model.len().saturating_sub(capacity);
            model.drain(..lost);
            prop_assert_eq!(ring.push(&bytes), lost);
            prop_assert_eq!(ring.is_empty(), model.is_empty());
            prop_assert!(model.starts_with(ring.front()));
            prop_assert_eq!(ring.front().is_empty(), model.is_empty());
            model.drain(..consumed.min(model.len()));
            ring.consume(consumed);
        }
    }
}
