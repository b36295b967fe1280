//! What hostile drivers find: programs of the host that connect to them and go again.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use vmm_sys_util::tempdir::TempDir;

use super::packet::{HEADER, HOST_CID, Header, STREAM, op};
use super::{Vsock, VsockHost};
use crate::virtio::Device;
use crate::virtio::testing::hostile::Subject;
use crate::virtio::testing::{Buffer, Driver};

/// The guest's context.
const CID: u32 = 42;
/// Where packets to the guest go, and its own.
const RECEIVED: u64 = 0x8_0000;
const SENT: u64 = 0xa_0000;
/// Buffers for packets to the guest.
const BUFFERS: u16 = 15;
const LENGTH: u32 = 0x1000;
/// The most programs of the host.
const CLIENTS: usize = 6;
/// A port of the host where somebody is, and one where nobody is.
const SERVED: u32 = 77;
const NOBODY: u32 = 78;
/// The guest's port.
const PORT: u32 = 1234;

/// Sockets, from the host's side.
pub struct Host {
    host: Arc<VsockHost>,
    path: PathBuf,
    clients: Vec<UnixStream>,
    server: UnixListener,
    // Last, so that what is in it is gone before.
    _folder: TempDir,
}

impl Host {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.as_path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let host = Arc::new(VsockHost::new(listener, path.clone()).unwrap());
        let server = UnixListener::bind(folder.as_path().join(format!("vsock_{SERVED}")));
        let server = server.unwrap();
        server.set_nonblocking(true).unwrap();
        Self {
            host,
            path,
            clients: Vec::new(),
            server,
            _folder: folder,
        }
    }
}

fn packet(op: u16, dst_port: u32, len: u32) -> Vec<u8> {
    let header = Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: PORT,
        dst_port,
        len,
        kind: STREAM,
        op,
        flags: 3,
        buf_alloc: 0x1_0000,
        fwd_cnt: 0,
    };
    header.to_bytes().to_vec()
}

impl Subject for Host {
    fn device(&mut self) -> Box<dyn Device> {
        Box::new(Vsock::new(CID, Arc::clone(&self.host)))
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        let mut contents = Vec::new();
        for port in [SERVED, NOBODY, 1 << 30] {
            for op in 0..9 {
                contents.push(packet(op, port, 0));
            }
            contents.push(packet(op::RW, port, 16));
            contents.push(packet(op::RW, port, u32::MAX));
        }
        contents
    }

    fn ask(&mut self, driver: &mut Driver) {
        for at in 0..BUFFERS {
            let gpa = RECEIVED + u64::from(at) * u64::from(LENGTH);
            let buffer = Buffer {
                gpa,
                length: LENGTH,
                writable: true,
            };
            driver.make_available(0, at, &[buffer]);
        }
        driver.kick(0);
        driver.fill(SENT, &packet(op::REQUEST, NOBODY, 0));
        let request = Buffer {
            gpa: SENT,
            length: HEADER as u32,
            writable: false,
        };
        driver.make_available(1, 0, &[request]);
        driver.kick(1);
    }

    fn check_answer(&mut self, driver: &mut Driver) {
        assert_eq!(driver.wait_used(1).0, 0);
        // Programs of the host may be there, too.
        loop {
            let (head, written) = driver.wait_used(0);
            assert!(written >= HEADER as u32, "{written}");
            let at = RECEIVED + u64::from(head) * u64::from(LENGTH);
            let bytes: [u8; HEADER] = driver.bytes(at, HEADER).try_into().unwrap();
            let header = Header::from_bytes(&bytes);
            if header.op == op::RST && header.src_port == NOBODY {
                assert_eq!(header.dst_port, PORT);
                return;
            }
        }
    }

    fn act(&mut self, what: u8) {
        let index = usize::from(what) % CLIENTS;
        let is_full = self.clients.len() == CLIENTS;
        match (what % 4, self.clients.get_mut(index)) {
            (0, Some(_)) => drop(self.clients.swap_remove(index)),
            (1, Some(client)) => {
                let _ = client.shutdown(Shutdown::Write);
            }
            (2, Some(client)) => {
                let _ = client.write(&[what; 200]);
            }
            (3, _) => {
                if !is_full && let Ok((client, _)) = self.server.accept() {
                    let _ = client.set_nonblocking(true);
                    self.clients.push(client);
                }
            }
            _ if !is_full => {
                let mut client = UnixStream::connect(&self.path).unwrap();
                client.set_nonblocking(true).unwrap();
                let _ = client.write(b"CONNECT 1234\n");
                self.clients.push(client);
            }
            _ => {}
        }
    }
}
