//! A disk whose image has tables. Its free clusters have what no driver may read, as they do where other
//! bytes of the disk were: a guest must not get them back.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::tempfile::TempFile;

use super::{OUT, contents, header, in_memory, requests, secret};
use crate::virtio::Device;
use crate::virtio::block::{
    Block, BlockParts, EngineChoice, Image, ImageFormat, ImageOptions, Lock,
};
use crate::virtio::testing::hostile::Subject;
use crate::virtio::testing::{Buffer, Driver};

/// Bytes of a cluster. Small ones have tables of few entries, so that there are several of them.
const CLUSTER: usize = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 10;
/// Entries of a table of a cluster's bytes: 64 bits each, refcounts too.
const ENTRIES: usize = CLUSTER / 8;
/// Bytes of the disk: two L2 tables.
const SIZE: usize = 2 * ENTRIES * CLUSTER;
/// Where tables are, in clusters. The header is before them.
const REFCOUNTS: usize = 1;
const BLOCK: usize = 2;
const L1: usize = 3;
/// Clusters that are taken, and all that the file has.
const TAKEN: usize = 4;
const CLUSTERS: usize = 40;

/// Where an entry says that something is, and that nothing else is there.
const ADDRESS: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Where requests are: header, status and data of each queue.
const HEADERS: [u64; 2] = [0x8_0000, 0x8_0100];
const STATUSES: [u64; 2] = [0x8_1000, 0x8_1100];
const DATA: [u64; 2] = [0x8_2000, 0x8_4000];
const LENGTH: usize = 0x1000;
/// Where on the disk is written and read, in sectors: neither begins or ends with a cluster.
const SECTORS: [u64; 2] = [255, 31];

/// The bytes of an image of a disk that has nothing yet, whose free clusters are filled.
pub fn empty_image(filling: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut word = |value: u32| bytes.extend(value.to_be_bytes());
    // The order is that of QEMU's docs/interop/qcow2.rst; zeroes are for a backing file, encryption,
    // snapshots, and features.
    for value in [0x5146_49fb, 3, 0, 0, 0, CLUSTER_BITS, 0, SIZE as u32, 0] {
        word(value);
    }
    for value in [2, 0, (L1 * CLUSTER) as u32, 0, (REFCOUNTS * CLUSTER) as u32] {
        word(value);
    }
    for value in [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 104] {
        word(value);
    }
    bytes.resize(TAKEN * CLUSTER, 0);
    put(&mut bytes, REFCOUNTS, 0, (BLOCK * CLUSTER) as u64);
    for cluster in 0..TAKEN {
        put(&mut bytes, BLOCK, cluster, 1);
    }
    let rest = (CLUSTERS - TAKEN) * CLUSTER;
    bytes.extend(filling.iter().cycle().take(rest));
    bytes
}

fn put(image: &mut [u8], cluster: usize, entry: usize, value: u64) {
    let at = cluster * CLUSTER + entry * 8;
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// What the tables of an image say. Nothing is compressed, and nothing is shared.
pub struct Tables {
    /// Where clusters of the disk are in the file.
    pub places: BTreeMap<usize, usize>,
}

impl Tables {
    /// Reads and checks the tables of an image.
    ///
    /// # Panics
    /// Something is named twice, or refcounts are not how often it is.
    pub fn read(image: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = image.get(at..at + 8).unwrap_or(&[0; 8]);
            u64::from_be_bytes(bytes.try_into().unwrap())
        };
        let table = |at: usize| (0..ENTRIES).map(move |entry| word(at + entry * 8));
        assert_eq!(word(72), 0, "features: dirty, or corrupt");
        let l1 = word(40) as usize;
        let refcounts = word(48) as usize;
        let refcount_clusters = (word(56) >> 32) as usize;
        let mut named = BTreeMap::new();
        let mut name = |what: &'static str, at: usize| {
            assert!(at.is_multiple_of(CLUSTER), "{what} at {at:#x}");
            let before = named.insert(at / CLUSTER, what);
            assert_eq!(before, None, "{what} at {at:#x} as well");
        };
        name("the header", 0);
        name("the L1 table", l1);
        let mut counted = BTreeMap::new();
        for part in 0..refcount_clusters {
            let at = refcounts + part * CLUSTER;
            name("the table of refcount blocks", at);
            for (entry, number) in table(at).zip(part * ENTRIES..) {
                let block = (entry & ADDRESS) as usize;
                if block != 0 {
                    name("a refcount block", block);
                    let counts = table(block).zip(number * ENTRIES..);
                    let counts = counts.filter(|(count, _)| *count != 0);
                    counted.extend(counts.map(|(count, cluster)| (cluster, count)));
                }
            }
        }
        let mut places = BTreeMap::new();
        for (entry, number) in table(l1).take(2).zip(0..) {
            let l2 = (entry & ADDRESS) as usize;
            if l2 == 0 {
                continue;
            }
            assert_ne!(entry & COPIED, 0, "L1 entry {number}");
            name("an L2 table", l2);
            for (entry, cluster) in table(l2).zip(number * ENTRIES..) {
                let place = (entry & ADDRESS) as usize;
                assert_eq!(entry & COMPRESSED, 0, "cluster {cluster}");
                if place != 0 {
                    assert_ne!(entry & COPIED, 0, "cluster {cluster}");
                    name("a cluster", place);
                    places.insert(cluster, place);
                }
            }
        }
        let counted_once: BTreeMap<_, _> = named.keys().map(|cluster| (*cluster, 1)).collect();
        assert_eq!(counted, counted_once, "clusters' refcounts, of {named:?}");
        Self { places }
    }
}

/// A disk, from the host's side.
pub struct Qcow2Disk {
    device: Option<Block>,
    image: TempFile,
    secret: Vec<u8>,
    was_written: bool,
}

impl Qcow2Disk {
    pub fn new() -> Self {
        let image = in_memory();
        let secret = secret();
        image
            .as_file()
            .write_all_at(&empty_image(&secret), 0)
            .unwrap();
        let device = Block::new(BlockParts {
            image: Arc::new(open(image.as_path())),
            queues: 2,
            queue_size: 64,
            host_cpus: Vec::new(),
            engine: EngineChoice::Auto,
            limits: None,
        });
        Self {
            device: Some(device),
            image,
            secret,
            was_written: false,
        }
    }
}

fn open(path: &Path) -> Image {
    let image = Image::open(&ImageOptions {
        path,
        readonly: false,
        direct: false,
        sparse: true,
        format: ImageFormat::Qcow2,
        backing_files: false,
        lock: Lock::ByteRange,
        serial: Some("hostile"),
    });
    image.unwrap()
}

/// What is written by the rules.
fn pattern() -> Vec<u8> {
    (0..LENGTH).map(|at| 128 | (at % 113) as u8).collect()
}

fn request(driver: &mut Driver, queue: usize, kind: u32, sector: u64) {
    driver.fill(HEADERS[queue], &header(kind, sector));
    driver.fill(STATUSES[queue], &[0xff]);
    let part = |gpa, length, writable| Buffer {
        gpa,
        length,
        writable,
    };
    let buffers = [
        part(HEADERS[queue], 16, false),
        part(DATA[queue], LENGTH as u32, kind != OUT),
        part(STATUSES[queue], 1, true),
    ];
    driver.make_available(queue, 0, &buffers);
    driver.kick(queue);
}

impl Subject for Qcow2Disk {
    fn device(&mut self) -> Box<dyn Device> {
        Box::new(self.device.take().unwrap())
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        requests(SIZE)
    }

    fn ask(&mut self, driver: &mut Driver) {
        driver.fill(DATA[0], &pattern());
        request(driver, 0, OUT, SECTORS[0]);
        request(driver, 1, 0, SECTORS[1]);
    }

    fn check_answer(&mut self, driver: &mut Driver) {
        assert_eq!(driver.wait_used(0), (0, 1));
        assert_eq!(driver.wait_used(1), (0, LENGTH as u32 + 1));
        for status in STATUSES {
            assert_eq!(driver.bytes(status, 1), [0]);
        }
        driver.fill(DATA[1], &[0; LENGTH]);
        request(driver, 1, 0, SECTORS[0]);
        assert_eq!(driver.wait_used(1), (0, LENGTH as u32 + 1));
        assert!(driver.bytes(DATA[1], LENGTH) == pattern(), "what is read");
        self.was_written = true;
    }

    fn check_host(&mut self) {
        // The device is gone, and with it the image.
        let image = contents(self.image.as_file());
        let Tables { places } = Tables::read(&image);
        if self.was_written {
            let start = SECTORS[0] as usize * 512;
            for (byte, at) in pattern().into_iter().zip(start..) {
                let place = places[&(at / CLUSTER)] + at % CLUSTER;
                assert_eq!(image[place], byte, "byte {at:#x} of the disk");
            }
        }
    }

    fn secret(&self) -> &[u8] {
        &self.secret
    }
}
