use std::io::{BufReader, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::inherited::as_inherited;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn start(target: &Target) -> Events {
    Events::start(target, Instant::now()).unwrap()
}

fn at(path: &Path) -> Events {
    start(&Target::Path(path.to_owned()))
}

fn fifo(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("fifo");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    path
}

fn parse(text: impl Read) -> Vec<Value> {
    let values = serde_json::Deserializer::from_reader(BufReader::new(text)).into_iter();
    values.collect::<Result<_, _>>().unwrap()
}

/// The names of events, their sources first.
fn names(events: &[Value]) -> Vec<String> {
    let name = |event: &Value| {
        let part = |key: &str| event[key].as_str().unwrap().to_owned();
        format!("{}:{}", part("source"), part("event"))
    };
    events.iter().map(name).collect()
}

fn time(event: &Value) -> Duration {
    let time = &event["timestamp"];
    let nanos = time["nanos"].as_u64().unwrap();
    Duration::new(time["secs"].as_u64().unwrap(), nanos.try_into().unwrap())
}

#[test]
fn an_event_is_written_as_consumers_know_it() {
    let folder = folder();
    let path = folder.path().join("events");
    let events = at(&path);
    events.report(Event::Starting);
    events.report(Event::DeviceLost {
        id: Some("gpu0"),
        option: "--device path=/sys/x",
        reason: "it is \"gone\"",
    });
    drop(events);

    let text = fs::read_to_string(&path).unwrap();
    let written = parse(text.as_bytes());
    assert_eq!(names(&written), ["vmm:starting", "vm:device-lost"]);
    assert_eq!(written[0]["properties"], Value::Null);
    // serde_json's maps are sorted, so the keys are put in order by hand.
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    let indented = |value: &Value| pretty(value).replace('\n', "\n  ");
    let expected: String = written
        .iter()
        .map(|event| {
            let (secs, nanos) = (&event["timestamp"]["secs"], &event["timestamp"]["nanos"]);
            format!(
                "{{\n  \"timestamp\": {{\n    \"secs\": {secs},\n    \"nanos\": {nanos}\n  }},\n  \
                 \"source\": {},\n  \"event\": {},\n  \"properties\": {}\n}}\n\n",
                event["source"],
                event["event"],
                indented(&event["properties"])
            )
        })
        .collect();
    assert_eq!(text, expected);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn times_are_those_since_the_start_and_grow() {
    let folder = folder();
    let path = folder.path().join("events");
    let target = Target::Path(path.clone());
    let start = Instant::now()
        .checked_sub(Duration::from_secs(100))
        .unwrap();
    let events = Events::start(&target, start).unwrap();
    for _ in 0..100 {
        events.report(Event::Pausing);
    }
    let latest = start.elapsed();
    events.close();

    let written = parse(File::open(&path).unwrap());
    assert_eq!(written.len(), 100);
    let times: Vec<_> = written.iter().map(time).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(times[0] >= Duration::from_secs(100), "{times:?}");
    assert!(times[99] <= latest, "{times:?} {latest:?}");
}

#[test]
fn every_event_has_its_name_and_its_properties() {
    let text = "why";
    let lost = |id| Event::DeviceLost {
        id,
        option: "--device path=/x",
        reason: text,
    };
    for (event, name, properties) in [
        (Event::Starting, "vmm:starting", "null"),
        (Event::VmmShutdown, "vmm:shutdown", "null"),
        (
            Event::Panic { message: text },
            "vmm:panic",
            r#"{"info":"why"}"#,
        ),
        (
            Event::EventsLost { count: 7 },
            "vmm:events-lost",
            r#"{"count":"7"}"#,
        ),
        (Event::Booting, "vm:booting", "null"),
        (Event::Booted, "vm:booted", "null"),
        (Event::Shutdown, "vm:shutdown", "null"),
        (Event::Rebooting, "vm:rebooting", "null"),
        (Event::Rebooted, "vm:rebooted", "null"),
        (Event::Pausing, "vm:pausing", "null"),
        (Event::Paused, "vm:paused", "null"),
        (Event::Resuming, "vm:resuming", "null"),
        (Event::Resumed, "vm:resumed", "null"),
        (Event::Deleted, "vm:deleted", "null"),
        (
            Event::VcpuFailed { reason: text },
            "vm:failed",
            r#"{"reason":"why"}"#,
        ),
        (
            lost(Some("gpu0")),
            "vm:device-lost",
            r#"{"id":"gpu0","option":"--device path=/x","reason":"why"}"#,
        ),
        (
            lost(None),
            "vm:device-lost",
            r#"{"option":"--device path=/x","reason":"why"}"#,
        ),
    ] {
        let written = parse(timed(Duration::ZERO, &event.text()).as_bytes());
        assert_eq!(names(&written), [name]);
        assert_eq!(written[0]["properties"].to_string(), properties);
        let docs = include_str!("../../../docs/events.md");
        let (source, event) = name.split_once(':').unwrap();
        let row = format!("\n| `{source}` | `{event}` |");
        assert!(docs.contains(&row), "{name} is not in docs/events.md");
    }
}

/// Consumers have buffers of `PIPE_BUF`, and count braces to find the end of an event.
#[test]
fn no_text_makes_an_event_too_long_or_hides_its_end() {
    for text in ["\0", "{", "}", "\"", "\\", "\u{1b}", "ä", "😀", "x"] {
        let long = text.repeat(5000);
        let event = Event::DeviceLost {
            id: Some(&long),
            option: &long,
            reason: &long,
        };
        let written = timed(Duration::MAX, &event.text());
        assert!(
            written.len() <= libc::PIPE_BUF,
            "{text:?}: {}",
            written.len()
        );
        let braces = written.matches(['{', '}']).collect::<String>();
        assert_eq!(braces, "{{}{}}", "{text:?}");
        let parsed = parse(written.as_bytes());
        let reason = parsed[0]["properties"]["reason"].as_str().unwrap();
        let kept = reason
            .strip_suffix('…')
            .expect("a sign that it is shortened");
        assert!(long.starts_with(kept) && kept.len() > 100, "{text:?}");
    }
    let mixed = "a {b} \"c\" \\d\n\te\u{7f} ä";
    let parsed = parse(timed(Duration::ZERO, &Event::Panic { message: mixed }.text()).as_bytes());
    assert_eq!(parsed[0]["properties"]["info"], mixed);
}

#[test]
fn a_file_that_is_there_is_truncated() {
    let folder = folder();
    let path = folder.path().join("events");
    fs::write(&path, "x".repeat(10_000)).unwrap();
    let events = at(&path);
    events.report(Event::Booted);
    events.close();
    assert_eq!(names(&parse(File::open(&path).unwrap())), ["vm:booted"]);
}

#[test]
fn what_cannot_be_opened_is_an_error_that_names_it() {
    let folder = folder();
    let missing = folder.path().join("missing/events");
    let error = Events::start(&Target::Path(missing.clone()), Instant::now()).unwrap_err();
    assert_eq!(
        format!("{:#}", anyhow::Error::from(error)),
        format!(
            "--event-monitor path={}: cannot open it for writing: No such file or directory (os error 2)",
            missing.display()
        )
    );

    let (reader, _writer) = io::pipe().unwrap();
    let fd = as_inherited(&reader);
    let error = Events::start(&Target::Fd(fd), Instant::now()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("--event-monitor fd={fd}: the descriptor is not open for writing")
    );
    let error = Events::start(&Target::Fd(1_000_000_000), Instant::now()).unwrap_err();
    assert_eq!(
        format!("{:#}", anyhow::Error::from(error)),
        "--event-monitor fd=1000000000: descriptor 1000000000 is not open: whoever starts this \
         process has to leave it open for it"
    );
}

#[test]
fn an_inherited_pipe_or_socket_gets_every_event_and_its_end() {
    let (reader, writer) = io::pipe().unwrap();
    let (socket, other) = UnixStream::pair().unwrap();
    let receivers: [(Box<dyn Read>, RawFd); 2] = [
        (Box::new(reader), as_inherited(writer.as_fd())),
        (Box::new(socket), as_inherited(other.as_fd())),
    ];
    drop((writer, other));
    for (receiver, fd) in receivers {
        let events = start(&Target::Fd(fd));
        let clone = events.clone();
        for event in [Event::Starting, Event::Booting, Event::Booted] {
            events.report(event);
        }
        drop(events);
        clone.report(Event::VmmShutdown);
        drop(clone);
        let expected = ["vmm:starting", "vm:booting", "vm:booted", "vmm:shutdown"];
        // Ends only if nothing else has the descriptor any more.
        assert_eq!(names(&parse(receiver)), expected);
    }
}

#[test]
fn a_consumer_that_sets_its_socket_nonblocking_loses_nothing() {
    let (socket, other) = UnixStream::pair().unwrap();
    other.set_nonblocking(true).unwrap();
    let events = start(&Target::Fd(as_inherited(other.as_fd())));
    drop(other);
    let count = CAPACITY;
    // Long enough for more than a socket holds.
    let message = "x".repeat(LONGEST_TEXT / 2);
    for _ in 0..count {
        events.report(Event::Panic { message: &message });
    }
    let reader = thread::spawn(|| parse(socket));
    events.close();
    drop(events);
    assert_eq!(reader.join().unwrap().len(), count);
}

/// How many events were lost, by what consumers are told.
fn lost(events: &[Value]) -> usize {
    let counts = events
        .iter()
        .filter(|event| event["event"] == "events-lost")
        .map(|event| event["properties"]["count"].as_str().unwrap());
    counts.map(|count| count.parse::<usize>().unwrap()).sum()
}

/// Reports more than there is room for, without a reader; then reads.
fn flood(events: Events, reader: impl Read + Send + 'static) {
    let count = 50_000;
    let before = Instant::now();
    for _ in 0..count {
        events.report(Event::Paused);
    }
    let took = before.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");

    let reader = thread::spawn(|| parse(reader));
    let patience = Instant::now() + Duration::from_secs(30);
    while !events.0.as_ref().unwrap().shared.lock().waiting.is_empty() {
        assert!(Instant::now() < patience, "nothing is written");
        thread::sleep(Duration::from_millis(1));
    }
    events.report(Event::Resumed);
    events.close();
    drop(events);
    let read = reader.join().unwrap();

    // The queue may have been full before the pipe was, too.
    let names = names(&read);
    let (early, end) = names.split_at(names.len() - 2);
    assert_eq!(end, ["vmm:events-lost", "vm:resumed"]);
    let written = early.iter().filter(|name| *name == "vm:paused").count();
    assert!((CAPACITY..count / 2).contains(&written), "{written}");
    assert_eq!(written + lost(&read), count);
    let times: Vec<_> = read.iter().map(time).collect();
    assert!(times.is_sorted());
}

#[test]
fn a_pipe_that_nobody_reads_makes_nobody_wait_and_losses_are_told() {
    let (reader, writer) = io::pipe().unwrap();
    let events = start(&Target::Fd(as_inherited(writer.as_fd())));
    drop(writer);
    flood(events, reader);
}

#[test]
fn a_socket_that_nobody_reads_makes_nobody_wait_and_losses_are_told() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let events = start(&Target::Fd(as_inherited(writer.as_fd())));
    drop(writer);
    flood(events, reader);
}

#[test]
fn a_fifo_needs_no_reader_at_the_start_and_keeps_what_the_first_one_finds() {
    let folder = folder();
    let path = fifo(&folder);
    let before = Instant::now();
    let events = at(&path);
    events.report(Event::Starting);
    assert!(before.elapsed() < Duration::from_secs(1));
    let reader = File::open(&path).unwrap();
    flood_with_start(events, reader);
}

/// As [`flood`], of a consumer that finds an event from before.
fn flood_with_start(events: Events, mut reader: File) {
    let length = timed(Duration::ZERO, &Event::Starting.text()).len() - 2;
    let mut start = Vec::new();
    while !start.ends_with(b"}\n\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        start.push(byte[0]);
    }
    assert!(start.len() >= length);
    assert_eq!(names(&parse(&start[..])), ["vmm:starting"]);
    flood(events, reader);
}

#[test]
fn readers_of_a_fifo_come_and_go() {
    let folder = folder();
    let path = fifo(&folder);
    let events = at(&path);
    let next = |reader: &File| {
        let mut values = serde_json::Deserializer::from_reader(reader).into_iter::<Value>();
        names(&[values.next().unwrap().unwrap()])
    };
    for _ in 0..3 {
        let reader = File::open(&path).unwrap();
        events.report(Event::Booting);
        assert_eq!(next(&reader), ["vm:booting"]);
        drop(reader);
        events.report(Event::Booted);
        let reader = File::open(&path).unwrap();
        assert_eq!(next(&reader), ["vm:booted"]);
    }
    events.close();
}

#[test]
fn a_consumer_that_is_gone_ends_nobody_and_another_is_told_of_it() {
    let folder = folder();
    let path = fifo(&folder);
    let first = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    let events = start(&Target::Fd(as_inherited(writer.as_fd())));
    drop((writer, first));
    let shared = &events.0.as_ref().unwrap().shared;
    let report = |event| {
        events.report(event);
        let patience = Instant::now() + Duration::from_secs(30);
        while !shared.lock().waiting.is_empty() {
            assert!(Instant::now() < patience, "nothing is written");
            thread::sleep(Duration::from_millis(1));
        }
    };
    report(Event::Booting);
    report(Event::Booted);
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    report(Event::Paused);
    events.close();
    let read = parse(reader);
    let names = names(&read);
    assert_eq!(names.first().unwrap(), "vmm:events-lost");
    assert_eq!(names.last().unwrap(), "vm:paused");
    // The second one may have been about to be written still when the reader came.
    assert_eq!(names.len() - 1 + lost(&read), 3, "{names:?}");
}

#[test]
fn the_end_waits_a_second_for_a_consumer_and_no_longer() {
    let (mut reader, writer) = io::pipe().unwrap();
    let events = start(&Target::Fd(as_inherited(writer.as_fd())));
    drop(writer);
    for _ in 0..CAPACITY {
        events.report(Event::Paused);
    }
    let before = Instant::now();
    events.close();
    let took = before.elapsed();
    assert!((PATIENCE..PATIENCE * 5).contains(&took), "{took:?}");
    // Nobody waits twice, and nothing is taken any more.
    let before = Instant::now();
    events.close();
    events.report(Event::Resumed);
    drop(events);
    assert!(before.elapsed() < PATIENCE / 2);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let read = parse(text.as_bytes());
    assert!((1..CAPACITY).contains(&read.len()), "{}", read.len());
    assert!(names(&read).iter().all(|name| name == "vm:paused"));
}

#[test]
fn a_full_queue_at_the_end_tells_of_its_losses() {
    let (reader, writer) = io::pipe().unwrap();
    let events = start(&Target::Fd(as_inherited(writer.as_fd())));
    drop(writer);
    let count = 5000;
    for _ in 0..count {
        events.report(Event::Paused);
    }
    let reader = thread::spawn(|| parse(reader));
    drop(events);
    let read = reader.join().unwrap();
    let names = names(&read);
    assert_eq!(names.last().unwrap(), "vmm:events-lost");
    let written = names.iter().filter(|name| *name == "vm:paused").count();
    assert_eq!(written + lost(&read), count);
}

#[test]
fn nothing_happens_where_nobody_looks() {
    let events = Events::none();
    events.report(Event::Starting);
    report_panics(&events);
    events.close();
}

#[test]
fn panics_are_reported_after_what_else_is_done_about_them() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    const MESSAGE: &str = "a wheel came off";
    let folder = folder();
    let path = folder.path().join("events");
    let events = at(&path);
    let original = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        if info.payload_as_str() == Some(MESSAGE) {
            SEEN.fetch_add(1, Ordering::Relaxed);
        }
    }));
    report_panics(&events);
    let line = line!() + 1;
    thread::spawn(|| panic!("{MESSAGE}")).join().unwrap_err();
    // The hook stays, which keeps nobody from the end.
    drop(events);
    thread::spawn(|| panic!("{MESSAGE}")).join().unwrap_err();
    panic::set_hook(original);

    assert_eq!(SEEN.load(Ordering::Relaxed), 2);
    let read = parse(File::open(&path).unwrap());
    let infos = read.iter().map(|event| &event["properties"]["info"]);
    let about = infos.filter(|info| info.as_str().unwrap().ends_with(MESSAGE));
    let about: Vec<_> = about.collect();
    assert_eq!(about.len(), 1, "{read:?}");
    let start = format!("{}:{line}:", file!());
    assert!(about[0].as_str().unwrap().starts_with(&start), "{about:?}");
}
