//! qcow2 images, made and judged by `qemu-img`: `$QEMU_IMG` names it if it is not in the PATH.

mod bases;

use std::path::PathBuf;
use std::process::{Command, Output};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::virtio::block::ImageError;

/// Bytes of the disks under test.
const DISK: usize = 1 << 20;

pub(crate) fn qemu_img(arguments: &[&str], folder: &Path) -> Output {
    let program = std::env::var_os("QEMU_IMG").unwrap_or_else(|| "qemu-img".into());
    let output = Command::new(&program)
        .args(arguments)
        .current_dir(folder)
        .output();
    output
        .unwrap_or_else(|error| panic!("{program:?}: {error}; install qemu-utils or set QEMU_IMG"))
}

pub(crate) fn run(arguments: &[&str], folder: &Path) -> String {
    let output = qemu_img(arguments, folder);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{arguments:?}: {said}\n{complaints}"
    );
    said
}

/// What `qemu-img check` finds: no errors, and no leaks where there may be none (qemu-img(1): 3 is for
/// leaks).
#[track_caller]
pub(crate) fn check(path: &Path, leaks_too: bool) {
    // It may be in use, and locked.
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    let output = qemu_img(
        &["check", "-f", "qcow2", copy.to_str().unwrap()],
        Path::new("/"),
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    let is_good = code == Some(0) || code == Some(3) && !leaks_too;
    assert!(is_good, "{code:?}: {said}\n{complaints}");
}

/// The bytes of the disk, as `qemu-img` reads them.
pub(crate) fn bytes_of(path: &Path) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = path.to_str().unwrap();
    run(
        &["convert", "-f", "qcow2", "-O", "raw", path, "raw"],
        folder.path(),
    );
    std::fs::read(folder.path().join("raw")).unwrap()
}

/// A folder with an image that was created with these options.
pub(crate) fn created(create: &[&str]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend(create);
    arguments.extend(["disk.qcow2", "1M"]);
    run(&arguments, folder.path());
    let path = folder.path().join("disk.qcow2");
    (folder, path)
}

/// A folder with an image that has these bytes.
pub(crate) fn converted(bytes: &[u8], convert: &[&str]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("raw"), bytes).unwrap();
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(convert);
    arguments.extend(["raw", "disk.qcow2"]);
    run(&arguments, folder.path());
    let path = folder.path().join("disk.qcow2");
    (folder, path)
}

fn qcow2(path: &Path) -> ImageOptions<'_> {
    ImageOptions {
        format: ImageFormat::Qcow2,
        backing_files: true,
        ..options(path)
    }
}

fn opened(path: &Path, engine: EngineChoice) -> Driver {
    started(Image::open(&qcow2(path)).unwrap(), engine)
}

/// The error and what it comes from.
#[track_caller]
fn refusal(options: &ImageOptions<'_>) -> String {
    let Err(error) = Image::open(options) else {
        panic!("{options:?} is opened");
    };
    let mut said = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        said = format!("{said}: {error}");
        source = error.source();
    }
    said
}

#[track_caller]
fn write(driver: &mut Driver, sector: u64, bytes: &[u8]) {
    driver.fill(DATA, bytes);
    let data = [readable(DATA, bytes.len() as u32)];
    assert_eq!(ask(driver, OUT, sector, &data), (OK, 1));
}

#[track_caller]
fn read(driver: &mut Driver, sector: u64, length: usize) -> Vec<u8> {
    driver.fill(DATA, &vec![0xee; length]);
    let data = [writable(DATA, length as u32)];
    assert_eq!(ask(driver, IN, sector, &data), (OK, length as u32 + 1));
    driver.bytes(DATA, length)
}

#[test]
fn what_is_written_is_read_again_here_and_by_qemu() {
    let kinds: [&[&str]; 5] = [
        &[],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
        &["-o", "compat=0.10"],
        &["-o", "refcount_bits=1,cluster_size=1k"],
    ];
    for (engine, kind) in ENGINES
        .iter()
        .flat_map(|engine| kinds.map(|kind| (*engine, kind)))
    {
        let (_folder, path) = created(kind);
        let mut driver = opened(&path, engine);
        assert_eq!(register::<8>(&driver, 0), DISK as u64 / 512);
        assert_eq!(read(&mut driver, 0, 4096), [0; 4096], "{kind:?}");
        let mut model = vec![0; DISK];
        for (sector, length, seed) in [
            (3, 512, 1),
            (100, 70_000 / 512 * 512, 2),
            (2047, 512, 3),
            (0, 4096, 4),
        ] {
            let bytes = pattern(seed, length);
            write(&mut driver, sector, &bytes);
            model[sector as usize * 512..][..length].copy_from_slice(&bytes);
            assert_eq!(read(&mut driver, sector, length), bytes, "{kind:?}");
        }
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        // Nothing is closed, and all is there.
        check(&path, true);
        drop(driver);
        check(&path, true);
        assert!(bytes_of(&path) == model, "{kind:?}");
        let mut driver = opened(&path, engine);
        assert_eq!(read(&mut driver, 0, 128 << 10), model[..128 << 10]);
        assert_eq!(
            ask(&mut driver, IN, 2048, &[writable(DATA, 512)]).0,
            IO_ERROR
        );
    }
}

/// What hostile drivers get is an image for others, too, and its tables are judged as they judge them.
#[test]
fn the_image_of_hostile_drivers_is_one() {
    use crate::virtio::block::hostile::{Tables, empty_image};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    std::fs::write(&path, empty_image(b"secret")).unwrap();
    check(&path, true);
    let mut model = bytes_of(&path);
    assert_eq!(model, vec![0; 256 << 10]);
    let mut driver = opened(&path, EngineChoice::Auto);
    for (sector, length) in [(1, 512), (255, 4096), (401, 3 * 512)] {
        write(&mut driver, sector, &pattern(3, length));
        model[sector as usize * 512..][..length].copy_from_slice(&pattern(3, length));
    }
    drop(driver);
    check(&path, true);
    // Free clusters were not empty, and what is written only in part is empty elsewhere.
    assert!(bytes_of(&path) == model);
    let mut image = std::fs::read(&path).unwrap();
    let Tables { places } = Tables::read(&image);
    assert_eq!(places.len(), 1 + 5 + 2);
    let judged = |image: &[u8]| {
        std::panic::catch_unwind(|| {
            Tables::read(image);
        })
    };
    judged(&image).unwrap();
    // A refcount that is one too high: a leak.
    image[2 * 1024 + 8 * 35 + 7] += 1;
    std::fs::write(&path, &image).unwrap();
    let output = qemu_img(&["check", path.to_str().unwrap()], Path::new("/"));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    judged(&image).unwrap_err();
}

#[test]
fn an_image_is_detected() {
    let (_folder, path) = converted(&pattern(5, DISK), &[]);
    let detected = ImageOptions {
        format: ImageFormat::Detect,
        ..options(&path)
    };
    let mut driver = started(Image::open(&detected).unwrap(), EngineChoice::Auto);
    assert_eq!(read(&mut driver, 0, 4096), pattern(5, DISK)[..4096]);
    // Its first sector is the guest's, other than that of a raw image.
    write(&mut driver, 0, &[1; 512]);
}

#[test]
fn compressed_clusters_are_read_and_written_anew() {
    for engine in ENGINES {
        let mut model = pattern(6, DISK);
        let (_folder, path) = converted(&model, &["-c"]);
        let mut driver = opened(&path, engine);
        assert_eq!(
            read(&mut driver, 5, 200 << 10),
            model[5 * 512..][..200 << 10]
        );
        let bytes = pattern(7, 80 << 10);
        write(&mut driver, 33, &bytes);
        model[33 * 512..][..80 << 10].copy_from_slice(&bytes);
        assert_eq!(ask_of_range(&mut driver, WRITE_ZEROES, (512, 256), 1), OK);
        model[512 * 512..768 * 512].fill(0);
        assert_eq!(read(&mut driver, 0, 400 << 10), model[..400 << 10]);
        drop(driver);
        check(&path, true);
        assert!(bytes_of(&path) == model);
    }
}

#[test]
fn what_is_not_supported_is_said() {
    for (create, expected) in [
        (
            &["-o", "data_file=data,data_file_raw=on"][..],
            "external data files are not supported",
        ),
        (
            &["-o", "extended_l2=on"],
            "extended L2 entries are not supported",
        ),
        (
            &["-o", "compression_type=zstd"],
            "compression other than zlib is not supported",
        ),
        (
            &[
                "--object",
                "secret,id=key,data=123456",
                "-o",
                "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
            ],
            "encryption is not supported",
        ),
    ] {
        let (_folder, path) = created(create);
        let said = refusal(&qcow2(&path));
        assert!(said.contains(expected), "{create:?}: {said}");
    }
    let (folder, path) = created(&[]);
    run(&["snapshot", "-c", "one", "disk.qcow2"], folder.path());
    assert!(refusal(&qcow2(&path)).contains("1 internal snapshots"));
    Image::open(&ImageOptions {
        readonly: true,
        ..qcow2(&path)
    })
    .unwrap();
    for (bit, expected) in [(0, "dirty"), (1, "corrupt"), (9, "bits 0x200")] {
        let (_folder, path) = created(&[]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[72..80].copy_from_slice(&(1_u64 << bit).to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        let said = refusal(&qcow2(&path));
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn an_image_that_is_read_only_stays_as_it_is() {
    let (_folder, path) = converted(&pattern(2, DISK), &[]);
    let before = std::fs::read(&path).unwrap();
    let readonly = ImageOptions {
        readonly: true,
        ..qcow2(&path)
    };
    let mut driver = started(Image::open(&readonly).unwrap(), EngineChoice::Auto);
    let _other = Image::open(&readonly).unwrap();
    assert_eq!(
        read(&mut driver, 1, 8192),
        pattern(2, DISK)[512..512 + 8192]
    );
    assert_eq!(ask(&mut driver, OUT, 0, &[readable(DATA, 512)]).0, IO_ERROR);
    assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
    drop(driver);
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn what_is_discarded_is_given_back_and_used_again() {
    use std::os::unix::fs::MetadataExt as _;
    for engine in ENGINES {
        let (_folder, path) = converted(&pattern(3, DISK), &[]);
        let mut driver = opened(&path, engine);
        // The guest is told of whole clusters.
        assert_eq!(register::<4>(&driver, 44), 128);
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let before = blocks();
        assert_eq!(ask_of_range(&mut driver, DISCARD, (0, 1024), 0), OK);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        assert!(
            blocks() + 1000 < before,
            "{} of {before} are left",
            blocks()
        );
        assert_eq!(read(&mut driver, 0, 4096), [0; 4096]);
        let length = std::fs::metadata(&path).unwrap().len();
        for sector in [0, 128, 256, 384] {
            write(&mut driver, sector, &pattern(4, 64 << 10));
        }
        drop(driver);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
        check(&path, true);
        assert!(bytes_of(&path)[1 << 19..] == pattern(3, DISK)[1 << 19..]);
        assert!(bytes_of(&path)[..64 << 10] == pattern(4, 64 << 10));
    }
}

#[test]
fn a_driver_without_flushes_finds_all_on_storage() {
    let (folder, path) = created(&[]);
    let mut driver = Driver::new(Box::new(Block::new(parts(
        Image::open(&qcow2(&path)).unwrap(),
        EngineChoice::Auto,
    ))));
    driver.start(1 << 9, 16);
    write(&mut driver, 10, &[5; 1024]);
    write(&mut driver, 11, &[6; 512]);
    // As if the host had ended: what is in the VMM's memory is not there.
    let copy = folder.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    check(&copy, true);
    assert_eq!(
        bytes_of(&copy)[10 * 512..12 * 512],
        [[5; 512], [6; 512]].concat()
    );
}

#[test]
fn direct_input_and_output() {
    for engine in ENGINES {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("disk");
        std::fs::write(folder.path().join("raw"), pattern(4, DISK)).unwrap();
        run(
            &["convert", "-f", "raw", "-O", "qcow2", "raw", "base"],
            folder.path(),
        );
        run(
            &[
                "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "disk", "2M",
            ],
            folder.path(),
        );
        let direct = ImageOptions {
            direct: true,
            ..qcow2(&path)
        };
        let image = match Image::open(&direct) {
            Err(ImageError::Direct(_)) => return,
            image => image.unwrap(),
        };
        let mut model = pattern(4, DISK);
        model.resize(2 * DISK, 0);
        let mut driver = started(image, engine);
        let unit = register::<4>(&driver, 20) as usize;
        // Buffers that are not aligned.
        for (block, length) in [(1, unit), (3, 300 << 10), (100, 8 << 10)] {
            let sector = (block * unit / 512) as u64;
            driver.fill(DATA + 8, &pattern(9, length));
            assert_eq!(
                ask(
                    &mut driver,
                    OUT,
                    sector,
                    &[readable(DATA + 8, length as u32)]
                )
                .0,
                OK
            );
            model[block * unit..][..length].copy_from_slice(&pattern(9, length));
            let read = ask(&mut driver, IN, 0, &[writable(DATA + 8, 384 << 10)]);
            assert_eq!(read.0, OK);
            assert!(driver.bytes(DATA + 8, 384 << 10) == model[..384 << 10]);
        }
        drop(driver);
        check(&path, true);
        assert!(bytes_of(&path) == model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_qcow2_image_is_as_a_model_and_qemu_say(
        engine in prop::sample::select(ENGINES.to_vec()),
        bounced in any::<bool>(),
        kind in 0..6_usize,
        acts in prop::collection::vec(
            (prop::sample::select(vec![IN, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES]), 0..2048_u64, 0..300_u32, any::<u8>()),
            1..40,
        ),
    ) {
        let mut model = vec![0; DISK];
        let (folder, path) = match kind {
            0 => created(&[]),
            1 => created(&["-o", "cluster_size=512"]),
            2 => created(&["-o", "compat=0.10,cluster_size=4k"]),
            3 => { model = pattern(1, DISK); converted(&model, &["-c", "-o", "cluster_size=8k"]) }
            4 => { model = pattern(2, DISK); converted(&model, &["-o", "compat=0.10"]) }
            _ => { model = pattern(3, DISK); converted(&model, &[]) }
        };
        let path = match kind {
            5 => bases::based(&folder, "top", "disk.qcow2", "qcow2"),
            _ => path,
        };
        let image = Image::open(&qcow2(&path)).unwrap();
        let image = if bounced { image.with_alignment(4096, 512) } else { image };
        let mut driver = started(image, engine);
        // What it is based on is locked while it is open, and QEMU wants to read it.
        let is_based = kind == 5;
        for (kind, sector, count, seed) in acts {
            let count = count.min((2048 - sector) as u32);
            let range = sector as usize * 512..(sector as usize + count as usize) * 512;
            let length = count * 512;
            match kind {
                IN => {
                    prop_assert_eq!(ask(&mut driver, IN, sector, &[writable(DATA + 8, length)]).0, OK);
                    prop_assert!(driver.bytes(DATA + 8, length as usize) == model[range]);
                }
                OUT => {
                    let bytes = pattern(seed, length as usize);
                    driver.fill(DATA + 8, &bytes);
                    let half = length / 2;
                    let data = [readable(DATA + 8, half), readable(DATA + 8 + u64::from(half), length - half)];
                    prop_assert_eq!(ask(&mut driver, OUT, sector, &data).0, OK);
                    model[range].copy_from_slice(&bytes);
                }
                FLUSH => {
                    prop_assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
                    if !is_based {
                        check(&path, true);
                    }
                }
                DISCARD => {
                    prop_assert_eq!(ask_of_range(&mut driver, DISCARD, (sector, count), 0), OK);
                    // What is read now may be anything that was there, or zeroes; it is the same from now on.
                    for (at, piece) in (sector..).zip(model[range].chunks_mut(512)) {
                        let (status, _) = ask(&mut driver, IN, at, &[writable(DATA, 512)]);
                        prop_assert_eq!(status, OK);
                        let found = driver.bytes(DATA, 512);
                        prop_assert!(found == [0; 512] || found == piece);
                        piece.copy_from_slice(&found);
                    }
                }
                _ => {
                    let unmap = u32::from(seed & 1);
                    prop_assert_eq!(ask_of_range(&mut driver, WRITE_ZEROES, (sector, count), unmap), OK);
                    model[range].fill(0);
                }
            }
        }
        drop(driver);
        check(&path, true);
        prop_assert!(bytes_of(&path) == model);
    }
}

/// Tables are synced in between, also when nobody asks for a flush: what fails there is told to who does.
#[test]
fn tables_that_could_not_be_synced_let_flushes_fail() {
    for engine in ENGINES {
        let (_folder, path) = created(&[]);
        let image = Arc::new(Image::open(&qcow2(&path)).unwrap());
        let parts = BlockParts {
            image: Arc::clone(&image),
            ..parts(Image::of_file(tempfile::tempfile().unwrap(), 512), engine)
        };
        let mut driver = Driver::new(Box::new(Block::new(parts)));
        driver.start(0, 16);
        write(&mut driver, 0, &[1; 512]);
        assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, OK);
        write(&mut driver, 0, &[2; 512]);
        image.disk().unwrap().file().lose();
        for _ in 0..2 {
            assert_eq!(ask(&mut driver, FLUSH, 0, &[]).0, IO_ERROR);
        }
        assert_eq!(read(&mut driver, 0, 512), [2; 512]);
    }
}
