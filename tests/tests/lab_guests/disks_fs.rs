//! File systems on disks, raw and qcow2.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{CMDLINE, Initramfs, Vmm, qcow2};

const MIB: u64 = 1 << 20;

/// How disks are found, by their serial numbers.
const FIND: &str = "
modprobe virtio_blk
# ext4 asks for it, and there is nobody to load it then.
modprobe crc32c_generic
modprobe ext4
disk() { echo /dev/$(basename $(dirname $(grep -lx $1 /sys/block/*/serial))); }
mkdir /mnt
";

fn raw(path: &Path, size: u64) -> Result<()> {
    Ok(File::create(path)?.set_len(size)?)
}

/// Makes an image of the kind that its name ends with, and gives the option for it.
fn image(folder: &Path, name: &str, size: u64) -> Result<String> {
    let path = folder.join(name);
    let kind = match name.ends_with("qcow2") {
        true => {
            qcow2::create(&path, size, None)?;
            "qcow2"
        }
        false => {
            raw(&path, size)?;
            "raw"
        }
    };
    Ok(format!(
        "path={},serial={name},image_type={kind}",
        path.display()
    ))
}

/// Eight disks, half of them qcow2, on two segments: the guest makes a file system on each, writes, boots
/// again, finds it all, and gives room back.
#[test]
fn file_systems_on_eight_disks_keep_what_is_written() -> Result<()> {
    const SCRIPT: &str = "
        for block in /sys/block/vd*; do
            serial=$(cat $block/serial)
            where=/dev/$(basename $block)
            if ! mount -t ext4 -o ro $where /mnt 2>/dev/null; then
                mke2fs $where >/dev/null 2>&1
                mount -t ext4 $where /mnt || exit 1
                dd if=/dev/urandom of=/mnt/file bs=64k count=96 2>/dev/null
                sha256sum </mnt/file >/mnt/sum
                again=yes
            else
                first=$(cat /mnt/sum)
                [ \"$(sha256sum </mnt/file)\" = \"$first\" ] && echo \"$serial kept\"
                mount -o remount,rw /mnt
                rm /mnt/file
                sync
                fstrim /mnt
            fi
            umount /mnt
        done
        if [ \"$again\" ]; then
            sync
            reboot -f
            sleep 1000
        fi
        domains() { for d in /sys/block/vd*; do readlink -f $d/device; done | grep -o 'pci[0-9]*' | sort | uniq -c; }
        section domains domains
        section complaints sh -c 'dmesg | grep -iE \"(virtio|vd[a-z]|ext4).*(fail|error|corrupt)\" || true'
        ";
    let folder = tempfile::tempdir()?;
    let mut disks = Vec::new();
    let mut names = Vec::new();
    for number in 0..8 {
        let kind = if number % 2 == 0 { "raw" } else { "qcow2" };
        let name = format!("{number}.{kind}");
        let segment = number / 4;
        let option = image(folder.path(), &name, 24 * MIB)?;
        disks.push(format!("{option},pci_segment={segment}"));
        names.push(name);
    }
    let script = format!("{FIND}{SCRIPT}");
    let outcome = Vmm::boot(&Initramfs::new(&script).drivers(), CMDLINE)?
        .args(["--platform", "num_pci_segments=2", "--disk"])
        .args(&disks)
        .timeout(Duration::from_secs(120))
        .run()?;
    let report = outcome.report()?;
    assert_eq!(report.text("complaints")?.trim(), "");
    let domains = report.text("domains")?;
    ensure!(domains.matches("4 pci").count() == 2, "{domains}");
    for name in names {
        ensure!(
            outcome.stdout.contains(&format!("{name} kept")),
            "{name}: {}",
            outcome.stdout
        );
        let path = folder.path().join(&name);
        // Of 6 MiB and tables.
        let left = path.metadata()?.blocks() * 512;
        ensure!(left < 3 * MIB, "{left} bytes of {name} are left");
        if name.ends_with("qcow2") {
            qcow2::check(&path)?;
        }
    }
    Ok(())
}

/// What a guest was told is on the disk is there when the VMM is killed, in an image that is in order and
/// based on another one.
#[test]
fn a_qcow2_disk_survives_the_end_of_the_vmm() -> Result<()> {
    const WRITE: &str = "
        where=$(disk top)
        section base sh -c \"head -c 4 $where; echo\"
        mke2fs $where >/dev/null 2>&1
        mount -t ext4 $where /mnt || exit 1
        dd if=/dev/urandom of=/mnt/file bs=64k count=64 2>/dev/null
        sha256sum </mnt/file >/mnt/sum
        sync
        echo flushed
        while true; do dd if=/dev/urandom of=/mnt/other bs=64k count=200 2>/dev/null; rm /mnt/other; done";
    const READ: &str = "
        where=$(disk top)
        mount -t ext4 $where /mnt
        section sum cat /mnt/sum
        section found sh -c 'sha256sum </mnt/file'";
    let folder = tempfile::tempdir()?;
    let (base, top) = (folder.path().join("base"), folder.path().join("top"));
    std::fs::write(&base, b"base".repeat(1 << 20))?;
    qcow2::create(&top, 48 * MIB, Some(("base", "raw")))?;
    let disk = format!("path={},serial=top,num_queues=2", top.display());
    let boot = |script: &str, disk: &str| {
        let initramfs = Initramfs::new(&format!("{FIND}{script}")).drivers();
        let vmm = Vmm::boot(&initramfs, CMDLINE)?.args(["--cpus", "boot=2", "--disk", disk]);
        Ok::<_, anyhow::Error>(vmm.timeout(Duration::from_secs(60)))
    };
    // Nothing that the header names is opened unless it is said.
    let refused = boot(WRITE, &disk)?.run()?;
    ensure!(
        refused.code() == Some(1) && refused.stderr.contains("backing_files=on"),
        "{}",
        refused.stderr
    );
    let disk = format!("{disk},backing_files=on");
    let vmm = boot(WRITE, &disk)?.spawn()?;
    vmm.wait_for_line("flushed")?;
    vmm.signal("KILL")?;
    let outcome = vmm.wait()?;
    assert_eq!(outcome.signal(), Some(9));
    ensure!(outcome.stdout.contains("base"), "{}", outcome.stdout);
    qcow2::check(&top)?;
    let report = boot(READ, &disk)?.run()?.report()?;
    let sum = report.text("sum")?;
    ensure!(sum.len() > 64, "{sum}");
    assert_eq!(report.text("found")?, sum);
    qcow2::check(&top)?;
    ensure!(std::fs::read(base)? == b"base".repeat(1 << 20));
    Ok(())
}

/// As distributions do: an initramfs loads what the disk needs, and the root file system is on it.
#[test]
fn a_guest_boots_from_its_disk() -> Result<()> {
    const INSTALL: &str = "
        mke2fs $(disk system) >/dev/null 2>&1
        mount -t ext4 $(disk system) /mnt || exit 1
        mkdir /mnt/bin /mnt/sbin /mnt/proc /mnt/sys /mnt/dev /mnt/tmp
        cp /bin/busybox /mnt/bin
        ln -s busybox /mnt/bin/sh
        cat >/mnt/sbin/init <<'END'
#!/bin/sh
exec </dev/console >/dev/console 2>&1
/bin/busybox mount -t proc proc /proc
echo '@@ begin root'
grep ' / ' /proc/mounts
echo '@@ end root 0'
echo '@@ begin boots'
echo boot >>/boots
wc -l </boots
echo '@@ end boots 0'
sync
mount -o remount,ro /
echo '@@ exit 0'
poweroff -f
END
        chmod +x /mnt/sbin/init
        mknod /mnt/dev/console c 5 1
        umount /mnt";
    const SWITCH: &str = "
        modprobe virtio_blk
        modprobe crc32c_generic
        modprobe ext4
        root=$(sed -n 's/.*root=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
        mkdir /newroot
        mount -t ext4 $root /newroot || exit 1";
    for name in ["system.raw", "system.qcow2"] {
        let folder = tempfile::tempdir()?;
        let disk = image(folder.path(), name, 32 * MIB)?.replace(name, "system");
        let path = folder.path().join("system");
        std::fs::rename(folder.path().join(name), &path)?;
        let boot = |script: &str, cmdline: &str| {
            let initramfs = Initramfs::new(script).drivers();
            let vmm = Vmm::boot(&initramfs, cmdline)?.args(["--disk", &disk]);
            vmm.timeout(Duration::from_secs(60)).run()?.report()
        };
        boot(&format!("{FIND}{INSTALL}"), CMDLINE)?;
        for count in 1..3 {
            let report = boot(SWITCH, &format!("{CMDLINE} root=/dev/vda"))?;
            let root = report.text("root")?;
            ensure!(root.contains("/dev/vda / ext4"), "{root}");
            assert_eq!(report.text("boots")?.trim(), count.to_string());
        }
        if name.ends_with("qcow2") {
            qcow2::check(&path)?;
        }
    }
    Ok(())
}
