//! `ch-remote` as its users see it: arguments, standard streams and exit codes, with a server that
//! answers as a test says.

use std::fs::Permissions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;
use tests::binaries::ch_remote;

/// How `ch-remote` ended and what it printed.
#[derive(Debug, PartialEq, Eq)]
struct Ending {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl Ending {
    fn of(code: i32, output: impl Into<String>, errors: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            output: output.into(),
            errors: errors.into(),
        }
    }
}

/// Runs `ch-remote` with these arguments and this standard input.
fn run(args: &[&str], input: &[u8]) -> Ending {
    let mut child = Command::new(ch_remote())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ch-remote starts");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    match stdin.write_all(input) {
        // Not every command reads it.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        result => result.expect("ch-remote takes input"),
    }
    drop(stdin);
    let output = child.wait_with_output().expect("ch-remote ends");
    Ending {
        code: output.status.code(),
        output: String::from_utf8(output.stdout).expect("UTF-8"),
        errors: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// A server that gives one answer to one request.
struct Server {
    socket: PathBuf,
    thread: JoinHandle<String>,
    _folder: TempDir,
}

impl Server {
    fn start(answer: impl Into<String>) -> Self {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let socket = folder.path().join("api");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let answer = answer.into();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let request = read_request(&mut stream);
            stream.write_all(answer.as_bytes()).expect("a client");
            request
        });
        Self {
            socket,
            thread,
            _folder: folder,
        }
    }

    /// Runs `ch-remote` and gives its ending and the request that it made.
    fn run(self, args: &[&str], input: &[u8]) -> (Ending, String) {
        let socket = self.socket.to_str().expect("UTF-8");
        let ending = run(&[&["--api-socket", socket], args].concat(), input);
        (ending, self.thread.join().expect("the server ends"))
    }
}

/// The method and path of a request, and its body behind a space.
fn read_request(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a request");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    let line = head.lines().next().expect("a line");
    let line = line.strip_suffix(" HTTP/1.1").expect("HTTP");
    format!("{line} {}", String::from_utf8(body).expect("text"))
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
}

const DONE: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[test]
fn what_is_done_is_silent() {
    for (args, request) in [
        (&["boot"][..], "PUT /api/v1/vm.boot "),
        (
            &["remove-device", "gpu0"],
            "PUT /api/v1/vm.remove-device {\"id\":\"gpu0\"}",
        ),
        (&["shutdown-vmm"], "PUT /api/v1/vmm.shutdown "),
    ] {
        let (ending, made) = Server::start(DONE).run(args, b"");
        assert_eq!(ending, Ending::of(0, "", ""));
        assert_eq!(made, request);
    }
}

#[test]
fn an_answer_is_printed_as_it_came() {
    for (args, request) in [
        (&["ping"][..], "GET /api/v1/vmm.ping "),
        (&["info"], "GET /api/v1/vm.info "),
        (
            &["add-device", "path=/d"],
            "PUT /api/v1/vm.add-device {\"iommu\":false,\"path\":\"/d\",\"pci_segment\":0}",
        ),
    ] {
        let server = Server::start(answer("200 OK", "{ \"x\" : 1.0 }"));
        let (ending, made) = server.run(args, b"");
        assert_eq!(ending, Ending::of(0, "{ \"x\" : 1.0 }\n", ""));
        assert_eq!(made, request);
    }
}

#[test]
fn a_configuration_is_sent_as_it_is() {
    let text = " {\"payload\":  {},\n\"payload\": []} ";
    let request = format!("PUT /api/v1/vm.create {text}");
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let file = folder.path().join("vm.json");
    std::fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("UTF-8");
    for (args, input) in [
        (&["create"][..], text),
        (&["create", "-"], text),
        (&["create", file], ""),
    ] {
        let (ending, made) = Server::start(DONE).run(args, input.as_bytes());
        assert_eq!(ending, Ending::of(0, "", ""));
        assert_eq!(made, request);
    }
    let ending = run(&["--api-socket", "/s", "create", "/no/vm.json"], b"");
    let message = "ch-remote: create /no/vm.json: cannot read it: No such file or directory \
                   (os error 2)\n";
    assert_eq!(ending, Ending::of(1, "", message));
}

#[test]
fn a_refusal_is_an_error() {
    for (answer, message) in [
        (
            answer("404 Not Found", r#"["there is no virtual machine"]"#),
            "ch-remote: there is no virtual machine\n",
        ),
        (
            answer("500 Internal Server Error", r#"["a","b","c"]"#),
            "ch-remote: a: b: c\n",
        ),
        (
            answer("400 Bad Request", r#"["a","b: c","d: e"]"#),
            "ch-remote: a\n  b: c\n  d: e\n",
        ),
        (
            answer("502 Bad Gateway", "no\u{1b}"),
            "ch-remote: the server answered with status 502: no\\u{1b}\n",
        ),
    ] {
        let (ending, _) = Server::start(answer).run(&["boot"], b"");
        assert_eq!(ending, Ending::of(1, "", message));
    }
}

#[test]
fn nodes_are_shown_as_tables() {
    let info = r#"{"config":{},"state":"Running","memory_actual_size":0,"numa":{
        "nodes":[
            {"guest_numa_id":0,"proximity_domain":0,"linux_node":0,"cpus":[0,1],
             "memory_zones":["mem0"],"memory":[{"start":0,"size":1073741824}]},
            {"guest_numa_id":1,"proximity_domain":1,"linux_node":1,"cpus":[],
             "memory_zones":[],"memory":[],"device":"gpu0"}],
        "distances":[[10,40],[40,10]],
        "devices":[{"id":"gpu0","pci_bdf":"0000:00:01.0","guest_numa_ids":[1],"dsd":true,
            "generic_initiators":true,
            "coherent_memory":{"bar":4,"size":1073741824,"address":137438953472}}]}}"#;
    let (ending, made) = Server::start(answer("200 OK", info)).run(&["numa"], b"");
    let tables = "\
NUMA nodes
    id  Linux  CPUs        RAM         zones or device
     0      0  0-1         1 GiB       mem0
     1      1  -           empty       gpu0

Distances, from a row's node to a column's
           0   1
     0    10  40
     1    40  10

Devices
  0000:00:01.0  gpu0
      memory that CPUs may cache: 1 GiB in BAR 4, 0x002000000000-0x00203fffffff
      nodes 1, told by _DSD and generic initiators
";
    assert_eq!(ending, Ending::of(0, tables, ""));
    assert_eq!(made, "GET /api/v1/vm.info ");
    let created = answer("200 OK", r#"{"state":"Created"}"#);
    let (ending, _) = Server::start(created).run(&["numa"], b"");
    let sentence = "The virtual machine is not booted; its NUMA nodes are known once it is.\n";
    assert_eq!(ending, Ending::of(0, sentence, ""));
    let (ending, _) = Server::start(answer("200 OK", "[]")).run(&["numa"], b"");
    assert_eq!((ending.code, &*ending.output), (Some(1), ""));
    let start = "ch-remote: the answer does not describe a virtual machine: ";
    assert!(ending.errors.starts_with(start), "{}", ending.errors);
}

#[test]
fn a_server_that_cannot_be_used_is_an_error_that_names_the_socket() {
    let cut = Server::start("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}");
    let socket = cut.socket.clone();
    let (ending, _) = cut.run(&["info"], b"");
    let message = format!(
        "ch-remote: --api-socket {}: no usable answer: the connection was closed after 2 of 10 bytes \
         of the answer\n",
        socket.display()
    );
    assert_eq!(ending, Ending::of(1, "", message));

    let folder = tempfile::tempdir().expect("there is a temporary folder");
    let socket = folder.path().join("api");
    let asked = |socket: &Path| run(&["--api-socket", socket.to_str().unwrap(), "info"], b"");
    let missing = asked(&socket);
    let message = format!(
        "ch-remote: --api-socket {}: there is no such socket; see that the VMM runs, and that it was \
         started with this --api-socket: No such file or directory (os error 2)\n",
        socket.display()
    );
    assert_eq!(missing, Ending::of(1, "", message));

    drop(UnixListener::bind(&socket).expect("a socket"));
    let left_behind = asked(&socket);
    assert_eq!(left_behind.code, Some(1));
    let reason = "nobody listens there; the VMM that made it has ended, or it is no socket";
    assert!(left_behind.errors.contains(reason), "{left_behind:?}");

    std::fs::set_permissions(&socket, Permissions::from_mode(0o000)).expect("our socket");
    let not_ours = asked(&socket);
    // Root may connect to anything.
    let reasons = ["not allowed to connect", "nobody listens there"];
    assert_eq!(not_ours.code, Some(1));
    assert!(
        reasons
            .iter()
            .any(|reason| not_ours.errors.contains(reason)),
        "{not_ours:?}"
    );
}

#[test]
fn a_wrong_command_line_is_another_exit_code() {
    for (args, start) in [
        (
            &["--api-socket", "/s", "add-fs", "tag=a"][..],
            "ch-remote: not supported yet: add-fs\n",
        ),
        (
            &["--api-socket", "/s", "add-device", "id=a"],
            "ch-remote: add-device id=a: path=<path> is missing\n",
        ),
        (
            &["--api-socket", "/s", "inof"],
            "ch-remote: unrecognized subcommand 'inof'",
        ),
        (&["info"], "ch-remote: the following required arguments"),
    ] {
        let ending = run(args, b"");
        assert_eq!((ending.code, &*ending.output), (Some(2), ""), "{args:?}");
        assert!(ending.errors.starts_with(start), "{}", ending.errors);
    }
    let help = run(&["--help"], b"");
    assert_eq!((help.code, &*help.errors), (Some(0), ""));
    assert!(help.output.contains("\n  numa "), "{}", help.output);
}

#[test]
fn a_reader_that_is_gone_is_an_error() {
    let server = Server::start(answer("200 OK", &"x".repeat(1 << 20)));
    let mut child = Command::new(ch_remote())
        .arg("--api-socket")
        .arg(&server.socket)
        .arg("info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ch-remote starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ch-remote ends");
    server.thread.join().expect("the server ends");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "ch-remote: cannot write to standard output: Broken pipe (os error 32)\n"
    );
}
