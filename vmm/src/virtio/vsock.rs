//! Sockets between guest and host: the one that is listened on.

use std::sync::Arc;

use devices::virtio::vsock::{MOST_CONNECTIONS, Vsock, VsockHost};

use super::{BackendError, descriptors};
use crate::config::VsockConfig;
use crate::listener::Listener;

/// Descriptors of everything but connections, at least.
const OTHERS: usize = 512;

/// Sockets between guest and host, for all boots.
pub struct Sockets {
    host: Arc<VsockHost>,
    cid: u32,
    /// Its file goes with it.
    _listener: Listener,
}

impl Sockets {
    /// Listens; the socket of a process that is gone is replaced.
    ///
    /// # Errors
    /// The path cannot be listened on.
    pub fn open(config: &VsockConfig) -> Result<Self, BackendError> {
        let VsockConfig {
            cid,
            socket: path,
            id: _,
            pci_segment: _,
            pci_device_id: _,
        } = config;
        let listener = Listener::bind(path, None).map_err(|source| BackendError::Socket {
            option: config.option(),
            source,
        })?;
        let socket = listener.socket().try_clone();
        let host = socket.and_then(|socket| VsockHost::new(socket, path.clone()));
        let host = host.map_err(|source| BackendError::Open {
            option: config.option(),
            source,
        })?;
        look_for_room(config);
        Ok(Self {
            host: Arc::new(host),
            cid: *cid,
            _listener: listener,
        })
    }

    /// The device of one boot.
    pub fn device(&self) -> Vsock {
        Vsock::new(self.cid, Arc::clone(&self.host))
    }
}

fn look_for_room(config: &VsockConfig) {
    let needed = MOST_CONNECTIONS + OTHERS;
    let option = config.option();
    match descriptors::make_room() {
        Ok(limit) if limit < needed as u64 => log::warn!(
            "{option}: this process may have {limit} descriptors (RLIMIT_NOFILE): a guest with \
             {MOST_CONNECTIONS} connections leaves too few; allow {needed}"
        ),
        Ok(_) => {}
        Err(error) => {
            log::warn!("{option}: cannot tell how many descriptors there may be: {error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn config(path: &std::path::Path) -> VsockConfig {
        VsockConfig {
            cid: 3,
            socket: path.to_owned(),
            id: None,
            pci_segment: 0,
            pci_device_id: None,
        }
    }

    #[test]
    fn the_socket_comes_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        // Of a process that is gone.
        drop(UnixListener::bind(&path).unwrap());
        let sockets = Sockets::open(&config(&path)).unwrap();
        UnixStream::connect(&path).unwrap();
        drop((sockets.device(), sockets.device()));
        UnixStream::connect(&path).unwrap();
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_in_the_way_is_said_with_its_option() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        let _listener = UnixListener::bind(&taken).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, reason) in [
            (&taken, "in use by another process"),
            (&file, "not a socket"),
        ] {
            let Err(error) = Sockets::open(&config(path)) else {
                panic!("{} is listened on", path.display());
            };
            assert_eq!(
                error.to_string(),
                format!("--vsock cid=3,socket={}", path.display())
            );
            let source = error.source().unwrap().to_string();
            assert!(source.contains(reason), "{source}");
            assert!(path.exists());
        }
    }
}
