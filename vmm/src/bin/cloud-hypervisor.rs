//! Runs one virtual machine.

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmm::config::cli::{self, CliError, Command};
use vmm::console::terminal;
use vmm::{Vmm, block_signals, logger};

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
        Command::Run { config, log } => match run(*config, &log) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                terminal::restore();
                eprintln!("cloud-hypervisor: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn refuse(error: &CliError) -> ExitCode {
    eprintln!("cloud-hypervisor: {error}");
    ExitCode::from(CliError::EXIT_CODE)
}

fn run(config: vmm::config::VmConfig, log: &cli::LogOptions) -> Result<()> {
    logger::start(log.verbosity, log.file.as_deref()).with_context(|| {
        let file = log.file.clone().unwrap_or_default();
        format!("--log-file {}: cannot create it", file.display())
    })?;
    block_signals().context("cannot block signals")?;
    config.validate(vmm::machine::HOST_ISA)?;
    Ok(Vmm::new(config)?.run()?)
}
