//! The VMM, or any other program, as a child under a timeout whose output is kept.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::host::threads;
use crate::output::Output;
use crate::signals::restore_defaults;
use crate::{Initramfs, Lab, Report};

/// How long a child may live on hardware unless told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Lines of each stream that an error shows.
const LINES_SHOWN: usize = 20;

/// A child to be started.
pub struct Vmm {
    program: PathBuf,
    arguments: Vec<OsString>,
    script: Option<String>,
    files: Option<TempDir>,
    name: String,
    timeout: Duration,
    user: Option<u32>,
}

impl Vmm {
    /// `cloud-hypervisor` without arguments.
    ///
    /// # Errors
    /// Outside the lab.
    pub fn new() -> Result<Self> {
        Ok(Self::program(Lab::get()?.program("cloud-hypervisor")))
    }

    /// Any other program.
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            script: None,
            files: None,
            name: std::thread::current()
                .name()
                .unwrap_or("unnamed")
                .replace("::", "."),
            timeout: DEFAULT_TIMEOUT,
            user: None,
        }
    }

    /// `cloud-hypervisor` that boots the lab's kernel with `initramfs` and the kernel command line
    /// `cmdline`, its serial port on standard input and output.
    ///
    /// # Errors
    /// Outside the lab, and if the initramfs cannot be written.
    pub fn boot(initramfs: &Initramfs, cmdline: &str) -> Result<Self> {
        Self::boot_kernel(&Lab::get()?.kernel(), initramfs, cmdline)
    }

    /// As [`boot`](Self::boot) with another kernel.
    ///
    /// # Errors
    /// As [`boot`](Self::boot).
    pub fn boot_kernel(kernel: &Path, initramfs: &Initramfs, cmdline: &str) -> Result<Self> {
        let files = tempfile::tempdir().context("cannot make a temporary folder")?;
        let archive = files.path().join("initramfs");
        initramfs.write_to(&archive)?;
        let mut vmm = Self::new()?
            .arg("--kernel")
            .arg(kernel)
            .arg("--initramfs")
            .arg(&archive)
            .args(["--cmdline", cmdline])
            .args(["--serial", "tty"]);
        vmm.script = Some(initramfs.script().to_owned());
        vmm.files = Some(files);
        Ok(vmm)
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Names the log folder; the name of the test unless called.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// How long it may live, as it would be on hardware; the lab allows more where it is slower.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// As which user it runs: one of its own, without any capability, unless it is 0.
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// Outside the lab, and if the program cannot be started or its logs not be written.
    pub fn spawn(self) -> Result<RunningVmm> {
        let lab = Lab::get()?;
        let (logs, logs_shown) = lab.log_folder(&self.name)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        restore_defaults(&mut command);
        if let Some(id) = self.user {
            command.uid(id).gid(id);
            // It may read what it is given.
            let files = self.files.as_ref().map(TempDir::path);
            let open = |path| fs::set_permissions(path, Permissions::from_mode(0o755));
            files.map(open).transpose()?;
        }
        write(&logs.join("command"), &format!("{command:?}\n"))?;
        if let Some(script) = &self.script {
            write(&logs.join("test.sh"), script)?;
        }
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let stderr = child.stderr.take().context("standard error is piped")?;
        Ok(RunningVmm {
            child,
            stdout: Output::collect(stdout, &logs.join("stdout"))?,
            stderr: Output::collect(stderr, &logs.join("stderr"))?,
            started,
            deadline: started + lab.scaled(self.timeout),
            logs_shown,
            _files: self.files,
        })
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn) and [`RunningVmm::wait`].
    pub fn run(self) -> Result<Outcome> {
        self.spawn()?.wait()
    }
}

/// A child that was started. Dropped, it is killed.
pub struct RunningVmm {
    child: Child,
    stdout: Output,
    stderr: Output,
    started: Instant,
    deadline: Instant,
    logs_shown: PathBuf,
    /// Kept while the child may read from it.
    _files: Option<TempDir>,
}

impl RunningVmm {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// If the child closed it.
    pub fn write(&mut self, input: &str) -> Result<()> {
        let mut stdin = self.child.stdin.as_ref().context("input was closed")?;
        stdin
            .write_all(input.as_bytes())
            .context("cannot write to standard input")
    }

    /// Sends it a signal, by the name that kill(1) knows it by: `TERM`, `INT`.
    ///
    /// # Errors
    /// If kill(1) fails.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .context("cannot start kill")?;
        ensure!(status.success(), "kill -{name} failed: {status}");
        Ok(())
    }

    /// Waits until a line of its standard output contains `pattern`; returns the line, which may
    /// not be complete yet.
    ///
    /// # Errors
    /// If the output ends or the timeout passes without.
    pub fn wait_for_line(&self, pattern: &str) -> Result<String> {
        self.wait_for_lines(pattern, 1)
    }

    /// Waits until `count` lines of its standard output contain `pattern`; returns the last.
    ///
    /// # Errors
    /// As [`wait_for_line`](Self::wait_for_line).
    pub fn wait_for_lines(&self, pattern: &str, count: usize) -> Result<String> {
        self.wait_on(&self.stdout, pattern, count)
    }

    /// As [`wait_for_line`](Self::wait_for_line), for standard error.
    ///
    /// # Errors
    /// As [`wait_for_line`](Self::wait_for_line).
    pub fn wait_for_error_line(&self, pattern: &str) -> Result<String> {
        self.wait_on(&self.stderr, pattern, 1)
    }

    fn wait_on(&self, stream: &Output, pattern: &str, count: usize) -> Result<String> {
        let line = stream.wait_for(pattern, count, self.deadline);
        line.with_context(|| {
            let mut problem = self.describe(&format!("no {count} lines contained {pattern:?}"));
            if Instant::now() >= self.deadline {
                problem += &threads(self.pid());
            }
            problem
        })
    }

    /// What it has printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If the timeout passes; the child is killed then.
    pub fn wait(mut self) -> Result<Outcome> {
        let status = loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the child")? {
                break status;
            }
            if Instant::now() >= self.deadline {
                let limit = self.deadline - self.started;
                let problem = self.describe(&format!("still running after {limit:?}, killed"));
                bail!("{problem}{}", threads(self.pid()));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let elapsed = self.started.elapsed();
        self.stdout.finish();
        self.stderr.finish();
        Ok(Outcome {
            status,
            elapsed,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            description: self.describe(&status.to_string()),
        })
    }

    /// `problem`, where the logs are and how they end.
    fn describe(&self, problem: &str) -> String {
        let mut text = format!("{problem}; logs in {}", self.logs_shown.display());
        for (name, stream) in [("output", &self.stdout), ("errors", &self.stderr)] {
            let stream = stream.text();
            let lines: Vec<_> = stream.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            let _ = write!(text, "\n--- end of its {name}\n{}", shown.join("\n"));
        }
        text
    }
}

impl Drop for RunningVmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a child ended.
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// Time from start to end.
    pub elapsed: Duration,
    /// What it printed, line ends as `\n`.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    description: String,
}

impl Outcome {
    /// The exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// This outcome, if the exit code is 0.
    ///
    /// # Errors
    /// With the end of what it printed, if it is not.
    pub fn success(self) -> Result<Self> {
        ensure!(self.status.success(), "{}", self.description);
        Ok(self)
    }

    /// What the guest reported on the console, of a VMM that ended with exit code 0 after a guest
    /// whose script did.
    ///
    /// # Errors
    /// If either failed or the report is incomplete.
    pub fn report(&self) -> Result<Report> {
        ensure!(self.status.success(), "{}", self.description);
        let report = Report::parse(&self.stdout)?;
        ensure!(
            report.exit == Some(0),
            "the guest's script ended with {:?}: {}",
            report.exit,
            self.description
        );
        Ok(report)
    }
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
