//! `--serial`, `--console` and `--debug-console`: where the guest's characters go.

use std::fmt;
use std::path::{Path, PathBuf};

use arch::Isa;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Problem;
use super::places;
use super::schema::{self, DeviceName, HostPath, SocketPath};
use super::spelling::{Bare, Fallback, Key, NotYet, Spelling, Value, word};
use super::validate::{path_fault, socket_fault};

/// How `--serial` is spelled.
pub const SERIAL: Spelling = Spelling {
    type_name: "SerialConfig",
    about: "Serial port: a 16550 on x86_64, a PL011 on aarch64",
    bare: Some(Bare {
        field: "mode",
        words: &["off", "null", "tty", "pty"],
        default: "null",
    }),
    keys: &[
        Key::new(
            "file",
            "file",
            Value::Typed("<path>"),
            "write its output to a file",
        )
        .implies("file"),
        Key::new(
            "socket",
            "socket",
            Value::Typed("<path>"),
            "listen on a Unix socket",
        )
        .implies("socket"),
    ],
    not_yet: &[],
};

/// How `--console` is spelled.
pub const CONSOLE: Spelling = Spelling {
    type_name: "ConsoleConfig",
    about: "Virtio console (virtio-console); off where --serial has the terminal or the guest no PCI, \
            unless it is given",
    bare: Some(Bare {
        field: "mode",
        words: &["off", "null", "tty", "pty"],
        default: "tty",
    }),
    keys: &[
        Key::new(
            "file",
            "file",
            Value::Typed("<path>"),
            "write its output to a file",
        )
        .implies("file"),
        Key::new(
            "socket",
            "socket",
            Value::Typed("<path>"),
            "listen on a Unix socket",
        )
        .implies("socket"),
        places::ID.or(Fallback::Absent("__console")),
        places::PCI_SEGMENT,
        places::PCI_DEVICE_ID,
    ],
    not_yet: &[NotYet::both("iommu")
        .unless_text("off")
        .unless_json("false")],
};

/// How `--debug-console` is spelled.
pub const DEBUG_CONSOLE: Spelling = Spelling {
    type_name: "DebugConsoleConfig",
    about: "Debug console: an I/O port that characters are written to, x86_64 only",
    bare: Some(Bare {
        field: "mode",
        words: &["off", "pty", "tty"],
        default: "off",
    }),
    keys: &[
        Key::new(
            "file",
            "file",
            Value::Typed("<path>"),
            "write its output to a file",
        )
        .implies("file"),
        Key::new("iobase", "iobase", Value::Typed("<port>"), "the I/O port")
            .or(Fallback::Value("0xe9")),
    ],
    not_yet: &[],
};

/// Where a console is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ConsoleMode {
    /// The guest has no such device.
    Off,
    /// A new pseudo-terminal.
    Pty,
    /// The terminal of this process: standard input and output.
    Tty,
    /// A file that output is written to.
    File,
    /// A listening Unix socket.
    Socket,
    /// The device is there, its output is thrown away.
    Null,
}

/// The serial port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// Where it is connected to.
    pub mode: ConsoleMode,
    /// The file of [`ConsoleMode::File`]; in what `vm.info` says, also that of
    /// [`ConsoleMode::Pty`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HostPath>)]
    pub file: Option<PathBuf>,
    /// The socket of [`ConsoleMode::Socket`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SocketPath>)]
    pub socket: Option<PathBuf>,
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self {
            mode: ConsoleMode::Null,
            file: None,
            socket: None,
        }
    }
}

/// The virtio console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where it is connected to.
    pub mode: ConsoleMode,
    /// The file of [`ConsoleMode::File`]; in what `vm.info` says, also that of
    /// [`ConsoleMode::Pty`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HostPath>)]
    pub file: Option<PathBuf>,
    /// The socket of [`ConsoleMode::Socket`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SocketPath>)]
    pub socket: Option<PathBuf>,
    /// Its name; without it, it is `__console`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<DeviceName>)]
    pub id: Option<String>,
    /// The PCI segment that the guest finds it on.
    #[serde(default)]
    #[schema(default = u16::default, maximum = 95)]
    pub pci_segment: u16,
    /// Its device number there, 1 to 31, and 0 on segments other than 0; without it, any that is free
    /// but 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 31)]
    pub pci_device_id: Option<u8>,
}

impl ConsoleConfig {
    /// One that is connected so, and has neither name nor place of its own.
    pub(super) fn of(mode: ConsoleMode) -> Self {
        Self {
            mode,
            file: None,
            socket: None,
            id: None,
            pci_segment: 0,
            pci_device_id: None,
        }
    }
}

/// The debug console: one I/O port that characters are written to. x86_64 only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DebugConsoleConfig {
    /// Where it is connected to: off, a pseudo-terminal, the terminal or a file.
    #[schema(schema_with = schema::debug_console)]
    pub mode: ConsoleMode,
    /// The file of [`ConsoleMode::File`]; in what `vm.info` says, also that of
    /// [`ConsoleMode::Pty`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<HostPath>)]
    pub file: Option<PathBuf>,
    /// The I/O port.
    #[serde(default = "default_iobase")]
    #[schema(default = default_iobase)]
    pub iobase: u16,
}

/// The debug console's port where nothing else was asked for: the one that Bochs made customary.
pub const DEFAULT_DEBUG_CONSOLE_PORT: u16 = 0xe9;

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self {
            mode: ConsoleMode::Off,
            file: None,
            iobase: DEFAULT_DEBUG_CONSOLE_PORT,
        }
    }
}

fn default_iobase() -> u16 {
    DEFAULT_DEBUG_CONSOLE_PORT
}

impl SerialConfig {
    /// Adds what is wrong with it to `problems`.
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self { mode, file, socket } = self;
        let file = (ConsoleMode::File, "file", file.as_deref());
        let socket = (ConsoleMode::Socket, "socket", socket.as_deref());
        check_paths("--serial", *mode, &[file, socket], problems);
    }
}

impl ConsoleConfig {
    /// Whether the guest has it.
    pub(crate) fn is_there(&self) -> bool {
        self.mode != ConsoleMode::Off
    }

    /// The option that gave it, for messages.
    pub(crate) fn option(&self) -> String {
        match (self.mode, &self.file, &self.socket) {
            (ConsoleMode::File, Some(path), _) => format!("--console file={}", path.display()),
            (ConsoleMode::Socket, _, Some(path)) => format!("--console socket={}", path.display()),
            (mode, ..) => format!("--console {mode}"),
        }
    }

    /// Adds what is wrong with it by itself to `problems`; its name and its place are for
    /// [`places::validate`].
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        let Self {
            mode,
            file,
            socket,
            id,
            pci_segment,
            pci_device_id,
        } = self;
        let has_place = *pci_segment != 0 || pci_device_id.is_some();
        if *mode == ConsoleMode::Off && (id.is_some() || has_place) {
            let reason = "has neither name nor place; drop id=, pci_segment= and pci_device_id=";
            problems.push(Problem::invalid("--console off", reason));
        }
        let file = (ConsoleMode::File, "file", file.as_deref());
        let socket = (ConsoleMode::Socket, "socket", socket.as_deref());
        check_paths("--console", *mode, &[file, socket], problems);
    }
}

impl DebugConsoleConfig {
    /// Adds what is wrong with it to `problems`.
    pub(super) fn validate(&self, isa: Isa, problems: &mut Vec<Problem>) {
        let Self { mode, file, iobase } = self;
        let at = format!("--debug-console {mode}");
        match (isa, mode) {
            (_, ConsoleMode::Off) => {}
            (Isa::Aarch64, _) => {
                let reason = "aarch64 has no I/O ports; only x86_64 has a debug console";
                problems.push(Problem::invalid(&at, reason));
            }
            (Isa::X86_64, ConsoleMode::Null | ConsoleMode::Socket) => {
                let reason = "expected off, pty, tty or file=<path>";
                problems.push(Problem::invalid(&at, reason));
            }
            (Isa::X86_64, ConsoleMode::Pty | ConsoleMode::Tty | ConsoleMode::File) => {}
        }
        if *mode == ConsoleMode::Off && *iobase != DEFAULT_DEBUG_CONSOLE_PORT {
            let at = format!("--debug-console iobase={iobase:#x}");
            let reason = "means nothing while it is off; add pty, tty or file=<path>";
            problems.push(Problem::invalid(at, reason));
        }
        let file = (ConsoleMode::File, "file", file.as_deref());
        check_paths("--debug-console", *mode, &[file], problems);
    }
}

/// Checks that a path is there exactly if the mode uses it, and that it can be one.
fn check_paths(
    option: &str,
    mode: ConsoleMode,
    paths: &[(ConsoleMode, &str, Option<&Path>)],
    problems: &mut Vec<Problem>,
) {
    for (user, key, path) in paths {
        let Some(path) = path else {
            if *user == mode {
                let at = format!("{option} {mode}");
                let reason = format!("the path is missing: {key}=<path>");
                problems.push(Problem::invalid(at, reason));
            }
            continue;
        };
        let at = format!("{option} {key}={}", path.display());
        let fault = match mode {
            ConsoleMode::Socket => socket_fault(path),
            _ => path_fault(path),
        };
        // Where a pseudo-terminal was, when `vm.info` described the machine; the next one is elsewhere.
        let was_told = mode == ConsoleMode::Pty && *user == ConsoleMode::File;
        if *user != mode && !was_told {
            let reason = format!("contradicts the mode {mode}");
            problems.push(Problem::invalid(at, reason));
        } else if let Some(reason) = fault {
            problems.push(Problem::invalid(at, reason));
        }
    }
}

impl fmt::Display for ConsoleMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word(&format!("{self:?}")))
    }
}
