use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::config::MemoryZoneConfig;

const MIB: u64 = 1 << 20;

/// A zone of `size` bytes that nothing else is said of.
fn zone(id: &str, size: u64) -> MemoryZoneConfig {
    let bare = MemoryConfig {
        size,
        ..MemoryConfig::default()
    };
    MemoryZoneConfig {
        id: id.to_owned(),
        ..bare.as_zones().remove(0)
    }
}

/// A shared zone of `size` bytes in the file or folder `path`.
fn in_file(id: &str, size: u64, path: &Path) -> MemoryZoneConfig {
    MemoryZoneConfig {
        file: Some(path.to_owned()),
        shared: true,
        ..zone(id, size)
    }
}

fn config(zones: &[MemoryZoneConfig]) -> MemoryConfig {
    MemoryConfig {
        size: 0,
        zones: zones.to_owned(),
        ..MemoryConfig::default()
    }
}

fn range(start: u64, size: u64) -> GpaRange {
    GpaRange { start, size }
}

/// A plan of zones with their ranges.
fn plan(zones: &[(&str, &[GpaRange])]) -> MemoryPlan {
    let zone = |&(id, ranges): &(&str, &[GpaRange])| ZonePlan {
        id: id.to_owned(),
        ranges: ranges.to_vec(),
    };
    MemoryPlan {
        ram: Vec::new(),
        zones: zones.iter().map(zone).collect(),
        acpi_window: None,
        mmio32: range(0, 0),
        mmio64: range(0, 0),
    }
}

/// The only zone `config` says, from address 0.
fn alone(config: MemoryZoneConfig) -> Result<GuestRam, MemoryError> {
    let ranges = [range(0, config.size)];
    let plan = plan(&[(&config.id, &ranges)]);
    GuestRam::map(&plan, &self::config(&[config]))
}

fn refused(config: MemoryZoneConfig) -> String {
    alone(config).unwrap_err().to_string()
}

fn byte_at(file: &Path, offset: u64) -> u8 {
    let mut byte = [0];
    let file = File::open(file).unwrap();
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

#[test]
fn every_range_of_every_zone_is_a_region() {
    let ranges = [
        &[range(0, MIB), range(16 * MIB, MIB)][..],
        &[range(17 * MIB, 2 * MIB)],
    ];
    let plan = plan(&[("a", ranges[0]), ("b", ranges[1])]);
    let config = config(&[zone("b", 2 * MIB), zone("a", 2 * MIB)]);
    let ram = GuestRam::map(&plan, &config).unwrap();
    let regions = ram.memory().iter();
    let regions: Vec<GpaRange> = regions
        .map(|region| range(region.start_addr().0, region.len()))
        .collect();
    assert_eq!(regions, ranges.concat());
}

#[test]
fn writes_and_files_cross_from_one_zone_into_the_next() {
    let plan = plan(&[("a", &[range(0, MIB)]), ("b", &[range(MIB, MIB)])]);
    let config = config(&[zone("a", MIB), zone("b", MIB)]);
    let ram = GuestRam::map(&plan, &config).unwrap();
    let start = GuestAddress(MIB - 3);
    ram.memory().write_slice(b"crossing", start).unwrap();
    let mut read = [0; 8];
    ram.memory().read_slice(&mut read, start).unwrap();
    assert_eq!(&read, b"crossing");

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"a kernel").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let loaded = ram.memory().read_exact_volatile_from(start, &mut file, 8);
    loaded.unwrap();
    ram.memory().read_slice(&mut read, start).unwrap();
    assert_eq!(&read, b"a kernel");
}

#[test]
fn host_and_guest_addresses_agree_in_what_the_largest_page_spans() {
    let gpa = (5 << 30) + 3 * MIB;
    let plan = plan(&[("a", &[range(gpa, MIB)])]);
    let ram = GuestRam::map(&plan, &config(&[zone("a", MIB)])).unwrap();
    let address = ram.zones[0].mappings[0].1.address() as u64;
    assert_eq!(address % (1 << 30), 3 * MIB);
}

#[test]
fn ranges_of_a_zone_follow_each_other_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ram");
    File::create(&path).unwrap();
    let ranges = [range(0, MIB), range(16 * MIB, 2 * MIB)];
    let plan = plan(&[("a", &ranges)]);
    let ram = GuestRam::map(&plan, &config(&[in_file("a", 3 * MIB, &path)])).unwrap();
    assert_eq!(path.metadata().unwrap().len(), 3 * MIB);
    ram.memory().write_obj(1_u8, GuestAddress(0)).unwrap();
    let second = GuestAddress(16 * MIB);
    ram.memory().write_obj(2_u8, second).unwrap();
    assert_eq!((byte_at(&path, 0), byte_at(&path, MIB)), (1, 2));
}

#[test]
fn a_file_keeps_its_contents_and_what_is_beyond_the_zone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ram");
    fs::write(&path, vec![7; 2 << 20]).unwrap();
    let ram = alone(in_file("a", MIB, &path)).unwrap();
    assert_eq!(path.metadata().unwrap().len(), 2 * MIB);
    let last = GuestAddress(MIB - 1);
    assert_eq!(ram.memory().read_obj::<u8>(last).unwrap(), 7);
    // Longer than the file: the rest is empty.
    let ram = alone(in_file("a", 3 * MIB, &path)).unwrap();
    let first_new = GuestAddress(2 * MIB);
    assert_eq!(ram.memory().read_obj::<u8>(first_new).unwrap(), 0);
}

#[test]
fn a_private_zone_leaves_its_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ram");
    fs::write(&path, [7; 4096]).unwrap();
    let private = MemoryZoneConfig {
        shared: false,
        ..in_file("a", 4096, &path)
    };
    let ram = alone(private).unwrap();
    let start = GuestAddress(0);
    assert_eq!(ram.memory().read_obj::<u8>(start).unwrap(), 7);
    ram.memory().write_obj(1_u8, start).unwrap();
    assert_eq!(byte_at(&path, 0), 7);
}

/// A file in it without a name, found through /proc/self/maps.
#[test]
fn a_folder_stays_empty() {
    let folder = tempfile::tempdir().unwrap();
    let ram = alone(in_file("a", MIB, folder.path())).unwrap();
    ram.memory().write_obj(1_u8, GuestAddress(0)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let mut maps = String::new();
    let mut file = File::open("/proc/self/maps").unwrap();
    file.read_to_string(&mut maps).unwrap();
    let inside = format!("{}/", folder.path().display());
    assert!(maps.contains(&inside), "{inside} not in {maps}");
}

#[test]
fn files_that_cannot_hold_ram_are_named_with_their_zone() {
    let missing = refused(in_file("far", MIB, Path::new("/nonexistent/ram")));
    let option = "--memory-zone id=far,file=/nonexistent/ram: ";
    assert!(missing.starts_with(option), "{missing}");
    let device = refused(in_file("far", MIB, Path::new("/dev/null")));
    let expected = "--memory-zone id=far,file=/dev/null: neither a regular file nor a folder";
    assert_eq!(device, expected);
    // /proc has no files to be made.
    let folder = refused(in_file("far", MIB, Path::new("/proc")));
    let option = "--memory-zone id=far,file=/proc: cannot make a file in this folder";
    assert!(folder.starts_with(option), "{folder}");
}

#[test]
fn two_zones_are_never_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a", "b"].map(|name| folder.path().join(name));
    File::create(&names[0]).unwrap();
    fs::hard_link(&names[0], &names[1]).unwrap();
    let plan = plan(&[("a", &[range(0, MIB)]), ("b", &[range(MIB, MIB)])]);
    let zones = [in_file("a", MIB, &names[0]), in_file("b", MIB, &names[1])];
    let error = GuestRam::map(&plan, &config(&zones)).unwrap_err();
    let expected = format!(
        "--memory-zone id=b,size=0x100000,file={},shared=on: zone a is in this file; give each \
         zone a file of its own",
        names[1].display()
    );
    assert_eq!(error.to_string(), expected);
    // A folder makes one for each.
    let zones = ["a", "b"].map(|id| in_file(id, MIB, folder.path()));
    let ram = GuestRam::map(&plan, &config(&zones)).unwrap();
    ram.memory().write_obj(1_u8, GuestAddress(0)).unwrap();
    assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(MIB)).unwrap(), 0);
}

#[test]
fn ranges_are_whole_pages() {
    let error = refused(zone("a", MIB + 1));
    let option = "--memory-zone id=a,size=0x100001: the host's pages for it have 0x";
    assert!(error.starts_with(option), "{error}");
    assert!(
        error.contains("0x100001 bytes from guest address 0x0"),
        "{error}"
    );
}

/// The first bit beyond what the kernel is told of, and numbers far beyond.
#[test]
fn nodes_that_no_host_has_are_named() {
    for node in [1024, u32::MAX] {
        let error = refused(MemoryZoneConfig {
            host_numa_node: Some(node),
            ..zone("a", MIB)
        });
        let option = format!("--memory-zone id=a,host_numa_node={node}: the host refuses it");
        assert!(error.starts_with(&option), "{error}");
    }
}

#[test]
fn a_zone_that_was_not_asked_for_is_refused() {
    let plan = plan(&[("b", &[range(0, MIB)])]);
    let error = GuestRam::map(&plan, &config(&[zone("a", MIB)])).unwrap_err();
    assert!(error.to_string().contains("memory zone b"), "{error}");
}

#[test]
fn ram_without_zones_is_named_after_memory() {
    let config = MemoryConfig {
        size: 1 << 62,
        ..MemoryConfig::default()
    };
    let ranges = [range(0, config.size)];
    let error = GuestRam::map(&plan(&[("mem0", &ranges)]), &config).unwrap_err();
    let expected = "--memory size=0x4000000000000000: cannot map 0x4000000000000000 bytes of guest \
                    RAM: choose a smaller size";
    assert_eq!(error.to_string(), expected);
}

/// Flags and resident bytes of what is mapped where `ram` begins (proc_pid_smaps(5)).
fn mapped(ram: &GuestRam) -> (Vec<String>, u64) {
    let region = ram.memory().iter().next().unwrap();
    let start = vm_memory::MemoryRegionAddress(0);
    let address = region.get_host_address(start).unwrap() as u64;
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let range = |line: &str| -> Option<(u64, u64)> {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some((
            u64::from_str_radix(start, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        ))
    };
    let holds = |line: &&str| range(line).is_some_and(|(a, b)| (a..b).contains(&address));
    let fields: Vec<&str> = smaps.lines().skip_while(|line| !holds(line)).collect();
    let field = |name: &str| {
        fields
            .iter()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
    };
    let resident: u64 = field("Rss:")
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    let flags = field("VmFlags:")
        .split_whitespace()
        .map(String::from)
        .collect();
    (flags, resident << 10)
}

/// Each key by what the host then knows of the mapping; what needs huge pages of the host is for
/// guests in the lab to show.
#[test]
fn options_of_memory_reach_the_host() {
    let map = |change: fn(&mut MemoryConfig)| {
        let mut config = MemoryConfig {
            size: 8 * MIB,
            ..MemoryConfig::default()
        };
        change(&mut config);
        let ram = GuestRam::map(&plan(&[("mem0", &[range(0, config.size)])]), &config).unwrap();
        ram.populate().unwrap();
        mapped(&ram)
    };
    let has = |(flags, _): &(Vec<String>, u64), flag: &str| flags.iter().any(|other| other == flag);

    let plain = map(|_| {});
    assert!(
        has(&plain, "dd") && !has(&plain, "sh") && !has(&plain, "mg"),
        "{plain:?}"
    );
    // A host without these has no such flags, and refuses or ignores the wish.
    if Path::new("/sys/kernel/mm/ksm").exists() {
        assert!(has(&map(|config| config.mergeable = true), "mg"));
    }
    if Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        assert!(has(&plain, "hg") && !has(&plain, "nh"), "{plain:?}");
        let small = map(|config| config.thp = false);
        assert!(has(&small, "nh") && !has(&small, "hg"), "{small:?}");
    }
    let shared = map(|config| config.shared = true);
    assert!(has(&shared, "sh"), "{shared:?}");
    assert_eq!(shared.1, 0);
    let prefaulted = map(|config| (config.shared, config.prefault) = (true, true));
    assert_eq!(prefaulted.1, 8 * MIB);
}
