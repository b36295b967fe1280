//! The queues of the device, which one thread serves.

use std::os::fd::{AsRawFd, RawFd};

use super::switch::{Filled, Switch};
use crate::virtio::{Fault, Handler, Token, VirtQueue};

/// Packets after which it is looked whether the thread is to do something else.
const ROUND: usize = 256;

/// The driver has made a buffer for packets to the guest available.
const RECEIVE: Token = 0;
/// The driver has made a packet available.
const TRANSMIT: Token = 1;
/// The host has something to say.
const HOST: Token = 2;

/// Numbers of queues (section 5.10.2). The third is of events, of which there are none: they are for
/// guests that find themselves elsewhere.
mod queue {
    pub const RECEIVE: u16 = 0;
    pub const TRANSMIT: u16 = 1;
}

/// Serves the queues, as far as the driver uses them.
pub struct VsockHandler {
    receive: Option<VirtQueue>,
    transmit: Option<VirtQueue>,
    switch: Switch,
}

impl VsockHandler {
    pub fn new(switch: Switch, queues: Vec<VirtQueue>) -> Self {
        let mut handler = Self {
            receive: None,
            transmit: None,
            switch,
        };
        for queue in queues {
            match queue.index {
                queue::RECEIVE => handler.receive = Some(queue),
                queue::TRANSMIT => handler.transmit = Some(queue),
                _ => {}
            }
        }
        handler
    }

    fn serve(&mut self) -> Result<(), Fault> {
        let mut left = ROUND;
        loop {
            self.switch.accept();
            let is_stuck = self.take(&mut left)?;
            self.give(&mut left)?;
            if left == 0 {
                for queue in self.receive.iter().chain(&self.transmit) {
                    // A full counter is as good.
                    let _ = queue.kick().write(1);
                }
                return Ok(());
            }
            let can_go_on = is_stuck && self.switch.can_take() || self.switch.can_accept();
            if !can_go_on {
                // What fails here is a fault that tests see.
                #[cfg(test)]
                self.switch.check();
                return Ok(());
            }
        }
    }

    /// Takes packets of the guest.
    ///
    /// # Returns
    /// Whether it has stopped because the guest does not take refusals.
    fn take(&mut self, left: &mut usize) -> Result<bool, Fault> {
        let Some(queue) = &mut self.transmit else {
            return Ok(false);
        };
        let memory = queue.memory();
        loop {
            queue.be_quiet(&memory)?;
            let mut is_stuck = false;
            while *left > 0 {
                is_stuck = !self.switch.can_take();
                if is_stuck {
                    break;
                }
                let Some(chain) = queue.pop(&memory)? else {
                    break;
                };
                *left -= 1;
                let head = chain.head_index();
                self.switch.take(chain, &memory);
                queue.push(&memory, head, 0)?;
            }
            queue.notify(&memory)?;
            // What brings the guest to take refusals brings us here again.
            if is_stuck || *left == 0 || !queue.wait(&memory)? {
                return Ok(is_stuck);
            }
        }
    }

    /// Gives the guest what there is for it.
    fn give(&mut self, left: &mut usize) -> Result<(), Fault> {
        let Some(queue) = &mut self.receive else {
            return Ok(());
        };
        let memory = queue.memory();
        loop {
            queue.be_quiet(&memory)?;
            let mut is_starved = false;
            while *left > 0 && self.switch.has_news() {
                let Some(chain) = queue.pop(&memory)? else {
                    is_starved = true;
                    break;
                };
                *left -= 1;
                let head = chain.head_index();
                match self.switch.give(chain, &memory) {
                    Filled::Packet(bytes) => queue.push(&memory, head, bytes)?,
                    Filled::Unfit => queue.push(&memory, head, 0)?,
                    Filled::Nothing => queue.unpop(1),
                }
            }
            queue.notify(&memory)?;
            // The driver need not tell of buffers that nobody waits for.
            if !is_starved || !queue.wait(&memory)? {
                return Ok(());
            }
        }
    }
}

impl Handler for VsockHandler {
    fn descriptors(&self) -> Vec<(RawFd, Token)> {
        let kick = |queue: &VirtQueue| queue.kick().as_raw_fd();
        let receive = self.receive.iter().map(|queue| (kick(queue), RECEIVE));
        let transmit = self.transmit.iter().map(|queue| (kick(queue), TRANSMIT));
        let queues = receive.chain(transmit);
        queues.chain([(self.switch.fd(), HOST)]).collect()
    }

    fn ready(&mut self, token: Token) -> Result<(), Fault> {
        self.switch.go_on();
        let queue = match token {
            RECEIVE => &self.receive,
            TRANSMIT => &self.transmit,
            _ => {
                self.switch.hear()?;
                &None
            }
        };
        if let Some(queue) = queue {
            // Nothing to read is as good.
            let _ = queue.kick().read();
        }
        self.serve()
    }

    fn settle(&mut self) -> Result<(), Fault> {
        // Everything that was begun is done: the host never lets us wait.
        self.switch.stand_still();
        Ok(())
    }
}
