//! What many virtual machines and many clients leave behind: nothing.

use std::thread;

use tests::usage;

use crate::{machine, server};

/// Creates, boots, shuts down and deletes `count` virtual machines, and holds that the VMM has no more
/// of anything than after the first ones.
fn cycle(count: usize) {
    let server = server(&[]);
    let mut connection = server.connect();
    let body = machine(&server, "listen").to_string();
    let mut early = None;
    for round in 0..count {
        for (route, body) in [
            ("vm.create", Some(body.as_str())),
            ("vm.boot", None),
            ("vm.shutdown", None),
            ("vm.delete", None),
        ] {
            connection.request("PUT", route, body).expect(204);
        }
        if round + 1 == count.min(40) / 2 {
            early = Some(usage(server.pid()).unwrap());
        }
    }
    let (early, late) = (early.unwrap(), usage(server.pid()).unwrap());
    assert_eq!(late.threads, early.threads);
    assert_eq!(late.descriptors, early.descriptors);
    let grown = late.own_memory.saturating_sub(early.own_memory);
    assert!(grown < 1 << 20, "{early:?} -> {late:?}");
}

#[test]
fn forty_machines_leave_nothing_behind() {
    cycle(40);
}

#[test]
#[ignore = "takes a minute"]
fn a_thousand_machines_leave_nothing_behind() {
    cycle(1000);
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let server = server(&[]);
    server
        .put("vm.create", &machine(&server, "listen"))
        .expect(204);
    let threads = usage(server.pid()).unwrap().threads;
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let mut connection = server.connect();
                for _ in 0..20 {
                    connection.request("GET", "vm.info", None).expect(200);
                    connection.request("GET", "vmm.ping", None).expect(200);
                }
            });
        }
    });
    server.get("vmm.ping").expect(200);
    let start = std::time::Instant::now();
    while usage(server.pid()).unwrap().threads > threads {
        assert!(start.elapsed().as_secs() < 10, "threads stay");
    }
}
