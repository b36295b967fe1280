//! `--log-format`: what a line of the log looks like.
#![expect(
    unsafe_code,
    reason = "the host's id of a thread, which std does not tell"
)]

use std::fmt::{self, Write as _};
use std::process;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::Record;
use thiserror::Error;

/// The format unless another one is given.
pub const DEFAULT: &str = "cloud-hypervisor: {boottime}s: <{thread}> {level}:{location} -- {msg}";

/// What stands in a format for something that differs from message to message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// Seconds since the VMM started, with six decimals.
    BootTime,
    /// Date and time in UTC, with six decimals of a second (RFC 3339).
    WallClock,
    /// The host's id of the process.
    Pid,
    /// The host's id of the thread.
    Tid,
    /// Name of the thread.
    Thread,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`.
    Level,
    /// File and line of the source.
    Location,
    /// The message.
    Message,
}

const TOKENS: [(&str, Token); 8] = [
    ("boottime", Token::BootTime),
    ("wallclock", Token::WallClock),
    ("pid", Token::Pid),
    ("tid", Token::Tid),
    ("thread", Token::Thread),
    ("level", Token::Level),
    ("location", Token::Location),
    ("msg", Token::Message),
];

/// All tokens, for messages and `--help`.
pub fn tokens() -> String {
    TOKENS.map(|(name, _)| format!("{{{name}}}")).join(", ")
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Token(Token),
}

/// Why a format cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// A token that there is not.
    #[error("{{{name}}} is unknown; there are {}", tokens())]
    Unknown {
        /// Its name.
        name: String,
    },
    /// A token that never ends.
    #[error("{{{rest} has no closing brace; {{{{ stands for a brace of its own")]
    Unclosed {
        /// What follows its brace.
        rest: String,
    },
    /// The end of a token that never began.
    #[error(
        "a closing brace belongs to no token after \"{before}\"; }}}} stands for a brace of its own"
    )]
    Stray {
        /// What stands before it.
        before: String,
    },
}

/// What a line of the log looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

impl Default for Format {
    fn default() -> Self {
        Self(
            DEFAULT
                .parse::<Self>()
                .map_or_else(|_| vec![Piece::Token(Token::Message)], |format| format.0),
        )
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(position) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(position);
            literal.push_str(before);
            if let Some(brace @ ("{{" | "}}")) = from.get(..2) {
                literal.push_str(&brace[..1]);
                rest = &from[2..];
                continue;
            }
            let Some(inner) = from.strip_prefix('{') else {
                let before = text[..text.len() - from.len()].to_owned();
                return Err(FormatError::Stray { before });
            };
            let Some((name, after)) = inner.split_once('}') else {
                let rest = inner.to_owned();
                return Err(FormatError::Unclosed { rest });
            };
            let Some((_, token)) = TOKENS.iter().find(|(known, _)| *known == name) else {
                let name = name.to_owned();
                return Err(FormatError::Unknown { name });
            };
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Token(*token));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }
}

impl Format {
    /// The line for a message, `since_start` after the start of the VMM.
    pub(super) fn line(&self, record: &Record<'_>, since_start: Duration) -> String {
        let mut line = String::new();
        for piece in &self.0 {
            // Writing to a string fails only where a value refuses to be shown.
            let _ = match piece {
                Piece::Literal(text) => line.write_str(text),
                Piece::Token(token) => token.write(&mut line, record, since_start),
            };
        }
        line.push('\n');
        line
    }
}

impl Token {
    fn write(self, line: &mut String, record: &Record<'_>, since_start: Duration) -> fmt::Result {
        match self {
            // Lines are aligned in the first quarter of an hour.
            Self::BootTime => write!(line, "{:>10.6}", since_start.as_secs_f64()),
            Self::WallClock => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                line.write_str(&rfc3339(now.unwrap_or_default()))
            }
            Self::Pid => write!(line, "{}", process::id()),
            Self::Tid => {
                // SAFETY: it takes nothing and does not fail.
                let id = unsafe { libc::gettid() };
                write!(line, "{id}")
            }
            Self::Thread => {
                let thread = thread::current();
                Escaped(line).write_str(thread.name().unwrap_or("anonymous"))
            }
            Self::Level => write!(line, "{}", record.level()),
            Self::Location => match (record.file(), record.line()) {
                (Some(file), Some(number)) => write!(Escaped(line), "{file}:{number}"),
                _ => Escaped(line).write_str(record.target()),
            },
            Self::Message => write!(Escaped(line), "{}", record.args()),
        }
    }
}

/// Writes what would end a line, or tell a terminal what to do, as an escape. Names and paths may
/// have anything in them, and must not pass for lines of the log.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            // The two are Unicode's line and paragraph separator.
            if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
                self.0.extend(character.escape_default());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

/// A time since 1970 as RFC 3339 has it, in UTC.
fn rfc3339(time: Duration) -> String {
    let seconds = time.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = time.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a day, counted from 1970-01-01 in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 400 years always have as many days.
    let (mut year, mut rest) = (1970 + days / 146_097 * 400, days % 146_097);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    fn line(format: &str, message: fmt::Arguments<'_>) -> String {
        let record = Record::builder()
            .args(message)
            .level(Level::Warn)
            .target("target")
            .file(Some("src/file.rs"))
            .line(Some(42))
            .build();
        let format: Format = format.parse().unwrap();
        format.line(&record, Duration::from_micros(1_234_567))
    }

    /// The same in a thread of that name.
    fn line_in(thread: &str, format: &'static str) -> String {
        let builder = thread::Builder::new().name(thread.to_owned());
        let line = builder.spawn(move || line(format, format_args!("x")));
        line.unwrap().join().unwrap()
    }

    #[test]
    fn every_token_stands_for_what_it_says() {
        for (format, expected) in [
            ("{boottime}", "  1.234567"),
            ("{level}", "WARN"),
            ("{location}", "src/file.rs:42"),
            ("{msg}", "hello"),
            ("{pid}", &process::id().to_string()),
            ("", ""),
            ("a{level}b{level}{msg}c", "aWARNbWARNhelloc"),
            ("{{{level}}} {{level}} }}{{", "{WARN} {level} }{"),
        ] {
            let line = line(format, format_args!("hel{}", "lo"));
            assert_eq!(line, format!("{expected}\n"), "{format}");
        }
        assert_eq!(line_in("vcpu7", "<{thread}>"), "<vcpu7>\n");
        let id = |line: String| line.trim().parse::<u32>().unwrap();
        let (main, other) = (
            id(line("{tid}", format_args!(""))),
            id(line_in("other", "{tid}")),
        );
        assert_ne!(main, other);
        assert!(std::path::Path::new(&format!("/proc/self/task/{main}")).exists());
    }

    #[test]
    fn a_message_without_a_place_has_its_target() {
        let record = Record::builder().target("vmm::x").build();
        let format: Format = "{location}".parse().unwrap();
        assert_eq!(format.line(&record, Duration::ZERO), "vmm::x\n");
    }

    #[test]
    fn the_default_is_the_one_of_the_interface() {
        assert_eq!(Format::default(), DEFAULT.parse().unwrap());
        let record = Record::builder()
            .args(format_args!("hello"))
            .file(Some("f.rs"))
            .line(Some(1))
            .build();
        let line = Format::default().line(&record, Duration::from_secs(10_000));
        let (start, end) = line.split_once("s: <").unwrap();
        assert_eq!(start, "cloud-hypervisor: 10000.000000");
        assert!(end.ends_with("> INFO:f.rs:1 -- hello\n"), "{line}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let all = "{boottime}, {wallclock}, {pid}, {tid}, {thread}, {level}, {location}, {msg}";
        for (format, expected) in [
            (
                "{nope} {msg}",
                format!("{{nope}} is unknown; there are {all}"),
            ),
            ("{msg} {}", format!("{{}} is unknown; there are {all}")),
            ("{Msg}", format!("{{Msg}} is unknown; there are {all}")),
            (
                "{msg:>8}",
                format!("{{msg:>8}} is unknown; there are {all}"),
            ),
            ("{{{{{x}", format!("{{x}} is unknown; there are {all}")),
            (
                "a {level",
                "{level has no closing brace; {{ stands for a brace of its own".to_owned(),
            ),
            (
                "ä} {msg}",
                "a closing brace belongs to no token after \"ä\"; }} stands for a brace of its own"
                    .to_owned(),
            ),
        ] {
            let error = format.parse::<Format>().unwrap_err();
            assert_eq!(error.to_string(), expected, "{format}");
        }
        for format in ["{", "}", "{msg}}", "{ä", "ä{", "{{{", "}}}"] {
            assert!(format.parse::<Format>().is_err(), "{format}");
        }
    }

    #[test]
    fn nothing_in_a_message_or_a_name_forges_a_line() {
        let path = "/run/a\ncloud-hypervisor: 1.0s: <main> ERROR:x.rs:1 -- forged\r\x1b[2J\0\u{7f}\u{85}\u{9b}\u{2028}\u{2029}ä\\\t\"";
        let escaped = "/run/a\\ncloud-hypervisor: 1.0s: <main> ERROR:x.rs:1 -- forged\\r\\u{1b}[2J\\u{0}\\u{7f}\\u{85}\\u{9b}\\u{2028}\\u{2029}ä\\\\t\"";
        let line = line("{msg}|{level}", format_args!("{path}"));
        assert_eq!(line, format!("{escaped}|WARN\n"));
        assert_eq!(line_in("a\nb\x1b", "{thread}"), "a\\nb\\u{1b}\n");
    }

    #[test]
    fn wall_clock_is_rfc_3339() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000001Z"),
            (951_782_399, "2000-02-28T23:59:59.000001Z"),
            (951_782_400, "2000-02-29T00:00:00.000001Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000001Z"),
            (1_740_787_200, "2025-03-01T00:00:00.000001Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000001Z"),
            (12_622_780_800, "2370-01-01T00:00:00.000001Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000001Z"),
        ] {
            assert_eq!(rfc3339(Duration::new(seconds, 1999)), expected);
        }
        let now = line("{wallclock}", format_args!(""));
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(now.len(), "1970-01-01T00:00:00.000001Z\n".len(), "{now}");
        let (earlier, later) = (today - Duration::from_secs(60), today);
        assert!(now.trim() >= rfc3339(earlier).as_str() && now.trim() <= rfc3339(later).as_str());
    }
}
