//! A server that does as it is told, be it right or wrong.
#![expect(
    unsafe_code,
    reason = "descriptors that come over a socket belong to whoever receives them"
)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vfio_bindings::bindings::vfio::*;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use zerocopy::{FromBytes, IntoBytes};

use super::super::sys::{self, Deadline};
use super::super::wire::*;
use super::LONG;

/// What was asked.
pub struct Request {
    pub header: Header,
    pub body: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

impl Request {
    pub fn is(&self, command: Command) -> bool {
        self.header.command == command.number()
    }

    /// The beginning of the body.
    pub fn read<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.body)
            .unwrap_or_else(|_| panic!("too short"))
            .0
    }
}

/// What is answered, and how.
pub struct Reply {
    pub header: Header,
    pub payload: Vec<u8>,
    pub files: Vec<OwnedFd>,
    pub how: How,
}

pub enum How {
    /// At once.
    Whole,
    /// These bytes instead.
    Raw(Vec<u8>),
    /// These bytes, and then the socket is closed.
    Last(Vec<u8>),
    /// Never.
    Never,
    /// One byte at a time.
    Trickle(Duration),
    /// After these commands of the server's own.
    After(Vec<(Header, Vec<u8>)>),
}

impl Reply {
    /// The message as it would go over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        [self.header.as_bytes(), &self.payload].concat()
    }

    /// Makes it an error.
    pub fn fail(&mut self, errno: i32) {
        self.header.flags |= flags::ERROR;
        self.header.error = errno as u32;
        self.set_payload(Vec::new());
    }

    /// Replaces what follows the header, whose size follows.
    pub fn set_payload(&mut self, payload: Vec<u8>) {
        self.header.size = (size_of::<Header>() + payload.len()) as u32;
        self.payload = payload;
    }
}

/// A region as the server describes it.
#[derive(Default)]
pub struct Region {
    pub flags: u32,
    pub size: u64,
    pub offset: u64,
    pub cap_offset: u32,
    pub capabilities: Vec<u8>,
    pub file: Option<File>,
}

pub const RW: u32 = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
pub const MMAP: u32 = VFIO_REGION_INFO_FLAG_MMAP;
pub const CAPS: u32 = VFIO_REGION_INFO_FLAG_CAPS;
/// Where the first capability is.
pub const FIRST: u32 = size_of::<RegionInfo>() as u32;

/// A capability that lists mappable areas.
pub fn sparse(next: u32, areas: &[(u64, u64)]) -> Vec<u8> {
    let header = CapabilityHeader {
        id: VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16,
        version: 1,
        next,
    };
    let list = SparseAreas {
        count: areas.len() as u32,
        reserved: 0,
    };
    let mut bytes = [header.as_bytes(), list.as_bytes()].concat();
    for &(offset, size) in areas {
        bytes.extend(SparseArea { offset, size }.as_bytes());
    }
    bytes
}

/// What the server says if it is honest.
pub struct Script {
    pub version: Version,
    pub json: Vec<u8>,
    pub info: DeviceInfo,
    pub regions: Vec<Region>,
    pub irqs: Vec<IrqInfo>,
}

impl Script {
    /// A device with a BAR 0 of two pages, all kinds of interrupts and a reset.
    pub fn new() -> Self {
        let mut regions: Vec<_> = (0..9).map(|_| Region::default()).collect();
        regions[0] = Region {
            flags: RW,
            size: 0x2000,
            ..Default::default()
        };
        regions[7] = Region {
            flags: RW,
            size: 0x1000,
            ..Default::default()
        };
        Self {
            version: Version { major: 0, minor: 1 },
            json: br#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":4096}}"#.to_vec(),
            info: DeviceInfo {
                argsz: 16,
                flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
                regions: 9,
                irqs: 5,
            },
            regions,
            irqs: [(0, 1), (1, 32), (2, 64), (3, 1), (4, 1)]
                .map(|(index, count)| IrqInfo {
                    argsz: 16,
                    flags: VFIO_IRQ_INFO_EVENTFD,
                    index,
                    count,
                })
                .to_vec(),
        }
    }

    /// A device whose BAR 2 is described as `region`.
    pub fn with_bar2(region: Region) -> Self {
        let mut script = Self::new();
        script.regions[2] = region;
        script
    }

    /// The honest answer.
    pub fn reply(&self, request: &Request) -> Reply {
        let mut files = Vec::new();
        let payload = match request.header.command {
            1 => {
                let mut payload = self.version.as_bytes().to_vec();
                if !self.json.is_empty() {
                    payload.extend(&self.json);
                    payload.push(0);
                }
                payload
            }
            3 | 10 => {
                let length = if request.is(Command::DmaUnmap) {
                    24
                } else {
                    16
                };
                request.body[..length].to_vec()
            }
            4 => self.info.as_bytes().to_vec(),
            5 => self.region_info(request.read(), &mut files),
            7 => self.irqs[request.read::<IrqInfo>().index as usize]
                .as_bytes()
                .to_vec(),
            9 => {
                let access: RegionAccess = request.read();
                let data = (0..u64::from(access.count)).map(|at| pattern(access.offset + at));
                access.as_bytes().iter().copied().chain(data).collect()
            }
            2 | 8 | 13 => Vec::new(),
            other => panic!("the client sent command {other}"),
        };
        let mut reply = Reply {
            header: Header {
                flags: flags::REPLY,
                ..request.header
            },
            payload: Vec::new(),
            files,
            how: How::Whole,
        };
        reply.set_payload(payload);
        reply
    }

    fn region_info(&self, asked: RegionInfo, files: &mut Vec<OwnedFd>) -> Vec<u8> {
        let region = &self.regions[asked.index as usize];
        let whole = FIRST + region.capabilities.len() as u32;
        let info = RegionInfo {
            argsz: whole,
            flags: region.flags,
            index: asked.index,
            cap_offset: region.cap_offset,
            size: region.size,
            offset: region.offset,
        };
        let mut payload = info.as_bytes().to_vec();
        if asked.argsz >= whole {
            payload.extend(&region.capabilities);
            files.extend(
                region
                    .file
                    .iter()
                    .map(|file| file.try_clone().unwrap().into()),
            );
        }
        payload
    }
}

/// What is read at an offset.
pub fn pattern(offset: u64) -> u8 {
    (offset ^ (offset >> 8)) as u8
}

/// What a server has seen.
#[derive(Default)]
pub struct Log {
    pub requests: Vec<Request>,
    /// Answers to commands of its own.
    pub answers: Vec<Header>,
}

impl Log {
    /// Requests of one kind.
    pub fn of(&self, command: Command) -> impl Iterator<Item = &Request> {
        self.requests
            .iter()
            .filter(move |request| request.is(command))
    }
}

/// A server in a thread, which ends when its client closes or shuts down the connection.
pub struct Server(JoinHandle<Log>);

impl Server {
    /// The server and the client's end of its socket.
    pub fn start(
        script: Script,
        mut tamper: impl FnMut(&Request, &mut Reply) + Send + 'static,
    ) -> (UnixStream, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut log = Log::default();
            while let Some(request) = receive(&ours) {
                let mut reply = script.reply(&request);
                tamper(&request, &mut reply);
                log.requests.push(request);
                if !reply.send(&ours, &mut log) {
                    break;
                }
            }
            log
        });
        (theirs, Self(thread))
    }

    /// Waits until the connection is closed or shut down.
    pub fn finish(self) -> Log {
        self.0.join().unwrap()
    }
}

/// The next message; `None` at the end.
pub fn receive(socket: &UnixStream) -> Option<Request> {
    let mut header = Header::default();
    let mut files = Vec::new();
    fill(socket, header.as_mut_bytes(), &mut files)?;
    let mut body = vec![0; header.size as usize - size_of::<Header>()];
    fill(socket, &mut body, &mut files)?;
    Some(Request {
        header,
        body,
        files,
    })
}

fn fill(socket: &UnixStream, mut buffer: &mut [u8], files: &mut Vec<OwnedFd>) -> Option<()> {
    while !buffer.is_empty() {
        let mut descriptors = [0; 32];
        let mut vectors = [libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        }];
        // SAFETY: the vector is the buffer, which is borrowed for writing.
        let (read, count) = unsafe { socket.recv_with_fds(&mut vectors, &mut descriptors) }.ok()?;
        for descriptor in &descriptors[..count] {
            // SAFETY: the kernel has just made it, and it is taken once.
            files.push(unsafe { OwnedFd::from_raw_fd(*descriptor) });
        }
        if read == 0 {
            return None;
        }
        buffer = &mut buffer[read..];
    }
    Some(())
}

/// Leaves room for hardly anybody who waits to be accepted.
pub fn shorten_queue(listener: &UnixListener) {
    // SAFETY: there are no pointers.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
}

/// A memfd of so many pages.
pub fn memfd(pages: u64) -> File {
    // SAFETY: the name is a C string.
    let descriptor = unsafe { libc::memfd_create(c"region".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(descriptor >= 0);
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(pages * sys::page_size()).unwrap();
    file
}

/// Sends bytes with descriptors. The client may be gone.
pub fn send(socket: &UnixStream, bytes: &[u8], files: &[OwnedFd]) {
    let descriptors: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let _ = sys::send(socket, &[bytes], &descriptors, &Deadline::after(LONG));
}

impl Reply {
    /// Whether to go on.
    fn send(self, socket: &UnixStream, log: &mut Log) -> bool {
        let bytes = self.bytes();
        match self.how {
            How::Whole => send(socket, &bytes, &self.files),
            How::Raw(bytes) => send(socket, &bytes, &self.files),
            How::Never => {}
            How::Last(bytes) => {
                send(socket, &bytes, &self.files);
                return false;
            }
            How::Trickle(pause) => {
                for byte in bytes {
                    if (&*socket).write_all(&[byte]).is_err() {
                        return false;
                    }
                    thread::sleep(pause);
                }
            }
            How::After(commands) => {
                for (header, body) in commands {
                    send(socket, &[header.as_bytes(), &body].concat(), &[]);
                    if header.flags & flags::NO_REPLY == 0 {
                        let Some(answer) = receive(socket) else {
                            return false;
                        };
                        log.answers.push(answer.header);
                    }
                }
                send(socket, &bytes, &self.files);
            }
        }
        true
    }
}
