//! A device that owns a node, and a guest that has everything beside it: disks, a network interface,
//! sockets, a console, a serial port and a source of randomness. A process whose memory is the device's
//! alone uses them all.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::coherent_device::Options;
use tests::{CMDLINE, CoherentDevice, Initramfs, Report, Vmm, qcow2};

/// What the node is given.
const NODE: u64 = 256 << 20;
/// The file: so many copies of a MiB that is made of these numbers, a line each.
const COPIES: u64 = 8;
const NUMBERS: std::ops::RangeInclusive<u32> = 1_000_000..=1_131_071;
const DISK: u64 = 64 << 20;
const PORT: u32 = 50;

/// Programs that are `in_node` have memory of the node alone, and so has what they write and read through the
/// page cache, if it is a file's: Linux keeps that of whole disks in memory that cannot be moved.
const SCRIPT: &str = r#"
for driver in virtio_blk crc32c_generic ext4 virtio_net virtio-rng vmw_vsock_virtio_transport; do modprobe $driver; done
for folder in /sys/bus/pci/devices/*; do
    [ "$(cat "$folder/vendor"):$(cat "$folder/device")" != 0x10de:0x2342 ] || device=$folder
done
insmod /lib/coherent_memory.ko
echo "$NODE" >"$device/coherent_memory/add"
node=$(awk '$1 == 2 { print $2 }' "$device/coherent_memory/nodes")
memory() {
    cat /proc/sys/vm/stat_refresh
    grep -E ' (Shmem|FilePages):' "/sys/devices/system/node/node$node/meminfo"
}
disk() { basename $(dirname $(grep -lx $1 /sys/block/*/serial)); }

mkdir /mnt /disk
mount -t tmpfs -o "mpol=bind:$node" none /mnt
in_node() { bind $node sh -c "$1"; }
i=0
while [ $i -lt $COPIES ]; do seq $FIRST $LAST; i=$((i + 1)); done >/mnt/file
section original sh -c 'md5sum </mnt/file'
section in_node memory

for image in raw qcow2; do
    disk=/dev/$(disk $image)
    mke2fs -F -b 4096 $disk >/dev/null 2>&1
    mount -t ext4 $disk /disk
    section $image/buffered_write in_node "cat /mnt/file >/disk/file && sync"
    echo 3 >/proc/sys/vm/drop_caches
    section $image/before memory
    section $image/buffered in_node "md5sum </disk/file"
    section $image/cached memory
    umount /disk
    section $image/direct_write in_node "dd if=/mnt/file of=$disk bs=1M oflag=direct 2>&1"
    section $image/direct in_node "dd if=$disk bs=1M count=$COPIES iflag=direct 2>/dev/null | md5sum"
done

nic=$(basename $(dirname $(grep -lix 52:54:00:00:79:02 /sys/class/net/*/address)))
ip addr add 192.168.79.2/24 dev $nic
ip link set $nic up
section net/echo in_node "nc 192.168.79.1 ECHO </mnt/file | md5sum"
# With sendfile: the interface reads the file where it is.
section net/file in_node "nc 192.168.79.1 SINK -e cat /mnt/file"
section vsock/echo in_node "/bin/vsock connect 2 VSOCK </mnt/file | md5sum"
section random sh -c 'head -c 64 /dev/hwrng | wc -c'
in_node "tail -n 1000 /mnt/file" >/dev/hvc0
section console echo written
section complaints sh -c "dmesg -r | grep -E '^<[0-4]>' | grep -iE 'virtio|vd[a-z]|cut here|hung' || true"
"#;

/// The file.
fn contents() -> Vec<u8> {
    let lines: String = NUMBERS.map(|number| format!("{number}\n")).collect();
    lines.repeat(COPIES as usize).into_bytes()
}

/// Gives back all that it is sent, once; a port.
fn echo() -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut input = stream.try_clone()?;
        std::io::copy(&mut input, &mut stream)?;
        Ok(stream.shutdown(Shutdown::Write)?)
    });
    Ok(port)
}

/// Takes all that it is sent, once; a port, and what it was.
fn sink() -> Result<(u16, Receiver<Vec<u8>>)> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let (sender, received) = channel();
    thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(sender.send(bytes)?)
    });
    Ok((port, received))
}

/// Gives back all that it is sent, once.
fn echo_at(path: &Path) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut input = stream.try_clone()?;
        std::io::copy(&mut input, &mut stream)?;
        stream.flush()?;
        Ok(stream.shutdown(Shutdown::Write)?)
    });
    Ok(())
}

fn kilobytes(report: &Report, section: &str, name: &str) -> Result<u64> {
    let text = report.text(section)?;
    let mut words = text.split_whitespace().skip_while(|word| *word != name);
    let value = words.nth(1).with_context(|| format!("no {name}: {text}"))?;
    Ok(value.parse()?)
}

#[test]
fn a_process_in_a_devices_node_uses_every_other_device() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let file = std::fs::File::create(at("raw"))?;
    file.set_len(DISK)?;
    qcow2::create(&at("qcow2"), DISK, None)?;
    echo_at(&at(&format!("vsock_{PORT}")))?;
    let (sink_port, received) = sink()?;
    let script = SCRIPT
        .replace("ECHO", &echo()?.to_string())
        .replace("SINK", &sink_port.to_string())
        .replace("VSOCK", &PORT.to_string());
    let constants = format!(
        "NODE={NODE} COPIES={COPIES} FIRST={} LAST={}\n",
        NUMBERS.start(),
        NUMBERS.end()
    );
    let initramfs = Initramfs::new(&(constants + &script))
        .module("coherent_memory")
        .drivers()
        .program("bind")
        .program("vsock");
    let coherent = CoherentDevice::start(Options::default())?;
    let socket = coherent.socket().display();
    let place = folder.path().display();
    let cmdline = format!("{CMDLINE} memhp_default_state=online_movable");
    let report = Vmm::boot(&initramfs, &cmdline)?
        .args(["--cpus", "boot=2", "--memory", "size=512M,shared=on"])
        .args(["--numa", "guest_numa_id=0,cpus=[0-1],memory_zones=[mem0]"])
        .arg("guest_numa_id=2")
        .args([
            "--user-device",
            &format!("socket={socket},guest_numa_ids=[2]"),
        ])
        .arg("--disk")
        .arg(format!(
            "path={place}/raw,image_type=raw,direct=on,serial=raw"
        ))
        .arg(format!(
            "path={place}/qcow2,image_type=qcow2,num_queues=2,serial=qcow2"
        ))
        .args([
            "--net",
            "tap=vmtest-n,ip=192.168.79.1,mac=52:54:00:00:79:02",
        ])
        .args(["--vsock", &format!("cid=3,socket={place}/vsock")])
        .args(["--console", &format!("file={place}/console")])
        .timeout(Duration::from_secs(120))
        .run()?
        .report()?;
    let text = |name: &str| Ok::<_, anyhow::Error>(report.text(name)?.trim());
    let original = text("original")?;
    let size = COPIES << 10;
    // The file is in the device's memory, whose bytes the test sees.
    assert_eq!(kilobytes(&report, "in_node", "Shmem:")?, size);
    for disk in ["raw", "qcow2"] {
        for way in ["buffered_write", "direct_write"] {
            text(&format!("{disk}/{way}"))?;
        }
        for way in ["buffered", "direct"] {
            assert_eq!(text(&format!("{disk}/{way}"))?, original, "{disk} {way}");
        }
        // So is what was read from the disk.
        let pages = |when| kilobytes(&report, &format!("{disk}/{when}"), "FilePages:");
        let (before, cached) = (pages("before")?, pages("cached")?);
        ensure!(cached >= before + size * 3 / 4, "{before} {cached}");
    }
    assert_eq!(text("net/echo")?, original);
    text("net/file")?;
    assert_eq!(text("vsock/echo")?, original);
    assert_eq!(text("random")?, "64");
    assert_eq!(text("complaints")?, "");
    let contents = contents();
    ensure!(received.recv_timeout(Duration::from_secs(10))? == contents);
    let console = std::fs::read(at("console"))?;
    let tail = contents.get(contents.len() - 8000..).context("a file")?;
    let expected = String::from_utf8_lossy(tail).replace('\n', "\r\n");
    ensure!(String::from_utf8_lossy(&console).contains(&expected));
    // What is on the disks is what the guest has written there.
    let mut raw = std::fs::read(at("raw"))?;
    raw.truncate(contents.len());
    ensure!(raw == contents);
    qcow2::check(&at("qcow2"))
}
