//! Network interfaces, as Linux drives them, with taps of the emulated host.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::tap::open_tap;
use tests::{CMDLINE, Initramfs, Linux, Report, Vmm};

/// What every script here has: interfaces by their MAC addresses, and what they do.
const TOOLS: &str = "
modprobe virtio_net
nic() { basename $(dirname $(grep -lix $1 /sys/class/net/*/address)); }
up() { ip addr add $2/24 dev $1; ip link set $1 up; }
echoed() { nc $1 $2 </tmp/random | sha256sum; }
facts() { cd /sys/class/net/$1; cat mtu carrier device/features; ls -1 queues; }
count() { cat /sys/class/net/$1/statistics/$2; }
";

/// A server that gives back all that it is sent, on every address; its port.
fn echo() -> Result<u16> {
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
fn host_queues(name: &str) -> Result<usize> {
    let folder = format!("/sys/class/net/{name}/queues");
    let names = std::fs::read_dir(&folder).context(folder)?.flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("tx-")).count())
}

fn host_attribute(name: &str, attribute: &str) -> Result<String> {
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
struct Gate {
    port: u16,
    open: std::sync::mpsc::Sender<()>,
}

fn gate() -> Result<Gate> {
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
fn host(words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program")?;
    let output = Command::new(program).args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// An interface that others have made and set up, handed over by its descriptors: of the command line here,
/// with the request below.
fn given(name: &str, queues: usize, network: u8) -> Result<Vec<OwnedFd>> {
    let files = open_tap(name, queues)?;
    let address = format!("192.168.{network}.1/24");
    host(&["ip", "addr", "add", &address, "dev", name])?;
    host(&["ip", "link", "set", name, "up"])?;
    Ok(files)
}

/// How many queues of taps a process has open. Others that are started from here inherit what was opened for
/// one of them.
fn open_taps(pid: u32) -> Result<usize> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(targets.filter(|target| target.ends_with("net/tun")).count())
}

fn numbers(files: &[OwnedFd]) -> String {
    let numbers = files.iter().map(|file| file.as_raw_fd().to_string());
    numbers.collect::<Vec<_>>().join(",")
}

fn given_script(network: u8, echo: u16) -> String {
    let nic = format!("nic 52:54:00:00:{network}:02");
    format!(
        "{TOOLS}
nic=$({nic})
up $nic 192.168.{network}.2
dd if=/dev/urandom of=/tmp/random bs=64k count=8 2>/dev/null
section sum sh -c 'sha256sum </tmp/random'
section echo echoed 192.168.{network}.1 {echo}
section queues sh -c \"ls -1 /sys/class/net/$nic/queues | wc -l\"
"
    )
}

#[test]
fn taps_are_inherited() -> Result<()> {
    let files = given("vmtest-c", 2, 79)?;
    let initramfs = Initramfs::new(&given_script(79, echo()?)).drivers();
    let net = format!(
        "fd=[{}],num_queues=4,mac=52:54:00:00:79:02",
        numbers(&files)
    );
    let vmm = Vmm::boot(&initramfs, CMDLINE)?.args(["--cpus", "boot=2", "--net", &net]);
    let report = vmm.run()?.report()?;
    assert_eq!(report.text("echo")?, report.text("sum")?);
    assert_eq!(report.text("queues")?.trim(), "4");
    // It is whose it was, and as it was.
    assert_eq!(host_queues("vmtest-c")?, 2);
    Ok(())
}

/// Before boot over the REST interface, by `ch-remote`; it is there again at the next boot.
#[test]
fn taps_come_with_requests() -> Result<()> {
    let files = given("vmtest-d", 2, 80)?;
    let mut linux = Linux::start(&["--no-shutdown"])?;
    let gate = gate()?;
    let wait = format!("nc 192.168.80.1 {} </dev/null >/dev/null\n", gate.port);
    let initramfs = Initramfs::new(&format!("{}{wait}", given_script(80, echo()?))).drivers();
    let machine = linux.machine(&initramfs, CMDLINE)?;
    linux.server.put("vm.create", &machine).expect(204);
    let net = format!(
        "fd=[{}],num_queues=4,mac=52:54:00:00:80:02",
        numbers(&files)
    );
    linux.remote(&["add-net", &net])?;
    drop(files);
    for _ in 0..2 {
        linux.boot()?;
        linux.wait_for_lines("@@ end queues", 1)?;
        let counters = linux.server.get("vm.counters").expect(200).json();
        let counter = |name: &str| counters["_net0"][name].as_u64().unwrap_or_default();
        ensure!(counter("rx_bytes") > 512 << 10, "{counters}");
        ensure!(counter("tx_bytes") > 512 << 10, "{counters}");
        ensure!(counter("rx_frames") > 10, "{counters}");
        ensure!(counter("tx_frames") > 10, "{counters}");
        gate.open.send(())?;
        let report = linux.report()?;
        assert_eq!(report.text("echo")?, report.text("sum")?);
        linux.server.wait_for_state("Shutdown");
        let config = &linux.server.info()["config"]["net"][0];
        assert_eq!(config["mac"], "52:54:00:00:80:02");
    }
    let before = open_taps(linux.server.pid())?;
    linux
        .server
        .put("vm.remove-device", &json!({"id": "_net0"}))
        .expect(204);
    let after = open_taps(linux.server.pid())?;
    assert_eq!(before - after, 2, "what was sent is closed");
    Ok(())
}

/// The tap is deleted under a guest: its link goes down, and it goes on.
#[test]
fn a_tap_that_goes_costs_the_link() -> Result<()> {
    let echo = echo()?;
    let script = format!(
        "{TOOLS}
nic=$(nic 52:54:00:00:81:02)
up $nic 192.168.81.2
dd if=/dev/urandom of=/tmp/random bs=64k count=1 2>/dev/null
section echo echoed 192.168.81.1 {echo}
section ready echo ready
for second in $(seq 100); do
    [ \"$(cat /sys/class/net/$nic/carrier)\" = 1 ] || break
    usleep 100000
done
section carrier cat /sys/class/net/$nic/carrier
section lost sh -c '! ping -c 1 -W 1 192.168.81.1 >/dev/null'
virtio=$(basename $(readlink /sys/class/net/$nic/device))
echo $virtio >/sys/bus/virtio/drivers/virtio_net/unbind
echo $virtio >/sys/bus/virtio/drivers/virtio_net/bind
nic=$(nic 52:54:00:00:81:02)
ip link set $nic up
section again cat /sys/class/net/$nic/carrier
"
    );
    let initramfs = Initramfs::new(&script).drivers();
    let net = "tap=vmtest-e,ip=192.168.81.1,mac=52:54:00:00:81:02";
    let vmm = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--net", net])
        .spawn()?;
    vmm.wait_for_line("@@ end ready")?;
    host(&["ip", "link", "delete", "vmtest-e"])?;
    let outcome = vmm.wait()?;
    let report = outcome.report()?;
    assert_eq!(report.text("carrier")?.trim(), "0");
    assert_eq!(report.text("again")?.trim(), "0");
    report.text("lost")?;
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    ensure!(
        lines[0].contains("vmtest-e of the host is gone"),
        "{lines:?}"
    );
    Ok(())
}

/// What was there before stays, with the address that it has.
#[test]
fn a_tap_that_was_there_stays_as_it_was() -> Result<()> {
    host(&["tunctl", "-t", "vmtest-f"])?;
    host(&["ip", "addr", "add", "10.9.8.7/24", "dev", "vmtest-f"])?;
    let vmm = super::guest("true")?.args(["--net", "tap=vmtest-f"]);
    vmm.run()?.report()?;
    let shown = host(&["ip", "addr", "show", "dev", "vmtest-f"])?;
    ensure!(shown.contains("10.9.8.7/24"), "{shown}");
    ensure!(!shown.contains("192.168.249.1"), "{shown}");
    ensure!(shown.contains("UP"), "{shown}");
    host(&["tunctl", "-d", "vmtest-f"])?;
    Ok(())
}

#[test]
fn taps_that_cannot_be_had_are_named() -> Result<()> {
    let _busy = open_tap("vmtest-g", 1)?;
    for (net, expected) in [
        ("tap=lo", "--net tap=lo: there is an interface of that name"),
        ("tap=vmtest-g", "--net tap=vmtest-g: another program has it"),
    ] {
        let outcome = super::early_guest()?.args(["--net", net]).run()?;
        assert_eq!(outcome.code(), Some(1), "{}", outcome.stderr);
        ensure!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    }
    Ok(())
}
