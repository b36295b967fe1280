//! The host's side of virtio devices: opened once, for all boots of a virtual machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use devices::virtio::Device;
use devices::virtio::rng::Rng;
use thiserror::Error;

use crate::config::{RngConfig, VmConfig};
use crate::plan::VirtioKind;

/// Why something that a device needs cannot be had.
#[derive(Debug, Error)]
#[error("{option}: cannot open it")]
pub struct BackendError {
    /// The option at fault.
    option: String,
    /// Why not.
    source: io::Error,
}

/// What virtio devices need of the host.
pub struct Backends {
    rng: Option<File>,
}

impl Backends {
    /// Opens what the devices of a configuration need.
    ///
    /// # Errors
    /// Something is not there.
    pub fn open(config: &VmConfig) -> Result<Self, BackendError> {
        let rng = config.rng.as_ref().map(open_rng).transpose()?;
        Ok(Self { rng })
    }

    /// A device for one boot; nothing if the configuration has none of that kind.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn device(&self, kind: VirtioKind) -> io::Result<Option<Box<dyn Device>>> {
        match kind {
            VirtioKind::Rng => {
                let source = self.rng.as_ref().map(File::try_clone).transpose()?;
                Ok(source.map(|source| Box::new(Rng::new(source)) as Box<dyn Device>))
            }
        }
    }
}

fn open_rng(config: &RngConfig) -> Result<File, BackendError> {
    let RngConfig {
        src,
        id: _,
        pci_segment: _,
        pci_device_id: _,
    } = config;
    open_source(src).map_err(|source| BackendError {
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
            let error = open_rng(&config).unwrap_err();
            let expected = format!("--rng src={}: cannot open it", path.display());
            assert_eq!(error.to_string(), expected);
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(reason), "{source}");
        }
    }
}
