//! What hostile drivers find: a line to a host that reads and writes when it is told to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{Console, Line, LineOutput, LineParts, Size};
use crate::virtio::Device;
use crate::virtio::testing::hostile::Subject;
use crate::virtio::testing::{Buffer, Driver, PATIENCE};

/// Where input and output are.
const INPUT: u64 = 0x8_0000;
const OUTPUT: u64 = 0x8_1000;
/// What the guest says.
const SAID: &[u8] = b"the guest says so";
/// What it is told.
const TOLD: u8 = 0x5a;

/// What the host has read last, and how much more it would.
struct Reader {
    last: Mutex<Vec<u8>>,
    room: AtomicUsize,
}

impl LineOutput for Arc<Reader> {
    fn take(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room.load(Ordering::SeqCst));
        self.room.fetch_sub(count, Ordering::SeqCst);
        let mut last = self.last.lock().unwrap();
        last.extend(&bytes[..count]);
        let old = last.len().saturating_sub(SAID.len());
        last.drain(..old);
        count
    }
}

/// A console, from the host's side.
pub struct Host {
    line: Arc<Line>,
    reader: Arc<Reader>,
}

impl Host {
    pub fn new() -> Self {
        let reader = Arc::new(Reader {
            last: Mutex::default(),
            room: AtomicUsize::new(1000),
        });
        let line = Line::new(LineParts {
            output: Box::new(Arc::clone(&reader)),
            on_room: Box::new(|| {}),
            size: Some(Size::default()),
        });
        Self {
            line: Arc::new(line.unwrap()),
            reader,
        }
    }

    fn make_room(&self, bytes: usize) {
        self.reader.room.fetch_add(bytes, Ordering::SeqCst);
        self.line.output_has_room();
    }
}

impl Subject for Host {
    fn device(&mut self) -> Box<dyn Device> {
        Box::new(Console::new(Arc::clone(&self.line)))
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        vec![SAID.to_vec()]
    }

    fn ask(&mut self, driver: &mut Driver) {
        driver.fill(INPUT, &[0; 16]);
        driver.fill(OUTPUT, SAID);
        let input = Buffer {
            gpa: INPUT,
            length: 16,
            writable: true,
        };
        let output = Buffer {
            gpa: OUTPUT,
            length: SAID.len() as u32,
            writable: false,
        };
        for (queue, buffer) in [(0, input), (1, output)] {
            driver.make_available(queue, 0, &[buffer]);
            driver.kick(queue);
        }
    }

    fn check_answer(&mut self, driver: &mut Driver) {
        self.act(1);
        self.make_room(1 << 20);
        let (head, written) = driver.wait_used(0);
        assert_eq!(head, 0);
        assert!((1..=16).contains(&written), "{written}");
        let input = driver.bytes(INPUT, written as usize);
        assert!(input.iter().all(|byte| *byte == TOLD), "{input:x?}");
        assert_eq!(driver.wait_used(1).0, 0);
        let began = Instant::now();
        while *self.reader.last.lock().unwrap() != SAID {
            assert!(began.elapsed() < PATIENCE, "nothing is said");
            thread::sleep(Duration::from_micros(100));
        }
    }

    fn act(&mut self, what: u8) {
        match what % 3 {
            0 => self.line.resize(Size {
                columns: what.into(),
                rows: 1,
            }),
            1 => {
                self.line.accept(&vec![TOLD; what.into()]);
            }
            _ => self.make_room(what.into()),
        }
    }
}
