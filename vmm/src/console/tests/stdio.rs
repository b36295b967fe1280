//! The `tty` mode, in child processes with standard streams of the test's choice: the child is this
//! test binary, told by an environment variable what to do.
#![expect(
    unsafe_code,
    reason = "raises signals and moves process groups on purpose"
)]

use std::env;
use std::io::{BufRead, BufReader, Seek};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Child, Command, ExitStatus, Stdio};

use super::queue::Sizes;
use super::*;
use crate::console::pty::Pty;
use crate::console::terminal;

const ROLE: &str = "CONSOLE_TEST_ROLE";

/// A command that runs this binary in the given role.
fn child(role: &str, prefix: &[&str]) -> Command {
    let exe = env::current_exe().unwrap();
    let mut words = prefix.iter().map(Into::into).chain([exe.into_os_string()]);
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .args(["--ignored", "--exact", "--nocapture"])
        .arg(format!(
            "{}::act",
            module_path!().split_once("::").unwrap().1
        ))
        .env(ROLE, role)
        .stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "what the other tests' child processes do"]
fn act() {
    let Ok(role) = env::var(ROLE) else { return };
    if role == "shell" {
        return shell();
    }
    if role == "screen" {
        return screen();
    }
    let backend = Backend::open(&Mode::Tty).unwrap();
    let mut port = backend.port();
    let fifo = Fifo::attach(&port, 16);
    let mut manager = EventManager::<Backend>::new().unwrap();
    manager.add_subscriber(backend);
    eprintln!("ready");
    let count = role.parse().unwrap_or(1);
    let mut bytes = Vec::new();
    let start = Instant::now();
    let mut turns = 0;
    while bytes.len() < count && start.elapsed() < PATIENCE {
        turns += manager.run_with_timeout(5).unwrap();
        bytes.extend(fifo.drain());
        if role == "idle" && start.elapsed() > Duration::from_millis(300) {
            assert!(turns < 20, "{turns} events without input");
            return;
        }
    }
    if let Ok(count) = role.parse::<usize>() {
        assert!(bytes == pattern(count));
        return port.write_all(b"<complete>").unwrap();
    }
    end(&role, manager);
}

/// Ends the process in the way that is asked for.
fn end(role: &str, manager: EventManager<Backend>) {
    match role {
        "return" => return,
        _ => std::mem::forget(manager),
    }
    match role {
        "exit" => {
            terminal::restore();
            process::exit(0)
        }
        "panic" => panic!("as asked"),
        "fault" => {
            let nowhere = std::ptr::without_provenance_mut::<u8>(8);
            // SAFETY: the fault is what is being tested.
            unsafe { nowhere.write_volatile(1) }
        }
        "overflow" => {
            fn deeper(depth: u64) -> u64 {
                if std::hint::black_box(depth) == u64::MAX {
                    return 0;
                }
                std::hint::black_box(deeper(depth + 1)) + depth
            }
            deeper(0);
        }
        _ => {
            let signal = role.strip_prefix("signal ").unwrap().parse().unwrap();
            // SAFETY: the signal is what is being tested.
            unsafe { libc::raise(signal) };
        }
    }
    unreachable!("{role} returned");
}

/// A session leader with a background job, which it brings to the foreground when it is told to.
fn shell() {
    let mut job = child("return", &[])
        .process_group(0)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    io::stdin().read_line(&mut String::new()).unwrap();
    // SAFETY: takes integers; has no memory effects.
    let result = unsafe { libc::tcsetpgrp(0, i32::try_from(job.id()).unwrap()) };
    assert_eq!(result, 0);
    assert!(job.wait().unwrap().success());
}

/// Resizes a terminal at once, as its user's terminal emulator does (`stty` sets columns and then rows).
pub(super) fn resize(path: &Path, columns: u16, rows: u16) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = open_slave(path);
    // SAFETY: the request reads one winsize.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0);
}

/// Waits until the terminal has got another size, and tells of it.
fn screen() {
    let backend = Backend::open_for_queue(&Mode::Tty).unwrap();
    let sizes = Sizes::attach(&backend.port());
    let mut manager = EventManager::<Backend>::new().unwrap();
    manager.add_subscriber(backend);
    eprintln!("ready");
    // Only the signal ends this.
    let start = Instant::now();
    while sizes.last().is_none() && start.elapsed() < PATIENCE {
        manager.run_with_timeout(-1).unwrap();
    }
    let Size { columns, rows } = sizes.last().unwrap();
    eprintln!("{columns}x{rows}");
}

#[test]
fn the_terminal_tells_of_its_size_by_a_signal() {
    let pty = Pty::open().unwrap();
    let terminal = open_slave(pty.path());
    let mut command = child("screen", &["setsid", "--ctty", "--wait"]);
    command
        .stdin(terminal.try_clone().unwrap())
        .stdout(terminal);
    // SAFETY: changes the mask of the child alone, and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            signal::block_signal(libc::SIGWINCH).map_err(|_| io::Error::other("sigmask"))
        });
    }
    let mut child = command.spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let mut lines = BufReader::new(stderr).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "ready"));
    resize(pty.path(), 123, 45);
    assert!(lines.any(|line| line == "123x45"));
    // What else is printed must not block it.
    let printed = thread::spawn(move || lines.count());
    let mut output = File::try_clone(&pty.master).unwrap();
    wait_for("the child's end", || {
        let _ = output.read(&mut [0; 4096]);
        child
            .try_wait()
            .unwrap()
            .is_some_and(|status| status.success())
    });
    printed.join().unwrap();
}

/// A terminal with a child process on it.
struct OnTerminal {
    pty: Pty,
    terminal: File,
    child: Child,
}

impl OnTerminal {
    fn spawn(role: &str, prefix: &[&str]) -> Self {
        let pty = Pty::open().unwrap();
        let terminal = open_slave(pty.path());
        let mut settings = terminal::settings(&terminal).unwrap();
        settings.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
        settings.c_oflag |= libc::OPOST;
        settings.c_iflag |= libc::ICRNL;
        terminal::apply(&terminal, &settings).unwrap();
        let mut child = child(role, prefix)
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "ready"));
        // What else the child says must not block it.
        thread::spawn(move || lines.count());
        Self {
            pty,
            terminal,
            child,
        }
    }

    fn is_raw(&self) -> bool {
        let settings = terminal::settings(&self.terminal).unwrap();
        let cooked = libc::ICANON | libc::ECHO | libc::ISIG;
        let raw = settings.c_lflag & cooked == 0;
        assert!(raw || settings.c_lflag & cooked == cooked);
        assert_eq!(raw, settings.c_oflag & libc::OPOST == 0);
        assert_eq!(raw, settings.c_iflag & libc::ICRNL == 0);
        raw
    }

    /// Types a Ctrl-C, which makes the child end.
    fn end(mut self) -> ExitStatus {
        assert!(self.is_raw());
        (&*self.pty.master).write_all(b"\x03").unwrap();
        let mut status = None;
        wait_for("the child's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(!self.is_raw(), "left raw");
        let flags = status_flags(&self.terminal);
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        status.unwrap()
    }
}

fn status_flags(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    // SAFETY: takes integers; has no memory effects.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }
}

#[test]
fn terminal_is_restored_on_return_and_exit() {
    assert!(OnTerminal::spawn("return", &[]).end().success());
    assert!(OnTerminal::spawn("exit", &[]).end().success());
}

#[test]
fn terminal_is_restored_on_panic() {
    assert_eq!(OnTerminal::spawn("panic", &[]).end().code(), Some(101));
}

#[test]
fn terminal_is_restored_on_fatal_signals() {
    for signal in [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
        libc::SIGSYS,
    ] {
        let status = OnTerminal::spawn(&format!("signal {signal}"), &[]).end();
        assert_eq!(status.signal(), Some(signal));
    }
}

#[test]
fn terminal_is_restored_on_faults() {
    let status = OnTerminal::spawn("fault", &[]).end();
    assert_eq!(status.signal(), Some(libc::SIGSEGV));
    // The standard library's handler still has the last word.
    let status = OnTerminal::spawn("overflow", &[]).end();
    assert_eq!(status.signal(), Some(libc::SIGABRT));
}

#[test]
fn background_process_leaves_the_terminal_alone_until_brought_forward() {
    let terminal = OnTerminal::spawn("shell", &["setsid", "--ctty", "--wait"]);
    assert!(!terminal.is_raw());
    (&*terminal.pty.master).write_all(b"\n").unwrap();
    wait_for("raw mode", || terminal.is_raw());
    assert!(terminal.end().success());
}

/// Runs a child that takes `count` bytes of input, and returns whether it got them.
fn takes_all(count: usize, stdin: impl Into<Stdio>, feed: impl FnOnce(&mut Child)) -> bool {
    let mut child = child(&count.to_string(), &[])
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    feed(&mut child);
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success() && printed.contains("<complete>")
}

#[test]
fn standard_input_may_be_a_pipe_or_a_file() {
    let count = 300_000;
    assert!(takes_all(count, Stdio::piped(), |child| {
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&pattern(count))
            .unwrap();
    }));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(count)).unwrap();
    file.rewind().unwrap();
    assert!(takes_all(count, file, |_| ()));
}

#[test]
fn ended_standard_input_leaves_the_loop_idle() {
    let empty = tempfile::tempfile().unwrap();
    let (reader, writer) = io::pipe().unwrap();
    drop(writer);
    for stdin in [Stdio::null(), empty.into(), reader.into()] {
        let status = child("idle", &[])
            .stdin(stdin)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }
}
