//! What the guest boots from, opened before anything is created.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::PayloadConfig;

/// Why the guest's payload cannot be read.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// There is nothing to boot.
    #[error("nothing to boot: give --kernel FILE")]
    NoKernel,
    /// A file cannot be opened.
    #[error("{option} {}: cannot open it", path.display())]
    Open {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, a device or the like.
    #[error("{option} {}: not a regular file", path.display())]
    NotAFile {
        /// The option that names it.
        option: &'static str,
        /// What it names.
        path: PathBuf,
    },
}

/// A file and the name the operator gave it.
#[derive(Debug)]
pub struct PayloadFile {
    /// The name.
    pub path: PathBuf,
    /// The file, open for reading.
    pub file: File,
}

/// Kernel, initramfs and command line.
#[derive(Debug)]
pub struct Payload {
    /// The kernel image.
    pub kernel: PayloadFile,
    /// The initial RAM file system.
    pub initramfs: Option<PayloadFile>,
    /// The kernel's command line.
    pub cmdline: String,
}

impl Payload {
    /// Opens the files that `config` names.
    pub fn open(config: &PayloadConfig) -> Result<Self, PayloadError> {
        let PayloadConfig {
            kernel,
            cmdline,
            initramfs,
        } = config;
        let kernel = kernel.as_deref().ok_or(PayloadError::NoKernel)?;
        Ok(Self {
            kernel: open("--kernel", kernel)?,
            initramfs: initramfs
                .as_deref()
                .map(|path| open("--initramfs", path))
                .transpose()?,
            cmdline: cmdline.clone().unwrap_or_default(),
        })
    }
}

fn open(option: &'static str, path: &Path) -> Result<PayloadFile, PayloadError> {
    let failed = |source| PayloadError::Open {
        option,
        path: path.to_owned(),
        source,
    };
    // Without O_NONBLOCK, opening a FIFO by mistake would wait for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(PayloadError::NotAFile {
            option,
            path: path.to_owned(),
        });
    }
    Ok(PayloadFile {
        path: path.to_owned(),
        file,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Whatever is wrong with a file, the option that named it and its path are told.
    #[test]
    fn files_that_cannot_be_read_are_named_with_their_option() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "content").unwrap();
        let refused = |kernel: PathBuf, initramfs: PathBuf| {
            let config = PayloadConfig {
                kernel: Some(kernel),
                cmdline: None,
                initramfs: Some(initramfs),
            };
            Payload::open(&config).unwrap_err().to_string()
        };
        let there = folder.path().display();
        assert_eq!(
            refused(path("missing"), path("file")),
            format!("--kernel {there}/missing: cannot open it")
        );
        assert_eq!(
            refused(path("file"), path("missing")),
            format!("--initramfs {there}/missing: cannot open it")
        );
        assert_eq!(
            refused(folder.path().to_owned(), path("file")),
            format!("--kernel {there}: not a regular file")
        );
        assert_eq!(
            refused(path("file"), "/dev/null".into()),
            "--initramfs /dev/null: not a regular file"
        );
        let nothing = Payload::open(&PayloadConfig::default()).unwrap_err();
        assert!(matches!(nothing, PayloadError::NoKernel));
    }
}
