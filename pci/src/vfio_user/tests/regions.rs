//! What a server says of itself and its device.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;

use vfio_bindings::bindings::vfio::*;
use zerocopy::IntoBytes;

use super::super::wire::*;
use super::server::{CAPS, FIRST, MMAP, RW, Region, Script, memfd, sparse};
use super::*;
use crate::device::{Device, IrqKind};

fn unusable(script: Script) -> String {
    unusable_if(script, honest)
}

fn unusable_if(
    script: Script,
    tamper: impl FnMut(&Request, &mut Reply) + Send + 'static,
) -> String {
    let (client, server) = try_connect(script, tamper);
    let error = client.unwrap_err();
    assert!(matches!(error, ConnectError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains(PATH));
    server.finish();
    chain(&error)
}

#[track_caller]
fn assert_contains(text: &str, expected: &str) {
    assert!(text.contains(expected), "{text:?} is not {expected:?}");
}

/// A BAR of eight pages that lists the areas, in pages, of a file of so many pages.
fn listed(areas: &[(u64, u64)], file_pages: u64) -> Region {
    let page = page_size();
    let areas: Vec<_> = areas
        .iter()
        .map(|(at, size)| (at * page, size * page))
        .collect();
    Region {
        flags: RW | MMAP | CAPS,
        size: 8 * page,
        offset: 0,
        cap_offset: FIRST,
        capabilities: sparse(0, &areas),
        file: Some(file(file_pages)),
    }
}

#[test]
fn a_device_is_what_its_server_says() {
    let mut script = Script::new();
    script.regions[6] = Region {
        flags: VFIO_REGION_INFO_FLAG_READ,
        size: 0x800,
        ..Default::default()
    };
    script.irqs[1].flags = 0;
    let (client, server) = connect(script, honest);
    assert!(client.can_reset());
    assert_eq!(client.region(0).size, 0x2000);
    assert!(client.region(0).mappable.is_empty());
    assert!(client.region(6).readable && !client.region(6).writable);
    assert_eq!(client.region(7).size, 0x1000);
    assert_eq!(client.region(8).size, 0);
    assert_eq!(client.region(9).size, 0);
    assert_eq!(client.region(u32::MAX).size, 0);
    assert_eq!(
        [IrqKind::Intx, IrqKind::Msi, IrqKind::Msix].map(|kind| client.irqs(kind)),
        // Those that cannot be sent by eventfd are of no use.
        [1, 0, 64]
    );
    drop(client);
    let ids: Vec<_> = server
        .finish()
        .requests
        .iter()
        .map(|request| request.header.id)
        .collect();
    assert_eq!(ids, (0..14).collect::<Vec<_>>());
}

#[test]
fn fewer_regions_and_interrupts() {
    let mut script = Script::new();
    script.info.regions = 8;
    script.info.irqs = 1;
    script.info.flags = VFIO_DEVICE_FLAGS_PCI;
    let (client, server) = connect(script, honest);
    assert!(!client.can_reset());
    assert_eq!(refused(client.reset()).kind(), io::ErrorKind::Unsupported);
    assert_eq!(client.irqs(IrqKind::Intx), 1);
    assert_eq!(client.irqs(IrqKind::Msix), 0);
    drop(client);
    assert_eq!(server.finish().of(Command::DeviceGetRegionInfo).count(), 8);
}

#[test]
fn versions() {
    for (major, minor, good) in [(0, 0, true), (0, 1, true), (0, 2, false), (1, 0, false)] {
        let mut script = Script::new();
        script.version = Version { major, minor };
        if good {
            connect(script, honest);
        } else {
            assert_contains(
                &unusable(script),
                &format!("speaks version {major}.{minor}"),
            );
        }
    }
}

#[test]
fn capabilities_of_the_server() {
    for good in [
        "",
        "{}",
        r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":8}}"#,
        r#"{"capabilities":{}}"#,
        r#"{"capabilities":{"max_msg_fds":1000000,"max_data_xfer_size":18446744073709551615}}"#,
        r#"{"capabilities":{"pgsizes":4096,"migration":{"pgsize":4096},"write_multiple":true},"x":[]}"#,
    ] {
        let mut script = Script::new();
        script.json = good.into();
        connect(script, honest);
    }
    for (bad, expected) in [
        (
            r#"{"capabilities":{"max_msg_fds":0}}"#,
            "at most 0 file descriptors",
        ),
        (
            r#"{"capabilities":{"max_data_xfer_size":7}}"#,
            "at most 7 bytes of data in a message; it must take 8",
        ),
        (r#"{"capabilities":{"max_msg_fds":-1}}"#, "not the JSON"),
        (r#"{"capabilities":{"max_msg_fds":1.5}}"#, "not the JSON"),
        (r#"{"capabilities":7}"#, "not the JSON"),
        ("{}\0", "not the JSON"),
        ("{", "not the JSON"),
        (&"[".repeat(4000), "not the JSON"),
        (
            &" ".repeat(5000),
            "a message of 5021 bytes; it has 20 to 4116",
        ),
    ] {
        let mut script = Script::new();
        script.json = bad.into();
        assert_contains(&unusable(script), expected);
    }
    let unterminated = unusable_if(Script::new(), |_, reply| {
        let mut payload = reply.payload.clone();
        payload.pop();
        reply.set_payload(payload);
    });
    assert_contains(&unterminated, "do not end in a NUL");
}

#[test]
fn devices_that_cannot_be() {
    let case = |expected, change: fn(&mut Script)| {
        let mut script = Script::new();
        change(&mut script);
        assert_contains(&unusable(script), expected);
    };
    case("no PCI device: its flags are 0x1", |script| {
        script.info.flags = 1
    });
    case("has 4294967295 regions; there can be 1024", |script| {
        script.info.regions = u32::MAX
    });
    case("has 7 regions; configuration space is region 7", |script| {
        script.info.regions = 7
    });
    case("has 4294967295 kinds of interrupts", |script| {
        script.info.irqs = u32::MAX
    });
    case("has 2 wired interrupts; there can be 1", |script| {
        script.irqs[0].count = 2
    });
    case("has 33 MSI vectors; there can be 32", |script| {
        script.irqs[1].count = 33
    });
    case("has 2049 MSI-X vectors; there can be 2048", |script| {
        script.irqs[2].count = 2049
    });
    case("interrupts of kind 1 and told of 2", |script| {
        script.irqs[1].index = 2
    });
    for size in [0, 255, 4097, u64::MAX >> 12] {
        let mut script = Script::new();
        script.regions[7].size = size;
        assert_contains(
            &unusable(script),
            &format!("256 to 4096 bytes; it claims {size}"),
        );
    }
    case("readable and writable; its flags are 0x1", |script| {
        script.regions[7].flags = 1
    });
    case(
        "region 3 that cannot be used: it claims 0x10000000000001 bytes",
        |script| {
            script.regions[3].size = (1 << 52) + 1;
        },
    );
}

#[test]
fn refusals_while_connecting() {
    for command in [
        Command::Version,
        Command::DeviceGetInfo,
        Command::DeviceGetRegionInfo,
        Command::DeviceGetIrqInfo,
    ] {
        let (client, _server) = try_connect(Script::new(), move |request, reply| {
            if request.is(command) {
                reply.fail(libc::EACCES);
            }
        });
        let error = client.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the vfio-user server at {PATH} refused {}", command.name())
        );
        assert!(
            matches!(error, ConnectError::Refused { source, .. } if source.raw_os_error() == Some(libc::EACCES))
        );
    }
}

#[test]
fn answers_about_another_region() {
    let error = unusable_if(Script::new(), |request, reply| {
        if request.is(Command::DeviceGetRegionInfo) {
            reply.payload[8] ^= 1;
        }
    });
    assert_contains(&error, "asked for region 0 and told of 1");
}

#[test]
fn listed_areas_are_mapped() {
    let page = page_size();
    let mut region = listed(&[(0, 1), (1, 2), (6, 2)], 11);
    region.offset = 3 * page;
    let (client, _server) = connect(Script::with_bar2(region), honest);
    let region = client.region(2);
    assert!(region.sparse);
    let areas: Vec<_> = region
        .mappable
        .iter()
        .map(|area| {
            (
                area.offset / page,
                area.size / page,
                area.file_offset / page,
            )
        })
        .collect();
    assert_eq!(areas, [(0, 1, 3), (1, 2, 4), (6, 2, 9)]);
    assert!(
        region
            .mappable
            .iter()
            .all(|area| area.readable && area.writable)
    );

    let descriptor = region.mappable[0].file.as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .unwrap();
    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
    assert_ne!(flags & libc::O_CLOEXEC, 0, "{info}");
}

#[test]
fn regions_without_a_list_are_mapped_whole() {
    let page = page_size();
    for (flags, size, file_of, mapped) in [
        (RW | MMAP, 4 * page, Some(memfd(4)), true),
        // Not in whole pages, or nothing to map.
        (RW | MMAP, 4 * page - 0x100, Some(memfd(4)), false),
        (RW | MMAP, 4 * page, None, false),
        (RW, 4 * page, None, false),
    ] {
        let region = Region {
            flags,
            size,
            file: file_of,
            ..Default::default()
        };
        let (client, _server) = connect(Script::with_bar2(region), honest);
        let region = client.region(2);
        assert!(!region.sparse);
        assert_eq!(region.mappable.len(), usize::from(mapped));
        if let [area] = &region.mappable[..] {
            assert_eq!((area.offset, area.size, area.file_offset), (0, size, 0));
            let file = File::from(area.file.try_clone().unwrap());
            file.write_all_at(b"shared", 0).unwrap();
        }
    }
}

#[test]
fn lists_that_leave_nothing_or_are_not_meant() {
    // All is trapped.
    let (client, _server) = connect(Script::with_bar2(listed(&[], 8)), honest);
    assert!(client.region(2).sparse && client.region(2).mappable.is_empty());

    // Nothing can be mapped, so the list does not count.
    let mut region = listed(&[(0, 1)], 8);
    region.flags &= !MMAP;
    region.file = None;
    let (client, _server) = connect(Script::with_bar2(region), honest);
    assert!(client.region(2).mappable.is_empty());

    // Capabilities that nobody knows are passed over.
    let mut region = listed(&[(2, 3)], 8);
    let unknown = CapabilityHeader {
        id: 77,
        version: 9,
        next: FIRST + 16,
    };
    let capabilities = [unknown.as_bytes(), &[0xff; 8], &region.capabilities].concat();
    region.capabilities = capabilities;
    let (client, _server) = connect(Script::with_bar2(region), honest);
    assert_eq!(client.region(2).mappable.len(), 1);
}

#[test]
fn areas_that_cannot_be() {
    let page = page_size();
    let case = |region: Region, expected: &str| {
        let error = unusable(Script::with_bar2(region));
        assert_contains(&error, "region 2 that cannot be used");
        assert_contains(&error, expected);
    };
    case(listed(&[(0, 9)], 9), "and has 0x");
    case(listed(&[(7, 2)], 9), "and has 0x");
    case(listed(&[(0, 0)], 8), "whole pages");
    case(listed(&[(0, 2), (1, 1)], 8), "ascend and not overlap");
    case(listed(&[(4, 1), (2, 1)], 8), "ascend and not overlap");
    case(listed(&[(1, 1), (1, 1)], 8), "ascend and not overlap");
    case(
        listed(&[(0, 4)], 3),
        &format!("of a file of {:#x} bytes", 3 * page),
    );
    case(
        listed(&[(0, 1), (7, 1)], 7),
        &format!("mappable bytes at {:#x} of a file", 7 * page),
    );

    let mut region = listed(&[(0, 1)], 8);
    region.offset = 8 * page;
    case(region, "of a file");
    let mut region = listed(&[(0, 1)], 8);
    region.offset = 0x100;
    case(region, "0x100 in the file; they must be whole pages");
    let mut region = listed(&[(1, 1)], 8);
    region.offset = u64::MAX - page + 1;
    case(region, "of a file");
    for (offset, size) in [(1, page), (0, 1), (page / 2, page), (0, page + 1)] {
        let mut region = listed(&[], 8);
        region.capabilities = sparse(0, &[(offset, size)]);
        case(region, "whole pages");
    }
    let mut region = listed(&[], 8);
    region.capabilities = sparse(0, &[(u64::MAX - page + 1, page)]);
    case(region, "and has 0x");

    // Whole regions must fit too.
    let whole = |offset, pages| Region {
        flags: RW | MMAP,
        size: 8 * page,
        offset,
        file: Some(file(pages)),
        ..Default::default()
    };
    case(whole(0, 7), "of a file");
    case(whole(page, 8), "of a file");
    case(whole(1, 16), "whole pages");
}

#[test]
fn descriptors_that_do_not_fit() {
    let case = |region: Region, expected: &str| {
        let error = unusable(Script::with_bar2(region));
        assert_contains(&error, "region 2 that cannot be used");
        assert_contains(&error, expected);
    };
    let with = |file: OwnedFd| Region {
        file: Some(file.into()),
        ..listed(&[(0, 1)], 0)
    };
    let mut region = listed(&[(0, 1)], 8);
    region.file = None;
    case(region, "came without a file descriptor");
    let mut region = listed(&[(0, 1)], 8);
    region.flags &= !MMAP;
    case(region, "although it claims that nothing can be mapped");
    let mut region = listed(&[], 8);
    region.size = 0;
    case(region, "although it claims that nothing can be mapped");

    case(with(UnixStream::pair().unwrap().0.into()), "something else");
    case(with(io::pipe().unwrap().1.into()), "something else");
    case(
        with(File::open("/dev/zero").unwrap().into()),
        "something else",
    );
    case(with(File::open("/").unwrap().into()), "something else");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![0; 8 * page_size() as usize]).unwrap();
    let open = |flags| {
        let mut options = OpenOptions::new();
        OwnedFd::from(options.read(true).custom_flags(flags).open(&path).unwrap())
    };
    case(with(open(libc::O_PATH)), "something else");
    case(with(open(0)), "open for reading and writing");
    let write_only = OpenOptions::new().write(true).open(&path).unwrap();
    case(with(write_only.into()), "open for reading");

    // Enough for what may only be read.
    let mut region = with(open(0));
    region.flags &= !VFIO_REGION_INFO_FLAG_WRITE;
    let (client, _server) = connect(Script::with_bar2(region), honest);
    assert!(!client.region(2).mappable[0].writable);
}

#[test]
fn no_descriptor_of_a_refused_region_stays_open() {
    for count in [1, 2] {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut region = listed(&[(0, 1)], 8);
        region.file = None;
        let error = unusable_if(Script::with_bar2(region), move |request, reply| {
            if request.is(Command::DeviceGetRegionInfo) && request.read::<RegionInfo>().index == 2 {
                let writer = OwnedFd::from(writer.try_clone().unwrap());
                reply.files = (0..count).map(|_| writer.try_clone().unwrap()).collect();
            }
        });
        let expected = if count == 1 {
            "something else"
        } else {
            "more file descriptors"
        };
        assert_contains(&error, expected);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_server_may_send_the_descriptor_with_each_description() {
    let (client, _server) = connect(Script::with_bar2(listed(&[(0, 1)], 8)), |request, reply| {
        let short = reply.payload.len() == FIRST as usize;
        if request.is(Command::DeviceGetRegionInfo)
            && request.read::<RegionInfo>().index == 2
            && short
        {
            reply.files.push(file(1).into());
        }
    });
    assert_eq!(client.region(2).mappable.len(), 1);
}

#[test]
fn capability_lists_that_cannot_be() {
    let case = |cap_offset: u32, capabilities: Vec<u8>, expected: &str| {
        let region = Region {
            cap_offset,
            capabilities,
            ..listed(&[], 8)
        };
        assert_contains(&unusable(Script::with_bar2(region)), expected);
    };
    let one = [(0, page_size())];
    let length = FIRST + sparse(0, &one).len() as u32;
    for outside in [1, 8, FIRST - 1, length - 7, length, u32::MAX] {
        case(
            outside,
            sparse(0, &one),
            &format!("a capability at {outside:#x} of {length:#x}"),
        );
    }
    for next in [length - 7, length, u32::MAX] {
        case(
            FIRST,
            sparse(next, &one),
            &format!("a capability at {next:#x}"),
        );
    }
    for next in [1, FIRST - 1, FIRST] {
        case(
            FIRST,
            sparse(next, &one),
            &format!("the next is at {next:#x}"),
        );
    }
    // Two that point at each other.
    let second = FIRST + 8;
    let unknown = |next| CapabilityHeader {
        id: 9,
        version: 1,
        next,
    };
    let pair = [unknown(second), unknown(FIRST)].map(|header| header.as_bytes().to_vec());
    case(
        FIRST,
        pair.concat(),
        "its capability at 0x28 claims that the next is at 0x20",
    );

    let twice = [sparse(length, &one), sparse(0, &one)].concat();
    case(FIRST, twice, "two lists of mappable areas");
    let mut version = sparse(0, &one);
    version[2] = 2;
    case(FIRST, version, "of version 2");
    for count in [2, 1000, u32::MAX] {
        let mut counted = sparse(0, &one);
        counted[8..12].copy_from_slice(&count.to_ne_bytes());
        case(
            FIRST,
            counted,
            &format!("claims {count} mappable areas and has room for 1"),
        );
    }
    case(
        FIRST,
        sparse(0, &one)[..12].to_vec(),
        "a capability at 0x20",
    );
}

#[test]
fn descriptions_that_lie_about_their_size() {
    for argsz in [0, FIRST, (16 << 10) + 1, u32::MAX] {
        let error = unusable_if(
            Script::with_bar2(listed(&[(0, 1)], 8)),
            move |request, reply| {
                if request.is(Command::DeviceGetRegionInfo)
                    && request.read::<RegionInfo>().index == 2
                {
                    reply.payload[..4].copy_from_slice(&argsz.to_ne_bytes());
                }
            },
        );
        assert_contains(&error, &format!("described by {argsz:#x} bytes"));
    }
    // Promises more than it sends, and sends more than it was asked for.
    for (change, expected) in [
        (-1, "a message of 79 bytes; it has 80"),
        (16, "a message of 96 bytes"),
    ] {
        let error = unusable_if(
            Script::with_bar2(listed(&[(0, 1)], 8)),
            move |request, reply| {
                if reply.payload.len() > FIRST as usize && request.is(Command::DeviceGetRegionInfo)
                {
                    let mut payload = reply.payload.clone();
                    payload.resize((payload.len() as i32 + change) as usize, 0);
                    reply.set_payload(payload);
                }
            },
        );
        assert_contains(&error, expected);
    }
}
