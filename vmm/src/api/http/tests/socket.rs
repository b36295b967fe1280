//! Where the server listens.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::super::{InheritError, ListenError, Server, Socket};
use super::{Client, Echo, Limits, Running, is_close_on_exec};

/// For tests whose descriptors a child process would inherit, and the one that looks for such.
static INHERITING: Mutex<()> = Mutex::new(());

#[test]
fn nobody_else_can_ever_connect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let done = AtomicBool::new(false);
    let modes = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut modes = BTreeSet::new();
            while !done.load(Ordering::Relaxed) || modes.is_empty() {
                if let Ok(metadata) = fs::symlink_metadata(&path) {
                    modes.insert(metadata.permissions().mode() & 0o7777);
                }
            }
            modes
        });
        for _ in 0..2000 {
            drop(Socket::bind(&path).unwrap());
        }
        let last = Socket::bind(&path).unwrap();
        done.store(true, Ordering::Relaxed);
        let modes = watcher.join().unwrap();
        drop(last);
        modes
    });
    assert_eq!(modes, BTreeSet::from([0o600]));
}

#[test]
fn a_dead_process_makes_room_and_a_live_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let first = Socket::bind(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    let error = Socket::bind(&path).err().unwrap();
    assert!(matches!(&error, ListenError::InUse { path: p } if *p == path));
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    // It was not disturbed.
    UnixStream::connect(&path).unwrap();
    first.listener().accept().unwrap();
    assert!(first.listener().accept().is_err(), "a second client");
    drop(first);
    assert!(!path.exists());
}

#[test]
fn what_is_not_our_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    fs::write(&path, "precious").unwrap();
    let error = Socket::bind(&path).err().unwrap();
    assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    assert!(Socket::bind(&path).is_err());
    fs::remove_dir(&path).unwrap();

    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    assert!(Socket::bind(&path).is_err());
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    fs::remove_file(&path).unwrap();

    let running = Running::start(Limits::default());
    let theirs = running.path.clone();
    fs::remove_file(&theirs).unwrap();
    let other = UnixListener::bind(&theirs).unwrap();
    let Running { server, .. } = &mut { running };
    server.take();
    assert!(theirs.exists());
    drop(other);
}

#[test]
fn paths_that_are_no_use_are_named() {
    let long = format!("/tmp/{}", "x".repeat(120));
    for (path, why) in [
        ("/nonexistent/api.sock", "No such file"),
        (long.as_str(), "this one has 125 bytes"),
        ("", "1 to 107 bytes"),
    ] {
        let error = Socket::bind(path.as_ref()).err().unwrap();
        assert!(error.to_string().contains(path));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(why), "{source}");
    }
}

/// A copy as a process gets it that is started with it: not closed on exec.
#[expect(unsafe_code, reason = "the standard library closes all on exec")]
fn inherited(descriptor: impl Into<OwnedFd>) -> RawFd {
    let descriptor = descriptor.into();
    // SAFETY: there are no pointers, and the descriptor is open.
    let copy = unsafe { libc::dup(descriptor.as_raw_fd()) };
    assert!(copy >= 0);
    copy
}

#[expect(unsafe_code, reason = "the descriptor is known by its number alone")]
fn close(number: RawFd) {
    // SAFETY: the caller has it from `inherited`, and nobody else took it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

#[test]
fn an_inherited_socket_serves() {
    let _guard = INHERITING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let number = inherited(UnixListener::bind(&path).unwrap());
    assert!(!is_close_on_exec(number));
    let socket = Socket::inherited(number).unwrap();
    assert_eq!(socket.listener().as_raw_fd(), number);
    assert!(is_close_on_exec(number));
    // It is not given away twice.
    let again = Socket::inherited(number).err().unwrap();
    assert!(matches!(again, InheritError::Descriptor(_)), "{again}");

    let server = Server::start(socket, Arc::new(Echo::default()), Limits::default()).unwrap();
    let mut client = Client::new(UnixStream::connect(&path).unwrap());
    client.send(b"GET /a HTTP/1.1\r\n\r\n");
    assert_eq!(client.answer().text(), "GET /a ");
    drop(server);
    // The file is somebody else's business.
    assert!(path.exists());
    assert!(UnixStream::connect(&path).is_err());
}

#[test]
fn other_descriptors_are_refused() {
    let _guard = INHERITING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let stream: OwnedFd = UnixStream::pair().unwrap().0.into();
    let datagram: OwnedFd = UnixDatagram::bind(folder.path().join("d")).unwrap().into();
    let tcp: OwnedFd = TcpListener::bind("127.0.0.1:0").unwrap().into();
    let file: OwnedFd = File::open("/dev/null").unwrap().into();
    for (descriptor, why) in [
        (stream, "nobody listens"),
        (datagram, "another type"),
        (tcp, "another address family"),
        (file, "no socket"),
    ] {
        let number = inherited(descriptor.try_clone().unwrap());
        let error = Socket::inherited(number).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
        let error = Socket::from_fd(descriptor).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
    for number in [-1, 1 << 20] {
        let error = Socket::inherited(number).err().unwrap();
        assert!(error.to_string().contains(&number.to_string()));
        assert!(matches!(error, InheritError::Descriptor(_)));
    }
    // Our own, which somebody else may close.
    let own = UnixListener::bind(folder.path().join("own")).unwrap();
    let number = own.into_raw_fd();
    assert!(Socket::inherited(number).is_err());
    close(number);
}

#[test]
fn children_get_no_descriptors() {
    let _guard = INHERITING.lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(Limits::default());
    let mut client = running.connect();
    client.send(b"GET /a HTTP/1.1\r\n\r\n");
    client.answer();
    let output = Command::new("ls")
        .args(["-l", "/proc/self/fd"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(list.contains("pipe:"), "{list}");
    assert!(
        !list.contains("socket:") && !list.contains("eventfd"),
        "{list}"
    );
}
