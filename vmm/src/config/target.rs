//! Where a file, socket or pipe of the VMM itself is: a path, or a descriptor that it inherits.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::Deserialize;

use super::error::Problem;
use super::option_string;
use super::spelling::{Key, Spelling, Value};
use super::tree;
use crate::inherited;

/// Where something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// In the file system.
    Path(PathBuf),
    /// A descriptor that this process inherits; not one of the standard streams.
    Fd(RawFd),
}

/// An option that says where something is.
#[derive(Debug)]
pub struct TargetOption {
    /// Its name, without dashes.
    pub name: &'static str,
    /// Its keys, `path` and `fd`.
    pub spelling: Spelling,
    /// Whether a value without a key is a path.
    pub takes_bare_path: bool,
}

/// `--event-monitor`.
pub const EVENT_MONITOR: TargetOption = TargetOption {
    name: "event-monitor",
    spelling: Spelling {
        type_name: "Form",
        about: "Report what happens to the machine, as JSON; one of the two",
        bare: None,
        keys: &[
            Key::new(
                "path",
                "path",
                Value::Typed("<path>"),
                "file, truncated if it is there, or FIFO",
            ),
            Key::new(
                "fd",
                "fd",
                Value::Typed("<number>"),
                "inherited descriptor that can be written",
            ),
        ],
        not_yet: &[],
    },
    takes_bare_path: false,
};

/// `--api-socket`.
pub const API_SOCKET: TargetOption = TargetOption {
    name: "api-socket",
    spelling: Spelling {
        type_name: "Form",
        about: "Take requests of the REST API; one of the two, or a path alone",
        bare: None,
        keys: &[
            Key::new(
                "path",
                "path",
                Value::Typed("<path>"),
                "Unix socket to listen on, for this user alone",
            ),
            Key::new(
                "fd",
                "fd",
                Value::Typed("<number>"),
                "inherited descriptor of a Unix socket that listens",
            ),
        ],
        not_yet: &[],
    },
    takes_bare_path: true,
};

/// The keys, as they are given.
#[derive(Deserialize)]
struct Form {
    path: Option<PathBuf>,
    fd: Option<u32>,
}

impl TargetOption {
    /// Reads the option's value; what is wrong with it is added to `problems`.
    pub fn read(&self, text: &str, problems: &mut Vec<Problem>) -> Option<Target> {
        if self.is_bare_path(text) {
            return Some(Target::Path(text.into()));
        }
        let name = format!("--{}", self.name);
        let before = problems.len();
        let node = option_string::option(&name, text, &self.spelling, problems);
        let Form { path, fd } = tree::read(node, problems)?;
        if problems.len() > before {
            return None;
        }
        match (path, fd) {
            (Some(path), None) => Some(Target::Path(path)),
            (None, Some(fd)) => match descriptor(fd) {
                Ok(fd) => Some(Target::Fd(fd)),
                Err(reason) => {
                    problems.push(Problem::invalid(format!("{name} fd={fd}"), reason));
                    None
                }
            },
            (Some(_), Some(_)) | (None, None) => {
                let reason = format!("expected one of {}", self.spelling.forms());
                problems.push(Problem::invalid(format!("{name} {text}"), reason));
                None
            }
        }
    }

    /// Whether a value is a path of its own, rather than keys that may be wrong.
    fn is_bare_path(&self, text: &str) -> bool {
        let looks_like_one = text.starts_with(['/', '.']) || !text.contains('=');
        self.takes_bare_path && looks_like_one && !text.is_empty()
    }
}

/// A number as that of a descriptor with no other use.
fn descriptor(number: u32) -> Result<RawFd, String> {
    match RawFd::try_from(number) {
        Ok(fd) if fd >= inherited::FIRST => Ok(fd),
        Ok(_) => Err(format!(
            "descriptors below {} are the standard streams",
            inherited::FIRST
        )),
        Err(_) => Err(format!("out of range: at most {}", RawFd::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(option: &TargetOption, text: &str) -> Result<Target, String> {
        let mut problems = Vec::new();
        let target = option.read(text, &mut problems);
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(target.is_none(), !problems.is_empty(), "{text}");
        target.ok_or(texts.join("\n"))
    }

    #[test]
    fn a_target_is_a_path_or_a_descriptor() {
        for option in [&EVENT_MONITOR, &API_SOCKET] {
            let path = |text: &str| Ok(Target::Path(text.into()));
            assert_eq!(read(option, "path=/run/x"), path("/run/x"));
            assert_eq!(read(option, "path=\"/run/a,b\""), path("/run/a,b"));
            assert_eq!(read(option, "path=a=b"), path("a=b"));
            assert_eq!(read(option, "fd=3"), Ok(Target::Fd(3)));
            assert_eq!(read(option, "fd=2147483647"), Ok(Target::Fd(RawFd::MAX)));
        }
    }

    #[test]
    fn a_bare_path_is_taken_as_it_is_where_one_may_stand() {
        for text in ["/run/a,b=[c", "socket", "./fd=4", "../x"] {
            assert_eq!(read(&API_SOCKET, text), Ok(Target::Path(text.into())));
            assert!(read(&EVENT_MONITOR, text).is_err(), "{text}");
        }
        assert!(read(&API_SOCKET, "").is_err());
        assert!(read(&API_SOCKET, "pth=/x").is_err());
    }

    #[test]
    fn what_is_wrong_names_option_and_value() {
        for (text, problem) in [
            ("", ": something is missing: path=<path>, fd=<number>"),
            ("/x", "/x: expected one of path=<path>, fd=<number>"),
            ("3", "3: not key=value; did you mean \"path=3\"?"),
            ("path=", "path=: the value is missing: path=<path>"),
            (
                "pth=/x",
                "pth=/x: unknown key \"pth\"; did you mean \"path\"?",
            ),
            ("fd=-1", "fd=-1: \"-1\" is not a number"),
            ("fd=x", "fd=x: \"x\" is not a number"),
            ("fd=2", "fd=2: descriptors below 3 are the standard streams"),
            (
                "fd=2147483648",
                "fd=2147483648: out of range: at most 2147483647",
            ),
            (
                "fd=4294967296",
                "fd=4294967296: out of range: at most 4294967295",
            ),
            (
                "path=/x,fd=3",
                "path=/x,fd=3: expected one of path=<path>, fd=<number>",
            ),
            ("fd=3,fd=4", "fd=4: \"fd\" is given twice"),
        ] {
            let expected = format!("--event-monitor {problem}");
            assert_eq!(read(&EVENT_MONITOR, text), Err(expected));
        }
    }
}
