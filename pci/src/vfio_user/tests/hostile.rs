//! What ends a connection once there is one, and what does not.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::super::wire::*;
use super::server::{How, Reply, Script};
use super::*;
use crate::device::{Device, IrqKind};
use crate::machine::DmaTarget;

/// A limit that is meant to be reached.
const SHORT: Duration = Duration::from_millis(100);

/// Reads from a server that answers it as `tamper` says, which must end the connection for good and
/// for the reason that `expected` names.
fn read_breaks(expected: &str, mut tamper: impl FnMut(&mut Reply) + Send + 'static) {
    read_breaks_within(LONG, expected, move |reply| tamper(reply));
}

fn read_breaks_within(
    limit: Duration,
    expected: &str,
    mut tamper: impl FnMut(&mut Reply) + Send + 'static,
) {
    let (mut client, server) = connect(Script::new(), move |request, reply| {
        if request.is(Command::RegionRead) {
            tamper(reply);
        }
    });
    client.connection.limit = limit;
    let started = Instant::now();
    let reason = lost(client.read(0, 0x10, &mut [0; 4]));
    assert!(started.elapsed() < limit + Duration::from_secs(2));
    assert!(reason.contains(expected), "{reason:?} is not {expected:?}");

    // The server sees the end although the client is still there.
    let seen = server.finish().requests.len();
    assert_eq!(lost(client.write(0, 0, &[1])), reason);
    assert_eq!(lost(client.read(7, 0, &mut [0; 2])), reason);
    assert_eq!(lost(client.set_irqs(IrqKind::Msix, &[])), reason);
    assert_eq!(lost(client.reset()), reason);
    assert_eq!(lost(client.check()), reason);
    assert_eq!(chain(&client.unmap(0, 0x1000).unwrap_err()), reason);
    assert!(seen > 0);
}

#[test]
fn answers_to_something_else() {
    read_breaks("in answer to message", |reply| reply.header.id ^= 1);
    read_breaks("of command 10 in answer", |reply| {
        reply.header.command = Command::RegionWrite.number();
    });
    read_breaks("and answered for 0x4 bytes at 0x11 of region 0", |reply| {
        reply.payload[0] = 0x11;
    });
    read_breaks("at 0x10 of region 1", |reply| reply.payload[8] = 1);
    read_breaks("answered for 0x3 bytes", |reply| reply.payload[12] = 3);
}

#[test]
fn lying_sizes() {
    for size in [0, 15, 16, 32, 35, 37, 4096, u32::MAX] {
        read_breaks(
            &format!("a message of {size} bytes; it has 36 to 36"),
            move |reply| {
                reply.header.size = size;
            },
        );
    }
}

#[test]
fn flags_that_no_answer_has() {
    for flags in [2, 0xf, 0x11, 0x41, 0x8000_0001] {
        read_breaks(&format!("with flags {flags:#x}"), move |reply| {
            reply.header.flags = flags
        });
    }
}

#[test]
fn truncated_answers_and_hanging_up() {
    for length in [0, 1, 15, 16, 20, 35] {
        read_breaks("hung up", move |reply| {
            let mut bytes = reply.bytes();
            bytes.truncate(length);
            reply.how = How::Last(bytes);
        });
    }
}

#[test]
fn silence() {
    read_breaks_within(
        SHORT,
        "VFIO_USER_REGION_READ and answer it in full within 100ms",
        |reply| {
            reply.how = How::Never;
        },
    );
    read_breaks_within(SHORT, "in full within 100ms", |reply| {
        reply.how = How::Raw(reply.bytes()[..20].to_vec());
    });
}

#[test]
fn an_answer_that_comes_bit_by_bit() {
    // 36 bytes; each alone is in time.
    read_breaks_within(SHORT, "in full within 100ms", |reply| {
        reply.how = How::Trickle(Duration::from_millis(10));
    });
}

#[test]
fn a_server_that_does_not_read() {
    let (mut client, _server) = connect(Script::new(), |request, _| {
        if request.is(Command::DeviceReset) {
            thread::sleep(SHORT * 5);
        }
    });
    client.connection.limit = SHORT;
    assert!(lost(client.reset()).contains("VFIO_USER_DEVICE_RESET"));

    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let connection = super::super::connection::Connection::new(theirs, SHORT).unwrap();
    let data = vec![0; 1 << 20];
    let result = connection.call(|turn| turn.ask(Command::RegionWrite, [&data, &[]], &[], 0..=0));
    assert!(lost(result.map_err(DeviceError::from)).contains("within 100ms"));
    drop(ours);
}

/// The writing end of a pipe, as a descriptor to send, and what shows that nobody has it any more.
fn tracked() -> (OwnedFd, io::PipeReader) {
    let (reader, writer) = io::pipe().unwrap();
    (writer.into(), reader)
}

#[test]
fn descriptors_that_nobody_asked_for_and_none_stays_open() {
    for (count, expected) in [
        (1, "sent a file descriptor along with VFIO_USER_REGION_READ"),
        (2, "sent more file descriptors than it may"),
        (3, "sent more file descriptors than it may"),
        (200, "sent more file descriptors than it may"),
    ] {
        let (descriptor, mut reader) = tracked();
        read_breaks(expected, move |reply| {
            reply.files = (0..count)
                .map(|_| descriptor.try_clone().unwrap())
                .collect();
        });
        // The end comes once every copy is closed: the server's thread has ended.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_descriptor_in_the_middle_of_an_answer() {
    let (descriptor, mut reader) = tracked();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let connection = super::super::connection::Connection::new(theirs, LONG).unwrap();
    let header = Header {
        id: 0,
        command: Command::RegionRead.number(),
        size: 24,
        flags: flags::REPLY,
        error: 0,
    };
    server::send(&ours, header.as_bytes(), &[]);
    server::send(&ours, &[0; 4], &[]);
    server::send(&ours, &[0; 4], &[descriptor]);
    let result = connection.call(|turn| turn.ask(Command::RegionRead, [&[1], &[]], &[], 8..=8));
    assert!(lost(result.map_err(DeviceError::from)).contains("sent a file descriptor along"));
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_descriptor_with_an_error() {
    read_breaks("sent a file descriptor along", |reply| {
        reply.fail(libc::EIO);
        reply.files.push(file(1).into());
    });
}

#[test]
fn an_error_with_data() {
    read_breaks("a message of 36 bytes; it has 16 to 16", |reply| {
        reply.header.flags |= flags::ERROR;
    });
}

#[test]
fn errors_refuse_one_request_alone() {
    let (client, server) = connect(Script::new(), |request, reply| {
        if request.is(Command::RegionRead) && request.read::<RegionAccess>().offset == 0x100 {
            reply.fail(libc::EPERM);
        }
        if request.is(Command::DeviceReset) {
            reply.fail(0);
        }
        if request.is(Command::RegionWrite) {
            reply.fail(-1);
        }
    });
    let mut data = [0; 4];
    assert_eq!(
        refused(client.read(0, 0x100, &mut data)).raw_os_error(),
        Some(libc::EPERM)
    );
    client.read(0, 0x104, &mut data).unwrap();
    assert!(
        refused(client.reset())
            .to_string()
            .contains("does not say why")
    );
    assert!(
        refused(client.write(0, 0, &[0]))
            .to_string()
            .contains("0xffffffff")
    );
    client.check().unwrap();
    drop(client);
    assert_eq!(server.finish().of(Command::RegionRead).count(), 2);
}

fn dma_read(id: u16) -> (Header, Vec<u8>) {
    let header = Header {
        id,
        command: Command::DmaRead.number(),
        size: 32,
        flags: flags::COMMAND,
        error: 0,
    };
    (header, vec![0; 16])
}

fn dma_write(data: usize, no_reply: bool) -> (Header, Vec<u8>) {
    let header = Header {
        id: 9,
        command: Command::DmaWrite.number(),
        size: 32 + data as u32,
        flags: if no_reply {
            flags::NO_REPLY
        } else {
            flags::COMMAND
        },
        error: 0,
    };
    (header, vec![0; 16 + data])
}

#[test]
fn commands_of_the_server_are_answered_with_an_error() {
    let (client, server) = connect(Script::new(), |request, reply| {
        if request.is(Command::RegionRead) {
            reply.how = How::After(vec![
                dma_read(700),
                dma_write(5000, false),
                dma_write(3, true),
            ]);
        }
    });
    let mut data = [0; 4];
    client.read(0, 0x10, &mut data).unwrap();
    assert_eq!(data, [0x10, 0x11, 0x12, 0x13]);
    client.check().unwrap();
    drop(client);
    let refusal = |id, command: Command| Header {
        id,
        command: command.number(),
        size: 16,
        flags: flags::REPLY | flags::ERROR,
        error: libc::ENOTSUP as u32,
    };
    assert_eq!(
        server.finish().answers,
        [
            refusal(700, Command::DmaRead),
            refusal(9, Command::DmaWrite)
        ]
    );
}

#[test]
fn commands_of_the_server_have_their_limits() {
    read_breaks("sent 65 commands of its own instead", |reply| {
        reply.how = How::After((0..65).map(dma_read).collect());
    });
    read_breaks("sent command 13, which only clients send", |reply| {
        reply.header.flags = flags::COMMAND;
        reply.header.command = Command::DeviceReset.number();
    });
    for (size, flags) in [
        (15, 0),
        (31, 0),
        (33 + (1 << 20), 0),
        (u32::MAX, 0),
        (32, 0x20),
    ] {
        read_breaks("sent a command of", move |reply| {
            reply.header.command = Command::DmaRead.number();
            reply.header.size = size;
            reply.header.flags = flags;
        });
    }
    read_breaks("along with VFIO_USER_DMA_READ", |reply| {
        let (header, body) = dma_read(0);
        reply.header = header;
        reply.payload = body;
        reply.files.push(file(1).into());
    });
}

#[test]
fn a_server_that_lets_go_of_something_else() {
    for (at, expected) in [(8, "at 0x1001"), (17, "it let go of 0x1100")] {
        let (client, _server) = connect(Script::new(), move |request, reply| {
            if request.is(Command::DmaUnmap) {
                reply.payload[at] ^= 1;
            }
        });
        let error = chain(&client.unmap(0x1000, 0x1000).unwrap_err());
        assert!(error.contains(expected), "{error}");
        lost(client.check());
    }
}

#[test]
fn hanging_up_between_calls_is_noticed() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let script = Script::new();
    let serve = thread::spawn(move || {
        for _ in 0..14 {
            let request = server::receive(&ours).unwrap();
            let reply = script.reply(&request);
            server::send(&ours, &reply.bytes(), &reply.files);
        }
        ours
    });
    let client = Client::over(theirs, Path::new(PATH), Deadline::after(LONG)).unwrap();
    let ours = serve.join().unwrap();
    client.check().unwrap();
    assert!(!readable(&client));
    drop(ours);
    assert!(readable(&client));
    assert!(lost(client.check()).contains("hung up"));
    assert!(lost(client.reset()).contains("hung up"));
}

/// Whether an event loop is woken up.
fn readable(client: &Client) -> bool {
    let socket = client.as_fd().try_clone_to_owned().unwrap();
    let mut socket = std::os::unix::net::UnixStream::from(socket);
    !matches!(socket.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn those_who_wait_for_their_turn_do_so_in_time() {
    let (mut client, server) = connect(Script::new(), |request, reply| {
        if request.is(Command::DeviceReset) {
            reply.how = How::Never;
        }
    });
    client.connection.limit = SHORT;
    let client = Arc::new(client);
    let started = Instant::now();
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let client = Arc::clone(&client);
            thread::spawn(move || lost(client.reset()))
        })
        .collect();
    let reasons: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    assert!(
        started.elapsed() < SHORT * 15,
        "they waited one after the other"
    );
    assert!(
        reasons.iter().all(|reason| *reason == reasons[0]),
        "{reasons:?}"
    );
    assert_eq!(server.finish().of(Command::DeviceReset).count(), 1);
}

#[test]
fn those_who_wait_for_their_turn_hear_of_the_end_at_once() {
    let (client, _server) = connect(Script::new(), |request, reply| {
        if request.is(Command::DeviceReset) {
            // Until the others wait.
            thread::sleep(SHORT);
            reply.how = How::Last(Vec::new());
        }
    });
    let client = Arc::new(client);
    let started = Instant::now();
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let client = Arc::clone(&client);
            thread::spawn(move || lost(client.reset()))
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap().contains("hung up"));
    }
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
}

#[test]
fn a_server_that_does_not_accept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    server::shorten_queue(&listener);
    // The queue of those who wait to be accepted is bounded; then even connecting waits.
    let mut waiting = Vec::new();
    let error = loop {
        match super::super::sys::connect(&path, &Deadline::after(SHORT)) {
            Ok(socket) => waiting.push(socket),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100);
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let error = chain(&Client::connect_within(&path, SHORT).unwrap_err());
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    drop(listener);
}

#[test]
fn a_server_that_accepts_and_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let started = Instant::now();
    let error = chain(&Client::connect_within(&path, SHORT).unwrap_err());
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert!(
        error.contains("VFIO_USER_VERSION and answer it in full within 100ms"),
        "{error}"
    );
}

#[test]
fn the_deadline_is_for_all_answers_together() {
    let (socket, _server) = Server::start(Script::new(), |_, _| thread::sleep(SHORT / 4));
    let started = Instant::now();
    let error = chain(&Client::over(socket, Path::new(PATH), Deadline::after(SHORT)).unwrap_err());
    assert!(started.elapsed() >= SHORT && started.elapsed() < Duration::from_secs(2));
    assert!(error.contains("in full within 100ms"), "{error}");
}

#[test]
fn paths_that_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody");
    let error = Client::connect(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot connect to the vfio-user socket {}", path.display())
    );
    assert!(
        matches!(error, ConnectError::Socket { source, .. } if source.kind() == ErrorKind::NotFound)
    );

    std::fs::write(&path, "").unwrap();
    assert!(matches!(
        Client::connect(&path),
        Err(ConnectError::Socket { .. })
    ));
    for path in ["", "/\0", &"x".repeat(108)] {
        let error = chain(&Client::connect(Path::new(path)).unwrap_err());
        assert!(error.contains("has 1 to 107 bytes and no NUL"), "{error}");
    }
}

proptest! {
    #[test]
    fn whatever_is_answered_to_a_read(bytes in prop::collection::vec(any::<u8>(), 0..80), header in any::<bool>()) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let connection = super::super::connection::Connection::new(theirs, LONG).unwrap();
        let mut answer = bytes;
        if header && answer.len() >= 16 {
            // Far enough for the rest to matter.
            let header = Header { id: 0, command: 9, size: answer.len() as u32, flags: 1, error: 0 };
            answer[..16].copy_from_slice(header.as_bytes());
        }
        server::send(&ours, &answer, &[]);
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let result = connection.call(|turn| turn.ask(Command::RegionRead, [&[0; 16], &[]], &[], 20..=20));
        let fits = header && answer.len() == 36;
        prop_assert!(!fits || result.is_ok());
        prop_assert!(result.is_err() || connection.check().is_err());
    }
}
