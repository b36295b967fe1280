//! A load for a network interface, in a guest of `lab_bench`: orders ([`tests::load`]) are to `send` or `receive` a
//! `stream` in pieces of so many bytes, over a TCP connection for each job. The host's end is in `lab_bench`:
//! it is told which in a byte and how much in eight, and answers with a byte when it has everything.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use tests::load::Order;

/// Interrupts of queue pairs.
const INTERRUPTS: [&str; 2] = ["-input.", "-output."];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("@failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let interface = arguments.next().context("no interface given")?;
    let server = arguments.next().context("no server given")?;
    let statistics = Path::new("/sys/class/net").join(interface);
    let statistics = statistics.join("statistics");
    while let Some(order) = Order::next()? {
        let is_known = ["send", "receive"].contains(&&*order.access);
        ensure!(is_known, "send or receive");
        ensure!(order.pattern == "stream" && order.depth == 1, "one stream");
        let prepare = |number| {
            let stream = TcpStream::connect(&server).with_context(|| server.clone())?;
            let (order, requests) = (&order, order.share(number));
            Ok(move || transfer(stream, order, requests))
        };
        order.carry_out(prepare, || packets(&statistics), &INTERRUPTS)?;
    }
    Ok(())
}

fn transfer(mut stream: TcpStream, order: &Order, requests: u64) -> Result<()> {
    let is_sent = order.access == "send";
    let mut piece = vec![0; order.bytes];
    let mut wanted = vec![u8::from(is_sent)];
    wanted.extend((requests * order.bytes as u64).to_le_bytes());
    stream.write_all(&wanted)?;
    if is_sent {
        for _ in 0..requests {
            stream.write_all(&piece)?;
        }
        stream.read_exact(&mut [0])?;
    } else {
        for _ in 0..requests {
            stream.read_exact(&mut piece)?;
        }
    }
    Ok(())
}

/// What the driver calls packets, both ways: they are large where segmentation is left to others.
fn packets(statistics: &Path) -> Result<u64> {
    let count = |name: &str| {
        let path = statistics.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        anyhow::Ok(text.trim().parse::<u64>()?)
    };
    Ok(count("tx_packets")? + count("rx_packets")?)
}
