//! Lines of the log that a guest can bring about as often as it likes.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one line through, and then at most one in a second, which says how many there would have been.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    last: Option<Instant>,
    /// Lines that were held back since.
    count: u64,
}

/// The time between two lines.
const BETWEEN: Duration = Duration::from_secs(1);

impl Complaints {
    /// Logs a warning, or holds it back.
    pub fn warn(&self, text: fmt::Arguments<'_>) {
        if let Some(line) = self.line(Instant::now(), text) {
            log::warn!("{line}");
        }
    }

    fn line(&self, now: Instant, text: fmt::Arguments<'_>) -> Option<String> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = held.last.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since < BETWEEN) {
            held.count = held.count.saturating_add(1);
            return None;
        }
        held.last = Some(now);
        Some(match std::mem::take(&mut held.count) {
            0 => text.to_string(),
            count => format!("{text}; {count} more like it since the last line"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_in_a_second() {
        let complaints = Complaints::default();
        let start = Instant::now();
        let mut lines = Vec::new();
        for at in 0..2500 {
            let now = start + Duration::from_millis(at);
            lines.extend(complaints.line(now, format_args!("it fails at {at} ms")));
        }
        let expected = [
            "it fails at 0 ms",
            "it fails at 1000 ms; 999 more like it since the last line",
            "it fails at 2000 ms; 999 more like it since the last line",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn lines_that_come_now_and_then_are_all_there() {
        let complaints = Complaints::default();
        let start = Instant::now();
        for at in 0..10 {
            let now = start + BETWEEN * at;
            let line = complaints.line(now, format_args!("{at}"));
            assert_eq!(line, Some(at.to_string()));
        }
        // Clocks of threads differ.
        assert_eq!(complaints.line(start, format_args!("late")), None);
    }
}
