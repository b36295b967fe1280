//! Log messages, to standard error or a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

struct Logger {
    output: Mutex<Box<dyn Write + Send>>,
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
        let thread = thread::current();
        let line = format!(
            "cloud-hypervisor: {:.6}s: <{}> {}:{}:{} -- {}\n",
            self.start.elapsed().as_secs_f64(),
            thread.name().unwrap_or("anonymous"),
            record.level(),
            record.file().unwrap_or("unknown"),
            record.line().unwrap_or(0),
            record.args()
        );
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // There is nowhere left to say that messages cannot be written.
        let _ = output.write_all(line.as_bytes());
    }

    fn flush(&self) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = output.flush();
    }
}

/// Starts logging to `file`, which is truncated, or to standard error. Each of the operator's `-v`
/// adds a level, from warnings upwards.
///
/// # Errors
/// If the file cannot be created.
pub fn start(verbosity: u8, file: Option<&Path>) -> io::Result<()> {
    let output: Box<dyn Write + Send> = match file {
        Some(path) => Box::new(File::create(path)?),
        None => Box::new(io::stderr()),
    };
    let logger = Logger {
        output: Mutex::new(output),
        start: Instant::now(),
    };
    log::set_max_level(match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)
}
