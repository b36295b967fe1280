//! The REST API, on the real program over its real socket, with probe guests on this machine's KVM.
#![cfg(target_arch = "x86_64")]

mod bodies;
mod core_scheduling;
mod cycles;
mod errors;
mod events;
mod examples;
mod hostile;
mod info;
mod lifecycle;
mod remote;
mod states;
mod taps;

use std::path::Path;

use serde_json::{Value, json};
use tests::CoherentDevice;
use tests::api::ApiServer;
use tests::coherent_device::Options;
use tests::probe;

/// A VMM with further options that has no virtual machine yet.
fn server(options: &[&str]) -> ApiServer {
    ApiServer::start(probe::cloud_hypervisor(), options)
}

/// A small virtual machine that does `words`, its serial port in the file `console` of the server's
/// folder.
fn machine(server: &ApiServer, words: &str) -> Value {
    json!({
        "payload": {"kernel": probe::build(), "cmdline": words},
        "memory": {"size": 64 << 20},
        "serial": {"mode": "File", "file": server.folder().join("console")},
    })
}

/// What the guest has printed on its serial port.
fn console(server: &ApiServer) -> String {
    let text = std::fs::read(server.folder().join("console")).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until the guest has printed `text` `count` times.
fn wait_for(server: &mut ApiServer, text: &str, count: usize) {
    server.wait_until(text, |server| {
        console(server).matches(text).count() >= count
    });
}

/// A virtual machine whose guest is up and waits.
fn running(options: &[&str]) -> ApiServer {
    let mut server = server(options);
    server
        .put("vm.create", &machine(&server, "listen"))
        .expect(204);
    server.act("vm.boot").expect(204);
    wait_for(&mut server, "listen: ready", 1);
    server
}

const MIB: u64 = 1 << 20;

/// Memory of the simulated device: less than its BAR, as with real ones, which is what it is known by.
const MEMORY: u64 = 448 * MIB;

/// A simulated device, whose program cargo has built.
fn simulated() -> CoherentDevice {
    let program = Path::new(env!("CARGO_BIN_EXE_coherent_device"));
    let options = Options {
        usable: Some(MEMORY),
        ..Options::default()
    };
    CoherentDevice::start_program(program, options).unwrap()
}
