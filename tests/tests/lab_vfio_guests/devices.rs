//! A disk, memory and a network card in one guest, which uses them, moves them about, and reboots.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pci::device::{Device as _, region};
use pci::vfio::Container;
use tests::passthrough::{HostDevice, PassedThrough};
use tests::{CMDLINE, Initramfs, Report, SharedReport, Vmm};

use crate::{COMMANDS, device, interrupts, text};

/// On the disk, in MiB: where the first boot leaves word for the second, and data.
const MARK: u64 = 1;
const DATA: u64 = 2;
const DATA_MIB: u64 = 6;
/// In the memory device: where a pattern is written, and a value after each move. The last place is as near
/// to the end as `devmem` goes: it wants 64 bytes.
const PATTERN: [(u64, u64); 3] = [
    (0, 0x0123_4567_89ab_cdef),
    (0x1008, 0xfedc_ba98_7654_3210),
    ((128 << 20) - 64, 0x5a5a_0ff0_a5a5_f00f),
];
const MOVED: [(u64, u64); 2] = [(0x20_0000, 0x1111_2222_3333_4444), (0x20_0008, 0x5555)];
/// Proximity domains of the memory device.
const DOMAINS: [u32; 2] = [2, 3];

const SCRIPT: &str = r#"
memory=$(device 0x1af4 0x1110)
nvme=$(device 0x1b36 0x0010)
card=$(device 0x8086 0x10c9)
bar() { sed -n "$(($2 + 1))s/ .*//p" "$1/resource"; }
drivers() { modprobe nvme && modprobe igb && appears $disk && appears "$card/net/eth0"; }
# 32 bits, as configuration space has them.
word() {
    printf "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) \
        $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"
}
# Writes a word of the memory device's configuration space, by its number.
poke() { word "$2" | dd of="$memory/config" bs=4 seek="$1" conv=notrunc 2>/dev/null; }
# BAR 2 is words 6 and 7.
move_to() { poke 6 $(($1 & 0xffffffff)) && poke 7 $(($1 >> 32)); }
decode() { poke 1 "$1"; }
load() { devmem "$1" 64; }
pattern() { for offset in $OFFSETS; do load $(($1 + offset)); done; }
move() {
    decode 0
    section move/off load "$old"
    move_to "$1"
    decode 2
}

section drivers drivers
case $(read_disk "$MARK" 1 | head -c 4) in MARK) boot=second ;; *) boot=first ;; esac
old=$(bar "$memory" 2)

if [ $boot = second ]; then
    section second/disk sum_of_disk "$DATA" "$DATA_MIB"
    section second/interrupts interrupts nvme
    echo 1 >"$memory/enable"
    section second/pattern pattern "$old"
    section second/registers devmem "$(bar "$memory" 0)" 32
    section second/address cat "$card/net/eth0/address"
    return 0
fi

# The disk.
dd if=/dev/urandom of=/tmp/data bs=1M count="$DATA_MIB" 2>/dev/null
section original sh -c 'md5sum </tmp/data'
section size cat /sys/block/nvme0n1/size
section before/interrupts interrupts nvme
section write write_disk /tmp/data "$DATA"
section disk sum_of_disk "$DATA" "$DATA_MIB"
section after/interrupts interrupts nvme

# The network card: what is sent is fetched by DMA, and said to be done by an interrupt.
section card/address cat "$card/net/eth0/address"
section card/extended extended "$card"
section card/functions sh -c "ls $card | grep sriov || true"
link_up eth0
section card/carrier cat "$card/net/eth0/carrier"
ip addr add 10.1.1.1/24 dev eth0
send
section card/sent cat "$card/net/eth0/statistics/tx_packets"
section card/interrupts interrupts eth0

# Interrupts to the other CPU: the message changes under a device that works.
to_cpu() { for irq in $(sed -n 's/^ *\([0-9]*\):.* eth0-tx-.*/\1/p' /proc/interrupts); do
    echo "$1" >"/proc/irq/$irq/smp_affinity"
done; }
for cpu in 0 1; do
    to_cpu $((1 << cpu))
    section card/cpu$cpu/before interrupts eth0-tx
    send
    section card/cpu$cpu/after interrupts eth0-tx
done

# The memory: registers, smaller than a page, and a large BAR.
echo 1 >"$memory/enable"
registers=$(bar "$memory" 0)
devmem "$registers" 32 5
section registers devmem "$registers" 32
for offset in $OFFSETS; do
    devmem $((old + offset)) 64 "${VALUES%% *}"
    VALUES=${VALUES#* }
done
section pattern pattern "$old"

# Its properties, by a driver that looks for them.
insmod /lib/coherent_memory.ko
echo "1af4 1110" >/sys/bus/pci/drivers/coherent_memory/new_id
section source cat "$memory/coherent_memory/source"
section nodes cat "$memory/coherent_memory/nodes"
section near cat "$memory/numa_node"
section firmware cat "$memory/firmware_node/path"
rmmod coherent_memory

# The large BAR elsewhere: with its decoder off meanwhile, as it should be done, then with it on.
echo 1 >"$memory/enable"
new=$((old + 0x40000000))
move $new
section move/old load "$old"
section move/new pattern $new
devmem $((new + $(echo $MOVED_OFFSETS | cut -d ' ' -f 1))) 64 "$(echo $MOVED_VALUES | cut -d ' ' -f 1)"
newer=$((new + 0x40000000))
move_to $newer
section remove/old load $new
section remove/new pattern $newer
devmem $((newer + $(echo $MOVED_OFFSETS | cut -d ' ' -f 2))) 64 "$(echo $MOVED_VALUES | cut -d ' ' -f 2)"
move_to "$old"
section back/pattern pattern "$old"

# The others leave and come again.
ip link set eth0 down
for folder in "$nvme" "$card"; do echo 1 >"$folder/remove"; done
section gone/devices sh -c 'ls /sys/bus/pci/devices | wc -l'
echo 1 >/sys/bus/pci/rescan
section rescan drivers
section rescan/disk sum_of_disk "$DATA" "$DATA_MIB"
section rescan/address cat "$card/net/eth0/address"

# Resets of functions, under their drivers.
section reset sh -c "echo 1 >$nvme/reset && echo 1 >$card/reset"
section reset/disk sum_of_disk "$DATA" "$DATA_MIB"
section reset/address cat "$card/net/eth0/address"
section reset/interrupts interrupts nvme

# The first boot is over.
yes MARK | head -c 1048576 >/tmp/mark
write_disk /tmp/mark "$MARK"
section complaints sh -c "dmesg -r | grep -E '^<[0-4]>' | grep -E 'nvme|igb|0000:00:0|cut here' || true"
# Devices that are at work when the guest resets.
ip link set eth0 up
while read_disk 0 16 >/dev/null; do :; done &
sleep 1
reboot -f
sleep 1000
"#;

/// What the host found when it had its devices again.
struct Found {
    /// The checksum of the data on the disk, by the host's driver.
    disk: String,
    /// What lies in the memory where the guest wrote.
    memory: Vec<(u64, u64)>,
}

static FOUND: OnceLock<Found> = OnceLock::new();

static REPORT: SharedReport = SharedReport::new(|| {
    // The memory can only be reset together with its neighbour.
    let devices = [
        HostDevice::Nvme,
        HostDevice::SharedMemory,
        HostDevice::Edu,
        HostDevice::NetworkCard,
    ];
    let host = PassedThrough::take(&devices)?;
    let script = constants() + COMMANDS + SCRIPT;
    let initramfs = Initramfs::new(&script).module("coherent_memory").drivers();
    let [first, last] = DOMAINS;
    let nodes = format!(",guest_numa_ids=[{first}-{last}]");
    let report = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--cpus", "boot=2", "--memory", "size=512M", "--numa"])
        .arg("guest_numa_id=0,cpus=[0-1],memory_zones=[mem0],pci_segments=[0]")
        .args(DOMAINS.map(|id| format!("guest_numa_id={id}")))
        .args(["--device", &device(HostDevice::Nvme, "")?])
        .args(["--device", &device(HostDevice::SharedMemory, &nodes)?])
        .args(["--device", &device(HostDevice::Edu, "")?])
        .arg(device(HostDevice::NetworkCard, ",pci_segment=1")?)
        .args(["--platform", "num_pci_segments=2"])
        .timeout(Duration::from_secs(30))
        .run()?
        .report()?;
    let found = look(&host)?;
    // The boot runs once.
    let _ = FOUND.set(found);
    Ok(report)
});

/// Variables that the script starts with.
fn constants() -> String {
    let list = |values: &[(u64, u64)], second: bool| {
        let values = values.iter();
        let values =
            values.map(|(offset, value)| format!("{:#x}", if second { value } else { offset }));
        values.collect::<Vec<_>>().join(" ")
    };
    format!(
        "MARK={MARK} DATA={DATA} DATA_MIB={DATA_MIB}\n\
         OFFSETS='{}' VALUES='{}' MOVED_OFFSETS='{}' MOVED_VALUES='{}'\n",
        list(&PATTERN, false),
        list(&PATTERN, true),
        list(&MOVED, false),
        list(&MOVED, true),
    )
}

/// Looks into the devices after the guest's end.
fn look(_host: &PassedThrough) -> Result<Found> {
    let container = Container::new()?;
    let memory = container.open_device(&HostDevice::SharedMemory.path()?)?;
    // The command register: memory.
    memory.write(region::CONFIG, 4, &[2, 0])?;
    let places = PATTERN.iter().chain(&MOVED);
    let memory = places.map(|(offset, _)| {
        let mut data = [0; 8];
        memory.read(2, *offset, &mut data)?;
        Ok((*offset, u64::from_le_bytes(data)))
    });
    let memory = memory.collect::<Result<_>>()?;

    // The host's own driver.
    shell("modprobe nvme")?;
    HostDevice::Nvme.unbind()?;
    HostDevice::Nvme.bind("nvme")?;
    let disk = shell(&format!(
        "{COMMANDS}\nappears $disk && sum_of_disk {DATA} {DATA_MIB}"
    ));
    HostDevice::Nvme.unbind()?;
    Ok(Found {
        disk: disk?.trim().to_owned(),
        memory,
    })
}

fn shell(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", script]).output()?;
    ensure!(
        output.status.success(),
        "{script}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn found() -> Result<&'static Found> {
    REPORT.get()?;
    FOUND.get().context("nobody looked into the devices")
}

/// Values that `devmem` read, a line each.
fn values(report: &Report, section: &str) -> Result<Vec<u64>> {
    let value = |line: &str| {
        let digits = line.trim().strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    };
    let text = report.text(section)?;
    text.lines()
        .map(|line| value(line).with_context(|| line.to_owned()))
        .collect()
}

/// The pattern as [`values`] has it.
fn pattern() -> Vec<u64> {
    PATTERN.iter().map(|(_, value)| *value).collect()
}

/// Message-signalled interrupts with a table, as either architecture calls them.
fn is_msix(chip: &str) -> bool {
    chip.contains("MSIX-000")
}

#[test]
fn a_disk_is_written_and_read_by_dma() -> Result<()> {
    let report = REPORT.get()?;
    report.text("drivers")?;
    // In sectors of 512 bytes.
    assert_eq!(text(report, "size")?, ((64 << 20) / 512).to_string());
    report.text("write")?;
    let original = text(report, "original")?;
    assert_eq!(text(report, "disk")?, original);
    // The host finds it there too, with the driver that it had before.
    assert_eq!(found()?.disk, original);
    Ok(())
}

#[test]
fn a_disk_interrupts_by_msix() -> Result<()> {
    let report = REPORT.get()?;
    let before = interrupts(report, "before/interrupts")?;
    let after = interrupts(report, "after/interrupts")?;
    // One for the administrator's queue, and one for each CPU's.
    assert_eq!(after.len(), 3, "{after:?}");
    ensure!(after.iter().all(|(_, chip)| is_msix(chip)), "{after:?}");
    let sum = |lines: &[(u64, String)]| lines.iter().map(|(count, _)| count).sum::<u64>();
    // 24 writes and as many reads, at least.
    ensure!(sum(&after) >= sum(&before) + 48, "{before:?} {after:?}");
    Ok(())
}

#[test]
fn a_network_card_sends() -> Result<()> {
    let report = REPORT.get()?;
    let address = text(report, "card/address")?;
    // QEMU's prefix.
    ensure!(address.starts_with("52:54:00:"), "{address}");
    assert_eq!(text(report, "card/carrier")?, "1");
    let sent: u64 = text(report, "card/sent")?.parse()?;
    ensure!(sent >= 3, "{sent}");
    let interrupts = interrupts(report, "card/interrupts")?;
    ensure!(interrupts.len() >= 2, "{interrupts:?}");
    ensure!(
        interrupts.iter().all(|(_, chip)| is_msix(chip)),
        "{interrupts:?}"
    );
    let came = interrupts.iter().filter(|(count, _)| *count > 0);
    // For the link and for what was sent.
    ensure!(came.count() >= 2, "{interrupts:?}");
    Ok(())
}

#[test]
fn a_guest_cannot_make_virtual_functions() -> Result<()> {
    let report = REPORT.get()?;
    // The host could.
    let folder = HostDevice::NetworkCard.path()?;
    ensure!(folder.join("sriov_totalvfs").exists());
    assert_eq!(text(report, "card/functions")?, "");
    assert_eq!(text(report, "card/extended")?, "0");
    Ok(())
}

#[test]
fn interrupts_follow_the_guest_to_another_cpu() -> Result<()> {
    let report = REPORT.get()?;
    let counts = |cpu: usize, moment: &str| -> Result<u64> {
        let text = report.text(&format!("card/cpu{cpu}/{moment}"))?;
        let count = |line: &str| line.split_whitespace().nth(1 + cpu)?.parse::<u64>().ok();
        let counts = text
            .lines()
            .map(|line| count(line).with_context(|| line.to_owned()));
        counts.sum()
    };
    for cpu in [0, 1] {
        let (before, after) = (counts(cpu, "before")?, counts(cpu, "after")?);
        // How many there are is up to the card, which makes one of several where the host is busy.
        ensure!(after > before, "CPU {cpu}: {before} {after}");
    }
    Ok(())
}

#[test]
fn memory_is_that_of_the_device() -> Result<()> {
    let report = REPORT.get()?;
    // Trapped, since it is smaller than a page.
    assert_eq!(values(report, "registers")?, [5]);
    assert_eq!(values(report, "pattern")?, pattern());
    let expected: Vec<_> = PATTERN.iter().chain(&MOVED).copied().collect();
    assert_eq!(found()?.memory, expected);
    Ok(())
}

#[test]
fn a_device_has_its_properties() -> Result<()> {
    let report = REPORT.get()?;
    assert_eq!(text(report, "source")?, "dsd");
    let nodes = text(report, "nodes")?;
    let pxms: Vec<u32> = nodes
        .lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(pxms, DOMAINS);
    // Its nodes are its memory's; it is where its host bridge is.
    assert_eq!(text(report, "near")?, "0");
    let firmware = text(report, "firmware")?;
    ensure!(firmware.starts_with(r"\_SB_.PC00.S0"), "{firmware}");
    Ok(())
}

#[test]
fn a_bar_answers_where_the_guest_puts_it_and_nowhere_else() -> Result<()> {
    let report = REPORT.get()?;
    for nowhere in ["move/off", "move/old", "remove/old"] {
        assert_eq!(values(report, nowhere)?, [u64::MAX], "{nowhere}");
    }
    for there in ["move/new", "remove/new", "back/pattern"] {
        assert_eq!(values(report, there)?, pattern(), "{there}");
    }
    Ok(())
}

#[test]
fn devices_that_were_removed_are_found_again() -> Result<()> {
    let report = REPORT.get()?;
    // Two bridges, the memory and its neighbour, and the source of randomness stayed.
    assert_eq!(text(report, "gone/devices")?, "5");
    report.text("rescan")?;
    assert_eq!(text(report, "rescan/disk")?, text(report, "original")?);
    assert_eq!(
        text(report, "rescan/address")?,
        text(report, "card/address")?
    );
    Ok(())
}

#[test]
fn functions_are_reset_under_their_drivers() -> Result<()> {
    let report = REPORT.get()?;
    report.text("reset")?;
    assert_eq!(text(report, "reset/disk")?, text(report, "original")?);
    assert_eq!(
        text(report, "reset/address")?,
        text(report, "card/address")?
    );
    let interrupts = interrupts(report, "reset/interrupts")?;
    ensure!(
        interrupts.iter().all(|(_, chip)| is_msix(chip)),
        "{interrupts:?}"
    );
    Ok(())
}

#[test]
fn devices_work_after_a_reboot() -> Result<()> {
    let report = REPORT.get()?;
    assert_eq!(text(report, "second/disk")?, text(report, "original")?);
    let interrupts = interrupts(report, "second/interrupts")?;
    ensure!(
        interrupts.iter().all(|(_, chip)| is_msix(chip)),
        "{interrupts:?}"
    );
    ensure!(
        interrupts.iter().any(|(count, _)| *count > 0),
        "{interrupts:?}"
    );
    // Memory keeps what it has, registers were reset.
    assert_eq!(values(report, "second/pattern")?, pattern());
    assert_eq!(values(report, "second/registers")?, [0]);
    assert_eq!(
        text(report, "second/address")?,
        text(report, "card/address")?
    );
    Ok(())
}

#[test]
fn the_kernel_complains_of_nothing() -> Result<()> {
    assert_eq!(text(REPORT.get()?, "complaints")?, "");
    Ok(())
}
