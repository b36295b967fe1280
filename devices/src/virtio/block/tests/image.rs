//! Images: what is refused, what is locked, and what registers say of them.

use std::os::unix::fs::symlink;

use super::*;
use crate::virtio::block::ImageError;

fn refusal(options: &ImageOptions<'_>) -> ImageError {
    match Image::open(options) {
        Ok(_) => panic!("{options:?} is an image"),
        Err(error) => error,
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert!(matches!(refusal(&options(&missing)), ImageError::Open(_)));
    assert!(matches!(refusal(&options(folder.path())), ImageError::Kind));
    // Opening one to be read would wait for a writer.
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let readonly = ImageOptions {
        readonly: true,
        ..options(&pipe)
    };
    assert!(matches!(refusal(&readonly), ImageError::Kind));
    let turning = folder.path().join("turning");
    symlink(&turning, &turning).unwrap();
    assert!(matches!(refusal(&options(&turning)), ImageError::Open(_)));
}

#[test]
fn images_of_other_formats_are_told_apart_unless_called_raw() {
    let mut vhd = vec![0; 1024];
    vhd[512..520].copy_from_slice(b"conectix");
    for (bytes, name) in [
        (&b"vhdxfile"[..], "VHDX"),
        (b"conectix", "VHD"),
        (&vhd, "VHD"),
    ] {
        let file = disk_of(bytes);
        let detected = ImageOptions {
            format: ImageFormat::Detect,
            ..options(file.path())
        };
        let error = refusal(&detected).to_string();
        assert_eq!(
            error,
            format!(
                "{name} images are not supported yet; image_type=raw gives the guest the bytes of the file"
            )
        );
        Image::open(&options(file.path())).unwrap();
    }
    for bytes in [&b""[..], b"QF", b"conecti", &[0; 512]] {
        let file = disk_of(bytes);
        Image::open(&ImageOptions {
            format: ImageFormat::Detect,
            ..options(file.path())
        })
        .unwrap();
    }
}

#[test]
fn a_writable_image_is_for_one_disk_alone() {
    for lock in [Lock::ByteRange, Lock::Full] {
        let file = disk_of(&[0; 4096]);
        let writer = ImageOptions {
            lock,
            ..options(file.path())
        };
        let reader = ImageOptions {
            readonly: true,
            ..writer
        };
        let held = Image::open(&writer).unwrap();
        assert!(matches!(refusal(&writer), ImageError::Locked));
        assert!(matches!(refusal(&reader), ImageError::Locked));
        drop(held);
        let held = [Image::open(&reader).unwrap(), Image::open(&reader).unwrap()];
        assert!(matches!(refusal(&writer), ImageError::Locked));
        drop(held);
        Image::open(&writer).unwrap();
    }
}

/// One that locks bytes leaves those that the file does not have yet to others.
#[test]
fn locks_reach_as_far_as_is_asked() {
    use std::os::unix::fs::MetadataExt as _;
    let file = disk_of(&[0; 4096]);
    let inode = format!(":{} ", file.as_file().metadata().unwrap().ino());
    for (lock, readonly, expected) in [
        (Lock::ByteRange, false, "WRITE 0 4095"),
        (Lock::Full, false, "WRITE 0 EOF"),
        (Lock::Full, true, "READ 0 EOF"),
    ] {
        let held = Image::open(&ImageOptions {
            lock,
            readonly,
            ..options(file.path())
        });
        // Number, kind, whether advisory, mode, process, file, first and last byte (proc_locks(5)).
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let lock = locks.lines().find(|line| line.contains(&inode)).unwrap();
        let words: Vec<&str> = lock.split_whitespace().collect();
        assert_eq!(words[1], "OFDLCK");
        assert_eq!(format!("{} {} {}", words[3], words[6], words[7]), expected);
        drop(held.unwrap());
    }
}

#[test]
fn registers_say_what_the_disk_is() {
    let file = disk_of(&[0; 1536 + 100]);
    let image = Image::open(&options(file.path())).unwrap();
    let blocks = image.blocks;
    let driver = Driver::new(Box::new(Block::new(BlockParts {
        queues: 3,
        queue_size: 128,
        ..parts(image, EngineChoice::Auto)
    })));
    // The last 100 bytes are no sector.
    assert_eq!(register::<8>(&driver, 0), 3);
    assert_eq!(register::<4>(&driver, 12), 126);
    assert_eq!(register::<4>(&driver, 20), 512);
    assert_eq!(512 << register::<1>(&driver, 24), blocks.physical);
    assert_eq!(register::<2>(&driver, 26) * 512, blocks.physical);
    assert_eq!(register::<2>(&driver, 34), 3);
    assert_eq!(register::<4>(&driver, 36), 1 << 22);
    assert_eq!(register::<4>(&driver, 40), 1);
    assert_eq!(register::<4>(&driver, 44) * 512, blocks.physical);
    assert_eq!(register::<4>(&driver, 48), 1 << 22);
    assert_eq!(register::<4>(&driver, 52), 1);
    assert_eq!(register::<4>(&driver, 56), 1);
    assert_eq!(register::<8>(&driver, 60), 0);
    assert_eq!(register::<8>(&driver, 0xff8), 0);
    // SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, MQ, DISCARD, WRITE_ZEROES; neither RO nor CONFIG_WCE.
    assert_eq!(driver.offered() & 0xff_ffff, 0x7644);
}

#[test]
fn a_disk_that_is_not_sparse_does_not_discard() {
    let file = disk_of(&pattern(0, SIZE));
    let image = Image::open(&ImageOptions {
        sparse: false,
        ..options(file.path())
    });
    let mut driver = started(image.unwrap(), EngineChoice::Auto);
    assert_eq!(driver.offered() >> 13 & 3, 2);
    assert_eq!(register::<8>(&driver, 36), 0);
    assert_eq!(register::<4>(&driver, 56), 0);
    assert_eq!(ask_of_range(&mut driver, DISCARD, (0, 8), 0), UNSUPPORTED);
    let room = || {
        use std::os::unix::fs::MetadataExt as _;
        file.as_file().metadata().unwrap().blocks()
    };
    let before = room();
    assert_eq!(ask_of_range(&mut driver, WRITE_ZEROES, (0, 128), 1), OK);
    assert_eq!(contents(&file), vec![0; SIZE]);
    assert_eq!(room(), before);
}

#[test]
fn holes_give_room_back() {
    use std::os::unix::fs::MetadataExt as _;
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 1)] {
        let (mut driver, file) = ordinary(EngineChoice::Auto);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        let before = file.as_file().metadata().unwrap().blocks();
        assert_eq!(ask_of_range(&mut driver, kind, (0, 128), flags), OK);
        let after = file.as_file().metadata().unwrap();
        assert_eq!(after.len(), SIZE as u64);
        assert!(after.blocks() < before, "{} of {before}", after.blocks());
    }
}
