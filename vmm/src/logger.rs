//! Log messages, to standard error or a file.

mod format;

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub use self::format::{DEFAULT as DEFAULT_FORMAT, Format, FormatError, tokens};

/// How long a message waits for room in a standard error that is full, in milliseconds.
const PATIENCE: i32 = 1000;
/// A descriptor that has room takes so many bytes at once (pipe(7), PIPE_BUF).
const CHUNK: usize = 4096;

/// Standard error, which may be a pipe or a terminal that nobody reads any more.
///
/// What finds no room is dropped: whoever waited for room would be deaf to everything else, the
/// main loop to signals and a vCPU to the end of its machine.
struct StandardError {
    file: File,
    /// Tells when there is room; none where there always is, as in a file.
    room: Option<Epoll>,
    /// Messages dropped since the last one that was not.
    lost: u64,
}

impl StandardError {
    fn new(stream: impl AsFd) -> io::Result<Self> {
        let file = File::from(stream.as_fd().try_clone_to_owned()?);
        let room = Epoll::new()?;
        let event = EpollEvent::new(EventSet::OUT, 0);
        // What epoll does not take never makes anybody wait.
        let taken = room.ctl(ControlOperation::Add, file.as_raw_fd(), event);
        Ok(Self {
            file,
            room: taken.is_ok().then_some(room),
            lost: 0,
        })
    }

    fn has_room(&self) -> bool {
        let Some(room) = &self.room else { return true };
        // Nobody waits a second time before somebody reads.
        let patience = if self.lost == 0 { PATIENCE } else { 0 };
        let ready = room.wait(patience, &mut [EpollEvent::default()]);
        // An error is a signal, which asks a vCPU to stop.
        ready.is_ok_and(|count| count > 0)
    }
}

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room() {
            self.lost += 1;
            return Ok(bytes.len());
        }
        if self.lost > 0 {
            let lost = mem::take(&mut self.lost);
            let notice = format!("cloud-hypervisor: {lost} messages were lost, nobody read them\n");
            self.file.write_all(notice.as_bytes())?;
            return self.write(bytes);
        }
        self.file.write(bytes.get(..CHUNK).unwrap_or(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Logger {
    output: Mutex<Box<dyn Write + Send>>,
    format: Format,
    start: Instant,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = self.format.line(record, self.start.elapsed());
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nowhere left to say that messages cannot be written.
        let _ = output.write_all(line.as_bytes());
    }

    fn flush(&self) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = output.flush();
    }
}

/// Starts logging to `file`, which is truncated, or to standard error, with times since `start`.
/// Each of the operator's `-v` adds a level, from warnings upwards.
///
/// # Errors
/// If the file cannot be created, or standard error not be watched.
pub fn start(verbosity: u8, file: Option<&Path>, format: Format, start: Instant) -> io::Result<()> {
    let output: Box<dyn Write + Send> = match file {
        Some(path) => Box::new(File::create(path)?),
        None => Box::new(StandardError::new(io::stderr())?),
    };
    let logger = Logger {
        output: Mutex::new(output),
        format,
        start,
    };
    log::set_max_level(match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_that_nobody_reads_make_nobody_wait() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = StandardError::new(&writer).unwrap();
        let start = Instant::now();
        // A pipe has room for 64 KiB.
        let count = 100_000;
        for _ in 0..count {
            log.write_all(b"message\n").unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(PATIENCE as u64));
        let lost = log.lost;
        assert!(lost > 90_000, "{lost}");

        let mut early = vec![0; (count - lost) as usize * b"message\n".len()];
        reader.read_exact(&mut early).unwrap();
        log.write_all(b"late\n").unwrap();
        log.write_all(&[b'x'; 3 * CHUNK]).unwrap();
        drop((log, writer));

        let mut late = String::new();
        reader.read_to_string(&mut late).unwrap();
        let notice = format!("{lost} messages were lost, nobody read them\nlate\nxxx");
        assert!(late.contains(&notice), "{}", &late[..100]);
        assert!(late.ends_with(&"x".repeat(3 * CHUNK)));
    }

    #[test]
    fn a_file_takes_every_message() {
        let mut file = tempfile::tempfile().unwrap();
        let mut log = StandardError::new(&file).unwrap();
        log.write_all(b"message\n").unwrap();
        let mut written = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut written).unwrap();
        assert_eq!(written, "message\n");
    }
}
