//! As many PCI segments as there can be, and a device on the last of them that is told of its nodes by
//! generic initiators.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::coherent_device::Options;
use tests::{CMDLINE, CoherentDevice, Initramfs, Report, SharedReport, Vmm};

const SEGMENTS: u32 = 96;
/// The device's address: segment 95.
const BDF: &str = "005f:00:00.0";
const VECTOR: u32 = 5;
/// Its BAR 4, and what of that is memory.
const MEMORY: u64 = 512 << 20;
const USABLE: u64 = 384 << 20;

const SCRIPT: &str = r#"
device=/sys/bus/pci/devices/$BDF
files=$device/coherent_memory
section bridges sh -c "cd /sys/bus/pci/devices; echo *:00:00.0"
section affinity sh -c "cat /sys/bus/pci/devices/0000:00:00.0/numa_node $device/numa_node"
section load insmod /lib/coherent_memory.ko
section source cat "$files/source"
section domains cut -d ' ' -f 1 "$files/nodes"
section nodes cut -d ' ' -f 2 "$files/nodes"
ring() { echo "$VECTOR" >"$files/ring"; }
section ring ring
sleep 1
section interrupts cat "$files/interrupts"
bar=$(cut -d ' ' -f 1 "$files/coherent_memory")
peek() { devmem $((bar + $1)) 32; }
section bar cat "$files/coherent_memory"
section peek/last peek $((USABLE - 4))
section peek/beyond peek "$USABLE"
section peek/end peek $((MEMORY - 4))
section complaints sh -c "dmesg | grep -iE 'pci|ecam|iort|its' | grep -iE 'fail|error|conflict|not reserved|no space|claim' || true"
"#;

static REPORT: SharedReport = SharedReport::new(|| {
    let device = CoherentDevice::start(Options {
        memory: MEMORY,
        usable: Some(USABLE),
        ..Options::default()
    })?;
    let user_device = format!(
        "socket={},pci_segment=95,pci_device_id=0,guest_numa_ids=[2-9],generic_initiator=only",
        device.socket().display()
    );
    let mut nodes = vec![
        "guest_numa_id=0,cpus=[0],memory_zones=[mem0],pci_segments=[0]".to_owned(),
        "guest_numa_id=1,cpus=[1],pci_segments=[95]".to_owned(),
    ];
    nodes.extend((2..=9).map(|id| format!("guest_numa_id={id}")));
    let script = format!("BDF={BDF} VECTOR={VECTOR} MEMORY={MEMORY} USABLE={USABLE}\n{SCRIPT}");
    let initramfs = Initramfs::new(&script).module("coherent_memory");
    Vmm::boot(&initramfs, CMDLINE)?
        .args(["--cpus", "boot=2", "--memory", "size=1G,shared=on"])
        .args(["--platform", "num_pci_segments=96"])
        .arg("--numa")
        .args(nodes)
        .args(["--user-device", &user_device])
        .timeout(Duration::from_secs(30))
        .run()?
        .report()
});

fn text<'a>(report: &'a Report, name: &str) -> Result<&'a str> {
    Ok(report.text(name)?.trim())
}

#[test]
fn every_segment_has_its_bus() -> Result<()> {
    let report = REPORT.get()?;
    let expected: Vec<String> = (0..SEGMENTS)
        .map(|segment| format!("{segment:04x}:00:00.0"))
        .collect();
    assert_eq!(text(report, "bridges")?, expected.join(" "));
    assert_eq!(text(report, "complaints")?, "");
    Ok(())
}

#[test]
fn devices_are_near_the_node_of_their_segment() -> Result<()> {
    assert_eq!(text(REPORT.get()?, "affinity")?, "0\n1");
    Ok(())
}

#[test]
fn generic_initiators_tell_a_device_of_its_nodes() -> Result<()> {
    let report = REPORT.get()?;
    report.text("load")?;
    assert_eq!(text(report, "source")?, "gi");
    let ids: Vec<String> = (2..=9).map(|id| id.to_string()).collect();
    assert_eq!(text(report, "domains")?, ids.join("\n"));
    // CPUs, then initiators: here that is the order of the ids.
    assert_eq!(text(report, "nodes")?, ids.join("\n"));
    Ok(())
}

/// As with a Grace Hopper's, whose memory is no power of two.
#[test]
fn behind_the_memory_the_bar_reads_as_ones() -> Result<()> {
    let report = REPORT.get()?;
    ensure!(text(report, "bar")?.ends_with(&format!(" {MEMORY}")));
    assert_eq!(text(report, "peek/last")?, "0x00000000");
    for place in ["peek/beyond", "peek/end"] {
        assert_eq!(text(report, place)?, "0xFFFFFFFF", "{place}");
    }
    Ok(())
}

/// On aarch64 the ITS finds the device by its segment too.
#[test]
fn interrupts_of_the_last_segment_arrive() -> Result<()> {
    let report = REPORT.get()?;
    report.text("ring")?;
    let counts = text(report, "interrupts")?;
    ensure!(
        counts.lines().any(|line| line == format!("{VECTOR} 1")),
        "{counts}"
    );
    Ok(())
}
