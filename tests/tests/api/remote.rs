//! `ch-remote` and the program that it asks, together.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::api::ApiServer;
use tests::binaries;

use crate::{machine, server, wait_for};

fn remote(server: &ApiServer, arguments: &[&str]) -> Output {
    fed(server, arguments, "")
}

/// With something on standard input.
fn fed(server: &ApiServer, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(binaries::ch_remote())
        .arg("--api-socket")
        .arg(server.socket())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Who needs no input does not read it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// What was printed, by a command that succeeds and complains of nothing.
fn printed(output: Output) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""));
    String::from_utf8(output.stdout).unwrap()
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_life_by_commands() {
    let mut server = server(&[]);
    let state = |server: &ApiServer| -> Value {
        let info: Value = serde_json::from_str(&printed(remote(server, &["info"]))).unwrap();
        info["state"].clone()
    };
    let pong: Value = serde_json::from_str(&printed(remote(&server, &["ping"]))).unwrap();
    assert_eq!(pong["pid"], server.pid());
    let mut body = machine(&server, "listen");
    body["memory"]["shared"] = json!(true);
    assert_eq!(printed(fed(&server, &["create"], &body.to_string())), "");
    for (command, after) in [
        (&["boot"][..], "Running"),
        (&["pause"], "Paused"),
        (&["resume"], "Running"),
        (&["power-button"], "Running"),
        (&["reboot"], "Running"),
        (&["shutdown"], "Shutdown"),
        (&["add-user-device", "socket=/run/gpu,id=gpu0"], "Shutdown"),
        (&["remove-device", "gpu0"], "Shutdown"),
        (&["boot"], "Running"),
    ] {
        assert_eq!(printed(remote(&server, command)), "", "{command:?}");
        assert_eq!(state(&server), after, "{command:?}");
    }
    wait_for(&mut server, "listen: ready", 1);
    assert_eq!(printed(remote(&server, &["counters"])), "{}\n");
    assert_eq!(printed(remote(&server, &["delete"])), "");
    assert_eq!(printed(remote(&server, &["shutdown-vmm"])), "");
    assert_eq!(server.wait().code(), Some(0));
    let gone = complaint(&remote(&server, &["ping"]));
    assert!(
        gone.contains(&server.socket().display().to_string()),
        "{gone}"
    );
}

#[test]
fn a_machine_from_a_file() {
    let server = server(&[]);
    let file = server.folder().join("machine.json");
    std::fs::write(&file, machine(&server, "listen").to_string()).unwrap();
    assert_eq!(
        printed(remote(&server, &["create", file.to_str().unwrap()])),
        ""
    );
    assert_eq!(server.info()["state"], "Created");
}

#[test]
fn errors_come_with_all_that_they_come_from() {
    let server = server(&[]);
    let none = complaint(&remote(&server, &["info"]));
    assert_eq!(
        none,
        "ch-remote: there is no virtual machine; create one first\n"
    );
    let body = json!({"payload": {"kernel": "/no/such/kernel"}}).to_string();
    printed(fed(&server, &["create", "-"], &body));
    let boot = complaint(&remote(&server, &["boot"]));
    let expected = "ch-remote: the virtual machine cannot be booted: --kernel /no/such/kernel";
    assert!(
        boot.starts_with(expected) && boot.contains("No such file"),
        "{boot}"
    );
    let resize = complaint(&remote(&server, &["resize", "--cpus", "2"]));
    assert!(resize.contains("not supported yet: vm.resize"), "{resize}");
}

/// The table of a machine that runs is the one that the plan of its configuration shows.
#[test]
fn nodes_are_shown_as_in_a_plan() {
    let probe = tests::probe::build().display().to_string();
    let options = [
        "--kernel",
        &probe,
        "--cmdline",
        "listen",
        "--console",
        "off",
        "--cpus",
        "boot=2",
        "--memory",
        "size=64M",
        "--numa",
        "guest_numa_id=0,cpus=[0-1],distances=[1@25]",
        "guest_numa_id=1",
        "guest_numa_id=4",
    ];
    let plan = Command::new(tests::probe::cloud_hypervisor())
        .args(options)
        .arg("--plan")
        .output()
        .unwrap();
    let plan = printed(plan);
    let begin = plan.find("NUMA nodes\n").unwrap();
    let end = plan.find("\n\nPCI segments").unwrap();
    let table = &plan[begin..end];
    assert!(table.contains("Distances"), "{table}");
    let mut server = server(&options);
    server.wait_for_state("Running");
    let shown = printed(remote(&server, &["numa"]));
    assert!(shown.contains(table), "{shown}\n---\n{table}");
}
