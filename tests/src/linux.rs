//! A Linux guest in the lab that is driven over the REST API.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::api::ApiServer;
use crate::output::Output;
use crate::{Initramfs, Lab, Report};

/// How long anything may take on hardware.
const PATIENCE: Duration = Duration::from_secs(15);

/// A VMM with an API socket, and what its Linux guest prints on a serial port that is a socket.
pub struct Linux {
    /// The VMM.
    pub server: ApiServer,
    console: Option<Console>,
    patience: Duration,
    events: PathBuf,
    logs: PathBuf,
    logs_shown: PathBuf,
}

/// A serial port, from one boot to its shutdown; it outlives reboots.
struct Console {
    output: Output,
    input: UnixStream,
}

impl Linux {
    /// Starts a VMM without a virtual machine.
    ///
    /// # Errors
    /// Outside the lab.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(options: &[&str]) -> Result<Self> {
        let lab = Lab::get()?;
        let name = std::thread::current().name().map(str::to_owned);
        let name = name.unwrap_or_default().replace("::", ".");
        let (logs, logs_shown) = lab.log_folder(&name)?;
        let events = logs.join("events");
        let monitor = format!("path={}", events.display());
        let options = [&["--event-monitor", &monitor], options].concat();
        let program = lab.program("cloud-hypervisor");
        let patience = lab.scaled(PATIENCE);
        Ok(Self {
            server: ApiServer::start_patiently(&program, &options, patience),
            console: None,
            patience,
            events,
            logs,
            logs_shown,
        })
    }

    /// The body of `vm.create` for a guest with two vCPUs and the lab's kernel.
    ///
    /// # Errors
    /// If the initramfs cannot be written.
    pub fn machine(&self, initramfs: &Initramfs, cmdline: &str) -> Result<Value> {
        let archive = self.server.folder().join("initramfs");
        initramfs.write_to(&archive)?;
        std::fs::write(self.logs.join("test.sh"), initramfs.script())?;
        Ok(json!({
            "payload": {"kernel": Lab::get()?.kernel(), "initramfs": archive, "cmdline": cmdline},
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
            "serial": {"mode": "Socket", "socket": self.serial()},
            "console": {"mode": "Off"},
        }))
    }

    fn serial(&self) -> PathBuf {
        self.server.folder().join("serial")
    }

    /// Boots the virtual machine, and listens to a new console.
    ///
    /// # Errors
    /// If there is no console.
    ///
    /// # Panics
    /// If it cannot be booted.
    pub fn boot(&mut self) -> Result<()> {
        self.server.act("vm.boot").expect(204);
        let input = UnixStream::connect(self.serial()).context("no serial port")?;
        let log = (1..).map(|boot| self.logs.join(format!("console.{boot}")));
        let log = log.into_iter().find(|log| !log.exists());
        let output = Output::collect(input.try_clone()?, &log.context("no log")?)?;
        self.console = Some(Console { output, input });
        Ok(())
    }

    fn listen(&self) -> Result<&Console> {
        self.console.as_ref().context("it was not booted")
    }

    /// What the guest has printed since the last [`boot`](Self::boot), line ends as `\n`.
    ///
    /// # Errors
    /// If it was not booted.
    pub fn printed(&self) -> Result<String> {
        Ok(self.listen()?.output.text())
    }

    /// Waits until `count` lines of it contain `pattern`.
    ///
    /// # Errors
    /// If that does not come, or takes too long.
    pub fn wait_for_lines(&self, pattern: &str, count: usize) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        let line = self.listen()?.output.wait_for(pattern, count, deadline);
        line.with_context(|| self.describe(&format!("no {count} lines contained {pattern:?}")))?;
        Ok(())
    }

    /// Types.
    ///
    /// # Errors
    /// If the serial port is gone.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let console = self.console.as_mut().context("it was not booted")?;
        console.input.write_all(text.as_bytes())?;
        Ok(())
    }

    /// What the guest reported, once its console has ended, which it does when the virtual machine
    /// is shut down.
    ///
    /// # Errors
    /// If it does not end, if the guest's script failed, or the report is incomplete.
    pub fn report(&self) -> Result<Report> {
        self.wait_for_lines("@@ exit", 1)?;
        let deadline = Instant::now() + self.patience;
        let has_ended = self.listen()?.output.has_ended_by(deadline);
        ensure!(has_ended, self.describe("the console does not end"));
        let report = Report::parse(&self.printed()?)?;
        ensure!(report.exit == Some(0), self.describe("the script failed"));
        Ok(report)
    }

    /// What `--event-monitor` has told so far: the source, the name and the properties of each.
    ///
    /// # Errors
    /// If it is no JSON.
    pub fn events(&self) -> Result<Vec<(String, String, Value)>> {
        let text = std::fs::read_to_string(&self.events).context("no events")?;
        // The last one may be half written.
        let whole = text.rfind("\n}\n").map_or("", |end| &text[..end + 2]);
        let events = serde_json::Deserializer::from_str(whole).into_iter::<Value>();
        let parts = |event: Value| {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            (text("source"), text("event"), event["properties"].clone())
        };
        events.map(|event| Ok(parts(event?))).collect()
    }

    /// Waits until there have been so many events of the virtual machine, and holds that they are
    /// these. They come a moment later than answers of the API.
    ///
    /// # Errors
    /// If they are others, or do not come.
    pub fn expect_events(&self, expected: &[&str]) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            let events = self.events()?.into_iter();
            let events = events.filter(|(source, ..)| source == "vm");
            let names: Vec<_> = events.map(|(_, name, _)| name).collect();
            if names.len() >= expected.len() || Instant::now() >= deadline {
                ensure!(names == expected, "{names:?} instead of {expected:?}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs `ch-remote` with these arguments and returns what it prints.
    ///
    /// # Errors
    /// If it cannot be run, or fails.
    pub fn remote(&self, arguments: &[&str]) -> Result<String> {
        let program = Lab::get()?.program("ch-remote");
        let output = Command::new(&program)
            .arg("--api-socket")
            .arg(self.server.socket())
            .args(arguments)
            .output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `problem`, where the logs are, and what the VMM and the guest have said.
    pub fn describe(&self, problem: &str) -> String {
        let logs = self.logs_shown.display();
        let errors = self.server.errors();
        let printed = self.printed().unwrap_or_default();
        format!("{problem}; logs in {logs}\n--- errors\n{errors}\n--- console\n{printed}")
    }
}
