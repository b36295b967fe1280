//! The source of randomness.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::BackendError;
use crate::config::RngConfig;

/// Opens the file that it reads from.
///
/// # Errors
/// It is not there, or no file to read from.
pub fn open(config: &RngConfig) -> Result<File, BackendError> {
    let RngConfig {
        src,
        id: _,
        pci_segment: _,
        pci_device_id: _,
    } = config;
    open_source(src).map_err(|source| BackendError::Open {
        option: config.option(),
        source,
    })
}

/// Opens a file to be read without ever waiting for it: a FIFO without a writer, say.
fn open_source(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    match file.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_source_is_opened_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        open_source(&fifo).unwrap();
        open_source(Path::new("/dev/urandom")).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_source_is_said_with_its_option() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        for (path, reason) in [
            (missing.as_path(), "No such file"),
            (folder.path(), "directory"),
        ] {
            let config = RngConfig {
                src: path.to_owned(),
                id: None,
                pci_segment: 0,
                pci_device_id: None,
            };
            let error = open(&config).unwrap_err();
            let expected = format!("--rng src={}: cannot open it", path.display());
            assert_eq!(error.to_string(), expected);
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(reason), "{source}");
        }
    }
}
