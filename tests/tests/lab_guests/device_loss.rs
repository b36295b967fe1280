//! Devices that go while a guest has them: their server hangs up, is silent, or takes memory away. It
//! costs the guest the device, and one line in the log, and never the VMM.

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::coherent_device::Options;
use tests::{CMDLINE, CoherentDevice, Initramfs, Vmm};

/// What the guest's node gets of the device's memory, and a file there; no node gets the end of it.
const NODE_SIZE: u64 = 256 << 20;
const FILE_MIB: u64 = 8;
const BEHIND_NODES: u64 = 500 << 20;
/// Left by the test in a device's memory.
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

/// Longer than the VMM waits for a server, and then some for a slow machine.
const SOON: Duration = Duration::from_secs(20);

/// Functions of all scripts; devices are named by their numbers.
const COMMANDS: &str = r#"
folder() { echo "/sys/bus/pci/devices/0000:00:$1.0"; }
files() { echo "$(folder "$1")/coherent_memory"; }
# What configuration space begins with, not as the kernel remembers it.
ids() { od -An -tx1 -N4 "$(folder "$1")/config"; }
ring() { echo 0 >"$(files "$1")/ring"; }
address() { echo $(($(cut -d ' ' -f 1 "$(files "$1")/coherent_memory") + $2)); }
load() { devmem "$(address "$1" "$2")" 64; }
store() { devmem "$(address "$1" "$2")" 64 "$3"; }
# Devices that are lost are ones, as soon as the VMM has noticed.
is_lost() {
    tries=0
    until [ "$(ids "$1")" = " ff ff ff ff" ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || return 1
        usleep 100000
    done
}
"#;

const EXISTS: &str = "[ -e \"$(folder 03)\" ]";

fn guest(script: &str, devices: &[&CoherentDevice]) -> Result<Vmm> {
    let script = format!("{COMMANDS}{script}");
    let initramfs = Initramfs::new(&script).module("coherent_memory");
    let cmdline = format!("{CMDLINE} memhp_default_state=online_movable");
    let mut vmm = Vmm::boot(&initramfs, &cmdline)?
        .args(["--cpus", "boot=2", "--memory", "size=512M,shared=on"])
        .args(["--numa", "guest_numa_id=0,cpus=[0-1],memory_zones=[mem0]"])
        .args(["guest_numa_id=1", "--user-device"]);
    for (number, device) in devices.iter().enumerate() {
        let nodes = if number == 0 {
            ",guest_numa_ids=[1]"
        } else {
            ""
        };
        vmm = vmm.arg(format!(
            "socket={},id=device{number},pci_device_id={}{nodes}",
            device.socket().display(),
            number + 3
        ));
    }
    Ok(vmm)
}

/// The one line for each loss: each of `reasons` is what it says of the device of its number.
fn losses(stderr: &str, reasons: &[&str]) -> Result<()> {
    let lines: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("is lost"))
        .collect();
    ensure!(lines.len() == reasons.len(), "{stderr}");
    for (number, reason) in reasons.iter().enumerate() {
        let name = format!("device device{number} ");
        let line = lines.iter().find(|line| line.contains(&name));
        let line = line.with_context(|| format!("no {name}: {stderr}"))?;
        ensure!(line.contains("ERROR"), "{line}");
        ensure!(line.contains(reason), "{line}");
    }
    Ok(())
}

/// Memory that the guest's kernel uses goes under it, and is zeros from then on. After a reboot there is no
/// device where it was.
#[test]
fn memory_that_a_server_takes_away_is_zeros_and_the_next_boot_has_no_device() -> Result<()> {
    const SCRIPT: &str = r#"
if ! exists; then
    section second/devices ls -1 /sys/bus/pci/devices
    return 0
fi
insmod /lib/coherent_memory.ko
section node sh -c "echo $NODE_SIZE >$(files 03)/add"
mkdir /mnt
mount -t tmpfs -o mpol=bind:1 none /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count="$FILE_MIB" 2>/dev/null
section store store 03 "$BEHIND_NODES" 0x1122334455667788
section before load 03 "$BEHIND_NODES"
section ring ring 03
section behind load 03 "$BEHIND_NODES"
section file sh -c 'md5sum </mnt/file'
section zeros sh -c "dd if=/dev/zero bs=1M count=$FILE_MIB 2>/dev/null | md5sum"
section write dd if=/dev/urandom of=/mnt/file bs=1M count="$FILE_MIB" conv=notrunc
section again sh -c 'md5sum </mnt/file; md5sum </mnt/file'
section lost is_lost 03
reboot -f
sleep 1000
"#;
    let device = CoherentDevice::start(Options {
        shrink_after_doorbell: true,
        ..Options::default()
    })?;
    let script = format!(
        "NODE_SIZE={NODE_SIZE} FILE_MIB={FILE_MIB} BEHIND_NODES={BEHIND_NODES}\n\
         exists() {{ {EXISTS}; }}\n{SCRIPT}"
    );
    let outcome = guest(&script, &[&device])?
        .timeout(Duration::from_secs(30))
        .run()?;
    let report = outcome.report()?;
    let text = |name| report.text(name).map(str::trim);
    for section in ["node", "store", "ring", "write", "lost"] {
        text(section)?;
    }
    assert_eq!(text("before")?, "0x1122334455667788");
    assert_eq!(text("behind")?, "0x0000000000000000");
    assert_eq!(text("file")?, text("zeros")?);
    // It is memory still.
    let again: Vec<_> = text("again")?.lines().collect();
    assert_eq!(again[0], again[1]);
    ensure!(again[0] != text("zeros")?);
    let devices = text("second/devices")?;
    ensure!(!devices.contains("03.0"), "{devices}");
    ensure!(devices.contains("00.0"), "{devices}");
    losses(&outcome.stderr, &["file of its memory has 0x0 bytes"])
}

#[test]
#[ignore = "another guest for each way to go, run by scripts/test --full"]
fn servers_that_go_or_are_silent_cost_their_devices_alone() -> Result<()> {
    const SCRIPT: &str = r#"
insmod /lib/coherent_memory.ko
for number in 03 04 05 06; do section before/$number ids $number; done
section node sh -c "echo $NODE_SIZE >$(files 03)/add"
mkdir /mnt
mount -t tmpfs -o mpol=bind:1 none /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count="$FILE_MIB" 2>/dev/null
original() { md5sum </mnt/file; }
section original original
# The test ends one of the servers.
echo ready
read -r answer </dev/console
section lost/idle is_lost 03
# What it was asked for last, it never answered.
section ring/dies ring 04
section lost/dies is_lost 04
section ring/silent ring 05
section lost/silent is_lost 05
# Memory of a server that is gone is memory as long as somebody has it.
section file original
section load load 03 "$BEHIND_NODES"
section alive ids 06
section alive/ring ring 06
sleep 1
section alive/interrupts cat "$(files 06)/interrupts"
section unload rmmod coherent_memory
"#;
    let start = |options| CoherentDevice::start(options);
    let mut idle = start(Options::default())?;
    let dies = start(Options {
        die_after_doorbell: true,
        ..Options::default()
    })?;
    let silent = start(Options {
        silent_after_doorbell: true,
        ..Options::default()
    })?;
    let alive = start(Options::default())?;
    idle.memory()?
        .write_all_at(&PATTERN.to_le_bytes(), BEHIND_NODES)?;
    let script =
        format!("NODE_SIZE={NODE_SIZE} FILE_MIB={FILE_MIB} BEHIND_NODES={BEHIND_NODES}\n{SCRIPT}");
    let mut vmm = guest(&script, &[&idle, &dies, &silent, &alive])?
        .timeout(Duration::from_secs(40))
        .spawn()?;
    vmm.wait_for_line("ready")?;
    idle.kill()?;
    // Nobody asks it for anything.
    vmm.wait_for_error_line("is lost")?;
    vmm.write("go on\n")?;
    let outcome = vmm.wait()?;
    let report = outcome.report()?;
    let text = |name| report.text(name).map(str::trim);
    for number in ["03", "04", "05", "06"] {
        let ids = report.text(&format!("before/{number}"))?;
        assert_eq!(ids.trim(), "de 10 42 23");
    }
    for section in [
        "node",
        "lost/idle",
        "ring/dies",
        "lost/dies",
        "ring/silent",
        "lost/silent",
        "alive/ring",
        "unload",
    ] {
        text(section)?;
    }
    assert_eq!(text("file")?, text("original")?);
    assert_eq!(text("load")?, format!("{PATTERN:#018X}").replace('X', "x"));
    assert_eq!(text("alive")?, "de 10 42 23");
    ensure!(
        text("alive/interrupts")?.starts_with("0 1"),
        "{:?}",
        text("alive/interrupts")
    );
    losses(
        &outcome.stderr,
        &["hung up", "hung up", "did not take VFIO_USER_REGION_WRITE"],
    )
}

#[test]
#[ignore = "a deadline to wait for, run by scripts/test --full"]
fn a_silent_server_does_not_keep_the_vmm_from_ending() -> Result<()> {
    let device = CoherentDevice::start(Options {
        silent_after_doorbell: true,
        ..Options::default()
    })?;
    let script = "insmod /lib/coherent_memory.ko\necho ready\nring 03\nsleep 1000";
    let vmm = guest(script, &[&device])?.spawn()?;
    vmm.wait_for_line("ready")?;
    // Until the vCPU waits for the server, or not yet or no longer: all the same.
    std::thread::sleep(Duration::from_secs(1));
    let started = Instant::now();
    vmm.signal("TERM")?;
    let outcome = vmm.wait()?.success()?;
    ensure!(started.elapsed() < SOON, "{:?}", started.elapsed());
    losses(&outcome.stderr, &["did not take VFIO_USER"])
}
