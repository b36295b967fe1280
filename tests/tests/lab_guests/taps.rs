//! Where the host's ends of network interfaces come from, who may have them, and what becomes of them.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::tap::{Tap, inherited, make_tap_of, open_tap};
use tests::{CMDLINE, Initramfs, Linux, Vmm};

use super::net::{TOOLS, echo, gate, host, host_attribute, host_queues};

/// Somebody without any rights.
const NOBODY: u32 = 65534;

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
#[ignore = "another way for descriptors to come, run by scripts/test --full"]
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
#[ignore = "another guest for one address, run by scripts/test --full"]
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

/// A user may have what was made for it, and is told what it may not.
#[test]
fn whoever_has_no_rights_gets_what_was_made_for_it() -> Result<()> {
    // As most distributions have the latter, and whoever may use KVM the former.
    host(&["chmod", "666", "/dev/kvm", "/dev/net/tun"])?;
    let refused = super::early_guest()?
        .args(["--net", "tap=vmtest-h"])
        .user(NOBODY)
        .run()?;
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    let expected = "--net tap=vmtest-h: not allowed: whoever makes taps or opens those of others needs the \
                    capability CAP_NET_ADMIN";
    ensure!(refused.stderr.contains(expected), "{}", refused.stderr);

    make_tap_of(NOBODY, "vmtest-h")?;
    let address = "192.168.82.1/24";
    host(&["ip", "addr", "add", address, "dev", "vmtest-h"])?;
    let initramfs = Initramfs::new(&given_script(82, echo()?)).drivers();
    let net = "tap=vmtest-h,mac=52:54:00:00:82:02";
    // It may not set the interface up either, and says so.
    let down = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--net", net])
        .user(NOBODY)
        .spawn()?;
    down.wait_for_error_line("network interface vmtest-h of the host is down, and stays so")?;
    host(&["ip", "link", "set", "vmtest-h", "up"])?;
    let report = down.wait()?.report()?;
    assert_eq!(report.text("echo")?, report.text("sum")?);
    host(&["tunctl", "-d", "vmtest-h"])?;
    Ok(())
}

/// A macvtap is an interface beside others on one card. The card here is a tap that gives every frame back, as a switch
/// does that its ports' interfaces leave everything to (VEPA, the mode that they have by default).
#[test]
#[ignore = "another kind of tap, run by scripts/test --full"]
fn a_macvtap_is_as_good() -> Result<()> {
    let switch = Tap::open("vmtest-i")?;
    host(&["ip", "link", "set", "vmtest-i", "up"])?;
    thread::spawn(move || switch.give_back());
    let link = |kind, name| {
        let words = [
            "ip", "link", "add", "link", "vmtest-i", "name", name, "type", kind,
        ];
        host(&words)
    };
    link("macvlan", "vmtest-j")?;
    host(&["ip", "addr", "add", "192.168.83.1/24", "dev", "vmtest-j"])?;
    host(&["ip", "link", "set", "vmtest-j", "up"])?;
    link("macvtap", "vmtest-k")?;
    host(&["ip", "link", "set", "vmtest-k", "up"])?;
    let address = host_attribute("vmtest-k", "address")?;
    let path = format!("/dev/tap{}", host_attribute("vmtest-k", "ifindex")?);
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let files = [inherited(&opened.context(path)?)?];

    let script = given_script(83, echo()?).replace("52:54:00:00:83:02", &address);
    let initramfs = Initramfs::new(&script).drivers();
    let net = format!("fd=[{}],mac={address}", numbers(&files));
    let vmm = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--net", &net])
        .spawn()?;
    let report = vmm.wait()?.report()?;
    assert_eq!(report.text("echo")?, report.text("sum")?);
    ensure!(host_attribute("vmtest-k", "statistics/rx_bytes")?.parse::<u64>()? > 512 << 10);
    host(&["ip", "link", "delete", "vmtest-k"])?;
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
