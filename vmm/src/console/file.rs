//! A file that a console writes to.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::ConsoleError;
use crate::listener::identity;

/// A file that was not there before; unless it is kept, it goes again when this is dropped.
pub(super) struct NewFile {
    path: PathBuf,
    file: (u64, u64),
}

impl NewFile {
    /// Lets the file stay.
    pub(super) fn keep(mut self) {
        self.path.clear();
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path).ok();
        if there.as_ref().map(identity) == Some(self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens the file at `path`, with what it has, or creates it.
pub(super) fn open(path: &Path) -> Result<(File, Option<NewFile>), ConsoleError> {
    let failed = |source| ConsoleError::File {
        path: path.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    // Output survives that somebody else truncates or writes the file as well.
    options.write(true).custom_flags(libc::O_APPEND);
    match options.create_new(true).open(path) {
        Ok(file) => {
            let metadata = file.metadata().map_err(failed)?;
            let new = NewFile {
                path: path.to_owned(),
                file: identity(&metadata),
            };
            Ok((file, Some(new)))
        }
        // A dangling link is there, and creates what it points to.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            // Whoever opens a pipe for writing alone waits until somebody reads it, deaf to the
            // signals that end the VMM. It is the vCPU that is to wait, once the pipe is full.
            let is_pipe = fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo());
            options.create_new(false).create(true).read(is_pipe);
            let file = options.open(path);
            Ok((file.map_err(failed)?, None))
        }
        Err(e) => Err(failed(e)),
    }
}

/// Empties `file` if it is one that can be; a pipe or a device cannot.
pub(super) fn truncate(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(())
}
