//! Every mode of the serial port, output and input.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{Initramfs, Lab, Vmm};

use crate::CMDLINE;

/// Asks for a line on the console and repeats it.
const ECHO: &str = "echo ready
    read answer </dev/console
    echo heard: $answer";

/// A guest whose serial port is not on our standard input and output.
fn guest(script: &str, serial: &str, folder: &Path) -> Result<Vmm> {
    let initramfs = folder.join("initramfs");
    Initramfs::new(script).write_to(&initramfs)?;
    Ok(Vmm::new()?
        .arg("--kernel")
        .arg(Lab::get()?.kernel())
        .arg("--initramfs")
        .arg(&initramfs)
        .args(["--cmdline", CMDLINE, "--console", "off", "--serial", serial]))
}

/// Reads until `text` has come.
fn expect(stream: &mut impl std::io::Read, text: &str, deadline: Instant) -> Result<()> {
    let mut seen = Vec::new();
    let mut buffer = [0; 256];
    while !String::from_utf8_lossy(&seen).contains(text) {
        ensure!(
            Instant::now() < deadline,
            "no {text:?} in {:?}",
            String::from_utf8_lossy(&seen)
        );
        match stream.read(&mut buffer) {
            Ok(0) => bail!(
                "the end before {text:?} in {:?}",
                String::from_utf8_lossy(&seen)
            ),
            Ok(length) => seen.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn deadline() -> Result<Instant> {
    Ok(Instant::now() + Lab::get()?.scaled(Duration::from_secs(10)))
}

#[test]
fn tty_takes_input() -> Result<()> {
    let mut vmm = crate::guest(ECHO)?.spawn()?;
    vmm.wait_for_line("ready")?;
    vmm.write("over the terminal\n")?;
    let outcome = vmm.wait()?.success()?;
    ensure!(
        outcome.stdout.contains("heard: over the terminal"),
        "{}",
        outcome.stdout
    );
    Ok(())
}

/// More than any FIFO or pipe holds, as fast as it goes.
#[test]
fn a_long_paste_arrives_whole() -> Result<()> {
    let script = "stty raw -echo </dev/console
        echo ready
        head -c 65536 /dev/console | md5sum
        stty sane </dev/console";
    let mut vmm = crate::guest(script)?.spawn()?;
    vmm.wait_for_line("ready")?;
    vmm.write(&"0123456789abcde\n".repeat(4096))?;
    let outcome = vmm.wait()?.success()?;
    // yes 0123456789abcde | head -c 65536 | md5sum
    let sum = "00ececfaec0aae2de825c3f02f37d3e8";
    ensure!(outcome.stdout.contains(sum), "{}", outcome.stdout);
    Ok(())
}

#[test]
fn file_gets_the_output() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("console");
    fs::write(&file, "something older")?;
    let serial = format!("file={}", file.display());
    let outcome = guest("echo into the file", &serial, folder.path())?
        .run()?
        .success()?;
    ensure!(outcome.stdout.is_empty(), "{}", outcome.stdout);
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("into the file"), "{text}");
    ensure!(!text.contains("something older"), "{text}");
    Ok(())
}

#[test]
fn null_swallows_the_output() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let outcome = guest("echo to nobody", "null", folder.path())?
        .run()?
        .success()?;
    ensure!(outcome.stdout.is_empty(), "{}", outcome.stdout);
    Ok(())
}

/// Without a port the guest can say nothing, so it says it by how it ends: `reboot` would boot it
/// again, and the VMM would not end.
#[test]
fn off_leaves_no_port() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // /proc/tty/driver lists ports that answered when they were probed.
    let script = "grep -qE ' uart:(16550|PL011|SBSA)' /proc/tty/driver/* && sleep 10000";
    guest(script, "off", folder.path())?.run()?.success()?;
    Ok(())
}

#[test]
fn pty_carries_both_directions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vmm = guest(ECHO, "pty", folder.path())?.spawn()?;
    let line = vmm.wait_for_error_line("--serial is at /dev/pts/")?;
    let path = line.rsplit(' ').next().context("no path")?.to_owned();
    let mut terminal = fs::OpenOptions::new().read(true).write(true).open(&path)?;
    expect(&mut terminal, "ready", deadline()?)?;
    terminal.write_all(b"over the pty\n")?;
    expect(&mut terminal, "heard: over the pty", deadline()?)?;
    // The guest's last words need nobody to read them.
    drop(terminal);
    vmm.wait()?.success()?;
    Ok(())
}

#[test]
fn socket_carries_both_directions_and_is_removed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("serial.sock");
    let serial = format!("socket={}", socket.display());
    let vmm = guest(ECHO, &serial, folder.path())?.spawn()?;
    let until = deadline()?;
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => ensure!(Instant::now() < until, "cannot connect: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    expect(&mut stream, "ready", until)?;
    stream.write_all(b"over the socket\n")?;
    expect(&mut stream, "heard: over the socket", deadline()?)?;
    vmm.wait()?.success()?;
    ensure!(!socket.exists(), "the socket is still there");
    Ok(())
}
