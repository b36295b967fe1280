//! What the device does: fills buffers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vm_memory::{GuestMemory as _, Permissions, ReadVolatile as _};

use crate::virtio::{Chain, Fault, Handler, Token, VirtQueue};

/// Bytes that one request is given at most; a driver asks again for more.
const MOST: usize = 64 << 10;

/// Serves the queue of requests.
pub struct RngHandler {
    source: File,
    queues: Vec<VirtQueue>,
}

impl RngHandler {
    pub fn new(source: File, queues: Vec<VirtQueue>) -> Self {
        Self { source, queues }
    }
}

impl Handler for RngHandler {
    fn descriptors(&self) -> Vec<(RawFd, Token)> {
        let queues = self.queues.iter().zip(0..);
        queues
            .map(|(queue, token)| (queue.kick().as_raw_fd(), token))
            .collect()
    }

    fn ready(&mut self, token: Token) -> Result<(), Fault> {
        let Some(queue) = self.queues.get_mut(token as usize) else {
            return Ok(());
        };
        // Somebody else may have read it, which is all the same.
        let _ = queue.kick().read();
        let source = &mut self.source;
        queue.serve_all(|chain| Ok(fill(source, chain)?))
    }
}

/// Fills the writable buffers of a request, from the first on.
///
/// # Returns
/// How many bytes were written: fewer than there is room for where the host has no more.
fn fill(source: &mut File, chain: Chain) -> io::Result<u32> {
    let memory = chain.memory().clone();
    let mut written = 0;
    for descriptor in chain.writable() {
        let room = (descriptor.len() as usize).min(MOST - written);
        let slices = memory.get_slices(descriptor.addr(), room, Permissions::Write);
        // A buffer that is not in memory ends the request; the driver has what it has.
        let Ok(slices) = slices else {
            return Ok(written as u32);
        };
        for slice in slices {
            let Ok(mut slice) = slice else {
                return Ok(written as u32);
            };
            match source.read_volatile(&mut slice) {
                Ok(0) => return Ok(written as u32),
                Ok(count) => written += count,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        if written >= MOST {
            break;
        }
    }
    // At most 64 KiB.
    Ok(written as u32)
}
