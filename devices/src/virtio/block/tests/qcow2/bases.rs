//! Images that are based on others.

use super::*;

/// An image in the folder that is based on another one there.
pub(super) fn based(folder: &TempDir, name: &str, on: &str, format: &str) -> PathBuf {
    run(
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4k",
            "-b",
            on,
            "-F",
            format,
            name,
        ],
        folder.path(),
    );
    folder.path().join(name)
}

#[test]
fn images_are_based_on_others() {
    for engine in ENGINES {
        let (folder, _) = converted(&pattern(8, DISK / 2), &["-c"]);
        let middle = based(&folder, "middle.qcow2", "disk.qcow2", "qcow2");
        let mut model = pattern(8, DISK / 2);
        let mut driver = opened(&middle, engine);
        write(&mut driver, 9, &[9; 1024]);
        model[9 * 512..][..1024].fill(9);
        drop(driver);
        // Longer than what it is based on.
        run(
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                "middle.qcow2",
                "-F",
                "qcow2",
                "top.qcow2",
                "1M",
            ],
            folder.path(),
        );
        model.resize(DISK, 0);
        let top = folder.path().join("top.qcow2");
        let before = std::fs::read(&middle).unwrap();
        let mut driver = opened(&top, engine);
        assert_eq!(read(&mut driver, 0, 300 << 10), model[..300 << 10]);
        for (sector, length) in [(700, 200 << 10), (10, 512), (1900, 4096)] {
            write(&mut driver, sector, &pattern(3, length));
            model[sector as usize * 512..][..length].copy_from_slice(&pattern(3, length));
        }
        for (kind, range) in [
            (WRITE_ZEROES, (100_u64, 300_u32)),
            (WRITE_ZEROES, (1000, 48)),
        ] {
            assert_eq!(ask_of_range(&mut driver, kind, range, 1), OK);
            let start = range.0 as usize * 512;
            model[start..start + range.1 as usize * 512].fill(0);
        }
        assert_eq!(read(&mut driver, 0, 300 << 10), model[..300 << 10]);
        drop(driver);
        check(&top, true);
        assert!(bytes_of(&top) == model);
        assert!(std::fs::read(&middle).unwrap() == before);
    }
}

#[test]
fn a_base_may_be_raw_and_is_locked_against_writers() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::write(&base, pattern(1, 100_000 / 512 * 512)).unwrap();
    let (one, other) = (
        based(&folder, "one", "base", "raw"),
        based(&folder, "other", "base", "raw"),
    );
    let mut driver = opened(&one, EngineChoice::Auto);
    let second = opened(&other, EngineChoice::Auto);
    // QEMU respects the lock as well.
    let in_use = qemu_img(&["check", "one"], folder.path());
    assert!(
        String::from_utf8_lossy(&in_use.stderr).contains("lock"),
        "{in_use:?}"
    );
    assert_eq!(read(&mut driver, 0, 4096), pattern(1, 4096));
    assert!(matches!(
        Image::open(&options(&base)),
        Err(ImageError::Locked)
    ));
    // The other way round: who is written is no base.
    drop((driver, second));
    let writer = Image::open(&options(&base)).unwrap();
    let said = refusal(&qcow2(&one));
    assert!(said.contains("another program has it locked"), "{said}");
    drop(writer);
    Image::open(&qcow2(&one)).unwrap();
    assert!(refusal(&qcow2(&base)).contains("no qcow2 image"));
}

#[test]
fn what_an_image_may_not_be_based_on_is_said() {
    let (folder, _) = converted(&pattern(0, DISK), &[]);
    let path = based(&folder, "top", "disk.qcow2", "qcow2");
    let without = ImageOptions {
        backing_files: false,
        ..qcow2(&path)
    };
    let said = refusal(&without);
    assert!(
        said.contains("based on \"disk.qcow2\"; backing_files=on"),
        "{said}"
    );
    Image::open(&qcow2(&path)).unwrap();
    // Names and formats that no tool writes without looking.
    let rebase = |name: &str, format: &[&str]| {
        let mut arguments = vec!["rebase", "-u", "-b", name];
        arguments.extend(format);
        arguments.push("top");
        run(&arguments, folder.path());
        refusal(&qcow2(&path))
    };
    assert!(rebase("nbd://localhost/x", &["-F", "raw"]).contains("no path of a file"));
    assert!(
        rebase(
            "json:{\"driver\":\"file\",\"filename\":\"raw\"}",
            &["-F", "raw"]
        )
        .contains("no path")
    );
    assert!(rebase("file:raw", &["-F", "raw"]).contains("no path"));
    assert!(rebase("raw", &["-F", "vmdk"]).contains("format \"vmdk\""));
    assert!(rebase("missing", &["-F", "raw"]).contains("missing: cannot open it"));
    assert!(rebase(".", &["-F", "raw"]).contains("neither a file nor a block device"));
    let said = rebase("top", &["-F", "qcow2"]);
    assert!(
        said.contains("or on itself") || said.contains("locked"),
        "{said}"
    );
    // Readers do not lock each other out.
    let readonly = ImageOptions {
        readonly: true,
        ..qcow2(&path)
    };
    assert!(refusal(&readonly).contains("or on itself"));
    // A base without a format, as older tools made it.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes
        .windows(4)
        .position(|four| four == 0xe279_2aca_u32.to_be_bytes())
        .unwrap();
    bytes[at..at + 4].copy_from_slice(b"\x12\x34\x56\x78");
    std::fs::write(&path, bytes).unwrap();
    assert!(refusal(&qcow2(&path)).contains("without saying in which format"));
}

#[test]
fn chains_end() {
    let (folder, _) = converted(&pattern(0, 4096), &[]);
    let mut last = "disk.qcow2".to_owned();
    for number in 0..10 {
        let name = format!("top{number}");
        based(&folder, &name, &last, "qcow2");
        last = name;
    }
    assert!(refusal(&qcow2(&folder.path().join("top9"))).contains("more than 10 files"));
    Image::open(&qcow2(&folder.path().join("top8"))).unwrap();
}

/// A base may end anywhere, also within what is read at least past the page cache.
#[test]
fn a_base_of_any_size_is_read_past_the_page_cache() {
    for engine in ENGINES {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut model = pattern(7, 70_001);
        std::fs::write(folder.path().join("base"), &model).unwrap();
        let path = based(&folder, "top", "base", "raw");
        let direct = ImageOptions {
            direct: true,
            ..qcow2(&path)
        };
        let image = match Image::open(&direct) {
            Err(ImageError::Direct(_)) => return,
            image => image.unwrap(),
        };
        // As QEMU counts: in whole sectors, the last of which is filled up.
        model.resize(model.len().next_multiple_of(512), 0);
        assert_eq!(image.capacity % 512, 0);
        let length = image.capacity as usize;
        let mut driver = started(image, engine);
        assert!(read(&mut driver, 0, length) == model[..length]);
        drop(driver);
        check(&path, true);
    }
}
