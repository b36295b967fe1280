//! Descriptors that come with `vm.add-net`.

use std::io::{PipeReader, pipe};
use std::os::fd::AsRawFd as _;

use serde_json::json;
use tests::api::{Answer, ApiServer, request};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use super::{machine, server};

/// Asks for an interface, with so many descriptors that are no tap: pipes, whose other ends tell when all
/// are closed.
fn add_net(server: &ApiServer, body: &str, count: usize) -> (Answer, Vec<PipeReader>) {
    let mut connection = server.connect();
    let pipes: Vec<_> = (0..count).map(|_| pipe().unwrap()).collect();
    let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
    let numbers: Vec<i32> = writers.iter().map(|writer| writer.as_raw_fd()).collect();
    let text = request("PUT", "vm.add-net", Some(body));
    let sent = connection
        .stream()
        .send_with_fds(&[text.as_bytes()], &numbers);
    assert_eq!(sent.unwrap(), text.len());
    (connection.answer(), readers)
}

/// Whether nobody has the other end any more: there is an end to read.
fn is_closed(reader: &PipeReader) -> bool {
    let poll = Epoll::new().unwrap();
    // The end is told of in any case.
    let event = EpollEvent::new(EventSet::empty(), 0);
    poll.ctl(ControlOperation::Add, reader.as_raw_fd(), event)
        .unwrap();
    poll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn descriptors_are_kept_until_their_interface_is_removed() {
    let mut server = server(&[]);
    server
        .put("vm.create", &machine(&server, "listen"))
        .expect(204);
    let (answer, readers) = add_net(&server, r#"{"mac": "52:54:00:00:00:01"}"#, 1);
    answer.expect(204);
    let net = server.info()["config"]["net"][0].clone();
    assert_eq!(net["mac"], "52:54:00:00:00:01");
    assert_eq!(net["fds"].as_array().unwrap().len(), 1, "{net}");
    // What it is, is found out at each boot.
    for _ in 0..2 {
        let reasons = server.act("vm.boot").expect(500).reasons().join(": ");
        assert!(reasons.contains("descriptor 1 of 1 is no tap"), "{reasons}");
        assert!(!is_closed(&readers[0]));
    }
    server
        .put("vm.remove-device", &json!({"id": "_net0"}))
        .expect(204);
    server.wait_until("the end of a descriptor", |_| is_closed(&readers[0]));
    server.act("vm.boot").expect(204);
}

#[test]
fn descriptors_of_what_is_refused_are_closed() {
    let mut server = server(&[]);
    let (answer, readers) = add_net(&server, "{}", 1);
    answer.expect(404);
    server.wait_until("the end of a descriptor", |_| is_closed(&readers[0]));
    server
        .put("vm.create", &machine(&server, "listen"))
        .expect(204);
    for (body, count, expected) in [
        ("{}", 2, "2 descriptors do not fit num_queues=2"),
        (r#"{"tap": "t"}"#, 1, "drop tap"),
        (r#"{"fds": [3]}"#, 1, "descriptors came with the request"),
        (r#"{"tab": "t"}"#, 1, "unknown key"),
    ] {
        let (answer, readers) = add_net(&server, body, count);
        let reasons = answer.expect(400).reasons().join(": ");
        assert!(reasons.contains(expected), "{reasons}");
        for reader in &readers {
            server.wait_until("the end of a descriptor", |_| is_closed(reader));
        }
    }
    assert!(server.info()["config"].get("net").is_none());
}

#[test]
fn descriptors_that_were_not_inherited_are_refused() {
    let server = server(&[]);
    server
        .put("vm.create", &machine(&server, "listen"))
        .expect(204);
    // What is open there belongs to the VMM.
    for (fd, expected) in [(4, "was not inherited"), (1000, "is not open")] {
        server
            .put("vm.add-net", &json!({"fds": [fd], "id": "net"}))
            .expect(204);
        let reasons = server.act("vm.boot").expect(500).reasons().join(": ");
        assert!(reasons.contains(expected), "{reasons}");
        server
            .put("vm.remove-device", &json!({"id": "net"}))
            .expect(204);
    }
}
