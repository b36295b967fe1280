//! What the device does: carries bytes between its queues and the line.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address as _, Bytes as _};

use super::backend::{Line, Size};
use super::device::Shown;
use crate::virtio::{
    Chain, ConfigChanges, Fault, Handler, MOST_DESCRIPTORS, Memory, Token, VirtQueue,
};

/// Queues by their numbers (section 5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The token of the line; those of queues are their numbers.
const LINE: Token = 2;

/// Bytes that are copied at once.
const COPY: usize = 4096;
/// Bytes that are carried before the thread looks whether it is asked for something else.
const TURN: usize = 256 << 10;
/// What a request counts beside its bytes.
const REQUEST: usize = 64;

/// The size of the terminal, as the driver sees it.
pub struct Screen {
    shown: Arc<Shown>,
    changes: ConfigChanges,
    was_told: bool,
}

impl Screen {
    pub fn new(shown: Arc<Shown>, changes: ConfigChanges) -> Self {
        Self {
            shown,
            changes,
            was_told: false,
        }
    }

    /// Tells the driver of a size that is new to it. Linux never looks for itself: what is known from
    /// the beginning is told as well.
    fn show(&mut self, size: Size) {
        let is_told = self.was_told || size == Size::default();
        if is_told && size == self.shown.get() {
            return;
        }
        self.was_told = true;
        self.changes.make(|| self.shown.set(size));
    }
}

/// Serves both queues.
pub struct ConsoleHandler {
    line: Arc<Line>,
    /// None if the driver uses none.
    receive: Option<VirtQueue>,
    transmit: Option<VirtQueue>,
    /// Nothing if the driver does not ask for the size.
    screen: Option<Screen>,
    /// Bytes of the oldest output request that are on the line already.
    sent: u64,
}

/// What became of a request with output.
enum Sent {
    /// All of it is on the line.
    All,
    /// The line takes no more for now.
    Full,
    /// It is somebody else's turn.
    Later,
}

impl ConsoleHandler {
    pub fn new(line: Arc<Line>, queues: Vec<VirtQueue>, screen: Option<Screen>) -> Self {
        let mut handler = Self {
            line,
            receive: None,
            transmit: None,
            screen,
            sent: 0,
        };
        for queue in queues {
            match queue.index {
                RECEIVE => handler.receive = Some(queue),
                TRANSMIT => handler.transmit = Some(queue),
                _ => {}
            }
        }
        handler
    }

    /// Gives input to the driver, as far as it has buffers for it.
    fn receive(&mut self) -> Result<(), Fault> {
        let Some(queue) = &mut self.receive else {
            return Ok(());
        };
        let memory = queue.memory();
        let mut buffer = [0; COPY];
        let mut turn = TURN;
        loop {
            queue.be_quiet(&memory)?;
            let mut count = self.line.peek(&mut buffer);
            while count > 0
                && turn > 0
                && let Some(chain) = queue.pop(&memory)?
            {
                let head = chain.head_index();
                let bytes = buffer.get(..count).unwrap_or_default();
                let written = fill(&memory, chain, bytes);
                // At most what is copied at once.
                queue.push(&memory, head, written as u32)?;
                self.line.consume(written);
                turn = turn.saturating_sub(written + REQUEST);
                count = self.line.peek(&mut buffer);
            }
            queue.notify(&memory)?;
            if count == 0 {
                // The line tells of more.
                return Ok(());
            }
            if turn == 0 {
                come_again(queue);
                return Ok(());
            }
            if !queue.wait(&memory)? {
                return Ok(());
            }
        }
    }

    /// Puts output on the line, as far as it takes it. What it does not take waits in the queue.
    fn transmit(&mut self) -> Result<(), Fault> {
        let Some(queue) = &mut self.transmit else {
            return Ok(());
        };
        let memory = queue.memory();
        let mut turn = TURN;
        loop {
            queue.be_quiet(&memory)?;
            while let Some(chain) = queue.pop(&memory)? {
                let head = chain.head_index();
                match send(&self.line, &memory, chain, &mut self.sent, &mut turn) {
                    Sent::All => {
                        self.sent = 0;
                        queue.push(&memory, head, 0)?;
                    }
                    sent => {
                        queue.unpop(1);
                        queue.notify(&memory)?;
                        if matches!(sent, Sent::Later) {
                            come_again(queue);
                        }
                        return Ok(());
                    }
                }
            }
            queue.notify(&memory)?;
            if !queue.wait(&memory)? {
                return Ok(());
            }
        }
    }
}

impl Handler for ConsoleHandler {
    fn descriptors(&self) -> Vec<(RawFd, Token)> {
        let queues = self.receive.iter().chain(&self.transmit);
        let queues = queues.map(|queue| (queue.kick().as_raw_fd(), queue.index.into()));
        queues
            .chain([(self.line.event().as_raw_fd(), LINE)])
            .collect()
    }

    fn ready(&mut self, token: Token) -> Result<(), Fault> {
        let queue = match token {
            LINE => {
                // Nothing to read is as good.
                let _ = self.line.event().read();
                if let (Some(screen), Some(size)) = (&mut self.screen, self.line.size()) {
                    screen.show(size);
                }
                self.receive()?;
                return self.transmit();
            }
            token if token == Token::from(RECEIVE) => &self.receive,
            _ => &self.transmit,
        };
        if let Some(queue) = queue {
            let _ = queue.kick().read();
        }
        match token == Token::from(RECEIVE) {
            true => self.receive(),
            false => self.transmit(),
        }
    }
}

/// Makes the thread see to the queue again, after it has looked what else there is.
fn come_again(queue: &VirtQueue) {
    // A full counter is as good.
    let _ = queue.kick().write(1);
}

/// Fills the writable buffers of a request from the first on, and returns how many bytes are in them. A
/// buffer that is not in memory ends the request, and so do as many descriptors as are looked at.
fn fill(memory: &Memory, chain: Chain, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    let descriptors = chain.take(MOST_DESCRIPTORS);
    for descriptor in descriptors.filter(Descriptor::is_write_only) {
        let (now, later) = rest.split_at(rest.len().min(descriptor.len() as usize));
        if memory.write_slice(now, descriptor.addr()).is_err() {
            break;
        }
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    bytes.len() - rest.len()
}

/// Puts the readable buffers of a request on the line, but for the first `sent` bytes. What is not in
/// memory is left out, and what is behind as many descriptors as are looked at.
fn send(line: &Line, memory: &Memory, chain: Chain, sent: &mut u64, turn: &mut usize) -> Sent {
    if *turn < REQUEST {
        return Sent::Later;
    }
    *turn -= REQUEST;
    let mut buffer = [0; COPY];
    let mut end = 0;
    let descriptors = chain.take(MOST_DESCRIPTORS);
    for descriptor in descriptors.filter(|descriptor| !descriptor.is_write_only()) {
        let start = end;
        end += u64::from(descriptor.len());
        *sent = start.max(*sent);
        while *sent < end {
            // At most 4 KiB.
            let count = (end - *sent).min(COPY as u64) as usize;
            let address = descriptor.addr().checked_add(*sent - start);
            let bytes = buffer.get_mut(..count).unwrap_or_default();
            let read = address.map(|address| memory.read_slice(bytes, address));
            let Some(Ok(())) = read else {
                *sent = end;
                break;
            };
            if *turn < count {
                return Sent::Later;
            }
            let taken = line.send(bytes);
            *turn -= taken;
            // At most 4 KiB.
            *sent += taken as u64;
            if taken < count {
                return Sent::Full;
            }
        }
    }
    Sent::All
}
