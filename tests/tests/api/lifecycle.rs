//! Virtual machines that come and go, and what their guests see of it.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{console, machine, running, server, wait_for};

#[test]
fn a_machine_is_created_booted_shut_down_and_deleted_again_and_again() {
    let mut server = server(&[]);
    for round in 0..3 {
        server
            .put("vm.create", &machine(&server, "listen"))
            .expect(204);
        for _ in 0..2 {
            server.act("vm.boot").expect(204);
            wait_for(&mut server, "listen: ready", 1);
            server.act("vm.shutdown").expect(204);
            assert_eq!(server.info()["state"], "Shutdown");
        }
        server.act("vm.delete").expect(204);
        server.get("vm.info").expect(404);
        assert!(server.status().is_none(), "round {round}");
    }
    server.act("vmm.shutdown").expect(204);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.socket().exists());
}

#[test]
fn a_guest_that_powers_off_ends_the_vmm_unless_it_is_told_to_stay() {
    for (options, ends) in [(vec![], true), (vec!["--no-shutdown"], false)] {
        let mut server = server(&options);
        let machine = machine(&server, "poweroff");
        server.put("vm.create", &machine).expect(204);
        // The VMM may be gone before it answers.
        if ends {
            server
                .connect()
                .stream()
                .write_all(b"PUT /api/v1/vm.boot HTTP/1.1\r\n\r\n")
                .unwrap();
            assert_eq!(server.wait().code(), Some(0));
            continue;
        }
        server.act("vm.boot").expect(204);
        server.wait_for_state("Shutdown");
        server.act("vm.boot").expect(204);
        server.wait_for_state("Shutdown");
        server.act("vm.delete").expect(204);
        assert!(server.status().is_none());
    }
}

#[test]
fn a_guest_that_fails_ends_the_vmm_with_an_error_unless_it_is_told_to_stay() {
    // An instruction fetch from where there is nothing.
    for (options, code) in [(vec![], Some(1)), (vec!["--no-shutdown"], None)] {
        let mut server = server(&options);
        let mut machine = machine(&server, "listen");
        machine["serial"] = json!({"mode": "Socket", "socket": server.folder().join("serial")});
        server.put("vm.create", &machine).expect(204);
        server.act("vm.boot").expect(204);
        let mut serial = UnixStream::connect(server.folder().join("serial")).unwrap();
        serial.write_all(b"triple\n").unwrap();
        match code {
            Some(code) => assert_eq!(server.wait().code(), Some(code)),
            None => server.wait_for_state("Shutdown"),
        }
        server.wait_until("reason", |server| server.errors().contains("triple fault"));
    }
}

#[test]
fn reboots_start_the_guest_afresh() {
    let mut server = running(&[]);
    server.act("vm.reboot").expect(204);
    wait_for(&mut server, "listen: ready", 2);
    server.act("vm.pause").expect(204);
    server.act("vm.reboot").expect(204);
    assert_eq!(server.info()["state"], "Running");
    wait_for(&mut server, "listen: ready", 3);
}

#[test]
fn a_paused_guest_stands_still_and_its_input_waits() {
    let mut server = server(&[]);
    let mut machine = machine(&server, "listen");
    let serial = server.folder().join("serial");
    machine["serial"] = json!({"mode": "Socket", "socket": &serial});
    machine["debug_console"] = json!({"mode": "File", "file": server.folder().join("console")});
    server.put("vm.create", &machine).expect(204);
    server.act("vm.boot").expect(204);
    let mut input = UnixStream::connect(&serial).unwrap();
    input.write_all(b"outb=0xe9:0x61\n").unwrap();
    wait_for(&mut server, "a", 1);

    server.act("vm.pause").expect(204);
    assert_eq!(server.info()["state"], "Paused");
    input.write_all(b"outb=0xe9:0x62\n").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(console(&server), "a");

    server.act("vm.resume").expect(204);
    assert_eq!(server.info()["state"], "Running");
    wait_for(&mut server, "b", 1);
    assert_eq!(console(&server), "ab");
}

#[test]
fn pause_and_resume_take_less_than_a_tenth_of_a_second() {
    let server = running(&[]);
    let mut connection = server.connect();
    let mut times = Vec::new();
    for _ in 0..20 {
        for route in ["vm.pause", "vm.resume"] {
            let start = Instant::now();
            connection.request("PUT", route, None).expect(204);
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    // The machine may be busy with something else for a moment.
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(100), "{times:?}");
}

#[test]
fn a_machine_that_cannot_be_booted_is_still_there() {
    let mut server = server(&[]);
    let mut machine = machine(&server, "listen");
    machine["payload"]["kernel"] = json!(server.folder().join("kernel"));
    server.put("vm.create", &machine).expect(204);
    let reasons = server.act("vm.boot").expect(500).reasons();
    assert_eq!(reasons[0], "the virtual machine cannot be booted");
    let kernel = server.folder().join("kernel").display().to_string();
    assert!(reasons[1].contains(&kernel), "{reasons:?}");
    assert!(
        reasons.last().unwrap().contains("No such file"),
        "{reasons:?}"
    );
    assert_eq!(server.info()["state"], "Created");
    // Nothing was left open or made.
    assert!(!server.folder().join("console").exists());

    std::fs::copy(tests::probe::build(), server.folder().join("kernel")).unwrap();
    server.act("vm.boot").expect(204);
    wait_for(&mut server, "listen: ready", 1);
}

#[test]
fn a_machine_of_the_command_line_is_there_for_the_api() {
    let probe = tests::probe::build().display().to_string();
    let mut server = server(&[
        "--kernel",
        &probe,
        "--cmdline",
        "listen",
        "--console",
        "off",
        "--memory",
        "size=64M",
    ]);
    server.wait_for_state("Running");
    server.act("vm.shutdown").expect(204);
    server.act("vm.delete").expect(204);
    server
        .put("vm.create", &machine(&server, "listen"))
        .expect(204);
    server.act("vm.boot").expect(204);
    wait_for(&mut server, "listen: ready", 1);
    server.act("vmm.shutdown").expect(204);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn an_nmi_reaches_the_guest() {
    let mut server = running(&[]);
    server.act("vm.nmi").expect(204);
    // The probe has no handler: what comes of it is a triple fault.
    assert_eq!(server.wait().code(), Some(1));
    assert!(
        server.errors().contains("triple fault"),
        "{}",
        server.errors()
    );
}

#[test]
fn every_step_is_an_event() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let option = format!("path={}", path.display());
    let mut server = server(&["--no-shutdown", "--event-monitor", &option]);
    server
        .put("vm.create", &machine(&server, "reset"))
        .expect(204);
    // The guest resets itself for ever, unless it is paused.
    for route in [
        "vm.boot",
        "vm.pause",
        "vm.resume",
        "vm.shutdown",
        "vm.delete",
    ] {
        server.act(route).expect(204);
    }
    server
        .put("vm.create", &machine(&server, "poweroff"))
        .expect(204);
    server.act("vm.boot").expect(204);
    server.wait_for_state("Shutdown");
    server.act("vmm.shutdown").expect(204);
    assert_eq!(server.wait().code(), Some(0));
    let text = std::fs::read_to_string(&path).unwrap();
    let events = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    let mut names: Vec<String> = events
        .map(|event| {
            let event = event.unwrap();
            format!(
                "{}:{}",
                event["source"].as_str().unwrap(),
                event["event"].as_str().unwrap()
            )
        })
        .collect();
    let resets = names.iter().filter(|name| *name == "vm:rebooting").count();
    assert_eq!(
        resets,
        names.iter().filter(|name| *name == "vm:rebooted").count()
    );
    names.retain(|name| !name.starts_with("vm:reboot"));
    let expected = [
        "vmm:starting",
        "vm:booting",
        "vm:booted",
        "vm:pausing",
        "vm:paused",
        "vm:resuming",
        "vm:resumed",
        "vm:shutdown",
        "vm:deleted",
        "vm:booting",
        "vm:booted",
        "vm:shutdown",
        "vm:deleted",
        "vmm:shutdown",
    ];
    assert_eq!(names, expected);
}
