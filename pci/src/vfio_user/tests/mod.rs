mod calls;
mod hostile;
mod interop;
mod random;
mod regions;
mod server;

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use super::client::Client;
use super::error::ConnectError;
use super::sys::{Deadline, page_size};
use crate::device::DeviceError;

use server::{Reply, Request, Script, Server};

/// Longer than any machine takes for what is meant to go well.
const LONG: Duration = Duration::from_secs(60);
/// Named in errors.
const PATH: &str = "/run/device.sock";

/// A client of a server that answers as `script` says, after `tamper` has changed it.
fn try_connect(
    script: Script,
    tamper: impl FnMut(&Request, &mut Reply) + Send + 'static,
) -> (Result<Client, ConnectError>, Server) {
    let (socket, server) = Server::start(script, tamper);
    let client = Client::over(socket, Path::new(PATH), Deadline::after(LONG));
    (client, server)
}

fn connect(
    script: Script,
    tamper: impl FnMut(&Request, &mut Reply) + Send + 'static,
) -> (Client, Server) {
    let (client, server) = try_connect(script, tamper);
    (client.unwrap(), server)
}

/// Whatever the server answers is as it should be.
fn honest(_: &Request, _: &mut Reply) {}

/// An error with all that it comes from.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

fn lost<T>(result: Result<T, DeviceError>) -> String {
    match result {
        Err(error @ DeviceError::Lost(_)) => chain(&error),
        Err(error) => panic!("not lost: {}", chain(&error)),
        Ok(_) => panic!("not lost: it went well"),
    }
}

fn refused<T>(result: Result<T, DeviceError>) -> std::io::Error {
    match result {
        Err(DeviceError::Refused(error)) => error,
        Err(error) => panic!("not refused: {}", chain(&error)),
        Ok(_) => panic!("not refused: it went well"),
    }
}

/// A file of so many pages.
fn file(pages: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * page_size()).unwrap();
    file
}
