//! A TCP port on this machine that leads to a Unix socket, for clients that know no Unix sockets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};

/// A port of 127.0.0.1 whose connections go to a Unix socket, until this is dropped.
pub struct Forward {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Forward {
    /// Forwards a free port to the socket at `path`.
    ///
    /// # Errors
    /// If there is no port to be had.
    pub fn to(path: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port")?;
        let address = listener.local_addr().context("a port without a number")?;
        let ends = Arc::new(AtomicBool::new(false));
        let acceptor = thread::spawn({
            let (ends, path) = (Arc::clone(&ends), path.to_owned());
            move || accept(&listener, &ends, &path)
        });
        Ok(Self {
            address,
            ends,
            acceptor: Some(acceptor),
        })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // Wakes it up.
        let woken = TcpStream::connect(self.address);
        if let (Ok(_), Some(acceptor)) = (woken, self.acceptor.take()) {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, ends: &AtomicBool, path: &PathBuf) {
    for client in listener.incoming() {
        if ends.load(Ordering::Acquire) {
            return;
        }
        // Whoever is not let through sees the connection closed.
        if let Ok(client) = client {
            let _ = connect(client, path);
        }
    }
}

/// Connects a client; threads of their own carry what both sides say until both have ended.
fn connect(client: TcpStream, path: &PathBuf) -> io::Result<()> {
    // Requests are answered at once only if they are sent at once.
    client.set_nodelay(true)?;
    let server = UnixStream::connect(path)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        carry(from_client, &to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        carry(server, &client);
        let _ = client.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// Carries bytes one way until one side ends.
fn carry(mut from: impl Read, mut to: impl Write) {
    // What could not be carried, the other side notices by itself.
    let _ = io::copy(&mut from, &mut to);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn carries_both_ways_and_the_end_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut said = String::new();
            client.read_to_string(&mut said).unwrap();
            client.write_all(said.to_uppercase().as_bytes()).unwrap();
        });
        let forward = Forward::to(&path).unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", forward.port())).unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "HELLO");
        server.join().unwrap();

        // Nobody listens any more.
        let mut client = TcpStream::connect(("127.0.0.1", forward.port())).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
        let port = forward.port();
        drop(forward);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
