//! Disks, as Linux drives them.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tests::{ACCESSES_TO_VMM, CMDLINE, Initramfs, Lab, Report, Vmm, kvm_counter};

const MIB: u64 = 1 << 20;

/// Writes, boots again, and finds what it has written. Disks are told apart by their serial numbers.
const SCRIPT: &str = "
modprobe virtio_blk
disk() { basename $(dirname $(grep -lx $1 /sys/block/*/serial)); }
system=$(disk system)
if [ \"$(dd if=/dev/$system bs=6 count=1 2>/dev/null | tr -d '\\0')\" != marked ]; then
    dd if=/dev/urandom of=/tmp/random bs=1M count=8 2>/dev/null
    dd if=/tmp/random of=/dev/$system bs=1M seek=1 conv=fsync 2>/dev/null
    { echo marked; sha256sum </tmp/random; } | dd of=/dev/$system bs=512 conv=fsync 2>/dev/null
    reboot -f
    sleep 1000
fi
section sum sh -c \"dd if=/dev/$system bs=512 count=1 2>/dev/null | sed -n 2p\"
section found sh -c \"dd if=/dev/$system bs=1M skip=1 count=8 2>/dev/null | sha256sum\"
facts() { cd /sys/block/$system; cat size ro queue/logical_block_size queue/write_cache; ls mq | wc -l; }
section facts facts
section limits cat /sys/block/$system/queue/discard_max_bytes /sys/block/$system/queue/write_zeroes_max_bytes
section discard blkdiscard -o 2097152 -l 7340032 /dev/$system

dense=$(disk dense)
section dense_limits cat /sys/block/$dense/queue/discard_max_bytes
dd if=/dev/zero bs=1M count=4 2>/dev/null | tr '\\0' x >/dev/$dense
sync
section no_discard sh -c \"! blkdiscard /dev/$dense\"

readonly=$(disk readonly)
section readonly sh -c \"cat /sys/block/$readonly/ro; head -c 8 /dev/$readonly; echo\"
section readonly_write sh -c \"! echo x >/dev/$readonly\"

guarded=$(disk guarded)
at() { dd if=/dev/urandom of=/dev/$guarded bs=512 count=1 seek=$1 conv=fsync 2>/dev/null; }
first() { ! at 0; }
section first_sector first
section later_sector at 8

direct=$(disk direct)
dd if=/dev/urandom of=/tmp/random bs=64k count=64 2>/dev/null
section direct_write dd if=/tmp/random of=/dev/$direct bs=64k count=64 oflag=direct
section random sh -c 'sha256sum </tmp/random'
section direct sh -c \"dd if=/dev/$direct bs=1M count=4 iflag=direct 2>/dev/null | sha256sum\"
section complaints sh -c 'dmesg | grep -iE \"(virtio|vd[a-z]).*(fail|error|warn)\" | grep -v \"sector 0\" || true'
";

/// What a guest with its disks reports, and what it has left.
struct Run {
    report: Report,
    folder: TempDir,
    stderr: String,
}

impl Run {
    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn image(folder: &Path, name: &str, size: u64, first: &[u8]) -> Result<()> {
    let file = File::create(folder.join(name)).context("cannot make an image")?;
    file.set_len(size)?;
    file.write_all_at(first, 0)?;
    Ok(())
}

fn run() -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let mut disks = Vec::new();
    for (name, size, options) in [
        ("system", 48 * MIB, "image_type=raw,num_queues=2"),
        ("dense", 4 * MIB, "image_type=raw,sparse=off"),
        ("readonly", MIB, "readonly=on,lock_granularity=full"),
        ("guarded", MIB + 100, "queue_size=4"),
        (
            "direct",
            4 * MIB,
            "image_type=raw,direct=on,queue_affinity=[0@[0]]",
        ),
    ] {
        let first: &[u8] = if name == "readonly" { b"readonly" } else { b"" };
        image(folder.path(), name, size, first)?;
        let path = folder.path().join(name);
        disks.push(format!("path={},serial={name},{options}", path.display()));
    }
    let initramfs = Initramfs::new(SCRIPT).drivers();
    let vmm = Vmm::boot(&initramfs, CMDLINE)?
        .args(["--cpus", "boot=2", "--disk"])
        .args(disks)
        .timeout(Duration::from_secs(60));
    let outcome = vmm.run()?;
    Ok(Run {
        report: outcome.report()?,
        folder,
        stderr: outcome.stderr,
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

#[test]
fn what_was_written_is_there_after_a_reboot() -> Result<()> {
    let sum = text("sum")?;
    ensure!(sum.len() > 64, "{sum}");
    assert_eq!(text("found")?, sum);
    assert_eq!(text("complaints")?, "");
    Ok(())
}

#[test]
fn the_guest_sees_what_the_disk_is() -> Result<()> {
    let sectors = 48 * MIB / 512;
    assert_eq!(text("facts")?, format!("{sectors}\n0\n512\nwrite back\n2"));
    let limit = 1_u64 << 31;
    assert_eq!(text("limits")?, format!("{limit}\n{limit}"));
    assert_eq!(text("dense_limits")?, "0");
    Ok(())
}

#[test]
fn what_the_guest_discards_is_given_back() -> Result<()> {
    text("discard")?;
    // Of 9 MiB, 2 are left.
    let left = shared()?.image("system").metadata()?.blocks() * 512;
    ensure!(left < 4 * MIB, "{left} bytes are left");
    // A disk that is not sparse keeps its room.
    text("no_discard")?;
    let dense = shared()?.image("dense");
    ensure!(dense.metadata()?.blocks() * 512 >= 4 * MIB);
    ensure!(std::fs::read(dense)?.iter().all(|byte| *byte == b'x'));
    Ok(())
}

#[test]
fn a_disk_to_be_read_only_is() -> Result<()> {
    assert_eq!(text("readonly")?, "1\nreadonly");
    text("readonly_write")?;
    let bytes = std::fs::read(shared()?.image("readonly"))?;
    ensure!(bytes.starts_with(b"readonly"));
    Ok(())
}

/// What an image is may not be up to the guest.
#[test]
fn sector_0_of_an_image_of_unknown_type_stays_as_it_is() -> Result<()> {
    text("first_sector")?;
    text("later_sector")?;
    let bytes = std::fs::read(shared()?.image("guarded"))?;
    let (first, rest) = bytes.split_at(512);
    ensure!(first.iter().all(|byte| *byte == 0));
    ensure!(rest.iter().any(|byte| *byte != 0));
    let stderr = &shared()?.stderr;
    ensure!(stderr.contains("say image_type=raw"), "{stderr}");
    ensure!(
        stderr.contains("does not see the last 100 bytes"),
        "{stderr}"
    );
    Ok(())
}

#[test]
#[ignore = "another way to the same file, run by scripts/test --full"]
fn a_disk_without_the_page_cache_keeps_what_is_written() -> Result<()> {
    let sum = text("random")?;
    ensure!(sum.len() > 64, "{sum}");
    assert_eq!(text("direct")?, sum);
    // Its queue works where it was told to.
    let stderr = &shared()?.stderr;
    ensure!(!stderr.contains("not bound"), "{stderr}");
    Ok(())
}

/// And whoever uses the image meanwhile is told so.
#[test]
fn what_was_flushed_survives_the_end_of_the_vmm() -> Result<()> {
    const FLUSH: &str = "modprobe virtio_blk
        yes 0123456 | dd of=/dev/vda bs=64k count=64 iflag=fullblock conv=fsync 2>/dev/null
        echo flushed
        sleep 1000";
    let folder = tempfile::tempdir()?;
    image(folder.path(), "image", 8 * MIB, b"")?;
    let path = folder.path().join("image");
    let disk = format!("path={},image_type=raw", path.display());
    let initramfs = Initramfs::new(FLUSH).drivers();
    let boot = || Ok::<_, anyhow::Error>(Vmm::boot(&initramfs, CMDLINE)?.args(["--disk", &disk]));
    let vmm = boot()?.timeout(Duration::from_secs(30)).spawn()?;
    vmm.wait_for_line("flushed")?;
    let second = boot()?.run()?;
    ensure!(second.code() == Some(1), "{}", second.stderr);
    ensure!(
        second.stderr.contains("another program has it locked")
            && second
                .stderr
                .contains(&format!("--disk path={}", path.display())),
        "{}",
        second.stderr
    );
    vmm.signal("KILL")?;
    assert_eq!(vmm.wait()?.signal(), Some(9));
    let bytes = std::fs::read(&path)?;
    let (written, rest) = bytes.split_at(4 << 20);
    ensure!(written.chunks(8).all(|line| line == b"0123456\n"));
    ensure!(rest.iter().all(|byte| *byte == 0));
    Ok(())
}

/// KVM turns the guest's notifications into events: the VMM carries none of them out.
#[test]
fn requests_do_not_come_to_the_vmm() -> Result<()> {
    const REQUESTS: u64 = 1000;
    let script = format!(
        "modprobe virtio_blk
        echo ready
        read line
        dd if=/dev/vda of=/dev/null bs=4k count={REQUESTS} iflag=direct 2>/dev/null && echo read all
        read line"
    );
    let folder = tempfile::tempdir()?;
    image(folder.path(), "image", 8 * MIB, b"")?;
    let disk = format!(
        "path={},image_type=raw",
        folder.path().join("image").display()
    );
    let mut vmm = Vmm::boot(&Initramfs::new(&script).drivers(), CMDLINE)?
        .args(["--disk", &disk])
        .timeout(Duration::from_secs(30))
        .spawn()?;
    vmm.wait_for_line("ready")?;
    let count = || kvm_counter(vmm.pid(), ACCESSES_TO_VMM);
    let before = match count() {
        // On a machine of its own, KVM may tell root alone. An emulated host is root's.
        Err(error) if Lab::get()?.is_direct() => {
            eprintln!("left out: {error:#}");
            return Ok(());
        }
        count => count?,
    };
    vmm.write("\n")?;
    vmm.wait_for_line("read all")?;
    let accesses = kvm_counter(vmm.pid(), ACCESSES_TO_VMM)? - before;
    vmm.write("\n")?;
    vmm.wait()?.report()?;
    // aarch64's serial port is memory too, and says what was read.
    ensure!(
        accesses < REQUESTS / 2,
        "{accesses} accesses for {REQUESTS} requests"
    );
    Ok(())
}

#[test]
fn images_that_cannot_be_used_are_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    image(folder.path(), "qcow2", MIB, b"QFI\xfb")?;
    for (name, reason) in [
        ("missing", "cannot open it: No such file"),
        ("", "neither a file nor a block device"),
        ("qcow2", "it has version 0 of qcow2; 2 and 3 are known"),
    ] {
        let path = folder.path().join(name);
        let disk = format!("path={}", path.display());
        let outcome = Vmm::boot(&Initramfs::new(""), CMDLINE)?
            .args(["--disk", &disk])
            .run()?;
        ensure!(outcome.code() == Some(1), "{}", outcome.stderr);
        let expected = format!("--disk {disk}: ");
        ensure!(
            outcome.stderr.contains(&expected) && outcome.stderr.contains(reason),
            "{}",
            outcome.stderr
        );
    }
    Ok(())
}
