//! What is wrong with a request is said in a form that a program can read and a person understand.

use std::os::fd::AsRawFd as _;

use serde_json::{Value, json};
use tests::api::Answer;
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use crate::{machine, running, server};

#[test]
fn unknown_routes_are_404() {
    let server = server(&[]);
    for path in ["vm.bot", "", "vm.boot/", "vm.info/x", "VM.INFO"] {
        let answer = server.get(path).expect(404);
        assert!(answer.reasons()[0].contains(path), "{}", answer.text());
    }
    let mut connection = server.connect();
    std::io::Write::write_all(connection.stream(), b"GET / HTTP/1.1\r\n\r\n").unwrap();
    connection.answer().expect(404);
}

fn create(body: &str) -> Answer {
    let server = server(&[]);
    server.connect().request("PUT", "vm.create", Some(body))
}

#[test]
fn bodies_that_are_wrong_are_400_with_every_problem() {
    for (body, parts) in [
        ("", &["JSON"][..]),
        ("{", &["JSON", "EOF"]),
        ("[]", &["JSON", "object"]),
        ("{}", &["payload", "is missing"]),
        (
            r#"{"payload": {"kernel": 7}}"#,
            &["payload.kernel=7", "string"],
        ),
        (
            r#"{"payload": {}, "cpu": {}}"#,
            &["cpu", "did you mean \"cpus\"?"],
        ),
        (
            r#"{"payload": {}, "cpus": {"boot_vcpus": 1}}"#,
            &["cpus.max_vcpus", "is missing"],
        ),
        (
            r#"{"payload": {"kernel": "/k"}, "vdpa": [{"path": "/v"}]}"#,
            &["not supported yet: vdpa"],
        ),
        (r#"{"payload": {}}"#, &["--kernel", "nothing to boot"]),
    ] {
        let answer = create(body).expect(400);
        let reasons = answer.reasons();
        assert_eq!(reasons[0], "the configuration cannot be used");
        for part in parts {
            let found = reasons.iter().any(|reason| reason.contains(part));
            assert!(found, "no {part} in {reasons:?}");
        }
    }
}

#[test]
fn every_problem_has_a_line() {
    let body = json!({
        "payload": {"kernel": "/k"},
        "cpus": {"boot_vcpus": 0, "max_vcpus": 0},
        "memory": {"size": 1},
        "devices": [{"path": ""}],
    });
    let reasons = create(&body.to_string()).expect(400).reasons();
    assert!(reasons.len() > 3, "{reasons:?}");
}

#[test]
fn a_device_with_nodes_cannot_be_added_after_boot() {
    let server = running(&[]);
    for (route, mut body) in [
        (
            "vm.add-device",
            json!({"path": "/sys/bus/pci/devices/0000:01:00.0"}),
        ),
        ("vm.add-user-device", json!({"socket": "/run/gpu"})),
    ] {
        server.put(route, &body).expect(501);
        body["guest_numa_ids"] = json!([2, 3]);
        body["id"] = json!("gpu0");
        let reason = server.put(route, &body).expect(400).reasons().concat();
        for part in ["gpu0", "guest_numa_ids", "boot"] {
            assert!(reason.contains(part), "{reason}");
        }
    }
}

#[test]
fn devices_are_added_and_removed_before_boot() {
    let server = server(&[]);
    let mut machine = machine(&server, "listen");
    machine["memory"]["shared"] = json!(true);
    server.put("vm.create", &machine).expect(204);
    let device = |id: &str| json!({"socket": format!("/run/{id}"), "id": id});
    server.put("vm.add-user-device", &device("one")).expect(204);
    server
        .put("vm.add-user-device", &json!({"socket": "/run/two"}))
        .expect(204);
    let twice = server.put("vm.add-user-device", &device("one")).expect(400);
    assert!(twice.text().contains("one"), "{}", twice.text());
    let ids = |config: &Value| -> Vec<String> {
        let devices = config["user_devices"].as_array().into_iter().flatten();
        devices
            .map(|device| device["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&server.info()["config"]), ["one", "_vfio_user1"]);
    server
        .put("vm.remove-device", &json!({"id": "one"}))
        .expect(204);
    // What is left keeps its name.
    assert_eq!(ids(&server.info()["config"]), ["_vfio_user1"]);
    let unknown = server
        .put("vm.remove-device", &json!({"id": "one"}))
        .expect(404);
    assert!(unknown.text().contains("_vfio_user1"), "{}", unknown.text());
}

#[test]
fn devices_are_changed_between_boots() {
    let server = server(&[]);
    let mut machine = machine(&server, "listen");
    machine["memory"]["shared"] = json!(true);
    server.put("vm.create", &machine).expect(204);
    server.act("vm.boot").expect(204);
    server.act("vm.shutdown").expect(204);
    let device = json!({"socket": "/run/one", "id": "one"});
    server.put("vm.add-user-device", &device).expect(204);
    assert_eq!(
        server.info()["config"]["user_devices"][0]["socket"],
        "/run/one"
    );
    server
        .put("vm.remove-device", &json!({"id": "one"}))
        .expect(204);
    assert!(!server.info()["config"].to_string().contains("/run/one"));
    server.act("vm.boot").expect(204);
}

#[test]
fn descriptors_that_no_route_takes_are_refused() {
    let server = server(&[]);
    let mut connection = server.connect();
    let file = std::fs::File::open("/dev/null").unwrap();
    let request = tests::api::request("PUT", "vm.create", Some("{}"));
    let sent = connection
        .stream()
        .send_with_fd(request.as_bytes(), file.as_raw_fd())
        .unwrap();
    assert_eq!(sent, request.len());
    let reason = connection.answer().expect(400).reasons().concat();
    assert!(
        reason.contains("takes no descriptors, and 1 came"),
        "{reason}"
    );
}
