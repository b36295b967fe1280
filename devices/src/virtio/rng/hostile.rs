//! What hostile drivers find: a source that gives when it is told to.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::Rng;
use crate::virtio::Device;
use crate::virtio::testing::hostile::Subject;
use crate::virtio::testing::{Buffer, Driver};

/// Where a request's buffer is.
const BUFFER: u64 = 0x8_0000;

/// A source, from the host's side.
pub struct Source {
    device: Option<Rng>,
    host: UnixStream,
}

impl Source {
    pub fn new() -> Self {
        let (host, theirs) = UnixStream::pair().unwrap();
        for end in [&host, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let file = File::from(OwnedFd::from(theirs));
        let mut source = Self {
            device: Some(Rng::new(file)),
            host,
        };
        source.act(100);
        source
    }
}

impl Subject for Source {
    fn device(&mut self) -> Box<dyn Device> {
        Box::new(self.device.take().unwrap())
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn ask(&mut self, driver: &mut Driver) {
        let buffer = Buffer {
            gpa: BUFFER,
            length: 64,
            writable: true,
        };
        driver.fill(BUFFER, &[0; 64]);
        driver.make_available(0, 0, &[buffer]);
        driver.kick(0);
    }

    fn check_answer(&mut self, driver: &mut Driver) {
        self.act(64);
        let (head, written) = driver.wait_used(0);
        assert_eq!(head, 0);
        assert!((1..=64).contains(&written), "{written}");
        let bytes = driver.bytes(BUFFER, written as usize);
        assert!(bytes.iter().all(|byte| *byte == 0x5a), "{bytes:x?}");
    }

    fn act(&mut self, what: u8) {
        // A source that is full has enough.
        let _ = self.host.write(&vec![0x5a; what.into()]);
    }
}
