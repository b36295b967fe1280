//! The virtio console, as Linux drives it. Its driver is part of the lab's kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{Initramfs, Lab, Vmm};

use crate::CMDLINE;

/// A guest's functions.
const FUNCTIONS: &str = "
consoles() { grep -lx 0x1043 /sys/bus/pci/devices/*/device | wc -l; }
serial=/dev/ttyS0
[ -e /dev/ttyAMA0 ] && serial=/dev/ttyAMA0
size_is() {
    until [ \"$(stty size </dev/hvc0)\" = \"$1\" ]; do sleep 0.2; done
    echo \"size $1\"
}
";

/// A guest with these options, and no others for consoles.
fn guest(script: &str, cmdline: &str, options: &[&str], folder: &Path) -> Result<Vmm> {
    let initramfs = folder.join("initramfs");
    Initramfs::new(&format!("{FUNCTIONS}{script}")).write_to(&initramfs)?;
    let vmm = Vmm::new()?
        .arg("--kernel")
        .arg(Lab::get()?.kernel())
        .arg("--initramfs")
        .arg(&initramfs)
        .args(["--cmdline", cmdline]);
    Ok(vmm.args(options))
}

/// A guest whose serial port is on standard input and output.
fn guest_with(script: &str, console: &str, folder: &Path) -> Result<Vmm> {
    let options = ["--serial", "tty", "--console", console];
    guest(script, CMDLINE, &options, folder)
}

/// What is read without waiting.
struct Reader {
    file: File,
    seen: Vec<u8>,
    deadline: Instant,
}

impl Reader {
    fn open(path: impl AsRef<Path>) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        Ok(Self {
            file: options.open(path)?,
            seen: Vec::new(),
            deadline: Instant::now() + Lab::get()?.scaled(Duration::from_secs(15)),
        })
    }

    fn wait_until(&mut self, what: &str, is_there: impl Fn(&[u8]) -> bool) -> Result<()> {
        let mut buffer = [0; 4096];
        while !is_there(&self.seen) {
            let end = self.seen.len().saturating_sub(1000);
            let text = String::from_utf8_lossy(&self.seen[end..]);
            ensure!(Instant::now() < self.deadline, "no {what} in {text:?}");
            match self.file.read(&mut buffer) {
                Ok(0) => bail!("the end before {what} in {text:?}"),
                Ok(length) => self.seen.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait_for(&mut self, text: &str) -> Result<()> {
        self.wait_until(text, |seen| String::from_utf8_lossy(seen).contains(text))
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn fifo(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("fifo");
    run(Command::new("mkfifo").arg(&path))?;
    Ok(path)
}

/// Init and the kernel print on it, it takes input, and it follows the size of its terminal.
#[test]
fn a_pty_is_the_console_of_a_guest() -> Result<()> {
    let script = "echo '<0>kernel says' >/dev/kmsg
        echo 'init says'
        read -r answer </dev/console
        echo heard: $answer
        size_is '30 100'
        size_is '43 132'
        echo only serial >$serial";
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("serial");
    let serial = format!("file={}", file.display());
    let cmdline = format!("{CMDLINE} console=hvc0");
    let options = ["--serial", &serial, "--console", "pty"];
    let vmm = guest(script, &cmdline, &options, folder.path())?.spawn()?;
    let line = vmm.wait_for_error_line("--console is at /dev/pts/")?;
    let path = line.rsplit(' ').next().context("no path")?.to_owned();
    let mut reader = Reader::open(&path)?;
    reader.wait_for("kernel says")?;
    reader.wait_for("init says")?;
    let mut writer = OpenOptions::new().write(true).open(&path)?;
    writer.write_all(b"over the pty\n")?;
    reader.wait_for("heard: over the pty")?;
    for [rows, columns] in [["30", "100"], ["43", "132"]] {
        let mut stty = Command::new("stty");
        run(stty.args(["-F", &path, "rows", rows, "cols", columns]))?;
        reader.wait_for(&format!("size {rows} {columns}"))?;
    }
    vmm.wait()?.success()?;
    let serial = fs::read_to_string(file)?;
    ensure!(serial.contains("only serial"), "{serial}");
    ensure!(!serial.contains("heard"), "{serial}");
    Ok(())
}

/// Consoles beside each other, over a reboot, and a driver that comes and goes.
#[test]
fn it_works_beside_the_serial_port_after_resets_and_reboots() -> Result<()> {
    let script = "
        print() {
            for number in 0 1 2 3 4 5 6 7; do
                (echo \"$1\" >/dev/hvc$number) 2>/dev/null && return
            done
            echo no console prints $1
        }
        print 'boot on virtio'
        virtio=$(basename /sys/bus/virtio/drivers/virtio_console/virtio*)
        for round in 1 2 3 4 5; do
            echo $virtio >/sys/bus/virtio/drivers/virtio_console/unbind
            echo $virtio >/sys/bus/virtio/drivers/virtio_console/bind
            print \"round $round on virtio\"
        done
        echo consoles: $(consoles)
        echo ready
        read -r order </dev/console
        [ $order = reboot ] && reboot -f && sleep 1000
        dmesg | grep -iE 'virtio.*(fail|error|warn)'";
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("console");
    let console = format!("file={},id=screen,pci_device_id=9", file.display());
    let mut vmm = guest_with(script, &console, folder.path())?.spawn()?;
    for (boot, order) in [(1, "reboot\n"), (2, "end\n")] {
        vmm.wait_for_lines("ready", boot)?;
        vmm.write(order)?;
    }
    let outcome = vmm.wait()?.success()?;
    let serial = outcome.stdout;
    assert_eq!(serial.matches("consoles: 1").count(), 2, "{serial}");
    ensure!(!serial.contains("on virtio"), "{serial}");
    ensure!(!serial.to_lowercase().contains("fail"), "{serial}");
    let rounds = (1..=5).map(|round| format!("round {round} on virtio\r\n"));
    let boot = format!("boot on virtio\r\n{}", rounds.collect::<String>());
    assert_eq!(fs::read_to_string(file)?, boot.repeat(2));
    Ok(())
}

/// Without being asked for, it is the terminal; a serial port that wants the terminal has it.
#[test]
fn the_default_is_the_terminal_where_that_is_free() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = "echo consoles: $(consoles) | tee /dev/hvc0";
    let outcome = guest(script, CMDLINE, &[], folder.path())?
        .run()?
        .success()?;
    ensure!(outcome.stdout.contains("consoles: 1"), "{}", outcome.stdout);
    let outcome = guest(
        "echo consoles: $(consoles)",
        CMDLINE,
        &["--serial", "tty"],
        folder.path(),
    )?
    .run()?
    .success()?;
    ensure!(outcome.stdout.contains("consoles: 0"), "{}", outcome.stdout);
    Ok(())
}

#[test]
#[ignore = "another guest for one mode, run by scripts/test --full"]
fn null_is_a_console_that_nobody_reads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = "head -c 1000000 /dev/zero >/dev/hvc0; echo consoles: $(consoles)";
    let outcome = guest_with(script, "null", folder.path())?
        .run()?
        .success()?;
    ensure!(outcome.stdout.contains("consoles: 1"), "{}", outcome.stdout);
    ensure!(!outcome.stdout.contains('\0'));
    Ok(())
}

/// Writes more than fits on the way, while another vCPU goes on.
const FLOOD: &str = "echo writing
    head -c 400000 /dev/zero | tr '\\0' x >/dev/hvc0
    echo written";

/// The guest waits, and what it has written is all there.
#[test]
fn a_slow_reader_gets_everything() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = fifo(folder.path())?;
    let console = format!("file={}", path.display());
    let vmm = guest_with(FLOOD, &console, folder.path())?
        .args(["--cpus", "boot=2"])
        .spawn()?;
    vmm.wait_for_line("writing")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!vmm.stdout().contains("written"), "{}", vmm.stdout());
    let mut reader = Reader::open(&path)?;
    reader.wait_until("all of it", |seen| seen.len() >= 400_000)?;
    vmm.wait_for_line("written")?;
    vmm.wait()?.success()?;
    ensure!(reader.seen.iter().all(|byte| *byte == b'x'));
    assert_eq!(reader.seen.len(), 400_000);
    Ok(())
}

/// A guest that waits for a reader can be ended.
#[test]
fn a_reader_that_never_reads_keeps_nothing_from_ending() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let console = format!("file={}", fifo(folder.path())?.display());
    let vmm = guest_with(FLOOD, &console, folder.path())?
        .args(["--cpus", "boot=2"])
        .spawn()?;
    vmm.wait_for_line("writing")?;
    std::thread::sleep(Duration::from_secs(2));
    let start = Instant::now();
    vmm.signal("TERM")?;
    let outcome = vmm.wait()?.success()?;
    ensure!(!outcome.stdout.contains("written"), "{}", outcome.stdout);
    let limit = Lab::get()?.scaled(Duration::from_secs(5));
    ensure!(start.elapsed() < limit, "{:?}", start.elapsed());
    Ok(())
}
