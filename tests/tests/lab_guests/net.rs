//! Network interfaces, as Linux drives them, with taps of the emulated host.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{CMDLINE, Initramfs, Report, Vmm};

/// What every script here has: interfaces by their MAC addresses, and what they do.
pub(super) const TOOLS: &str = "
modprobe virtio_net
nic() { basename $(dirname $(grep -lix $1 /sys/class/net/*/address)); }
up() { ip addr add $2/24 dev $1; ip link set $1 up; }
echoed() { nc $1 $2 </tmp/random | sha256sum; }
facts() { cd /sys/class/net/$1; cat mtu carrier device/features; ls -1 queues; }
count() { cat /sys/class/net/$1/statistics/$2; }
";

/// A server that gives back all that it is sent, on every address; its port.
pub(super) fn echo() -> Result<u16> {
    serve(|mut stream| {
        let mut bytes = [0; 1 << 14];
        while let Ok(count) = stream.read(&mut bytes)
            && count > 0
        {
            stream.write_all(bytes.get(..count).unwrap_or_default())?;
        }
        Ok(stream.shutdown(Shutdown::Write)?)
    })
}

/// A server that says how often it was asked before.
fn counter() -> Result<u16> {
    let mut count = 0;
    serve(move |mut stream| {
        writeln!(stream, "{count}")?;
        count += 1;
        Ok(stream.shutdown(Shutdown::Write)?)
    })
}

fn serve(mut answer: impl FnMut(TcpStream) -> Result<()> + Send + 'static) -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes is missed by its guest's report.
            let _ = answer(stream);
        }
    });
    Ok(port)
}

/// Queues of an interface of this host that frames are given to.
pub(super) fn host_queues(name: &str) -> Result<usize> {
    let folder = format!("/sys/class/net/{name}/queues");
    let names = std::fs::read_dir(&folder).context(folder)?.flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("tx-")).count())
}

pub(super) fn host_attribute(name: &str, attribute: &str) -> Result<String> {
    let path = format!("/sys/class/net/{name}/{attribute}");
    let text = std::fs::read_to_string(&path).context(path)?;
    Ok(text.trim().to_owned())
}

/// Boots, transfers, boots again; then looks at everything. The first interface has two pairs of queues and
/// large packets, the second one leaves nothing to anybody else.
const SCRIPT: &str = "
first=$(nic 52:54:00:00:77:02)
second=$(nic 52:54:00:00:78:02)
up $first 192.168.77.2
up $second 192.168.78.2
dd if=/dev/urandom of=/tmp/random bs=64k count=32 2>/dev/null
sum=$(sha256sum </tmp/random)
if [ \"$(nc 192.168.77.1 COUNTER </dev/null)\" = 0 ]; then
    # Nobody reads what comes back while it reboots.
    nc 192.168.77.1 ECHO </tmp/random >/dev/null &
    nc 192.168.78.1 ECHO </tmp/random >/dev/null
    reboot -f
    sleep 1000
fi
section addresses cat /sys/class/net/$first/address /sys/class/net/$second/address
section first facts $first
section second facts $second
section sum echo \"$sum\"
before=$(count $first rx_packets)
section first_echo echoed 192.168.77.1 ECHO
section first_frames echo $(($(count $first rx_packets) - before))
before=$(count $second rx_packets)
section second_echo echoed 192.168.78.1 ECHO
section second_frames echo $(($(count $second rx_packets) - before))
section ping ping -c 3 -s 8900 192.168.77.1
section fragments sh -c \"sed -n '/^Ip: [0-9]/p' /proc/net/snmp | cut -d ' ' -f 18,20\"
section interrupts sh -c \"grep -c 'virtio.*-\\(input\\|output\\)' /proc/interrupts\"

# A driver that goes and comes back while frames come.
virtio=$(basename $(readlink /sys/class/net/$first/device))
dd if=/tmp/random of=/tmp/some bs=64k count=4 2>/dev/null
for round in 1 2 3 4 5 6; do
    nc 192.168.77.1 ECHO </tmp/random >/dev/null 2>&1 &
    nc=$!
    usleep 20000
    echo $virtio >/sys/bus/virtio/drivers/virtio_net/unbind
    kill $nc 2>/dev/null
    wait $nc 2>/dev/null
    echo $virtio >/sys/bus/virtio/drivers/virtio_net/bind
    first=$(nic 52:54:00:00:77:02)
    up $first 192.168.77.2
done
section again echoed 192.168.77.1 ECHO
section held echo held
section complaints sh -c 'dmesg | grep -iE \"(virtio|eth[0-9]).*(fail|error|warn|timeout)\" || true'
# Until the host has looked.
nc 192.168.77.1 GATE </dev/null >/dev/null
";

struct Run {
    report: Report,
    stderr: String,
    queues: usize,
    host: Vec<String>,
}

/// A server that answers nobody until it is let.
pub(super) struct Gate {
    pub(super) port: u16,
    pub(super) open: std::sync::mpsc::Sender<()>,
}

pub(super) fn gate() -> Result<Gate> {
    let (open, opened) = std::sync::mpsc::channel();
    let port = serve(move |stream| {
        // It is opened, or its owner is gone.
        let _ = opened.recv();
        Ok(stream.shutdown(Shutdown::Both)?)
    })?;
    Ok(Gate { port, open })
}

fn run() -> Result<Run> {
    let gate = gate()?;
    let script = SCRIPT
        .replace("ECHO", &echo()?.to_string())
        .replace("COUNTER", &counter()?.to_string())
        .replace("GATE", &gate.port.to_string());
    let initramfs = Initramfs::new(&format!("{TOOLS}{script}")).drivers();
    let vmm = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--cpus", "boot=2", "--net"])
        .arg(
            "tap=vmtest-a,ip=192.168.77.1,mac=52:54:00:00:77:02,host_mac=52:54:00:00:77:01,mtu=9000,\
             num_queues=4",
        )
        .arg(
            "tap=vmtest-b,ip=192.168.78.1,mask=255.255.255.0,mac=52:54:00:00:78:02,offload_csum=off,\
             offload_tso=off,offload_ufo=off",
        )
        .timeout(Duration::from_secs(90));
    let vmm = vmm.spawn()?;
    vmm.wait_for_line("@@ begin held")?;
    let queues = host_queues("vmtest-a")?;
    let host = ["address", "mtu", "operstate"];
    let host = host.map(|attribute| host_attribute("vmtest-a", attribute));
    let host = host.into_iter().collect::<Result<_>>()?;
    gate.open.send(())?;
    let outcome = vmm.wait()?;
    // What was made for the guest goes with it.
    ensure!(host_queues("vmtest-a").is_err());
    Ok(Run {
        report: outcome.report()?,
        stderr: outcome.stderr,
        queues,
        host,
    })
}

fn shared() -> Result<&'static Run> {
    static RUN: OnceLock<Result<Run, String>> = OnceLock::new();
    let run = RUN.get_or_init(|| run().map_err(|error| format!("{error:#}")));
    run.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn text(section: &str) -> Result<&'static str> {
    Ok(shared()?.report.text(section)?.trim())
}

fn number(section: &str) -> Result<u64> {
    text(section)?.parse().context(section.to_owned())
}

/// A feature among those that Linux shows, which are bits from 0 on.
fn has(features: &str, bit: usize) -> bool {
    features.as_bytes().get(bit) == Some(&b'1')
}

#[test]
fn data_goes_both_ways_over_reboots_and_resets() -> Result<()> {
    let sum = text("sum")?;
    ensure!(sum.len() > 64, "{sum}");
    for section in ["first_echo", "second_echo", "again"] {
        assert_eq!(text(section)?, sum, "{section}");
    }
    assert_eq!(text("complaints")?, "");
    assert_eq!(shared()?.stderr, "");
    Ok(())
}

#[test]
fn the_guest_sees_what_its_interfaces_are() -> Result<()> {
    assert_eq!(text("addresses")?, "52:54:00:00:77:02\n52:54:00:00:78:02");
    let mut first = text("first")?.lines();
    assert_eq!((first.next(), first.next()), (Some("9000"), Some("1")));
    let features = first.next().context("no features")?;
    // Checksums and segmentation both ways, MTU, merged buffers, several pairs.
    let expected = [0, 1, 3, 7, 8, 11, 12, 15, 16, 17, 22];
    ensure!(expected.iter().all(|bit| has(features, *bit)), "{features}");
    let queues: Vec<&str> = first.collect();
    assert_eq!(queues, ["rx-0", "rx-1", "tx-0", "tx-1"]);
    let mut second = text("second")?.lines();
    assert_eq!((second.next(), second.next()), (Some("1500"), Some("1")));
    let features = second.next().context("no features")?;
    let offloads = (0..15).filter(|bit| ![3, 5].contains(bit));
    ensure!(
        offloads.clone().all(|bit| !has(features, bit)),
        "{features}"
    );
    assert_eq!(second.collect::<Vec<_>>(), ["rx-0", "tx-0"]);
    Ok(())
}

/// 2 MiB in segments of 1448 bytes are 1448 frames; large ones are far fewer.
#[test]
fn frames_are_large_where_that_was_asked_for() -> Result<()> {
    let (large, small) = (number("first_frames")?, number("second_frames")?);
    ensure!(small >= 1448, "{small}");
    ensure!(large < 400, "{large}");
    Ok(())
}

#[test]
fn packets_are_as_large_as_was_asked_for() -> Result<()> {
    let ping = text("ping")?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    assert_eq!(text("fragments")?, "0 0");
    Ok(())
}

/// The host's end is as it was asked for, and has a queue for each that the guest uses.
#[test]
fn the_host_has_its_end() -> Result<()> {
    let Run { queues, host, .. } = shared()?;
    assert_eq!(host[..2], ["52:54:00:00:77:01", "9000"]);
    assert_eq!(*queues, 2);
    // Two pairs and one, each direction with an interrupt of its own.
    assert_eq!(number("interrupts")?, 6);
    Ok(())
}

/// Runs a program of the emulated host.
pub(super) fn host(words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program")?;
    let output = Command::new(program).args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}
