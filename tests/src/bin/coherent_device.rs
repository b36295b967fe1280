//! A device whose memory CPUs may cache, as a vfio-user server: docs/testing.md.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tests::coherent_device::{Options, Server};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coherent_device: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let server = Server::bind(Options::parse()).context("there is no device")?;
    // Whoever started this waits for it.
    println!("ready");
    server.run().context("the device ended badly")
}
