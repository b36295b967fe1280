//! Servers that answer anything.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::super::wire::*;
use super::server::{self, CAPS, FIRST, MMAP, RW, Region, Script, sparse};
use super::*;
use crate::device::Device;

/// A device that makes use of all that can be described.
fn script() -> Script {
    let page = page_size();
    Script::with_bar2(Region {
        flags: RW | MMAP | CAPS,
        size: 8 * page,
        offset: 0,
        cap_offset: FIRST,
        capabilities: sparse(0, &[(0, page), (2 * page, 3 * page)]),
        file: Some(file(8)),
    })
}

/// What a client of [`script`] asks when it connects, in order.
fn questions() -> Vec<(Command, Vec<u8>)> {
    let ask = |index, argsz| {
        let request = RegionInfo {
            argsz,
            index,
            ..Default::default()
        };
        (Command::DeviceGetRegionInfo, request.as_bytes().to_vec())
    };
    let irqs = |index| {
        let request = IrqInfo {
            index,
            ..Default::default()
        };
        (Command::DeviceGetIrqInfo, request.as_bytes().to_vec())
    };
    let whole = FIRST + sparse(0, &[(0, 0); 2]).len() as u32;
    let mut questions = vec![
        (Command::Version, vec![0; 4]),
        (Command::DeviceGetInfo, vec![0; 16]),
    ];
    for index in 0..9 {
        questions.push(ask(index, FIRST));
        if index == 2 {
            questions.push(ask(index, whole));
        }
    }
    questions.extend((0..3).map(irqs));
    questions
}

/// Connects to a server whose answers were all sent before, with one of them changed.
fn connect_to(number: usize, change: impl FnOnce(&mut Vec<u8>)) -> Result<Client, ConnectError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let script = script();
    let mut change = Some(change);
    for (id, (command, body)) in questions().into_iter().enumerate() {
        let header = Header {
            id: id as u16,
            command: command.number(),
            ..Default::default()
        };
        let reply = script.reply(&Request {
            header,
            body,
            files: Vec::new(),
        });
        let mut bytes = reply.bytes();
        if id == number
            && let Some(change) = change.take()
        {
            change(&mut bytes);
        }
        server::send(&ours, &bytes, &reply.files);
    }
    // Whatever is waited for beyond this will not come.
    ours.shutdown(Shutdown::Write).unwrap();
    Client::over(theirs, Path::new(PATH), Deadline::after(LONG))
}

/// All that a device says has been checked.
fn check(client: &Client) -> Result<(), TestCaseError> {
    for index in 0..9 {
        let region = client.region(index);
        prop_assert!(region.size <= 1 << 52);
        let mut end = 0;
        for area in &region.mappable {
            prop_assert!(area.size > 0 && area.offset >= end);
            prop_assert!((area.offset | area.size | area.file_offset) % page_size() == 0);
            end = area.offset + area.size;
            prop_assert!(area.file_offset + area.size <= 8 * page_size());
        }
        prop_assert!(end <= region.size);
    }
    Ok(())
}

#[test]
fn the_questions_are_those_that_are_asked() {
    let client = connect_to(usize::MAX, |_| ()).unwrap();
    assert_eq!(client.region(2).mappable.len(), 2);
}

proptest! {
    #[test]
    fn random_bytes_while_connecting(number in 0_usize..16, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let client = connect_to(number, |answer| *answer = bytes);
        if let Ok(client) = client {
            check(&client)?;
        }
    }

    #[test]
    fn random_payloads_while_connecting(number in 0_usize..15, bytes in prop::collection::vec(any::<u8>(), 200)) {
        let client = connect_to(number, |answer| {
            let length = answer.len();
            answer[16..].copy_from_slice(&bytes[..length - 16]);
        });
        if let Ok(client) = client {
            check(&client)?;
        }
    }

    #[test]
    fn changed_answers_while_connecting(
        number in 0_usize..15,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let client = connect_to(number, |answer| {
            for (at, value) in changes {
                let at = at.index(answer.len());
                answer[at] = value;
            }
        });
        if let Ok(client) = client {
            check(&client)?;
        }
    }
}
