//! Runs one virtual machine.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use vmm::config::cli::{self, CliError, Command};
use vmm::console::terminal;
use vmm::{AfterGuest, Vmm, block_signals, logger};

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(error) => return refuse(&error),
    };
    match command {
        Command::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Command::Run { config, log } => ending(run(*config, &log)),
        Command::Plan { config, options } => ending(plan(&config, &options)),
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

fn plan(config: &vmm::config::VmConfig, options: &cli::PlanOptions) -> Result<()> {
    logger::start(0, None)?;
    let text = vmm::show::show(config, options)?;
    io::stdout()
        .write_all(text.as_bytes())
        .context("--plan: cannot write to standard output")
}

fn refuse(error: &CliError) -> ExitCode {
    eprintln!("cloud-hypervisor: {error}");
    ExitCode::from(CliError::EXIT_CODE)
}

fn run(config: vmm::config::VmConfig, log: &cli::LogOptions) -> Result<()> {
    logger::start(log.verbosity, log.file.as_deref()).with_context(|| {
        log.file.as_ref().map_or_else(
            || "cannot log to standard error".to_owned(),
            |file| format!("--log-file {}: cannot create it", file.display()),
        )
    })?;
    block_signals().context("cannot block signals")?;
    let mut vmm = Vmm::new(AfterGuest::End)?;
    vmm.start(config)?;
    Ok(vmm.run()?)
}
