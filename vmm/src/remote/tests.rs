use super::answer::{numa, printable};
use super::response::Response;
use super::*;

fn refusal(status: u16, body: impl Into<Vec<u8>>) -> String {
    let body = body.into();
    Refusal::of(&Response { status, body }).to_string()
}

#[test]
fn a_chain_of_reasons_is_one_line() {
    assert_eq!(refusal(404, r#"["a"]"#), "a");
    assert_eq!(refusal(500, r#"["a","b","c"]"#), "a: b: c");
    let long = "x".repeat(200);
    assert_eq!(
        refusal(500, format!(r#"["{long}","y","{long}"]"#)),
        format!("{long}\n  y\n  {long}")
    );
}

#[test]
fn what_is_wrong_with_a_configuration_is_one_line_each() {
    assert_eq!(
        refusal(400, r#"["cannot be used","a: b"]"#),
        "cannot be used: a: b"
    );
    assert_eq!(
        refusal(400, r#"["cannot be used","a: b","c: d"]"#),
        "cannot be used\n  a: b\n  c: d"
    );
}

#[test]
fn an_answer_without_a_list_is_shown_as_text() {
    assert_eq!(
        refusal(500, "<h1>no</h1>\n\u{1b}[2J"),
        "the server answered with status 500: <h1>no</h1>\\n\\u{1b}[2J"
    );
    for body in ["", "[]"] {
        assert_eq!(
            refusal(503, body),
            "the server answered with status 503 and no reason"
        );
    }
    assert_eq!(
        refusal(500, *b"\xff\xfe"),
        "the server answered with status 500: \u{fffd}\u{fffd}"
    );
    assert_eq!(
        refusal(500, r#"["a",1]"#),
        r#"the server answered with status 500: ["a",1]"#
    );
    let text = refusal(500, "x".repeat(10 << 20));
    assert!(text.ends_with("xxx...") && text.len() < 1100);
}

#[test]
fn what_a_server_says_cannot_play_with_a_terminal() {
    assert_eq!(
        refusal(404, r#"["a\u001b]0;x\u0007\nb\u202ec\u009b"]"#),
        r"a\u{1b}]0;x\u{7}\nb\u{202e}c\u{9b}"
    );
    assert_eq!(printable("grüße \"'\\", 10), "grüße \"'\\");
    let many = format!("[{}\"x\"]", "\"x\",".repeat(100_000));
    assert_eq!(refusal(400, many).lines().count(), 64);
    let long = refusal(404, format!(r#"["{}"]"#, "y".repeat(1 << 20)));
    assert_eq!(long.len(), 4096 + 3);
}

/// The rest of the answer may be that of any other server.
#[test]
fn nodes_are_read_and_nothing_else() {
    let text = numa(
        br#"{
            "config": { "cpus": "of another server" }, "state": "Running", "more": [1],
            "numa": {
                "nodes": [{
                    "guest_numa_id": 1, "proximity_domain": 1, "cpus": [], "memory_zones": [],
                    "memory": [], "device": "gpu\u001b[2J", "more": 1
                }],
                "distances": [[10]],
                "devices": [{
                    "id": "gpu\n0", "pci_bdf": "0000:00:01.0", "guest_numa_ids": [1], "dsd": true,
                    "generic_initiators": true, "more": 1
                }],
                "more": 1
            }
        }"#,
    );
    assert_eq!(
        text.unwrap(),
        "\
NUMA nodes
    id  Linux  CPUs        RAM         zones or device
     1      -  -           empty       gpu\\u{1b}[2J

Distances, from a row's node to a column's
           1
     1    10

Devices
  0000:00:01.0  gpu\\n0
      nodes 1, told by _DSD and generic initiators
"
    );
}

#[test]
fn a_machine_without_nodes_is_a_sentence() {
    for (state, sentence) in [
        (
            "Created",
            "The virtual machine is not booted; its NUMA nodes are known once it is.\n",
        ),
        (
            "Shutdown",
            "The virtual machine is not booted; its NUMA nodes are known once it is.\n",
        ),
        ("Running", "The guest is told of no NUMA nodes.\n"),
        ("Paused", "The guest is told of no NUMA nodes.\n"),
        ("BreakPoint", "The guest is told of no NUMA nodes.\n"),
    ] {
        let body = format!(r#"{{"state":"{state}"}}"#);
        assert_eq!(numa(body.as_bytes()).unwrap(), sentence);
    }
    for body in ["", "[]", "{}", r#"{"state":"Running","numa":{}}"#] {
        let error = numa(body.as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the answer does not describe a virtual machine"
        );
    }
}

#[test]
fn a_configuration_is_read_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.json");
    let error = config(&path).unwrap_err().to_string();
    assert_eq!(error, format!("create {}: cannot read it", path.display()));
    std::fs::write(&path, b"{ \xff }\n").unwrap();
    assert_eq!(config(&path).unwrap(), b"{ \xff }\n");
    let endless = config(Path::new("/dev/zero")).unwrap_err().to_string();
    assert_eq!(
        endless,
        "create /dev/zero: longer than 16777216 bytes, which no configuration is"
    );
}
