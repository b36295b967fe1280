//! What the event monitor is told of virtual machines that come and go through the API.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;

use serde_json::{Deserializer, Value, json};
use tests::api::ApiServer;

use crate::{machine, server, wait_for};

/// A VMM that writes events to a file.
fn monitored() -> (tempfile::TempDir, ApiServer) {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("path={}", folder.path().join("events").display());
    let server = server(&["--no-shutdown", "--event-monitor", &path]);
    (folder, server)
}

/// All events so far.
fn events(folder: &tempfile::TempDir) -> Vec<Value> {
    let text = fs::read_to_string(folder.path().join("events")).unwrap();
    let events = Deserializer::from_str(&text).into_iter();
    events.map_while(Result::ok).collect()
}

/// Ends the VMM and gives the names of its events, without those of the VMM itself.
fn ended(folder: &tempfile::TempDir, server: &mut ApiServer) -> Vec<String> {
    server.act("vmm.shutdown").expect(204);
    assert_eq!(server.wait().code(), Some(0), "{}", server.errors());
    let events = events(folder);
    let of_machine = events.iter().filter(|event| event["source"] == "vm");
    of_machine
        .map(|event| event["event"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn each_step_of_a_machine_is_told_once_and_in_order() {
    let (folder, mut server) = monitored();
    let body = machine(&server, "listen");
    server.put("vm.create", &body).expect(204);
    for route in [
        "vm.boot",
        "vm.pause",
        "vm.resume",
        "vm.reboot",
        "vm.shutdown",
        "vm.delete",
    ] {
        server.act(route).expect(204);
    }
    server.put("vm.create", &body).expect(204);
    server.act("vm.boot").expect(204);
    // It ends with the VMM, and so does its configuration.
    assert_eq!(
        ended(&folder, &mut server),
        [
            "booting",
            "booted",
            "pausing",
            "paused",
            "resuming",
            "resumed",
            "rebooting",
            "rebooted",
            "shutdown",
            "deleted",
            "booting",
            "booted",
            "shutdown",
            "deleted",
        ]
    );
}

#[test]
fn a_reboot_that_fails_is_the_end_of_the_machine() {
    let (folder, mut server) = monitored();
    let mut body = machine(&server, "listen");
    let kernel = folder.path().join("kernel");
    fs::copy(tests::probe::build(), &kernel).unwrap();
    body["payload"]["kernel"] = json!(kernel);
    server.put("vm.create", &body).expect(204);
    server.act("vm.boot").expect(204);
    fs::remove_file(&kernel).unwrap();
    server.act("vm.reboot").expect(500);
    assert_eq!(server.info()["state"], "Shutdown");
    server.act("vm.boot").expect(500);
    assert_eq!(
        ended(&folder, &mut server),
        [
            "booting",
            "booted",
            "rebooting",
            "shutdown",
            "booting",
            "deleted"
        ]
    );
}

#[test]
fn a_guest_that_fails_is_told_with_its_reason() {
    let (folder, mut server) = monitored();
    let mut body = machine(&server, "listen");
    let serial = server.folder().join("serial");
    body["serial"] = json!({"mode": "Socket", "socket": &serial});
    server.put("vm.create", &body).expect(204);
    server.act("vm.boot").expect(204);
    let mut serial = UnixStream::connect(serial).unwrap();
    serial.write_all(b"triple\n").unwrap();
    server.wait_for_state("Shutdown");
    assert_eq!(
        ended(&folder, &mut server),
        ["booting", "booted", "failed", "shutdown", "deleted"]
    );
    let events = events(&folder);
    let failed = events.iter().find(|event| event["event"] == "failed");
    let reason = failed.unwrap()["properties"]["reason"].as_str().unwrap();
    assert!(reason.contains("triple fault"), "{reason}");
}

#[test]
fn the_end_of_one_boot_is_not_that_of_the_next() {
    let mut server = server(&["--no-shutdown"]);
    let body = machine(&server, "listen");
    server.put("vm.create", &body).expect(204);
    server.act("vm.boot").expect(204);
    let mut connection = server.connect();
    let mut ask = |route: &str| connection.request("PUT", route, None).status;
    let mut boots = 1;
    wait_for(&mut server, "listen: ready", boots);
    for round in 0..60 {
        // The guest has no handler, so it fails about when it is started afresh.
        assert_eq!(ask("vm.nmi"), 204);
        if ask("vm.reboot") == 405 {
            assert_eq!(ask("vm.boot"), 204);
            // The file is new.
            boots = 0;
        }
        boots += 1;
        wait_for(&mut server, "listen: ready", boots);
        assert_eq!(server.info()["state"], "Running", "round {round}");
    }
}
