//! Consoles of devices that have a queue, and never wait.

use std::process::Command;

use super::stdio::resize;
use super::*;
use crate::console::paced::CAPACITY;

/// A device that counts what it is told.
#[derive(Default)]
pub(super) struct Sizes {
    sizes: Mutex<Vec<Size>>,
    rooms: AtomicUsize,
}

impl Sizes {
    pub(super) fn attach(port: &Port) -> Arc<Self> {
        let sizes = Arc::new(Self::default());
        port.attach(sizes.clone());
        sizes
    }

    pub(super) fn last(&self) -> Option<Size> {
        lock(&self.sizes).last().copied()
    }
}

impl InputSink for Sizes {
    fn accept(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn output_has_room(&self) {
        self.rooms.fetch_add(1, Ordering::SeqCst);
    }

    fn resized(&self, size: Size) {
        lock(&self.sizes).push(size);
    }
}

fn for_queue(mode: &Mode) -> Backend {
    Backend::open_for_queue(mode).unwrap()
}

fn fifo(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("fifo");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    path
}

/// Offers all bytes, as far as they are taken without waiting.
fn offer(port: &Port, bytes: &[u8]) -> usize {
    let mut taken = 0;
    while taken < bytes.len() {
        match port.offer(&bytes[taken..]) {
            0 => break,
            count => taken += count,
        }
    }
    taken
}

#[test]
fn what_nobody_reads_is_refused_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let running = Running::new(for_queue(&Mode::File(path.clone())));
    let device = Sizes::attach(&running.port);
    running.port.pick_up();
    let bytes = pattern(1 << 20);
    let mut offered = 0;
    // The pipe fills, then the thread's queue.
    wait_for("a full pipe", || {
        let taken = offer(&running.port, &bytes[offered..]);
        offered += taken;
        thread::sleep(Duration::from_millis(20));
        taken == 0 && offered > CAPACITY
    });
    thread::sleep(Duration::from_millis(50));
    assert_eq!(offer(&running.port, &bytes[offered..]), 0);
    let mut rooms = device.rooms.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(device.rooms.load(Ordering::SeqCst), rooms);
    running.port.hold();
    running.port.go_on();

    let reader = thread::spawn({
        let count = bytes.len();
        move || read_exactly(File::open(path).unwrap(), count)
    });
    while offered < bytes.len() {
        wait_for("room", || device.rooms.load(Ordering::SeqCst) > rooms);
        rooms = device.rooms.load(Ordering::SeqCst);
        offered += offer(&running.port, &bytes[offered..]);
    }
    assert!(reader.join().unwrap() == bytes);
}

#[test]
fn a_reader_that_never_reads_keeps_nobody_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let backend = for_queue(&Mode::File(fifo(&folder)));
    let port = backend.port();
    port.pick_up();
    let bytes = pattern(1 << 20);
    wait_for("a full pipe", || {
        thread::sleep(Duration::from_millis(20));
        offer(&port, &bytes) == 0
    });
    let start = Instant::now();
    drop(backend);
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    // Nobody takes it, and nobody waits.
    assert_eq!(port.offer(b"late"), 4);
}

#[test]
fn last_words_are_written_before_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let backend = for_queue(&Mode::File(path.clone()));
    let mut reader = File::open(&path).unwrap();
    let port = backend.port();
    port.pick_up();
    let bytes = pattern(1 << 20);
    let mut offered = 0;
    wait_for("a full pipe", || {
        let taken = offer(&port, &bytes[offered..]);
        offered += taken;
        thread::sleep(Duration::from_millis(20));
        taken == 0
    });
    // Whoever has a port has the pipe open.
    drop(port);
    let closing = thread::spawn(move || drop(backend));
    // Slow, but it reads.
    let mut received: Vec<u8> = Vec::new();
    let mut piece = [0_u8; 16 << 10];
    loop {
        let count = reader.read(&mut piece).unwrap();
        received.extend(&piece[..count]);
        if count == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    closing.join().unwrap();
    assert!(received == bytes[..offered]);
}

#[test]
fn a_file_is_emptied_once_a_machine_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "older").unwrap();
    drop(for_queue(&Mode::File(path.clone())));
    assert_eq!(fs::read(&path).unwrap(), b"older");
    let backend = for_queue(&Mode::File(path.clone()));
    let port = backend.port();
    port.pick_up();
    assert_eq!(port.offer(b"first, "), 7);
    port.hang_up();
    port.pick_up();
    assert_eq!(port.offer(b"second"), 6);
    drop(backend);
    assert_eq!(fs::read(&path).unwrap(), b"first, second");
}

#[test]
fn without_a_reader_pseudo_terminals_and_sockets_take_everything() {
    let (_folder, path) = socket_path();
    for mode in [Mode::Pty, Mode::Socket(path), Mode::Null] {
        let running = Running::new(for_queue(&mode));
        let bytes = pattern(BACKLOG * 2);
        assert_eq!(running.port.offer(&bytes), bytes.len());
    }
}

#[test]
fn a_pseudo_terminal_has_the_size_that_its_user_gives_it() {
    let backend = for_queue(&Mode::Pty);
    let path = backend.pty_path().unwrap().to_owned();
    let running = Running::new(backend);
    assert_eq!(running.port.size(), Some(Size::default()));
    let device = Sizes::attach(&running.port);
    let expected = |columns, rows| Some(Size { columns, rows });
    for (columns, rows) in [(100, 30), (132, 43)] {
        resize(&path, columns, rows);
        wait_for("the size", || device.last() == expected(columns, rows));
        assert_eq!(running.port.size(), expected(columns, rows));
    }
    // The same size again is no news.
    resize(&path, 132, 43);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(lock(&device.sizes).len(), 2);
}

#[test]
fn only_terminals_have_a_size() {
    let (folder, path) = socket_path();
    let file = Mode::File(folder.path().join("file"));
    for mode in [file, Mode::Socket(path), Mode::Null] {
        assert_eq!(for_queue(&mode).port().size(), None);
    }
}
