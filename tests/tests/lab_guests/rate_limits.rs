//! Disks with limits, as Linux feels them.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{CMDLINE, Initramfs, SharedReport, Vmm};

/// Disks by their serial numbers: all but one do no more than 8 operations or 640 KiB in a second, which any
/// host does.
const DISKS: [(&str, &str); 6] = [
    ("free", ""),
    ("bytes", ",bw_size=64K,bw_refill_time=100"),
    ("operations", ",ops_size=2,ops_refill_time=250"),
    ("one", ",rate_limit_group=group"),
    ("two", ",rate_limit_group=group,num_queues=2"),
    (
        "slow",
        ",ops_size=1,ops_refill_time=250,ops_one_time_burst=160",
    ),
];

/// Reads past the guest's page cache, and says when it has begun and ended. In the first boot the burst of
/// one disk is used up, and more is waiting for it when the guest reboots; in the second when its driver
/// is taken away.
const SCRIPT: &str = "
modprobe virtio_blk
disk() { basename $(dirname $(grep -lx $1 /sys/block/*/serial)); }
reads() { dd if=/dev/$1 of=/dev/null bs=$2 count=$3 iflag=direct 2>/dev/null; }
now() { read -r uptime rest </proc/uptime; echo $uptime; }
timed() { before=$(now); \"$@\"; code=$?; echo $before $(now); return $code; }
thrice() { for round in 1 2 3; do timed \"$@\" || return; done; }
flood() { for reader in 1 2 3 4; do reads $slow 4k 1000 & done; sleep 1; }
free=$(disk free)
slow=$(disk slow)
if [ \"$(dd if=/dev/$free bs=6 count=1 2>/dev/null)\" != marked ]; then
    section burst timed reads $slow 4k 150
    echo marked | dd of=/dev/$free conv=fsync 2>/dev/null
    flood
    reboot -f
    sleep 1000
fi
section spent timed reads $slow 4k 9
section free thrice reads $free 4k 16
section bytes thrice reads $(disk bytes) 64k 16
section operations thrice reads $(disk operations) 4k 16
one=$(disk one)
two=$(disk two)
both() {
    timed reads $one 4k 12 >/tmp/one &
    timed reads $two 4k 12 >/tmp/two &
    sleep 1
    thrice reads $free 4k 4 >/tmp/free
    wait
    cat /tmp/one /tmp/two /tmp/free
}
section both both
virtio=$(basename $(readlink /sys/block/$slow/device))
driver=/sys/bus/virtio/drivers/virtio_blk
flood
section unbind timed sh -c \"echo $virtio >$driver/unbind\"
wait
section bind sh -c \"echo $virtio >$driver/bind\"
slow=$(disk slow)
section again timed reads $slow 4k 9
section complaints sh -c 'dmesg | grep -iE \"(blocked for more|virtio.*(fail|error|warn))\" || true'
";

static REPORT: SharedReport = SharedReport::new(|| {
    let folder = tempfile::tempdir()?;
    let mut disks = Vec::new();
    for (serial, options) in DISKS {
        let path = folder.path().join(serial);
        File::create(&path)?.set_len(4 << 20)?;
        let path = path.display();
        disks.push(format!(
            "path={path},serial={serial},image_type=raw{options}"
        ));
    }
    let initramfs = Initramfs::new(SCRIPT).drivers();
    let vmm = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--cpus", "boot=2", "--rate-limit-group"])
        .args([
            "id=group,ops_size=1,ops_refill_time=250",
            "id=unused,bw_size=1,bw_refill_time=1000",
            "--disk",
        ])
        .args(disks)
        .timeout(Duration::from_secs(90));
    vmm.run()?.report()
});

/// When what a section has timed began and ended, in seconds: a line each.
fn times(section: &str) -> Result<Vec<(f64, f64)>> {
    let text = REPORT.get()?.text(section)?;
    let line = |line: &str| {
        let (start, end) = line.split_once(' ').context("not two times")?;
        anyhow::Ok((start.parse()?, end.trim().parse()?))
    };
    let times: Result<Vec<_>> = text.trim().lines().map(line).collect();
    times.with_context(|| text.to_owned())
}

/// The least and the most seconds that it took.
fn seconds(section: &str) -> Result<(f64, f64)> {
    let times = times(section)?;
    let seconds = times.iter().map(|(start, end)| end - start);
    let least = seconds.clone().reduce(f64::min);
    least
        .zip(seconds.reduce(f64::max))
        .context("nothing was timed")
}

/// Whether it took so many seconds: never less, as far as the guest's clock tells, and once not much more.
/// An emulated host stands still for seconds now and then.
fn took(section: &str, expected: f64) -> Result<()> {
    let (least, most) = seconds(section)?;
    let is_right = least >= expected * 0.95 && least <= expected * 2.0 + 0.5;
    ensure!(is_right, "{section}: {least} s to {most} s");
    Ok(())
}

/// 1 MiB, of which 64 KiB are there at once.
#[test]
fn bytes_take_as_long_as_they_should() -> Result<()> {
    took("bytes", 960.0 / 640.0)
}

#[test]
fn operations_take_as_long_as_they_should() -> Result<()> {
    took("operations", 14.0 / 8.0)?;
    let (free, _) = seconds("free")?;
    ensure!(free < 1.2, "{free} s without limits");
    Ok(())
}

#[test]
fn a_group_shares_its_limits_and_takes_turns() -> Result<()> {
    let times = times("both")?;
    let [one, two, ref free @ ..] = times[..] else {
        anyhow::bail!("{times:?}");
    };
    let start = one.0.min(two.0);
    let (first, last) = (one.1.min(two.1) - start, one.1.max(two.1) - start);
    // 24 operations, of which one is there at once.
    ensure!((5.4..=12.0).contains(&last), "{times:?}");
    // Without turns the one would be done in half of the time.
    ensure!(first >= 4.0, "{times:?}");
    // Four while the others wait: with them they would take a second and more.
    let free = free.iter().map(|(start, end)| end - start);
    ensure!(
        free.reduce(f64::min).is_some_and(|free| free < 0.9),
        "{times:?}"
    );
    Ok(())
}

/// The second boot finds the bucket as the first has left it.
#[test]
#[ignore = "two boots that wait, run by scripts/test --full"]
fn a_burst_comes_once_for_all_boots() -> Result<()> {
    let (burst, _) = seconds("burst")?;
    ensure!(burst < 150.0 / 4.0 / 2.0, "{burst} s");
    let (spent, _) = seconds("spent")?;
    ensure!(spent >= 8.0 / 4.0 * 0.95, "{spent} s");
    Ok(())
}

/// Linux waits for the four that are under way before it resets a disk.
#[test]
#[ignore = "another guest that waits, run by scripts/test --full"]
fn a_driver_is_taken_from_a_disk_that_waits() -> Result<()> {
    let (unbind, _) = seconds("unbind")?;
    ensure!(unbind < 10.0, "{unbind} s");
    REPORT.get()?.text("bind")?;
    let (again, _) = seconds("again")?;
    ensure!(again >= 8.0 / 4.0 * 0.95, "{again} s");
    assert_eq!(REPORT.get()?.text("complaints")?.trim(), "");
    Ok(())
}
