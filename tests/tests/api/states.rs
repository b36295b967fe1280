//! Every route in every state. The table of statuses is part of the documentation, and what the
//! program really answers.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use tests::api::{Answer, ApiServer};
use vmm::api::{Method, ROUTES, Route};

use crate::{machine, running, server};

/// What the virtual machine is doing.
const STATES: [&str; 5] = ["none", "Created", "Running", "Paused", "Shutdown"];

/// The VMM stays when its guest ends: the probe guest does not survive an NMI.
const STAY: &[&str] = &["--no-shutdown"];

/// A VMM whose virtual machine is in a state.
fn in_state(state: &str) -> ApiServer {
    let server = match state {
        "none" => return server(STAY),
        "Created" => {
            let server = server(STAY);
            server
                .put("vm.create", &machine(&server, "listen"))
                .expect(204);
            server
        }
        "Running" => running(STAY),
        "Paused" => {
            let server = running(STAY);
            server.act("vm.pause").expect(204);
            server
        }
        "Shutdown" => {
            let server = running(STAY);
            server.act("vm.shutdown").expect(204);
            server
        }
        _ => unreachable!("no such state"),
    };
    assert_eq!(server.info()["state"], state);
    server
}

/// A body that asks a route for something sensible.
fn body(server: &ApiServer, route: &str) -> Option<Value> {
    match route {
        "vm.create" => Some(machine(server, "listen")),
        "vm.add-device" => Some(json!({"path": "/sys/bus/pci/devices/0000:00:1f.0"})),
        // Before boot nobody looks whether there is a server behind the socket; the machine's memory
        // is not shared, which is looked at.
        "vm.add-user-device" => Some(json!({"socket": "/run/device"})),
        "vm.add-net" => Some(json!({"tap": "vmtap0"})),
        "vm.add-disk" => Some(json!({"path": "/run/disk"})),
        "vm.add-vsock" => Some(json!({"cid": 3, "socket": "/run/vsock"})),
        "vm.remove-device" => Some(json!({"id": "gpu0"})),
        _ => None,
    }
}

fn ask(server: &ApiServer, route: &Route) -> Answer {
    let body = body(server, route.name).map(|body| body.to_string());
    let mut connection = server.connect();
    connection.request(route.method.as_str(), route.name, body.as_deref())
}

/// A line for each route, a column for each state.
fn table() -> String {
    let mut rows = String::from("| route | no VM | created | running | paused | shut down |\n");
    rows += "|---|---|---|---|---|---|\n";
    for route in &ROUTES {
        let method = route.method.as_str();
        let _ = write!(rows, "| `{method} {}`", route.name);
        for state in STATES {
            let mut server = in_state(state);
            let answer = ask(&server, route);
            match answer.status {
                200 => drop(answer.json()),
                204 => assert!(answer.body.is_empty(), "{}", route.name),
                _ => assert!(!answer.reasons().is_empty(), "{}", route.name),
            }
            let _ = write!(rows, " | {}", answer.status);
            if route.name == "vmm.shutdown" {
                assert_eq!(server.wait().code(), Some(0), "{}", server.errors());
            } else {
                server.get("vmm.ping").expect(200);
            }
        }
        rows += " |\n";
    }
    rows
}

#[test]
fn every_route_answers_in_every_state_as_documented() {
    const BEGIN: &str = "<!-- states -->\n";
    const END: &str = "<!-- end of states -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    let table = table();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let text = format!("{before}{BEGIN}{table}{END}{after}");
        std::fs::write(&path, text).unwrap();
        return;
    }
    assert!(
        shown == table,
        "docs/api.md has\n{shown}and there is\n{table}"
    );
}

/// The documents' table may be rewritten by mistake; these are what it must never lose.
#[test]
fn statuses_that_clients_count_on() {
    for (state, method, route, status) in [
        ("none", "GET", "vm.info", 404),
        ("none", "PUT", "vm.boot", 404),
        ("none", "PUT", "vm.delete", 204),
        ("Created", "PUT", "vm.pause", 405),
        ("Created", "PUT", "vm.power-button", 405),
        ("Running", "PUT", "vm.resume", 405),
        ("Running", "PUT", "vm.create", 409),
        ("Running", "PUT", "vm.resize", 501),
        ("Paused", "PUT", "vm.pause", 405),
        ("Paused", "PUT", "vm.delete", 204),
        ("Shutdown", "PUT", "vm.boot", 204),
    ] {
        let server = in_state(state);
        let body = body(&server, route).map(|body| body.to_string());
        let answer = server.connect().request(method, route, body.as_deref());
        assert_eq!(
            answer.status,
            status,
            "{route} in {state}: {}",
            answer.text()
        );
    }
}

#[test]
fn every_route_refuses_other_methods_and_names_its_own() {
    let server = server(&[]);
    let mut connection = server.connect();
    for route in &ROUTES {
        let (wanted, others) = match route.method {
            Method::Get => ("GET", ["PUT", "POST"]),
            Method::Put => ("PUT", ["GET", "DELETE"]),
        };
        for other in others {
            let answer = connection.request(other, route.name, None).expect(405);
            assert_eq!(answer.header("allow"), Some(wanted), "{}", route.name);
            assert!(answer.reasons()[0].contains(wanted), "{}", answer.text());
        }
    }
}
