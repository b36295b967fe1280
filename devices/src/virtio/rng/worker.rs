//! What the device does: fills buffers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory as _, Permissions, ReadVolatile as _, VolatileMemoryError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::virtio::{Chain, Fault, Handler, MOST_DESCRIPTORS, Memory, Token, VirtQueue};

/// Bytes that one request is given at most; a driver asks again for more.
const MOST: usize = 64 << 10;

/// Requests after which it is looked whether the thread is to do something else.
const ROUND: usize = 1024;

/// The driver has made a request.
const REQUEST: Token = 0;
/// The source has something again.
const SOURCE: Token = 1;

/// Serves the queue of requests.
pub struct RngHandler {
    source: Source,
    /// None if the driver uses none.
    queue: Option<VirtQueue>,
}

/// Where randomness comes from.
struct Source {
    file: File,
    /// Readable once the source is, after it was asked for.
    more: Epoll,
}

/// What became of a request.
enum Filled {
    /// So many bytes were written.
    Bytes(u32),
    /// The source has nothing now.
    NotNow,
}

impl RngHandler {
    /// Fills requests of the first queue from `file`, which does not block.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(file: File, queues: Vec<VirtQueue>) -> io::Result<Self> {
        Ok(Self {
            source: Source::new(file)?,
            queue: queues.into_iter().next(),
        })
    }

    fn serve(&mut self) -> Result<(), Fault> {
        let Some(queue) = &mut self.queue else {
            return Ok(());
        };
        let memory = queue.memory();
        let mut left = ROUND;
        loop {
            queue.be_quiet(&memory)?;
            while left > 0 {
                let Some(chain) = queue.pop(&memory)? else {
                    break;
                };
                left -= 1;
                let head = chain.head_index();
                match self.source.fill(chain, &memory)? {
                    Filled::Bytes(count) => queue.push(&memory, head, count)?,
                    Filled::NotNow => {
                        queue.unpop(1);
                        queue.notify(&memory)?;
                        return Ok(self.source.wait()?);
                    }
                }
            }
            queue.notify(&memory)?;
            if left == 0 {
                // A full counter is as good.
                let _ = queue.kick().write(1);
                return Ok(());
            }
            if !queue.wait(&memory)? {
                return Ok(());
            }
        }
    }
}

impl Handler for RngHandler {
    fn descriptors(&self) -> Vec<(RawFd, Token)> {
        let queue = self.queue.iter();
        let queue = queue.map(|queue| (queue.kick().as_raw_fd(), REQUEST));
        queue
            .chain([(self.source.more.as_raw_fd(), SOURCE)])
            .collect()
    }

    fn ready(&mut self, token: Token) -> Result<(), Fault> {
        match (token, &self.queue) {
            (SOURCE, _) => self.source.take_event()?,
            (_, Some(queue)) => {
                // Nothing to read is as good.
                let _ = queue.kick().read();
            }
            (_, None) => {}
        }
        self.serve()
    }
}

impl Source {
    fn new(file: File) -> io::Result<Self> {
        let more = Epoll::new()?;
        // Asked for nothing yet. What epoll does not take, such as a regular file, never has to be
        // waited for.
        let event = EpollEvent::new(EventSet::ONE_SHOT, 0);
        match more.ctl(ControlOperation::Add, file.as_raw_fd(), event) {
            Err(error) if error.raw_os_error() != Some(libc::EPERM) => Err(error),
            _ => Ok(Self { file, more }),
        }
    }

    /// Asks to be told when there is more.
    fn wait(&self) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::ONE_SHOT, 0);
        self.more
            .ctl(ControlOperation::Modify, self.file.as_raw_fd(), event)
    }

    fn take_event(&self) -> io::Result<()> {
        self.more.wait(0, &mut [EpollEvent::default()])?;
        Ok(())
    }

    /// Fills the writable buffers of a request, from the first on: with less than there is room for
    /// where the source has no more, or behind as many descriptors as are looked at.
    fn fill(&mut self, chain: Chain, memory: &Memory) -> io::Result<Filled> {
        let mut written = 0;
        let descriptors = chain.take(MOST_DESCRIPTORS);
        for descriptor in descriptors.filter(Descriptor::is_write_only) {
            let room = (descriptor.len() as usize).min(MOST - written);
            let slices = memory.get_slices(descriptor.addr(), room, Permissions::Write);
            // A buffer that is not in memory ends the request; the driver has what it has.
            let Ok(slices) = slices else { break };
            for slice in slices {
                let Ok(mut slice) = slice else {
                    return Ok(Filled::Bytes(written as u32));
                };
                match self.file.read_volatile(&mut slice) {
                    Ok(count) if count == slice.len() => written += count,
                    Ok(count) => return Ok(Filled::Bytes((written + count) as u32)),
                    Err(VolatileMemoryError::IOError(error)) if is_for_later(&error) => {
                        return Ok(match written {
                            0 => Filled::NotNow,
                            written => Filled::Bytes(written as u32),
                        });
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            if written >= MOST {
                break;
            }
        }
        // At most 64 KiB.
        Ok(Filled::Bytes(written as u32))
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
