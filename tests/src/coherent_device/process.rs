//! The device as a process that a test starts.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::Options;
use crate::Lab;

/// What the program prints when there is a socket to connect to.
const READY: &str = "ready";
/// The program's name.
const PROGRAM: &str = "coherent_device";
/// Files here are memory.
const MEMORY_FILES: &str = "/dev/shm";

/// A coherent device. Dropped, it is killed, and its files are removed.
pub struct CoherentDevice {
    child: Child,
    socket: PathBuf,
    memory_file: PathBuf,
    _folder: TempDir,
}

impl CoherentDevice {
    /// Starts a device. Its socket and its memory are files of a new folder unless `options` name
    /// others. Its complaints are on standard error.
    ///
    /// # Errors
    /// Outside the lab, and if it does not start.
    pub fn start(options: Options) -> Result<Self> {
        Self::start_program(&Lab::get()?.helper(PROGRAM), options)
    }

    /// As [`start`](Self::start), with the program at this path, also outside the lab.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_program(program: &Path, mut options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("coherent-device-")
            .tempdir_in(MEMORY_FILES)
            .with_context(|| format!("cannot make a folder in {MEMORY_FILES}"))?;
        if options.socket.as_os_str().is_empty() {
            options.socket = folder.path().join("socket");
        }
        let memory_file = options
            .memory_file
            .get_or_insert_with(|| folder.path().join("memory"))
            .clone();
        let mut child = Command::new(program)
            .args(options.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("standard output is piped")?;
        let device = Self {
            child,
            socket: options.socket,
            memory_file,
            _folder: folder,
        };
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .context("cannot read what the device prints")?;
        ensure!(
            line.trim_end() == READY,
            "the device did not start; it complained on standard error"
        );
        Ok(device)
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The file that is its memory.
    pub fn memory_file(&self) -> &Path {
        &self.memory_file
    }

    /// Its memory, to be read and written.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn memory(&self) -> Result<File> {
        File::options()
            .read(true)
            .write(true)
            .open(&self.memory_file)
            .with_context(|| format!("cannot open {}", self.memory_file.display()))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        let _ = self.child.kill();
        self.child.wait().context("cannot wait for the device")?;
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it is still there after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .context("cannot wait for the device")?
            {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("the device is still there after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for CoherentDevice {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
