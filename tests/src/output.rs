//! What a child process prints, captured while it runs.

use std::fs::File;
use std::io::{LineWriter, Read, Write as _};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Between two reads, so that a guest that types byte by byte does not wake us for each: where the
/// host is emulated, that takes far longer than the typing.
const PAUSE: Duration = Duration::from_millis(5);

/// One stream of a child, collected by a thread and copied to a log file.
pub(crate) struct Output {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    /// Starts to collect `stream` into memory and the file `log`.
    pub(crate) fn collect(mut stream: impl Read + Send + 'static, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        // A guest types byte by byte, and the log may be far away.
        let mut log = LineWriter::new(log);
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error ends the stream as its end does: a terminal's other side reports its
            // hang-up as one.
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let _ = log.write_all(&buffer[..count]);
                ours.lock().bytes.extend_from_slice(&buffer[..count]);
                ours.changed.notify_all();
                std::thread::sleep(PAUSE);
            }
            ours.lock().ended = true;
            ours.changed.notify_all();
        });
        Ok(Self {
            shared,
            reader: Some(reader),
        })
    }

    /// Everything printed so far, line ends as `\n`.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).replace('\r', "")
    }

    /// Waits until `count` lines contain `pattern` and returns the last of them; `None` at
    /// `deadline` or when the stream ended without.
    pub(crate) fn wait_for(
        &self,
        pattern: &str,
        count: usize,
        deadline: Instant,
    ) -> Option<String> {
        let mut state = self.shared.lock();
        loop {
            let text = String::from_utf8_lossy(&state.bytes);
            let mut lines = text.lines().filter(|line| line.contains(pattern));
            if let Some(line) = lines.nth(count.saturating_sub(1)) {
                return Some(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the stream ends, and says whether it did before `deadline`.
    pub(crate) fn has_ended_by(&self, deadline: Instant) -> bool {
        let state = self.shared.lock();
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, left, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Waits until the stream ends.
    pub(crate) fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_line_and_gives_up_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let log = folder.path().join("log");
        let mut output = Output::collect(reader, &log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        writer.write_all(b"one\r\ntwo three\r\n").unwrap();
        assert!(!output.has_ended_by(Instant::now()));
        assert_eq!(
            output.wait_for("three", 1, deadline).as_deref(),
            Some("two three")
        );
        drop(writer);
        assert_eq!(output.wait_for("four", 1, deadline), None);
        assert!(output.has_ended_by(deadline));
        output.finish();
        assert_eq!(output.text(), "one\ntwo three\n");
        assert_eq!(std::fs::read(log).unwrap(), b"one\r\ntwo three\r\n");
    }

    #[test]
    fn gives_up_at_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let output = Output::collect(reader, &folder.path().join("log")).unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(output.wait_for("never", 1, deadline), None);
        assert!(Instant::now() >= deadline);
    }
}
