//! A device whose memory CPUs may cache, as a vfio-user server: docs/testing.md.

use anyhow::{Context as _, Result};
use clap::Parser as _;
use tests::coherent_device::{Options, Server};

fn main() -> Result<()> {
    let server = Server::bind(Options::parse()).context("there is no device")?;
    // Whoever started this waits for it, and may be gone by now.
    println!("ready");
    server.run().context("the device ended badly")
}
