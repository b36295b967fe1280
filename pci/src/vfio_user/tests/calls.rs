//! What a client asks for.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use vfio_bindings::bindings::vfio::*;
use vmm_sys_util::eventfd::EventFd;

use super::super::wire::*;
use super::server::{Log, Script, memfd, pattern};
use super::*;
use crate::device::{Device, IrqKind};
use crate::machine::{DmaArea, DmaTarget};

const OFF: u32 = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
const ON: u32 = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;

/// Flags, kind, first, count and descriptors of each request.
fn irqs_set(log: &Log) -> Vec<(u32, u32, u32, u32, usize)> {
    log.of(Command::DeviceSetIrqs)
        .map(|request| {
            let SetIrqs {
                argsz,
                flags,
                index,
                start,
                count,
            } = request.read();
            assert_eq!((argsz, request.body.len()), (20, 20));
            (flags, index, start, count, request.files.len())
        })
        .collect()
}

fn events(count: usize) -> Vec<EventFd> {
    (0..count)
        .map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap())
        .collect()
}

#[test]
fn accesses_are_split_by_what_the_server_takes() {
    let mut script = Script::new();
    script.json = br#"{"capabilities":{"max_data_xfer_size":1000}}"#.to_vec();
    let (client, server) = connect(script, honest);
    let mut data = vec![0; 2500];
    client.read(0, 0x123, &mut data).unwrap();
    assert!(
        data.iter()
            .zip(0x123..)
            .all(|(byte, at)| *byte == pattern(at))
    );
    client.write(0, 0x800, &data).unwrap();
    client.read(0, 0x2000, &mut []).unwrap();
    drop(client);
    let log = server.finish();
    let accesses = |command| -> Vec<_> {
        log.of(command)
            .map(|request| {
                let access: RegionAccess = request.read();
                (
                    access.region,
                    access.offset,
                    access.count,
                    request.body.len(),
                )
            })
            .collect()
    };
    assert_eq!(
        accesses(Command::RegionRead),
        [
            (0, 0x123, 1000, 16),
            (0, 0x123 + 1000, 1000, 16),
            (0, 0x123 + 2000, 500, 16)
        ]
    );
    assert_eq!(
        accesses(Command::RegionWrite),
        [
            (0, 0x800, 1000, 1016),
            (0, 0x800 + 1000, 1000, 1016),
            (0, 0x800 + 2000, 500, 516)
        ]
    );
    let written: Vec<_> = log
        .of(Command::RegionWrite)
        .flat_map(|request| request.body[16..].to_vec())
        .collect();
    assert_eq!(written, data);
}

#[test]
fn accesses_outside_a_region_do_not_reach_the_server() {
    let mut script = Script::new();
    script.regions[6].size = 0x100;
    script.regions[6].flags = VFIO_REGION_INFO_FLAG_READ;
    script.regions[1].size = 0x100;
    script.regions[1].flags = VFIO_REGION_INFO_FLAG_WRITE;
    let (client, server) = connect(script, honest);
    let mut data = [0; 4];
    for (region, offset) in [
        (0, 0x1ffd),
        (0, u64::MAX),
        (5, 0),
        (9, 0),
        (u32::MAX, 0),
        (1, 0),
    ] {
        let error = refused(client.read(region, offset, &mut data)).to_string();
        assert!(
            error.contains(&format!("0x4 bytes at {offset:#x}")),
            "{error}"
        );
    }
    refused(client.write(0, 0x1ffd, &data));
    assert!(
        refused(client.write(6, 0, &data))
            .to_string()
            .contains("can be written")
    );
    drop(client);
    let log = server.finish();
    assert_eq!(
        log.of(Command::RegionRead).count() + log.of(Command::RegionWrite).count(),
        0
    );
}

#[test]
fn events_are_split_by_what_the_server_takes() {
    for (json, most) in [
        ("{}", 1),
        (r#"{"capabilities":{"max_msg_fds":8}}"#, 8),
        (r#"{"capabilities":{"max_msg_fds":253}}"#, 16),
    ] {
        let mut script = Script::new();
        script.json = json.into();
        let (client, server) = connect(script, honest);
        let events = events(40);
        let all: Vec<_> = events.iter().map(Some).collect();
        client.set_irqs(IrqKind::Msix, &all).unwrap();
        drop(client);
        let expected: Vec<_> = std::iter::once((OFF, 2, 0, 0, 0))
            .chain((0..40).step_by(most).map(|start| {
                let count = most.min(40 - start);
                (ON, 2, start as u32, count as u32, count)
            }))
            .collect();
        assert_eq!(irqs_set(&server.finish()), expected);
    }
}

#[test]
fn events_replace_those_before_and_leave_holes() {
    let (client, server) = connect(Script::new(), honest);
    let events = events(3);
    let [first, second, third] = &events[..] else {
        panic!()
    };
    client
        .set_irqs(
            IrqKind::Msi,
            &[
                None,
                Some(first),
                Some(second),
                None,
                None,
                Some(third),
                None,
            ],
        )
        .unwrap();
    client.set_irqs(IrqKind::Msi, &[None, None]).unwrap();
    client.set_irqs(IrqKind::Msi, &[]).unwrap();
    client.set_irqs(IrqKind::Intx, &[Some(first)]).unwrap();
    client.unmask_intx_on(second).unwrap();
    client.unmask_intx().unwrap();
    let kind_of = refused(client.set_irqs(IrqKind::Intx, &[Some(first), Some(second)])).to_string();
    assert_eq!(kind_of, "it has 1 interrupts of kind Intx, not 2");
    drop(client);
    let unmask = VFIO_IRQ_SET_ACTION_UNMASK;
    assert_eq!(
        irqs_set(&server.finish()),
        [
            (OFF, 1, 0, 0, 0),
            (ON, 1, 1, 2, 2),
            (ON, 1, 5, 1, 1),
            (OFF, 1, 0, 0, 0),
            (OFF, 1, 0, 0, 0),
            (OFF, 0, 0, 0, 0),
            (ON, 0, 0, 1, 1),
            (VFIO_IRQ_SET_DATA_EVENTFD | unmask, 0, 0, 1, 1),
            (VFIO_IRQ_SET_DATA_NONE | unmask, 0, 0, 1, 0),
        ]
    );
}

#[test]
fn interrupts_that_a_device_does_not_have_are_not_turned_off() {
    let mut script = Script::new();
    script.irqs[1].count = 0;
    let (client, server) = connect(script, honest);
    client.set_irqs(IrqKind::Msi, &[]).unwrap();
    refused(client.set_irqs(IrqKind::Msi, &[None]));
    drop(client);
    assert!(irqs_set(&server.finish()).is_empty());
}

#[test]
fn a_list_that_is_refused_is_taken_back() {
    let (client, server) = connect(Script::new(), |request, reply| {
        if request.is(Command::DeviceSetIrqs) && request.read::<SetIrqs>().start == 8 {
            reply.fail(libc::ENOSPC);
        }
    });
    let events = events(20);
    let all: Vec<_> = events.iter().map(Some).collect();
    let error = refused(client.set_irqs(IrqKind::Msix, &all));
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    drop(client);
    assert_eq!(
        irqs_set(&server.finish()),
        [
            (OFF, 2, 0, 0, 0),
            (ON, 2, 0, 8, 8),
            (ON, 2, 8, 8, 8),
            (OFF, 2, 0, 0, 0)
        ]
    );
}

fn area(shared: bool, writable: bool) -> DmaArea {
    DmaArea {
        gpa: 0x4000_0000,
        size: 0x2000,
        host_address: 0x7000_0000,
        file: shared.then(|| (Arc::new(memfd(4).into()), 0x1000)),
        writable,
    }
}

#[test]
fn guest_memory_is_lent_with_its_file() {
    let (client, server) = connect(Script::new(), honest);
    client.map(&area(true, true)).unwrap();
    client.map(&area(true, false)).unwrap();
    client.unmap(0x4000_0000, 0x2000).unwrap();
    let error = client.map(&area(false, true)).unwrap_err().to_string();
    assert!(
        error.contains("0x2000 bytes of guest memory at 0x40000000"),
        "{error}"
    );
    assert!(error.contains("`--memory shared=on`"), "{error}");
    drop(client);
    let log = server.finish();
    let maps: Vec<_> = log
        .of(Command::DmaMap)
        .map(|request| {
            let DmaMap {
                argsz,
                flags,
                offset,
                address,
                size,
            } = request.read();
            let lent = &request.files[0];
            let link = std::fs::read_link(format!("/proc/self/fd/{}", lent.as_raw_fd())).unwrap();
            assert!(link.to_str().unwrap().starts_with("/memfd:"), "{link:?}");
            (argsz, flags, offset, address, size, request.files.len())
        })
        .collect();
    assert_eq!(
        maps,
        [
            (32, 3, 0x1000, 0x4000_0000, 0x2000, 1),
            (32, 1, 0x1000, 0x4000_0000, 0x2000, 1),
        ]
    );
    let unmap: DmaUnmap = log.of(Command::DmaUnmap).next().unwrap().read();
    assert_eq!(
        (unmap.argsz, unmap.flags, unmap.address, unmap.size),
        (24, 0, 0x4000_0000, 0x2000)
    );
}

#[test]
fn a_refused_map_is_an_error_and_the_client_goes_on() {
    let (client, _server) = connect(Script::new(), |request, reply| {
        if request.is(Command::DmaMap) || request.is(Command::DmaUnmap) {
            reply.fail(libc::EEXIST);
        }
    });
    for result in [client.map(&area(true, true)), client.unmap(0x1000, 0x1000)] {
        assert_eq!(
            result.unwrap_err().kind(),
            std::io::ErrorKind::AlreadyExists
        );
    }
    client.check().unwrap();
    client.reset().unwrap();
}

#[test]
fn threads_get_their_own_answers() {
    let (client, server) = connect(Script::new(), honest);
    let client = Arc::new(client);
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let client = Arc::clone(&client);
            thread::spawn(move || {
                for turn in 0..100 {
                    let offset = thread * 0x100 + turn;
                    let mut data = [0; 8];
                    client.read(0, offset, &mut data).unwrap();
                    assert!(
                        data.iter()
                            .zip(offset..)
                            .all(|(byte, at)| *byte == pattern(at))
                    );
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(client);
    assert_eq!(server.finish().of(Command::RegionRead).count(), 800);
}

#[test]
fn message_ids_start_over() {
    let (client, server) = connect(Script::new(), honest);
    *client.connection.idle.lock().unwrap() = Some(u16::MAX - 1);
    for _ in 0..4 {
        client.reset().unwrap();
    }
    drop(client);
    let log = server.finish();
    let ids: Vec<_> = log
        .of(Command::DeviceReset)
        .map(|request| request.header.id)
        .collect();
    assert_eq!(ids, [u16::MAX - 1, u16::MAX, 0, 1]);
}
