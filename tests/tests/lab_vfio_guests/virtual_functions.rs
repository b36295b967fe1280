//! Virtual functions of a card (SR-IOV), which stays the host's: their ids are not where other
//! functions have theirs, and the host can take them away.

use std::fs;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pci::config_space::BarKind;
use pci::device::{Device as _, IrqKind};
use pci::passthrough::probe;
use pci::vfio::{Container, OpenError, VfioDevice};
use tests::passthrough::{HostDevice, PassedThrough};
use tests::{CMDLINE, Initramfs, Report, SharedCard, Vmm};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{COMMANDS, device, interrupts, text};

/// Of the host's end.
const HOST: &str = "10.1.1.1";
/// Bytes of a BAR; there are two.
const BAR_SIZE: u64 = 0x4000;
/// A mailbox, received and sent.
const VECTORS: u32 = 3;

/// The register that says whether there is a link (Intel's 82576, datasheet, section 8.2.2).
const STATUS: u64 = 8;
const STATUS_LINK_UP: u32 = 1 << 1;

/// What scripts begin with: the driver, and data that goes to the host and comes back.
const START: &str = r#"
function=$(device 0x8086 0x10ca)
echo_data() {
    dd if=/dev/urandom of=/tmp/data bs=1k count=256 2>/dev/null
    section $1/original sh -c 'md5sum </tmp/data'
    section $1/echo timeout 20 sh -c "nc $HOST $PORT </tmp/data >/tmp/back"
    section $1/back sh -c 'md5sum </tmp/back'
}
complaints() {
    section complaints sh -c "dmesg -r | grep -E '^<[0-4]>' | grep -E 'igbvf|0000:00:0|cut here' || true"
}
"#;

const ONE: &str = r#"
section ids cat "$function/vendor" "$function/device" "$function/class"
section resources sed -n 1,6p "$function/resource"
section extended extended "$function"
section drivers modprobe igbvf
section interface appears "$function/net/eth0"
link_up eth0
ip addr add 10.1.1.2/24 dev eth0
echo_data host
section interrupts interrupts eth0
complaints
"#;

/// The second function is in a network of its own, so that what goes between the two leaves the guest.
const TWO: &str = r#"
echo ready
read -r boot </dev/console
section $boot/drivers modprobe igbvf
section $boot/interfaces sh -c "ls -d /sys/bus/pci/devices/*/net/eth* | cut -d / -f 6"
unshare -n sleep 1000 &
neighbour=$!
until [ "$(readlink /proc/$neighbour/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do usleep 100000; done
there() { nsenter -t $neighbour -n "$@"; }
ip link set eth1 netns $neighbour
there ip addr add 10.1.1.3/24 dev eth1
there ip link set eth1 up
link_up eth0
ip addr add 10.1.1.2/24 dev eth0
tries=0
until ping -c 1 -W 1 10.1.1.3 >/dev/null || [ $tries = 20 ]; do tries=$((tries + 1)); done
echo_data $boot/host
there nc -l -p 7 -e cat &
usleep 200000
HOST=10.1.1.3 PORT=7
echo_data $boot/neighbour
[ $boot = last ] || { reboot -f; sleep 1000; }
complaints
"#;

/// The host takes the function away while the guest sends.
const LOST: &str = r#"
if [ -z "$function" ]; then
    section second/devices ls -1 /sys/bus/pci/devices
    return 0
fi
ids() { od -An -tx1 -N4 "$function/config"; }
status=$(($(sed -n '1s/ .*//p' "$function/resource") + STATUS))
section drivers modprobe igbvf
section interface appears "$function/net/eth0"
link_up eth0
ip addr add 10.1.1.2/24 dev eth0
section before/ids ids
section before/status devmem $status 32
section before/ping ping -c 2 -W 5 $HOST
while :; do ping -q -c 1 -W 1 $HOST >/dev/null; done &
sender=$!
echo ready
read -r answer </dev/console
section after/ids ids
section after/status devmem $status 32
section after/ping sh -c "! ping -c 1 -W 1 $HOST"
kill $sender
section after/remove sh -c "echo 1 >$function/remove"
section after/devices ls -1 /sys/bus/pci/devices
echo gone
read -r answer </dev/console
reboot -f
sleep 1000
"#;

/// Has a guest's data come back: the first connections of this many boots. Returns the port.
fn echo(connections: usize) -> Result<(u16, thread::JoinHandle<io::Result<()>>)> {
    let listener = TcpListener::bind((HOST, 0))?;
    let port = listener.local_addr()?.port();
    let server = thread::spawn(move || {
        for _ in 0..connections {
            let (stream, _) = listener.accept()?;
            io::copy(&mut &stream, &mut &stream)?;
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    });
    Ok((port, server))
}

/// That `echo` had its connections.
fn echoed(server: thread::JoinHandle<io::Result<()>>) -> Result<()> {
    ensure!(server.is_finished(), "the host did not see the data");
    Ok(server.join().expect("no panic")?)
}

fn initramfs(port: u16, script: &str) -> Initramfs {
    let constants = format!("HOST={HOST} PORT={port} STATUS={STATUS}\n");
    Initramfs::new(&(constants + COMMANDS + START + script)).drivers()
}

/// Data that went to and fro between a guest and the host.
fn check_data(report: &Report, section: &str) -> Result<()> {
    report.text(&format!("{section}/echo"))?;
    let original = text(report, &format!("{section}/original"))?;
    assert_eq!(text(report, &format!("{section}/back"))?, original);
    Ok(())
}

/// What a function is, without a guest.
fn check_facts(function: HostDevice) -> Result<()> {
    let path = function.path()?;
    // As real ones do, and unlike any other function that is there.
    let ids = fs::read(path.join("config"))?;
    ensure!(ids.starts_with(&[0xff; 4]), "{:x?}", ids.get(..4));
    let container = Container::new()?;
    let device = container.open_device(&path)?;
    let facts = probe(&device, Some(device.driver()), &[])?;
    let identity = &facts.identity;
    assert_eq!((identity.vendor, identity.device), function.id());
    assert_eq!(identity.class, 0x02_0000);
    let bars = facts.bars.iter().map(|bar| (bar.index, bar.kind, bar.size));
    let kind = BarKind::Memory64 { prefetchable: true };
    assert_eq!(
        bars.collect::<Vec<_>>(),
        [(0, kind, BAR_SIZE), (3, kind, BAR_SIZE)]
    );
    assert!(!facts.intx);
    assert_eq!(device.irqs(IrqKind::Msix), VECTORS);
    assert!(device.can_reset());
    // It has no bit that would turn its memory on.
    assert_ne!(status(&device)?, 0);
    Ok(())
}

fn status(device: &VfioDevice) -> Result<u32> {
    let mut data = [0; 4];
    device.read(0, STATUS, &mut data)?;
    Ok(u32::from_le_bytes(data))
}

#[test]
fn virtual_functions_are_known_by_their_card_and_go_with_it() -> Result<()> {
    let card = SharedCard::with_functions(2)?;
    let [first, second] = [0, 1].map(HostDevice::VirtualFunction);
    check_facts(first)?;
    // By somebody else, while the first one is in use.
    let container = Container::new()?;
    let device = container.open_device(&first.path()?)?;
    check_facts(second)?;

    let request = EventFd::new(EFD_NONBLOCK)?;
    device.on_request(&request)?;
    thread::scope(|scope| {
        let taker = scope.spawn(|| card.take_functions_away());
        while request.read().is_err() {
            ensure!(!taker.is_finished(), "nobody was asked");
            thread::sleep(Duration::from_millis(10));
        }
        ensure!(!taker.is_finished());
        drop(device);
        taker.join().expect("no panic")
    })
}

#[test]
#[ignore = "another refusal, run by scripts/test --full"]
fn a_virtual_function_of_a_card_that_vfio_has_is_refused() -> Result<()> {
    const ALLOWED: &str = "/sys/module/vfio_pci/parameters/enable_sriov";
    let mut host = PassedThrough::take(&[HostDevice::NetworkCard])?;
    let card = HostDevice::NetworkCard.path()?;
    let number = card.join("sriov_numvfs");
    fs::write(ALLOWED, "1")?;
    fs::write(&number, "1")?;
    let function = HostDevice::VirtualFunction(0);
    host.add(function)?;
    let refusal = Container::new()?.open_device(&function.path()?);
    fs::write(&number, "0")?;
    fs::write(ALLOWED, "0")?;
    let name = card.file_name().context("no name")?.display().to_string();
    let refusal = refusal.unwrap_err();
    assert!(
        matches!(&refusal, OpenError::NeedsToken { card, driver, .. }
        if *card == name && driver == "vfio-pci"),
        "{refusal}"
    );
    Ok(())
}

#[test]
#[ignore = "a guest that sends and receives, run by scripts/test --full"]
fn a_guest_talks_to_the_host_through_a_virtual_function() -> Result<()> {
    let card = SharedCard::with_functions(1)?;
    card.turn_on(&format!("{HOST}/24"))?;
    let function = HostDevice::VirtualFunction(0);
    check_facts(function)?;
    let (port, server) = echo(1)?;
    let report = Vmm::boot(&initramfs(port, ONE), CMDLINE)?
        .args(["--memory", "size=256M", "--device"])
        .arg(device(function, "")?)
        .run()?
        .report()?;
    // Nothing holds the function back.
    card.take_functions_away()?;

    assert_eq!(text(&report, "ids")?, "0x8086\n0x10ca\n0x020000");
    let resources = text(&report, "resources")?;
    let resources: Vec<_> = resources
        .lines()
        .map(resource)
        .collect::<Option<_>>()
        .context("resources")?;
    // In Linux's flags: memory that may be prefetched, aligned to its size, of 64 bits.
    let bar = Some((BAR_SIZE, 0x0014_220c));
    assert_eq!(resources, [bar, None, None, bar, None, None]);
    // Alternative routing ids are hidden, and of SR-IOV itself it has nothing.
    assert_eq!(text(&report, "extended")?, "0");
    for section in ["drivers", "interface"] {
        report.text(section)?;
    }
    check_data(&report, "host")?;
    echoed(server)?;
    let interrupts = interrupts(&report, "interrupts")?;
    assert_eq!(interrupts.len(), VECTORS as usize, "{interrupts:?}");
    for (count, chip) in &interrupts {
        ensure!(chip.contains("MSIX-000"), "{interrupts:?}");
        ensure!(chip.ends_with("eth0") || *count > 0, "{interrupts:?}");
    }
    assert_eq!(text(&report, "complaints")?, "");
    Ok(())
}

#[test]
#[ignore = "two boots for a second function, run by scripts/test --full"]
fn virtual_functions_of_a_guest_talk_to_each_other_and_do_so_after_a_reboot() -> Result<()> {
    const BOOTS: [&str; 2] = ["first", "last"];
    let card = SharedCard::with_functions(2)?;
    card.turn_on(&format!("{HOST}/24"))?;
    let (port, server) = echo(BOOTS.len())?;
    let mut vmm = Vmm::boot(&initramfs(port, TWO), CMDLINE)?
        .args(["--memory", "size=256M", "--device"])
        .arg(device(HostDevice::VirtualFunction(0), "")?)
        .arg(device(HostDevice::VirtualFunction(1), "")?)
        .timeout(Duration::from_secs(30))
        .spawn()?;
    for (boot, order) in BOOTS.iter().enumerate() {
        vmm.wait_for_lines("ready", boot + 1)?;
        vmm.write(&format!("{order}\n"))?;
    }
    let report = vmm.wait()?.report()?;
    card.take_functions_away()?;
    for boot in BOOTS {
        report.text(&format!("{boot}/drivers"))?;
        let interfaces = text(&report, &format!("{boot}/interfaces"))?;
        assert_eq!(interfaces.lines().count(), 2, "{interfaces}");
        check_data(&report, &format!("{boot}/host"))?;
        check_data(&report, &format!("{boot}/neighbour"))?;
    }
    echoed(server)?;
    assert_eq!(text(&report, "complaints")?, "");
    Ok(())
}

/// The other way for the host to have a function back: it is there no more, rather than without a driver.
#[test]
#[ignore = "two boots for another way to lose a device, run by scripts/test --full"]
fn a_virtual_function_that_the_host_takes_away_is_lost() -> Result<()> {
    let mut card = SharedCard::with_functions(2)?;
    card.turn_on(&format!("{HOST}/24"))?;
    let function = HostDevice::VirtualFunction(0);
    let mut vmm = Vmm::boot(&initramfs(0, LOST), &format!("{CMDLINE} iomem=relaxed"))?
        .args(["--memory", "size=256M", "--device"])
        .arg(device(function, "")?)
        .timeout(Duration::from_secs(30))
        .spawn()?;
    vmm.wait_for_line("ready")?;
    card.take_functions_away()?;
    vmm.write("go on\n")?;
    vmm.wait_for_line("gone")?;
    // Somebody else can have the next one.
    card.make_functions(1)?;
    check_facts(function)?;
    vmm.write("go on\n")?;
    let outcome = vmm.wait()?;
    let report = outcome.report()?;
    for section in ["drivers", "interface", "before/ping"] {
        report.text(section)?;
    }
    assert_eq!(text(&report, "before/ids")?, "86 80 ca 10");
    assert_eq!(text(&report, "after/ids")?, "ff ff ff ff");
    let status = |section| {
        let value = text(&report, section)?.trim_start_matches("0x");
        anyhow::Ok(u32::from_str_radix(value, 16)?)
    };
    ensure!(status("before/status")? & STATUS_LINK_UP != 0);
    // A BAR that may be prefetched may be memory, which must not be trapped: it is replaced by zeros.
    assert_eq!(status("after/status")?, 0);
    for section in ["after/ping", "after/remove"] {
        report.text(section)?;
    }
    // The bridge and the source of randomness, and so it stays.
    for section in ["after/devices", "second/devices"] {
        let devices = text(&report, section)?;
        assert_eq!(devices.lines().count(), 2, "{devices}");
    }
    let stderr = &outcome.stderr;
    let lost: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("is lost"))
        .collect();
    ensure!(
        matches!(&lost[..], [line] if line.contains("device _vfio0 ")
            && line.contains("the host asks for it back")),
        "{stderr}"
    );
    Ok(())
}

/// Size and flags of a line of a device's file `resource`; nothing where it has none.
fn resource(line: &str) -> Option<Option<(u64, u64)>> {
    let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let mut numbers = line.split_whitespace().map(number);
    let (start, end, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some((flags != 0).then_some((end.checked_sub(start)? + 1, flags)))
}
