//! The examples of docs/api.md, run as they stand there.

use std::path::Path;

use serde_json::{Value, json};
use tests::api::ApiServer;
use tests::{CoherentDevice, probe};

use crate::{server, simulated, wait_for};

/// An example: what is asked for, and what is said to come of it.
#[derive(Debug)]
struct Example {
    method: String,
    route: String,
    body: Option<String>,
    answer: String,
    status: u16,
}

/// Reads `$ api METHOD URL [-d 'BODY']`, the answer, and the status in a line of its own.
fn read(text: &str) -> Example {
    let (command, printed) = match text.split_once(" -d '") {
        Some((command, rest)) => {
            let (body, printed) = rest.split_once("'\n").expect("a closed quote");
            ((command, Some(body.to_owned())), printed)
        }
        None => {
            let (command, printed) = text.split_once('\n').expect("an answer");
            ((command, None), printed)
        }
    };
    let (method, url) = command.0.split_once(' ').expect("a method and a URL");
    let route = url
        .strip_prefix("http://localhost/api/v1/")
        .expect("our root");
    let lines: Vec<&str> = printed.lines().collect();
    let (status, answer) = lines.split_last().expect("a status");
    Example {
        method: method.to_owned(),
        route: route.to_owned(),
        body: command.1,
        answer: answer.concat(),
        status: status.parse().expect("a number"),
    }
}

fn examples(document: &str) -> Vec<Example> {
    let blocks = document.split("```console\n").skip(1);
    let blocks = blocks.map(|rest| rest.split_once("```").expect("the end of a block").0);
    blocks
        .flat_map(|block| block.split("$ api ").skip(1).map(read))
        .collect()
}

/// What stands for something else in the document.
fn body(body: &str, server: &ApiServer, device: &CoherentDevice) -> String {
    let serial = json!({"mode": "File", "file": server.folder().join("console")});
    body.replace("/boot/vmlinux", &probe::build().display().to_string())
        .replace(r#"{"mode": "Pty"}"#, &serial.to_string())
        .replace("console=ttyS0", "nmis listen")
        .replace(
            "/srv/data.img",
            &server.folder().join("disk").display().to_string(),
        )
        .replace(
            "/run/vm.vsock",
            &server.folder().join("vsock").display().to_string(),
        )
        .replace("/run/gpu.sock", &device.socket().display().to_string())
}

fn run(server: &mut ApiServer, example: &Example, device: &CoherentDevice) {
    let body = example.body.as_deref();
    let body = body.map(|text| self::body(text, server, device));
    let mut connection = server.connect();
    let answer = connection.request(&example.method, &example.route, body.as_deref());
    let answer = answer.expect(example.status);
    match example.route.as_str() {
        // Shortened, or another one each time.
        "vm.info" => {
            let info = answer.json();
            assert_eq!(info["numa"]["devices"][0]["id"], "gpu0");
            let members = info.as_object().unwrap().keys();
            for member in members {
                assert!(
                    example.answer.contains(&format!("\"{member}\"")),
                    "{member}"
                );
            }
        }
        "vmm.ping" => {
            let shown: Value = serde_json::from_str(&example.answer).unwrap();
            assert_eq!(answer.json()["version"], shown["version"]);
        }
        _ => assert_eq!(answer.text(), example.answer, "{example:?}"),
    }
    // An NMI that comes before the guest is ready for it is a triple fault, as on any machine.
    match example.route.as_str() {
        "vm.boot" => wait_for(server, "listen: ready", 1),
        "vm.reboot" => wait_for(server, "listen: ready", 2),
        _ => {}
    }
}

#[test]
fn the_examples_of_the_document_do_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let document = std::fs::read_to_string(path).unwrap();
    let examples = examples(&document);
    for route in &vmm::api::ROUTES {
        let shown = examples.iter().any(|example| example.route == route.name);
        let told = document.contains(&format!("`{}`", route.name));
        assert!(shown || told, "{} is not in the document", route.name);
    }
    let device = simulated();
    let mut server = server(&[]);
    std::fs::write(server.folder().join("disk"), [0; 512]).unwrap();
    for example in &examples {
        if server.status().is_none() {
            run(&mut server, example, &device);
        } else {
            // After the end of the VMM; another one would say so.
            run(&mut crate::server(&[]), example, &device);
        }
        if example.route == "vmm.shutdown" {
            assert_eq!(server.wait().code(), Some(0));
        }
    }
}
