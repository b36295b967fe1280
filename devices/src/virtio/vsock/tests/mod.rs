//! A guest's driver and programs of the host, by hand.

mod clients;
mod flow;
mod hostile;
mod property;
mod running;

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::packet::{HEADER, Header, STREAM, op, shutdown};
use super::switch::Patience;
use super::{BUFFER, Vsock, VsockHost};
use crate::virtio::testing::{Buffer, Driver, PATIENCE};

/// The guest's context.
const CID: u32 = 42;
/// Queues.
const RX: usize = 0;
const TX: usize = 1;
/// Where buffers for packets to the guest are, and how many bytes each has.
const RX_BUFFERS: u64 = 0x4_0000;
const RX_BYTES: u32 = 4096;
/// As many as the queue has entries.
const RX_COUNT: u16 = 32;
/// Where the guest's packets are.
const TX_HEADER: u64 = 0x7_0000;
const TX_DATA: u64 = 0x8_0000;

/// Longer than any test waits for anything.
const NEVER: Duration = Duration::from_secs(1000);

fn readable(gpa: u64, length: u32) -> Buffer {
    Buffer {
        gpa,
        length,
        writable: false,
    }
}

fn writable(gpa: u64, length: u32) -> Buffer {
    Buffer {
        gpa,
        length,
        writable: true,
    }
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ (at / 4096) as u8 ^ seed;
    (0..length).map(byte).collect()
}

/// A device with its driver, and the host's side of it.
struct Rig {
    driver: Driver,
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self::with_patience(Patience {
            half_open: NEVER,
            linger: NEVER,
        })
    }

    fn with_patience(patience: Patience) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let host = Arc::new(VsockHost::new(listener, path).unwrap());
        let device = Vsock::new(CID, host).with_patience(patience);
        let mut rig = Self {
            driver: Driver::new(Box::new(device)),
            folder,
        };
        rig.start();
        rig
    }

    /// Starts the device, again if it was, and gives it all buffers.
    fn start(&mut self) {
        self.driver.start(0, RX_COUNT);
        for number in 0..RX_COUNT {
            self.supply(number);
        }
        self.driver.kick(RX);
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("vsock")
    }

    /// Somebody who listens for a port.
    fn listen(&self, port: u32) -> UnixListener {
        let path = self.folder.path().join(format!("vsock_{port}"));
        UnixListener::bind(path).unwrap()
    }

    /// Makes a buffer available, without telling.
    fn supply(&mut self, number: u16) {
        let gpa = RX_BUFFERS + u64::from(number) * u64::from(RX_BYTES);
        let buffer = writable(gpa, RX_BYTES);
        self.driver.make_available(RX, number, &[buffer]);
    }

    /// The next packet for the guest, if there is one; its buffer is made available again.
    fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, written) = self.driver.take_used(RX)?;
        let gpa = RX_BUFFERS + u64::from(head) * u64::from(RX_BYTES);
        let bytes = self.driver.bytes(gpa, written as usize);
        let (header, data) = bytes.split_first_chunk::<HEADER>().unwrap();
        let header = Header::from_bytes(header);
        assert_eq!(header.len as usize, data.len());
        assert_eq!((header.src_cid, header.dst_cid), (2, CID.into()));
        let data = data.to_vec();
        self.supply(head as u16);
        self.driver.kick(RX);
        Some((header, data))
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no packet comes");
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// The next packet, which must be this.
    fn expect(&mut self, op: u16) -> Header {
        let (header, data) = self.receive();
        assert_eq!((header.op, header.kind), (op, STREAM), "{header:?}");
        assert_eq!(data, b"");
        header
    }

    fn expect_nothing(&mut self) {
        thread::sleep(Duration::from_millis(30));
        let packet = self.try_receive();
        assert!(packet.is_none(), "{packet:?}");
    }

    /// Sends a packet in two descriptors and waits until it is taken.
    fn send(&mut self, header: Header, data: &[u8]) {
        self.offer(header, data);
        assert_eq!(self.driver.wait_used(TX), (0, 0));
    }

    /// The same without waiting.
    fn offer(&mut self, header: Header, data: &[u8]) {
        self.driver.fill(TX_HEADER, &header.to_bytes());
        self.driver.fill(TX_DATA, data);
        let buffers = [
            readable(TX_HEADER, HEADER as u32),
            readable(TX_DATA, data.len() as u32),
        ];
        let count = if data.is_empty() { 1 } else { 2 };
        self.driver.make_available(TX, 0, &buffers[..count]);
        self.driver.kick(TX);
    }

    /// A client that has connected to a guest's port, and the guest's end of it.
    fn connect(&mut self, port: u32) -> (UnixStream, Peer) {
        let mut client = self.ask(port);
        let request = self.expect(op::REQUEST);
        assert_eq!(request.dst_port, port);
        let peer = Peer::of(&request);
        self.send(peer.header(op::RESPONSE), b"");
        let expected = format!("OK {}\n", request.src_port);
        assert_eq!(read(&mut client, expected.len()), expected.as_bytes());
        (client, peer)
    }

    /// A client that has asked for a guest's port.
    fn ask(&self, port: u32) -> UnixStream {
        let mut client = self.client();
        // Where there is no room, it is hung up on before it has said anything.
        let _ = client.write_all(format!("CONNECT {port}\n").as_bytes());
        client
    }

    /// A client that has said nothing.
    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// What somebody accepted who listens for a port that the guest connects to, and the guest's end.
    fn connect_to(
        &mut self,
        listener: &UnixListener,
        guest_port: u32,
        port: u32,
    ) -> (UnixStream, Peer) {
        let peer = Peer {
            guest_port,
            host_port: port,
            ..Peer::default()
        };
        self.send(peer.header(op::REQUEST), b"");
        let response = self.expect(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (port, guest_port));
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (stream, peer)
    }

    /// Sends until there is no credit any more, to somebody who does not read.
    fn exhaust(&mut self, peer: &Peer) -> usize {
        let (mut sent, mut forwarded) = (0_u32, 0);
        let mut idle = 0;
        while idle < 10 {
            let credit = BUFFER - (sent - forwarded);
            let count = credit.min(60_000);
            if count > 0 {
                self.send(peer.data(count as usize), &vec![0; count as usize]);
                sent += count;
                idle = 0;
            }
            match self.try_receive() {
                Some((header, _)) => forwarded = header.fwd_cnt,
                None => {
                    thread::sleep(Duration::from_millis(3));
                    idle += 1;
                }
            }
        }
        sent as usize
    }

    /// The device works: a connection can be made.
    fn check(&mut self) {
        assert_eq!(self.driver.status(), 15);
        let (_client, peer) = self.connect(999);
        self.send(peer.header(op::RST), b"");
    }
}

/// The guest's end of a connection.
#[derive(Clone, Copy, Debug)]
struct Peer {
    guest_port: u32,
    host_port: u32,
    buffer: u32,
    forwarded: u32,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            guest_port: 0,
            host_port: 0,
            buffer: 64 << 10,
            forwarded: 0,
        }
    }
}

impl Peer {
    /// Of what this packet is for.
    fn of(header: &Header) -> Self {
        Self {
            guest_port: header.dst_port,
            host_port: header.src_port,
            ..Self::default()
        }
    }

    fn header(&self, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: 2,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: self.buffer,
            fwd_cnt: self.forwarded,
        }
    }

    fn data(&self, length: usize) -> Header {
        Header {
            len: length as u32,
            ..self.header(op::RW)
        }
    }

    fn shutdown(&self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(op::SHUTDOWN)
        }
    }

    fn owns(&self, header: &Header) -> bool {
        (header.src_port, header.dst_port) == (self.host_port, self.guest_port)
    }
}

fn read(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Whether a stream has ended, without anything before.
fn has_ended(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Waits for something to become true.
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}
