//! What a guest has that is measured, and how each VMM is told of it.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use tests::Vmm;
use tests::tap::open_tap;

use crate::command;
use crate::image::{Format, Store};

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;

/// The device under test.
pub enum Hardware {
    Disk(Disk),
    Net(Net),
}

/// A disk, with a queue for each vCPU.
pub struct Disk {
    pub image: PathBuf,
    pub format: Format,
    pub store: Store,
}

/// An interface, with a pair of queues for each vCPU.
pub struct Net {
    /// Descriptors of the tap. Once both have started, only the VMM has it.
    tap: Vec<OwnedFd>,
    /// Its network, 192.168.<this>.0/24, in which the host is 1 and the guest 2.
    network: u8,
    /// Where the host's end of the load listens.
    port: u16,
}

impl Net {
    /// Makes a tap and gives it an address. Both VMMs get theirs in the same way.
    pub fn new(network: u8, queues: usize, port: u16) -> Result<Self> {
        let name = format!("bench{network}");
        let tap = open_tap(&name, queues)?;
        let address = format!("192.168.{network}.1/24");
        command("ip", &["addr", "add", &address, "dev", &name])?;
        command("ip", &["link", "set", &name, "up"])?;
        Ok(Self { tap, network, port })
    }

    fn descriptors(&self, separator: &str) -> String {
        let numbers = self.tap.iter().map(|queue| queue.as_raw_fd().to_string());
        numbers.collect::<Vec<_>>().join(separator)
    }

    fn mac(&self) -> String {
        format!("52:54:00:00:{}:02", self.network)
    }
}

impl Hardware {
    /// The program for its loads.
    pub fn program(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disk_load",
            Self::Net(_) => "net_load",
        }
    }

    /// What a guest does: it says how many queues it uses, and waits for orders.
    pub fn script(&self) -> String {
        match self {
            Self::Disk(_) => "
echo @init
modprobe virtio_blk
stty -echo
queues=$(ls /sys/block/vda/mq | wc -l)
echo @up $queues
/bin/disk_load /dev/vda
"
            .to_owned(),
            Self::Net(Net { network, port, .. }) => format!(
                "
echo @init
modprobe virtio_net
stty -echo
ip addr add 192.168.{network}.2/24 dev eth0
ip link set eth0 up
queues=$(ls -d /sys/class/net/eth0/queues/tx-* | wc -l)
echo @up $queues
/bin/net_load eth0 192.168.{network}.1:{port}
"
            ),
        }
    }

    /// Tells ours.
    pub fn of_ours(&self, vmm: Vmm, queues: usize) -> Vmm {
        match self {
            Self::Disk(disk) => {
                let direct = match disk.store {
                    Store::Direct => "on",
                    Store::Tmpfs | Store::PageCache => "off",
                };
                let disk = format!(
                    "path={},image_type={},num_queues={queues},queue_size={QUEUE_SIZE},direct={direct}",
                    disk.image.display(),
                    disk.format.name(),
                );
                vmm.args(["--disk", &disk])
            }
            Self::Net(net) => {
                let net = format!(
                    "fd=[{}],num_queues={},queue_size={QUEUE_SIZE},mac={}",
                    net.descriptors(","),
                    2 * queues,
                    net.mac(),
                );
                vmm.args(["--net", &net])
            }
        }
    }

    /// Tells QEMU, with all that makes it fast.
    pub fn of_qemu(&self, vmm: Vmm, queues: usize) -> Vmm {
        match self {
            Self::Disk(disk) => disk.of_qemu(vmm, queues),
            Self::Net(net) => net.of_qemu(vmm, queues),
        }
    }
}

impl Disk {
    /// A thread for each queue, and io_uring.
    fn of_qemu(&self, mut vmm: Vmm, queues: usize) -> Vmm {
        let cache = json!({"direct": self.store == Store::Direct, "no-flush": false});
        let driver = match self.store {
            Store::Tmpfs => "file",
            Store::PageCache | Store::Direct => "host_device",
        };
        let node = json!({
            "driver": self.format.name(),
            "node-name": "disk",
            "cache": cache,
            "discard": "unmap",
            "file": {
                "driver": driver,
                "filename": self.image,
                "aio": "io_uring",
                "cache": cache,
                "discard": "unmap",
            },
        });
        let mut mapping = Vec::new();
        for queue in 0..queues {
            let name = format!("queue{queue}");
            vmm = vmm.args(["-object", &format!("iothread,id={name}")]);
            mapping.push(json!({"iothread": name}));
        }
        let device = json!({
            "driver": "virtio-blk-pci",
            "drive": "disk",
            "num-queues": queues,
            "queue-size": QUEUE_SIZE,
            "iothread-vq-mapping": mapping,
        });
        vmm.args(["-blockdev", &node.to_string()])
            .args(["-device", &device.to_string()])
    }
}

impl Net {
    /// Its packets go through the main thread, unless the host's kernel takes them (vhost).
    fn of_qemu(&self, vmm: Vmm, queues: usize) -> Vmm {
        let vhost = match Path::new("/dev/vhost-net").exists() {
            true => "on",
            false => "off",
        };
        let (key, descriptors) = match queues {
            1 => ("fd", self.descriptors(":")),
            _ => ("fds", self.descriptors(":")),
        };
        let device = json!({
            "driver": "virtio-net-pci",
            "netdev": "net",
            "mac": self.mac(),
            "mq": queues > 1,
            // One for each queue, the control queue, and the configuration.
            "vectors": 2 * queues + 2,
            "rx_queue_size": QUEUE_SIZE,
            "tx_queue_size": QUEUE_SIZE,
            "romfile": "",
        });
        vmm.args([
            "-netdev",
            &format!("tap,id=net,{key}={descriptors},vhost={vhost}"),
        ])
        .args(["-device", &device.to_string()])
    }
}
