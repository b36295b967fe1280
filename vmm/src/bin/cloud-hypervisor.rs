//! Runs one virtual machine, of the command line or of the REST API.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vmm::api::Api;
use vmm::api::http::{Limits, Server, Socket};
use vmm::config::cli::{self, CliError, Command};
use vmm::config::{Target, VmConfig};
use vmm::console::terminal;
use vmm::events::{self, Event, Events};
use vmm::logger::{self, Format};
use vmm::{AfterGuest, Vmm, block_signals};

fn main() -> ExitCode {
    let start = Instant::now();
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => return refuse(&error),
    };
    match command {
        Command::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Command::Run { config, options } => ending(start_and_run(config, options, start)),
        Command::Plan { config, options } => ending(plan(&config, &options, start)),
    }
}

fn ending(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::restore();
            eprintln!("cloud-hypervisor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn plan(config: &VmConfig, options: &cli::PlanOptions, start: Instant) -> Result<()> {
    logger::start(0, None, Format::default(), start)?;
    let text = vmm::show::show(config, options)?;
    io::stdout()
        .write_all(text.as_bytes())
        .context("--plan: cannot write to standard output")
}

fn refuse(error: &CliError) -> ExitCode {
    eprintln!("cloud-hypervisor: {error}");
    ExitCode::from(CliError::EXIT_CODE)
}

/// Starts what watches the VMM, and runs it.
fn start_and_run(
    config: Option<Box<VmConfig>>,
    options: cli::RunOptions,
    start: Instant,
) -> Result<()> {
    let cli::RunOptions {
        log,
        event_monitor,
        api_socket,
        no_shutdown,
    } = options;
    // Threads inherit what is blocked, and inherited descriptors are to be taken over before any
    // are opened.
    block_signals().context("cannot block signals")?;
    let events = match event_monitor {
        Some(target) => Events::start(&target, start)?,
        None => Events::none(),
    };
    let api_socket = api_socket.map(|target| listen(&target)).transpose()?;
    events::report_panics(&events);
    start_logging(log, start)?;
    events.report(Event::Starting);
    let after_guest = match no_shutdown {
        true => AfterGuest::Stay,
        false => AfterGuest::End,
    };
    let result = run(config, api_socket, after_guest, &events);
    events.report(Event::VmmShutdown);
    events.close();
    result
}

fn start_logging(options: cli::LogOptions, start: Instant) -> Result<()> {
    let cli::LogOptions {
        verbosity,
        file,
        format,
    } = options;
    logger::start(verbosity, file.as_deref(), format, start).with_context(|| {
        file.as_ref().map_or_else(
            || "cannot log to standard error".to_owned(),
            |file| format!("--log-file {}: cannot create it", file.display()),
        )
    })
}

fn listen(target: &Target) -> Result<Socket> {
    match target {
        Target::Path(path) => Socket::bind(path).context("--api-socket"),
        Target::Fd(fd) => Socket::inherited(*fd).with_context(|| format!("--api-socket fd={fd}")),
    }
}

fn run(
    config: Option<Box<VmConfig>>,
    api_socket: Option<Socket>,
    after_guest: AfterGuest,
    events: &Events,
) -> Result<()> {
    let mut vmm = Vmm::new(after_guest, events)?;
    let service = Arc::new(Api::new(vmm.handle()));
    // Requests wait until the machine of the command line runs, and the last one is answered before
    // the server goes.
    let server = api_socket.map(|socket| Server::start(socket, service, Limits::default()));
    let _server = server
        .transpose()
        .context("--api-socket: cannot serve requests")?;
    if let Some(config) = config {
        vmm.start(*config)?;
    }
    Ok(vmm.run()?)
}
