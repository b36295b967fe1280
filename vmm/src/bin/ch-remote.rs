//! Asks a running VMM for something, over its REST API.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use vmm::config::cli::CliError;
use vmm::remote;
use vmm::remote::cli::{self, Command};

fn main() -> ExitCode {
    let result = match cli::parse(std::env::args_os()) {
        Ok(command) => carry_out(command),
        Err(error) => {
            eprintln!("ch-remote: {error}");
            return ExitCode::from(CliError::EXIT_CODE);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ch-remote: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> Result<()> {
    let mut out = io::stdout();
    match command {
        Command::Print(text) => out
            .write_all(text.as_bytes())
            .context("cannot write to standard output"),
        Command::Call { socket, call } => Ok(remote::run(&socket, &call, &mut out)?),
    }
}
