//! The consoles of a virtual machine, while it is booted.

use std::path::PathBuf;

use super::BootError;
use crate::config::{ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig, VmConfig};
use crate::console::{Backend, Mode};
use crate::machine::Consoles;

/// Consoles that are open.
pub struct OpenConsoles {
    /// The machine's ends.
    pub consoles: Consoles,
    /// The pseudo-terminal of the serial port.
    pub serial_pty: Option<PathBuf>,
    /// The pseudo-terminal of the debug console.
    pub debug_pty: Option<PathBuf>,
    /// The pseudo-terminal of the virtio console.
    pub virtio_pty: Option<PathBuf>,
}

/// Opens the consoles that a configuration asks for.
///
/// # Returns
/// The machine's ends, and the host's ends for the main loop.
///
/// # Errors
/// One of them cannot be opened.
pub fn open(config: &VmConfig) -> Result<(OpenConsoles, Vec<Backend>), BootError> {
    let SerialConfig { mode, file, socket } = &config.serial;
    let serial = console_mode(*mode, file.as_ref(), socket.as_ref());
    let serial = open_one("--serial", serial, Backend::open)?;
    let DebugConsoleConfig {
        mode,
        file,
        iobase: _,
    } = &config.debug_console;
    let debug = console_mode(*mode, file.as_ref(), None);
    let debug = open_one("--debug-console", debug, Backend::open_output)?;
    let virtio = config.console.as_ref().and_then(virtio_mode);
    let virtio = open_one("--console", virtio, Backend::open_for_queue)?;
    let pty = |backend: &Option<Backend>| {
        let path = backend.as_ref().and_then(Backend::pty_path);
        path.map(ToOwned::to_owned)
    };
    let open = OpenConsoles {
        consoles: Consoles {
            serial: serial.as_ref().map(Backend::port),
            debug: debug.as_ref().map(Backend::port),
            virtio: virtio.as_ref().map(Backend::port),
        },
        serial_pty: pty(&serial),
        debug_pty: pty(&debug),
        virtio_pty: pty(&virtio),
    };
    let ends = serial.into_iter().chain(debug).chain(virtio);
    Ok((open, ends.collect()))
}

fn open_one(
    option: &'static str,
    mode: Option<Mode>,
    open: fn(&Mode) -> Result<Backend, crate::console::ConsoleError>,
) -> Result<Option<Backend>, BootError> {
    let Some(mode) = mode else {
        return Ok(None);
    };
    let backend = open(&mode).map_err(|source| BootError::Console { option, source })?;
    if let Some(path) = backend.pty_path() {
        log::warn!("{option} is at {}", path.display());
    }
    Ok(Some(backend))
}

/// The console behind a virtio console; none where the guest has none.
fn virtio_mode(config: &ConsoleConfig) -> Option<Mode> {
    let ConsoleConfig {
        mode,
        file,
        socket,
        id: _,
        pci_segment: _,
        pci_device_id: _,
    } = config;
    match mode {
        ConsoleMode::Null => Some(Mode::Null),
        mode => console_mode(*mode, file.as_ref(), socket.as_ref()),
    }
}

/// The console behind a mode; none where there is nothing to open.
fn console_mode(
    mode: ConsoleMode,
    file: Option<&PathBuf>,
    socket: Option<&PathBuf>,
) -> Option<Mode> {
    match mode {
        ConsoleMode::Off | ConsoleMode::Null => None,
        ConsoleMode::Tty => Some(Mode::Tty),
        ConsoleMode::Pty => Some(Mode::Pty),
        ConsoleMode::File => file.cloned().map(Mode::File),
        ConsoleMode::Socket => socket.cloned().map(Mode::Socket),
    }
}
