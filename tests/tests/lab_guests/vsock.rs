//! Sockets between guest and host, as Linux drives them.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;
use tests::{CMDLINE, Initramfs, Lab, Linux, RunningVmm, Vmm};

/// How long anything may take on hardware.
const PATIENCE: Duration = Duration::from_secs(10);

/// The guest does what it is told on one port, and says what it is told on another.
const SERVE: &str = "
modprobe vmw_vsock_virtio_transport
/bin/vsock listen 1000 /bin/busybox cat &
/bin/vsock listen 1001 /bin/busybox sh
";
const ECHO: u32 = 1000;
const SHELL: u32 = 1001;

fn initramfs() -> Initramfs {
    Initramfs::new(SERVE).drivers().program("vsock")
}

/// What the host talks to.
struct Sockets {
    path: PathBuf,
    patience: Duration,
}

impl Sockets {
    fn new(path: PathBuf) -> Result<Self> {
        let patience = Lab::get()?.scaled(PATIENCE);
        Ok(Self { path, patience })
    }

    /// Asks for a port of the guest once; nothing if it is refused.
    fn try_connect(&self, port: u32) -> Result<Option<UnixStream>> {
        let mut stream = UnixStream::connect(&self.path).context("nobody listens")?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => answer.extend(byte),
                // Reset, where what was asked was not read.
                Ok(_) | Err(_) => return Ok(None),
            }
        }
        let answer = String::from_utf8(answer)?;
        let host_port = answer
            .strip_prefix("OK ")
            .and_then(|rest| rest.strip_suffix('\n'));
        ensure!(
            host_port.is_some_and(|port| port.parse::<u32>().is_ok()),
            "{answer:?}"
        );
        Ok(Some(stream))
    }

    /// Asks until the guest listens.
    fn connect(&self, port: u32) -> Result<UnixStream> {
        let start = Instant::now();
        loop {
            if let Some(stream) = self.try_connect(port)? {
                return Ok(stream);
            }
            ensure!(start.elapsed() < self.patience, "port {port} is refused");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Has the guest run a script, and returns what it prints.
    fn run(&self, script: &str) -> Result<String> {
        let mut stream = self.connect(SHELL)?;
        stream.write_all(script.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut printed = String::new();
        stream.read_to_string(&mut printed).context("no answer")?;
        Ok(printed)
    }

    /// Listens for what the guest connects to.
    fn listen(&self, port: u32) -> Result<UnixListener> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        Ok(UnixListener::bind(path)?)
    }
}

/// A VMM with a guest that serves.
struct Guest {
    vmm: RunningVmm,
    sockets: Sockets,
    folder: TempDir,
}

impl Guest {
    fn boot() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("vsock");
        let vsock = format!("cid=4000,socket={}", path.display());
        let vmm = Vmm::boot(&initramfs(), CMDLINE)?
            .args(["--vsock", &vsock])
            .timeout(Duration::from_secs(120))
            .spawn()?;
        let start = Instant::now();
        let sockets = Sockets::new(path)?;
        while !sockets.path.exists() {
            ensure!(start.elapsed() < sockets.patience, "there is no socket");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            vmm,
            sockets,
            folder,
        })
    }

    /// Ends the guest.
    fn end(self) -> Result<()> {
        let Self {
            vmm,
            sockets,
            folder,
        } = self;
        // It may be gone before it has answered.
        let _ = sockets.run("poweroff -f");
        let outcome = vmm.wait()?.success()?;
        let stderr = outcome.stderr;
        ensure!(!stderr.contains("vsock"), "{stderr}");
        ensure!(!sockets.path.exists(), "the socket is still there");
        drop(folder);
        Ok(())
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ (at >> 12) as u8;
    (0..bytes).map(byte).collect()
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut program = std::process::Command::new(Lab::get()?.asset("busybox"));
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), bytes)?;
    let output = program.arg("sha256sum").arg(file.path()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let sum = text.split_whitespace().next();
    Ok(sum.context("no checksum")?.to_owned())
}

/// Sends bytes to the guest, which sends them back, and compares them as they come.
fn echo(sockets: &Sockets, bytes: &[u8]) -> Result<()> {
    let mut stream = sockets.connect(ECHO)?;
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            writer.write_all(bytes)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut buffer = vec![0; 1 << 20];
        let mut rest = bytes;
        loop {
            let count = stream.read(&mut buffer).context("nothing comes back")?;
            if count == 0 {
                break;
            }
            let (expected, later) = rest.split_at_checked(count).context("too much")?;
            ensure!(
                buffer.get(..count) == Some(expected),
                "other bytes come back"
            );
            rest = later;
        }
        ensure!(rest.is_empty(), "{} bytes do not come back", rest.len());
        match sent.join() {
            Ok(sent) => Ok(sent?),
            Err(_) => bail!("the sender panicked"),
        }
    })
}

#[test]
fn bytes_go_both_ways() -> Result<()> {
    let guest = Guest::boot()?;
    let sockets = &guest.sockets;
    let facts = "/bin/vsock cid
        for device in /sys/bus/pci/devices/*; do
            if [ $(cat $device/device) = 0x1053 ]; then cat $device/vendor $device/class; fi
        done";
    assert_eq!(sockets.run(facts)?, "4000\n0x1af4\n0x078000\n");

    // Of the guest, and checked there.
    let listener = sockets.listen(50)?;
    let uploaded = thread::spawn(move || -> Result<_> {
        let (mut stream, _) = listener.accept()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        // It has ended its half alone.
        stream.write_all(sha256(&bytes)?.as_bytes())?;
        Ok(bytes.len())
    });
    let upload = "dd if=/dev/urandom of=/tmp/random bs=1M count=8 2>/dev/null
        sha256sum </tmp/random | cut -d ' ' -f 1
        /bin/vsock connect 2 50 </tmp/random";
    let printed = sockets.run(upload)?;
    let (theirs, ours) = printed.trim().split_once('\n').context(printed.clone())?;
    assert_eq!(theirs, ours);
    assert_eq!(
        uploaded.join().map_err(|_| anyhow::anyhow!("panicked"))??,
        8 << 20
    );

    // Of the host, and checked there.
    let bytes = pattern(8 << 20);
    let listener = sockets.listen(51)?;
    let sum = sha256(&bytes)?;
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            Ok(stream.write_all(&bytes)?)
        });
        let printed = sockets.run("/bin/vsock connect 2 51 </dev/null | sha256sum")?;
        assert_eq!(printed.split_whitespace().next(), Some(&sum[..]));
        Ok(())
    })?;

    // A large transfer, both ways at once.
    echo(sockets, &pattern(64 << 20))?;

    // Many at once.
    thread::scope(|scope| -> Result<()> {
        let one = |number: usize| {
            let bytes = &bytes;
            scope.spawn(move || echo(sockets, &bytes[number * 1000..][..100_000]))
        };
        let all: Vec<_> = (0..64).map(one).collect();
        for one in all {
            one.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        }
        Ok(())
    })?;

    // Refused, on both sides.
    ensure!(sockets.try_connect(77)?.is_none(), "nobody listens there");
    let refused = sockets.run("/bin/vsock connect 2 77 </dev/null 2>&1")?;
    ensure!(refused.contains("Connection reset"), "{refused}");
    let complaints = sockets.run("dmesg | grep -iE 'vsock.*(fail|error|warn)'")?;
    assert_eq!(complaints, "");
    guest.end()
}

/// Connects and is hung up on, all the time.
fn disturb(path: &Path, done: &AtomicBool) -> Result<u32> {
    let mut connected = 0;
    while !done.load(Ordering::Relaxed) {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let asked = stream.write_all(b"CONNECT 1000\n");
        let mut answer = [0; 3];
        if asked.is_ok() && stream.read_exact(&mut answer).is_ok() {
            connected += 1;
            let _ = stream.write_all(&[0; 10_000]);
        }
    }
    Ok(connected)
}

#[test]
fn the_driver_and_the_guest_come_and_go() -> Result<()> {
    const REBIND: &str = "(
        sleep 0.2
        cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport
        device=$(basename virtio*)
        for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            echo $device >unbind
            echo $device >bind
            sleep 0.05
        done
        echo done >/tmp/rebound
    ) >/dev/null 2>&1 </dev/null &";
    let guest = Guest::boot()?;
    let sockets = &guest.sockets;
    sockets.run("echo before >/tmp/boot")?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let disturbers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| disturb(&sockets.path, &done)))
            .collect();
        let driven = (|| {
            sockets.run(REBIND)?;
            let start = Instant::now();
            // An answer may get lost with the driver.
            while sockets.run("cat /tmp/rebound").ok().as_deref() != Some("done\n") {
                ensure!(
                    start.elapsed() < 3 * sockets.patience,
                    "it is still bound and unbound"
                );
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        let mut connected = 0;
        for disturber in disturbers {
            connected += disturber
                .join()
                .map_err(|_| anyhow::anyhow!("panicked"))??;
        }
        driven?;
        ensure!(connected > 0, "nobody was connected meanwhile");
        Ok(())
    })?;
    echo(sockets, &pattern(1 << 20))?;
    assert_eq!(sockets.run("cat /tmp/boot")?, "before\n");

    // A connection ends with the boot that it is of; the socket stays.
    let mut idle = sockets.connect(ECHO)?;
    let _ = sockets.run("reboot -f");
    let mut nothing = [0];
    assert_eq!(idle.read(&mut nothing).unwrap_or(0), 0);
    assert_eq!(
        sockets.run("cat /tmp/boot 2>/dev/null; echo again")?,
        "again\n"
    );
    echo(sockets, &pattern(1 << 20))?;
    guest.end()
}

/// What docs/virtio.md shows, over the API.
#[test]
#[ignore = "another guest for its beginning, run by scripts/test --full"]
fn sockets_are_added_and_paused() -> Result<()> {
    let mut linux = Linux::start(&["--no-shutdown"])?;
    let machine = linux.machine(&initramfs(), CMDLINE)?;
    linux.server.put("vm.create", &machine).expect(204);
    let path = linux.server.folder().join("vsock");
    linux.remote(&["add-vsock", &format!("cid=3,socket={}", path.display())])?;
    let another = json!({"cid": 4, "socket": "/run/other"});
    let refused = linux.server.put("vm.add-vsock", &another).expect(400);
    let reasons = refused.reasons().join(" ");
    ensure!(reasons.contains("one such device at most"), "{reasons}");
    ensure!(!path.exists(), "it listens before it is booted");
    linux.boot()?;
    let sockets = Sockets::new(path.clone())?;
    let mut stream = sockets.connect(ECHO)?;
    stream.write_all(b"hello\n")?;
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"hello\n");
    linux.server.act("vm.pause").expect(204);
    stream.write_all(b"again\n")?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    ensure!(stream.read(&mut bytes).is_err(), "it goes on");
    linux.server.act("vm.resume").expect(204);
    stream.set_read_timeout(Some(sockets.patience))?;
    stream.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"again\n");
    // It ends with the boot, and comes back with the next.
    linux.server.act("vm.shutdown").expect(204);
    assert_eq!(stream.read(&mut bytes).unwrap_or(0), 0);
    ensure!(!path.exists(), "the socket is still there");
    linux.boot()?;
    echo(&sockets, &pattern(1 << 16))?;
    Ok(())
}
