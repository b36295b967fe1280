//! Runs one virtual machine.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
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
        Command::Run {
            config,
            log,
            event_monitor,
        } => ending(start_and_run(*config, log, event_monitor.as_ref(), start)),
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

/// Starts what watches the VMM, and runs the machine.
fn start_and_run(
    config: VmConfig,
    log: cli::LogOptions,
    event_monitor: Option<&Target>,
    start: Instant,
) -> Result<()> {
    // Threads inherit what is blocked, and inherited descriptors are to be taken over before any
    // are opened.
    block_signals().context("cannot block signals")?;
    let events = match event_monitor {
        Some(target) => Events::start(target, start)?,
        None => Events::none(),
    };
    events::report_panics(&events);
    start_logging(log, start)?;
    events.report(Event::Starting);
    let result = run(config, &events);
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

fn run(config: VmConfig, events: &Events) -> Result<()> {
    let mut vmm = Vmm::new(AfterGuest::End, events)?;
    vmm.start(config)?;
    Ok(vmm.run()?)
}
